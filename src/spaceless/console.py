"""What a person sees in the terminal: tables, and the progress of long work (plain lines when it is not a terminal)."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn
from rich.table import Table

if TYPE_CHECKING:
    from spaceless.attempts import Event
    from spaceless.studies import Plan

_EVERY = 15.0  # seconds between plain lines about work that goes on


def screen() -> Console:
    """Return the console for everything that is not a result: standard error."""
    return Console(stderr=True, highlight=False, soft_wrap=True)


class _Output(Console):
    """Standard output; a reader that has seen enough, such as `head`, is left to the command line."""

    def on_broken_pipe(self) -> None:
        """Go on with the BrokenPipeError, which rich would turn into a failure."""
        raise  # noqa: PLE0704 (rich calls this where it is caught)


def number(value: float | None, digits: int = 2) -> str:
    """Return a number for a table, or a dash for one that is not known."""
    return "–" if value is None else f"{value:,.{digits}f}"


def table(title: str, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Print a table to standard output; columns whose name ends in `:` are text, the others align right."""
    made = Table(title=title or None, title_justify="left", header_style="bold", box=SIMPLE_HEAD, pad_edge=False)
    for column in columns:
        made.add_column(column.removesuffix(":"), justify="left" if column.endswith(":") else "right", overflow="fold")
    for row in rows:
        made.add_row(*row)
    width = None if sys.stdout.isatty() else 140
    _Output(highlight=False, markup=False, width=width).print(made)


@contextmanager
def watching(plan: Plan) -> Iterator[Callable[[Event], None]]:
    """Show the progress of a study: trials done of total, epoch, images/s and time left."""
    out = screen()
    if out.is_terminal:
        note = TextColumn("{task.fields[note]}")
        columns = (TextColumn("{task.description}"), BarColumn(), note, TimeElapsedColumn())
        with Progress(*columns, console=out, transient=True) as bars:
            yield _Watch(plan, out, bars).see
    else:
        yield _Watch(plan, out, None).see


@contextmanager
def advancing(what: str, *, quiet: bool = False) -> Iterator[Callable[[float], None]]:
    """Give a function that shows the share of one piece of work that is done, and the time left."""
    out, begun = screen(), time.monotonic()
    spoken = begun

    def left(done: float) -> str:
        taken = time.monotonic() - begun
        return f"{100 * done:.0f} %" + (f", {duration(taken * (1 - done) / done)} left" if taken > 5 and done else "")

    def say(done: float) -> None:
        nonlocal spoken
        if time.monotonic() - spoken > _EVERY:
            spoken = time.monotonic()
            out.print(f"{what}: {left(done)}", markup=False)

    if quiet:
        yield lambda _done: None
    elif out.is_terminal:
        columns = (TextColumn("{task.description}"), BarColumn(), TextColumn("{task.fields[note]}"))
        with Progress(*columns, console=out, transient=True) as bars:
            task = bars.add_task(what, total=1.0, note="")
            yield lambda done: bars.update(task, completed=done, note=left(done))
    else:
        yield say


class _Watch:
    def __init__(self, plan: Plan, out: Console, bars: Progress | None) -> None:
        self.plan, self.out, self.bars = plan, out, bars
        self.total, self.done = len(plan.planned), 0
        self.begun = self.spoken = time.monotonic()
        self.shares: dict[int, float] = {}
        self.starts: dict[int, float] = {}  # the shares that running trials went on from
        self.over: set[int] = set()
        self.worked = 0.0  # trials, and parts of them, that this call made and that have ended
        self.tasks: dict[int, TaskID] = {}
        self.held: set[int] = set()
        self.main = bars.add_task(plan.name, total=self.total, note="") if bars else None

    def see(self, event: Event) -> None:
        label = self.plan.planned[event.index].trial.label
        late = event.index in self.over if event.kind == "started" else event.index not in self.shares
        if late and event.kind in ("started", "progress", "evaluating"):  # of a cluster, behind the trial's ending
            return
        if event.kind == "started":
            self.shares[event.index] = 0.0
            if self.bars:
                self.tasks[event.index] = self.bars.add_task(f"  {label}", total=1.0, note="")
        elif event.kind == "progress" and event.progress:
            now = event.progress
            self.shares[event.index], self.starts[event.index] = now.share, now.begun
            note = f"epoch {now.epoch}/{now.epochs}, {now.images_per_second:,.0f} images/s"
            if self.bars:
                self.bars.update(self.tasks[event.index], completed=now.share, note=note)
            elif time.monotonic() - self.spoken > _EVERY:
                self.spoken = time.monotonic()
                self.out.print(f"{label}: {note}; {self._summary()}", markup=False)
        elif event.kind == "evaluating":
            if self.bars:
                self.bars.update(self.tasks[event.index], completed=event.share, note="evaluating")
            elif time.monotonic() - self.spoken > _EVERY:
                self.spoken = time.monotonic()
                self.out.print(f"{label}: evaluating, {100 * event.share:.0f} %; {self._summary()}", markup=False)
        elif event.kind in ("again", "held"):
            self._postponed(event, label)
        else:
            self._ended(event, label)
        if self.bars and self.main is not None:
            self.bars.update(self.main, completed=self.done, note=self._summary())

    def _postponed(self, event: Event, label: str) -> None:
        self._no_longer(event)
        if event.kind == "again":
            self.out.print(f"{label}: failed, to be tried again: {event.error}", markup=False)
        elif event.index not in self.held:  # it is asked for every second
            self.held.add(event.index)
            self.out.print(f"{label}: held by {event.note}; waiting for it to finish", markup=False)

    def _no_longer(self, event: Event) -> None:
        self.shares.pop(event.index, None)
        self.starts.pop(event.index, None)
        if self.bars and event.index in self.tasks:
            self.bars.remove_task(self.tasks.pop(event.index))

    def _ended(self, event: Event, label: str) -> None:
        self.done += 1
        self.over.add(event.index)
        if event.kind != "known":
            trained = self.shares.get(event.index, 0.0) if event.outcome is None else 1.0
            self.worked += trained - self.starts.get(event.index, 0.0)
        self._no_longer(event)
        if event.kind == "known":
            return
        if event.outcome is None:
            text = f"failed: {event.error}"
        elif event.outcome.status != "finished":
            text = event.outcome.status
        else:
            text = f"{number(event.outcome.top1)} % in {number(event.outcome.seconds, 0)} s"
        self.spoken = time.monotonic()
        self.out.print(f"{label}: {text}; {self._summary()}", markup=False)

    def _summary(self) -> str:
        """Return how many trials are done, and the time left judged by those that this call ran."""
        worked = self.worked + sum(self.shares.values()) - sum(self.starts.values())
        left = self.total - self.done - sum(self.shares.values())
        text = f"{self.done} of {self.total} trials"
        if worked > 0.5 and left > 0:  # less is too little to judge by
            text += f", {duration(left * (time.monotonic() - self.begun) / worked)} left"
        return text


def duration(seconds: float) -> str:
    """Return seconds as a short text such as `45 s`, `12 min`, `3.5 h` or `50 days`."""
    if seconds < 100:
        return f"{seconds:.0f} s"
    if seconds < 6000:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.1f} h" if seconds < 72 * 3600 else f"{seconds / 86400:,.0f} days"
