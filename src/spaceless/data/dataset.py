"""`Dataset`: the images and labels of a training and a test split as checked tensors, and what follows from them."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import interpolate

from spaceless.data.find import printable
from spaceless.errors import DataError, InputError
from spaceless.seeds import generator
from spaceless.trial import DataFacts

_CHUNK = 1 << 23  # pixels converted to wider numbers at a time, so that ImageNet-32 fits into memory too
_MOST_CLASSES = 1 << 16  # ImageNet-21k has 21,841


class Parts(NamedTuple):
    """What a reader hands over: the two splits, uint8 (N, 1 or 3, H, W) and int64 (N,), the class names, a caveat.

    `reasons` tell more of what the caveat is about, in a warning only.
    """

    train_images: Tensor
    train_labels: Tensor
    test_images: Tensor
    test_labels: Tensor
    class_names: tuple[str, ...]
    note: str = ""
    reasons: tuple[str, ...] = ()


def numbered_classes(*labels: Tensor) -> tuple[str, ...]:
    """Return the class names `0`, `1`, ... up to the largest label, for sets that come without names.

    They are no more than `_MOST_CLASSES`: an absurd label is then found out of range, instead of a billion names.
    """
    highest = max((int(part.max()) for part in labels if len(part)), default=-1)
    return tuple(str(label) for label in range(min(highest + 1, _MOST_CLASSES)))


@dataclass(frozen=True, eq=False)
class Dataset:
    """A data set in memory. Images are uint8 (N, 3, H, W) with H = W; labels are int64 (N,) in 0..classes-1.

    Grey images (N, 1, H, W) are repeated to three channels. `source` is the path it was read from and is named in
    every error; `note` is a caveat that must be shown wherever a figure measured on this data is.

    Raises:
        DataError: A split is empty, not square uint8 images, or its labels do not belong to them or to the classes.

    """

    name: str
    source: str
    note: str
    train_images: Tensor = field(repr=False)
    train_labels: Tensor = field(repr=False)
    test_images: Tensor = field(repr=False)
    test_labels: Tensor = field(repr=False)
    class_names: tuple[str, ...] = field(repr=False)

    def __post_init__(self) -> None:
        """Check everything here, so that no reader and no user of the data has to."""
        if len(self.class_names) < 2:
            raise self._error("classes", f"{len(self.class_names)} class", "at least 2")
        for split in ("train", "test"):
            images, labels = self._split(split)
            self._check(split, images, labels)
            if images.shape[1] == 1:
                object.__setattr__(self, f"{split}_images", images.repeat(1, 3, 1, 1))
        if self.train_images.shape[1:] != self.test_images.shape[1:]:
            sizes = " and ".join(str(tuple(images.shape[1:])) for images in (self.train_images, self.test_images))
            raise self._error("image sizes of train and test", sizes, "the same")

    def _split(self, split: str) -> tuple[Tensor, Tensor]:
        if split == "train":
            return self.train_images, self.train_labels
        return self.test_images, self.test_labels

    def _check(self, split: str, images: Tensor, labels: Tensor) -> None:
        if images.dtype != torch.uint8 or images.ndim != 4 or images.shape[1] not in (1, 3):
            kind = f"{images.dtype} {tuple(images.shape)}".removeprefix("torch.")
            raise self._error(f"{split} images", kind, "uint8 (N, 3, H, W) or (N, 1, H, W)")
        if len(images) == 0:
            raise self._error(f"{split} images", "none", "at least one")
        if images.shape[2] != images.shape[3] or images.shape[2] == 0:
            raise self._error(f"{split} images", f"{images.shape[2]} x {images.shape[3]} pixels", "square images")
        if labels.dtype != torch.int64 or labels.shape != (len(images),):
            kind = f"{labels.dtype} {tuple(labels.shape)}".removeprefix("torch.")
            raise self._error(f"{split} labels", kind, f"int64 ({len(images)},), one per image")
        low, high = int(labels.min()), int(labels.max())
        if low < 0 or high >= len(self.class_names):
            raise self._error(f"{split} labels", f"{low}..{high}", f"0..{len(self.class_names) - 1}")

    def _error(self, what: str, found: str, expected: str) -> DataError:
        return DataError(f"{self.source}: {what}", found=found, expected=expected, cure="correct or replace this data")

    @property
    def classes(self) -> int:
        """The number of classes."""
        return len(self.class_names)

    @property
    def image_size(self) -> int:
        """The edge of the square images, in pixels."""
        return self.train_images.shape[2]

    @property
    def shorter_side(self) -> int:
        """What the shorter side of an image is made before its middle is cut out, in pixels."""
        return self.image_size

    @property
    def train_count(self) -> int:
        """The number of training images."""
        return len(self.train_labels)

    @property
    def test_count(self) -> int:
        """The number of test images."""
        return len(self.test_labels)

    @cached_property
    def digest(self) -> str:
        """SHA-256 over shapes and values of the four tensors: equal pixels and labels, in order, give equal digests."""
        digest = hashlib.sha256()
        for tensor in (self.train_images, self.train_labels, self.test_images, self.test_labels):
            digest.update(f"{tensor.dtype} {tuple(tensor.shape)}".encode())
            digest.update(tensor.contiguous().cpu().numpy().data)
        return digest.hexdigest()

    @cached_property
    def _moments(self) -> tuple[tuple[float, ...], tuple[float, ...]]:
        # A histogram keeps the sums whole numbers: the result depends on neither the order nor the machine.
        counts = [histogram(part) for part in _chunks(self.train_images, self.image_size)]
        return moments(torch.stack(counts).sum(0))

    @property
    def mean(self) -> tuple[float, ...]:
        """The mean of each channel of the training images, in units where 255 is 1."""
        return self._moments[0]

    @property
    def std(self) -> tuple[float, ...]:
        """The standard deviation of each channel of the training images, 255 = 1; 1 for a channel without any."""
        return self._moments[1]

    @property
    def facts(self) -> DataFacts:
        """What an outcome keeps of the data it saw; outcomes are shared, so of a path only the last part."""
        return DataFacts(
            name=self.name, source=printable(Path(self.source).name), note=self.note, classes=self.classes,
            image_size=self.image_size, digest=self.digest, train_images=len(self.train_images),
            test_images=len(self.test_images),
        )

    def subset(self, train: int | None = None, test: int | None = None, seed: int = 0) -> Dataset:
        """Return a draw of `train` and `test` images (None: all), as evenly over the classes as they allow.

        The draw depends on `seed` alone, keeps the order of the images, and a smaller draw is part of a larger one.

        Raises:
            InputError: More images are asked for than there are, or fewer than one.

        """
        changed: dict[str, Tensor] = {}
        for split, wanted in (("train", train), ("test", test)):
            images, labels = self._split(split)
            if (kept := drawn(labels.cpu(), wanted, seed, split, self.name)) is not None:
                kept = kept.to(images.device)
                changed |= {f"{split}_images": images.index_select(0, kept), f"{split}_labels": labels[kept]}
        return replace(self, **changed) if changed else self  # type: ignore[arg-type]

    def resized(self, size: int) -> Dataset:
        """Return the whole set at `size` x `size` pixels: bilinear, antialiased, rounded to uint8."""
        if size == self.image_size:
            return self
        if size < 1:
            raise InputError("image size", found=size, expected="at least 1 pixel", cure="choose a larger size")
        return replace(
            self, train_images=_resize(self.train_images, size), test_images=_resize(self.test_images, size),
        )


def histogram(images: Tensor) -> Tensor:
    """Return how often each value occurs in each channel of uint8 images (N, 3, H, W): int64 (3, 256)."""
    return torch.stack([torch.bincount(images[:, channel].flatten(), minlength=256).cpu() for channel in range(3)])


def moments(counts: Tensor) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Return mean and standard deviation of each channel from its `histogram`, in units where 255 is 1."""
    values, total = torch.arange(256, dtype=torch.float64) / 255, counts[0].sum()
    mean = (counts * values).sum(1) / total
    variance = (counts * (values - mean[:, None]).square()).sum(1) / total
    # A channel that never varies must become 0, not infinite, when it is divided by its deviation.
    deviation = torch.where(variance > 0, variance.sqrt(), 1.0)
    return tuple(mean.tolist()), tuple(deviation.tolist())


def drawn(labels: Tensor, wanted: int | None, seed: int, split: str, name: str) -> Tensor | None:
    """Return the sorted numbers of `wanted` images of a split, as evenly over the classes as they allow; None for all.

    Raises:
        InputError: More images are asked for than there are, or fewer than one.

    """
    if wanted is None or wanted == len(labels):
        return None
    if not 1 <= wanted < len(labels):
        raise InputError(f"{split} images of {name}", found=wanted, expected=f"1..{len(labels)}",
                         cure="ask for fewer" if wanted > 0 else "ask for at least one")
    return _stratified(labels, wanted, generator(seed, f"subset {split}"))


def _stratified(labels: Tensor, wanted: int, random: torch.Generator) -> Tensor:
    """Return `wanted` sorted indices, taken from the classes in turn until each of them is exhausted."""
    order = torch.randperm(len(labels), generator=random)
    present = labels[order]
    by_class = present.argsort(stable=True)  # random within each class
    counts = torch.bincount(labels)
    starts = counts.cumsum(0) - counts
    turn = torch.empty_like(order)
    turn[by_class] = torch.arange(len(labels)) - starts[present[by_class]]  # first of its class, second, ...
    # The classes take turns in a random order, since the last turn may not reach all of them.
    rank = torch.randperm(len(counts), generator=random)[present]
    return order[(turn * len(counts) + rank).argsort()[:wanted]].sort().values


def _chunks(images: Tensor, size: int) -> tuple[Tensor, ...]:
    """Return views of some images each: as many as make `_CHUNK` pixels at `size` x `size`."""
    return torch.split(images, max(1, _CHUNK // (3 * size * size)))


def _resize(images: Tensor, size: int) -> Tensor:
    resized = images.new_empty((len(images), 3, size, size))
    largest = max(size, images.shape[2])
    for old, new in zip(_chunks(images, largest), _chunks(resized, largest), strict=True):
        new.copy_(interpolate(old.float(), size=(size, size), mode="bilinear", antialias=True).round_().clamp_(0, 255))
    return resized
