"""The facts about a set, what contradicts its name, and the real CIFAR-100 where there is one."""

import json
import os
import sys

import numpy as np
import pytest
import torch

from made_folders import TRUNCATED, make_folders, truncate, write
from spaceless.data import known, load, verify
from spaceless.data.dataset import drawn
from spaceless.data.heldout import held_out
from spaceless.data.verify import Verification

RANDOM = np.random.default_rng(0)


def save(path, train, train_labels, test, test_labels):
    np.savez(path, x_train=train, y_train=np.array(train_labels), x_test=test, y_test=np.array(test_labels))


def test_facts_of_a_small_set(tmp_path):
    train = RANDOM.integers(0, 256, (7, 4, 4, 3), dtype=np.uint8)
    train[5] = train[0]
    test = RANDOM.integers(0, 256, (4, 4, 4, 3), dtype=np.uint8)
    test[1] = test[3] = train[2]
    save(tmp_path / "set.npz", train, [0, 1, 0, 1, 0, 1, 1], test, [0, 1, 0, 1])
    facts = verify("set", tmp_path)
    assert facts.sound and facts.problems == ()
    assert (facts.train_images, facts.test_images, facts.classes, facts.image_size) == (7, 4, 2, 4)
    assert (facts.train_per_class, facts.test_per_class) == ((3, 4), (2, 2))
    assert (facts.repeated_train, facts.shared) == (1, 2)
    assert facts.digest == load("set", data_root=tmp_path).digest
    text = "\n".join(facts.lines())
    assert "train: 7 images, 3 to 4 per class, 1 repeated" in text
    assert "test: 4 images, 2 per class, 2 of them in train as well" in text
    assert "note:" not in text and facts.digest in text
    assert json.loads(json.dumps(facts.to_json()))["kind"] == "npz"


def test_what_contradicts_the_name_is_a_problem(tmp_path):
    images = np.zeros((6, 4, 4), np.uint8)
    save(tmp_path / "cifar10.npz", images, [0, 0, 0, 1, 1, 3], images, [0, 1, 3, 3, 0, 1])
    facts = verify("cifar10", tmp_path)
    assert not facts.sound
    assert facts.problems == (
        "class 2 has no training images", "class 2 has no test images",
        "6 training images, the official set has 50,000", "6 test images, the official set has 10,000",
        "4 classes, the official set has 10", "4 pixels, the official set has 32",
        "classes of unequal size, those of the official set are equal",
    )
    assert sum(line.startswith("problem: ") for line in facts.lines()) == 7


def test_the_note_is_among_the_lines():
    black, one = (0.0,) * 3, (0, 1)
    facts = Verification("n", "parquet", "s", "a caveat", 2, 4, 1, 1, one, one, 0, 0, black, black, "d", ())
    assert "note: a caveat" in facts.lines()


def test_every_broken_image_of_class_folders_is_named(tmp_path, monkeypatch):
    monkeypatch.setattr(sys.modules["spaceless.data.verify"], "_BLOCK", 4)  # blocks that begin and end amid classes
    root = make_folders(tmp_path / "pets")
    for name in ("train/n00/0.JPEG", "train/n00/1.JPEG", "val/n02/0.JPEG", "val/n02/1.JPEG", "val/n02/2.JPEG"):
        truncate(root / name)
    write(root / "train/n00/5.JPEG", (30, 30), seed=99)
    (root / "val/n01/0.JPEG").write_bytes((root / "train/n00/5.JPEG").read_bytes())
    facts = verify(root, image_size=16)
    broken = [problem.partition(": ")[0] for problem in facts.problems if "cannot be decoded" in problem]
    assert broken == ["train/n00/0.JPEG", "train/n00/1.JPEG", TRUNCATED, "val/n02/0.JPEG", "val/n02/1.JPEG",
                      "val/n02/2.JPEG"]
    assert facts.problems[6:] == ("class n02 has no test images",)
    assert (facts.train_images, facts.test_images, facts.image_size) == (15, 6, 16)
    assert (facts.train_per_class, facts.test_per_class) == ((4, 6), (0, 3))
    assert (facts.repeated_train, facts.shared) == (0, 1)
    assert verify(root).image_size == 224


def test_sound_class_folders_have_the_facts_of_the_set_in_memory(tmp_path, monkeypatch):
    monkeypatch.setattr("platformdirs.user_cache_dir", lambda name: str(tmp_path / "cache"))
    root = make_folders(tmp_path / "pets", broken=False)
    facts, data = verify(root, image_size=16), load(root, image_size=16)
    assert facts.sound
    assert (facts.mean, facts.std) == (data.mean, data.std)
    assert (facts.train_images, facts.test_images) == (18, 9)


@pytest.fixture(scope="module")
def cifar100(tmp_path_factory):
    if not os.environ.get("SPACELESS_DATA"):
        pytest.skip("needs CIFAR-100: SPACELESS_DATA is not set")
    if not any(entry.found for entry in known() if entry.name == "cifar100"):
        pytest.skip("needs CIFAR-100: SPACELESS_DATA holds none")
    cache = str(tmp_path_factory.mktemp("cache"))  # what an earlier run decoded says nothing about this reader
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("platformdirs.user_cache_dir", lambda name: cache)
        yield verify("cifar100")


def test_real_cifar100(cifar100):
    assert cifar100.sound, cifar100.problems
    assert (cifar100.train_images, cifar100.test_images) == (50_000, 10_000)
    assert (cifar100.train_per_class, cifar100.test_per_class) == ((500, 500), (100, 100))
    # The moments that the field prints for the official training images; another split moves them by less than this.
    assert cifar100.mean == pytest.approx((0.5071, 0.4865, 0.4409), abs=1e-3)
    assert cifar100.std == pytest.approx((0.2673, 0.2564, 0.2762), abs=1e-3)
    assert len(cifar100.digest) == 64


def test_real_cifar100_draws(cifar100):
    data = load("cifar100")
    assert data.digest == cifar100.digest
    assert (data.class_names[0], data.class_names[99]) == ("apple", "worm")
    small = data.subset(train=1000, test=200, seed=1)
    assert torch.bincount(small.train_labels, minlength=100).unique().tolist() == [10]
    assert torch.bincount(small.test_labels, minlength=100).unique().tolist() == [2]
    kept = drawn(data.train_labels, 5000, 0, "held-out", "cifar100")
    assert torch.equal(held_out(data, 0.1).test_images, data.train_images[kept])  # outcomes are stored with this split
    if "re-split" in cifar100.note:  # this copy keeps repeated images on one side
        assert cifar100.shared == 0
