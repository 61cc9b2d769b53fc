"""Many trials: planned by name, checked before anything is written, skipped when finished, the same in processes."""

from __future__ import annotations

import json
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

from spaceless import study as study_module
from spaceless.errors import InputError, Interrupted
from spaceless.paper import PRESETS, Planned
from spaceless.run import Place
from spaceless.store import Store
from spaceless.study import Event, Plan, check, plan_study, run_study
from spaceless.trial import RECIPES, Outcome, Trial

torch.set_num_threads(1)

RECIPE = RECIPES["control"].model_copy(update={"epochs": 1, "batch_size": 16, "precision": "fp32"})
BASE = {"model": "chain:4-M-8", "data": "arrangement-4", "train_images": 64, "test_images": 40, "recipe": RECIPE,
        "repeats": 2}


def trial(**fields) -> Trial:
    return Trial.model_validate(BASE | fields)


def planned(*trials: Trial, **fields) -> Plan:
    return Plan("tiny", "Tiny", "?", "spaceless study tiny.toml", tuple(Planned(trial=t, **fields) for t in trials))


FOUR = (trial(), trial(method="shuffle", k=1), trial(method="conv1x1", k=2), trial(method="gap_fc", k=1))


def finished(out: Path) -> dict[str, int]:
    return {p.parent.name: p.stat().st_mtime_ns for p in out.glob("*/outcome.json")}


def weights(outcomes: list[Outcome]) -> dict[str, str]:
    return {o.trial.id: o.weights_sha256 for o in outcomes}


@pytest.fixture(scope="module")
def serial(tmp_path_factory) -> tuple[Path, dict[str, str]]:
    """The four trials, run one after the other."""
    out = tmp_path_factory.mktemp("serial") / "runs"
    tally = run_study(planned(*FOUR), Place(out))
    assert [len(part) for part in (tally.ran, tally.known, tally.failed)] == [4, 0, 0]
    return out, weights(tally.ran)


# --- plans -----------------------------------------------------------------------------------------------------------


def test_a_published_experiment_is_planned_at_its_preset():
    plan = plan_study("fig2-vgg16", "smoke")
    assert (plan.name, plan.experiment, plan.kind) == ("fig2-vgg16-smoke", "fig2-vgg16", "study")
    assert plan.command == "spaceless study fig2-vgg16 --preset smoke"
    assert {p.trial.model for p in plan.planned} == {"vgg16"}
    assert {p.trial.width for p in plan.planned} == {PRESETS["smoke"].width}
    assert {p.trial.k for p in plan.planned} == set(range(14))
    assert len({p.trial.id for p in plan.planned}) == len(plan.planned)
    assert json.loads(json.dumps(plan.manifest()))["planned"][0]["trial"]["model"] == "vgg16"


def test_what_is_asked_replaces_the_preset_and_makes_another_study():
    plan = plan_study("fig2-vgg16", "smoke", {"width": 0.25, "epochs": 2, "seeds": "0-2", "train_images": 100})
    assert plan.name != plan_study("fig2-vgg16", "smoke").name
    assert "/" not in plan.name
    assert {p.trial.width for p in plan.planned} == {0.25}
    assert {p.trial.recipe.epochs for p in plan.planned} == {2}
    assert {p.trial.seed for p in plan.planned} == {0, 1, 2}
    assert {p.trial.train_images for p in plan.planned} == {100}
    assert plan.command == ("spaceless study fig2-vgg16 --preset smoke --width 0.25 --epochs 2 --seeds 0-2 "
                            "--train-images 100")


@pytest.mark.parametrize(("name", "preset", "asked", "says"), [
    ("fig2-vgg61", None, {}, "did you mean 'fig2-vgg16'"),
    ("fig2-vgg16", "quick", {}, "paper, fast, smoke"),
    ("fig2-vgg16", "smoke", {"recipe": "papr"}, "did you mean 'paper'"),
    ("fig2-vgg16", "smoke", {"seeds": "x"}, "seeds"),
    ("fig2-vgg16", "smoke", {"epochs": 0}, "epochs"),
    ("fig2-vgg16", "smoke", {"width": -1}, "width"),
    ("nowhere/study.toml", None, {}, "nowhere/study.toml"),
])
def test_a_study_that_cannot_be_meant_is_refused(name, preset, asked, says):
    with pytest.raises(InputError, match=says):
        plan_study(name, preset, asked)


# --- the check before anything is written ----------------------------------------------------------------------------


def test_the_estimate_by_hand(serial, tmp_path):
    plan = planned(trial(), trial(seed=1), trial(method="conv1x1", k=2))
    spatial, pointwise = 108 * 400 + 288 * 100 + 32, 12 * 400 + 32 * 100 + 32
    found = check(plan, Place(tmp_path / "runs"))
    assert (found.trials, found.to_run, found.macs) == (3, 3, 3 * 64 * (2 * spatial + pointwise))
    assert not (tmp_path / "runs").exists()
    found = check(plan, Place(serial[0]))  # where the first and the last are finished
    assert (found.trials, found.to_run, found.macs) == (3, 1, 3 * 64 * spatial)


WRONG = {
    "model": trial(model="chain:4-X"), "k": trial(method="shuffle", k=3), "unit": trial(method="conv1x1", only=3),
    "data": trial(data="cifar1000"), "width": trial(width=0.3), "images": trial(train_images=5000),
    "patch": trial(method="shuffle", k=1, shuffle={"patch": 3}),
}


@pytest.mark.parametrize("what", WRONG)
def test_one_trial_that_cannot_be_run_stops_the_study_before_the_first(tmp_path, what):
    with pytest.raises(InputError):
        run_study(planned(trial(), WRONG[what]), Place(tmp_path / "runs", data_root=tmp_path))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(("place", "jobs"), [({"device": "nonsense"}, 1), ({"device": "meta"}, 2), ({}, 0), ({}, -2),
                                             ({"keep_weights": False}, 1)])
def test_a_place_that_cannot_serve_stops_the_study_too(tmp_path, place, jobs):
    plan = planned(trial(), evaluations=(0,), repeats=2)
    with pytest.raises(InputError):
        run_study(plan, Place(tmp_path / "runs", **place), jobs=jobs)
    assert list(tmp_path.iterdir()) == []


def test_a_broken_outcome_is_named_and_nothing_runs(tmp_path):
    (tmp_path / FOUR[1].id).mkdir()
    (tmp_path / FOUR[1].id / "outcome.json").write_text("{")
    with pytest.raises(InputError, match=FOUR[1].id):
        run_study(planned(*FOUR), Place(tmp_path))
    assert [p.name for p in tmp_path.iterdir()] == [FOUR[1].id]


# --- one after the other ---------------------------------------------------------------------------------------------


def test_a_study_leaves_its_manifest_and_one_folder_per_trial(serial):
    out, _ = serial
    assert {p.name for p in out.iterdir()} == {"tiny.study.json", *(t.id for t in FOUR)}
    manifest = json.loads((out / "tiny.study.json").read_text())
    assert manifest["command"] == "spaceless study tiny.toml"
    assert [Trial.model_validate(p["trial"]).id for p in manifest["planned"]] == [t.id for t in FOUR]


def test_finished_trials_are_skipped_and_the_rest_is_run(serial, tmp_path):
    out, known = serial
    before = finished(out)
    events: list[Event] = []
    tally = run_study(planned(*FOUR, trial(seed=1)), Place(out), watch=events.append, manifest=False)
    assert weights(tally.known) == known
    assert [o.trial for o in tally.ran] == [trial(seed=1)]
    after = finished(out)
    assert {name: after[name] for name in before} == before
    assert [e.index for e in events if e.kind == "known"] == [0, 1, 2, 3]
    assert {e.index for e in events if e.kind != "known"} == {4}
    assert [e.kind for e in events if e.index == 4 and e.kind not in ("progress", "evaluating")] == [
        "started", "finished"]
    again = run_study(planned(*FOUR, trial(seed=1)), Place(out), manifest=False)
    assert (len(again.known), again.ran) == (5, [])


def test_a_failing_trial_is_reported_and_the_rest_goes_on(tmp_path, serial, monkeypatch):
    run_trial = study_module.run_trial

    def failing(made: Trial, *args, **kwargs) -> Outcome:
        if made == FOUR[1]:
            raise RuntimeError("CUDA out of memory")
        return run_trial(made, *args, **kwargs)

    (tmp_path / FOUR[2].id).mkdir()
    (tmp_path / FOUR[2].id / "states").write_text("a file where the folder of states should be")
    monkeypatch.setattr(study_module, "run_trial", failing)
    events: list[Event] = []
    tally = run_study(planned(*FOUR), Place(tmp_path), watch=events.append)
    assert [t for t, _ in tally.failed] == [FOUR[1], FOUR[2]]
    assert "out of memory" in str(tally.failed[0][1])
    assert "states" in str(tally.failed[1][1])
    assert [e.index for e in events if e.kind == "failed"] == [1, 2]
    assert weights(tally.ran) == {t.id: serial[1][t.id] for t in (FOUR[0], FOUR[3])}
    assert set(finished(tmp_path)) == {FOUR[0].id, FOUR[3].id}
    # With the cause mended the same call does what is left.
    monkeypatch.undo()
    (tmp_path / FOUR[2].id / "states").unlink()
    tally = run_study(planned(*FOUR), Place(tmp_path))
    assert weights(tally.ran) == {t.id: serial[1][t.id] for t in FOUR[1:3]}


def test_further_test_schemes_are_made_up_for_on_finished_trials(tmp_path):
    plain = planned(trial(), trial(method="shuffle", k=1))
    place = Place(tmp_path)
    run_study(plain, place)
    before = finished(tmp_path)
    tested = planned(trial(), trial(method="shuffle", k=1), evaluations=(0, 2), repeats=3)
    tally = run_study(tested, place)
    assert len(tally.ran) == 2
    assert finished(tmp_path) == before
    for t in (trial(), trial(method="shuffle", k=1)):
        names = {p.name: p.stat().st_mtime_ns for p in (tmp_path / t.id / "evaluations").iterdir()}
        assert set(names) == {"shuffle-last-0-repeats-1.json", "shuffle-last-2-repeats-3.json"}
    assert len(run_study(tested, place).known) == 2


def test_a_diverged_trial_has_nothing_further_to_test_and_is_known_the_next_time(tmp_path):
    wild = RECIPE.model_copy(update={"learning_rate": 1e300, "optimizer": "sgd", "schedule": "step"})
    plan = planned(trial(recipe=wild), evaluations=(0, 1), repeats=3)
    tally = run_study(plan, Place(tmp_path))
    assert ([o.status for o in tally.ran], tally.failed) == (["diverged"], [])
    tally = run_study(plan, Place(tmp_path))
    assert ([o.status for o in tally.known], tally.ran, tally.failed) == (["diverged"], [], [])


def test_an_interruption_ends_the_study_and_the_same_call_finishes_it(tmp_path, serial):
    def interrupt(event: Event) -> None:
        if event.index == 1 and event.kind == "progress":
            os.kill(os.getpid(), signal.SIGTERM)

    with pytest.raises(Interrupted) as caught:
        run_study(planned(*FOUR), Place(tmp_path), watch=interrupt)
    assert caught.value.exit_status == 143
    assert set(finished(tmp_path)) == {FOUR[0].id}
    assert list((tmp_path / FOUR[1].id / "states").glob("state-*.json"))
    tally = run_study(planned(*FOUR), Place(tmp_path))
    assert weights(tally.known + tally.ran) == serial[1]
    assert len(tally.ran) == 3


# --- in processes ----------------------------------------------------------------------------------------------------


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


def test_workers_that_are_killed_cost_their_trials_and_no_waiting_for_ever(tmp_path):
    """As a machine out of memory does it: the trials are reported, and the same call makes up for them."""
    killed: list[int] = []

    def kill(event: Event) -> None:
        if event.kind == "started" and not killed:
            time.sleep(0.1)  # so that none is killed within a message
            for worker in multiprocessing.active_children():
                killed.append(worker.pid)
                os.kill(worker.pid, signal.SIGKILL)

    slow = [trial(recipe=RECIPE.model_copy(update={"epochs": 100}), seed=seed) for seed in (5, 6, 7)]
    tally = run_study(planned(*slow), Place(tmp_path), jobs=2, watch=kill)
    assert len(killed) == 2
    assert [t for t, _ in tally.failed] == slow
    assert all("-9" in str(error) for _, error in tally.failed)
    assert finished(tmp_path) == {}


TOML = """
name = "mine"
title = "Mine"
[scale]
name = "own"
seeds = "0-1"
train_images = 64
test_images = 40
repeats = 2
[[series]]
model = "chain:4-M-8"
data = "arrangement-4"
methods = ["shuffle", "conv1x1"]
ks = [0, 1, 2]
recipe = "control"
overrides = {{ epochs = {epochs}, batch_size = 16, precision = "fp32" }}
"""


@pytest.fixture
def start(tmp_path):
    """Return a function that starts the study in a process group of its own; what is left of it is killed."""
    started: list[subprocess.Popen] = []

    def begin(epochs: int, jobs: int) -> subprocess.Popen:
        (tmp_path / "mine.toml").write_text(TOML.format(epochs=epochs))
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
    process = start(epochs=40, jobs=2)
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


@pytest.mark.parametrize(("number", "status", "jobs"), [(signal.SIGTERM, 143, 1), (signal.SIGINT, 130, 2)])
def test_a_signal_saves_every_state_and_gives_its_status(tmp_path, start, number, status, jobs):
    process = start(epochs=100_000, jobs=jobs)
    wait_for(process, "runs/*/trial.json", tmp_path, jobs)
    time.sleep(0.3)
    if jobs == 1:
        process.send_signal(number)
    else:  # as a terminal does: to the parent and to every worker
        os.killpg(process.pid, number)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == status, errors
    assert "Traceback" not in errors
    assert "same command" in errors
    assert len({p.parent.parent.name for p in tmp_path.glob("runs/*/states/state-*.json")}) == jobs
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
    assert "Traceback" not in errors


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
