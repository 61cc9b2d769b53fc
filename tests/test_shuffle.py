"""The shuffle operators: permutations, their exact adjoint, what every option promises, and uniform statistics."""

import itertools
from types import SimpleNamespace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from spaceless.errors import SurgeryError
from spaceless.seeds import derive, generator
from spaceless.shuffle import (
    Shuffle,
    ShuffleConv,
    draw_permutations,
    permute_channels,
    permute_positions,
    seek,
    shuffles,
)

quick = settings(max_examples=40, deadline=None, derandomize=True, database=None)
seeds = st.integers(0, 2**40)
shapes = st.tuples(st.integers(1, 3), st.integers(1, 4), st.integers(1, 6), st.integers(1, 6))
ROWS = {  # what may stand in front of the positions of a permutation
    "per channel": lambda n, c: (c,), "shared": lambda n, c: (1,),
    "per image": lambda n, c: (n, c), "per image, shared": lambda n, c: (n, 1),
}


def places(shape):
    """Maps that hold the number of each position, so that a shuffled one shows its permutation."""
    n, c, h, w = shape
    return torch.arange(float(h * w)).view(1, 1, h, w).repeat(n, c, 1, 1)


def shown(shuffle, shape):
    """The permutations (N, C, HW) that the next pass of `shuffle` applies."""
    return shuffle(places(shape)).flatten(2).long()


def whole_numbers(*shape, seed=0, dtype=torch.float64):
    """Integers as floating point: sums of products are exact."""
    return torch.randint(-9, 10, shape, generator=generator(seed, "test")).to(dtype)


def some_permutation(rows, shape, seed=0):
    n, c, h, w = shape
    lead = ROWS[rows](n, c)
    return draw_permutations([(torch.Size(lead).numel(), seed)], h * w).view(*lead, h * w)


# Permutations


@quick
@given(rows=st.integers(1, 5), length=st.integers(1, 70), seed=seeds)
def test_every_row_is_a_permutation(rows, length, seed):
    drawn = draw_permutations([(rows, seed)], length)
    assert drawn.shape == (rows, length)
    assert drawn.dtype == torch.int64
    everything = torch.arange(length).expand(rows, length)
    assert torch.equal(drawn.sort(dim=1).values, everything)
    assert torch.equal(draw_permutations([(rows, seed)], length), drawn)


@pytest.mark.parametrize("length", [255, 256, 257, 4096, 50_176])
def test_lengths_around_a_power_of_two(length):
    assert torch.equal(draw_permutations([(2, 1)], length).sort(dim=1).values, torch.arange(length).expand(2, length))


def chi_squared(cells, expected):
    return float(((cells - expected).square() / expected).sum())


def test_all_24_permutations_of_four_are_equally_likely():
    drawn = draw_permutations([(24_000, 5)], 4)
    kinds = {each: number for number, each in enumerate(itertools.permutations(range(4)))}
    cells = torch.bincount(torch.tensor([kinds[tuple(row)] for row in drawn.tolist()]), minlength=24).double()
    assert chi_squared(cells, 1000.0) < 55  # 23 degrees of freedom: exceeded once in 5,000 times


def test_two_rows_of_one_draw_are_independent():
    drawn = draw_permutations([(20_000, 6)], 5).view(10_000, 2, 5)
    for place in range(5):
        cells = torch.bincount(drawn[:, 0, place] * 5 + drawn[:, 1, place], minlength=25).double()
        assert chi_squared(cells, 400.0) < 57  # 24 degrees of freedom


def test_the_passes_of_a_module_are_uniform_and_independent():
    module = Shuffle(seed=1)
    drawn = torch.stack([shown(module, (1, 2, 2, 3))[0] for _ in range(3000)])  # (pass, channel, position)
    for position in range(6):
        cells = torch.bincount(drawn[:, 0, position], minlength=6).double()
        assert chi_squared(cells, 500.0) < 24  # 5 degrees of freedom: once in 5,000 times
    following = torch.bincount(drawn[:-1, 1, 0] * 6 + drawn[1:, 1, 0], minlength=36).double()
    assert chi_squared(following, 2999 / 36) < 74  # 35 degrees of freedom


# The gather and its gradient


@pytest.mark.parametrize("rows", ROWS)
@quick
@given(shape=shapes, seed=seeds)
def test_the_gather_and_its_adjoint_are_exact(rows, shape, seed):
    permutation = some_permutation(rows, shape, seed)
    x, y = whole_numbers(*shape, seed=1).requires_grad_(), whole_numbers(*shape, seed=2)
    moved = permute_positions(x, permutation)
    index = permutation.expand(*shape[:2], -1)
    assert torch.equal(moved.flatten(2), x.flatten(2).gather(2, index))
    (routed,) = torch.autograd.grad(moved, x, y)
    assert (moved * y).sum() == (x * routed).sum()  # <P x, y> == <x, P^T y>, in whole numbers
    assert torch.equal(routed.flatten(2), y.flatten(2).gather(2, permutation.argsort(-1).expand(*shape[:2], -1)))


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last], ids=["contiguous", "channels_last"])
@pytest.mark.parametrize("rows", ROWS)
def test_first_and_second_derivative(rows, layout):
    shape = (2, 3, 2, 3)
    permutation = some_permutation(rows, shape, 4)
    x = torch.rand(shape, dtype=torch.float64, generator=generator(0, "test")).contiguous(memory_format=layout)
    x.requires_grad_()

    def cubed(x):
        return permute_positions(x, permutation) ** 3  # a linear map alone has no second derivative to check

    assert torch.autograd.gradcheck(cubed, (x,))
    assert torch.autograd.gradgradcheck(cubed, (x,))
    assert torch.autograd.gradcheck(lambda x: permute_channels(x, torch.tensor([2, 0, 1])) ** 3, (x,))


@pytest.mark.parametrize("module", [Shuffle(), Shuffle(channels=True), Shuffle(patch=2)], ids=repr)
def test_the_backward_pass_moves_once_and_adds_nothing_up(module):
    x = torch.ones(2, 3, 4, 4, requires_grad=True)
    moved = module(x)
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        moved.backward(torch.ones_like(moved))
    calls = {event.key: event.count for event in profile.key_averages()}
    assert calls["aten::scatter_"] == 1
    assert not {name for name in calls if any(word in name for word in ("scatter_add", "index_add", "index_put"))}


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last], ids=["NCHW", "NHWC"])
@pytest.mark.parametrize("rows", ROWS)
@pytest.mark.parametrize("passes", [1, 3])
def test_parts_of_a_batch_are_moved_as_a_gather_along_the_positions_moves_each(layout, rows, passes):
    part = (2, 3, 4, 5)
    x = whole_numbers(passes * part[0], *part[1:]).to(memory_format=layout)
    drawn = [some_permutation(rows, part, seed) for seed in range(passes)]
    by_gather = [each.flatten(2).gather(2, order.expand(*part[:2], -1)).view(part)
                 for each, order in zip(x.chunk(passes), drawn, strict=True)]
    together = torch.cat([each if each.dim() == 3 else each[None] for each in drawn])
    assert torch.equal(permute_positions(x, together), torch.cat(by_gather))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16], ids=str)
def test_types_are_kept_and_values_only_moved(dtype):
    x = whole_numbers(2, 3, 4, 5, dtype=dtype).requires_grad_()
    permutation = some_permutation("per channel", x.shape)
    moved = permute_positions(x, permutation)
    moved.sum().backward()
    assert moved.dtype == x.grad.dtype == dtype
    assert torch.equal(moved.double(), permute_positions(x.double(), permutation))


@pytest.mark.parametrize("rows", ROWS)
def test_channels_last_stays_channels_last_both_ways(rows):
    x = whole_numbers(2, 3, 4, 5).contiguous(memory_format=torch.channels_last).requires_grad_()
    permutation = some_permutation(rows, x.shape)
    moved = permute_positions(x, permutation)
    (routed,) = torch.autograd.grad(moved, x, moved.detach())
    assert moved.is_contiguous(memory_format=torch.channels_last)
    assert routed.is_contiguous(memory_format=torch.channels_last)
    assert torch.equal(moved, permute_positions(x.detach().contiguous(), permutation))
    assert torch.equal(routed, x)  # there and back again
    assert permute_positions(x.detach().contiguous(), permutation).is_contiguous()


@pytest.mark.parametrize(
    "view",
    [lambda x: x[:, 1:], lambda x: x[:, :, ::2, 1:], lambda x: x.mT, lambda x: x[:1].expand(3, -1, -1, -1)],
    ids=["channels", "strided", "transposed", "expanded"],
)
def test_views_are_read_as_they_are(view):
    x = view(whole_numbers(2, 4, 6, 5))
    permutation = some_permutation("per channel", x.shape)
    assert torch.equal(permute_positions(x, permutation), permute_positions(x.contiguous(), permutation))


@quick
@given(shape=shapes, seed=seeds)
def test_channels_move_as_wholes(shape, seed):
    x = whole_numbers(*shape).requires_grad_()
    order = draw_permutations([(1, seed)], shape[1])[0]
    moved = permute_channels(x, order)
    assert torch.equal(moved, x[:, order])
    y = whole_numbers(*shape, seed=3)
    (routed,) = torch.autograd.grad(moved, x, y)
    assert torch.equal(routed, y[:, order.argsort()])


# The module


@quick
@given(shape=shapes, seed=seeds)
def test_images_of_a_batch_agree_and_values_are_only_moved(shape, seed):
    n, c, h, w = shape
    drawn = shown(Shuffle(seed=seed), shape)
    assert torch.equal(drawn.sort(dim=2).values, torch.arange(h * w).expand(n, c, h * w))
    assert torch.equal(drawn, drawn[:1].expand_as(drawn))


BIG = (3, 4, 5, 5)  # 25! permutations: two that agree by chance would be a wonder


def distinct(drawn):
    """How many different permutations (N, C, HW) holds."""
    return len({tuple(row) for row in drawn.flatten(0, 1).tolist()})


@pytest.mark.parametrize(
    ("options", "kinds", "fresh"),
    [
        ({}, 4, True), ({"shared": True}, 1, True), ({"per_image": True}, 12, True),
        ({"per_image": True, "shared": True}, 3, True), ({"fixed": True}, 4, False),
        ({"fixed": True, "shared": True}, 1, False), ({"patch": 5}, 1, False),
    ],
    ids=str,
)
def test_how_many_permutations_a_pass_uses_and_whether_the_next_differs(options, kinds, fresh):
    module = Shuffle(seed=3, **options)
    first, second = shown(module, BIG), shown(module, BIG)
    assert distinct(first) == distinct(second) == kinds
    assert (distinct(torch.cat([first, second])) == 2 * kinds) is fresh
    module.eval()
    tested = shown(module, BIG)
    assert (distinct(torch.cat([first, tested])) == 2 * kinds) is fresh  # fixed: the same in evaluation, too


@pytest.mark.parametrize("other", [{"seed": 4}, {"layer": 1}], ids=str)
def test_seeds_and_layers_differ(other):
    assert distinct(torch.cat([shown(Shuffle(**{"seed": 3} | other), BIG), shown(Shuffle(seed=3), BIG)])) == 8


def test_it_depends_on_nothing_but_seed_mode_layer_and_pass():
    torch.manual_seed(0)
    state = torch.get_rng_state()
    first = shown(Shuffle(seed=3, layer=2), BIG)
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(1)
    other = Shuffle(seed=3, layer=2).eval()
    other(places(BIG))  # passes of evaluation do not move those of training
    assert torch.equal(shown(other.train(), BIG), first)
    assert torch.equal(first[0], draw_permutations([(4, derive(3, "shuffle/train/2", 0))], 25))


@pytest.mark.parametrize("mode", ["train", "eval"])
def test_seek_gives_any_pass_again(mode):
    model = nn.Sequential(Shuffle(seed=1), nn.Sequential(Shuffle(seed=1, layer=1))).train(mode == "train")
    passes = [model(places(BIG)) for _ in range(4)]
    assert [module.layer for module in shuffles(model)] == [0, 1]
    seek(model, 2, mode)
    assert torch.equal(model(places(BIG)), passes[2])
    assert torch.equal(model(places(BIG)), passes[3])
    seek(model, 0, "train" if mode == "eval" else "eval")
    assert not torch.equal(model(places(BIG)), passes[0])  # the other mode's counter
    assert not model.state_dict()


@pytest.mark.parametrize(("side", "patch"), [((4, 6), 2), ((6, 6), 3), ((6, 3), 3), ((5, 4), 1)], ids=str)
def test_patches_move_as_wholes(side, patch):
    drawn = shown(Shuffle(seed=1, patch=patch), (2, 3, *side)).view(2, 3, *side)

    def cut(maps):  # (..., patches, patch, patch)
        return maps.unfold(-2, patch, patch).unfold(-2, patch, patch).flatten(-4, -3)

    wanted = cut(torch.arange(side[0] * side[1]).view(side))
    found = cut(drawn)
    assert torch.equal(found.flatten(-2).sort(dim=2).values[..., 0], wanted[:, 0, 0].expand(2, 3, -1))
    order = found[..., 0, 0, None, None] - wanted[0, 0, 0]
    assert torch.equal(found, wanted[0] + order)  # inside, every patch is as it was
    if len(wanted) > 4:
        assert distinct(drawn[:1].flatten(2)) == 3


@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_a_map_that_patches_do_not_divide_is_refused(device):
    with pytest.raises(SurgeryError, match=r"patch: found 2 on a map of 4x3, expected .*; choose a smaller") as caught:
        Shuffle(patch=2)(torch.ones(1, 1, 4, 3, device=device))
    assert caught.value.exit_status == 2


def test_channel_shuffle_is_one_order_for_all_images_and_positions():
    module = Shuffle(seed=2, channels=True)
    x = torch.arange(30.0).view(1, 30, 1, 1).repeat(3, 1, 2, 2)
    first, second = module(x), module(x)
    assert torch.equal(first, first[:1, :, :1, :1].expand_as(first))
    assert torch.equal(first[0, :, 0, 0].sort().values, torch.arange(30.0))
    assert not torch.equal(first, second)


@pytest.mark.parametrize("options", [{}, {"per_image": True}, {"channels": True}, {"patch": 2}], ids=str)
def test_on_the_meta_device_there_are_shapes_only(options):
    found = Shuffle(**options)(torch.empty(2, 3, 4, 6, device="meta"))
    assert found.shape == (2, 3, 4, 6)
    assert found.device.type == "meta"


def test_shuffle_conv_is_the_convolution_of_the_permuted_maps():
    conv = nn.Conv2d(3, 5, 3, stride=2, padding=1)
    x = torch.rand(2, 3, 6, 6, generator=generator(0, "test"))
    permutation = draw_permutations([(3, derive(8, "shuffle/train/1", 0))], 36)
    by_hand = x.flatten(2)[:, torch.arange(3)[:, None], permutation].view_as(x)
    assert torch.equal(ShuffleConv(Shuffle(8, 1), conv)(x), conv(by_hand))


def test_the_repr_shows_what_differs_from_the_paper():
    assert repr(Shuffle(2, 7)) == "Shuffle(seed=2, layer=7)"
    assert repr(Shuffle(2, 7, shared=True, patch=2)) == "Shuffle(seed=2, layer=7, shared, patch=2)"


class _DrawnError(Exception):
    """The device on which a permutation was to be drawn."""


@pytest.mark.parametrize(("options", "device"), [({}, "cuda:0"), ({"fixed": True}, "cpu")], ids=["redrawn", "fixed"])
def test_a_fixed_permutation_is_drawn_on_the_cpu_wherever_the_maps_are(options, device, monkeypatch):
    def draw(_wanted, _length, device):
        raise _DrawnError(str(device))

    monkeypatch.setattr("spaceless.shuffle.draw_permutations", draw)
    maps = SimpleNamespace(
        shape=torch.Size((1, 3, 2, 2)), device=torch.device("cuda:0"), is_contiguous=lambda **_: True)
    with pytest.raises(_DrawnError, match=f"^{device}$"):
        Shuffle(**options).next_permutation(maps)
