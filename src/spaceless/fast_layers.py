"""Layers that compute the same as PyTorch's on a CPU, faster: their classes are switched for a while.

bf16 numbers are computed with on a CPU by way of fp32. Where only signs matter, integers of the same bits do it up to
six times as fast, and a coin that is fair takes one number of 16 bits instead of a draw of its own.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from spaceless.products import ProductConv2d, is_product

_MINUS_INFINITY = -128  # its bits in bf16 as an integer: -0.0 and all negative numbers lie below, negative NaN above


class _BitwiseReLU(torch.autograd.Function):
    """ReLU of bf16 by the bits: NaN stays NaN, as in PyTorch."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, inplace: bool) -> Tensor:
        bits = x.view(torch.int16)
        if inplace:
            functional.threshold(bits, _MINUS_INFINITY, 0, inplace=True)
            ctx.mark_dirty(x)
            y = x
        else:
            y = functional.threshold(bits, _MINUS_INFINITY, 0).view(torch.bfloat16)
        ctx.save_for_backward(y)
        return y

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        (y,) = ctx.saved_tensors
        bits = torch.ops.aten.threshold_backward(gradients[0].view(torch.int16), y.view(torch.int16), 0)
        return bits.view(torch.bfloat16), None


class _FastReLU(nn.ReLU):
    def forward(self, x: Tensor) -> Tensor:
        if x.dtype is not torch.bfloat16 or x.device.type != "cpu":
            return super().forward(x)
        return _BitwiseReLU.apply(x, self.inplace)  # type: ignore[no-any-return]


class _FastDropout(nn.Dropout):
    def forward(self, x: Tensor) -> Tensor:
        steps = self.p * (1 << 16)
        plain = self.inplace or x.device.type != "cpu" or steps != int(steps) or not 0 < self.p < 1
        if plain or not self.training:
            return super().forward(x)
        drawn = torch.empty(-(-x.numel() // 4), dtype=torch.int64).random_(-1 << 63, None).view(torch.int16)
        kept = drawn[:x.numel()].view(x.shape) >= int(steps) - (1 << 15)
        return x * kept.to(x.dtype).mul_(1 / (1 - self.p))


@contextmanager
def fast_layers(model: nn.Module, *, eager: bool = False) -> Iterator[None]:
    """Compute the layers of `model` in the fast way, where there is one, within this context; not if `eager`.

    Only layers of exactly PyTorch's classes are concerned. Whether the fast way is taken is decided in each pass, by
    the type and size of what comes in; dropout draws other numbers, from the same distribution.
    """
    on_cpu = not eager and all(weight.device.type == "cpu" for weight in model.parameters())
    changed = [(module, type(module), kind) for module in model.modules()
               if on_cpu and (kind := _kind(module)) is not None]
    for module, _, kind in changed:
        module.__class__ = kind
    try:
        yield
    finally:
        for module, kind, _ in changed:
            module.__class__ = kind
            module.__dict__.pop("kept", None)


def _kind(module: nn.Module) -> type[nn.Module] | None:
    if is_product(module):
        return ProductConv2d
    return {nn.ReLU: _FastReLU, nn.Dropout: _FastDropout}.get(type(module))
