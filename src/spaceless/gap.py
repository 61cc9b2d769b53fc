"""GAP+FC (section 3.1 of the paper): one position in front of the changed units, fully connected layers behind it."""

from __future__ import annotations

import copy
import itertools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.nn import functional

from spaceless.errors import SurgeryError
from spaceless.hidden import is_filter, is_learned
from spaceless.models import GlobalAveragePool
from spaceless.plan import Plan, added, followers, is_depthwise, learning_as, once, pointwise
from spaceless.tracing import Trace, autocasting, one_mode, trace_graph
from spaceless.trial import Change

_POOLING = (
    nn.MaxPool2d, nn.AvgPool2d, nn.LPPool2d, nn.AdaptiveAvgPool2d, nn.AdaptiveMaxPool2d, GlobalAveragePool,
)
_SIZES = (nn.Upsample, nn.modules.padding._ReflectionPadNd, nn.modules.padding._ReplicationPadNd,
          nn.modules.padding._ConstantPadNd)

WINDOWS = (functional.max_pool2d, functional.avg_pool2d, torch.max_pool2d)
_POOLING_FUNCTIONS = (
    *WINDOWS, functional.pad, functional.interpolate, functional.adaptive_avg_pool2d, functional.adaptive_max_pool2d,
)


class FullyConnected(nn.Linear):
    """A linear layer on a pooled vector that is kept as (N, C, 1, 1), so that the modules around it need not change."""

    def forward(self, x: Tensor) -> Tensor:
        """Return (N, out, 1, 1) for x (N, in, 1, 1)."""
        return super().forward(x.flatten(1))[:, :, None, None]


def gap_fc(plan: Plan) -> None:
    """Pool in front of the changed units; everything computed from the pooled vectors becomes fully connected."""
    first = plan.targets[0]
    within = {unit.index: set(plan.traced.inside(unit.name)) for unit in plan.targets}
    downstream = set().union(*within.values())
    for node in plan.traced.nodes:
        if any(source in downstream for source in node.all_input_nodes):
            downstream.add(node)
    entering = {
        (source, node) for node in downstream for source in node.all_input_nodes
        if source not in downstream and len(plan.traced.shapes.get(source, ())) == 4
    }
    windows = {node for node in downstream if _left_out(plan.traced, node)}
    stripped = bool(plan.changes)
    for node in once(node for node in plan.traced.nodes if node in downstream):
        path, module = str(node.target), plan.traced.module_of(node)
        if module is None or not _present(plan.model, path):
            continue
        if isinstance(module, (nn.Conv2d, *_POOLING)) and not downstream.issuperset(plan.traced.calls(path)):
            raise SurgeryError(
                f"gap_fc on {path}", found="calls before and behind the pooled unit", expected="calls on one side",
                cure="give every call a module of its own, or choose another method",
            )
        if isinstance(module, nn.InstanceNorm2d):
            raise SurgeryError(
                f"gap_fc on {path}", found="a normalisation over the positions of an image",
                expected="one that a single position leaves something of", cure="choose another method")
        unit = plan.unit_of(path)
        if isinstance(module, nn.Conv2d) and is_depthwise(module):
            plan.replace(unit, path, nn.Identity())
            for follower in followers(plan.traced, node):
                plan.replace(unit, follower, nn.Identity())
        elif isinstance(module, nn.Conv2d):
            old = plan.own(path)
            assert isinstance(old, nn.Conv2d)
            plan.replace(unit, path, plan.tied(old, _connected(old)))
        elif (isinstance(module, _POOLING) and not _spreads(plan.traced, node)) or isinstance(module, _SIZES):
            plan.replace(unit, path, nn.Identity())
    lone = len({source for source, _ in entering}) == 1 and {user for _, user in entering} <= within[first.index]
    if lone and not windows and plan.traced.takes_one_map(first.name):
        body = plan.model.get_submodule(first.name)
        ((source, _), *_) = entering
        plan.replace(first.index, first.name, nn.Sequential(GlobalAveragePool(_dims(plan, source)), body))
    elif stripped:
        raise SurgeryError(
            f"gap_fc on {type(plan.traced.model).__name__}", found="strip where several maps enter the changed units",
            expected="one map, and no pooling by a function", cure="leave strip out, or choose another method",
        )
    else:
        _pool_where_entering(plan, entering, windows)


def _left_out(traced: Trace, node: fx.Node) -> bool:
    """Tell whether `node` is pooling or resizing by a function, which has nothing to do on a pooled vector."""
    if node.target in _POOLING_FUNCTIONS:
        return not _spreads(traced, node)
    return is_filter(traced, node) and not is_learned(traced, node)


class ByMode(nn.Module):
    """A function whose plain arguments differ between training and evaluation, such as dropout.

    Args:
        function: What is called with the tensors and the arguments of the mode.
        training: Positional and named arguments for training, with a `Slot` in the place of each tensor.
        evaluation: The same for evaluation.

    """

    def __init__(self, function: Callable[..., Any], training: tuple[Any, Any], evaluation: tuple[Any, Any]) -> None:
        """Remember both calls."""
        super().__init__()
        self.function, self.calls = function, {True: training, False: evaluation}

    def forward(self, *tensors: Tensor) -> Any:
        """Call the function with the arguments of the mode that the module is in."""
        args, kwargs = fx.node.map_aggregate(
            self.calls[self.training], lambda a: tensors[a.place] if isinstance(a, Slot) else a)
        return self.function(*args, **kwargs)


@dataclass(frozen=True)
class Slot:
    """The place of a tensor among those that a function is given."""

    place: int


def _by_mode(plan: Plan) -> dict[fx.Node, ByMode]:
    """Return a module for each function that has other arguments in training than in evaluation.

    Raises:
        SurgeryError: The forward pass differs in more than plain arguments of functions, or changes modes on its way.

    """
    size = plan.traced.shapes[plan.traced.nodes[0]][-1]
    with autocasting():
        training = list(trace_graph(copy.deepcopy(plan.traced.model).train(), size).nodes)
    if not (one_mode(plan.traced.nodes) and one_mode(training)):
        raise SurgeryError(
            f"gap_fc on {type(plan.traced.model).__name__}",
            found="a part of the forward pass without gradients or with an autocast of its own",
            expected="one mode for all of it, since a rewritten graph has no other",
            cure="freeze parameters by requires_grad_(False), or choose another method",
        )
    places = {node: i for nodes in (plan.traced.nodes, training) for i, node in enumerate(nodes)}

    def call(node: fx.Node) -> tuple[Any, Any]:
        slots: dict[fx.Node, Any] = {source: Slot(i) for i, source in enumerate(node.all_input_nodes)}
        return fx.node.map_arg(node.args, lambda n: slots[n]), fx.node.map_arg(node.kwargs, lambda n: slots[n])

    found = {}
    for one, other in itertools.zip_longest(plan.traced.nodes, training):
        alike = one is not None and other is not None and (one.op, one.target) == (other.op, other.target) and [
            places[source] for source in one.all_input_nodes] == [places[source] for source in other.all_input_nodes]
        if not alike or (call(one) != call(other) and one.op != "call_function"):
            raise SurgeryError(
                f"gap_fc on {type(plan.traced.model).__name__}",
                found=f"a forward pass that is another one in training (from {one or other} on)",
                expected="one whose graph can be rewritten", cure="use modules for dropout, or choose another method",
            )
        if call(one) != call(other) and callable(one.target):
            found[one] = ByMode(one.target, call(other), call(one))
    return found


def _pool_where_entering(plan: Plan, entering: set[tuple[fx.Node, fx.Node]], windows: set[fx.Node]) -> None:
    """Rewrite the graph: pool every map that enters the changed part (dense concatenation, side branches) once.

    Behind that every map has one position, and pooling by a function, in `windows`, is left out.
    """
    by_mode = _by_mode(plan)
    names: dict[tuple[int, int], str] = {}
    graph = fx.Graph()
    copies: dict[fx.Node, fx.Node] = {}
    pooled: dict[fx.Node, fx.Node] = {}
    for node in plan.traced.nodes:

        def source(old: fx.Node, user: fx.Node = node) -> fx.Node:
            if (old, user) not in entering:
                return copies[old]
            if old not in pooled:
                dims = _dims(plan, old)
                if dims not in names:
                    names[dims] = added(plan.model, "pooled", GlobalAveragePool(dims))
                pooled[old] = graph.call_module(names[dims], (copies[old],))
            return pooled[old]

        if node in windows:  # left out; where it is the first of a branch, the pooling stands in its place
            copies[node] = source(node.all_input_nodes[0])
        elif node in by_mode:
            switch = added(plan.model, "by_mode", by_mode[node].train(plan.model.training))
            copies[node] = graph.call_module(switch, tuple(map(source, node.all_input_nodes)))
        else:
            copies[node] = graph.node_copy(node, source)
    plan.model = fx.GraphModule(plan.model, graph, f"Pooled{type(plan.traced.model).__name__}")
    first = plan.targets[0].index
    plan.changes += [
        Change(unit=first, path=name, before="nothing", after="GlobalAveragePool") for name in names.values()]


def _dims(plan: Plan, node: fx.Node) -> tuple[int, int]:
    return (1, 2) if node in plan.traced.channels_last else (2, 3)


def _spreads(traced: Trace, node: fx.Node) -> bool:
    """Tell whether adaptive pooling gives a map of several positions that a linear head expects; it repeats the vector.

    Where a convolution reads the map there is no need: it becomes fully connected on the vector itself.
    """
    called = type(traced.module_of(node)).__name__ if node.op == "call_module" else getattr(node.target, "__name__", "")
    if "adaptive" not in called.lower() or traced.shapes[node][2:] == (1, 1):
        return False
    behind = {node}
    for each in traced.nodes:
        if any(source in behind for source in each.all_input_nodes):
            if isinstance(traced.module_of(each), nn.Conv2d):
                return False
            behind.add(each)
    return True


def _present(model: nn.Module, path: str) -> bool:
    """Tell whether `path` still names a module that is neither removed nor replaced."""
    try:
        return not isinstance(model.get_submodule(path), nn.Identity)
    except AttributeError:
        return False


@torch.no_grad()
def _connected(conv: nn.Conv2d) -> nn.Module:
    """Return what `conv` becomes on a pooled vector.

    A grouped one stays a convolution, of the single position, and so does one that treats its weights in its own way.
    """
    point = pointwise(conv, (1, 1))
    if conv.groups > 1 or type(conv).forward is not nn.Conv2d.forward:
        return point
    new = nn.utils.skip_init(  # type: ignore[no-untyped-call]
        FullyConnected, conv.in_channels, conv.out_channels, bias=conv.bias is not None,
        device=point.weight.device, dtype=point.weight.dtype,
    )
    new.weight.copy_(point.weight.flatten(1))
    if point.bias is not None:
        new.bias.copy_(point.bias)
    return learning_as(conv, new)
