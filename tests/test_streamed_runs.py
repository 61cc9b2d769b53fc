"""Whole trials on class folders, streamed and in memory: they train, and what is broken is reported by name."""

from __future__ import annotations

import json
import os
import signal
import warnings
from pathlib import Path

import pytest
import torch

from commands import Commands
from made_folders import TRUNCATED, make_folders, truncate
from several import several
from spaceless import distributed
from spaceless.errors import DataError, Interrupted
from spaceless.estimate import check
from spaceless.retest import evaluate_run
from spaceless.run import Place, load_data, run_trial
from spaceless.store import read_outcome
from spaceless.study import run_study
from spaceless.trial import RECIPES, Outcome, Trial
from tiny_studies import planned

torch.set_num_threads(1)

STREAMED = RECIPES["imagenet"].model_copy(update={"epochs": 3, "batch_size": 5, "precision": "fp32"})
DECODED = STREAMED.model_copy(update={"augment": "crop_flip"})
NOTE = f"1 broken image left out: {TRUNCATED}"


def trial(recipe=STREAMED, **fields) -> Trial:
    return Trial(**{"model": "chain:4-M-8", "data": "shapes", "image_size": 16, "recipe": recipe} | fields)


@pytest.fixture(autouse=True)
def surroundings(tmp_path, monkeypatch):
    monkeypatch.setenv("SPACELESS_WORKERS", "0")
    monkeypatch.setattr("platformdirs.user_cache_dir", lambda name: str(tmp_path / "cache" / name))


@pytest.fixture(scope="module")
def root(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("data")
    make_folders(folder / "shapes")
    return folder


def run(root: Path, out: Path, made: Trial, **options) -> Outcome:
    return run_trial(made, Place(out, data_root=root, device="cpu"), **options)


@pytest.mark.parametrize("recipe", [STREAMED, DECODED], ids=["streamed", "in memory"])
def test_a_folder_with_a_truncated_image_trains_and_names_it(root, tmp_path, recipe):
    with pytest.warns(UserWarning, match=TRUNCATED) as caught:
        found = run(root, tmp_path, trial(recipe))
    assert len(caught) == 1  # once, though a streamed one is met in every epoch
    assert (found.status, found.data.note) == ("finished", NOTE)
    assert found.history[-1].loss < found.history[0].loss
    assert (found.evaluations[0].images, found.evaluations[0].left_out) == (9, ())
    assert found.data.train_images == (18 if recipe is STREAMED else 17)


def test_the_command_line_trains_and_says_what_it_left_out(root, tmp_path, monkeypatch, capsys):
    run = Commands(tmp_path, monkeypatch, capsys)
    words = ("train", "--model", "chain:4-M-8", "--data", root / "shapes", "--recipe", "imagenet", "--epochs", 1,
             "--batch-size", 6, "--image-size", 16, "--precision", "fp32")
    with pytest.warns(UserWarning, match=TRUNCATED):
        status, out, _ = run(*words)
    assert status == 0 and f"shapes: {NOTE}" in out
    status, out, _ = run(*words, "--json")
    assert (status, json.loads(out)["data"]["note"]) == (0, NOTE)
    status, out, err = run("data", root / "shapes", "--verify", "--image-size", 16)
    assert status == 2 and f"problem: {TRUNCATED}" in out and TRUNCATED in err


def test_without_a_size_imagenet_is_224_pixels(root, tmp_path):
    plan = planned(trial(image_size=None))
    # 3 * 3 * 3 * 4 multiply-adds at 224 x 224 and 3 * 3 * 4 * 8 at 112 x 112, three times, 18 images, 3 epochs
    macs = 3 * 18 * 3 * (108 * 224**2 + 288 * 112**2 + 8 * 3)
    assert check(plan.planned, Place(tmp_path, data_root=root)).macs == macs


@pytest.mark.filterwarnings("ignore:.*left out")
def test_what_is_loaded_is_shared_by_trials_but_not_by_the_two_ways(root, tmp_path):
    streamed, other, memory = (load_data(made, root) for made in (trial(), trial(seed=1), trial(DECODED)))
    assert streamed is other and type(memory).__name__ == "Dataset"
    assert streamed.digest != memory.digest
    assert load_data(trial(train_images=9), root).train_count == 9


@pytest.mark.filterwarnings("ignore:.*left out")
@pytest.mark.parametrize("step", [1, 2, 3, 5, 9])
def test_interrupted_and_resumed_it_comes_to_the_same_and_knows_what_was_broken(root, tmp_path, step):
    one = trial(STREAMED.model_copy(update={"epochs": 1})) if step < 4 else trial()
    whole = run(root, tmp_path / "whole", one)
    asked = iter([None] * (step - 1))
    with pytest.raises(Interrupted):
        run(root, tmp_path / "parts", one, stop=lambda: next(asked, signal.SIGTERM))
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        parts = run(root, tmp_path / "parts", one)
    assert parts.weights_sha256 == whole.weights_sha256
    assert parts.data.note == whole.data.note == NOTE
    if step == 9:  # in the third epoch: it was met, and warned about, before
        assert not told


@pytest.mark.filterwarnings("ignore:.*left out")
def test_an_image_met_only_before_the_interruption_is_still_named(root, tmp_path):
    """In a training of one epoch no resumed part meets it again: its name has to be in the state."""
    one, reported = trial(STREAMED.model_copy(update={"epochs": 1})), []
    for step in (1, 2, 3):
        asked, out = iter([None] * (step - 1)), tmp_path / str(step)
        with pytest.raises(Interrupted), warnings.catch_warnings(record=True) as before:
            warnings.simplefilter("always")
            run(root, out, one, stop=lambda asked=asked: next(asked, signal.SIGTERM))
        with warnings.catch_warnings(record=True) as after:
            warnings.simplefilter("always")
            assert run(root, out, one).data.note == NOTE
        reported.append((len(before), len(after)))
    assert set(reported) <= {(1, 0), (0, 1)}
    assert (1, 0) in reported


@pytest.mark.filterwarnings("ignore:.*left out")
def test_an_evaluation_counts_the_images_it_saw_and_names_the_others(root, tmp_path):
    folder = make_folders(tmp_path / "data/shapes")
    truncate(folder / "val/n02/1.JPEG")
    found = run(tmp_path / "data", tmp_path / "runs", trial())
    (evaluation,) = found.evaluations
    assert (evaluation.images, evaluation.left_out) == (8, ("val/n02/1.JPEG",))
    assert found.data.note == f"2 broken images left out: {TRUNCATED}, val/n02/1.JPEG"
    assert all(abs(value * 8 / 100 - round(value * 8 / 100)) < 1e-9 for value in evaluation.top1)
    again = evaluate_run(tmp_path / "runs" / found.trial.id, Place(tmp_path / "runs", tmp_path / "data", "cpu"))
    assert again == evaluation


def test_too_many_broken_images_end_a_streamed_training(tmp_path):
    folder = make_folders(tmp_path / "data/shapes")
    truncate(folder / "train/n00/3.JPEG")
    with pytest.warns(UserWarning, match="is left out"), pytest.raises(DataError, match="2 of 18 images are broken"):
        run(tmp_path / "data", tmp_path / "runs", trial())
    assert not list((tmp_path / "runs").glob("*/outcome.json"))


@pytest.mark.filterwarnings("ignore:.*left out")
def test_processes_of_a_study_decode_with_workers_of_their_own(root, tmp_path, monkeypatch):
    alone = [run(root, tmp_path / "alone", trial(seed=seed)) for seed in (0, 1)]
    monkeypatch.setenv("SPACELESS_WORKERS", "2")
    tally = run_study(planned(trial(), trial(seed=1)), Place(tmp_path / "jobs", data_root=root, device="cpu"), jobs=2)
    assert not tally.failed, tally.failed
    assert {o.trial.seed: o.weights_sha256 for o in tally.ran} == {o.trial.seed: o.weights_sha256 for o in alone}
    assert {o.data.note for o in tally.ran} == {NOTE}


def _one_of_two(rank: int, count: int, root: Path, out: Path, port: str) -> None:
    os.environ |= {"RANK": str(rank), "WORLD_SIZE": str(count), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    with distributed.joined("cpu"):
        assert distributed.gathered([rank, 7]) == {0, 1, 7}
        run(root, out, trial())


@pytest.mark.filterwarnings("ignore:.*left out")
def test_two_processes_name_the_image_that_only_one_of_them_met(root, tmp_path):
    import socket

    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    several(_one_of_two, 2, root, tmp_path / "two", port)
    one = run(root, tmp_path / "one", trial())
    two = read_outcome(tmp_path / "two" / one.trial.id / "outcome.json")
    assert (two.processes, two.data.note) == (2, NOTE)
    assert [e.loss for e in two.history] == pytest.approx([e.loss for e in one.history], rel=1e-4)
    assert two.evaluations[0].images == 9
