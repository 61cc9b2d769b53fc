"""Made data sets whose true answer follows from geometry: `texture` and `arrangement-D`.

`arrangement-D`: a red and a green mark of one pixel each, D pixels apart; the class is in which of the four directions
the green one lies. A map position that sees at most D pixels sees one mark at most, so what is left when positions
are given up (the multiset of local features) is the same for all classes, exactly. Three leaks are closed:

* zero padding tells how near the border is: a window of D pixels that holds a mark never reaches the border;
* strided layers let a feature know its position modulo the stride: D, the margins and the ranges that the places are
  drawn from are multiples of the stride (1, 2, 4 or 8), so both marks have the same distribution of residues in every
  class (`spaceless.calibrate` claims no chance for other D);
* overlapping windows on noise could be put together like a jigsaw: the background is one colour within an image.

`texture`: eight copies of one 3x3 pattern at random places; the class is which pattern. All four patterns have equal
numbers of pixels set, so single pixels tell nothing.
"""

from __future__ import annotations

import re

import torch
from torch import Tensor

from spaceless.data.dataset import Dataset
from spaceless.errors import DataError
from spaceless.seeds import generator
from spaceless.trial import is_control

TRAIN_IMAGES, TEST_IMAGES = 4096, 2048
TEXTURE_SIZE, TEXTURE_COPIES = 32, 8
LARGEST_DISTANCE = 64  # pixels: images of 200 pixels, 0.7 GB of them
DIRECTIONS = ((1, 0), (-1, 0), (0, 1), (0, -1))  # (columns, rows) from the red mark to the green one
PATTERNS = (  # four pixels set in each, all within 3x3 and none a shift of another
    ((1, 0, 0), (1, 0, 0), (1, 1, 0)),
    ((1, 1, 1), (0, 1, 0), (0, 0, 0)),
    ((0, 1, 0), (1, 0, 1), (0, 1, 0)),
    ((1, 0, 1), (0, 0, 0), (1, 0, 1)),
)
PATTERN_SIZE = 3
ROOM = 8  # places of a pair along its own direction


def distance_of(name: str) -> int:
    """Return D of `arrangement-D`, in pixels, or raise DataError."""
    match = re.fullmatch(r"arrangement-([1-9]\d?)", name)
    if not match or not 2 <= int(match[1]) <= LARGEST_DISTANCE:
        raise DataError(
            "data", found=repr(name), expected=f"arrangement-D with D from 2 to {LARGEST_DISTANCE} pixels",
            cure="write for example arrangement-8",
        )
    return int(match[1])


def control_size(name: str) -> int:
    """Return the side in pixels of the images of a made data set: room for the marks, the margins and free play."""
    return TEXTURE_SIZE if name == "texture" else arrangement_size(distance_of(name))


def arrangement_size(distance: int) -> int:
    """Return the side of the images of `arrangement-D`: D to each border, D between the marks, and 8 places."""
    return 3 * distance + ROOM


def make_control(name: str, seed: int = 0) -> Dataset:
    """Make `texture` or `arrangement-D`: 4,096 training and 2,048 test images, classes equally frequent.

    Args:
        name: The name; see the head of this file.
        seed: Different seeds draw different images.

    """
    if not is_control(name):
        raise DataError(
            "data", found=repr(name), expected="texture or arrangement-D", cure="write for example arrangement-8",
        )
    distance = None if name == "texture" else distance_of(name)
    sources = [(TRAIN_IMAGES, generator(seed, f"control/{name}/train")),
               (TEST_IMAGES, generator(seed, f"control/{name}/test"))]
    splits = [_texture(*each) if distance is None else _arrangement(distance, *each) for each in sources]
    names = ("L", "T", "ring", "corners") if name == "texture" else ("right", "left", "below", "above")
    return Dataset(name, f"made by code, seed {seed}", "", *splits[0], *splits[1], names)


def _labels(count: int, source: torch.Generator) -> Tensor:
    return (torch.arange(count) % 4)[torch.randperm(count, generator=source)]


def _canvas(count: int, size: int, source: torch.Generator) -> Tensor:
    """Return images (count, 3, size, size) of one colour each, nearly the same in all images."""
    colour = torch.randint(70, 84, (count, 3, 1, 1), generator=source, dtype=torch.uint8)
    return colour.repeat(1, 1, size, size)


def _arrangement(distance: int, count: int, source: torch.Generator) -> tuple[Tensor, Tensor]:
    size = arrangement_size(distance)
    labels, images = _labels(count, source), _canvas(count, size, source)
    red, green = marks(labels, distance, size, source)
    index = torch.arange(count)
    for channel, (column, row) in enumerate((red.unbind(1), green.unbind(1))):
        images[index, :, row, column] = 0
        images[index, channel, row, column] = 255
    return images, labels


def marks(labels: Tensor, distance: int, size: int, source: torch.Generator) -> tuple[Tensor, Tensor]:
    """Return the places (column, row) of the red and the green mark of each image: two int64 tensors (N, 2).

    The pair is placed uniformly where both marks have `distance` pixels or more between them and every border.
    """
    offset = torch.tensor(DIRECTIONS)[labels] * distance  # (N, 2)
    room = size - 2 * distance - offset.abs()  # (N, 2): places of the pair's upper left: 8 along it, D + 8 across
    corner = distance + (torch.rand(len(labels), 2, generator=source, dtype=torch.float64) * room).long()
    red = corner + (-offset).clamp(min=0)
    return red, red + offset


def _texture(count: int, source: torch.Generator) -> tuple[Tensor, Tensor]:
    labels, images = _labels(count, source), _canvas(count, TEXTURE_SIZE, source)
    patterns = torch.tensor(PATTERNS, dtype=torch.bool)[labels]  # (N, 3, 3)
    cell = PATTERN_SIZE + 1  # copies lie on different cells of a grid that is shifted per image: they never touch
    cells = TEXTURE_SIZE // cell - 1
    places = torch.rand(count, cells * cells, generator=source).argsort(1)[:, :TEXTURE_COPIES]
    shift = torch.randint(0, cell, (count, 2), generator=source)
    index = torch.arange(count)
    for copy in range(TEXTURE_COPIES):
        top = (places[:, copy] // cells) * cell + shift[:, 0]
        left = (places[:, copy] % cells) * cell + shift[:, 1]
        for row in range(PATTERN_SIZE):
            for column in range(PATTERN_SIZE):
                lit = patterns[:, row, column]
                images[index[lit], :, top[lit] + row, left[lit] + column] = 230
    return images, labels
