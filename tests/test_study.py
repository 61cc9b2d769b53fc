"""Many trials: planned by name, checked before anything is written, skipped when finished, the same in processes."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path

import pytest
import torch

from spaceless import attempts as attempts_module
from spaceless.attempts import Event
from spaceless.errors import InputError, Interrupted
from spaceless.estimate import check
from spaceless.paper import PRESETS
from spaceless.run import Place
from spaceless.store import Store
from spaceless.studies import plan_study
from spaceless.study import run_study
from spaceless.trial import Outcome, Trial
from tiny_studies import FOUR, RECIPE, finished, planned, run_serially, trial, weights

torch.set_num_threads(1)


@pytest.fixture(scope="module")
def serial(tmp_path_factory) -> tuple[Path, dict[str, str]]:
    """The four trials, run one after the other."""
    return run_serially(tmp_path_factory.mktemp("serial") / "runs")


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
    assert plan_study("fig2-vgg16", "smoke", {"data": "my images"}).command.endswith("--data 'my images'")


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
    found = check(plan.planned, Place(tmp_path / "runs"))
    assert (found.trials, found.to_run, found.macs) == (3, 3, 3 * 64 * (2 * spatial + pointwise))
    assert not (tmp_path / "runs").exists()
    found = check(plan.planned, Place(serial[0]))  # where the first and the last are finished
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


def test_a_changed_specification_is_named_and_nothing_runs(tmp_path):
    (tmp_path / FOUR[1].id).mkdir()
    (tmp_path / FOUR[1].id / "trial.json").write_text(FOUR[2].model_dump_json())
    with pytest.raises(InputError, match=rf"{FOUR[1].id}/trial\.json: found .*conv1x1"):
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
    tally = run_study(planned(*FOUR, trial(seed=1)), Place(out), watch=events.append, studies=())
    assert weights(tally.known) == known
    assert [o.trial for o in tally.ran] == [trial(seed=1)]
    after = finished(out)
    assert {name: after[name] for name in before} == before
    assert [e.index for e in events if e.kind == "known"] == [0, 1, 2, 3]
    assert {e.index for e in events if e.kind != "known"} == {4}
    assert [e.kind for e in events if e.index == 4 and e.kind not in ("progress", "evaluating")] == [
        "started", "finished"]
    again = run_study(planned(*FOUR, trial(seed=1)), Place(out), studies=())
    assert (len(again.known), again.ran) == (5, [])


def test_what_is_damaged_is_set_aside_and_made_again(serial, tmp_path):
    plan, place = planned(*FOUR[:2], evaluations=(0,), repeats=2), Place(tmp_path)
    run_study(plan, place)
    before = finished(tmp_path)
    _flip(tmp_path / FOUR[0].id / "outcome.json")
    (test,) = (tmp_path / FOUR[1].id / "evaluations").iterdir()
    stored = test.read_bytes()
    _flip(test)
    assert check(plan.planned, place).to_run == 1
    assert not list(tmp_path.glob("*/*.broken"))  # asking what it would cost changes nothing
    with pytest.warns(UserWarning, match="set aside"):
        tally = run_study(plan, place)
    assert weights(tally.known + tally.ran) == {t.id: serial[1][t.id] for t in FOUR[:2]}
    after = finished(tmp_path)
    assert {name for name in before if after[name] != before[name]} == {FOUR[0].id}
    assert test.read_bytes() == stored
    assert {p.name for p in tmp_path.rglob("*.broken")} == {
        "outcome.json.broken", "shuffle-last-0-repeats-1.json.broken"}
    assert len(run_study(plan, place).known) == 2


def _flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def test_two_studies_of_one_name_are_not_mixed_up(serial):
    with pytest.raises(InputError, match=r"tiny\.study\.json: found a study of this name with 3 other trials"):
        run_study(planned(FOUR[0], trial(seed=7)), Place(serial[0]))
    assert not (serial[0] / trial(seed=7).id).exists()
    assert len(run_study(planned(*FOUR), Place(serial[0])).known) == 4


def test_a_failing_trial_is_reported_and_the_rest_goes_on(tmp_path, serial, monkeypatch):
    run_trial = attempts_module.run_trial

    def failing(made: Trial, *args, **kwargs) -> Outcome:
        if made == FOUR[1]:
            raise RuntimeError("CUDA out of memory")
        return run_trial(made, *args, **kwargs)

    (tmp_path / FOUR[2].id).mkdir()
    (tmp_path / FOUR[2].id / "states").write_text("a file where the folder of states should be")
    monkeypatch.setattr(attempts_module, "run_trial", failing)
    events: list[Event] = []
    tally = run_study(planned(*FOUR), Place(tmp_path), watch=events.append)
    assert [t for t, _ in tally.failed] == [FOUR[1], FOUR[2]]
    assert "out of memory" in str(tally.failed[0][1])
    assert "states" in str(tally.failed[1][1])
    assert [e.index for e in events if e.kind == "failed"] == [1, 2]
    assert [e.index for e in events if e.kind == "again"] == [1, 2]
    assert weights(tally.ran) == {t.id: serial[1][t.id] for t in (FOUR[0], FOUR[3])}
    stored = {t: Store(tmp_path).outcome(t) for t in FOUR}
    assert [o.status for o in stored.values()] == ["finished", "failed", "failed", "finished"]
    assert "out of memory" in stored[FOUR[1]].error
    # With the cause mended the same call does what is left.
    monkeypatch.undo()
    (tmp_path / FOUR[2].id / "states").unlink()
    tally = run_study(planned(*FOUR), Place(tmp_path))
    assert weights(tally.ran) == {t.id: serial[1][t.id] for t in FOUR[1:3]}
    assert {Store(tmp_path).outcome(t).status for t in FOUR} == {"finished"}


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
