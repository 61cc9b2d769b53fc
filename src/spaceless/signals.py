"""Signals as a question that long work asks after every step, so that it ends between steps and not within one."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

_CAUGHT = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)


@contextmanager
def caught_signals() -> Iterator[Callable[[], int | None]]:
    """Give a function that returns the first SIGINT, SIGTERM or SIGUSR1 received, or None.

    A second signal ends the process at once, with 128 + its number as exit status.
    """
    received: list[int] = []

    def remember(number: int, _frame: FrameType | None) -> None:
        if received:
            os._exit(128 + number)
        received.append(number)

    before = {number: signal.signal(number, remember) for number in _CAUGHT}
    try:
        yield lambda: received[0] if received else None
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
