"""What runs on the GPU itself, in Triton's dialect of Python; `spaceless.kernels` calls it.

Maps are rows of positions with the channels side by side (channels_last). A program works on a tile of `tall` rows and
`wide` channels.
"""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def take(x, moves, y, positions, channels, tall: tl.constexpr, wide: tl.constexpr):
    """From x[n, moves[p, c], c] to y[n, p, c]: memory is read in order, and what was read is exchanged."""
    image = tl.program_id(0).to(tl.int64) * positions * channels
    p, c = tl.arange(0, tall), tl.program_id(1) * wide + tl.arange(0, wide)
    places = p[:, None] * channels + c[None, :]
    inside = (p[:, None] < positions) & (c[None, :] < channels)
    seen = tl.load(x + image + places, mask=inside, other=0)
    source = tl.load(moves + places, mask=inside, other=0)
    tl.store(y + image + places, tl.gather(seen, source, 0), mask=inside)


@triton.jit
def sums(x, partial, rows, channels, each, tall: tl.constexpr, wide: tl.constexpr):
    """For `each` rows: the sums of x and of its square, both less the first row, which keeps them precise."""
    c, part = tl.program_id(0) * wide + tl.arange(0, wide), tl.program_id(1)
    first = tl.load(x + c, mask=c < channels, other=0).to(tl.float32)
    one, two = tl.zeros([tall, wide], tl.float32), tl.zeros([tall, wide], tl.float32)
    for start in range(0, each, tall):
        r = part * each + start + tl.arange(0, tall)
        inside = (start + tl.arange(0, tall) < each)[:, None] & (r < rows)[:, None] & (c < channels)[None, :]
        value = tl.load(x + r[:, None] * channels + c[None, :], mask=inside, other=0).to(tl.float32)
        value = tl.where(inside, value - first[None, :], 0.0)
        one += value
        two += value * value
    tl.store(partial + 2 * part * channels + c, tl.sum(one, 0), mask=c < channels)
    tl.store(partial + (2 * part + 1) * channels + c, tl.sum(two, 0), mask=c < channels)


@triton.jit
def _joined(partial, parts, channels, c, deep: tl.constexpr, wide: tl.constexpr):
    """The two sums of all parts, for the channels c; `deep` parts at a time."""
    one, two = tl.zeros([deep, wide], tl.float32), tl.zeros([deep, wide], tl.float32)
    for start in range(0, parts, deep):
        s = start + tl.arange(0, deep)
        inside = (s < parts)[:, None] & (c < channels)[None, :]
        places = 2 * s[:, None] * channels + c[None, :]
        one += tl.load(partial + places, mask=inside, other=0)
        two += tl.load(partial + places + channels, mask=inside, other=0)
    return tl.sum(one, 0), tl.sum(two, 0)


@triton.jit
def moments(
    x, partial, moments, running_mean, running_var, tracked, offset, parts, rows, channels, eps, momentum,
    shifted: tl.constexpr, deep: tl.constexpr, wide: tl.constexpr,
):
    """Mean and 1 / deviation of every channel, and the running ones, of which `offset` is added to the mean."""
    c = tl.program_id(0) * wide + tl.arange(0, wide)
    inside = c < channels
    one, two = _joined(partial, parts, channels, c, deep, wide)
    beyond = one / rows
    mean = tl.load(x + c, mask=inside, other=0).to(tl.float32) + beyond
    variance = tl.maximum(two / rows - beyond * beyond, 0.0)
    tl.store(moments + c, mean, mask=inside)
    tl.store(moments + channels + c, 1 / tl.sqrt(variance + eps), mask=inside)
    if shifted:
        mean += tl.load(offset + c, mask=inside, other=0).to(tl.float32)
    before = tl.load(running_mean + c, mask=inside, other=0)
    tl.store(running_mean + c, before + momentum * (mean - before), mask=inside)
    before = tl.load(running_var + c, mask=inside, other=0)
    tl.store(running_var + c, before + momentum * (variance * (rows / (rows - 1.0)) - before), mask=inside)
    if tl.program_id(0) == 0:
        tl.store(tracked, tl.load(tracked) + 1)


@triton.jit
def normalise(
    x, residual, y, moments, weight, bias, rows, channels,
    cut: tl.constexpr, added: tl.constexpr, tall: tl.constexpr, wide: tl.constexpr,
):
    """The map x normalised, scaled and shifted, plus the residual if it is `added`, and negative numbers `cut`."""
    r, c = tl.program_id(0) * tall + tl.arange(0, tall), tl.program_id(1) * wide + tl.arange(0, wide)
    inside = (r < rows)[:, None] & (c < channels)[None, :]
    places = r[:, None] * channels + c[None, :]
    mean, scale = tl.load(moments + c, mask=c < channels), tl.load(moments + channels + c, mask=c < channels)
    w, b = tl.load(weight + c, mask=c < channels), tl.load(bias + c, mask=c < channels)
    value = (tl.load(x + places, mask=inside).to(tl.float32) - mean[None, :]) * (scale * w)[None, :] + b[None, :]
    if added:
        value += tl.load(residual + places, mask=inside).to(tl.float32)
    if cut:
        value = tl.where(value < 0, 0.0, value)  # NaN stays NaN
    tl.store(y + places, value, mask=inside)


@triton.jit
def _arriving(
    x, y, gradient, places, inside, mean, scale, w, b, cut: tl.constexpr, added: tl.constexpr,
):
    """What arrives behind the ReLU, and the normalised map."""
    normal = (tl.load(x + places, mask=inside, other=0).to(tl.float32) - mean[None, :]) * scale[None, :]
    arrived = tl.load(gradient + places, mask=inside, other=0).to(tl.float32)
    if cut:
        if added:
            passed = tl.load(y + places, mask=inside, other=0).to(tl.float32)
        else:  # cheaper to compute than to read
            passed = normal * w[None, :] + b[None, :]
        arrived = tl.where(passed > 0, arrived, 0.0)
    return tl.where(inside, arrived, 0.0), normal


@triton.jit
def gradient_sums(
    x, y, gradient, partial, moments, weight, bias, rows, channels, each,
    cut: tl.constexpr, added: tl.constexpr, tall: tl.constexpr, wide: tl.constexpr,
):
    """For `each` rows: the sums of the gradient behind the ReLU and of its product with the normalised map."""
    c, part = tl.program_id(0) * wide + tl.arange(0, wide), tl.program_id(1)
    mean, scale = tl.load(moments + c, mask=c < channels), tl.load(moments + channels + c, mask=c < channels)
    w, b = tl.load(weight + c, mask=c < channels), tl.load(bias + c, mask=c < channels)
    one, two = tl.zeros([tall, wide], tl.float32), tl.zeros([tall, wide], tl.float32)
    for start in range(0, each, tall):
        r = part * each + start + tl.arange(0, tall)
        inside = (start + tl.arange(0, tall) < each)[:, None] & (r < rows)[:, None] & (c < channels)[None, :]
        places = r[:, None] * channels + c[None, :]
        arrived, normal = _arriving(x, y, gradient, places, inside, mean, scale, w, b, cut, added)
        one += arrived
        two += arrived * normal
    tl.store(partial + 2 * part * channels + c, tl.sum(one, 0), mask=c < channels)
    tl.store(partial + (2 * part + 1) * channels + c, tl.sum(two, 0), mask=c < channels)


@triton.jit
def join(partial, sums, parts, channels, deep: tl.constexpr, wide: tl.constexpr):
    """The sums of all parts: the gradients of shift and scale."""
    c = tl.program_id(0) * wide + tl.arange(0, wide)
    one, two = _joined(partial, parts, channels, c, deep, wide)
    tl.store(sums + c, one, mask=c < channels)
    tl.store(sums + channels + c, two, mask=c < channels)


@triton.jit
def gradient(
    x, y, gradient, of_x, of_residual, sums, moments, weight, bias, rows, channels,
    cut: tl.constexpr, added: tl.constexpr, tall: tl.constexpr, wide: tl.constexpr,
):
    """The gradients of x and of the residual."""
    r, c = tl.program_id(0) * tall + tl.arange(0, tall), tl.program_id(1) * wide + tl.arange(0, wide)
    inside = (r < rows)[:, None] & (c < channels)[None, :]
    places = r[:, None] * channels + c[None, :]
    mean, scale = tl.load(moments + c, mask=c < channels), tl.load(moments + channels + c, mask=c < channels)
    w, b = tl.load(weight + c, mask=c < channels), tl.load(bias + c, mask=c < channels)
    arrived, normal = _arriving(x, y, gradient, places, inside, mean, scale, w, b, cut, added)
    if added:
        tl.store(of_residual + places, arrived, mask=inside)
    one = tl.load(sums + c, mask=c < channels) / rows
    two = tl.load(sums + channels + c, mask=c < channels) / rows
    value = (scale * w)[None, :] * (arrived - one[None, :] - normal * two[None, :])
    tl.store(of_x + places, value, mask=inside)


@triton.jit
def pool(x, y, chosen, count, width, channels, tall: tl.constexpr, wide: tl.constexpr):
    """The largest of 2x2 positions, and which of them it is: the first of equals, and NaN before all."""
    r, c = tl.program_id(0) * tall + tl.arange(0, tall), tl.program_id(1) * wide + tl.arange(0, wide)
    inside = (r < count)[:, None] & (c < channels)[None, :]
    half = width // 2
    corner = ((r // half) * 2 * width + (r % half) * 2)[:, None] * channels + c[None, :]
    best = tl.load(x + corner, mask=inside, other=0).to(tl.float32)
    which = tl.zeros([tall, wide], tl.int8)
    for place in tl.static_range(1, 4):
        other = tl.load(x + corner + ((place // 2) * width + place % 2) * channels, mask=inside, other=0).to(tl.float32)
        better = (other > best) | (other != other)  # noqa: PLR0124 - only NaN is not itself
        best, which = tl.where(better, other, best), tl.where(better, place, which).to(tl.int8)
    tl.store(y + r[:, None] * channels + c[None, :], best, mask=inside)
    tl.store(chosen + r[:, None] * channels + c[None, :], which, mask=inside)


@triton.jit
def unpool(
    gradient, chosen, of_x, count, width, channels, tall: tl.constexpr, wide: tl.constexpr,
):
    """The gradient goes to the chosen of 2x2 positions, 0 to the others."""
    r, c = tl.program_id(0) * tall + tl.arange(0, tall), tl.program_id(1) * wide + tl.arange(0, wide)
    inside = (r < count)[:, None] & (c < channels)[None, :]
    half = width // 2
    corner = ((r // half) * 2 * width + (r % half) * 2)[:, None] * channels + c[None, :]
    value = tl.load(gradient + r[:, None] * channels + c[None, :], mask=inside, other=0).to(tl.float32)
    which = tl.load(chosen + r[:, None] * channels + c[None, :], mask=inside, other=0)
    for place in tl.static_range(4):
        to = of_x + corner + ((place // 2) * width + place % 2) * channels
        tl.store(to, tl.where(which == place, value, 0.0), mask=inside)
