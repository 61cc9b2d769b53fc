"""Pooling inside a unit that keeps the size of its map, such as the first layer of an Inception block's last branch."""

from __future__ import annotations

from types import MethodType
from typing import Any

import torch
from torch import fx, nn
from torch.nn import functional

from spaceless.errors import SurgeryError
from spaceless.plan import Plan, added
from spaceless.tracing import Trace, first_line, module_stack, trace_own
from spaceless.units import Unit

_MAXIMUM = ("input", "kernel_size", "stride", "padding", "dilation", "ceil_mode", "return_indices")
_FUNCTIONS: dict[Any, tuple[type[nn.Module], tuple[str, ...]]] = {
    functional.max_pool2d: (nn.MaxPool2d, _MAXIMUM), torch.max_pool2d: (nn.MaxPool2d, _MAXIMUM),
    functional.avg_pool2d: (nn.AvgPool2d, (
        "input", "kernel_size", "stride", "padding", "ceil_mode", "count_include_pad", "divisor_override")),
}


def pooling_within(traced: Trace, unit: Unit) -> list[fx.Node]:
    """Return the nodes that join neighbouring positions in `unit` by pooling and give a map of the same size."""
    return [node for node in traced.inside(unit.name) if _keeps_size(traced, node)]


def _keeps_size(traced: Trace, node: fx.Node) -> bool:
    pools = isinstance(traced.module_of(node), nn.MaxPool2d | nn.AvgPool2d) or node.target in _FUNCTIONS
    if not pools or len(traced.shapes.get(node, ())) != 4:
        return False
    return traced.sides(node) == traced.sides(node.all_input_nodes[0]) != (1, 1)


def as_modules(plan: Plan, unit: Unit) -> dict[str, fx.Node]:
    """Return the paths of the modules in the plan's network that do this pooling, functions turned into modules.

    Raises:
        SurgeryError: A module that other units pool by, too, or a forward pass in which a function cannot be replaced.

    """
    found: dict[str, fx.Node] = {}
    inside = pooling_within(plan.traced, unit)
    for node in (node for node in inside if node.op == "call_module"):
        if not str(node.target).startswith(f"{unit.name}."):
            raise SurgeryError(
                str(node.target), found=f"pooling in {unit.name} by a module from outside", expected="one of its own",
                cure="give every place a module of its own",
            )
        found.setdefault(str(node.target), node)
    for owner in dict.fromkeys(module_stack(node)[-1] for node in inside if node.op != "call_module"):
        found |= _replaced(plan, owner)
    return found


def _replaced(plan: Plan, owner: str) -> dict[str, fx.Node]:
    """Let the module at `owner` pool by modules of its own where its forward pass does so by functions."""
    module = plan.model.get_submodule(owner)
    called = [node for node in plan.traced.inside(owner)
              if node.target in _FUNCTIONS and module_stack(node)[-1] == owner]
    found: dict[str, fx.Node] = {}
    try:
        graph = trace_own(module)
        own = [node for node in graph.nodes if node.target in _FUNCTIONS]
        for node, function in zip(called, own, strict=True):
            if _keeps_size(plan.traced, node):
                name, x = _as_module(module, function)
                found[f"{owner}.{name}"] = node
                with graph.inserting_before(function):
                    function.replace_all_uses_with(graph.call_module(name, (x,)))
                graph.erase_node(function)
        forward = type(fx.GraphModule(module, graph)).forward
    except Exception as error:  # the network's own forward pass
        raise SurgeryError(
            owner, found=f"pooling by a function in a forward pass that cannot be rewritten ({first_line(error)})",
            expected="pooling by modules", cure="use nn.MaxPool2d or nn.AvgPool2d there",
        ) from error
    forward.__name__ = "forward_by_modules"  # so that a pickle, which would lose it, cannot be loaded
    module.forward = MethodType(forward, module)
    return found


def _as_module(owner: nn.Module, node: fx.Node) -> tuple[str, Any]:
    """Add a module to `owner` that pools as the function that `node` calls; return its name and what it reads."""
    kind, names = _FUNCTIONS[node.target]
    given = dict(zip(names, node.args, strict=False)) | node.kwargs
    x = given.pop("input")
    return added(owner, "pooling", kind(**given)), x
