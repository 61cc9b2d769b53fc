"""Convolutions on maps of a few positions, computed as the matrix products that they are.

A convolution kernel prepares for sliding over a map that has nowhere to slide to. On a CPU a 1x1 convolution of 2x2
positions takes several times as long as the same product by `linear`, and of a 3x3 kernel on 2x2 positions 20 of 36
taps lie in the padding. The weights, their names and, up to rounding, the results stay the same.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.nn import functional

_FEW = 16  # positions; with more of them the kernels of PyTorch's convolution are as fast


class _PointwiseConv2d(nn.Conv2d):
    """A 1x1 convolution with stride 1."""

    def forward(self, x: Tensor) -> Tensor:
        positions = x.shape[2] * x.shape[3]
        if positions == 1 or (positions <= _FEW and torch.is_autocast_enabled(x.device.type)):
            # In channels_last this is a view, both ways.
            return functional.linear(x.permute(0, 2, 3, 1), self.weight.flatten(1), self.bias).permute(0, 3, 1, 2)
        return super().forward(x)


class _PaddedConv2d(nn.Conv2d):
    """A 3x3 convolution with stride 1 and a padding of 1."""

    kept: tuple[int, Tensor] | None = None  # the version of the weights that a matrix was made of, and the matrix

    def forward(self, x: Tensor) -> Tensor:
        n, _, h, w = x.shape
        if h == w == 1:  # all taps but the middle one lie in the padding
            return functional.linear(x.flatten(1), self.weight[:, :, 1, 1], self.bias)[:, :, None, None]
        if h == w == 2 and torch.is_autocast_enabled(x.device.type):
            bias = None if self.bias is None else self.bias.repeat(4)
            product = functional.linear(x.permute(0, 2, 3, 1).reshape(n, -1), self._matrix(x.device.type), bias)
            return product.view(n, 2, 2, -1).permute(0, 3, 1, 2)
        return super().forward(x)

    def _matrix(self, device: str) -> Tensor:
        """Return the matrix (4 * out, 4 * in) from all positions to all positions; kept where nothing is trained."""
        version = self.weight._version
        if not torch.is_grad_enabled() and self.kept is not None and self.kept[0] == version:
            return self.kept[1]
        weight = self.weight.to(torch.get_autocast_dtype(device))
        rows = [
            weight[:, :, 1 - i:3 - i, 1 - j:3 - j].permute(0, 2, 3, 1).flatten(1) for i in (0, 1) for j in (0, 1)
        ]
        matrix = torch.cat(rows)
        self.kept = None if torch.is_grad_enabled() else (version, matrix)
        return matrix


@contextmanager
def small_maps(model: nn.Module) -> Iterator[None]:
    """Compute the convolutions of `model` on maps of few positions as matrix products, on a CPU, within this context.

    Only plain `nn.Conv2d` are concerned, and only while a map is small: whether it is decided in each pass.
    """
    changed = [(conv, kind) for conv in model.modules() if (kind := _kind(conv)) is not None]
    for conv, kind in changed:
        conv.__class__ = kind
    try:
        yield
    finally:
        for conv, _ in changed:
            conv.__class__ = nn.Conv2d
            conv.__dict__.pop("kept", None)


def _kind(module: nn.Module) -> type[nn.Conv2d] | None:
    if type(module) is not nn.Conv2d or module.weight.device.type != "cpu" or module.groups > 1:
        return None
    if module.padding_mode != "zeros" or module.stride != (1, 1):
        return None
    if module.kernel_size == (1, 1) and module.padding == (0, 0):
        return _PointwiseConv2d
    if module.kernel_size == (3, 3) and module.padding == (1, 1) and module.dilation == (1, 1):
        return _PaddedConv2d
    return None
