"""The join: one trial to one stored outcome, refusals that leave nothing behind, and further test schemes."""

from __future__ import annotations

import json
import shutil
import signal
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from networks import FLAT, Flat, Tied
from spaceless import run, show
from spaceless.cost import latency
from spaceless.distributed import Share
from spaceless.errors import DataError, InputError, Interrupted
from spaceless.evaluation import evaluate
from spaceless.rebuild import load_model
from spaceless.records import read
from spaceless.retest import evaluate_run, profile_run
from spaceless.rows import load as load_rows
from spaceless.rows import rows
from spaceless.run import Place, build, choose_device, choose_precision, load_data, run_trial
from spaceless.sensitivity import Sensitivity
from spaceless.store import Store, read_outcome
from spaceless.trial import RECIPES, Trial

torch.set_num_threads(1)

RECIPE = RECIPES["control"].model_copy(update={"epochs": 4, "batch_size": 8, "precision": "fp32"})
BASE = {"model": "chain:4-M-8", "data": "arrangement-4", "train_images": 64, "test_images": 40, "recipe": RECIPE,
        "repeats": 3}


def trial(**fields) -> Trial:
    return Trial.model_validate(BASE | fields)


def save_npz(path: Path, images: np.ndarray, classes: int = 3) -> None:
    labels = np.arange(len(images)) % classes
    np.savez(path, train_images=images, train_labels=labels, test_images=images, test_labels=labels)


def tree(folder: Path) -> dict[str, int]:
    return {str(p.relative_to(folder)): p.stat().st_mtime_ns for p in folder.rglob("*")}


@pytest.fixture(scope="module")
def done(tmp_path_factory) -> tuple[Trial, Place]:
    """One finished trial that shuffles both units, on noise whose brightness tells the class now and then."""
    folder, source = tmp_path_factory.mktemp("run"), np.random.default_rng(0)
    images = source.integers(0, 150, (64, 8, 8, 3)) + 20 * (np.arange(64) % 4)[:, None, None, None]
    save_npz(folder / "noise.npz", images.astype(np.uint8), 4)
    place = Place(folder / "runs", data_root=folder, device="cpu")
    made = trial(data="noise", method="shuffle", k=2)
    run_trial(made, place)
    return made, place


def test_the_outcome_holds_what_was_done_and_measured(done):
    made, place = done
    found = read_outcome(place.store.folder(made) / "outcome.json")
    assert found.trial == made
    assert (found.status, found.units, found.precision, found.threads) == ("finished", 2, "fp32", 1)
    assert [c.unit for c in found.changes] == [1, 2]
    # conv 3*4*9 + 4, norm 2*4, conv 4*8*9 + 8, norm 2*8, linear 8*4 + 4
    assert found.params == 112 + 8 + 296 + 16 + 36
    # per position: 3*4*9 at 8x8, 4*8*9 at 4x4; linear 8*4
    assert found.macs == 108 * 64 + 288 * 16 + 32
    assert (found.receptive_field, found.receptive_stride) == (1, 1)
    assert [e.epoch for e in found.history] == [1, 2, 3, 4]
    assert (found.data.name, found.data.train_images, found.data.test_images) == ("noise", 64, 40)
    (evaluation,) = found.evaluations
    assert (evaluation.images, len(evaluation.top1), evaluation.shuffle_last) == (40, 3, None)
    assert len(set(evaluation.top1)) > 1
    assert torch.__version__.startswith(found.versions["torch"])
    assert found.seconds > 0
    assert 0 < found.latency.lower <= found.latency.median <= found.latency.upper
    assert (found.latency.batch, found.latency.repeats) == (1, 20)
    assert sorted(p.name for p in place.store.folder(made).iterdir() if p.is_file()) == [
        "model.safetensors", "outcome.json", "trial.json"]
    assert not place.store.states(made).exists()


def test_the_stored_weights_are_those_that_were_evaluated(done):
    made, place = done
    weights = load_file(place.store.folder(made) / "model.safetensors")
    model, _ = build(made, 4, 8)
    assert weights.keys() == model.state_dict().keys()
    assert not torch.equal(weights["features.0.conv.weight"], model.state_dict()["features.0.conv.weight"])


def test_a_finished_trial_is_not_trained_again(done):
    made, place = done
    before = tree(place.out)
    told = []
    assert run_trial(made, place, progress=told.append) == place.store.outcome(made)
    assert told == []
    assert tree(place.out) == before


def test_the_same_trial_gives_the_same_weights_and_accuracy_elsewhere(done, tmp_path):
    made, place = done
    again, known = run_trial(made, Place(tmp_path, place.data_root, keep_weights=False)), place.store.outcome(made)
    assert again.weights_sha256 == known.weights_sha256
    assert again.evaluations == known.evaluations
    assert not (tmp_path / made.id / "model.safetensors").exists()
    other = made.model_copy(update={"seed": 1})
    assert run_trial(other, Place(tmp_path, place.data_root)).weights_sha256 != known.weights_sha256


@pytest.mark.parametrize("steps", [1, 33])  # 33: in the evaluation's first batch
def test_interrupted_and_resumed_it_comes_to_the_same(done, tmp_path, steps):
    made, place = done
    asked = iter([None] * (steps - 1))
    with pytest.raises(Interrupted):
        run_trial(made, Place(tmp_path, place.data_root), stop=lambda: next(asked, signal.SIGTERM))
    assert Store(tmp_path).outcome(made) is None
    assert run_trial(made, Place(tmp_path, place.data_root)).weights_sha256 == place.store.outcome(made).weights_sha256
    assert not Store(tmp_path).states(made).exists()


def test_a_state_of_another_precision_is_not_gone_on_with(tmp_path, monkeypatch):
    """A machine that multiplies bf16 was interrupted, and one that does not has the same folder."""
    made, place = trial(recipe=RECIPE.model_copy(update={"precision": "auto"})), Place(tmp_path, device="cpu")
    asked = iter([None] * 10)
    monkeypatch.setattr(run, "choose_precision", lambda *_: "bf16")
    with pytest.raises(Interrupted):
        run_trial(made, place, stop=lambda: next(asked, signal.SIGTERM))
    monkeypatch.setattr(run, "choose_precision", lambda *_: "fp32")
    with pytest.warns(UserWarning, match="set aside"):
        found = run_trial(made, place)
    assert found.precision == "fp32"
    assert found.weights_sha256 == run_trial(made, Place(tmp_path / "whole", device="cpu")).weights_sha256


def test_latency_is_of_the_trained_network_in_the_format_of_fp32_and_changes_nothing_else(tmp_path, monkeypatch):
    seen, clock = [], time.perf_counter

    def timed(model, image_size, *, batch, repeats):
        weights = {name: part.clone() for name, part in model.state_dict().items()}
        formats = {part.is_contiguous() for part in model.parameters()}
        seen.append((image_size, batch, repeats, formats, torch.is_autocast_enabled("cpu"), weights))
        monkeypatch.setattr(time, "perf_counter", lambda: clock() + 1000)  # as if it took long
        return latency(model, image_size, batch=batch, repeats=repeats)

    made = trial(method="shuffle", k=1, recipe=RECIPE.model_copy(update={"precision": "bf16", "epochs": 1}))
    monkeypatch.setattr(run, "latency", timed)
    found = run_trial(made, Place(tmp_path, device="cpu"))
    ((*how, weights),) = seen
    assert how == [20, 1, 20, {True}, False]
    stored = load_file(tmp_path / made.id / "model.safetensors")
    assert stored.keys() == weights.keys()
    assert all(torch.equal(stored[name], weights[name]) for name in stored)
    assert found.seconds < 1000


@pytest.mark.parametrize("eager", [False, True])
def test_eager_leaves_every_layer_to_pytorch_in_training_and_test(tmp_path, monkeypatch, eager):
    kinds = set()

    def seen(made, classes, image_size, original):
        model, changes = build(made, classes, image_size, original)
        model.register_forward_hook(lambda m, *_: kinds.add((m.training, type(m.features[0]) is nn.Conv2d)))
        return model, changes

    monkeypatch.setattr(run, "build", seen)
    made = trial(data="arrangement-4")
    run_trial(made, Place(tmp_path, device="cpu", eager=eager))
    assert {(True, eager), (False, eager)} <= kinds


def test_several_processes_measure_no_latency(tmp_path, monkeypatch):
    def timed(*_, **__):
        raise AssertionError("two processes that share a machine were timed")

    monkeypatch.setattr(run, "latency", timed)
    monkeypatch.setattr(run, "share", lambda: Share(0, 2))
    found = run_trial(trial(recipe=RECIPE.model_copy(update={"epochs": 1})), Place(tmp_path, device="cpu"))
    assert (found.status, found.processes, found.latency) == ("finished", 2, None)


WRONG = {
    "model": {"model": "chain:4-X"}, "model of torchvision": {"model": "torchvision:resnet5000"},
    "model of timm": {"model": "timm:resnet5000"},
    "k": {"method": "shuffle", "k": 3}, "unit": {"method": "shuffle", "only": 3}, "data": {"data": "cifar1000"},
    "distance": {"data": "arrangement-1"}, "width": {"width": 0.3}, "train images": {"train_images": 5000},
    "test images": {"test_images": 5000}, "image size": {"model": "vgg16", "image_size": 8},
    "patch": {"method": "shuffle", "k": 1, "shuffle": {"patch": 3}},
}


@pytest.mark.parametrize("what", WRONG)
def test_what_cannot_be_run_writes_nothing(tmp_path, what):
    with pytest.raises(InputError):
        run_trial(trial(**WRONG[what]), Place(tmp_path / "runs", data_root=tmp_path))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("device", ["nonsense", "cuda:99", "meta", ""])
def test_a_device_that_is_not_there_writes_nothing(tmp_path, device):
    with pytest.raises(InputError, match="device"):
        run_trial(trial(), Place(tmp_path / "runs", device=device))
    assert list(tmp_path.iterdir()) == []


def test_a_missing_set_names_every_place_that_was_looked_in(tmp_path):
    with pytest.raises(DataError) as caught:
        run_trial(trial(data="cifar100"), Place(tmp_path / "runs", data_root=tmp_path / "data"))
    for name in ("cifar-100-python", "cifar-100-binary", "cifar100.npz", str(tmp_path / "data")):
        assert name in str(caught.value)


# --- diverged --------------------------------------------------------------------------------------------------------


def test_a_diverged_trial_is_stored_as_such_and_never_averaged(tmp_path):
    wild = RECIPE.model_copy(update={"learning_rate": 1e300, "optimizer": "sgd", "schedule": "step"})
    place = Place(tmp_path)
    found = run_trial(trial(recipe=wild), place)
    assert (found.status, found.evaluations, found.top1, found.latency) == ("diverged", (), None, None)
    assert place.store.outcome(found.trial) == found
    assert not place.store.states(found.trial).exists()
    with pytest.raises(InputError, match="diverged"):
        evaluate_run(place.store.folder(found.trial), place, shuffle_last=0)
    assert not (place.store.folder(found.trial) / "evaluations").exists()

    sound = run_trial(trial(seed=1), Place(tmp_path / "sound"))
    other = found.model_copy(update={"trial": trial(seed=0)})  # as if the first seed of this trial had diverged
    (row,) = rows([sound, other])
    assert (row.top1, row.seeds, row.diverged) == (sound.top1, (1,), (0,))
    (row,) = rows([other])
    assert (row.top1, row.n) == (None, 0)


# --- further test schemes --------------------------------------------------------------------------------------------


def test_evaluating_again_as_trained_comes_to_the_stored_accuracy_and_stores_nothing(done):
    made, place = done
    before = tree(place.out)
    known = place.store.outcome(made).evaluations[0]
    assert evaluate_run(place.store.folder(made), place, repeats=3) == known
    untrained, data = build(made, 4, 8)[0], load_data(made, place.data_root)
    assert evaluate(untrained, data, repeats=3) != known  # so that the line above says something
    assert tree(place.out) == before


def test_all_units_shuffled_is_the_scheme_of_the_training(done):
    made, place = done
    found = evaluate_run(place.store.folder(made), place, shuffle_last=2, repeats=3)
    assert found.top1 == place.store.outcome(made).evaluations[0].top1
    assert found.shuffle_last == 2


def test_further_schemes_are_stored_beside_the_outcome_and_rows_sees_them(done):
    made, place = done
    folder = place.store.folder(made)
    outcome = (folder / "outcome.json").read_bytes()
    with pytest.raises(InputError, match="every pass is the same"):
        evaluate_run(folder, place, shuffle_last=0, repeats=9)
    clean = evaluate_run(folder, place, shuffle_last=0)
    one = evaluate_run(folder, place, shuffle_last=1, repeats=4)
    assert (len(clean.top1), len(one.top1)) == (1, 4)
    assert (folder / "outcome.json").read_bytes() == outcome
    for found, name in ((clean, "shuffle-last-0-repeats-1"), (one, "shuffle-last-1-repeats-4")):
        stored = json.loads((folder / "evaluations" / f"{name}.json").read_text())
        assert stored["top1"] == list(found.top1)
    by_scheme = {row.shuffle_last: row for row in rows(load_rows([place.out])[0])}
    assert by_scheme[0].top1 == clean.mean
    assert by_scheme[1].top1 == pytest.approx(one.mean)
    assert by_scheme[1].shuffle_spread == pytest.approx(one.spread)
    assert by_scheme[None].top1 == place.store.outcome(made).top1


def test_a_run_is_found_from_within_its_folder(done, monkeypatch):
    made, place = done
    monkeypatch.chdir(place.store.folder(made))
    assert evaluate_run(Path(), Place(Path(), place.data_root), repeats=3) == place.store.outcome(made).evaluations[0]


@pytest.mark.parametrize("asked", [{"shuffle_last": 3}, {"shuffle_last": -1}, {"repeats": 0}, {"repeats": -2},
                                   {"shuffle_last": 1, "repeats": 0}, {"shuffle_last": 0, "repeats": 0}])
def test_a_scheme_that_cannot_be_is_refused(done, asked):
    made, place = done
    before = tree(place.out)
    with pytest.raises(InputError):
        evaluate_run(place.store.folder(made), place, **asked)
    assert tree(place.out) == before


def test_other_data_than_the_training_had_are_refused(tmp_path):
    runs, images = tmp_path / "runs", np.random.default_rng(0).integers(0, 256, (12, 8, 8, 3), dtype=np.uint8)
    for folder, pixels in (("a", images), ("b", images[::-1])):
        (tmp_path / folder).mkdir()
        save_npz(tmp_path / folder / "mine.npz", pixels)
    made = trial(data="mine", train_images=None, test_images=None)
    run_trial(made, Place(runs, data_root=tmp_path / "a"))
    evaluate_run(runs / made.id, Place(runs, data_root=tmp_path / "a"), shuffle_last=0)
    before = tree(runs)
    with pytest.raises(InputError, match="other images"):
        evaluate_run(runs / made.id, Place(runs, data_root=tmp_path / "b"), shuffle_last=1)
    assert tree(runs) == before


def test_a_run_under_another_name_is_told_to_be_renamed(done, tmp_path):
    made, place = done
    shutil.copytree(place.store.folder(made), tmp_path / "best")
    with pytest.raises(InputError, match=f"under another name, expected {made.id}; rename it"):
        evaluate_run(tmp_path / "best", place)


def test_changed_weights_are_refused(done, tmp_path):
    made, place = done
    folder = tmp_path / made.id
    folder.mkdir()
    for name in ("trial.json", "outcome.json", "model.safetensors"):
        (folder / name).write_bytes((place.store.folder(made) / name).read_bytes())
    content = bytearray((folder / "model.safetensors").read_bytes())
    content[-1] ^= 1
    (folder / "model.safetensors").write_bytes(content)
    with pytest.raises(InputError, match="SHA-256"):
        evaluate_run(folder, Place(tmp_path, place.data_root))
    (folder / "model.safetensors").unlink()
    with pytest.raises(InputError, match="no weights"):
        evaluate_run(folder, Place(tmp_path, place.data_root))
    (folder / "outcome.json").unlink()
    with pytest.raises(InputError, match="no outcome"):
        evaluate_run(folder, Place(tmp_path, place.data_root))


# --- profiles --------------------------------------------------------------------------------------------------------


def test_a_profile_is_stored_beside_the_outcome_and_says_what_evaluating_says(done):
    made, place = done
    folder = place.store.folder(made)
    outcome = (folder / "outcome.json").read_bytes()
    found = profile_run(folder, place, repeats=4)
    (path,) = (folder / "profiles").iterdir()
    assert path.name == "images-40-repeats-4.json"
    assert read(Sensitivity, path) == found
    assert found.weights_sha256 == place.store.outcome(made).weights_sha256
    assert (found.precision, found.threads, found.images, found.repeats) == ("fp32", 1, 40, 4)
    assert found.clean == evaluate_run(folder, place, shuffle_last=0).mean
    for unit in found.units:
        assert unit.last.top1 == evaluate_run(folder, place, shuffle_last=unit.k, repeats=4).top1
    assert (folder / "outcome.json").read_bytes() == outcome
    assert load_rows([place.out])[2] == []  # the profile is no problem to who looks for outcomes


def test_a_draw_of_the_test_images_is_balanced_and_leaves_no_evaluation_behind(done):
    made, place = done
    folder = place.store.folder(made)
    before = tree(folder)
    part = evaluate_run(folder, place, shuffle_last=1, repeats=2, test_images=20)
    assert part.images == 20
    assert tree(folder) == before
    data = load_data(made, place.data_root).subset(None, 20)
    assert torch.bincount(data.test_labels).tolist() == [5, 5, 5, 5]
    assert profile_run(folder, place, repeats=2, test_images=20).units[-1].last.top1 == part.top1
    with pytest.raises(InputError, match="41"):
        profile_run(folder, place, test_images=41)


def test_a_network_without_places_has_no_profile(tmp_path):
    place = Place(tmp_path, device="cpu")
    pooled = run_trial(trial(method="gap_fc", k=1), place)
    before = tree(tmp_path)
    with pytest.raises(InputError, match="gap_fc"):
        profile_run(place.store.folder(pooled.trial), place)
    with pytest.raises(InputError, match="repeats"):
        profile_run(place.store.folder(pooled.trial), place, repeats=0)
    assert tree(tmp_path) == before


# --- parts -----------------------------------------------------------------------------------------------------------


def test_made_data_differ_from_seed_to_seed_and_are_as_many_as_asked():
    zero, one = (load_data(trial(seed=seed)) for seed in (0, 1))
    assert zero.digest != one.digest
    assert zero.train_labels.bincount().tolist() == [16] * 4
    assert zero.test_labels.bincount().tolist() == [10] * 4
    assert load_data(trial(image_size=12)).image_size == 12


def test_real_data_are_shared_by_the_seeds(tmp_path):
    save_npz(tmp_path / "mine.npz", np.random.default_rng(0).integers(0, 256, (30, 8, 8, 3), dtype=np.uint8))
    zero, one = (load_data(trial(data="mine", seed=seed, train_images=12, test_images=6), tmp_path) for seed in (0, 1))
    assert zero.digest == one.digest
    assert len(zero.train_labels) == 12


def test_other_folders_hold_other_data(tmp_path, monkeypatch):
    """What is kept in memory between trials must not be mistaken for another folder's set of the same name."""
    for value in (10, 20):
        (tmp_path / str(value)).mkdir()
        save_npz(tmp_path / str(value) / "mine.npz", np.full((12, 8, 8, 3), value, np.uint8))
    made, named = (trial(data=name, train_images=None, test_images=None) for name in ("mine", "./mine.npz"))

    def pixel(*asked) -> int:
        return int(load_data(*asked).train_images[0, 0, 0, 0])

    assert [pixel(made, tmp_path / str(value)) for value in (10, 20)] == [10, 20]
    for value in (10, 20):
        monkeypatch.setenv("SPACELESS_DATA", str(tmp_path / str(value)))
        assert pixel(made) == value
    for value in (10, 20):
        monkeypatch.chdir(tmp_path / str(value))
        assert pixel(named) == value


def test_seeds_decide_the_weights():
    weights = [build(trial(method="conv1x1", k=1, seed=seed), 4, 20)[0].state_dict()["features.0.weight"]
               for seed in (0, 0, 1)]
    assert torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[0], weights[2])


def test_device_and_precision():
    assert choose_device("cpu").type == "cpu"
    assert choose_device("auto").type in ("cpu", "cuda")
    assert choose_precision("fp32", torch.device("cpu")) == "fp32"
    assert choose_precision("bf16", torch.device("cpu")) == "bf16"
    assert choose_precision("auto", torch.device("cpu")) in ("fp32", "bf16")


def test_weights_under_several_names_are_stored_and_are_one_again_when_loaded(tmp_path, monkeypatch):
    monkeypatch.setattr("spaceless.models._construct", lambda _name, classes, _size: Tied(classes))
    made, place = trial(model="torchvision:tied", image_size=16), Place(tmp_path / "runs", device="cpu")
    outcome = run_trial(made, place)
    folder = place.store.folder(made)
    assert evaluate_run(folder, place).top1 == outcome.evaluations[0].top1
    assert {"one.weight", "again.weight", "other.weight"} <= set(load_file(folder / "model.safetensors"))
    model = load_model(folder)
    assert model.one is model.again
    assert model.one.weight is model.other.weight
    assert evaluate(model, load_data(made)).top1 == outcome.evaluations[0].top1


def test_a_head_that_reads_positions_is_noted_with_1x1_convolutions(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("spaceless.models._construct", lambda _name, classes, size: Flat(classes, size))
    short = RECIPE.model_copy(update={"epochs": 1})
    for method, notes in (("conv1x1", (FLAT,)), ("shuffle", ())):
        outcome = run_trial(
            trial(model="torchvision:flat", method=method, k=2, recipe=short), Place(tmp_path, device="cpu"))
        assert outcome.notes == notes
        show.outcome(outcome, tmp_path, as_json=False)
        assert (FLAT in capsys.readouterr().out.splitlines()) is bool(notes)


def test_all_changed_units_stripped_leaves_nothing_to_repeat(tmp_path):
    found = run_trial(trial(model="chain:4-8-8", method="shuffle", k=1, strip=1), Place(tmp_path))
    assert len(found.evaluations[0].top1) == 1
