"""What surgery must keep and what it must take away, checked on one network by running it in double precision."""

from __future__ import annotations

import copy
import operator
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.nn import functional

from spaceless.errors import SpacelessError
from spaceless.gap import WINDOWS
from spaceless.seeds import generator
from spaceless.shuffle import ShuffleConv, seek
from spaceless.surgery import remove_spatial
from spaceless.tracing import Trace, trace, trace_graph
from spaceless.units import Unit, is_spatial, units_of

METHODS = ("shuffle", "gap_fc", "conv1x1")
_SAME = 1e-7  # of the largest logit: rounding in double precision, which twenty normalisations of few values amplify
_MOVED = 1e-6
_FLAT = ("flatten", "view", "reshape")


class _Fails(Exception):  # noqa: N818 (a message to ourselves)
    """A property does not hold."""


class _HeadReads(Exception):  # noqa: N818 (a message to ourselves)
    """What is behind the last unit tells the positions apart, as a linear layer on a flattened map does."""


@dataclass(frozen=True)
class Verdict:
    """What `method` on the last `k` units of a network came to, and why where it does not hold.

    `status` is `holds`, `refused` (with the reason that the user is given) or `fails`. `invariant` names the map whose
    positions do not matter to the output any more: the map that enters the first changed unit, or the one behind the
    last pooling; None for `shuffle`, where what is checked is that two passes differ.
    """

    method: str
    k: int
    status: str
    reason: str | None = None
    invariant: str | None = None

    def to_json(self) -> dict[str, Any]:
        """Return the verdict as a record of plain values."""
        return asdict(self)


@torch.no_grad()
def awake(model: nn.Module, x: Tensor) -> nn.Module:
    """Return a copy of `model` in double precision in which every layer has a say in the output for x (N, C, H, W).

    Residual branches and layer scales that start at nought, or near it, would hide whatever is done to their layers:
    constant parameters are drawn anew, and normalisations take the moments of x.
    """
    model = copy.deepcopy(model)
    for module in model.modules():  # a branch that is dropped at random would make a pass another one each time
        for name in {"p", "drop_prob"} & set(vars(module)):
            setattr(module, name, 0.0)
    source = generator(0, "network check")
    for name, parameter in model.named_parameters():
        if parameter.numel() == 1 or bool((parameter == parameter.flatten()[0]).all()):
            low, high = (-0.1, 0.1) if name.endswith("bias") else (0.5, 1.5)
            parameter.copy_(torch.rand(parameter.shape, generator=source) * (high - low) + low)
    return _settled(model, x)


@torch.no_grad()
def _settled(model: nn.Module, x: Tensor) -> nn.Module:
    """Return `model` in evaluation mode, its normalisations with the moments of x, as training would leave them."""
    norms = [m for m in model.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
    kept = [norm.momentum for norm in norms]
    for norm in norms:
        norm.momentum = 1.0
    model.float().train()(x.float())
    for norm, momentum in zip(norms, kept, strict=True):
        norm.momentum = momentum
    return model.double().eval()


def check_network(model: nn.Module, x: Tensor, *, stem: bool = True) -> tuple[list[Unit], list[Verdict]]:
    """Return the units of `model` and a verdict for each method at K = 1, half of the units, and all of them.

    Checked for each: the shape of the output is kept; exactly the last K units changed, by the list of changes and by
    the spatial convolutions that are left; a forward and a backward pass are finite, and no parameter is left without
    a gradient that had one; the output of `shuffle` differs between two passes and repeats when sought again; the
    output of `gap_fc` and `conv1x1` does not depend on the order of positions that no longer mean anything, while that
    of the network as it was does.

    Args:
        model: Any network.
        x: Images (N, C, H, W) in double precision, N at least 4: of fewer a batch of pooled vectors has no moments.
        stem: See `find_units`.

    """
    model = awake(model, x)
    traced = trace(model, x.shape[-1])
    units = units_of(traced, stem=stem)
    idle = _without_gradient(model, x)
    with torch.no_grad():
        before = model(x[:2])
    verdicts = []
    for method in METHODS:
        for k in sorted({1, (len(units) + 1) // 2, len(units)}):
            try:
                invariant = _check(model, traced, units, method, k, x, before, idle, stem=stem)
                verdicts.append(Verdict(method, k, "holds", invariant=invariant))
            except SpacelessError as error:
                verdicts.append(Verdict(method, k, "refused", " ".join(str(error).split())))
            except _HeadReads as reason:
                verdicts.append(Verdict(method, k, "head", str(reason)))
            except Exception as error:  # whatever comes out of a network after surgery is a failure of ours
                verdicts.append(Verdict(method, k, "fails", f"{type(error).__name__}: {error}"[:300].split("\n")[0]))
    return units, verdicts


def _check(
    model: nn.Module, traced: Trace, units: list[Unit], method: str, k: int, x: Tensor, before: Tensor, idle: int, *,
    stem: bool,
) -> str | None:
    small, changes = remove_spatial(model, method, k, image_size=x.shape[-1], stem=stem)
    last = units[len(units) - k:]
    _expect({change.unit for change in changes if change.unit} == {unit.index for unit in last}, "other units changed")
    _check_convolutions(small, units, last, method)
    small = _settled(small, x)
    with torch.no_grad():
        after = small(x[:2])
    _expect(after.shape == before.shape, f"the output is {tuple(after.shape)}, was {tuple(before.shape)}")
    _expect(bool(after.isfinite().all()), "the output is not finite")
    _expect(_without_gradient(small, x) <= idle, "parameters without a gradient that had one")
    if method == "shuffle":
        _check_randomness(small, x[:2], positions=any(unit.in_size != (1, 1) for unit in last))
        return None
    return _check_invariance(model, small, traced, last[0], method, x[:2], before)


def _expect(holds: bool, otherwise: str) -> None:
    if not holds:
        raise _Fails(otherwise)


def _check_convolutions(small: nn.Module, units: list[Unit], changed: list[Unit], method: str) -> None:
    """The spatial convolutions that are left, and the shuffles, are those that the units say."""
    paths = {path for unit in changed for path in unit.convs}
    rest = {path for unit in units for path in unit.convs} - paths
    left = {path for path, module in small.named_modules() if is_spatial(module)}
    if method == "shuffle":
        shuffled = {path for path, module in small.named_modules() if isinstance(module, ShuffleConv)
                    and is_spatial(module.conv)}
        _expect(shuffled == paths, "the shuffled convolutions are not those of the last units")
        _expect(left >= rest | {f"{path}.conv" for path in paths}, "a convolution is gone")
        return
    within = [path for path in left for unit in changed if path == unit.name or path.startswith(unit.name + ".")]
    _expect(not within, f"still spatial: {', '.join(sorted(within)[:3])}")
    _expect(method == "gap_fc" or left >= rest, "a convolution in front of the last units is gone")


def _without_gradient(model: nn.Module, x: Tensor) -> int:
    """Return how many parameters get no gradient in a training step; raise if a gradient is not finite."""
    model = copy.deepcopy(model).float().train()  # several times as fast, and precise enough for this question
    output = model(x.float())
    loss = functional.cross_entropy(output, torch.arange(len(x), device=x.device) % output.shape[1])
    torch.autograd.backward(loss)
    broken = [n for n, p in model.named_parameters() if p.grad is not None and not bool(p.grad.isfinite().all())]
    _expect(not broken, f"gradients that are not finite: {', '.join(broken[:3])}")
    return sum(parameter.grad is None for parameter in model.parameters())


@torch.no_grad()
def _check_randomness(small: nn.Module, x: Tensor, *, positions: bool) -> None:
    seek(small, 0, "eval")
    first, second = small(x), small(x)
    seek(small, 0, "eval")
    _expect(bool(torch.equal(first, small(x))), "the same pass gives another output when sought again")
    if positions:
        _expect(_distance(first, second) > _MOVED, "two passes give the same output")


@torch.no_grad()
def _check_invariance(
    model: nn.Module, small: nn.Module, traced: Trace, first: Unit, method: str, x: Tensor, before: Tensor,
) -> str:
    """Return the map whose positions may be permuted without a change of the output; raise where that is not so."""
    inside = set(traced.inside(first.name))
    start = min(i for i, node in enumerate(traced.nodes) if node in inside)  # surgery left what is in front alone
    size = x.shape[-1]
    whole = fx.GraphModule(small, trace_graph(small, size))
    nodes = list(whole.graph.nodes)
    last = frozenset(node.name for node in trace(small, size).channels_last)
    plain = _Permuting(whole, last)
    expected = plain.run(x)
    if method == "gap_fc":
        places = {source: i for i, source in enumerate(traced.nodes[:start])}
        entering = {places[s] for node in inside for s in node.all_input_nodes if s in places and _is_map(traced, s)}
        moved = _Permuting(whole, last, start, entering)
        _expect(_distance(expected, moved.run(x)) < _SAME, "the order of the positions that enter counts")
        as_it_was = fx.GraphModule(model, trace_graph(model, size))
        control = _Permuting(as_it_was, frozenset(node.name for node in traced.channels_last), start, entering)
        effect = _distance(before, control.run(x))
        _expect(moved.positions == 1 or effect > _MOVED, "the network as it was does not mind the order either")
        return "entering"
    pooled = [i for i, node in enumerate(nodes) if i >= start and plain.pools(node)]
    moved = _Permuting(whole, last, max(pooled) + 1 if pooled else start)
    distance = _distance(expected, moved.run(x))
    if distance >= _SAME and plain.flattened > 1:
        raise _HeadReads(f"the head reads each of {plain.flattened} positions of the last map")
    _expect(distance < _SAME, "the order of the positions counts")
    return "pooled" if pooled else "entering"


class _Permuting(fx.Interpreter):
    """Runs a network; in front of the node with number `cut` the positions of maps that are alive are permuted.

    All maps of a size get the same permutation, so that branches stay aligned; with `entering`, the numbers of some
    nodes, only the maps that these give are, each channel by itself.
    """

    def __init__(
        self, whole: fx.GraphModule, last: frozenset[str], cut: int | None = None, entering: set[int] | None = None,
    ) -> None:
        super().__init__(whole)
        nodes = list(whole.graph.nodes)
        self.last = last
        self.cut = None if cut is None else nodes[cut]
        self.entering = None if entering is None else {nodes[i] for i in entering}
        self.shapes: dict[fx.Node, tuple[int, ...]] = {}
        self.positions = 1
        self.flattened = 1

    def run_node(self, n: fx.Node) -> Any:
        """Run a node, with the maps permuted if it is the one behind the cut."""
        if n is self.cut:
            for node in [node for node, value in self.env.items() if _is_tensor_map(value)]:
                if self.entering is None or node in self.entering:
                    self.env[node] = self._permuted(self.env[node], last=node.name in self.last)
        result = super().run_node(n)
        if isinstance(result, Tensor):
            self.shapes[n] = tuple(result.shape)
            read = [self.shapes.get(source, ()) for source in n.all_input_nodes]
            if len(result.shape) == 2 and _called(self.module, n) in _FLAT and read and len(read[0]) == 4:
                self.flattened = max(self.flattened, read[0][2] * read[0][3])
        return result

    def _permuted(self, x: Tensor, *, last: bool) -> Tensor:
        if last:  # (N, H, W, C)
            return self._permuted(x.permute(0, 3, 1, 2), last=False).permute(0, 2, 3, 1)
        positions = x.shape[2] * x.shape[3]
        self.positions = max(self.positions, positions)
        source = generator(0, "order of positions", positions)
        rows = 1 if self.entering is None else x.shape[1]
        order = torch.stack([torch.randperm(positions, generator=source) for _ in range(rows)])
        return x.flatten(2).gather(2, order.expand(len(x), x.shape[1], -1)).view(x.shape)

    def pools(self, node: fx.Node) -> bool:
        """Tell whether `node` joins neighbouring positions, or leaves some out, but for global pooling."""
        maps = [each for source in node.all_input_nodes if len(each := self.shapes.get(source, ())) == 4]
        shape = self.shapes.get(node, ())
        if len(shape) != 4 or not maps or maps[0][2] * maps[0][3] == 1:
            return False
        module = self.fetch_attr(str(node.target)) if node.op == "call_module" else None
        if isinstance(module, nn.MaxPool2d | nn.AvgPool2d | nn.LPPool2d) or node.target in WINDOWS:
            return True
        layer = module is not None and not isinstance(module, nn.Linear)  # which changes channels wherever they stand
        moves = layer or _called(self.module, node) in ("conv2d", "pad", "interpolate") or _slices(node)
        return moves and shape[2:] != (1, 1) and maps[0][2:] != shape[2:]


def _slices(node: fx.Node) -> bool:
    """Tell whether `node` leaves out rows or columns, as `x[:, :, ::2]` does: not whether it picks one of several."""
    if node.target is not operator.getitem or not isinstance(node.args[1], tuple):
        return False
    return any(isinstance(part, slice) and part != slice(None) for part in node.args[1][2:])


def _called(module: nn.Module, node: fx.Node) -> str:
    if node.op == "call_module":
        return type(module.get_submodule(str(node.target))).__name__.lower()
    return node.target if isinstance(node.target, str) else getattr(node.target, "__name__", "")


def _is_map(traced: Trace, node: fx.Node) -> bool:
    return len(traced.shapes.get(node, ())) == 4


def _is_tensor_map(value: Any) -> bool:
    return isinstance(value, Tensor) and value.dim() == 4 and value.shape[2] * value.shape[3] > 1


def _distance(first: Tensor, second: Tensor) -> float:
    """Return the largest difference as a share of the largest value."""
    return float((first - second).abs().max() / first.abs().max())
