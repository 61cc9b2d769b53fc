"""Handing out trials to whoever can run them, and what happens when one fails, is held elsewhere, or a signal comes."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Sequence
from contextlib import suppress
from typing import Protocol

from spaceless.attempts import Event, Stop, Tell, attempt, record_failure, worth_another_try
from spaceless.errors import SpacelessError
from spaceless.run import Place
from spaceless.studies import Plan

_PATIENCE = 0.2  # seconds to wait for news
_HELD = 1.0  # seconds until a trial that another command works on is asked for again


class Hands(Protocol):
    """Whoever runs trials: this process, some processes of this machine, a cluster."""

    def room(self) -> bool:
        """Tell whether one more trial may be given."""

    def give(self, index: int) -> None:
        """Take on the trial with this number in the plan."""

    def endings(self, patience: float) -> list[Event]:
        """Return how attempts have ended since the last call, after `patience` seconds at the latest."""

    def interrupt(self) -> None:
        """Have every attempt end after its current step, with its state saved."""


class Here:
    """This process, one trial after the other."""

    def __init__(self, plan: Plan, place: Place, stop: Stop, tell: Tell) -> None:
        """Take what `attempt` takes."""
        self.plan, self.place, self.stop, self.tell = plan, place, stop, tell
        self.given: int | None = None

    def room(self) -> bool:
        """Tell whether one more trial may be given: there is none at present."""
        return self.given is None

    def give(self, index: int) -> None:
        """Take on a trial."""
        self.given = index

    def endings(self, patience: float) -> list[Event]:
        """Run the trial at hand and return how that ended."""
        if self.given is None:
            time.sleep(patience)
            return []
        index, self.given = self.given, None
        return [attempt(index, self.plan.planned[index], self.place, self.stop, self.tell)]

    def interrupt(self) -> None:
        """Do nothing: an attempt here asks `stop` by itself."""


def dispatch(
    plan: Plan, place: Place, todo: Sequence[int], hands: Hands, stop: Stop, tell: Tell, retries: int,
) -> None:
    """Give the trials `todo` to `hands`, in order, until each is finished here or elsewhere, or has failed for good.

    One that fails is tried again at the end, `retries` times at most, and then stored as failed. One that another
    command works on is asked for again until that has finished it, or has died and left it.
    """
    waiting = [(0.0, index) for index in todo]  # from when on it may be given
    tries: Counter[int] = Counter()
    working = 0
    interrupted = False
    while waiting or working:
        if stop() is not None and not interrupted:
            interrupted, waiting = True, []
            hands.interrupt()
        while hands.room() and (due := [entry for entry in waiting if entry[0] <= time.monotonic()]):
            waiting.remove(due[0])
            hands.give(due[0][1])
            working += 1
        for event in hands.endings(_PATIENCE):
            working -= 1
            if event.kind == "held" and not interrupted:
                tell(event)
                waiting.append((time.monotonic() + _HELD, event.index))
                continue
            if event.kind == "failed" and event.error is not None:
                tries[event.index] += 1
                if not interrupted and worth_another_try(event.error) and tries[event.index] <= retries:
                    tell(Event(event.index, "again", error=event.error))
                    waiting.append((0.0, event.index))
                    continue
                with suppress(SpacelessError):  # the disk is full, say: what is told is the error itself
                    record_failure(plan.planned[event.index], place, event.error)
            if event.kind not in ("interrupted", "held"):
                tell(event)
