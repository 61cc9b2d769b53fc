"""Handing out trials: order, second tries, trials that others work on, and signals."""

from __future__ import annotations

import signal

import pytest

from spaceless import dispatch as dispatch_room
from spaceless.attempts import Event, unforeseen
from spaceless.dispatch import dispatch
from spaceless.errors import CheckpointError, InputError
from spaceless.run import Place
from spaceless.trial import Outcome
from tiny_studies import FOUR, planned

PLAN = planned(*FOUR)
DONE = Outcome(trial=FOUR[0], status="finished")


@pytest.fixture(autouse=True)
def no_waiting(monkeypatch):
    monkeypatch.setattr(dispatch_room, "_HELD", 0.0)


class Scripted:
    """Hands that end each attempt as a script says, the last word for ever."""

    def __init__(self, script, at_once=1):
        self.script, self.at_once = {index: list(words) for index, words in script.items()}, at_once
        self.given, self.order, self.interrupted, self.most = [], [], 0, 0

    def room(self):
        return len(self.given) < self.at_once

    def give(self, index):
        self.given.append(index)
        self.order.append(index)
        self.most = max(self.most, len(self.given))

    def endings(self, patience):
        if not self.given:
            return []
        index = self.given.pop(0)
        words = self.script.get(index, ["finished"])
        word = "interrupted" if self.interrupted else words.pop(0) if len(words) > 1 else words[0]
        if isinstance(word, Exception):
            return [Event(index, "failed", error=word)]
        return [Event(index, word, outcome=DONE if word in ("finished", "known") else None, note="somebody")]

    def interrupt(self):
        self.interrupted += 1


def run(tmp_path, script, todo=range(4), *, retries=1, stop=lambda: None, at_once=1):
    hands, told = Scripted(script, at_once), []
    dispatch(PLAN, Place(tmp_path), list(todo), hands, stop, told.append, retries)
    return hands, told


CRASH = unforeseen(FOUR[1], "a crash")


def test_trials_are_given_in_order_as_far_as_there_is_room(tmp_path):
    hands, told = run(tmp_path, {}, at_once=2)
    assert hands.order == [0, 1, 2, 3]
    assert hands.most == 2
    assert [(event.index, event.kind) for event in told] == [(index, "finished") for index in range(4)]


def test_a_failed_trial_is_tried_again_behind_the_others(tmp_path):
    hands, told = run(tmp_path, {1: [CRASH, "finished"]})
    assert hands.order == [0, 1, 2, 3, 1]
    assert [event.kind for event in told] == ["finished", "again", "finished", "finished", "finished"]
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("retries", [0, 1, 3])
def test_what_keeps_failing_is_given_up_stored_and_told_once(tmp_path, retries):
    hands, told = run(tmp_path, {1: [CRASH]}, retries=retries)
    assert hands.order.count(1) == 1 + retries
    assert [event.kind for event in told].count("failed") == 1
    stored = Place(tmp_path).store.outcome(FOUR[1])
    assert (stored.status, stored.error) == ("failed", str(CRASH))
    assert stored.evaluations == ()
    assert stored.versions["torch"]


def test_wrong_input_is_not_tried_again(tmp_path):
    hands, _ = run(tmp_path, {2: [InputError("a", found=1, expected=2, cure="c")]}, retries=5)
    assert hands.order == [0, 1, 2, 3]
    assert Place(tmp_path).store.outcome(FOUR[2]).status == "failed"


def test_a_failure_that_cannot_be_stored_is_told_all_the_same(tmp_path):
    (tmp_path / FOUR[0].id).write_text("a file where the folder should be")
    full = CheckpointError("x", found="No space left on device", expected="room", cure="free some space")
    _, told = run(tmp_path, {0: [full]}, retries=0)
    assert [event.kind for event in told] == ["failed", "finished", "finished", "finished"]


def test_a_trial_that_others_hold_is_asked_for_until_they_have_finished_it(tmp_path):
    hands, told = run(tmp_path, {0: ["held", "held", "known"]})
    assert hands.order.count(0) == 3
    assert [event.kind for event in told if event.index == 0] == ["held", "held", "known"]
    assert sorted(set(hands.order)) == [0, 1, 2, 3]


def test_after_a_signal_nothing_is_given_and_everything_at_hand_is_waited_for(tmp_path):
    hands, told = run(tmp_path, {}, stop=lambda: signal.SIGTERM)
    assert hands.order == []
    assert hands.interrupted == 1
    calls = iter([None, None, *[signal.SIGTERM] * 10])
    hands, told = run(tmp_path, {}, stop=lambda: next(calls), at_once=3)
    assert hands.order == [0, 1, 2, 3]
    assert [event.kind for event in told] == ["finished", "finished"]
    assert hands.interrupted == 1
    assert not hands.given
