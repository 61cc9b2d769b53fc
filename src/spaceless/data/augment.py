"""Augmentation of whole uint8 batches, one draw per image, and the normalisation that follows it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import pad

PADDING = 4  # the field's habit for 32 x 32 images (He et al. 2016, section 4.2), and the paper's baselines match it


class Crops(NamedTuple):
    """Where each image's window lies in the padded image, (N,) int64 in 0..2 * padding, and which are mirrored."""

    top: Tensor
    left: Tensor
    flipped: Tensor


def draw_crops(count: int, generator: torch.Generator, padding: int = PADDING) -> Crops:
    """Draw `count` crops, uniform over all offsets and both orientations, independent from image to image."""
    shifts = 2 * padding + 1
    # One number holds all three choices: a single draw per batch.
    drawn = torch.randint(shifts * shifts * 2, (count,), generator=generator, device=generator.device)
    return Crops(drawn // (2 * shifts), drawn // 2 % shifts, drawn % 2 == 1)


def apply_crops(images: Tensor, crops: Crops, padding: int = PADDING) -> Tensor:
    """Return the chosen windows of the zero-padded images, mirrored where asked.

    Args:
        images: (N, C, H, W), of any type and on any device.
        crops: One choice per image.
        padding: Pixels of value 0 added on all four sides, as torchvision's `RandomCrop(padding=4)` does.

    """
    count, channels, height, width = images.shape
    top, left, flipped = (choice.to(images.device)[:, None] for choice in crops)
    column = torch.arange(width, device=images.device)
    column = torch.where(flipped, width - 1 - column, column) + left  # (N, W)
    row = (torch.arange(height, device=images.device) + top) * (width + 2 * padding)  # (N, H)
    place = (row[:, :, None] + column[:, None, :]).view(count, 1, height * width)
    padded = pad(images, (padding,) * 4).flatten(2)
    # One gather does crop and flip, for all channels alike: twice as fast on a CPU as windows followed by a flip.
    return padded.gather(2, place.expand(-1, channels, -1)).view_as(images)


def normalise(batch: Tensor, mean: Sequence[float], std: Sequence[float]) -> Tensor:
    """Return float32 (N, C, H, W): (batch / 255 - mean) / std, with `mean` and `std` per channel where 255 is 1."""
    scale = torch.tensor([1 / (255 * s) for s in std], device=batch.device)[:, None, None]
    shift = torch.tensor([-m / s for m, s in zip(mean, std, strict=True)], device=batch.device)[:, None, None]
    return batch.to(torch.float32).mul_(scale).add_(shift)
