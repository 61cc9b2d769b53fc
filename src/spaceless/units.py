"""The units of a network, in execution order: what K counts. Found from the trace and the module tree.

A unit is the smallest repeated block that contains a convolution with spatial extent; such a convolution outside any
block is a unit of its own (DESIGN of the paper's section 3.2: a convolution of VGG-16, a bottleneck of ResNet).
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn

from spaceless.errors import InputError
from spaceless.tracing import Trace, trace

_CONTAINERS = (nn.Sequential, nn.ModuleList, nn.ModuleDict)


@dataclass(frozen=True)
class Unit:
    """One unit.

    Attributes:
        index: Counted from 1 at the input.
        name: The path of its module.
        kind: The type of its module, for the reader's eye only.
        convs: The paths of its spatial convolutions, in execution order.
        in_size: Height and width, in positions, of the map that enters its first spatial convolution.
        out_size: Height and width of the map that leaves the unit.
        params: The number of its parameters.

    """

    index: int
    name: str
    kind: str
    convs: tuple[str, ...]
    in_size: tuple[int, int]
    out_size: tuple[int, int]
    params: int


def is_spatial(module: nn.Module | None) -> bool:
    """Tell whether `module` is a convolution that looks at more than one position."""
    return isinstance(module, nn.Conv2d) and tuple(module.kernel_size) != (1, 1)


def find_units(model: nn.Module, image_size: int = 224, *, stem: bool = True) -> list[Unit]:
    """Return the units of `model` in execution order.

    Args:
        model: Any network of (N, C, H, W) images; it is not changed.
        image_size: The side of the image in pixels; it decides the sizes of the maps.
        stem: Count a spatial convolution outside any block as a unit when there are blocks. The paper does not
            (16 bottlenecks of ResNet-50); a plain chain such as VGG-16 has no blocks and counts every convolution.

    Raises:
        InputError: The network cannot be traced or holds no spatial convolution.

    """
    return units_of(trace(model, image_size), stem=stem)


def units_of(traced: Trace, *, stem: bool = True) -> list[Unit]:
    """Return the units of a traced network; see `find_units`."""
    model = traced.model
    called = [str(node.target) for node in traced.nodes if is_spatial(traced.module_of(node))]
    convs = list(dict.fromkeys(called))
    if not convs:
        raise InputError(
            type(model).__name__, found="no spatial convolution", expected="a convolutional network",
            cure="choose a network with at least one convolution larger than 1x1",
        )
    blocks = _block_types(model, convs)
    members: dict[str, list[str]] = {}
    for conv in convs:
        members.setdefault(_block_of(model, conv, blocks) or conv, []).append(conv)
    if not stem and any(name not in convs for name in members):
        members = {name: inside for name, inside in members.items() if name not in convs}
    return [_unit(traced, i, name, tuple(inside)) for i, (name, inside) in enumerate(members.items(), start=1)]


def _unit(traced: Trace, index: int, name: str, convs: tuple[str, ...]) -> Unit:
    module = traced.model.get_submodule(name)
    first = traced.calls(convs[0])[0]
    # What leaves the module may be several maps, or a sequence of positions: the last map in it counts.
    leaving = [node for node in traced.inside(name) if len(traced.shapes.get(node, ())) == 4]
    if not leaving:
        raise InputError(
            name, found="a block of which the network is no longer made", expected="modules that call each other",
            cure="pass the network itself, not its graph")
    params = sum(p.numel() for p in module.parameters())
    sizes = traced.sides(first.all_input_nodes[0]), traced.sides(leaving[-1])
    return Unit(index, name, type(module).__name__, convs, *sizes, params)


def _ancestors(path: str) -> list[str]:
    """Return the paths of the modules around `path`, innermost first, without the network itself."""
    parts = path.split(".")[:-1]
    return [".".join(parts[:i]) for i in range(len(parts), 0, -1)]


def _block_types(model: nn.Module, convs: list[str]) -> set[type[nn.Module]]:
    """Return the types that make a block: used more than once around spatial convolutions, with several layers.

    One convolution with its normalisation and activation is a layer, not a block, whatever class wraps it.
    """
    around = {path for conv in convs for path in _ancestors(conv)}
    holders = {path: model.get_submodule(path) for path in around}
    kinds = [type(m) for m in holders.values()]
    single = {type(m) for m in holders.values() if _layers(m) < 2}
    repeated = {kind for kind in kinds if kinds.count(kind) > 1 and kind not in (*_CONTAINERS, *single)}
    stages = {type(m) for m in holders.values() if any(_count(m, kind) > 1 for kind in repeated - {type(m)})}
    return repeated - stages


def _count(module: nn.Module, kind: type[nn.Module]) -> int:
    return sum(type(m) is kind for m in module.modules())


def _layers(module: nn.Module) -> int:
    return sum(isinstance(m, nn.Conv2d | nn.Linear) for m in module.modules())


def _block_of(model: nn.Module, conv: str, blocks: set[type[nn.Module]]) -> str | None:
    """Return the path of the smallest block around `conv`, or of what always holds exactly one such block."""
    around = [path for path in _ancestors(conv) if type(model.get_submodule(path)) in blocks]
    if not around:
        return None
    name = around[0]
    for outer in around[1:]:
        inner_kind, outer_kind = type(model.get_submodule(name)), type(model.get_submodule(outer))
        if any(_count(holder, inner_kind) != 1 for holder in model.modules() if type(holder) is outer_kind):
            break
        name = outer
    return name
