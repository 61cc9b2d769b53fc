"""The shuffle operators: random permutations, the gather that applies one with its exact gradient, and the modules.

Shuffle Conv is section 3.1 of the paper: every feature map is flattened and permuted by a permutation of its own, the
same for all images of a batch, redrawn in every forward pass. Channel shuffle is appendix A.6.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from spaceless.errors import SurgeryError
from spaceless.seeds import derive


def draw_permutations(
    wanted: Sequence[tuple[int, int]], length: int, device: torch.device | str = "cpu",
) -> Tensor:
    """Return independent uniform permutations of range(`length`), int64 (rows, length), of several draws together.

    Each row sorts random keys whose low bits hold the index: one sort of plain integers instead of an argsort.
    At least 63 - log2(length) bits of every key are random, so ties that would favour low indices are negligible.

    Args:
        wanted: Rows and seed of each draw; what is drawn does not depend on the others.
        length: Positions.
        device: Where they are drawn; another kind of device draws other ones.

    """
    bits = max(1, (length - 1).bit_length())
    source = torch.Generator(device)
    keys = torch.empty(sum(rows for rows, _ in wanted), length, dtype=torch.int64, device=device)
    for part, (_, seed) in zip(torch.split(keys, [rows for rows, _ in wanted]), wanted, strict=True):
        part.random_(generator=source.manual_seed(seed))
    if keys.device.type == "cpu":  # NumPy's integer sort is vectorised and returns no indices
        array = keys.numpy()
        array <<= bits
        array |= np.arange(length)
        array.sort(axis=1)
        array &= (1 << bits) - 1
        return keys
    keys = keys.bitwise_left_shift_(bits).bitwise_or_(torch.arange(length, device=device))
    return keys.sort(dim=1).values.bitwise_and_((1 << bits) - 1)


LONGEST = 1024  # positions of a map that the kernel for a GPU permutes: a program holds all of them at once


class _Gather(torch.autograd.Function):
    """Row by row, take the number at each place; what was taken from a place goes back there as its gradient."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, places: Tensor, layout: torch.memory_format) -> Tensor:
        ctx.save_for_backward(places)
        ctx.layout = layout
        return _taken(x, places, layout)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        (places,) = ctx.saved_tensors
        put = _Scatter.apply if torch.is_grad_enabled() else _put
        return put(gradients[0], places, ctx.layout), None, None


class _Scatter(torch.autograd.Function):
    """Row by row, put each number at its place: the inverse of `_Gather`, and therefore its adjoint."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, places: Tensor, layout: torch.memory_format) -> Tensor:
        ctx.save_for_backward(places)
        ctx.layout = layout
        return _put(x, places, layout)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        return _Gather.apply(gradients[0], *ctx.saved_tensors, ctx.layout), None, None


def _taken(x: Tensor, places: Tensor, layout: torch.memory_format) -> Tensor:
    x = x.contiguous(memory_format=layout)
    rows = _rows(x, len(places))
    return rows.gather(2, places.expand_as(rows)).view(x.dtype).as_strided(x.shape, x.stride())


def _put(x: Tensor, places: Tensor, layout: torch.memory_format) -> Tensor:
    x = x.contiguous(memory_format=layout)
    rows = _rows(x, len(places))
    if x.element_size() == 2 and x.device.type == "cpu":
        moved = torch.empty_like(x)
        _rows(moved, len(places)).scatter_(2, places.expand_as(rows), rows)
        return moved
    # Wider numbers, and all of them on a GPU, are read from random places faster than they are written to such.
    order = torch.arange(rows.shape[2], device=x.device).expand_as(places)
    inverse = torch.empty_like(places).scatter_(2, places, order)
    return rows.gather(2, inverse.expand_as(rows)).view(x.dtype).as_strided(x.shape, x.stride())


def _rows(x: Tensor, passes: int) -> Tensor:
    """Return x (N, C, H, W), dense in memory, as rows, one per image: (passes, N / passes, C * H * W)."""
    if x.element_size() == 2:  # on a CPU, PyTorch gathers floating numbers of 16 bits by way of 32
        x = x.view(torch.int16)
    images, row = len(x) // passes, x.shape[1] * x.shape[2] * x.shape[3]
    return x.as_strided((passes, images, row), (images * row, row, 1))


def permute_positions(x: Tensor, permutation: Tensor) -> Tensor:
    """Permute the h*w positions of every feature map; the gradient is routed back through the inverse permutation.

    An image is a row of numbers in memory, and the images of a pass are permuted alike: a gather along those rows, by
    one row of places for all of them, is twice as fast on a CPU as one along the positions.

    Args:
        x: (N, C, H, W), any floating type, contiguous or channels_last; the memory format is kept.
        permutation: int64, (C, H*W), (1, H*W) for one that all channels share, or (T, C, H*W) or (T, 1, H*W) with one
            for each of T equal parts of the batch: T = N is one per image. Output position p of a map takes the value
            at `permutation[..., p]`.

    """
    if permutation.dim() == 2:
        permutation = permutation[None]
    return permute_numbers(x, Places(places_of(permutation, x.shape[1], layout_of(x)), layout_of(x)))


class Places(NamedTuple):
    """Where in an image's row of numbers in memory each of them is taken from, and the memory format of the images.

    `row` is int64, (T, 1, C * H * W), one for each of T equal parts of the batch.
    """

    row: Tensor
    layout: torch.memory_format


def layout_of(x: Tensor) -> torch.memory_format:
    """Return the memory format of x (N, C, H, W): channels_last, or contiguous for all others."""
    last = x.is_contiguous(memory_format=torch.channels_last) and not x.is_contiguous()
    return torch.channels_last if last else torch.contiguous_format


def places_of(permutation: Tensor, channels: int, layout: torch.memory_format) -> Tensor:
    """Return the rows of `Places`, (T, 1, C * H * W), of permutations of positions (T, C, H*W) or (T, 1, H*W)."""
    channel = torch.arange(channels, device=permutation.device)[:, None]
    if layout == torch.channels_last:
        places = torch.add(channel, permutation, alpha=channels).transpose(1, 2)  # (T, HW, C)
    else:
        places = torch.add(permutation, channel, alpha=permutation.shape[2])  # (T, C, HW)
    return places.reshape(len(permutation), 1, -1)


def permute_numbers(x: Tensor, places: Places) -> Tensor:
    """Return x (N, C, H, W), every number taken from the place in its image that `places` names; see there."""
    return _Gather.apply(x, *places)  # type: ignore[no-any-return]


def permute_channels(x: Tensor, permutation: Tensor) -> Tensor:
    """Reorder the channels of x (N, C, H, W) by `permutation` (C,); the gradient goes through its inverse."""
    as_positions = x.flatten(2).transpose(1, 2)[..., None]  # (N, HW, C, 1): the channels become the positions
    return permute_positions(as_positions, permutation[None])[..., 0].transpose(1, 2).reshape(x.shape)


def _not_compiled(function: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """Mark a function that torch.compile calls as it is; `torch.compiler.disable` would import the compiler for it."""
    function._torchdynamo_disable = True  # type: ignore[attr-defined]
    return function


class Shuffle(nn.Module):
    """A random permutation in front of a convolution, redrawn in every forward pass, in training and in evaluation.

    The permutation depends on nothing but (seed, mode, layer, pass) and the kind of device, where mode is training or
    evaluation, so the two draw from different seeds and no generator state needs saving: `seek` goes to any pass.

    Args:
        seed: The trial's seed.
        layer: A number that tells this module from the others of its network.
        channels: Permute the channels (appendix A.6) instead of the positions.
        per_image: Draw a permutation for every image of the batch.
        shared: Use one permutation for all channels.
        fixed: Keep one permutation, in training and in evaluation alike, and on every device.
        patch: Move patches of `patch` x `patch` positions as a whole.

    """

    def __init__(
        self, seed: int = 0, layer: int = 0, *, channels: bool = False, per_image: bool = False,
        shared: bool = False, fixed: bool = False, patch: int = 1,
    ) -> None:
        """Remember the options; nothing is drawn before the first pass."""
        super().__init__()
        self.seed, self.layer = seed, layer
        self.channels, self.per_image, self.shared, self.fixed, self.patch = channels, per_image, shared, fixed, patch
        self.passes = {"train": 0, "eval": 0}
        self.together = 1  # how many passes one batch holds, one behind the other; see `several`
        self.shape, self.device = torch.Size((0, 0, 0, 0)), torch.device("cpu")  # of the maps of the last pass
        self.layout = torch.contiguous_format  # as well
        # What every pass takes in place of a permutation of its own: one, or places, or a GPU kernel's, see `kernels`.
        self.given: Tensor | Places | tuple[Tensor, Tensor] | None = None

    def forward(self, x: Tensor) -> Tensor:
        """Return x (N, C, H, W) with its positions (or channels) permuted."""
        if isinstance(self.given, Places):
            return permute_numbers(x, self.given)
        if isinstance(self.given, tuple):
            from spaceless import kernels

            return kernels.permute(x, self.given)
        if self.channels:
            return torch.cat([permute_channels(part, self.next_permutation(part)[0])
                              for part in x.chunk(self.together)])
        if self.together == 1:
            return permute_positions(x, self.next_permutation(x))
        drawn = [self.next_permutation(part) for part in x.chunk(self.together)]
        return permute_positions(x, torch.cat([each if each.dim() == 3 else each[None] for each in drawn]))

    @_not_compiled
    def next_permutation(self, x: Tensor) -> Tensor:
        """Return the permutation of this pass for x (N, C, H, W), and count the pass."""
        mode = "train" if self.training else "eval"
        step = self.passes[mode]
        self.passes[mode] += 1
        self.shape, self.device, self.layout = x.shape, x.device, layout_of(x)
        if isinstance(self.given, Tensor):
            return self.given
        _, c, h, w = x.shape
        if h % self.patch or w % self.patch:
            raise SurgeryError(
                "shuffle patch", found=f"{self.patch} on a map of {h}x{w}", expected="a divisor of both sides",
                cure="choose a smaller patch or shuffle fewer units",
            )
        if x.device.type == "meta":  # shapes only: any permutation will do
            return torch.empty((1, c) if self.channels else (c, h * w), dtype=torch.int64, device="meta")
        return self.arranged(draw_permutations([self.wanted(mode, step)], self.length, self.source).to(x.device))

    @property
    def source(self) -> torch.device:
        """Where it draws: on the device of its maps, but a fixed one on the CPU, to be the same on every device."""
        return torch.device("cpu") if self.fixed else self.device

    @property
    def plain(self) -> bool:
        """Whether each channel of a batch has one permutation of its own positions."""
        return not (self.channels or self.per_image or self.shared or self.patch > 1)

    @property
    def length(self) -> int:
        """How many things a permutation of the last pass moved: channels, patches or positions."""
        return self.shape[1] if self.channels else self.shape[2] * self.shape[3] // self.patch**2

    def wanted(self, mode: str, step: int) -> tuple[int, int]:
        """Return how many permutations a pass of the last pass's size draws, and the seed of pass `step` in `mode`."""
        purpose, step = ("fixed", 0) if self.fixed else (mode, step)
        n, c = self.shape[:2]
        rows = 1 if self.channels else (n if self.per_image else 1) * (1 if self.shared else c)
        return rows, derive(self.seed, f"shuffle/{purpose}/{self.layer}", step)

    def arranged(self, drawn: Tensor) -> Tensor:
        """Return permutations of positions, as `permute_positions` takes them, of drawn ones (rows, length)."""
        n, _, h, w = self.shape
        if self.channels:
            return drawn
        if self.patch > 1:
            p = self.patch
            grid = torch.arange(h * w, device=drawn.device).view(h // p, p, w // p, p).transpose(1, 2)
            source = grid.reshape(-1, p * p)[drawn].view(-1, h // p, w // p, p, p)  # where each patch's pixels are from
            drawn = source.transpose(2, 3).reshape(-1, h * w)
        return drawn.view(n, -1, h * w) if self.per_image else drawn

    def extra_repr(self) -> str:
        """Show what differs from the paper's shuffle."""
        names = ("channels", "per_image", "shared", "fixed")
        set_ = [name for name in names if getattr(self, name)] + ([f"patch={self.patch}"] if self.patch > 1 else [])
        return ", ".join([f"seed={self.seed}", f"layer={self.layer}", *set_])


class ShuffleConv(nn.Module):
    """A convolution, or pooling, as it was, behind a `Shuffle` of its input (section 3.1)."""

    def __init__(self, shuffle: Shuffle, conv: nn.Module) -> None:
        """Join the two; `conv` keeps its stride, padding and weights."""
        super().__init__()
        self.shuffle, self.conv = shuffle, conv

    def forward(self, x: Tensor) -> Tensor:
        """Return conv(shuffle(x)) for x (N, C, H, W)."""
        return self.conv(self.shuffle(x))  # type: ignore[no-any-return]


def shuffles(model: nn.Module) -> Iterator[Shuffle]:
    """Yield the shuffle modules of `model`."""
    return (module for module in model.modules() if isinstance(module, Shuffle))


@contextmanager
def several(model: nn.Module, passes: int) -> Iterator[None]:
    """Within this context a batch holds the images of `passes` passes, each shuffled by the permutations of its own.

    The images of the first pass come first; all are drawn as if the passes had been made one after the other.
    """
    for module in shuffles(model):
        module.together = passes
    try:
        yield
    finally:
        for module in shuffles(model):
            module.together = 1


def seek(model: nn.Module, step: int, mode: str = "train") -> None:
    """Make the next forward pass of `model` in `mode` ("train" or "eval") the one with number `step`."""
    for module in shuffles(model):
        module.passes[mode] = step
