"""`Dataset`: what it refuses, and the numbers that follow from its pixels."""

import dataclasses

import numpy as np
import pytest
import torch
from PIL import Image

from spaceless.data import Dataset
from spaceless.data.dataset import Parts
from spaceless.errors import DataError, InputError


def parts(train=12, test=6, classes=3, size=4, channels=3, seed=0):
    random = torch.Generator().manual_seed(seed)
    pixels = [torch.randint(0, 256, (n, channels, size, size), generator=random, dtype=torch.uint8)
              for n in (train, test)]
    labels = [torch.arange(n) % classes for n in (train, test)]
    return Parts(pixels[0], labels[0], pixels[1], labels[1], tuple("abcdefghij"[:classes]))


def make(**changes):
    return Dataset("made", "/somewhere/made", "", *parts()._replace(**changes)[:5])


def test_properties():
    data = make()
    assert (data.classes, data.image_size, data.class_names) == (3, 4, ("a", "b", "c"))
    facts = data.facts
    assert (facts.train_images, facts.test_images, facts.digest) == (12, 6, data.digest)
    with pytest.raises(dataclasses.FrozenInstanceError):
        data.name = "other"


WRONG = {
    "float images": ({"train_images": torch.zeros(12, 3, 4, 4)}, "float32"),
    "three axes": ({"train_images": torch.zeros(12, 4, 4, dtype=torch.uint8)}, "(12, 4, 4)"),
    "two channels": ({"train_images": torch.zeros(12, 2, 4, 4, dtype=torch.uint8)}, "(12, 2, 4, 4)"),
    "not square": ({"test_images": torch.zeros(6, 3, 4, 5, dtype=torch.uint8)}, "4 x 5"),
    "no pixels": ({"test_images": torch.zeros(6, 3, 0, 0, dtype=torch.uint8)}, "0 x 0"),
    "sizes differ": ({"test_images": torch.zeros(6, 3, 5, 5, dtype=torch.uint8)}, "(3, 5, 5)"),
    "empty": (
        {"test_images": torch.zeros(0, 3, 4, 4, dtype=torch.uint8), "test_labels": torch.zeros(0).long()}, "none",
    ),
    "too few labels": ({"train_labels": torch.zeros(11).long()}, "(11,)"),
    "narrow labels": ({"train_labels": torch.zeros(12, dtype=torch.int32)}, "int32"),
    "label too high": ({"test_labels": torch.tensor([0, 1, 2, 3, 0, 1])}, "0..3"),
    "label negative": ({"train_labels": torch.arange(12) % 3 - 1}, "-1..1"),
    "one class": ({"class_names": ("a",)}, "1 class"),
}


@pytest.mark.parametrize("case", WRONG)
def test_refusals_name_the_source_and_what_was_found(case):
    changes, found = WRONG[case]
    with pytest.raises(DataError) as caught:
        make(**changes)
    assert "/somewhere/made" in str(caught.value) and found in str(caught.value)
    assert caught.value.exit_status == 2


def test_grey_images_become_three_equal_channels():
    grey = parts(channels=1)
    data = Dataset("grey", "here", "", *grey[:5])
    assert data.train_images.shape == (12, 3, 4, 4)
    assert all(torch.equal(data.test_images[:, c], grey.test_images[:, 0]) for c in range(3))


def test_mean_and_deviation_agree_with_numpy():
    data = make()
    pixels = data.train_images.numpy() / 255
    np.testing.assert_allclose(data.mean, pixels.mean((0, 2, 3)), rtol=1e-12)
    np.testing.assert_allclose(data.std, pixels.std((0, 2, 3)), rtol=1e-12)


def test_mean_and_deviation_by_hand():
    images = torch.zeros(2, 3, 1, 1, dtype=torch.uint8)
    images[1, 0], images[:, 1] = 255, 51  # one channel half black and half white, one constant, one black
    labels = torch.tensor([0, 1])
    data = Dataset("two", "here", "", images, labels, images, labels, ("a", "b"))
    assert data.mean == pytest.approx((0.5, 0.2, 0.0))
    assert data.std == pytest.approx((0.5, 1.0, 1.0))  # a constant channel must not be divided by 0


def test_digest_sees_every_tensor_and_the_shape():
    data, given = make(), parts()
    assert data.digest == make().digest
    assert len(data.digest) == 64
    changed = [
        make(**{key: getattr(given, key).flip(0)}).digest
        for key in ("train_images", "train_labels", "test_images", "test_labels")
    ]
    wide = torch.zeros(12, 3, 4, 4, dtype=torch.uint8)
    shapes = [Dataset("z", "", "", wide.reshape(-1, 3, n, n), torch.arange(192 // n**2) % 3,
                      wide.reshape(-1, 3, n, n), torch.arange(192 // n**2) % 3, ("a", "b", "c")).digest for n in (2, 4)]
    assert len({data.digest, *changed, *shapes}) == 7
    assert make(class_names=("x", "y", "z")).digest == data.digest


def test_subset_is_balanced_deterministic_and_nested():
    data = Dataset("many", "here", "", *parts(train=300, test=60)[:5])
    small, large = data.subset(30, 12, seed=1), data.subset(100, None, seed=1)
    assert torch.bincount(small.train_labels).tolist() == [10, 10, 10]
    assert torch.bincount(small.test_labels).tolist() == [4, 4, 4]
    assert sorted(torch.bincount(large.train_labels).tolist()) == [33, 33, 34]
    assert large.test_images is data.test_images
    assert data.subset(30, 12, seed=1).digest == small.digest != data.subset(30, 12, seed=2).digest

    def rows(some):
        return [bytes(image.flatten().tolist()) for image in some.train_images]

    assert set(rows(small)) <= set(rows(large))
    every = rows(data)
    places = [every.index(row) for row in rows(small)]
    assert places == sorted(places)  # the order is kept, and each image its label
    assert torch.equal(data.train_labels[places], small.train_labels)


def test_subset_of_uneven_classes_takes_all_of_the_rare_ones():
    labels = torch.tensor([0] * 20 + [1] * 2 + [2] * 8)
    data = make(train_images=torch.zeros(30, 3, 4, 4, dtype=torch.uint8), train_labels=labels)
    assert torch.bincount(data.subset(train=16).train_labels).tolist() == [7, 2, 7]
    assert data.subset(train=2).train_labels.unique().numel() == 2
    assert data.subset(train=30) is data


@pytest.mark.parametrize("wanted", [0, -1, 13])
def test_subset_refuses_what_is_not_there(wanted):
    with pytest.raises(InputError, match=r"1\.\.12"):
        make().subset(train=wanted)


def test_resized_agrees_with_pillow():
    data = Dataset("r", "here", "a note", *parts(size=32)[:5])
    for size in (16, 48):
        resized = data.resized(size)
        assert (resized.image_size, resized.note) == (size, "a note")
        for image, expected in zip(resized.train_images, data.train_images, strict=True):
            pillow = Image.fromarray(expected.permute(1, 2, 0).numpy()).resize((size, size), Image.Resampling.BILINEAR)
            difference = image.permute(1, 2, 0).int() - torch.from_numpy(np.array(pillow)).int()
            assert difference.abs().max() <= 1  # pillow rounds between its two passes
    assert data.resized(32) is data
    with pytest.raises(InputError):
        data.resized(0)


def test_work_in_chunks_equals_work_at_once(monkeypatch):
    whole = make()
    expected = whole.mean, whole.std, whole.resized(8).digest
    monkeypatch.setattr("spaceless.data.dataset._CHUNK", 3 * 8 * 8 * 5)  # five images at a time, of twelve
    chunked = make()
    assert (chunked.mean, chunked.std, chunked.resized(8).digest) == expected
