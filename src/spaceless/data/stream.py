"""`Stream`: a data set of class folders of which nothing is in memory but where its images are."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from spaceless.data.broken import skipped_note
from spaceless.data.classes import class_files, labels_of, size_of
from spaceless.data.dataset import drawn
from spaceless.data.find import Location, printable
from spaceless.errors import DataError, InputError
from spaceless.trial import DataFacts

# The field's constants for ImageNet's training images, 255 = 1: reading 140 GB to find them again helps nobody.
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
IMAGE_SIZE = 224  # pixels, unless asked otherwise (He et al. 2016, section 3.4)
SHORTER_SIDE = 256 / 224  # of a test image, in units of what is cut out of its middle


class Files:
    """The files of one split: paths within a folder, sizes in bytes and labels, int64 (N,).

    The paths are kept as one text: a million Python strings would be copied into every worker, page by page.
    """

    def __init__(self, folder: Path, paths: Iterable[str], sizes: Tensor, labels: Tensor) -> None:
        encoded = [os.fsencode(path) for path in paths]
        self.folder, self.sizes, self.labels = folder, sizes, labels
        self._text = np.frombuffer(b"".join(encoded), np.uint8)
        self._ends = np.cumsum([len(path) for path in encoded])

    def __len__(self) -> int:
        return len(self._ends)

    def path(self, number: int) -> str:
        """Return where image `number` is within the folder."""
        start = int(self._ends[number - 1]) if number else 0
        return os.fsdecode(self._text[start : int(self._ends[number])].tobytes())

    def taken(self, kept: Tensor) -> Files:
        """Return the files with these numbers, int64 (M,)."""
        return Files(self.folder, [self.path(i) for i in kept.tolist()], self.sizes[kept], self.labels[kept])


def _files(classes: dict[str, list[Path]], folder: Path) -> Files:
    paths = [path for of_class in classes.values() for path in of_class]
    sizes = torch.tensor([size_of(path) for path in paths])
    return Files(folder, (path.relative_to(folder).as_posix() for path in paths), sizes, labels_of(classes))


@dataclass(frozen=True, eq=False)
class Stream:
    """A data set in class folders of which nothing is kept in memory but where its images are.

    It has what a `Dataset` has but for the pixels. Images come as uint8 (N, 3, S, S), S = `image_size`.
    """

    name: str
    source: str
    note: str
    train: Files = field(repr=False)
    test: Files = field(repr=False)
    class_names: tuple[str, ...] = field(repr=False)
    image_size: int = IMAGE_SIZE
    mean: tuple[float, ...] = MEAN
    std: tuple[float, ...] = STD

    def __post_init__(self) -> None:
        """Check what the folders cannot tell."""
        if self.image_size < 1:
            raise InputError(
                "image size", found=self.image_size, expected="at least 1 pixel", cure="choose a larger size")
        if self.classes < 2:
            raise DataError(
                f"{self.source}: classes", found=f"{self.classes} class", expected="at least 2",
                cure="correct or replace this data",
            )

    @property
    def classes(self) -> int:
        """The number of classes."""
        return len(self.class_names)

    @property
    def shorter_side(self) -> int:
        """What the shorter side of a test image is made before its middle is cut out, in pixels."""
        return round(SHORTER_SIDE * self.image_size)

    @property
    def train_count(self) -> int:
        """The number of training images, broken ones among them."""
        return len(self.train)

    @property
    def test_count(self) -> int:
        """The number of test images, broken ones among them."""
        return len(self.test)

    @property
    def train_labels(self) -> Tensor:
        """The labels of the training images, int64 (N,)."""
        return self.train.labels

    @property
    def test_labels(self) -> Tensor:
        """The labels of the test images, int64 (N,)."""
        return self.test.labels

    @cached_property
    def digest(self) -> str:
        """SHA-256 over paths within the folder, sizes in bytes and labels: not over 140 GB of what is in the files."""
        digest = hashlib.sha256(b"paths, sizes, labels")
        for split in (self.train, self.test):
            digest.update(f"\n{len(split)}".encode())
            for number, (size, label) in enumerate(zip(split.sizes.tolist(), split.labels.tolist(), strict=True)):
                digest.update(f"\n{size} {label} ".encode() + os.fsencode(split.path(number)))
        return digest.hexdigest()

    @property
    def facts(self) -> DataFacts:
        """What an outcome keeps of the data it saw; outcomes are shared, so of a path only the last part."""
        return DataFacts(
            name=self.name, source=printable(Path(self.source).name), note=self.note, classes=self.classes,
            image_size=self.image_size, digest=self.digest, train_images=self.train_count, test_images=self.test_count,
        )

    def subset(self, train: int | None = None, test: int | None = None, seed: int = 0) -> Stream:
        """Return a draw of images as `Dataset.subset` does."""
        changed = {}
        for split, wanted in (("train", train), ("test", test)):
            files: Files = getattr(self, split)
            if (kept := drawn(files.labels, wanted, seed, split, self.name)) is not None:
                changed[split] = files.taken(kept)
        return replace(self, **changed) if changed else self  # type: ignore[arg-type]

    def resized(self, size: int) -> Stream:
        """Return the same images at `size` x `size` pixels."""
        return self if size == self.image_size else replace(self, image_size=size)


def open_stream(place: Location, image_size: int | None = None) -> Stream:
    """Return the class folders at `place` as a stream, at 224 x 224 pixels unless told otherwise.

    Raises:
        DataError: As `class_files`.

    """
    found = class_files(place.path)
    splits = (_files(found.train, place.path), _files(found.test, place.path))
    size = IMAGE_SIZE if image_size is None else image_size
    return Stream(place.name, str(place.path), skipped_note(found.skipped), *splits, found.names, size)
