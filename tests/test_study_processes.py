"""Studies in several processes, and what is left when any of them is interrupted or killed."""

from __future__ import annotations

import multiprocessing
import os
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import pytest
import torch

from spaceless.attempts import Event
from spaceless.run import Place
from spaceless.store import Store
from spaceless.studies import plan_study
from spaceless.study import run_study
from tiny_studies import FOUR, RECIPE, finished, planned, run_serially, trial, weights

torch.set_num_threads(1)


@pytest.fixture(scope="module")
def serial(tmp_path_factory) -> tuple[Path, dict[str, str]]:
    """The four trials, run one after the other."""
    return run_serially(tmp_path_factory.mktemp("serial") / "runs")


def test_two_processes_come_to_the_same_and_one_failure_stops_neither(tmp_path, serial):
    broken = trial(method="shuffle", k=2)
    (tmp_path / broken.id).mkdir()
    (tmp_path / broken.id / "states").write_text("a file where the folder of states should be")
    events: list[Event] = []
    tally = run_study(planned(broken, *FOUR), Place(tmp_path), jobs=2, watch=events.append)
    assert weights(tally.ran) == serial[1]
    assert {o.threads for o in tally.ran} == {1}
    store = Store(serial[0])
    assert all(found.evaluations == store.outcome(found.trial).evaluations for found in tally.ran)
    assert [(t, type(e).__name__) for t, e in tally.failed] == [(broken, "CheckpointError")]
    assert {e.index for e in events if e.kind == "finished"} == {1, 2, 3, 4}
    assert not multiprocessing.active_children()


@pytest.mark.parametrize("retries", [1])  # what giving up looks like: tests/test_dispatch.py
def test_workers_that_are_killed_cost_their_attempts_and_no_waiting_for_ever(tmp_path, retries):
    """As a machine out of memory does it: new workers go on, and the trials are tried again or reported."""
    killed: list[int] = []

    def kill(event: Event) -> None:
        if event.kind == "started" and not killed:
            time.sleep(0.1)  # so that none is killed within a message
            for worker in multiprocessing.active_children():
                killed.append(worker.pid)
                os.kill(worker.pid, signal.SIGKILL)

    slow = [trial(recipe=RECIPE.model_copy(update={"epochs": 40}), seed=seed) for seed in (5, 6, 7)]
    tally = run_study(planned(*slow), Place(tmp_path), jobs=2, retries=retries, watch=kill)
    assert killed
    assert len(tally.failed) == (0 if retries else len(killed))
    assert all("-9" in str(error) for _, error in tally.failed)
    assert len(tally.ran) == 3 - len(tally.failed)
    assert not multiprocessing.active_children()


TOML = """
name = "mine"
title = "Mine"
[scale]
name = "own"
seeds = "0-1"
train_images = {images}
test_images = 40
repeats = 2
[[series]]
model = "{model}"
data = "arrangement-4"
methods = ["shuffle", "conv1x1"]
ks = [0, 1, 2]
recipe = "control"
overrides = {{ epochs = {epochs}, batch_size = {batch}, precision = "fp32" }}
"""


@pytest.fixture
def start(tmp_path):
    """Return a function that starts the study in a process group of its own; what is left of it is killed."""
    started: list[subprocess.Popen] = []

    def begin(epochs: int, jobs: int, *, images: int = 64, batch: int = 16, model: str = "chain:4-M-8",
              ) -> subprocess.Popen:
        (tmp_path / "mine.toml").write_text(TOML.format(epochs=epochs, images=images, batch=batch, model=model))
        program = [sys.executable, "-c", "from spaceless.cli import main; main()"]
        started.append(subprocess.Popen(
            [*program, "study", "mine.toml", "--jobs", str(jobs)], cwd=tmp_path, start_new_session=True, text=True,
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=os.environ | {"OMP_NUM_THREADS": "1"},
        ))
        return started[-1]

    yield begin
    for process in started:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.communicate()


def wait_for(process: subprocess.Popen, pattern: str, folder: Path, count: int, seconds: float = 120) -> None:
    end = time.monotonic() + seconds
    while len(list(folder.glob(pattern))) < count:
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < end, f"no {count} of {pattern}"
        time.sleep(0.02)


def children(pid: int) -> list[int]:
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def running(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except FileNotFoundError:
        return False


def test_killed_in_mid_study_the_same_command_finishes_without_repeating(tmp_path, start):
    process = start(epochs=15, jobs=1)
    wait_for(process, "runs/*/outcome.json", tmp_path, 2)
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate(timeout=60)
    before = finished(tmp_path / "runs")
    assert 2 <= len(before) < 10
    plan = plan_study(str(tmp_path / "mine.toml"))
    tally = run_study(plan, Place(tmp_path / "runs"))
    assert (len(tally.known), len(tally.ran), len(plan.planned)) == (len(before), 10 - len(before), 10)
    after = finished(tmp_path / "runs")
    assert len(after) == 10
    assert {name: after[name] for name in before} == before


def test_a_signal_saves_every_state_and_gives_its_status(tmp_path, start):
    # Steps that take longer than it takes the parent to hand the signal on.
    process = start(epochs=100_000, jobs=2, images=1024, batch=1024, model="chain:16-16")
    wait_for(process, "runs/*/trial.json", tmp_path, 2)
    time.sleep(0.3)
    os.killpg(process.pid, signal.SIGTERM)  # to workers too, as a terminal does: from their parent it comes again
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 143, errors
    assert "Traceback" not in errors
    assert "same command" in errors
    assert len({p.parent.parent.name for p in tmp_path.glob("runs/*/states/state-*.json")}) == 2
    assert not list(tmp_path.glob("runs/*/outcome.json"))


def test_a_signal_while_workers_start_ends_them_without_a_word(tmp_path, start):
    process = start(epochs=100_000, jobs=2)
    wait_for(process, "runs/mine.study.json", tmp_path, 1)
    while len(children(process.pid)) < 3:  # two workers and what multiprocessing keeps beside them
        time.sleep(0.01)
    time.sleep(0.5)  # they import torch now
    os.killpg(process.pid, signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 130, errors
    assert errors.startswith("interrupted by SIGINT")  # no traceback, and no worker that is said to have failed


def test_workers_whose_parent_is_gone_save_and_end(tmp_path, start):
    process = start(epochs=100_000, jobs=2)
    wait_for(process, "runs/*/trial.json", tmp_path, 2)
    workers = children(process.pid)
    assert len(workers) >= 2
    process.kill()
    process.wait(timeout=60)
    end = time.monotonic() + 60
    while any(running(worker) for worker in workers):
        assert time.monotonic() < end, "workers outlive their parent"
        time.sleep(0.05)
    assert len(list(tmp_path.glob("runs/*/states/state-*.json"))) == 2
