"""Signals as a question that long work asks after every step, so that it ends between steps and not within one."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

_CAUGHT = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)


@contextmanager
def caught_signals(*, patient: bool = False) -> Iterator[Callable[[], int | None]]:
    """Give a function that returns the first SIGINT, SIGTERM or SIGUSR1 received, or None.

    A second signal ends the process at once, with 128 + its number as exit status; not a `patient` one, which is a
    worker: a terminal sends its signals to workers too, and the parent hands them on, so that they come twice.
    """
    received: list[int] = []

    def remember(number: int, _frame: FrameType | None) -> None:
        if received and not patient:
            os._exit(128 + number)
        received.append(number)

    before = {number: signal.signal(number, remember) for number in _CAUGHT}
    try:
        yield lambda: received[0] if received else None
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
