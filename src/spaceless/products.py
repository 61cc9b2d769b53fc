"""Convolutions computed as the matrix products that they are, where that is faster on a CPU.

A convolution kernel prepares for sliding over a map that has nowhere to slide to: in bf16 on AMX the gradient of the
weights of a 3x3 convolution of 512 channels on 4x4 positions takes five times as long as the same product of matrices,
and a whole step of it three times. The weights, their names and, up to rounding, the results stay the same.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

_NARROW = 128  # channels, up to which only the gradient of the weights is worth computing in another way, in bf16
_FEW = {True: 16, False: 4}  # positions of a map, in bf16 and in fp32, up to which a product is faster


class _Product(torch.autograd.Function):
    """A wide convolution by one matrix product over the window of every position, and its gradients by two more."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, stride: tuple[int, int], padding: tuple[int, int],
    ) -> Tensor:
        n, _, height, width = x.shape
        out, _, *kernel = weight.shape
        windows = _windows(x, kernel, stride, padding)
        product = functional.linear(windows, weight.permute(0, 2, 3, 1).reshape(out, -1), bias)
        sides = [(side + 2 * pad - k) // step + 1
                 for side, pad, k, step in zip((height, width), padding, kernel, stride, strict=True)]
        ctx.save_for_backward(x, weight, windows)
        ctx.stride, ctx.padding = stride, padding
        return product.view(n, *sides, out).permute(0, 3, 1, 2)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None, None, None]:
        x, weight, windows = ctx.saved_tensors
        out, channels, height, width = weight.shape
        outside = gradients[0]
        rows = outside.permute(0, 2, 3, 1).reshape(-1, out)
        of_x = of_weight = None
        if ctx.needs_input_grad[0] and ctx.stride == (1, 1):  # by the kernel turned by half a turn
            back = _windows(outside, (height, width), (1, 1), (height - 1 - ctx.padding[0], width - 1 - ctx.padding[1]))
            turned = weight.flip(2, 3).permute(2, 3, 0, 1).reshape(-1, channels)
            of_x = (back @ turned).view(len(x), *x.shape[2:], channels).permute(0, 3, 1, 2)
        elif ctx.needs_input_grad[0]:
            of_x = _gradient_of_input(outside, x, weight, ctx.stride, ctx.padding)
        if ctx.needs_input_grad[1]:
            of_weight = (rows.t() @ windows).view(out, height, width, channels).permute(0, 3, 1, 2)
        return of_x, of_weight, _gradient_of_bias(rows) if ctx.needs_input_grad[2] else None, None, None


class _Narrow(torch.autograd.Function):
    """A narrow convolution with stride 1: only the gradient of its weights is slow, and that is a convolution too.

    The images take the place of the channels, and the input that of the kernel; padding is narrower than the kernel.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, padding: tuple[int, int]) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.padding = padding
        return functional.conv2d(x, weight, bias, 1, padding)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None, None]:
        x, weight = ctx.saved_tensors
        outside = gradients[0]
        of_x = of_weight = of_bias = None
        if ctx.needs_input_grad[0]:
            of_x = _gradient_of_input(outside, x, weight, (1, 1), ctx.padding)
        if ctx.needs_input_grad[1]:
            maps, kernel = (each.transpose(0, 1).contiguous(memory_format=torch.channels_last) for each in (outside, x))
            around = [side - 1 - pad for side, pad in zip(weight.shape[2:], ctx.padding, strict=True)]
            of_weight = functional.conv2d(maps, kernel, None, 1, around).flip(2, 3)
        if ctx.needs_input_grad[2]:
            of_bias = _gradient_of_bias(outside.permute(0, 2, 3, 1).reshape(-1, len(weight)))
        return of_x, of_weight, of_bias, None


def _gradient_of_input(
    outside: Tensor, x: Tensor, weight: Tensor, stride: tuple[int, int], padding: tuple[int, int],
) -> Tensor:
    return torch.ops.aten.convolution_backward(  # type: ignore[no-any-return]
        outside, x, weight, None, stride, padding, (1, 1), False, (0, 0), 1, (True, False, False))[0]


def _gradient_of_bias(rows: Tensor) -> Tensor:
    return (rows.new_ones(1, len(rows)) @ rows)[0]  # in bf16 several times as fast as `sum`


def _windows(x: Tensor, kernel: Any, stride: tuple[int, int], padding: tuple[int, int]) -> Tensor:
    """Return what a kernel sees of x (N, C, H, W) at each of its P positions: (N * P, kernel height * width * C)."""
    last = x.permute(0, 2, 3, 1)  # in channels_last this is contiguous
    if tuple(kernel) == (1, 1) and padding == (0, 0):
        return last[:, ::stride[0], ::stride[1]].reshape(-1, x.shape[1])
    padded = functional.pad(last, (0, 0, padding[1], padding[1], padding[0], padding[0])).contiguous()
    n, height, width, channels = padded.shape
    strides = padded.stride()
    places = [(side - k) // step + 1 for side, k, step in zip((height, width), kernel, stride, strict=True)]
    seen = padded.as_strided(
        (n, *places, *kernel, channels),
        (strides[0], strides[1] * stride[0], strides[2] * stride[1], strides[1], strides[2], 1))
    return seen.reshape(n * places[0] * places[1], -1)


class ProductConv2d(nn.Conv2d):
    """A convolution that is computed as a product of matrices where its map is small; see `is_product`."""

    kept: tuple[int, Tensor] | None = None  # the version of the weights that a matrix was made of, and the matrix

    def forward(self, x: Tensor) -> Tensor:
        """Return what the convolution of x (N, C, H, W) returns."""
        assert not isinstance(self.padding, str)  # see is_product
        if x.dim() != 4 or not len(x):  # of a last batch a process may have no image
            return super().forward(x)
        half = torch.is_autocast_enabled(x.device.type)
        sides = [(side + 2 * pad - k) // step + 1 for side, pad, k, step in zip(
            x.shape[2:], self.padding, self.kernel_size, self.stride, strict=True)]
        if min(sides) < 1 or sides[0] * sides[1] > _FEW[half]:
            return super().forward(x)
        weight, bias = self.weight, self.bias
        if half:
            kind = torch.get_autocast_dtype(x.device.type)
            x, weight, bias = x.to(kind), weight.to(kind), None if bias is None else bias.to(kind)
        if self._fits and x.shape[2:] == (1, 1):  # all taps but the middle one lie in the padding
            return functional.linear(x.flatten(1), weight[:, :, 1, 1], bias)[:, :, None, None]
        if self._fits and x.shape[2:] == (2, 2) and not torch.is_grad_enabled():
            bias = None if bias is None else bias.repeat(4)
            product = functional.linear(x.permute(0, 2, 3, 1).reshape(len(x), -1), self._matrix(weight), bias)
            return product.view(len(x), 2, 2, -1).permute(0, 3, 1, 2)
        inner = all(pad < side for pad, side in zip(self.padding, self.kernel_size, strict=True))
        if half and inner and self.stride == (1, 1) and max(weight.shape[:2]) <= _NARROW:
            return _Narrow.apply(x, weight, bias, self.padding)  # type: ignore[no-any-return]
        return _Product.apply(x, weight, bias, self.stride, self.padding)  # type: ignore[no-any-return]

    @property
    def _fits(self) -> bool:
        """Whether it is the convolution of 3x3 that keeps the size of its map."""
        return (self.kernel_size, self.stride, self.padding) == ((3, 3), (1, 1), (1, 1))

    def _matrix(self, weight: Tensor) -> Tensor:
        """Return the matrix (4 * out, 4 * in) from all positions of a 2x2 map to all; 20 of 36 taps see only padding.

        It is made once for weights that do not change.
        """
        version = self.weight._version
        if self.kept is None or self.kept[0] != version or self.kept[1].dtype != weight.dtype:
            self.kept = version, torch.cat([
                weight[:, :, 1 - i:3 - i, 1 - j:3 - j].permute(0, 2, 3, 1).flatten(1) for i in (0, 1) for j in (0, 1)
            ])
        return self.kept[1]


def is_product(module: nn.Module) -> bool:
    """Tell whether `module` is a plain convolution on a CPU that a matrix product can stand in for."""
    return (
        type(module) is nn.Conv2d and module._parameters.get("weight") is module.weight  # a pruned one is made anew
        and module.weight.device.type == "cpu" and module.groups == 1
        and module.dilation == (1, 1) and module.padding_mode == "zeros" and not isinstance(module.padding, str)
    )
