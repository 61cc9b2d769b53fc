"""GAP+FC (section 3.1 of the paper): one position in front of the changed units, fully connected layers behind it."""

from __future__ import annotations

import copy

import torch
from torch import Tensor, fx, nn
from torch.nn import functional

from spaceless.errors import SurgeryError
from spaceless.models import GlobalAveragePool
from spaceless.plan import Plan, followers, is_depthwise, once, pointwise
from spaceless.tracing import Trace, trace_graph
from spaceless.trial import Change

_POOLING = (
    nn.MaxPool2d, nn.AvgPool2d, nn.LPPool2d, nn.AdaptiveAvgPool2d, nn.AdaptiveMaxPool2d, GlobalAveragePool,
)


_WINDOWS = (functional.max_pool2d, functional.avg_pool2d, torch.max_pool2d)


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
    windows = {node for node in downstream if node.target in _WINDOWS}
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
        unit = plan.unit_of(path)
        if isinstance(module, nn.Conv2d) and is_depthwise(module):
            plan.replace(unit, path, nn.Identity())
            for follower in followers(plan.traced, node):
                plan.replace(unit, follower, nn.Identity())
        elif isinstance(module, nn.Conv2d):
            old = plan.model.get_submodule(path)
            assert isinstance(old, nn.Conv2d)
            plan.replace(unit, path, _connected(old))
        elif isinstance(module, _POOLING) and not _spreads(plan.traced, node):
            plan.replace(unit, path, nn.Identity())
    lone = len({source for source, _ in entering}) == 1 and {user for _, user in entering} <= within[first.index]
    if lone and not windows and plan.traced.takes_one_map(first.name):
        body = plan.model.get_submodule(first.name)
        plan.replace(first.index, first.name, nn.Sequential(GlobalAveragePool(), body))
    elif stripped:
        raise SurgeryError(
            f"gap_fc on {type(plan.traced.model).__name__}", found="strip where several maps enter the changed units",
            expected="one map, and no pooling by a function", cure="leave strip out, or choose another method",
        )
    else:
        _pool_where_entering(plan, entering, windows)


def _pool_where_entering(plan: Plan, entering: set[tuple[fx.Node, fx.Node]], windows: set[fx.Node]) -> None:
    """Rewrite the graph: pool every map that enters the changed part (dense concatenation, side branches) once.

    Behind that every map has one position, and pooling by a function, in `windows`, is left out.
    """
    taken = plan.traced.nodes[0].graph
    if str(trace_graph(copy.deepcopy(plan.traced.model).train())) != str(taken):
        raise SurgeryError(
            f"gap_fc on {type(plan.traced.model).__name__}", found="a forward pass that is another one in training",
            expected="one whose graph can be rewritten", cure="use modules for dropout, or choose another method",
        )
    name = next(f"pooled{i or ''}" for i in range(len(plan.units) + 1) if not hasattr(plan.model, f"pooled{i or ''}"))
    plan.model.add_module(name, GlobalAveragePool())
    graph = fx.Graph()
    copies: dict[fx.Node, fx.Node] = {}
    pooled: dict[fx.Node, fx.Node] = {}
    for node in plan.traced.nodes:

        def source(old: fx.Node, user: fx.Node = node) -> fx.Node:
            if (old, user) not in entering:
                return copies[old]
            if old not in pooled:
                pooled[old] = graph.call_module(name, (copies[old],))
            return pooled[old]

        # A window is left out; where it is the first of a branch, the pooling stands in its place.
        copies[node] = source(node.all_input_nodes[0]) if node in windows else graph.node_copy(node, source)
    plan.model = fx.GraphModule(plan.model, graph, f"Pooled{type(plan.traced.model).__name__}")
    first = plan.targets[0].index
    plan.changes.append(Change(unit=first, path=name, before="nothing", after="GlobalAveragePool"))


def _spreads(traced: Trace, node: fx.Node) -> bool:
    """Tell whether adaptive pooling gives a map of several positions that its readers expect; it repeats the vector."""
    return "Adaptive" in type(traced.module_of(node)).__name__ and traced.shapes[node][2:] != (1, 1)


def _present(model: nn.Module, path: str) -> bool:
    """Tell whether `path` still names a module that is neither removed nor replaced."""
    try:
        return not isinstance(model.get_submodule(path), nn.Identity)
    except AttributeError:
        return False


@torch.no_grad()
def _connected(conv: nn.Conv2d) -> nn.Module:
    """Return what `conv` becomes on a pooled vector; a grouped one stays a convolution, of the single position."""
    point = pointwise(conv, (1, 1))
    if conv.groups > 1:
        return point
    new = nn.utils.skip_init(  # type: ignore[no-untyped-call]
        FullyConnected, conv.in_channels, conv.out_channels, bias=conv.bias is not None,
        device=point.weight.device, dtype=point.weight.dtype,
    )
    new.weight.copy_(point.weight.flatten(1))
    if point.bias is not None:
        new.bias.copy_(point.bias)
    return new  # type: ignore[no-any-return]
