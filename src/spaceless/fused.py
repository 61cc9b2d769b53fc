"""A network in training on a GPU, with normalisation, sum and ReLU in one kernel, and its weights cast in one go.

The parameters and buffers are the network's own, and so, up to rounding, are the results. What no kernel is for stays
as it is; a network that cannot be traced, or that does not give its own results this way, is used as it is.
"""

from __future__ import annotations

import copy
import operator
import warnings
from collections import Counter
from collections.abc import Iterable
from functools import lru_cache
from typing import Any, NamedTuple

import torch
from torch import Tensor, fx, nn
from torch.nn import functional

from spaceless.errors import InputError
from spaceless.shuffle import ShuffleConv, seek
from spaceless.tracing import example_input, first_line, one_mode, trace_graph

_RELUS = (functional.relu, torch.relu, torch.relu_, "relu", "relu_")
_SUMS = (operator.add, operator.iadd, torch.add, "add", "add_")
_IMAGES = 8  # on which both ways are compared
_APART = 0.01  # of the largest number, at least of this: in the fp32 of matrix units a deep network rounds so much


class Normalised(nn.Module):
    """relu(norm(conv(x)) + residual): a convolution, its batch normalisation, and what follows."""

    def __init__(self, conv: nn.Module | None, norm: nn.BatchNorm2d, *, relu: bool) -> None:
        """Join them; without a convolution `norm` comes first, without `relu` nothing follows."""
        super().__init__()
        self.conv, self.norm, self.relu = conv, norm, relu

    def forward(self, x: Tensor, residual: Tensor | None = None) -> Tensor:
        """Return the result for a map x (N, C, H, W)."""
        from spaceless import kernels

        offset = None
        conv = self.conv
        if isinstance(conv, ShuffleConv):
            x, conv = conv.shuffle(x), conv.conv
        if conv is not None:
            assert isinstance(conv, nn.Conv2d)
            offset = conv.bias
            x = conv._conv_forward(x, conv.weight, None)
        odd = residual is not None and (residual.shape, residual.dtype) != (x.shape, x.dtype)
        if odd or x.dim() != 4 or x.numel() >= 1 << 31:  # the kernels' integers end there
            x = self.norm(x if offset is None else x + offset[:, None, None])
            x = x if residual is None else x + residual
            return functional.relu(x) if self.relu else x
        return kernels.normalised(x, self.norm, residual=residual, offset=offset, relu=self.relu)


class Pooled(nn.Module):
    """Maxima over 2x2 positions."""

    def forward(self, x: Tensor) -> Tensor:
        """Return them for a map x (N, C, H, W)."""
        from spaceless import kernels

        if x.dim() != 4 or x.shape[2] % 2 or x.shape[3] % 2 or x.numel() >= 1 << 31:
            return functional.max_pool2d(x, 2)
        return kernels.pooled(x)


class Halves:
    """A network whose large weights are cast to bf16 in one go, and their gradients back.

    Autocast would cast each by itself, and each gradient too: two kernels for every layer.
    """

    def __init__(self, network: nn.Module) -> None:
        """Make a bf16 copy of the weights of all convolutions and linear layers of `network`."""
        self.network = network
        places = [
            (module, name, parameter) for module in network.modules()
            if type(module) in (nn.Conv2d, nn.Linear) and not _hooked(module)
            for name, parameter in module.named_parameters(recurse=False)
            if name in ("weight", "bias") and parameter.requires_grad]
        self.wholes: list[Tensor] = list(dict.fromkeys(parameter for _, _, parameter in places))
        self.halves: list[Tensor] = [nn.Parameter(whole.detach().to(torch.bfloat16)) for whole in self.wholes]
        half_of = dict(zip(self.wholes, self.halves, strict=True))
        self.places = [(module, name, parameter, half_of[parameter]) for module, name, parameter in places]

    def __call__(self, x: Tensor) -> Tensor:
        """Return what the network gives for x with the weights of now."""
        with torch.no_grad():
            torch._foreach_copy_(self.halves, self.wholes)
        for half in self.halves:
            half.grad = None
        try:
            for module, name, _, half in self.places:
                module._parameters[name] = half  # type: ignore[assignment]
            return self.network(x)  # type: ignore[no-any-return]
        finally:
            for module, name, whole, _ in self.places:
                module._parameters[name] = whole

    def hand_back(self) -> None:
        """Give the weights the gradients of their copies, after `backward`."""
        used = [(whole, half.grad) for whole, half in zip(self.wholes, self.halves, strict=True)
                if half.grad is not None]
        gradients = [torch.empty_like(whole) for whole, _ in used]
        torch._foreach_copy_(gradients, [gradient for _, gradient in used])
        for (whole, _), gradient in zip(used, gradients, strict=True):
            whole.grad = gradient if whole.grad is None else whole.grad + gradient


def quick(model: nn.Module, image_size: int, *, kernels: bool) -> nn.Module | Halves:
    """Return the fastest way to run `model`, in training mode and in bf16, that does what `model` does.

    Args:
        model: Parameters and buffers stay its own.
        image_size: The side of the images.
        kernels: Whether our kernels work here, see `kernels_work`.

    """
    why = None
    for joined in (True, False) if kernels else (False,):
        try:
            network = _rewritten(model, image_size) if joined else model
            if network is None:  # there is nothing to join
                continue
            if (why := _difference(model, image_size, joined=joined)) is None:
                return Halves(network)
        except Exception as error:  # the network's own code, traced, copied, and run on other types
            why = first_line(error)
        warnings.warn(
            f"{type(model).__name__} is trained {'without our kernels' if joined else 'as it is'}, since with them it "
            f"would not be the same: {why}", stacklevel=3)
    return model


@lru_cache(maxsize=8)
def kernels_work(device: torch.device) -> bool:
    """Tell whether our kernels work on this GPU; a warning says why not."""
    try:
        from spaceless import kernels
    except ImportError as error:
        why: str | None = str(error)
    else:
        why = kernels.works(device)
    if why is not None:
        warnings.warn(f"no kernel of our own can be used here, so that training is slower: {why}", stacklevel=3)
    return why is None


def _rewritten(model: nn.Module, image_size: int) -> nn.Module | None:
    """Return `model` as a graph in which what can be joined is; None if there is nothing.

    Raises InputError for a network that no graph stands for.
    """
    device = next(iter(model.parameters())).device
    with torch.autocast(device.type, torch.bfloat16):  # so that a part which leaves it out shows
        graph = trace_graph(model, image_size)
    if not one_mode(graph.nodes):
        raise InputError(type(model).__name__, found="parts without gradients or autocast", expected="one mode",
                         cure="leave it as it is")
    found = fx.GraphModule(model, graph)
    calls = Counter(node.target for node in graph.nodes if node.op == "call_module")
    joined = 0
    for node in list(graph.nodes):
        module = model.get_submodule(str(node.target)) if node.op == "call_module" else None
        if type(module) is nn.BatchNorm2d and calls[node.target] == 1 and _plain(module):
            _join(found, node, module, calls, f"joined_{joined}")
            joined += 1
        elif type(module) is nn.MaxPool2d and _halves(module) and not _hooked(module):
            found.add_submodule(f"joined_{joined}", Pooled())
            node.target = f"joined_{joined}"
            joined += 1
    found.delete_all_unused_submodules()
    graph.lint()
    found.recompile()
    return found if joined else None


def _hooked(module: nn.Module) -> bool:
    return bool(module._forward_hooks or module._forward_pre_hooks or module._backward_hooks
                or module._backward_pre_hooks)


def _plain(norm: nn.BatchNorm2d) -> bool:
    usual = norm.affine and norm.track_running_stats and norm.momentum is not None
    return norm.training and usual and not _hooked(norm)


def _halves(pool: nn.MaxPool2d) -> bool:
    sizes = [tuple(v) if isinstance(v, Iterable) else (v, v) for v in (pool.kernel_size, pool.stride)]
    rest = pool.padding in (0, (0, 0)) and pool.dilation in (1, (1, 1)) and not pool.ceil_mode
    return sizes == [(2, 2), (2, 2)] and rest and not pool.return_indices


def _join(
    found: fx.GraphModule, node: fx.Node, norm: nn.BatchNorm2d, calls: Counter[Any], name: str,
) -> None:
    """Put one module in the place of the normalisation `node`, the convolution before it and what comes behind."""
    first = node.args[0]
    assert isinstance(first, fx.Node)
    conv = None
    if first.op == "call_module" and len(first.users) == 1 and calls[first.target] == 1:
        before = found.get_submodule(str(first.target))
        inner = before.conv if type(before) is ShuffleConv else before
        hooked = _hooked(before) or _hooked(inner)
        if type(inner) is nn.Conv2d and inner.bias is not None and inner.padding_mode == "zeros" and not hooked:
            conv = before
    last, residual = node, None
    if (behind := _only_user(node)) is not None and _is(behind, found, _SUMS, None) and not behind.kwargs:
        others = [arg for arg in behind.args if arg is not node]
        if len(behind.args) == 2 and len(others) == 1 and isinstance(others[0], fx.Node):
            relu = _only_user(behind)
            if relu is not None and _is(relu, found, _RELUS, nn.ReLU):
                last, residual = relu, others[0]
    elif behind is not None and _is(behind, found, _RELUS, nn.ReLU):
        last = behind
    found.add_submodule(name, Normalised(conv, norm, relu=last is not node))
    with found.graph.inserting_after(last):
        inputs = (first.args[0] if conv is not None else first, *([] if residual is None else [residual]))
        new = found.graph.call_module(name, inputs)
    last.replace_all_uses_with(new)
    for old in dict.fromkeys((last, *([behind] if residual is not None and behind is not None else []), node,
                              *([first] if conv is not None else []))):
        found.graph.erase_node(old)


def _only_user(node: fx.Node) -> fx.Node | None:
    return next(iter(node.users)) if len(node.users) == 1 else None


def _is(node: fx.Node, found: fx.GraphModule, functions: tuple[Any, ...], kind: type[nn.Module] | None) -> bool:
    if node.op == "call_module":
        module = found.get_submodule(str(node.target))
        return kind is not None and type(module) is kind and not _hooked(module)
    return node.op in ("call_function", "call_method") and node.target in functions


def _difference(model: nn.Module, image_size: int, *, joined: bool) -> str | None:
    """Compare both ways on copies and on noise; return what differs, or None.

    In fp32 answers and running statistics agree up to rounding. In bf16, whose rounding a deep network multiplies, what
    can be compared is which parameters learn, and the type of the answers.
    """
    if joined:
        ours, own = (_run(model, image_size, joined=each, half=False) for each in (True, False))
        for a, b in zip((ours.answers, *ours.buffers), (own.answers, *own.buffers), strict=True):
            if a.numel() and not float((a - b).abs().max()) <= _APART * max(_APART, float(b.abs().max())):
                return "other answers or running statistics"
    ours, own = (_run(model, image_size, joined=each and joined, half=each, cast=True) for each in (True, False))
    if ours.answers.dtype != own.answers.dtype:
        return f"answers in {ours.answers.dtype}, not {own.answers.dtype}"
    if odd := sorted(ours.learning ^ own.learning):
        return f"a gradient for {odd[0]}" if odd[0] in ours.learning else f"no gradient for {odd[0]}"
    return None


class _Run(NamedTuple):
    """The answers of a network, its buffers of real numbers, and the names of the parameters that got a gradient."""

    answers: Tensor
    buffers: list[Tensor]
    learning: set[str]


def _run(model: nn.Module, image_size: int, *, joined: bool, half: bool, cast: bool = False) -> _Run:
    """Run a copy of `model` once, forwards and, in bf16 (`cast`), backwards."""
    own = copy.deepcopy(model)
    network: Any = _rewritten(own, image_size) if joined else own
    network = Halves(network) if half else network
    seek(own, 0)
    x = example_input(own, image_size)
    source = torch.Generator(x.device).manual_seed(0)
    x = torch.randn(_IMAGES, *x.shape[1:], device=x.device, generator=source)
    with torch.random.fork_rng(devices=[x.device] if x.device.type == "cuda" else []), torch.set_grad_enabled(cast):
        torch.manual_seed(0)
        with torch.autocast(x.device.type, torch.bfloat16, enabled=cast):
            answers = network(x.contiguous(memory_format=torch.channels_last))
        if cast:
            answers.float().square().mean().backward()
            if half:
                network.hand_back()
    learning = {name for name, parameter in own.named_parameters() if parameter.grad is not None}
    return _Run(answers.detach(), [b for b in own.buffers() if b.is_floating_point()], learning)
