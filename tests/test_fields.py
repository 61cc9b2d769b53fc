"""Where height and width lie: reshapes, permutations and slices, against what PyTorch does with numbered positions."""

import pytest
import torch

from spaceless.fields import Field, indexed, joined, permuted, reshaped, without
from spaceless.reach import Reach, window

MAP = Field((Reach(), Reach()), (4, 6), (2, 3))
SHAPE = (2, 8, 4, 6)


def test_known_reshapes():
    assert reshaped(MAP, SHAPE, (2, 2, 4, 4, 6)).dims == (3, 4)  # channels in groups
    tokens = reshaped(MAP, SHAPE, (2, 8, 24))
    assert tokens.dims == (2, 2)
    assert reshaped(permuted(tokens, [0, 2, 1]), (2, 24, 8), (2, 4, 6, 8)).dims == (1, 2)
    last = permuted(MAP, [0, 2, 3, 1])
    assert last.dims == (1, 2)
    assert reshaped(last, (2, 4, 6, 8), (2, 24, 8)).dims == (1, 1)


def test_a_flattened_map_reads_all_of_it():
    flat = reshaped(MAP, SHAPE, (2, 192))
    assert (flat.dims, [reach.at(0) for reach in flat.reach]) == ((), [(0, 3), (0, 5)])
    assert reshaped(flat, (2, 192), (2, 1, 192)) == flat


def test_space_to_depth():
    blocks = reshaped(MAP, SHAPE, (2, 8, 2, 2, 3, 2))
    assert (blocks.dims, blocks.sides) == ((2, 4), (2, 3))
    assert [reach.at(1) for reach in blocks.reach] == [(2, 3), (2, 3)]
    moved = permuted(blocks, [0, 3, 5, 1, 2, 4])
    assert reshaped(moved, (2, 2, 2, 8, 2, 3), (2, 32, 2, 3)).dims == (2, 3)


@pytest.mark.parametrize("after", [(2, 4, 2, 24), (2, 4, 8, 6), (48, 8), (384,), (2, 8, 6, 4)])
def test_positions_mixed_with_anything_else_are_not_known(after):
    found = reshaped(MAP, SHAPE, after)
    assert found is None or found.dims in ((), (3, 3))
    assert (found is None) == (after in [(2, 4, 8, 6), (48, 8), (2, 8, 6, 4)])


SLICES = [
    (slice(None), slice(None), slice(None, None, 2), slice(1, None, 3)), (slice(None), slice(2, 4)),
    (Ellipsis, slice(2, None)), (slice(None), None), (slice(None), 3), (slice(None), slice(None), slice(-3, None)),
    (0,), (slice(None), slice(None), None, slice(1, 3)),
]


@pytest.mark.parametrize("index", SLICES, ids=str)
def test_slices_as_pytorch_takes_them(index):
    rows = torch.arange(4).view(1, 1, 4, 1).expand(SHAPE)
    columns = torch.arange(6).view(1, 1, 1, 6).expand(SHAPE)
    taken = rows[index], columns[index]
    found = indexed(MAP, index, SHAPE, taken[0].shape)
    for reach, dim, values in zip(found.reach, found.dims, taken, strict=True):
        first = values.movedim(dim, 0).reshape(values.shape[dim], -1)[:, 0]
        assert [reach.at(i) for i in range(len(first))] == [(int(v), int(v)) for v in first]


@pytest.mark.parametrize("index", [(slice(None), slice(None), 1), (torch.tensor([1]),)], ids=["row", "tensor"])
def test_what_is_no_slice_is_not_known(index):
    assert indexed(MAP, index, SHAPE, (2, 8, 6)) is None


def test_dimensions_that_go_move_the_others():
    assert without(MAP, [1], 4).dims == (1, 2)
    assert without(MAP, [-4, 1], 4).dims == (0, 1)


def test_maps_that_do_not_lie_alike_are_not_joined():
    assert joined([MAP, permuted(MAP, [0, 2, 3, 1])]) is None
    assert joined([MAP, Field(MAP.reach, (4, 1), (2, 3))]) is None
    one = Field((Reach((-3,), (3,)), Reach((-5,), (2,))), (1, 1), (2, 3))
    both = joined([MAP.through((window(1), window(1)), (4, 6)), one])
    assert [reach.at(i) for reach in both.reach for i in (0, 2)] == [(-3, 3), (-3, 3), (-5, 2), (-5, 2)]
