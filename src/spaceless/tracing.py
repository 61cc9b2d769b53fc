"""The traced graph of a network with the shape of every tensor in it: what units, surgery and receptive fields read.

Tracing runs on a copy on the meta device: no arithmetic is done and the network is not touched.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.nn import functional
from torch.overrides import TorchFunctionMode

from spaceless.errors import InputError


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
        own = set(self.calls(path))
        return [node for node in self.nodes if node in own or path in module_stack(node)]


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


class _Tracer(fx.Tracer):
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

    C is what its first convolution takes, or what surgery has put in its place. The stem may be registered behind
    the blocks: where that is neither 1 nor 3, a convolution that takes 3 channels decides, then one that takes 1.
    """
    taken = [m.in_channels if isinstance(m, nn.Conv2d) else m.in_features for m in model.modules()
             if isinstance(m, nn.Conv2d) or (isinstance(m, nn.Linear) and _is_ours(m))] or [3]
    channels = next((c for c in (3, 1) if c in taken and taken[0] not in (1, 3)), taken[0])
    place = next(iter(model.parameters()), torch.empty(0))
    return torch.zeros(1, channels, image_size, image_size, device=place.device, dtype=place.dtype)


class ShapesOnly(TorchFunctionMode):
    """Within this context a batch normalisation on the meta device, which changes no shape, takes no time.

    PyTorch takes it apart into a dozen operations there: 2 ms each, most of what a look at a ResNet costs.
    """

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None,
    ) -> Any:
        """Return the input of a batch normalisation that fits it; everything else runs as it is."""
        if func is functional.batch_norm and args[0].device.type == "meta":
            mean = args[1]
            if mean is not None and mean.shape[0] == args[0].shape[1]:
                return args[0]
        return func(*args, **(kwargs or {}))


def trace(model: nn.Module, image_size: int) -> Trace:
    """Trace one forward pass of `model` on an image of side `image_size`.

    Raises:
        InputError: The network cannot be traced, or does not accept an image of this size.

    """
    shadow = copy.deepcopy(model).to("meta").eval()
    graph = trace_graph(shadow)
    runner = _Shapes(fx.GraphModule(shadow, graph))
    try:
        with torch.no_grad(), ShapesOnly():
            runner.run(example_input(shadow, image_size))
    except Exception as error:
        raise InputError(
            f"image size {image_size}", found=_first_line(error), expected="an image that the network accepts",
            cure="choose a larger image size",
        ) from error
    return Trace(shadow, tuple(graph.nodes), runner.shapes)


def trace_graph(model: nn.Module) -> fx.Graph:
    """Return the graph of `model`'s forward pass, with PyTorch's and our own modules as leaves, or raise InputError."""
    try:
        return _Tracer().trace(model)
    except Exception as error:  # a tracer runs the user's own forward: anything can come out of it
        raise InputError(
            f"tracing {type(model).__name__}", found=_first_line(error),
            expected="a forward pass whose control flow does not depend on the values of tensors",
            cure="move the data-dependent part into a function of its own and mark it with torch.fx.wrap",
        ) from error


def _first_line(error: Exception) -> str:
    return f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"[:200]
