"""Whether a data set is sound: facts about it, and what differs from the official set of that name."""

from __future__ import annotations

import hashlib
import os
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from spaceless.data.dataset import histogram, moments
from spaceless.data.find import find, printable
from spaceless.data.images import decode_into
from spaceless.data.readers import Images, load
from spaceless.data.stream import Files, open_stream
from spaceless.errors import DataError

# name -> training images, test images, classes, pixels; every class of a split is equally frequent but in ImageNet
_OFFICIAL = {
    "cifar10": (50_000, 10_000, 10, 32),
    "cifar100": (50_000, 10_000, 100, 32),
    "imagenet32": (1_281_167, 50_000, 1000, 32),
}
_BALANCED = ("cifar10", "cifar100")
_BLOCK = 1024  # images in memory at a time


@dataclass(frozen=True)
class Verification:
    """What was found in a data set; `problems` is empty if nothing contradicts its name.

    `per_class` are the smallest and the largest number of images of a class; `repeated_train` counts training images
    with the pixels of an earlier one, `shared` test images with the pixels of a training image. Broken images of class
    folders are problems and count as no images; other files in them are counted in the note; the digest of folders is
    a `Stream`'s.
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
    """Read a whole set and return the facts about it; class folders at 224 x 224 pixels unless asked otherwise.

    Raises:
        DataError: As `load`, but for broken images in class folders: all of them are problems.

    """
    place = find(name_or_path, data_root)
    problems: list[str] = []
    if place.kind == "folders":
        stream = open_stream(place, image_size)
        train, train_labels, counts = _read(stream.train, stream.image_size, problems)
        test, test_labels, _ = _read(stream.test, stream.image_size, problems)
        mean, std = moments(counts) if train else (stream.mean, stream.std)
        data: Images = stream
    else:
        data = loaded = load(name_or_path, data_root=data_root, image_size=image_size)
        train, test = _prints(loaded.train_images), _prints(loaded.test_images)
        train_labels, test_labels, mean, std = data.train_labels, data.test_labels, data.mean, data.std
    seen = set(train)
    per_class = [_per_class(labels, data.classes) for labels in (train_labels, test_labels)]
    problems += [f"class {data.class_names[label]} has no {split} images"
                for split, labels in (("training", train_labels), ("test", test_labels))
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
        name=data.name, kind=place.kind, source=printable(data.source), note=data.note, classes=data.classes,
        image_size=data.image_size, train_images=len(train), test_images=len(test), train_per_class=per_class[0],
        test_per_class=per_class[1], repeated_train=len(train) - len(seen),
        shared=sum(image in seen for image in test), mean=mean, std=std, digest=data.digest,
        problems=tuple(problems),
    )


def _read(files: Files, size: int, problems: list[str]) -> tuple[list[bytes], Tensor, Tensor]:
    """Return fingerprints and labels of the sound images of a split and the histogram of all; tell of broken ones."""
    prints: list[bytes] = []
    sound: list[int] = []
    counts = torch.zeros(3, 256, dtype=torch.int64)
    for start in range(0, len(files), _BLOCK):  # all of ImageNet fits into no memory
        paths = [files.path(number) for number in range(start, min(start + _BLOCK, len(files)))]
        pixels = np.empty((len(paths), 3, size, size), np.uint8)
        broken: dict[int, DataError] = {}
        decode_into(pixels, [files.folder / path for path in paths], paths.__getitem__, crop=True, broken=broken)
        problems += [f"{printable(paths[i])}: {broken[i].found}" for i in sorted(broken)]
        kept = [i for i in range(len(paths)) if i not in broken]
        images = torch.from_numpy(pixels[kept])
        prints += _prints(images)
        counts += histogram(images)
        sound += [start + i for i in kept]
    return prints, files.labels[torch.tensor(sound, dtype=torch.int64)], counts


def _prints(images: Tensor) -> list[bytes]:
    """Return a fingerprint of the pixels of each image: 16 bytes make a chance collision unthinkable."""
    return [hashlib.blake2b(image.data, digest_size=16).digest() for image in images.contiguous().numpy()]


def _per_class(labels: Tensor, classes: int) -> tuple[int, int]:
    counts = torch.bincount(labels, minlength=classes)
    return int(counts.min()), int(counts.max())
