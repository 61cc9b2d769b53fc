"""A forward pass recorded while it runs: the graph of networks whose control flow no symbolic tracer can follow.

Hooks see every module, a function mode sees what is computed between them. The graph is one to read, not to execute:
sizes and choices in it are those of the one pass.
"""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.overrides import TorchFunctionMode
from torch.utils.hooks import RemovableHandle

_ACCESS: dict[str, Callable[..., Any]] = {"__getitem__": operator.getitem, "__setitem__": operator.setitem}
_METHODS = (type(Tensor.view), type(Tensor.__getitem__))  # method and slot descriptors of the C class


class _Recorder(TorchFunctionMode):
    """Writes a node for every leaf module and every function that gives tensors, with the nodes that they read."""

    def __init__(self, model: nn.Module, is_leaf: Callable[[nn.Module, str], bool]) -> None:
        super().__init__()
        self.graph = fx.Graph()
        self.shapes: dict[fx.Node, tuple[int, ...]] = {}
        self._nodes: dict[int, fx.Node] = {}
        self._kept: list[Tensor] = []  # a tensor that is gone would leave its identity to another one
        self._stack: dict[str, tuple[str, type[nn.Module]]] = {}
        self._within: str | None = None  # the leaf module that is being executed
        self._own = {id(tensor): name for name, tensor in [*model.named_parameters(), *model.named_buffers()]}
        self._handles: list[RemovableHandle] = []
        for path, module in model.named_modules():
            if module is not model:
                self._watch(path, module, leaf=is_leaf(module, path))

    def _watch(self, path: str, module: nn.Module, *, leaf: bool) -> None:
        def enter(module: nn.Module, _: tuple[Any, ...]) -> None:
            self._stack[path] = path, type(module)
            if leaf and self._within is None:
                self._within = path

        def leave(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
            if self._within == path:
                self._within = None
                self._note(lambda: self.graph.call_module(path, self._known(args), self._known(kwargs)), output)
            self._stack.pop(path, None)

        self._handles.append(module.register_forward_pre_hook(enter))
        self._handles.append(module.register_forward_hook(leave, with_kwargs=True))

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None,
    ) -> Any:
        """Run `func` and write it down if it gives tensors, or changes one, outside a leaf module."""
        output = func(*args, **(kwargs or {}))
        name = getattr(func, "__name__", "")
        changed = args[0] if name == "__setitem__" else output
        if self._within is not None or not _tensors(changed) or name == "__get__":
            return output

        def create() -> fx.Node:
            taken, named = self._known(args), self._known(kwargs or {})
            if name in _ACCESS:
                return self.graph.call_function(_ACCESS[name], taken, named)
            if isinstance(func, _METHODS):
                return self.graph.call_method(name, taken, named)
            return self.graph.call_function(func, taken, named)

        self._note(create, changed)
        return output

    def place(self, x: Tensor) -> None:
        """Write the network's input."""
        self._note(lambda: self.graph.placeholder("x"), x)

    def finish(self, output: Any) -> None:
        """Write the network's output and take the hooks away."""
        self.graph.output(self._known(output))
        self.close()

    def close(self) -> None:
        """Take the hooks away."""
        for handle in self._handles:
            handle.remove()

    def _note(self, create: Callable[[], fx.Node], output: Any) -> None:
        """Write a node; whoever reads `output`, or a tensor in it, from now on reads that node."""
        with torch._C.DisableTorchFunction():
            node = create()
            node.meta["nn_module_stack"] = dict(self._stack)
            if isinstance(output, Tensor):
                self._bind(output, node)
                return
            for place, tensor in _tensors(output):
                part = self.graph.call_function(operator.getitem, (node, place))
                part.meta["nn_module_stack"] = dict(self._stack)
                self._bind(tensor, part)

    def _bind(self, tensor: Tensor, node: fx.Node) -> None:
        self._nodes[id(tensor)] = node
        self.shapes[node] = tuple(tensor.shape)
        self._kept.append(tensor)

    def _known(self, value: Any) -> Any:
        """Return `value` with every tensor in it replaced by the node that gives it."""
        if isinstance(value, Tensor):
            if id(value) not in self._nodes and (name := self._own.get(id(value))) is not None:
                self._bind(value, self.graph.create_node("get_attr", name))
            return self._nodes.get(id(value))  # None: a constant made in the forward pass by other means
        if isinstance(value, tuple | list):
            return tuple(self._known(each) for each in value)
        if isinstance(value, dict):
            return {name: self._known(each) for name, each in value.items()}
        plain = isinstance(value, int | float | bool | str | slice | torch.dtype | torch.device | type(None))
        return value if plain or value is Ellipsis else str(value)


def _tensors(value: Any) -> list[tuple[Any, Tensor]]:
    """Return the tensors in `value`, one or a flat container of them, each with its place."""
    if isinstance(value, Tensor):
        return [(0, value)]
    if isinstance(value, dict):
        return [(name, each) for name, each in value.items() if isinstance(each, Tensor)]
    if isinstance(value, tuple | list):
        return [(i, each) for i, each in enumerate(value) if isinstance(each, Tensor)]
    return []


def record(
    model: nn.Module, x: Tensor, is_leaf: Callable[[nn.Module, str], bool],
) -> tuple[fx.Graph, dict[fx.Node, tuple[int, ...]]]:
    """Run `model` on x (N, C, H, W) and return the graph of the pass and the shape of each node's output.

    Args:
        model: In evaluation mode; it is left as it was.
        x: The input; values matter only to a network that chooses by values.
        is_leaf: Tells which modules, given with their paths, are one node whatever they compute inside.

    """
    recorder = _Recorder(model, is_leaf)
    try:
        with torch.no_grad(), recorder:
            recorder.place(x)
            recorder.finish(model(x))
    finally:
        recorder.close()
    return recorder.graph, recorder.shapes
