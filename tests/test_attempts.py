"""An attempt that is told to end before it begins leaves no trace."""

from __future__ import annotations

from spaceless.attempts import Event, attempt
from spaceless.paper import Planned
from spaceless.run import Place
from tiny_studies import trial


def test_who_is_told_to_end_before_it_begins_does_not_begin(tmp_path):
    """Of a cluster's study hundreds of trials may wait for room when a signal comes."""
    told: list[Event] = []
    ended = attempt(3, Planned(trial=trial()), Place(tmp_path / "runs"), lambda: 15, told.append)
    assert (ended, told) == (Event(3, "interrupted"), [])
    assert not (tmp_path / "runs").exists()
