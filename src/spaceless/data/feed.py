"""Batches for a training and for a test: who works on which images at which step, and how they are augmented."""

from __future__ import annotations

from collections.abc import Generator, Iterator
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


def training_batches(
    data: Images, recipe: Recipe, seed: int, first: int, device: torch.device, share: Share = Share(),  # noqa: B008
) -> Generator[Batch, None, None]:
    """Yield this process's share of every batch from step `first` to the end of the training, augmented.

    Order and augmentation depend on seed, step and image alone: neither on where a training was resumed nor on how many
    processes share it. Images before step `first` are not decoded. A broken one makes its batch smaller.

    Raises:
        InputError: The images are streamed and the recipe cuts them in another way.
        DataError: So much of a batch is broken that no statistics can be taken over the rest.

    """
    plan = _plan(data.train_count, recipe, seed, first)
    if isinstance(data, Dataset):
        yield from _from_memory(data, recipe, seed, plan, device, share)
        return
    if recipe.augment != "resized_crop":
        raise InputError(
            "augment", found=recipe.augment, expected="resized_crop for images that are decoded in every epoch",
            cure="load the data into memory, or train with the recipe imagenet",
        )
    steps = steps_per_epoch(data.train_count, recipe.batch_size) * recipe.epochs - first
    work = ((Draw(seed, epoch), share.of(chosen).tolist()) for _, epoch, chosen in plan)
    for images, numbers, broken in decoded(data.train, data.image_size, work, device, min(worker_count(), steps)):
        if broken and len(numbers) < 2 and share.count == 1:
            raise DataError(
                f"{data.source}/{broken[0].path}",
                found=f"{broken[0].reason}, and {len(numbers)} sound images beside it",
                expected="at least 2 sound images in every batch", cure="remove broken images or choose a larger batch",
            )
        yield Batch(images, data.train_labels[numbers].to(device), broken)


def _plan(images: int, recipe: Recipe, seed: int, first: int) -> Iterator[tuple[int, int, Tensor]]:
    """Yield step, epoch and the numbers of the images, int64 (B,), of every batch from step `first` on."""
    per_epoch = steps_per_epoch(images, recipe.batch_size)
    order = torch.empty(0, dtype=torch.int64)
    for step in range(first, per_epoch * recipe.epochs):
        epoch, within = divmod(step, per_epoch)
        if within == 0 or step == first:
            order = torch.randperm(images, generator=generator(seed, "order", epoch))
        yield step, epoch, order[within * recipe.batch_size:(within + 1) * recipe.batch_size]


def _from_memory(
    data: Dataset, recipe: Recipe, seed: int, plan: Iterator[tuple[int, int, Tensor]], device: torch.device,
    share: Share,
) -> Iterator[Batch]:
    images, labels = data.train_images.to(device), data.train_labels.to(device)
    for step, _, chosen in plan:
        mine = share.of(chosen).to(device)
        x = images.index_select(0, mine)
        # Drawn for the whole batch, so that an image's crop is the same whoever works on it.
        if recipe.augment == "crop_flip":
            crops = draw_crops(len(chosen), generator(seed, "augment", step))
            x = apply_crops(x, Crops(*map(share.of, crops)))
        elif recipe.augment == "resized_crop":
            rectangles = draw_resized_crops(len(chosen), data.image_size, generator(seed, "augment", step))
            x = apply_resized_crops(x, ResizedCrops(*map(share.of, rectangles)))
        yield Batch(x, labels[mine])


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
