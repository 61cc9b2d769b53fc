"""The traced graph of a network with the shape of every tensor in it: what units, surgery and receptive fields read.

Tracing runs on a copy on the meta device: no arithmetic is done and the network is not touched.
"""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.nn import functional
from torch.overrides import TorchFunctionMode

from spaceless.errors import InputError, SurgeryError
from spaceless.layout import channels_last
from spaceless.recording import record
from spaceless.sized import trace_sized


@dataclass(frozen=True)
class Trace:
    """One forward pass of a network in evaluation mode, for a batch of one image.

    Attributes:
        model: The traced network: the user's own module tree, on the meta device.
        nodes: The graph's nodes in execution order.
        shapes: The shape of each node's output, where that is one tensor.

    """

    model: nn.Module
    nodes: tuple[fx.Node, ...]
    shapes: dict[fx.Node, tuple[int, ...]]

    def module_of(self, node: fx.Node) -> nn.Module | None:
        """Return the module that `node` calls, or None for functions, inputs and outputs."""
        return self.model.get_submodule(str(node.target)) if node.op == "call_module" else None

    def calls(self, path: str) -> list[fx.Node]:
        """Return the nodes that call the module at `path`."""
        return [node for node in self.nodes if node.op == "call_module" and node.target == path]

    def inside(self, path: str) -> list[fx.Node]:
        """Return the nodes that are executed within the module at `path`, itself included."""
        return list(self._within.get(path, ()))

    @cached_property
    def channels_last(self) -> frozenset[fx.Node]:
        """The nodes whose output is a map (N, H, W, C)."""
        return channels_last(self.model, self.shapes)

    def sides(self, node: fx.Node) -> tuple[int, int]:
        """Return height and width of the map that `node` gives."""
        shape = self.shapes[node]
        return (shape[1], shape[2]) if node in self.channels_last else (shape[2], shape[3])

    @cached_property
    def _within(self) -> dict[str, list[fx.Node]]:
        """The nodes executed within each module, by its path: one walk over the graph for all of them."""
        found: dict[str, list[fx.Node]] = {}
        for node in self.nodes:
            own = [str(node.target)] if node.op == "call_module" else []
            for path in dict.fromkeys([*module_stack(node), *own]):
                found.setdefault(path, []).append(node)
        return found

    def takes_one_map(self, path: str) -> bool:
        """Tell whether the module at `path` is called with one tensor: not with a list of them, nor with several."""
        seen: list[bool] = []

        def look(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            seen.append(len(args) == 1 and isinstance(args[0], Tensor) and not kwargs)

        hook = self.model.get_submodule(path).register_forward_pre_hook(look, with_kwargs=True)
        try:
            with torch.no_grad(), ShapesOnly():
                size = self.shapes[self.nodes[0]][-1]
                self.model(example_input(self.model, size))
        finally:
            hook.remove()
        return bool(seen) and all(seen)


def module_stack(node: fx.Node) -> tuple[str, ...]:
    """Return the paths of the modules that `node` is executed in, outermost first."""
    return tuple(path for path, _ in node.meta.get("nn_module_stack", {}).values())


# A library's own variants of these (timm's Conv2dSame and BatchNormAct2d, say) stay one layer: traced into, they would
# be functions that no unit counts and no surgery finds.
_LAYERS = (nn.Conv2d, nn.modules.batchnorm._NormBase, nn.GroupNorm, nn.LayerNorm)


_AUTOCAST = ("cpu", "cuda")  # the devices on which a network is trained in bf16


class _Tracer(fx.Tracer):
    proxy_buffer_attributes = True  # what is computed from a buffer stays computed: here it would be a tensor on meta

    def create_node(self, *args: Any, **kwargs: Any) -> fx.Node:
        node = super().create_node(*args, **kwargs)
        # What a graph does not hold: under no_grad, or with autocast switched off, it would compute something else.
        node.meta["modes"] = torch.is_grad_enabled(), *map(torch.is_autocast_enabled, _AUTOCAST)
        return node

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return _is_ours(m) or isinstance(m, _LAYERS) or super().is_leaf_module(m, module_qualified_name)


def _is_ours(module: nn.Module) -> bool:
    return type(module).__module__.startswith("spaceless.")


class _Shapes(fx.Interpreter):
    def __init__(self, module: fx.GraphModule) -> None:
        super().__init__(module)
        self.shapes: dict[fx.Node, tuple[int, ...]] = {}

    def run_node(self, n: fx.Node) -> Any:
        result = super().run_node(n)
        if isinstance(result, Tensor):
            self.shapes[n] = tuple(result.shape)
        return result


def example_input(model: nn.Module, image_size: int) -> Tensor:
    """Return zeros (1, C, image_size, image_size) on the device of `model`.

    C is what its first convolution takes, or what surgery has put in its place. Where that is neither 1 nor 3 the stem
    may be registered behind the blocks, or stand behind a rearrangement of pixels: what the network accepts decides.
    """
    place = next(iter(model.parameters()), torch.empty(0))
    channels = _image_channels(model, image_size, place.dtype)
    return torch.zeros(1, channels, image_size, image_size, device=place.device, dtype=place.dtype)


def copied(model: nn.Module, memo: dict[int, Any] | None = None) -> nn.Module:
    """Return a deep copy of `model`; `memo` is `copy.deepcopy`'s.

    Raises:
        SurgeryError: It holds something that cannot be copied.

    """
    try:
        return copy.deepcopy(model, memo)
    except Exception as error:  # a module may be copied by code of its own
        raise SurgeryError(
            f"copying {type(model).__name__}", found=first_line(error), expected="a network that can be copied",
            cure="where weights are computed, make them parameters (prune.remove, remove_weight_norm)",
        ) from error


def shapes_of(model: nn.Module) -> nn.Module:
    """Return a copy of `model` on the meta device, in evaluation mode; no weight is copied on the way."""
    memo: dict[int, Any] = {}
    for tensor in [*model.parameters(), *model.buffers()]:
        empty = torch.empty_like(tensor, device="meta")
        memo[id(tensor)] = nn.Parameter(empty, tensor.requires_grad) if isinstance(tensor, nn.Parameter) else empty
    return copied(model, memo).to("meta").eval()


def _image_channels(model: nn.Module, image_size: int, dtype: torch.dtype) -> int:
    taken = [m.in_channels if isinstance(m, nn.Conv2d) else m.in_features for m in model.modules()
             if isinstance(m, nn.Conv2d) or (isinstance(m, nn.Linear) and _is_ours(m))] or [3]
    if taken[0] in (1, 3):
        return taken[0]
    shadow = shapes_of(model)
    for channels in (*(c for c in (3, 1) if c in taken), taken[0], 3, 1):
        with contextlib.suppress(Exception), torch.no_grad(), ShapesOnly():  # the network's own code says what fits
            shadow(torch.zeros(1, channels, image_size, image_size, device="meta", dtype=dtype))
            return channels
    return taken[0]


class ShapesOnly(TorchFunctionMode):
    """What the meta device lacks for a look at shapes: speed where none changes, and a check of channels.

    PyTorch takes a batch normalisation apart into a dozen operations there, 2 ms each, most of what a look at a ResNet
    costs; and a convolution there takes any number of channels.
    """

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None,
    ) -> Any:
        """Return the input of a batch normalisation that fits it; refuse channels that do not fit a convolution."""
        if func is torch.conv2d and args[0].device.type == "meta":
            x, weight = args[:2]
            groups = args[6] if len(args) > 6 else (kwargs or {}).get("groups", 1)
            if x.shape[-3] != weight.shape[1] * groups:
                raise RuntimeError(f"{x.shape[-3]} channels for a kernel of {weight.shape[1]} in {groups} groups")
        if func is functional.batch_norm and args[0].device.type == "meta":
            mean = args[1]
            if mean is not None and mean.shape[0] == args[0].shape[1]:
                return args[0]
        return func(*args, **(kwargs or {}))


def output_shape(model: nn.Module, image_size: int) -> tuple[int, ...]:
    """Return the shape of what `model` gives for one image of side `image_size`; what goes wrong in it is raised."""
    shadow = shapes_of(model)
    with torch.no_grad(), ShapesOnly():
        try:
            return tuple(shadow(example_input(shadow, image_size)).shape)
        except Exception:  # it may choose by values, which the meta device does not have
            if _has_no_values(model):
                raise
            real = copy.deepcopy(model).eval()
            return tuple(real(example_input(real, image_size)).shape)


def _has_no_values(model: nn.Module) -> bool:
    return any(parameter.device.type == "meta" for parameter in model.parameters())


def trace(model: nn.Module, image_size: int) -> Trace:
    """Trace one forward pass of `model` on an image of side `image_size`.

    torch.fx traces it symbolically, if need be with the sizes of the maps known (see `trace_graph`); where the control
    flow depends on values, one pass is recorded instead.

    Raises:
        InputError: The network does not accept an image of this size.
        SurgeryError: It cannot be copied.

    """
    shadow = shapes_of(model)
    x = example_input(shadow, image_size)
    try:
        graph = trace_graph(shadow, image_size)
        runner = _Shapes(fx.GraphModule(shadow, graph))
        with torch.no_grad(), ShapesOnly():
            runner.run(x)
        return Trace(shadow, tuple(graph.nodes), runner.shapes)
    except Exception:  # a tracer runs the user's own forward: anything can come out of it
        return _recorded(model, shadow, x)


def _recorded(model: nn.Module, shadow: nn.Module, x: Tensor) -> Trace:
    tracer = _Tracer()
    try:
        try:
            with ShapesOnly():
                graph, shapes = record(shadow, x, tracer.is_leaf_module)
        except Exception:  # it may choose by values, which the meta device does not have
            if _has_no_values(model):
                raise
            shadow = copy.deepcopy(model).cpu().float().eval()
            graph, shapes = record(shadow, torch.zeros(x.shape), tracer.is_leaf_module)
    except Exception as error:
        raise InputError(
            f"{type(model).__name__} on an image of {x.shape[-1]} pixels", found=first_line(error),
            expected="a forward pass", cure="choose an image size that the network accepts",
        ) from error
    return Trace(shadow, tuple(graph.nodes), shapes)


def trace_graph(model: nn.Module, image_size: int | None = None) -> fx.Graph:
    """Return the graph of `model`'s forward pass, with PyTorch's and our own modules as leaves.

    A network that chooses by the size of its maps can only be traced for an `image_size`; its graph then holds for
    images of that size, and for any other network it is the same with and without.

    Raises:
        InputError: The control flow depends on the values of tensors.

    """
    try:
        return _Tracer().trace(model)
    except Exception as error:  # a tracer runs the user's own forward: anything can come out of it
        if image_size is not None:
            shadow = shapes_of(model).train(model.training)
            with contextlib.suppress(Exception), ShapesOnly():
                return trace_sized(shadow, _Tracer(), example_input(shadow, image_size))
        raise InputError(
            f"tracing {type(model).__name__}", found=first_line(error),
            expected="a forward pass whose control flow does not depend on the values of tensors",
            cure="move the data-dependent part into a function of its own and mark it with torch.fx.wrap",
        ) from error


class _OwnTracer(_Tracer):
    def is_leaf_module(self, *_: Any) -> bool:
        return True


def trace_own(module: nn.Module) -> fx.Graph:
    """Return the graph of `module`'s own forward pass, with all modules in it as leaves.

    Raises:
        InputError: It is another one in training, or runs in several modes (see `one_mode`).

    """
    graphs, mode = [], module.training
    try:
        for training in (True, False):
            module.training = training
            with autocasting() if training else contextlib.nullcontext():
                graphs.append(_OwnTracer().trace(module))
    finally:
        module.training = mode
    if str(graphs[0]) != str(graphs[1]) or not all(one_mode(graph.nodes) for graph in graphs):
        raise InputError(
            type(module).__name__, found="a forward pass that depends on training or changes modes",
            expected="one whose graph can be rewritten", cure="put this part into a module of its own",
        )
    return graphs[1]


def one_mode(nodes: Iterable[fx.Node]) -> bool:
    """Tell whether all of `nodes` were traced in one mode of gradients and autocast, which a graph does not hold."""
    return len({node.meta.get("modes") for node in nodes}) <= 1


@contextlib.contextmanager
def autocasting() -> Iterator[None]:
    """Trace as under autocast, so that a part which switches it off shows."""
    before = {kind: torch.is_autocast_enabled(kind) for kind in _AUTOCAST}
    try:
        for kind in _AUTOCAST:
            torch.set_autocast_enabled(kind, True)
        yield
    finally:
        for kind, enabled in before.items():
            torch.set_autocast_enabled(kind, enabled)


def put(model: nn.Module, path: str, new: nn.Module) -> None:
    """Put `new` in the place of the module at `path` in `model`, under every name that this module has there."""
    old = model.get_submodule(path)
    for name in [name for name, module in model.named_modules(remove_duplicate=False) if module is old]:
        model.set_submodule(name, new)


def first_line(error: Exception) -> str:
    """Return what went wrong in a network's own code, in at most 200 characters."""
    return f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"[:200]
