"""Batches for a training and for a test: who works on which images at which step, and how they are augmented."""

from __future__ import annotations

from collections.abc import Iterator
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
from spaceless.data.dataset import Dataset
from spaceless.distributed import Share
from spaceless.seeds import generator
from spaceless.trial import Recipe


class Batch(NamedTuple):
    """Images, uint8 (B, 3, S, S), and labels, int64 (B,), both on the device that computes."""

    images: Tensor
    labels: Tensor


def steps_per_epoch(images: int, batch_size: int) -> int:
    """Return how many batches an epoch has: all images, but never a last batch of a single one.

    Batch normalisation has no variance to take over one image of one position.
    """
    return max(1, images // batch_size + (images % batch_size > 1))


def training_batches(
    data: Dataset, recipe: Recipe, seed: int, first: int, device: torch.device, share: Share = Share(),  # noqa: B008
) -> Iterator[Batch]:
    """Yield this process's share of every batch from step `first` to the end of the training, augmented.

    Order and augmentation depend on seed, step and image alone: neither on where a training was resumed nor on how many
    processes share it.
    """
    plan = _plan(data.train_count, recipe, seed, first)
    yield from _from_memory(data, recipe, seed, plan, device, share)


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
    data: Dataset, batch_size: int, device: torch.device, share: Share = Share(),  # noqa: B008
) -> Iterator[Batch]:
    """Yield this process's share of the test images, in order, as they are."""
    parts = [slice(start, start + batch_size) for start in range(0, data.test_count, batch_size)]
    for part in parts:
        yield Batch(share.of(data.test_images[part]).to(device), share.of(data.test_labels[part]).to(device))
