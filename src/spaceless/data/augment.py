"""Augmentation of whole uint8 batches, one draw per image, and the normalisation that follows it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import lru_cache
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import grid_sample, pad

AREA, RATIO = (0.08, 1.0), (3 / 4, 4 / 3)  # of a resized crop (Szegedy et al. 2014, section 6), as in torchvision
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


class ResizedCrops(NamedTuple):
    """Each image's rectangle in pixels, within the image, (N,) int64, and which are mirrored."""

    top: Tensor
    left: Tensor
    height: Tensor
    width: Tensor
    flipped: Tensor


def draw_resized_crops(count: int, size: int, generator: torch.Generator) -> ResizedCrops:
    """Draw `count` rectangles in square images of `size` pixels as torchvision's `RandomResizedCrop` does.

    The area is uniform in `AREA`, the logarithm of width / height uniform in that of `RATIO`; the first of ten tries
    that fits into the image counts, the whole image if none does. The place is uniform over all.
    """
    drawn = torch.rand(count, 23, generator=generator, device=generator.device)
    area = size * size * (AREA[0] + (AREA[1] - AREA[0]) * drawn[:, :10])
    low, high = math.log(RATIO[0]), math.log(RATIO[1])
    ratio = torch.exp(low + (high - low) * drawn[:, 10:20])
    width, height = (area * ratio).sqrt().round().long(), (area / ratio).sqrt().round().long()  # (N, 10)
    fits = (width > 0) & (width <= size) & (height > 0) & (height <= size)
    first = fits.int().argmax(1, keepdim=True)
    width, height = (torch.where(fits.any(1), edge.gather(1, first)[:, 0], size) for edge in (width, height))
    # Rounding may put the largest numbers below 1 on the place behind the last one.
    top, left = (((size - edge + 1) * drawn[:, column]).long().minimum(size - edge)
                 for edge, column in ((height, 20), (width, 21)))
    return ResizedCrops(top, left, height, width, drawn[:, 22] < 0.5)


def apply_resized_crops(images: Tensor, crops: ResizedCrops) -> Tensor:
    """Return the chosen rectangles at the size of the images, bilinear, mirrored where asked.

    Args:
        images: uint8 (N, C, S, S). No rectangle is larger than the image, so that nothing has to be antialiased.
        crops: One choice per image.

    """
    size = images.shape[3]
    top, left, height, width, flipped = (choice.to(images.device)[:, None] for choice in crops)
    middle = torch.arange(size, device=images.device) + 0.5  # of each pixel
    column = torch.where(flipped, size - middle, middle)
    places = []
    for along, start, length in ((column, left, width), (middle, top, height)):
        # Never between a pixel of the rectangle and one outside it: what is cut off is gone.
        pixel = (along * length / size - 0.5).clamp_min(0).minimum(length - 1) + start
        places.append((2 * pixel + 1) / size - 1)  # (N, S), in units where the image spans -1 to 1
    x, y = places
    grid = torch.stack([x[:, None, :].expand(-1, size, -1), y[:, :, None].expand(-1, -1, size)], 3)  # (N, S, S, 2)
    sampled = grid_sample(images.float(), grid, mode="bilinear", padding_mode="border", align_corners=False)
    return sampled.round_().to(images.dtype)


def normalise(batch: Tensor, mean: Sequence[float], std: Sequence[float]) -> Tensor:
    """Return float32 (N, C, H, W): (batch / 255 - mean) / std, with `mean` and `std` per channel where 255 is 1."""
    scale, shift = _scale_and_shift(tuple(mean), tuple(std), batch.device)
    return batch.to(torch.float32).mul_(scale).add_(shift)


@lru_cache(maxsize=16)  # what is made of Python numbers has to travel to the device, which would wait for it
def _scale_and_shift(
    mean: tuple[float, ...], std: tuple[float, ...], device: torch.device,
) -> tuple[Tensor, Tensor]:
    with torch.inference_mode(False):
        return (torch.tensor([1 / (255 * s) for s in std], device=device)[:, None, None],
                torch.tensor([-m / s for m, s in zip(mean, std, strict=True)], device=device)[:, None, None])
