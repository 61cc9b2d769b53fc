"""Where height and width stand in the maps of a traced network: (N, C, H, W), or (N, H, W, C) as some libraries do."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import fx, nn

_TO_LAST, _TO_FIRST = (0, 2, 3, 1), (0, 3, 1, 2)


def channels_last(model: nn.Module, shapes: Mapping[fx.Node, tuple[int, ...]]) -> frozenset[fx.Node]:
    """Return the nodes of a traced network whose output is a map (N, H, W, C).

    A map becomes one by a permutation of its dimensions, stays one through whatever keeps its four dimensions, and is
    none behind the opposite permutation; a convolution gives (N, C, H, W).

    Args:
        model: The network that the nodes belong to.
        shapes: The shape of each node's output, in execution order.

    """
    found: set[fx.Node] = set()
    for node in next(iter(shapes)).graph.nodes:
        if len(shapes.get(node, (0, 0, 0, 0))) != 4:  # several tensors have no shape of their own
            continue
        order = _order(node)
        convolution = node.op == "call_module" and isinstance(model.get_submodule(str(node.target)), nn.Conv2d)
        stays = order != _TO_FIRST and not convolution and any(source in found for source in node.all_input_nodes)
        if order == _TO_LAST or stays:
            found.add(node)
    return frozenset(found)


def _order(node: fx.Node) -> tuple[Any, ...] | None:
    """Return the order of dimensions that `node` brings about, or None if it permutes none."""
    name = node.target if isinstance(node.target, str) else getattr(node.target, "__name__", "")
    if name != "permute" or node.op == "call_module":
        return None
    given = node.args[1:] or (node.kwargs.get("dims"),)
    order = given[0] if len(given) == 1 and isinstance(given[0], list | tuple) else given
    assert isinstance(order, list | tuple)
    return tuple(axis % len(order) if isinstance(axis, int) else axis for axis in order)
