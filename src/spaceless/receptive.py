"""The analytic receptive field of every tensor in a traced network: size and stride in pixels of the input image.

Araujo, Norris and Sim, "Computing receptive fields of convolutional neural networks" (Distill 2019), with the maximum
over branches where several meet. A tensor whose positions mean nothing any more (after global pooling or a shuffle)
has no receptive field: None. It adds nothing to a branch with positions that it meets: the gate of squeeze and
excitation, say, which sees the whole image but not the places in it, is left out, as in published figures.
"""

from __future__ import annotations

import operator
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import fx, nn
from torch.nn import functional

from spaceless.errors import InputError
from spaceless.models import GlobalAveragePool
from spaceless.shuffle import ShuffleConv
from spaceless.tracing import Trace, trace


@dataclass(frozen=True)
class ReceptiveField:
    """What one position of a map sees: `size` pixels (the larger side), neighbours `stride` pixels apart."""

    size: int
    stride: int


_Pair = tuple[int, int]
_Field = tuple[_Pair, _Pair] | None  # (size, stride) as (height, width) each; None: positions mean nothing

_POOLS: dict[Callable[..., Any], str] = {
    functional.max_pool2d: "window", functional.avg_pool2d: "window", torch.max_pool2d: "window",
    functional.adaptive_avg_pool2d: "adaptive", functional.adaptive_max_pool2d: "adaptive",
}
_FLATTEN, _REDUCE = ("flatten", "view", "reshape"), ("mean", "amax", "sum")  # functions and methods
_SPLIT = ("chunk", "split", "unbind", "tensor_split")  # their output is several tensors


def receptive_fields(traced: Trace) -> dict[fx.Node, ReceptiveField | None]:
    """Return the receptive field of every node of `traced` whose output is one tensor."""
    fields = {node: field for node, field in _propagate(traced).items() if node in traced.shapes}
    return {node: field and ReceptiveField(max(field[0]), max(field[1])) for node, field in fields.items()}


def unit_fields(traced: Trace, names: list[str]) -> list[ReceptiveField | None]:
    """Return the receptive field of the output of each module in `names`."""
    fields = receptive_fields(traced)
    return [fields[traced.inside(name)[-1]] for name in names]


def usable_field(model: nn.Module, image_size: int) -> ReceptiveField:
    """Return the receptive field of the last map of `model` whose positions still mean something.

    For a network changed by `shuffle` or `gap_fc` this is the input of the first changed unit, for `conv1x1` and for
    an unchanged network the final map. It is the largest field that enters a shuffle or a global pooling.

    Raises:
        InputError: The last map is not pooled globally (a linear layer sees each of its positions, for instance).

    """
    traced = trace(model, image_size)
    fields = receptive_fields(traced)
    entering = [
        found for node in traced.nodes if fields.get(node, False) is None
        for source in node.all_input_nodes if (found := fields.get(source)) is not None
    ]
    if not entering or any(fields.get(source) for source in traced.nodes[-1].all_input_nodes):
        raise InputError(
            type(model).__name__, found="no global pooling and no shuffle",
            expected="a map whose positions are given up",
            cure="ask for the receptive field of a unit instead",
        )
    return max(entering, key=lambda field: (field.size, -field.stride))


def _propagate(traced: Trace) -> dict[fx.Node, _Field]:
    fields: dict[fx.Node, _Field] = {}
    for node in traced.nodes:
        if node.op == "placeholder":
            fields[node] = (1, 1), (1, 1)
            continue
        if node not in traced.shapes and _name(node) not in _SPLIT:
            continue
        inputs = [fields[source] for source in node.all_input_nodes if source in fields]
        known = [field for field in inputs if field is not None]
        if known:
            merged = _widest([f[0] for f in known]), _widest([f[1] for f in known])
            fields[node] = _through(traced, node, merged)
        elif inputs:  # a parameter or a constant has no inputs, and no field either
            fields[node] = None
    return fields


def _name(node: fx.Node) -> str:
    """Return the name of the function or method that `node` calls."""
    if node.op == "call_module":
        return ""
    return node.target if isinstance(node.target, str) else getattr(node.target, "__name__", "")


def _widest(pairs: list[_Pair]) -> _Pair:
    return max(p[0] for p in pairs), max(p[1] for p in pairs)


def _through(traced: Trace, node: fx.Node, field: tuple[_Pair, _Pair]) -> _Field:
    module = traced.module_of(node)
    before = traced.shapes.get(node.all_input_nodes[0], ())
    after = traced.shapes.get(node, before)
    if isinstance(module, ShuffleConv):
        if not module.shuffle.channels:
            return None
        module = module.conv  # positions keep their meaning (A.6)
    if isinstance(module, GlobalAveragePool | nn.AdaptiveAvgPool2d | nn.AdaptiveMaxPool2d):
        return _adaptive(field, before[2:], after[2:])
    if isinstance(module, nn.Flatten):
        return _flattened(field, before, after)
    if isinstance(module, nn.Conv2d | nn.MaxPool2d | nn.AvgPool2d | nn.LPPool2d):
        stride = module.stride if module.stride is not None else module.kernel_size
        dilation = getattr(module, "dilation", 1)
        return _slide(field, _pair(module.kernel_size), _pair(stride), _pair(dilation))
    kind = _POOLS.get(node.target) if callable(node.target) else None
    if kind == "window":
        kernel = _argument(node, 1, "kernel_size")
        return _slide(field, _pair(kernel), _pair(_argument(node, 2, "stride") or kernel), (1, 1))
    if kind == "adaptive":
        return _adaptive(field, before[2:], after[2:])
    if _name(node) in _FLATTEN:
        return _flattened(field, before, after)
    if _name(node) in _REDUCE:
        over_channels = len(after) > 2 and after[-2:] == before[-2:]
        return field if over_channels else None
    return field


def _adaptive(field: tuple[_Pair, _Pair], before: tuple[int, ...], after: tuple[int, ...]) -> _Field:
    """Pool a map of `before` positions to `after`: a window where several are left, else the end of all positions."""
    if before == after:
        return field
    if after == (1, 1):
        return None
    windows = [max(-(-(i + 1) * n // m) - i * n // m for i in range(m)) for n, m in zip(before, after, strict=True)]
    steps = [max(1, n // m) for n, m in zip(before, after, strict=True)]
    return _slide(field, (windows[0], windows[1]), (steps[0], steps[1]), (1, 1))


def _flattened(field: tuple[_Pair, _Pair], before: tuple[int, ...], after: tuple[int, ...]) -> _Field:
    """Reshape: a linear layer behind a flattened map sees every position of it, as a kernel of its size would."""
    if len(after) > 2 or len(before) != 4:
        return field
    return None if before[2:] == (1, 1) else _slide(field, (before[2], before[3]), (1, 1), (1, 1))


def _slide(field: tuple[_Pair, _Pair], kernel: _Pair, stride: _Pair, dilation: _Pair) -> _Field:
    (size, step) = field
    grown = tuple(s + d * (k - 1) * j for s, k, d, j in zip(size, kernel, dilation, step, strict=True))
    moved = tuple(map(operator.mul, step, stride))
    return (grown[0], grown[1]), (moved[0], moved[1])


def _pair(value: int | tuple[int, ...]) -> _Pair:
    return (value, value) if isinstance(value, int) else (value[0], value[-1])


def _argument(node: fx.Node, place: int, name: str) -> Any:
    return node.args[place] if len(node.args) > place else node.kwargs.get(name)
