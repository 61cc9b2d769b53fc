"""The validation split: balanced, disjoint, always the same, and part of what a trial is."""

from __future__ import annotations

import csv
import math

import numpy as np
import pytest
import torch

from made_folders import TRUNCATED, make_folders, truncate, write
from spaceless.data.controls import make_control
from spaceless.data.dataset import Dataset, drawn
from spaceless.data.heldout import _parted, held_out
from spaceless.data.readers import load, open_images
from spaceless.errors import InputError
from spaceless.evaluation import evaluate
from spaceless.frame import frame
from spaceless.models import build_model
from spaceless.paired import unpacked
from spaceless.report import csv_text, gather
from spaceless.run import Place, load_data, run_trial
from spaceless.seeds import generator
from spaceless.trial import RECIPES
from tiny_studies import trial


def numbered(images: int = 100, classes: int = 5) -> Dataset:
    """Return a data set whose pixels are the numbers of its images."""
    pixels = torch.arange(images, dtype=torch.uint8)[:, None, None, None].expand(-1, 3, 2, 2).contiguous()
    labels = torch.arange(images) % classes
    return Dataset("numbered", "here", "a caveat", pixels, labels, pixels[:7] + 200, labels[:7], tuple("abcde"))


def numbers(images: torch.Tensor) -> list[int]:
    return images[:, 0, 0, 0].tolist()


def test_the_parts_are_disjoint_balanced_and_in_order():
    whole, parted = numbered(), held_out(numbered(), 0.2)
    rest, kept = numbers(parted.train_images), numbers(parted.test_images)
    assert (len(rest), len(kept)) == (80, 20)
    assert sorted(rest + kept) == numbers(whole.train_images)
    assert (rest, kept) == (sorted(rest), sorted(kept))
    assert torch.bincount(parted.test_labels).tolist() == [4] * 5
    assert torch.bincount(parted.train_labels).tolist() == [16] * 5
    assert [n % 5 for n in kept] == parted.test_labels.tolist()  # each image has kept its own label
    assert [n % 5 for n in rest] == parted.train_labels.tolist()
    assert kept != list(range(20))
    assert parted.note.startswith("a caveat; 20 of 100 training images are held out, and accuracies are those on them")


def test_the_split_is_always_the_same_and_a_larger_share_another_one():
    assert held_out(numbered(), 0.2).digest == held_out(numbered(), 0.2).digest
    assert len({held_out(numbered(), share).digest for share in (0.2, 0.3, 0.4)} | {numbered().digest}) == 4


def test_the_test_images_can_stay_beside_what_is_left_to_train_on():
    parted, tested = held_out(numbered(), 0.2), held_out(numbered(), 0.2, keep_test=True)
    assert numbers(tested.test_images) == numbers(numbered().test_images)
    assert torch.equal(tested.train_images, parted.train_images)
    assert tested.mean == parted.mean != numbered().mean  # normalised as in the training


@pytest.mark.parametrize(("classes", "each", "share"), [
    (2, 7, 0.3), (5, 20, 0.2), (10, 100, 0.1), (100, 50, 0.1), (3, 40, 0.333), (7, 13, 0.55), (4, 2, 0.5),
])
def test_of_balanced_classes_the_images_are_those_that_turns_of_the_classes_give(classes, each, share):
    labels = torch.arange(classes).repeat(each)[torch.randperm(classes * each, generator=generator(0, "labels"))]
    rest, kept = _parted(labels, share, classes, "set")
    assert torch.equal(kept, drawn(labels, round(share * len(labels)), 0, "held-out", "set"))
    assert torch.equal(torch.cat([rest, kept]).sort().values, torch.arange(len(labels)))


def test_so_they_are_where_no_class_gives_a_whole_image_more_than_its_share():
    labels = torch.tensor([0] * 41 + [1] * 40 + [2] * 40)  # a draw of 121 images of 3 classes
    assert torch.equal(_parted(labels, 0.1, 3, "set")[1], drawn(labels, 12, 0, "held-out", "set"))


@pytest.mark.parametrize(("counts", "share", "expected"), [
    ((980, 20), 0.1, (98, 2)), ((500, 300, 200), 0.1, (50, 30, 20)), ((96, 2, 2), 0.5, (48, 1, 1)),
    ((97, 2, 1), 0.9, (89, 1, 0)), ((100, 0, 10, 1), 0.2, (20, 0, 2, 0)), ((5, 1, 1, 1), 0.5, (4, 0, 0, 0)),
])
def test_rare_classes_are_held_out_in_proportion_and_keep_an_image(counts, share, expected):
    labels = torch.repeat_interleave(torch.arange(len(counts)), torch.tensor(counts))
    labels = labels[torch.randperm(len(labels), generator=generator(1, "labels"))]
    rest, kept = _parted(labels, share, len(counts), "set")
    assert torch.bincount(labels[kept], minlength=len(counts)).tolist() == list(expected)
    assert torch.equal(torch.cat([rest, kept]).sort().values, torch.arange(len(labels)))
    assert torch.equal(kept, kept.sort().values) and torch.equal(kept, _parted(labels, share, len(counts), "set")[1])


def test_a_rare_class_in_a_data_set(tmp_path):
    images = np.zeros((1000, 2, 2, 3), np.uint8)
    labels = np.array([0] * 980 + [1] * 20)
    np.savez(tmp_path / "set.npz", x_train=images, y_train=labels, x_test=images[:4], y_test=np.array([0, 1, 0, 1]))
    parted = held_out(load(tmp_path / "set.npz"), 0.1)
    assert torch.bincount(parted.train_labels).tolist() == [882, 18]
    assert torch.bincount(parted.test_labels).tolist() == [98, 2]


@pytest.mark.parametrize("share", [0.04, 0.97])
def test_a_part_without_room_for_every_class_is_refused(share):
    with pytest.raises(InputError, match="at least 5 on either side"):
        held_out(numbered(), share)


def test_streamed_class_folders_are_parted_too(tmp_path):
    make_folders(tmp_path / "set")
    whole = open_images(tmp_path / "set", streamed=True)
    parted = held_out(whole, 0.5)
    paths = [[files.path(i) for i in range(len(files))] for files in (parted.train, parted.test, whole.train)]
    assert sorted(paths[0] + paths[1]) == sorted(paths[2])
    assert paths[1]
    tested = held_out(whole, 0.5, keep_test=True)
    assert [tested.test.path(i) for i in range(len(tested.test))] == [
        whole.test.path(i) for i in range(len(whole.test))]


def test_a_broken_image_among_those_held_out_counts_as_wrong(tmp_path, monkeypatch):
    monkeypatch.setenv("SPACELESS_WORKERS", "0")
    make_folders(tmp_path / "data" / "shapes")
    recipe = RECIPES["imagenet"].model_copy(update={"epochs": 1, "batch_size": 4, "precision": "fp32"})
    held = trial(data="shapes", image_size=16, recipe=recipe, train_images=None, test_images=None, holdout=0.5)
    place = Place(tmp_path / "out", data_root=tmp_path / "data")
    test = load_data(held, place.data_root).test
    names = [test.path(i) for i in range(len(test))]
    broken = names.index(TRUNCATED if TRUNCATED in names else truncated(tmp_path / "data" / "shapes", names))
    with pytest.warns(UserWarning, match="left out"):
        (found,) = run_trial(held, place).evaluations
    assert (found.images, len(found.left_out)) == (8, 1)
    right = unpacked(found.right, 9)
    assert not right[broken]
    assert 100 * right.sum() / 8 == pytest.approx(found.top1[0])


def test_a_broken_image_moves_no_other_image_s_answer(tmp_path, monkeypatch):
    monkeypatch.setenv("SPACELESS_WORKERS", "0")
    make_folders(tmp_path / "set", broken=False)
    whole = open_images(tmp_path / "set", image_size=16, streamed=True)
    torch.manual_seed(0)
    model = build_model("chain:4-M-8", 3, 16, seed=0)
    model.train()(torch.randn(64, 3, 16, 16))
    sound = unpacked(evaluate(model, whole, batch_size=4, each=True).right, 9)
    for number in (0, 5, 8):
        assert 0 < sound.sum() < 9
        path = tmp_path / "set" / whole.test.path(number)
        content = path.read_bytes()
        truncate(path)
        with pytest.warns(UserWarning, match="left out"):
            found = unpacked(evaluate(model, whole, batch_size=4, each=True).right, 9)
        assert found.tolist() == [right and i != number for i, right in enumerate(sound.tolist())]
        path.write_bytes(content)


def truncated(root, names: list[str]) -> str:
    """Break the first of the images `names` under `root`, mend the one that is broken, and return its name."""
    write(root / TRUNCATED, seed=1)
    truncate(root / names[0])
    return names[0]


def test_a_trial_with_a_holdout_is_evaluated_on_it_image_by_image(tmp_path):
    held = trial(holdout=0.25)
    assert held.id != trial().id
    outcome = run_trial(held, Place(tmp_path))
    assert outcome.data is not None
    assert (outcome.data.train_images, outcome.data.test_images) == (48, 16)
    (evaluation,) = outcome.evaluations
    right = unpacked(evaluation.right, evaluation.images)
    assert 100 * right.mean() == pytest.approx(evaluation.top1[0])
    assert "held out" in outcome.data.note
    assert run_trial(trial(), Place(tmp_path)).evaluations[0].right is None  # no study pays for what it does not use
    full = make_control("arrangement-4", 0).subset(64, 40)
    assert load_data(held, test=True).test_count == full.test_count == 40


def test_accuracies_on_images_held_out_are_told_from_those_on_test_images(tmp_path):
    for each in (trial(), trial(holdout=0.25)):
        run_trial(each, Place(tmp_path))
    found = frame(tmp_path).set_index("id")
    assert found.loc[trial(holdout=0.25).id, "holdout"] == 0.25
    assert math.isnan(found.loc[trial().id, "holdout"])
    page = gather([tmp_path], pictures=False)
    titles = [panel.title for section in page.sections for panel in section.panels]
    assert len(titles) == 2  # never in one picture
    assert sum("25 % of the training images held out" in title for title in titles) == 1
    assert sorted(line["holdout"] for line in csv.DictReader(csv_text(page).splitlines())) == ["", "0.25"]
