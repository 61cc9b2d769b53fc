"""From a spatial kernel to a 1x1 kernel: candidates by formula, and the least-squares fit to a layer's outputs."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn

NAMES = {"centre": "the centre tap", "sum": "the sum of the taps", "mean": "the mean of the taps",
         "least_squares": "the least-squares fit"}


def candidates(spatial: Tensor, shape: torch.Size) -> dict[str, Tensor]:
    """Return the centre tap, the sum and the mean of the taps of a kernel (O, I, h, w) as weights of `shape`."""
    height, width = spatial.shape[2:]
    found = {"centre": spatial[:, :, height // 2, width // 2], "sum": spatial.sum((2, 3)), "mean": spatial.mean((2, 3))}
    return {name: weight.detach().reshape(shape).clone() for name, weight in found.items()}


def fit(kernel: nn.Conv2d | nn.Linear, place: nn.Module, pairs: Iterable[tuple[Tensor, Tensor]]) -> Tensor:
    """Return the weights of `kernel` with which `place` comes nearest to given outputs, a mean per channel left out.

    Of all weights with the least square error those with the least norm: channels that never fire get none. Exact where
    what stands in `place` around the kernel is linear (nothing, a border cut off, a stride, average pooling); behind
    max pooling it is the fit to average pooling.

    Args:
        kernel: A 1x1 convolution or a linear layer within `place`, or `place` itself.
        place: Takes the first part of each pair.
        pairs: What enters `place` (N, I, H, W), and what it should put out (N, O, h, w).

    """
    groups = kernel.groups if isinstance(kernel, nn.Conv2d) else 1
    sums: Tensor | None = None
    for x, target in pairs:
        features, wanted = _rows(_features(kernel, place, x)), _rows(target)
        ones = torch.ones(len(features), 1, dtype=torch.float64, device=x.device)
        left = torch.cat([features, ones], 1)
        moment = left.T @ torch.cat([left, wanted], 1)  # (I + 1, I + 1 + O)
        sums = moment if sums is None else sums + moment
    assert sums is not None
    inputs = len(sums) - 1
    count, means = sums[-1, inputs], sums[-1]
    moments = sums[:-1] - torch.outer(means[:inputs], means) / count  # centred
    outputs = sums.shape[1] - inputs - 1
    weights = []
    for group in range(groups):
        rows = slice(group * inputs // groups, (group + 1) * inputs // groups)
        columns = slice(inputs + 1 + group * outputs // groups, inputs + 1 + (group + 1) * outputs // groups)
        weights.append((torch.linalg.pinv(moments[rows, rows], hermitian=True) @ moments[rows, columns]).T)
    return torch.cat(weights).to(kernel.weight.dtype).reshape(kernel.weight.shape)


def _rows(maps: Tensor) -> Tensor:
    """Return maps (N, C, H, W) as one row per position (N H W, C), in double precision."""
    return maps.movedim(1, -1).flatten(0, -2).double()


def _features(kernel: nn.Conv2d | nn.Linear, place: nn.Module, x: Tensor) -> Tensor:
    """Return what the kernel's weights multiply to give the outputs of `place` for x: (N, I, h, w)."""
    parts = list(place) if isinstance(place, nn.Sequential) else [place]
    for part in parts:
        if part is kernel:
            if isinstance(kernel, nn.Conv2d):
                x = x[:, :, ::kernel.stride[0], ::kernel.stride[1]]
        elif isinstance(part, nn.MaxPool2d):
            x = nn.functional.avg_pool2d(x, part.kernel_size, part.stride, part.padding, part.ceil_mode)
        else:
            x = part(x)
    return x
