"""Every image of `arrangement-D`, enumerated on its own: what its windows tell when their places are given up.

An image is a background of one colour (0), a red mark (1), a green mark (2) and, around it, what is outside (3).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable

import numpy as np

Placement = tuple[int, int, int, int]  # red column, red row, green column, green row
DIRECTIONS = {"right": (1, 0), "left": (-1, 0), "below": (0, 1), "above": (0, -1)}


def placements(distance: int, size: int, margin: int) -> dict[str, list[Placement]]:
    """Return all places of the two marks with at least `margin` pixels between each of them and every border."""
    free = range(margin, size - margin)
    return {
        name: [(x, y, x + dx * distance, y + dy * distance) for x in free for y in free
               if x + dx * distance in free and y + dy * distance in free]
        for name, (dx, dy) in DIRECTIONS.items()
    }


def windows(places: list[Placement], size: int, side: int) -> np.ndarray:
    """Return a number for the content of every `side` x `side` window that overlaps the image: (images, rows, columns).

    Equal windows have equal numbers; different ones do not (64 random bits). Entry (i, j) is the window whose upper
    left corner is at row i - (side - 1), column j - (side - 1) of the image; all else is outside.
    """
    around = side - 1
    codes = np.full((len(places), size + 2 * around, size + 2 * around), 3, dtype=np.uint64)
    codes[:, around:around + size, around:around + size] = 0
    index = np.arange(len(places))
    red_x, red_y, green_x, green_y = np.array(places).T + around
    codes[index, red_y, red_x] = 1
    codes[index, green_y, green_x] = 2
    weights = np.random.default_rng(0).integers(1, 1 << 63, (side, side), dtype=np.uint64)
    count = size + around
    found = np.zeros((len(places), count, count), dtype=np.uint64)
    for row in range(side):
        for column in range(side):
            found += weights[row, column] * codes[:, row:row + count, column:column + count]
    return found


def bags(numbers: np.ndarray, rows: slice, columns: slice) -> Counter[bytes]:
    """Return how often each multiset of the windows at these corners occurs among the images."""
    chosen = np.sort(numbers[:, rows, columns].reshape(len(numbers), -1), axis=1)
    return Counter(image.tobytes() for image in chosen)


def alike(found: Iterable[Counter[bytes]]) -> bool:
    """Tell whether all distributions are the same (as shares: classes may have different numbers of placements)."""
    first, *others = found
    return all(
        first.keys() == other.keys()
        and all(first[bag] * other.total() == other[bag] * first.total() for bag in first) for other in others
    )


def leaks(distance: int, size: int, margin: int, side: int, strides: Iterable[int]) -> list[tuple[int, int, int]]:
    """Return (stride, row offset, column offset) of every grid of windows whose multisets depend on the class."""
    numbers = {name: windows(each, size, side) for name, each in placements(distance, size, margin).items()}
    return [
        (stride, row, column) for stride in strides for row in range(stride) for column in range(stride)
        if not alike(bags(n, slice(row, None, stride), slice(column, None, stride)) for n in numbers.values())
    ]


def aligned(size: int, side: int, stride: int) -> slice:
    """Return the corners (as indices into `windows`) of the map of a chain of 3x3 convolutions and 2x2 poolings.

    Padding is half of what the convolutions add, so the first window begins (side - stride) / 2 in front of the image.
    """
    first = (side - 1) - (side - stride) // 2
    return slice(first, first + (size // stride - 1) * stride + 1, stride)


def leaks_at(distance: int, size: int, side: int, stride: int) -> bool:
    """Tell whether the multiset of windows of that map, with the marks `distance` or more inside, tells the class."""
    grid = aligned(size, side, stride)
    return not alike(
        bags(windows(each, size, side), grid, grid) for each in placements(distance, size, distance).values())


def always_seen(distance: int, size: int, side: int, stride: int) -> bool:
    """Tell whether some window of that map holds both marks, wherever they lie in whichever class."""
    corners = np.arange(-((side - stride) // 2), size - (side + stride) // 2 + 1, stride)
    assert len(corners) == size // stride

    def together(a: int, b: int) -> bool:
        return bool(((corners <= min(a, b)) & (max(a, b) < corners + side)).any())

    every = (place for each in placements(distance, size, distance).values() for place in each)
    return all(together(red_x, green_x) and together(red_y, green_y) for red_x, red_y, green_x, green_y in every)
