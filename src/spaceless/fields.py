"""A tensor in which height and width lie somewhere: where, and what its positions read, through reshapes and slices."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from spaceless.reach import Reach, Reading, union, window


@dataclass(frozen=True)
class Field:
    """What the positions of a tensor read.

    Attributes:
        reach: Of rows and columns.
        sides: Height and width of the map, in positions.
        dims: The dimensions of the tensor that hold height and width. Both are the same one where the positions lie in
            a row (tokens); () where each entry reads from all positions of the map (flattened features).

    """

    reach: tuple[Reach, Reach]
    sides: tuple[int, int]
    dims: tuple[int, ...]

    def through(self, readings: tuple[Reading, Reading], sides: Sequence[int]) -> Field:
        """Return the field behind an operation that makes a map of (height, width) `sides`."""
        reach = self.reach[0].through(readings[0]), self.reach[1].through(readings[1])
        return Field(reach, (sides[0], sides[1]), self.dims)

    def is_map(self, dimensions: int) -> bool:
        """Tell whether height and width are the last two of `dimensions`."""
        return self.dims == (dimensions - 2, dimensions - 1)

    def all_positions(self) -> Field:
        """Return the field of entries that read from every position of the map."""
        rows, columns = (window(side) for side in self.sides)
        return replace(self.through((rows, columns), (1, 1)), dims=())


def joined(fields: Sequence[Field]) -> Field | None:
    """Return the field of what is computed from several tensors entry by entry; None where they do not lie alike.

    A map of one position is read by all positions of the others.
    """
    found = max(fields, key=lambda field: field.sides)
    if any(field.dims != found.dims or field.sides not in (found.sides, (1, 1)) for field in fields):
        return None
    spread = [_spread(field, found.sides) for field in fields]
    rows, columns = (union([reaches[side] for reaches in spread], found.sides[side]) for side in (0, 1))
    return replace(found, reach=(rows, columns))


def _spread(field: Field, sides: tuple[int, int]) -> tuple[Reach, Reach]:
    if field.sides == sides:
        return field.reach
    one = Reading(lambda _: [0], 1, 0)
    return field.reach[0].through(one), field.reach[1].through(one)


def permuted(field: Field, order: Sequence[int]) -> Field:
    """Return the field behind `permute(order)`."""
    order = [place % len(order) for place in order]
    return replace(field, dims=tuple(order.index(dim) for dim in field.dims))


def reshaped(field: Field, before: Sequence[int], after: Sequence[int]) -> Field | None:
    """Return the field behind a reshape of `before` to `after`, None where positions and channels get mixed.

    Known are: other dimensions split or merged; positions put in a row and back; everything put in one row; and a side
    split in blocks (space to depth), whose entries count as reading the whole block.
    """
    if not field.dims:
        return field
    height, width = field.sides
    inner = math.prod(before[field.dims[1] + 1:])  # entries from one column to the next
    outer = inner * width if field.dims[0] == field.dims[1] else math.prod(before[field.dims[0] + 1:])
    steps = [math.prod(after[place + 1:]) for place in range(len(after))]
    columns = [j for j, size in enumerate(after) if (size, steps[j]) == (width, inner)]
    rows = [i for i, size in enumerate(after) if (size, steps[i]) == (height, outer)]
    for j in reversed(columns):
        for i in (i for i in reversed(rows) if i != j):
            return replace(field, dims=(i, j))
    for j, size in enumerate(after):
        if (size, steps[j], outer) == (height * width, inner, inner * width):
            return replace(field, dims=(j, j))
        if steps[j] <= inner and size * steps[j] >= outer * height:
            return field.all_positions()
    return _blocks(field, (outer, inner), after, steps)


def _blocks(field: Field, entries: tuple[int, int], after: Sequence[int], steps: list[int]) -> Field | None:
    found = []
    for side, step in zip(field.sides, entries, strict=True):
        whole = [(i, side // n) for i, n in enumerate(after) if n and side % n == 0 and steps[i] == step * (side // n)]
        if not whole:
            return None
        found.append(whole[-1])
    (i, tall), (j, wide) = found
    sides = field.sides[0] // tall, field.sides[1] // wide
    return replace(field.through((window(tall, tall), window(wide, wide)), sides), dims=(i, j))


def without(field: Field, gone: Sequence[int], dimensions: int) -> Field:
    """Return the field behind an operation that takes the dimensions `gone`, none of height and width, away."""
    places = [dim % dimensions for dim in gone]
    return replace(field, dims=tuple(dim - sum(place < dim for place in places) for dim in field.dims))


def indexed(field: Field, index: Any, before: Sequence[int], after: Sequence[int]) -> Field | None:
    """Return the field behind `tensor[index]`; None for what is not a slice with known, positive steps."""
    parts = list(index) if isinstance(index, tuple | list) else [index]
    if any(part is Ellipsis for part in parts):
        at = next(i for i, part in enumerate(parts) if part is Ellipsis)
        named = sum(part is not None and part is not Ellipsis for part in parts)
        parts[at:at + 1] = [slice(None)] * (len(before) - named)
    dims: dict[int, int] = {}
    slices: dict[int, slice] = {}
    old = new = 0
    for part in [*parts, *[slice(None)] * len(before)]:
        if part is None:
            new += 1
        elif old < len(before):
            if isinstance(part, slice):
                dims[old], slices[old] = new, part
                new += 1
            elif not isinstance(part, int):
                return None
            old += 1
    if any(dim not in dims for dim in field.dims) or (field.dims and field.dims[0] == field.dims[-1]):
        return None
    readings = []
    for dim in field.dims:
        start, step = slices[dim].start or 0, slices[dim].step or 1
        if not isinstance(start, int) or not isinstance(step, int):
            return None
        readings.append(window(1, step, -(start + before[dim] if start < 0 else start)))
    if not readings:
        return field
    places = tuple(dims[dim] for dim in field.dims)
    return replace(field.through((readings[0], readings[1]), [after[place] for place in places]), dims=places)

