"""Whether a data set is sound: facts about it, and what differs from the official set of that name."""

from __future__ import annotations

import hashlib
import os
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from spaceless.data.find import find
from spaceless.data.readers import load

# name -> training images, test images, classes, pixels; every class of a split is equally frequent but in ImageNet
_OFFICIAL = {
    "cifar10": (50_000, 10_000, 10, 32),
    "cifar100": (50_000, 10_000, 100, 32),
    "imagenet32": (1_281_167, 50_000, 1000, 32),
}
_BALANCED = ("cifar10", "cifar100")


@dataclass(frozen=True)
class Verification:
    """What was found in a data set; `problems` is empty if nothing contradicts its name.

    `per_class` are the smallest and the largest number of images of a class; `repeated_train` counts training images
    with the pixels of an earlier one, `shared` test images with the pixels of a training image.
    """

    name: str
    kind: str
    source: str
    note: str
    classes: int
    image_size: int
    train_images: int
    test_images: int
    train_per_class: tuple[int, int]
    test_per_class: tuple[int, int]
    repeated_train: int
    shared: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    digest: str
    problems: tuple[str, ...]

    @property
    def sound(self) -> bool:
        """Whether nothing contradicts the name."""
        return not self.problems

    def to_json(self) -> dict[str, Any]:
        """Return the facts as plain values."""
        return asdict(self)

    def lines(self) -> list[str]:
        """Return the facts as lines for a person."""
        mean, std = (" ".join(f"{value:.4f}" for value in values) for values in (self.mean, self.std))
        return [
            f"{self.name}: {self.classes} classes, {self.image_size} x {self.image_size} pixels, {self.kind}",
            f"source: {self.source}",
            *([f"note: {self.note}"] if self.note else []),
            f"train: {self.train_images:,} images, {_range(self.train_per_class)} per class, "
            f"{self.repeated_train:,} repeated",
            f"test: {self.test_images:,} images, {_range(self.test_per_class)} per class, "
            f"{self.shared:,} of them in train as well",
            f"mean: {mean}; standard deviation: {std}",
            f"digest: {self.digest}",
            *(f"problem: {problem}" for problem in self.problems),
        ]


def _range(counts: tuple[int, int]) -> str:
    return f"{counts[0]:,}" if counts[0] == counts[1] else f"{counts[0]:,} to {counts[1]:,}"


def verify(
    name_or_path: str | os.PathLike[str], data_root: Path | None = None, image_size: int | None = None,
) -> Verification:
    """Read a whole set and return the facts about it; sets in folders need `image_size`.

    Raises:
        DataError: As `load`.

    """
    place = find(name_or_path, data_root)
    data = load(name_or_path, data_root=data_root, image_size=image_size)
    train, test = _prints(data.train_images), _prints(data.test_images)
    seen = set(train)
    per_class = [_per_class(labels, data.classes) for labels in (data.train_labels, data.test_labels)]
    problems = [f"class {data.class_names[label]} has no {split} images"
                for split, labels in (("training", data.train_labels), ("test", data.test_labels))
                for label in torch.bincount(labels, minlength=data.classes).eq(0).nonzero().flatten().tolist()]
    if place.name in _OFFICIAL:
        found = (len(train), len(test), data.classes, data.image_size)
        what = ("training images", "test images", "classes", "pixels")
        problems += [f"{count:,} {unit}, the official set has {official:,}"
                     for count, official, unit in zip(found, _OFFICIAL[place.name], what, strict=True)
                     if count != official and not (unit == "pixels" and image_size is not None)]
        if place.name in _BALANCED and any(low != high for low, high in per_class):
            problems.append("classes of unequal size, those of the official set are equal")
    return Verification(
        name=data.name, kind=place.kind, source=data.source, note=data.note, classes=data.classes,
        image_size=data.image_size, train_images=len(train), test_images=len(test), train_per_class=per_class[0],
        test_per_class=per_class[1], repeated_train=len(train) - len(seen),
        shared=sum(image in seen for image in test), mean=data.mean, std=data.std, digest=data.digest,
        problems=tuple(problems),
    )


def _prints(images: Tensor) -> list[bytes]:
    """Return a fingerprint of the pixels of each image: 16 bytes make a chance collision unthinkable."""
    return [hashlib.blake2b(image.data, digest_size=16).digest() for image in images.contiguous().numpy()]


def _per_class(labels: Tensor, classes: int) -> tuple[int, int]:
    counts = torch.bincount(labels, minlength=classes)
    return int(counts.min()), int(counts.max())
