"""Signals are a question between steps; a second one ends the process, unless it is a worker's."""

from __future__ import annotations

import os
import signal

import pytest

from spaceless.signals import caught_signals

CAUGHT = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)


@pytest.mark.parametrize("number", CAUGHT)
def test_a_signal_is_an_answer_and_not_an_interruption(number):
    with caught_signals() as stop:
        assert stop() is None
        os.kill(os.getpid(), number)
        assert stop() == number
        assert stop() == number  # whoever asks later hears of it too


def test_the_handlers_of_before_come_back_even_after_an_error():
    before = [signal.getsignal(number) for number in CAUGHT]
    with pytest.raises(KeyError), caught_signals():
        assert [signal.getsignal(number) for number in CAUGHT] != before
        raise KeyError
    assert [signal.getsignal(number) for number in CAUGHT] == before


def _status_of_a_process_that_gets(numbers: tuple[int, ...], *, patient: bool) -> int:
    child = os.fork()
    if child == 0:
        try:
            with caught_signals(patient=patient) as stop:
                for number in numbers:
                    os.kill(os.getpid(), number)
                os._exit(stop() or 0)
        finally:
            os._exit(99)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def test_a_second_signal_ends_the_process_at_once():
    assert _status_of_a_process_that_gets((signal.SIGINT, signal.SIGTERM), patient=False) == 143
    assert _status_of_a_process_that_gets((signal.SIGTERM, signal.SIGINT), patient=False) == 130


def test_a_worker_hears_of_every_signal_twice_and_keeps_to_the_first():
    assert _status_of_a_process_that_gets((signal.SIGINT, signal.SIGTERM), patient=True) == signal.SIGINT
