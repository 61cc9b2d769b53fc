"""Training on a GPU in fewer trips through memory than PyTorch's own operations take, with their gradients.

All take and give maps that are channels_last. This room is imported only where there is a GPU.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
from torch import Tensor
from torch.nn import functional

from spaceless import kernel_code as code

_SPLITS = 512  # programs that share the rows of a map when sums over them are taken


def _tile(channels: int, numbers: int) -> tuple[int, int]:
    """Return rows and channels of a tile of so many numbers."""
    wide = min(64, triton.next_power_of_2(channels))
    return numbers // wide, wide


class _Permuted(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, there: Tensor, back: Tensor) -> Tensor:
        ctx.save_for_backward(there, back)
        return _moved(x, there)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        there, back = ctx.saved_tensors
        return _Permuted.apply(gradients[0], back, there), None, None


def _moved(x: Tensor, moves: Tensor) -> Tensor:
    x = x.contiguous(memory_format=torch.channels_last)
    y = torch.empty_like(x)
    n, channels, height, width = x.shape
    tall = triton.next_power_of_2(height * width)
    wide = max(1, min(triton.next_power_of_2(channels), 1 << 14 >> (tall.bit_length() - 1), 64))
    code.take[n, triton.cdiv(channels, wide)](
        x, moves, y, height * width, channels, tall=tall, wide=wide, num_warps=8 if tall * wide > 4096 else 4)
    return y


def permute(x: Tensor, moves: tuple[Tensor, Tensor]) -> Tensor:
    """Permute the positions of every channel of x (N, C, H, W), as `permute_positions` does; channels_last.

    Args:
        x: With at most 1024 positions, all of which a program holds at once.
        moves: A permutation for every channel and its inverse, each int32 (H*W, C): position p of channel c takes the
            value at the first's [p, c].

    """
    if any(each.shape != (x.shape[2] * x.shape[3], x.shape[1]) for each in moves):
        raise ValueError(f"moves of {tuple(moves[0].shape)} for maps of {tuple(x.shape)}")
    return _Permuted.apply(x, *moves)  # type: ignore[no-any-return]


class _Normalised(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, residual: Tensor | None, offset: Tensor | None,
        running_mean: Tensor, running_var: Tensor, tracked: Tensor, eps: float, momentum: float, relu: bool,
    ) -> Tensor:
        x = x.contiguous(memory_format=torch.channels_last)
        residual = None if residual is None else residual.contiguous(memory_format=torch.channels_last)
        rows, channels = x.numel() // x.shape[1], x.shape[1]
        tall, wide = _tile(channels, 4096)
        blocks = triton.cdiv(channels, wide)
        each = tall * max(1, triton.cdiv(rows, tall * max(1, _SPLITS // blocks)))
        parts = triton.cdiv(rows, each)
        partial = torch.empty(parts, 2, channels, device=x.device)
        moments = torch.empty(2, channels, device=x.device)
        y = torch.empty_like(x)
        code.sums[blocks, parts](x, partial, rows, channels, each, tall=tall, wide=wide)
        narrow = min(16, wide)
        code.moments[triton.cdiv(channels, narrow),](
            x, partial, moments, running_mean, running_var, tracked, x if offset is None else offset, parts, rows,
            channels, eps, momentum, shifted=offset is not None, deep=128, wide=narrow)
        code.normalise[triton.cdiv(rows, tall), blocks](
            x, x if residual is None else residual, y, moments, weight, bias, rows, channels,
            cut=relu, added=residual is not None, tall=tall, wide=wide)
        ctx.save_for_backward(x, y if residual is not None and relu else x, weight, bias, moments)
        ctx.shapes, ctx.offset = (rows, channels, each, parts), offset
        ctx.relu, ctx.residual = relu, residual is not None
        return y

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        x, y, weight, bias, moments = ctx.saved_tensors
        rows, channels, each, parts = ctx.shapes
        gradient = gradients[0].contiguous(memory_format=torch.channels_last)
        tall, wide = _tile(channels, 4096)
        blocks = triton.cdiv(channels, wide)
        partial = torch.empty(parts, 2, channels, device=x.device)
        sums = torch.empty(2, channels, device=x.device)
        of_x = torch.empty_like(x)
        of_residual = torch.empty_like(x) if ctx.residual else None
        how = {"cut": ctx.relu, "added": ctx.residual, "tall": tall, "wide": wide}
        code.gradient_sums[blocks, parts](x, y, gradient, partial, moments, weight, bias, rows, channels, each, **how)
        narrow = min(16, wide)
        code.join[triton.cdiv(channels, narrow),](partial, sums, parts, channels, deep=128, wide=narrow)
        code.gradient[triton.cdiv(rows, tall), blocks](
            x, y, gradient, of_x, x if of_residual is None else of_residual, sums, moments, weight, bias, rows,
            channels, **how)
        of_offset = None if ctx.offset is None else torch.zeros_like(ctx.offset)  # what is added to all has no effect
        return of_x, sums[1], sums[0], of_residual, of_offset, *[None] * 6


def normalised(
    x: Tensor, norm: torch.nn.BatchNorm2d, *, residual: Tensor | None = None, offset: Tensor | None = None, relu: bool,
) -> Tensor:
    """Return relu(norm(x + offset) + residual) for a map x (N, C, H, W) and a normalisation in training mode.

    Args:
        x: fp32 or bf16; the result has its type, and is channels_last.
        norm: With weights and running statistics, which are updated.
        residual: As x; None is nothing.
        offset: (C,), the bias of the convolution before; its only effect is on the running mean. None is nothing.
        relu: Whether negative numbers become 0.

    Raises:
        ValueError: There is a single number in each channel, which has no variance.

    """
    if x.numel() == x.shape[1]:
        raise ValueError(f"Expected more than 1 value per channel when training, got input size {tuple(x.shape)}")
    return _Normalised.apply(  # type: ignore[no-any-return]
        x, norm.weight, norm.bias, residual, offset, norm.running_mean, norm.running_var, norm.num_batches_tracked,
        norm.eps, norm.momentum, relu)


class _Pooled(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        x = x.contiguous(memory_format=torch.channels_last)
        n, channels, height, width = x.shape
        y = torch.empty(
            n, channels, height // 2, width // 2, dtype=x.dtype, device=x.device, memory_format=torch.channels_last)
        chosen = torch.empty_like(y, dtype=torch.int8)
        tall, wide = _tile(channels, 1024)
        count = n * height // 2 * (width // 2)
        code.pool[triton.cdiv(count, tall), triton.cdiv(channels, wide)](
            x, y, chosen, count, width, channels, tall=tall, wide=wide)
        ctx.save_for_backward(chosen)
        ctx.shape = x.shape
        return y

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        (chosen,) = ctx.saved_tensors
        n, channels, height, width = ctx.shape
        gradient = gradients[0].contiguous(memory_format=torch.channels_last)
        of_x = torch.empty(
            ctx.shape, dtype=gradient.dtype, device=gradient.device, memory_format=torch.channels_last)
        tall, wide = _tile(channels, 1024)
        count = n * height // 2 * (width // 2)
        code.unpool[triton.cdiv(count, tall), triton.cdiv(channels, wide)](
            gradient, chosen, of_x, count, width, channels, tall=tall, wide=wide)
        return of_x


def pooled(x: Tensor) -> Tensor:
    """Return the maxima over 2x2 positions of x (N, C, H, W), height and width even, as `MaxPool2d(2)` gives them."""
    return _Pooled.apply(x)  # type: ignore[no-any-return]


def works(device: torch.device) -> str | None:
    """Try the kernels on `device`; return None if they work, or why not: Triton needs a C compiler to start."""
    try:
        with torch.enable_grad():
            x = torch.arange(16.0, device=device).view(2, 2, 2, 2).contiguous(memory_format=torch.channels_last)
            x.requires_grad_()
            order = torch.tensor([[1, 0], [0, 3], [2, 1], [3, 2]], dtype=torch.int32, device=device)
            norm = torch.nn.BatchNorm2d(2, device=device)
            y = pooled(normalised(permute(x, (order, order)), norm, residual=x, relu=True))
            torch.autograd.backward(y.sum())
            places = order.t().long().expand(2, 2, 4)
            z = functional.relu(norm(x.flatten(2).gather(2, places).view(x.shape)) + x)
            if not torch.allclose(y, functional.max_pool2d(z, 2), rtol=1e-3, atol=1e-3):
                return "a wrong result"
    except Exception as error:  # whatever stands in the way
        return f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"[:200]
    return None
