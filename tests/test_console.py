"""What is shown of a study while it runs: in whatever order a cluster's news come, and how long it may yet take."""

from __future__ import annotations

import io
from types import SimpleNamespace

import pytest
from rich.console import Console
from rich.progress import Progress as Bars
from rich.progress import TextColumn

from made_outcomes import outcome
from spaceless import console
from spaceless.attempts import Event
from spaceless.errors import SpacelessError
from spaceless.training import Progress

PLAN = SimpleNamespace(name="mine", planned=[SimpleNamespace(trial=SimpleNamespace(label=f"t{i}")) for i in range(4)])
ERROR = SpacelessError("t", found="a", expected="b", cure="c")


class Shown:
    """A watch, with a clock of its own; with bars as on a terminal."""

    def __init__(self, monkeypatch, *, bars: bool) -> None:
        self.now, self.text = 0.0, io.StringIO()
        monkeypatch.setattr(console.time, "monotonic", lambda: self.now)
        out = Console(file=self.text, force_terminal=bars, width=200)
        self.bars = Bars(TextColumn("{task.description}"), console=out) if bars else None
        self.watch = console._Watch(PLAN, out, self.bars)

    def see(self, index: int, kind: str, now: float = 0.0, **fields) -> None:
        self.now = now
        self.watch.see(Event(index, kind, **fields))


def at(share: float, begun: float = 0.0) -> Progress:
    return Progress(share, 1, 2, 100.0, begun)


@pytest.mark.parametrize("last", ["again", "failed", "interrupted", "finished", "held"])
@pytest.mark.parametrize("bars", [True, False])
def test_news_behind_an_ending_are_none(monkeypatch, bars, last):
    shown = Shown(monkeypatch, bars=bars)
    shown.see(0, "started")
    shown.see(0, "progress", progress=at(0.5))
    shown.see(0, last, error=ERROR, outcome=outcome() if last == "finished" else None)
    shown.see(0, "progress", progress=at(0.6))
    shown.see(0, "evaluating", share=0.5)
    assert (shown.watch.shares, shown.watch.tasks) == ({}, {})
    shown.see(0, "started")
    postponed = last in ("again", "held")
    assert list(shown.watch.shares) == ([0] if postponed else [])  # a trial that has ended does not begin
    if bars:
        assert len(shown.bars.tasks) == 1 + postponed


def test_the_time_left_counts_what_this_call_has_made(monkeypatch):
    shown = Shown(monkeypatch, bars=False)
    shown.see(0, "known", outcome=outcome())
    shown.see(1, "started")
    shown.see(1, "progress", 5, progress=at(0.92, 0.9))  # done yesterday
    assert "left" not in shown.watch._summary()
    shown.see(1, "finished", 10, outcome=outcome())
    shown.see(2, "started", 10)
    shown.see(2, "failed", 11, error=ERROR)  # in a second, and no trial's time
    assert "left" not in shown.watch._summary()
    shown.see(3, "started", 11)
    shown.see(3, "progress", 71, progress=at(0.5))
    # 0.1 and 0.5 of a trial in 71 s, and half of one is left: 71 x 0.5 / 0.6
    assert shown.watch._summary() == "3 of 4 trials, 59 s left"


def test_a_long_evaluation_is_heard_of_where_there_are_no_bars(monkeypatch):
    shown = Shown(monkeypatch, bars=False)
    shown.see(0, "started")
    shown.see(0, "evaluating", 10, share=0.1)
    assert shown.text.getvalue() == ""
    shown.see(0, "evaluating", 20, share=0.25)
    assert shown.text.getvalue() == "t0: evaluating, 25 %; 0 of 4 trials\n"
