"""What each operation of a traced graph does to the fields of the tensors that it reads: one rule for each kind."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import fx, nn

from spaceless.fields import Field, indexed, joined, permuted, reshaped, without
from spaceless.models import GlobalAveragePool
from spaceless.reach import Reach
from spaceless.readings import adaptive, argument, of_function, of_module
from spaceless.shuffle import Shuffle, ShuffleConv
from spaceless.tracing import Trace, module_stack


@dataclass(frozen=True)
class Gone:
    """Positions mean nothing any more: they were pooled or shuffled."""


@dataclass(frozen=True)
class Unknown:
    """What is read is not known, because of an operation that no rule knows."""

    operation: str


GONE = Gone()
State = Field | Gone | Unknown

_ALIASES = {
    "truediv": "div", "floordiv": "floor_divide", "iadd": "add", "isub": "sub", "imul": "mul", "itruediv": "div",
    "radd": "add", "rmul": "mul", "rtruediv": "div", "rdiv": "div", "rpow": "pow", "clip": "clamp",
}
_ENTRYWISE = {  # beside what PyTorch tags as pointwise; the statistics of normalisations are left out
    "alpha_dropout", "batch_norm", "channel_shuffle", "contiguous", "detach", "dropout", "dropout2d", "double",
    "feature_dropout", "float", "group_norm", "half", "hardswish", "instance_norm", "layer_norm", "log_softmax",
    "local_response_norm", "normalize", "prelu", "rms_norm", "rrelu", "softmax", "stochastic_depth", "threshold", "to",
    "type", "type_as",
}
_ENTRYWISE_MODULES = (
    nn.modules.batchnorm._NormBase, nn.GroupNorm, nn.LayerNorm, nn.RMSNorm, nn.LocalResponseNorm, nn.CrossMapLRN2d,
    nn.modules.dropout._DropoutNd, nn.Identity, nn.ChannelShuffle,
)
_NUMBERS = {  # their results are no tensors, or tensors in which no entry of the input is read
    "assert", "dim", "empty_like", "getattr", "is_contiguous", "ndimension", "new_empty", "new_full", "new_ones",
    "new_zeros", "numel", "ones_like", "rand_like", "randn_like", "size", "zeros_like",
}
_RESHAPES = {"flatten", "ravel", "reshape", "reshape_as", "squeeze", "unflatten", "unsqueeze", "view", "view_as"}
_REDUCTIONS = {"amax", "amin", "logsumexp", "max", "mean", "min", "norm", "std", "sum", "var", "var_mean"}
_SPLITS = {"chunk", "split", "split_with_sizes", "tensor_split", "unsafe_chunk", "unsafe_split"}
_ADAPTIVE = (GlobalAveragePool, nn.AdaptiveAvgPool2d, nn.AdaptiveMaxPool2d)


def propagate(traced: Trace) -> dict[fx.Node, State]:
    """Return what the positions of every tensor in `traced` read; tensors that no image reaches are left out."""
    states: dict[fx.Node, State] = {}
    for node in traced.nodes:
        if node.op == "placeholder":
            sides = traced.shapes[node][-2:]
            states[node] = Field((Reach(), Reach()), (sides[0], sides[1]), (2, 3))
        elif node.op != "output" and any(source in states for source in node.all_input_nodes) and not _counts(node):
            states[node] = _behind(traced, node, states)
    return states


def _behind(traced: Trace, node: fx.Node, states: dict[fx.Node, State]) -> State:
    read = [source for source in node.all_input_nodes if source in states]
    unknown = [state for source in read if isinstance(state := states[source], Unknown)]
    if unknown:
        return unknown[0]
    fields = {source: state for source in read if isinstance(state := states[source], Field)}
    if not fields:
        return GONE
    source = next(iter(fields))
    before = traced.shapes.get(source, ())
    call = _Call(traced, node, before, traced.shapes.get(node, before), fields)
    found = call.joined() if len(fields) > 1 else call.module() if node.op == "call_module" else call.function()
    return Unknown(_place(traced, node)) if found is None else found


@dataclass(frozen=True)
class _Call:
    """One call: of `node`, on a tensor of shape `before` with results of shape `after`, and the fields it reads."""

    traced: Trace
    node: fx.Node
    before: Sequence[int]
    after: Sequence[int]
    fields: dict[fx.Node, Field]

    @property
    def field(self) -> Field:
        return next(iter(self.fields.values()))

    def joined(self) -> State | None:
        """Of several tensors."""
        name = _name(self.node)
        field = joined(list(self.fields.values()))
        if name == "matmul":
            return self._product()
        if field is None or self.node.op == "call_module":
            return None
        if name in ("cat", "concat", "concatenate"):
            return None if self._dim(1, 0) in field.dims else field
        if name == "stack":
            new = argument(self.node, 1, "dim", 0) % len(self.after)
            return replace(field, dims=tuple(dim + (new <= dim) for dim in field.dims))
        return field if _is_entrywise(self.node) else None

    def module(self) -> State | None:
        """Of a layer."""
        module, field = self.traced.module_of(self.node), self.field
        if isinstance(module, ShuffleConv):
            if not module.shuffle.channels:
                return _shuffled(module.shuffle)
            module = module.conv  # positions keep their meaning (A.6)
        if isinstance(module, Shuffle):
            return field if module.channels else _shuffled(module)
        if isinstance(module, _ADAPTIVE):
            return self._adaptive()
        if isinstance(module, nn.Flatten | nn.Unflatten):
            return self._reshaped()
        if isinstance(module, nn.Linear):
            return self._linear()
        if isinstance(module, _ENTRYWISE_MODULES) or _is_activation(module):
            return field
        if module is None or not field.is_map(len(self.before)):
            return None
        return self._through(of_module(module, self.before[-2:], self.after[-2:]))

    def function(self) -> State | None:
        """Of a function or a method on one tensor."""
        name, field, node = _name(self.node), self.field, self.node
        if not self.before:  # one of several tensors that an operation gave
            return field if name == "getitem" else None
        if name == "getitem":
            return indexed(field, node.args[1], self.before, self.after)
        if name in ("cat", "concat", "concatenate", "stack"):
            return self.joined()
        if name in ("adaptive_avg_pool2d", "adaptive_max_pool2d"):
            return self._adaptive()
        if name in _RESHAPES:
            return self._reshaped()
        if name in ("max", "min") and isinstance(argument(node, 1, "other"), fx.Node):
            return field  # of two tensors, entry by entry
        if name in _REDUCTIONS:
            return self._reduced(argument(node, 2 if name == "norm" else 1, "dim"))
        if name in ("permute", "transpose", "swapaxes", "swapdims"):
            return self._permuted(name)
        if name in _SPLITS:
            return None if self._dim(2, 0) in field.dims else field
        if name in ("unbind", "select"):
            dim = self._dim(1, 0)
            return None if dim in field.dims else without(field, [dim], len(self.before))
        if name == "narrow":
            return None if self._dim(1, 0) in field.dims else field
        if name in ("expand", "expand_as"):
            same = len(self.before) == len(self.after) and all(self.before[d] == self.after[d] for d in field.dims)
            return field if same else None
        if name == "linear":
            return self._linear()
        if _is_entrywise(node):
            return field
        if not field.is_map(len(self.before)):
            return None
        weight = argument(node, 1, "weight")
        kernel = self.traced.shapes.get(weight, ())[2:] if isinstance(weight, fx.Node) else ()
        return self._through(of_function(name, node, kernel, self.before[-2:], self.after[-2:]))

    def _through(self, readings: Any) -> State | None:
        return None if readings is None else self.field.through(readings, self.after[-2:])

    def _dim(self, place: int, default: int) -> int:
        dim = argument(self.node, place, "dim", default)
        return dim % len(self.before) if isinstance(dim, int) else self.field.dims[0]

    def _adaptive(self) -> State | None:
        """Pool to a map of given sides: windows where several positions are left, else the end of all of them."""
        if not self.field.is_map(len(self.before)):
            return None
        before, after = self.before[-2:], self.after[-2:]
        if before == after:
            return self.field
        return GONE if tuple(after) == (1, 1) else self._through(adaptive(before, after))

    def _reshaped(self) -> State | None:
        """Reshape: a linear layer behind a flattened map sees every position of it, as a kernel of its size would."""
        found = reshaped(self.field, self.before, self.after)
        pooled = found is not None and self.field.dims and not found.dims and self.field.sides == (1, 1)
        return GONE if pooled else found

    def _permuted(self, name: str) -> State | None:
        given = self.node.args[1:] or tuple(self.node.kwargs.values())
        several = given[0] if len(given) == 1 and isinstance(given[0], tuple | list) else given
        dims = [dim for dim in several if isinstance(dim, int)]
        if len(dims) != len(several):
            return None
        if name == "permute":
            return permuted(self.field, dims)
        order = list(range(len(self.before)))
        first, second = dims
        order[first], order[second] = order[second], order[first]
        return permuted(self.field, order)

    def _reduced(self, dims: Any) -> State | None:
        count = len(self.before)
        gone = range(count) if dims is None else [dims] if isinstance(dims, int) else list(dims)
        places = {dim % count for dim in gone}
        lost = [dim for dim in self.field.dims if dim in places]
        if self.field.dims and len(lost) == len(self.field.dims):
            return GONE
        if lost:
            return None
        return self.field if len(self.after) == count else without(self.field, list(places), count)

    def _linear(self) -> State | None:
        mixed = len(self.before) - 1 in self.field.dims and self.field.sides != (1, 1)
        return None if mixed else self.field

    def _product(self) -> State | None:
        """A product of matrices that sums over the positions of both is a global pooling with weights."""
        (left, first), *others = self.fields.items()
        right, second = others[0]
        rows = len(self.traced.shapes.get(left, ())) - 1, len(self.traced.shapes.get(right, ())) - 2
        return GONE if (set(first.dims), set(second.dims)) == ({rows[0]}, {rows[1]}) else None


def _shuffled(shuffle: Shuffle) -> State | None:
    """Return what a shuffle leaves: nothing; unknown where the order can be learnt, or where patches stay whole."""
    return None if shuffle.fixed or shuffle.patch > 1 else GONE


def _name(node: fx.Node) -> str:
    """Return the name of the function or method that `node` calls, the same for all its spellings."""
    name = node.target if isinstance(node.target, str) else getattr(node.target, "__name__", "")
    plain = name.strip("_")
    return _ALIASES.get(plain, plain)


def _counts(node: fx.Node) -> bool:
    return node.op != "call_module" and _name(node) in _NUMBERS


def _is_entrywise(node: fx.Node) -> bool:
    """Tell whether each entry of the result is computed from the entries at its place."""
    home = None if isinstance(node.target, str) else getattr(node.target, "__module__", None)
    if home is not None and home.split(".")[0] not in ("torch", "torchvision", "_operator"):
        return False  # a function of the user's may be called anything
    name = _name(node)
    packet = getattr(torch.ops.aten, name, None)
    tags = (getattr(packet, kind).tags for kind in packet.overloads()) if packet is not None else ()
    return name in _ENTRYWISE or any(torch.Tag.pointwise in each for each in tags)


def _is_activation(module: nn.Module | None) -> bool:
    return type(module).__module__ == "torch.nn.modules.activation" and not isinstance(module, nn.MultiheadAttention)


def _place(traced: Trace, node: fx.Node) -> str:
    if node.op == "call_module":
        return f"{type(traced.module_of(node)).__name__} {node.target}"
    stack = module_stack(node)
    return f"{_name(node)} in {stack[-1]}" if stack else _name(node)
