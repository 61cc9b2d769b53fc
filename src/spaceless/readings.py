"""What convolutions, pooling, padding and resizing read: from the layer, or from the arguments of the function."""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction
from typing import Any

from torch import fx, nn

from spaceless.reach import Reading, interpolated, nearest, pieces, transposed, window

Readings = tuple[Reading, Reading]  # rows, columns
Sides = Sequence[int]  # height and width of a map

_WINDOWS = (nn.Conv2d, nn.MaxPool2d, nn.AvgPool2d, nn.LPPool2d)


def of_module(module: nn.Module, before: Sides, after: Sides) -> Readings | None:
    """Return what `module` reads that turns maps of `before` positions into `after`; None where it is not known."""
    if isinstance(module, nn.ConvTranspose2d):
        return _transposed(module.kernel_size, module.stride, module.padding, module.dilation)
    if isinstance(module, _WINDOWS):
        padding, dilation = getattr(module, "padding", 0), getattr(module, "dilation", 1)
        stride = module.kernel_size if module.stride is None else module.stride
        return _windows(module.kernel_size, stride, padding, dilation, before, after)
    if isinstance(module, nn.Upsample):
        return _resized(module.mode, bool(module.align_corners), module.size, module.scale_factor, before, after)
    if isinstance(module, nn.PixelShuffle | nn.PixelUnshuffle):
        factor = module.upscale_factor if isinstance(module, nn.PixelShuffle) else module.downscale_factor
        return _pixels(factor, shuffle=isinstance(module, nn.PixelShuffle))
    if type(module).__module__ == "torch.nn.modules.padding":
        return _padded(module.padding)
    return None


def of_function(name: str, node: fx.Node, kernel: Sides, before: Sides, after: Sides) -> Readings | None:
    """Return what the function `name`, called by `node`, reads; `kernel` is the size of a convolution's."""
    if name == "conv2d":
        return _windows(kernel, argument(node, 3, "stride", 1), argument(node, 4, "padding", 0),
                        argument(node, 5, "dilation", 1), before, after)
    if name == "conv_transpose2d":
        return _transposed(kernel, argument(node, 3, "stride", 1), argument(node, 4, "padding", 0),
                           argument(node, 7, "dilation", 1))
    if name in ("max_pool2d", "avg_pool2d", "lp_pool2d"):
        at = 2 if name == "lp_pool2d" else 1
        size = argument(node, at, "kernel_size")
        dilation = argument(node, 4, "dilation", 1) if name == "max_pool2d" else 1
        padding = 0 if name == "lp_pool2d" else argument(node, 3, "padding", 0)
        return _windows(size, argument(node, at + 1, "stride") or size, padding, dilation, before, after)
    if name == "pad":
        return _padded(argument(node, 1, "pad"))
    if name == "interpolate":
        if argument(node, 6, "antialias", False):
            return None
        return _resized(argument(node, 3, "mode", "nearest"), bool(argument(node, 4, "align_corners")),
                        argument(node, 1, "size"), argument(node, 2, "scale_factor"), before, after)
    if name in ("pixel_shuffle", "pixel_unshuffle"):
        factor = argument(node, 1, "upscale_factor" if name == "pixel_shuffle" else "downscale_factor")
        return _pixels(factor, shuffle=name == "pixel_shuffle")
    return None


def adaptive(before: Sides, after: Sides) -> Readings:
    """Return what adaptive pooling reads."""
    return pieces(before[0], after[0]), pieces(before[1], after[1])


def argument(node: fx.Node, place: int, name: str, default: Any = None) -> Any:
    """Return what `node` gives for the argument called `name`, or at `place`."""
    return node.args[place] if len(node.args) > place else node.kwargs.get(name, default)


def _windows(kernel: Any, stride: Any, padding: Any, dilation: Any, before: Sides, after: Sides) -> Readings | None:
    sizes, steps, gaps = _pair(kernel), _pair(stride), _pair(dilation)
    if sizes is None or steps is None or gaps is None:
        return None
    found = []
    for side in (0, 1):
        k, s, d, n, m = sizes[side], steps[side], gaps[side], before[side], after[side]
        front = _front(padding, side, k, s, d, n, m)
        if front is None:
            return None
        found.append(window(k, s, front, d))
    return found[0], found[1]


def _front(padding: Any, side: int, k: int, s: int, d: int, n: int, m: int) -> int | None:
    """Return the padding in front of n positions that become m.

    A layer whose declared padding does not give m pads as its input needs ("same" as TensorFlow means it; timm's
    Conv2dSame): half of what is missing, the odd position behind.
    """
    if padding == "same":
        return d * (k - 1) // 2
    declared = (0, 0) if padding == "valid" else _pair(padding)
    if declared is None:
        return None
    front = declared[side]
    left_over = n + 2 * front - d * (k - 1) - 1
    if m in (left_over // s + 1, -(-left_over // s) + 1):  # rounded down, or up by `ceil_mode`
        return front
    return max((m - 1) * s + d * (k - 1) + 1 - n, 0) // 2


def _transposed(kernel: Any, stride: Any, padding: Any, dilation: Any) -> Readings | None:
    pairs = [_pair(each) for each in (kernel, stride, padding, dilation)]
    found = [transposed(*(pair[side] for pair in pairs if pair)) for side in (0, 1)] if all(pairs) else [None, None]
    return (found[0], found[1]) if found[0] and found[1] else None


def _padded(pad: Any) -> Readings | None:
    if not isinstance(pad, tuple | list) or not all(isinstance(each, int) for each in pad) or any(pad[4:]):
        return None
    left, top = pad[0], pad[2] if len(pad) > 2 else 0
    return window(1, 1, top), window(1, 1, left)


def _pixels(factor: Any, *, shuffle: bool) -> Readings | None:
    if not isinstance(factor, int):
        return None
    one = nearest(Fraction(1, factor)) if shuffle else window(factor, factor)
    return one, one


def _resized(mode: str, corners: bool, size: Any, factor: Any, before: Sides, after: Sides) -> Readings | None:
    found = []
    for side, (n, m) in enumerate(zip(before, after, strict=True)):
        factors = _pair(factor) if factor is not None and size is None else None
        ratio = 1 / Fraction(factors[side]).limit_denominator(1000) if factors else Fraction(n, m)
        if mode in ("nearest", "nearest-exact"):
            found.append(nearest(ratio, exact=mode == "nearest-exact"))
        elif mode in ("bilinear", "bicubic"):
            ratio = Fraction(n - 1, max(m - 1, 1)) if corners else ratio
            found.append(interpolated(ratio, corners=corners, taps=2 if mode == "bilinear" else 4))
        elif mode == "area":
            found.append(pieces(n, m))
        else:
            return None
    return found[0], found[1]


def _pair(value: Any) -> tuple[Any, Any] | None:
    """Return a value for rows and one for columns, where they are numbers."""
    pair = (value[0], value[-1]) if isinstance(value, tuple | list) else (value, value)
    return pair if all(isinstance(each, int | float) for each in pair) else None
