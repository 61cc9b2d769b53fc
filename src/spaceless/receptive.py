"""The analytic receptive field of every tensor in a traced network: size and stride in pixels of the input image.

Araujo, Norris and Sim, "Computing receptive fields of convolutional neural networks" (Distill 2019), with the maximum
over branches where several meet. A tensor whose positions mean nothing any more (after global pooling or a shuffle)
has no receptive field: None.
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
    functional.adaptive_avg_pool2d: "global", functional.adaptive_max_pool2d: "global",
}


def receptive_fields(traced: Trace) -> dict[fx.Node, ReceptiveField | None]:
    """Return the receptive field of every node of `traced` whose output is one tensor."""
    fields = _propagate(traced)
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
        InputError: No map is pooled globally or shuffled, so that every position goes on to matter.

    """
    traced = trace(model, image_size)
    fields = receptive_fields(traced)
    entering = [
        found for node in traced.nodes if fields.get(node, False) is None
        for source in node.all_input_nodes if (found := fields.get(source)) is not None
    ]
    if not entering:
        raise InputError(
            type(model).__name__, found="no global pooling and no shuffle",
            expected="a map whose positions are given up",
            cure="ask for the receptive field of a unit instead",
        )
    return max(entering, key=lambda field: (field.size, field.stride))


def _propagate(traced: Trace) -> dict[fx.Node, _Field]:
    fields: dict[fx.Node, _Field] = {}
    for node in traced.nodes:
        if node.op == "placeholder":
            fields[node] = (1, 1), (1, 1)
            continue
        if node not in traced.shapes:
            continue
        sources = [source for source in node.all_input_nodes if source in fields]
        known = [field for source in sources if (field := fields[source]) is not None]
        lost = [source for source in sources if fields[source] is None and not _is_gate(traced.shapes[source])]
        if lost or not known:
            fields[node] = None  # a branch whose positions mean nothing decides: they are mixed into all others
            continue
        merged = _widest([f[0] for f in known]), _widest([f[1] for f in known])
        fields[node] = _through(traced, node, merged)
    return fields


def _is_gate(shape: tuple[int, ...]) -> bool:
    """Tell whether a tensor has one position, so that it scales a map without touching the places in it.

    Squeeze-and-excitation is left out of receptive fields, as in published figures: its gate sees the whole image.
    """
    return len(shape) == 4 and shape[2:] == (1, 1)


def _widest(pairs: list[_Pair]) -> _Pair:
    return max(p[0] for p in pairs), max(p[1] for p in pairs)


def _through(traced: Trace, node: fx.Node, field: tuple[_Pair, _Pair]) -> _Field:
    module = traced.module_of(node)
    before = traced.shapes.get(node.all_input_nodes[0], ())
    after = traced.shapes[node]
    if isinstance(module, ShuffleConv) and module.shuffle.channels:  # positions keep their meaning (A.6)
        module = module.conv
    if isinstance(module, nn.Flatten):
        return _flattened(before, field)
    if isinstance(module, nn.AdaptiveAvgPool2d | nn.AdaptiveMaxPool2d) and after[2:] != (1, 1):
        return field if before == after else None  # windows of unequal size: no one field describes them
    if isinstance(module, ShuffleConv | GlobalAveragePool | nn.AdaptiveAvgPool2d | nn.AdaptiveMaxPool2d):
        return field if before == after and not isinstance(module, ShuffleConv) else None
    if isinstance(module, nn.Conv2d | nn.MaxPool2d | nn.AvgPool2d | nn.LPPool2d):
        stride = module.stride if module.stride is not None else module.kernel_size
        dilation = getattr(module, "dilation", 1)
        return _slide(field, _pair(module.kernel_size), _pair(stride), _pair(dilation))
    kind = _POOLS.get(node.target) if callable(node.target) else None
    if kind == "window":
        kernel = _argument(node, 1, "kernel_size")
        return _slide(field, _pair(kernel), _pair(_argument(node, 2, "stride") or kernel), (1, 1))
    name = node.target if isinstance(node.target, str) else getattr(node.target, "__name__", "")
    if kind == "global" or (node.op != "call_module" and name == "mean"):
        return None if before != after else field
    if node.op != "call_module" and name == "flatten":
        return _flattened(before, field)
    return field


def _flattened(before: tuple[int, ...], field: tuple[_Pair, _Pair]) -> _Field:
    """Flattening gives up no place: what reads the vector knows where each value was, unless there was one only."""
    return None if before[2:] == (1, 1) else field


def _slide(field: tuple[_Pair, _Pair], kernel: _Pair, stride: _Pair, dilation: _Pair) -> _Field:
    (size, step) = field
    grown = tuple(s + d * (k - 1) * j for s, k, d, j in zip(size, kernel, dilation, step, strict=True))
    moved = tuple(map(operator.mul, step, stride))
    return (grown[0], grown[1]), (moved[0], moved[1])


def _pair(value: int | tuple[int, ...]) -> _Pair:
    return (value, value) if isinstance(value, int) else (value[0], value[-1])


def _argument(node: fx.Node, place: int, name: str) -> Any:
    return node.args[place] if len(node.args) > place else node.kwargs.get(name)
