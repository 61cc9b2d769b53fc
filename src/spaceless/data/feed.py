"""Batches for a training and for a test: who works on which images at which step, and how they are augmented."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator
from contextlib import closing
from itertools import islice
from typing import NamedTuple

import torch
from torch import Tensor

from spaceless.data.augment import (
    Crops,
    ResizedCrops,
    apply_crops,
    apply_resized_crops,
    draw_crops,
    draw_resized_crops,
)
from spaceless.data.broken import Broken
from spaceless.data.dataset import Dataset
from spaceless.data.readers import Images
from spaceless.data.stream import Stream
from spaceless.data.workers import Draw, decoded, worker_count
from spaceless.distributed import Share
from spaceless.errors import DataError, InputError
from spaceless.seeds import generator
from spaceless.trial import Recipe


class Batch(NamedTuple):
    """Images, uint8 (B, 3, S, S), and labels, int64 (B,), on the device that computes; what had to be left out."""

    images: Tensor
    labels: Tensor
    broken: tuple[Broken, ...] = ()


def steps_per_epoch(images: int, batch_size: int) -> int:
    """Return how many batches an epoch has: all images, but never a last batch of a single one.

    Batch normalisation has no variance to take over one image of one position.
    """
    return max(1, images // batch_size + (images % batch_size > 1))


class Work(NamedTuple):
    """What a batch is made of, on the device that computes, and what had to be left out of it."""

    parts: tuple[Tensor, ...]
    broken: tuple[Broken, ...] = ()


class Feed(NamedTuple):
    """The work of one step after the other, and the function that makes images and labels of its parts.

    The function asks nothing of the host that depends on the numbers, so that a GPU can be told once what it does.
    """

    work: Generator[Work, None, None]
    batch: Callable[..., tuple[Tensor, Tensor]]


def training_batches(
    data: Images, recipe: Recipe, seed: int, first: int, device: torch.device, share: Share = Share(),  # noqa: B008
) -> Generator[Batch, None, None]:
    """Yield the batches of `training_feed`."""
    feed = training_feed(data, recipe, seed, first, device, share)
    with closing(feed.work):
        for parts, broken in feed.work:
            yield Batch(*feed.batch(*parts), broken)


def training_feed(
    data: Images, recipe: Recipe, seed: int, first: int, device: torch.device, share: Share = Share(),  # noqa: B008
) -> Feed:
    """Return this process's share of every batch from step `first` to the end of the training, augmented.

    Order and augmentation depend on seed, step and image alone: neither on where a training was resumed nor on how many
    processes share it. Images before step `first` are not decoded. A broken one makes its batch smaller.

    Raises:
        InputError: The images are streamed and the recipe cuts them in another way.
        DataError: Raised by the work: so much of a batch is broken that no statistics can be taken over the rest.

    """
    plan = _plan(data.train_count, recipe, seed, first)
    if isinstance(data, Dataset):
        return Feed(_drawn(data, recipe, seed, plan, device, share), _in_memory(data, recipe, device))
    if recipe.augment != "resized_crop":
        raise InputError(
            "augment", found=recipe.augment, expected="resized_crop for images that are decoded in every epoch",
            cure="load the data into memory, or train with the recipe imagenet",
        )
    return Feed(_decoded(data, recipe, seed, plan, device, share, first), lambda images, labels: (images, labels))


def _decoded(
    data: Stream, recipe: Recipe, seed: int, plan: Iterator[tuple[int, int, Tensor]], device: torch.device,
    share: Share, first: int,
) -> Generator[Work, None, None]:
    steps = steps_per_epoch(data.train_count, recipe.batch_size) * recipe.epochs - first
    work = ((Draw(seed, epoch), share.of(chosen).tolist()) for _, epoch, chosen in plan)
    for images, numbers, broken in decoded(data.train, data.image_size, work, device, min(worker_count(), steps)):
        if broken and len(numbers) < 2 and share.count == 1:
            raise DataError(
                f"{data.source}/{broken[0].path}",
                found=f"{broken[0].reason}, and {len(numbers)} sound images beside it",
                expected="at least 2 sound images in every batch", cure="remove broken images or choose a larger batch",
            )
        yield Work((images, data.train_labels[numbers].to(device)), broken)


def _plan(images: int, recipe: Recipe, seed: int, first: int) -> Iterator[tuple[int, int, Tensor]]:
    """Yield step, epoch and the numbers of the images, int64 (B,), of every batch from step `first` on."""
    per_epoch = steps_per_epoch(images, recipe.batch_size)
    order = torch.empty(0, dtype=torch.int64)
    for step in range(first, per_epoch * recipe.epochs):
        epoch, within = divmod(step, per_epoch)
        if within == 0 or step == first:
            order = torch.randperm(images, generator=generator(seed, "order", epoch))
        yield step, epoch, order[within * recipe.batch_size:(within + 1) * recipe.batch_size]


_AHEAD = 64  # steps whose choices travel to the device in one go


def _drawn(
    data: Dataset, recipe: Recipe, seed: int, plan: Iterator[tuple[int, int, Tensor]], device: torch.device,
    share: Share,
) -> Generator[Work, None, None]:
    """Yield for every step one table, int64: for each of its images the number of the image and how it is augmented."""
    while steps := list(islice(plan, _AHEAD)):
        tables = [share.of(torch.stack([chosen, *_choices(data, recipe, seed, step, len(chosen))], 1))
                  for step, _, chosen in steps]
        table = torch.cat(tables)
        if device.type == "cuda":  # from pinned memory, so that nothing waits for it
            table = table.pin_memory().to(device, non_blocking=True)
        for part in torch.split(table, [len(each) for each in tables]):
            yield Work((part,))


def _choices(data: Dataset, recipe: Recipe, seed: int, step: int, count: int) -> tuple[Tensor, ...]:
    """Draw the augmentation of a whole batch, so that an image's crop is the same whoever works on it."""
    if recipe.augment == "crop_flip":
        return draw_crops(count, generator(seed, "augment", step))
    if recipe.augment == "resized_crop":
        return draw_resized_crops(count, data.image_size, generator(seed, "augment", step))
    return ()


def _in_memory(data: Dataset, recipe: Recipe, device: torch.device) -> Callable[[Tensor], tuple[Tensor, Tensor]]:
    """Return the function from a table of `_drawn` to images and labels."""
    images, labels = data.train_images.to(device), data.train_labels.to(device)

    def batch(table: Tensor) -> tuple[Tensor, Tensor]:
        numbers, *choices = table.unbind(1)
        x = images.index_select(0, numbers)
        if recipe.augment == "crop_flip":
            top, left, flipped = choices
            x = apply_crops(x, Crops(top, left, flipped != 0))
        elif recipe.augment == "resized_crop":
            top, left, height, width, flipped = choices
            x = apply_resized_crops(x, ResizedCrops(top, left, height, width, flipped != 0))
        return x, labels.index_select(0, numbers)

    return batch


def test_batches(
    data: Images, batch_size: int, device: torch.device, share: Share = Share(),  # noqa: B008
) -> Generator[Batch, None, None]:
    """Yield this process's share of the test images, in order, as they are: of streamed ones the middle."""
    parts = [slice(start, start + batch_size) for start in range(0, data.test_count, batch_size)]
    if isinstance(data, Stream):
        numbers = torch.arange(data.test_count)
        work = ((None, share.of(numbers[part]).tolist()) for part in parts)
        for images, sound, broken in decoded(data.test, data.image_size, work, device, min(worker_count(), len(parts))):
            yield Batch(images, data.test_labels[sound].to(device), broken)
        return
    for part in parts:
        yield Batch(share.of(data.test_images[part]).to(device), share.of(data.test_labels[part]).to(device))
