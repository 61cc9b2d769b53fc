"""Studies whose processes are killed or get signals, as `spaceless bench faults` does it, smaller."""

from __future__ import annotations

import itertools
import os
import signal
import subprocess
import sys

import pytest

from spaceless.bench import faults
from spaceless.bench.faults import interruptions, kills, tiny
from spaceless.errors import InputError


def quiet(_):
    pass


def test_a_killed_study_goes_on_to_the_same_weights_metrics_and_outcomes():
    found = kills.run(quiet, kills=2, trials=2, epochs=12)
    assert found["failing"] == []
    assert found["counts"]["of these while the study ran"] >= 1
    assert found["counts"]["identical to the uninterrupted run"] == 2


def test_the_measurement_notices_what_is_lost_and_what_is_run_again(monkeypatch):
    looks, instead = itertools.count(), [sys.executable, "-c", "print('begun')"]
    monkeypatch.setattr(kills, "start", lambda *_: subprocess.Popen(
        instead, start_new_session=True, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE))
    monkeypatch.setattr(kills, "fingerprints", lambda out: {} if out.name == "broken" else {"trial": "digest"})
    monkeypatch.setattr(kills, "_finished", lambda out: {"trial": (1, next(looks))})
    found = kills.run(quiet, kills=1, trials=1, epochs=1)
    assert "1 trials lost" in found["failing"]
    assert "1 trials run again though finished" in found["failing"]
    assert "1 trials with another outcome" in found["failing"]


@pytest.mark.parametrize("kind", interruptions.SIGNALS, ids=lambda kind: kind.name)
def test_a_signal_ends_a_study_with_its_status_a_state_and_no_orphans(kind, monkeypatch):
    monkeypatch.setattr(interruptions, "SIGNALS", (kind,))
    monkeypatch.setattr(interruptions, "_SOON", 60.0)  # the machine may be busy with other tests
    found = interruptions.run(quiet, each=1)
    assert found["failing"] == []
    assert found["counts"]["signals"] == found["counts"]["states saved"] == 1
    assert found["counts"]["processes left running"] == 0


def test_a_second_signal_ends_it_at_once(tmp_path):
    process = tiny.start(tmp_path, "--epochs", "1000000", "--images", "4096")  # epochs that take a while
    assert process.stdout.readline() == "begun\n"
    os.kill(process.pid, signal.SIGTERM)
    os.kill(process.pid, signal.SIGTERM)
    process.communicate(timeout=20)
    assert process.returncode == 143


def test_a_fingerprint_is_of_everything_but_clocks():
    plan = tiny.plan(1)
    from spaceless.trial import Evaluation, Outcome

    outcome = Outcome(trial=plan.planned[0].trial, status="finished", seconds=1.0, started="now",
                      evaluations=(Evaluation(images=4, top1=(50.0,)),))
    later = outcome.model_copy(update={"seconds": 2.0, "started": "then"})
    other = outcome.model_copy(update={"evaluations": (Evaluation(images=4, top1=(50.1,)),)})
    assert tiny.fingerprint(outcome) == tiny.fingerprint(later) != tiny.fingerprint(other)


def test_the_page_says_what_broke(monkeypatch):
    monkeypatch.setattr(kills, "run", lambda progress: {
        "what": "w", "counts": {"kills": 50, "lost": 1}, "failing": ["1 trials lost"]})
    content = faults.run(quiet, ["kills"])
    assert content["summary"]["failing"] == ["kills: 1 trials lost"]
    page = faults.markdown({"command": "c", "date": "d", "hardware": "h", "versions": {}, **content})
    assert "| lost | 1 |" in page
    assert "**1 trials lost**" in page
    with pytest.raises(InputError, match="did you mean 'kills'"):
        faults.run(quiet, ["kill"])


def test_a_room_that_ends_in_an_error_costs_the_others_nothing(monkeypatch):
    def broken(progress):
        raise RuntimeError("no head\ncame up")

    monkeypatch.setattr(kills, "run", broken)
    monkeypatch.setattr(interruptions, "run", lambda progress: {"what": "w", "counts": {"signals": 3}, "failing": []})
    content = faults.run(quiet, ["kills", "interruptions"])
    assert content["summary"]["failing"] == ["kills: ended by RuntimeError: no head came up"]
    assert [each["counts"] for each in content["faults"]] == [{}, {"signals": 3}]


def test_two_commands_on_one_folder_share_its_trials(tmp_path):
    for process in [tiny.start(tmp_path, "--epochs", "8") for _ in range(2)]:
        process.communicate(timeout=240)
        assert process.returncode == 0
    assert len(tiny.outcomes(tmp_path)) == 4
    assert not list(tmp_path.glob("*/.claim"))
