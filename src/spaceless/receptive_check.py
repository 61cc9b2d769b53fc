"""Receptive fields measured instead of derived: the support of the image's gradient, of the network's own code.

The network runs as it is, but for what its functions compute: every kernel averages (all weights 1 / fan-in), a
maximum becomes an average, a difference or a product a mean, and what works entry by entry passes its input on, so
that every pixel that can have a say has one, and no two cancel. Gates (what comes out of a global pooling) and
normalisations are constants, as in `receptive`. In double precision, whose smallest number is 1e-308: a 3x3 kernel
divides the share of its corner by 9, so that the corner of a field behind 300 of them still counts.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_map

from spaceless.errors import InputError
from spaceless.fields import Field
from spaceless.receptive import fields_of
from spaceless.tracing import shapes_of, trace

_STRIPS = (32, 64, 96, 128, 192, 256)  # pixels: as narrow as the network accepts, since a field has two sides
_PASSED_ON = {
    "batch_norm", "celu", "dropout", "elu", "gelu", "group_norm", "hardsigmoid", "hardswish", "hardtanh",
    "instance_norm", "layer_norm", "leaky_relu", "local_response_norm", "logsigmoid", "mish", "normalize", "prelu",
    "relu", "relu6", "rms_norm", "selu", "sigmoid", "silu", "softmax", "softplus", "stochastic_depth", "tanh",
}
_POOLED = {"adaptive_avg_pool2d", "adaptive_max_pool2d", "amax", "max", "mean", "norm", "std", "sum", "var"}
_PAIRED = {"imul", "isub", "mul", "multiply", "rmul", "rsub", "sub"}


@dataclass(frozen=True)
class Compared:
    """One map: the pixels that a position and the next one read, derived and measured, as (first, last) of each side.

    `derived` and `measured` are None where no rule knows, or the module gives no map.
    """

    name: str
    position: tuple[int, int]
    derived: tuple[tuple[int, int], ...] | None
    measured: tuple[tuple[int, int], ...] | None

    @property
    def agrees(self) -> bool:
        """Whether both are known and the same."""
        return self.derived is not None and self.derived == self.measured


def compare_fields(model: nn.Module, names: Sequence[str], image_size: int = 224) -> tuple[int, list[Compared]]:
    """Compare the derived with the measured fields of the outputs of the modules `names`.

    Size, stride and offset all are in the comparison: the pixels, in an image wider than the widest field, that a
    position in the middle of the map reads, and the next one, along height and along width.

    Args:
        model: Any network; it is not changed, and its weights do not matter.
        names: Paths of modules that give one map.
        image_size: The image that decides how wide the fields are; the comparison is made on a wider one if need be.

    Returns:
        The side in pixels of the image that was used, and a row for each name.

    Raises:
        InputError: The network does not run on images of the needed size.

    """
    known = [field for field in fields_of(trace(model, image_size), list(names)) if field is not None]
    widest = max((reach.size + 4 * math.ceil(reach.stride) for field in known for reach in field.reach), default=0)
    size = max(image_size, 32 * math.ceil(widest / 32))
    fields = fields_of(trace(model, size), list(names))
    places = [field.dims if field is not None and len(set(field.dims)) == 2 else (2, 3) for field in fields]
    sides = [_measured(model, names, places, size, axis) for axis in (0, 1)]
    rows = []
    for number, (name, field) in enumerate(zip(names, fields, strict=True)):
        found = [side[number] for side in sides]
        at = found[0][0] if found[0] else 0, found[1][0] if found[1] else 0
        measured = tuple(interval for side in found if side for interval in side[1]) or None
        rows.append(Compared(name, at, None if field is None else _derived(field, at), measured))
    return size, rows


def _derived(field: Field, at: tuple[int, int]) -> tuple[tuple[int, int], ...]:
    return tuple(side.at(place + step) for side, place in zip(field.reach, at, strict=True) for step in (0, 1))


_Support = tuple[int, tuple[tuple[int, int], tuple[int, int]]]  # the position, the pixels it and the next one read


def _measured(
    model: nn.Module, names: Sequence[str], places: Sequence[Sequence[int]], size: int, axis: int,
) -> list[_Support | None]:
    """Return the gradient's support along `axis` (0 height, 1 width) for the middle of the output of each module.

    `places` are the dimensions that hold height and width of each output.
    """
    for strip in (*(strip for strip in _STRIPS if strip < size), size):
        shape = (2, 3, size, strip) if axis == 0 else (2, 3, strip, size)
        x = torch.ones(shape, dtype=torch.float64, requires_grad=True)
        try:
            maps = _run(model, names, x)
        except Exception as error:  # too narrow for the network's own code
            failed = error
            continue
        return [None if y is None else _support(x, y, dims[axis], axis) for y, dims in zip(maps, places, strict=True)]
    raise InputError(
        f"an image of {size} pixels", found=f"{type(failed).__name__}: {failed}"[:200],
        expected="a forward pass", cure="compare fewer or earlier modules",
    )


def _support(x: Tensor, y: Tensor, dim: int, axis: int) -> _Support | None:
    if y.dim() != 4 or y.shape[dim] < 2:
        return None
    middle = (y.shape[dim] - 1) // 2
    here, there = (y[image].select(dim - 1, middle + image).sum() for image in (0, 1))  # each of its own image
    (gradient,) = torch.autograd.grad(here + there, x, retain_graph=True)
    found = []
    for image in gradient:
        pixels = image.abs().amax((0, 2 - axis)).nonzero().flatten()
        found.append((int(pixels[0]), int(pixels[-1])))
    return middle, (found[0], found[1])


def _run(model: nn.Module, names: Sequence[str], x: Tensor) -> list[Tensor | None]:
    shadow = shapes_of(model)
    maps: dict[str, Any] = {}
    with _watching(shadow, names, maps), _Averaging(), suppress(_Seen):
        shadow(x)
    return [maps[name] if isinstance(maps.get(name), Tensor) else None for name in names]


class _Seen(Exception):  # noqa: N818 (a message to ourselves)
    """All maps are there; what is behind them, a head for one image size perhaps, need not run."""


@contextmanager
def _watching(model: nn.Module, names: Sequence[str], maps: dict[str, Any]) -> Iterator[None]:
    def hook(name: str) -> Any:
        def keep(_module: nn.Module, _inputs: Any, output: Any) -> None:
            maps[name] = output
            if len(maps) == len(set(names)):
                raise _Seen

        return keep

    handles = [model.get_submodule(name).register_forward_hook(hook(name)) for name in names]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


class _Averaging(TorchFunctionMode):
    """Puts an average in the place of everything that weighs or chooses; see the head of this file."""

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None,
    ) -> Any:
        name = getattr(func, "__name__", "").strip("_")
        args, kwargs = tree_map(_present, args), tree_map(_present, kwargs or {})
        x = args[0] if args else None
        if not isinstance(x, Tensor):
            return func(*args, **kwargs)
        if name == "conv2d":
            return _convolution(x, args[1].shape, *args[3:], **{k: v for k, v in kwargs.items() if k != "bias"})
        if name == "linear":
            return x.mean(-1, keepdim=True).expand(*x.shape[:-1], args[1].shape[0])
        if name == "max_pool2d":
            return _maximum(*args, **{k: v for k, v in kwargs.items() if k != "return_indices"})
        if name in _PASSED_ON:
            return x.clone()  # the network may go on to change either in place
        if name in _PAIRED and len(args) > 1 and isinstance(args[1], Tensor):
            return (x + args[1]) / 2  # products of products would overflow
        output = func(*args, **kwargs)
        if name in _POOLED and isinstance(output, Tensor) and x.dim() == 4 and _without_places(x, output):
            return torch.ones_like(output)
        return output


def _present(value: Any) -> Any:
    """Return ones for a parameter or a buffer, which is on the meta device and has no values."""
    meta = isinstance(value, Tensor) and value.device.type == "meta"
    return torch.ones(value.shape, dtype=torch.float64) if meta else value


def _without_places(x: Tensor, output: Tensor) -> bool:
    """Tell whether `output` has lost the positions of the map x, (N, C, H, W) or (N, H, W, C)."""
    if output.dim() < 4:
        return output.dim() <= 2
    return any(output.shape[place] == (1, 1) != x.shape[place] for place in (slice(2, 4), slice(1, 3)))


def _convolution(
    x: Tensor, weight: Sequence[int], stride: Any = 1, padding: Any = 0, dilation: Any = 1, groups: int = 1,
) -> Tensor:
    """Return the convolution with weights 1 / fan-in: the mean over the channels of a group, then over the window."""
    n, c, *sides = x.shape
    outputs, _, *kernel = weight
    mean = x.reshape(n * groups, c // groups, *sides).mean(1, keepdim=True)
    averaging = torch.full((1, 1, *kernel), 1 / math.prod(kernel), dtype=x.dtype)
    y = torch.conv2d(mean, averaging, None, stride, padding, dilation)
    return y.expand(-1, outputs // groups, -1, -1).clone().reshape(n, outputs, *y.shape[2:])


def _maximum(
    x: Tensor, kernel_size: Any, stride: Any = None, padding: Any = 0, dilation: Any = 1, ceil_mode: bool = False,
) -> Tensor:
    """Return the average over the window; of a dilated one as a convolution."""
    if dilation not in (1, (1, 1), [1, 1]):
        size = (kernel_size, kernel_size) if isinstance(kernel_size, int) else kernel_size
        c = x.shape[1]
        return _convolution(x, (c, 1, *size), stride or kernel_size, padding, dilation, c)
    return functional.avg_pool2d(x, kernel_size, stride, padding, ceil_mode)
