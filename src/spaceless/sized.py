"""Symbolic tracing in which height, width and channels are known: for networks that choose by the size of their maps.

Every proxy carries what its node gives for an example on the meta device. Only the size of the batch stays symbolic, so
that the graph runs for any batch of images of that one size.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, fx, nn

_EXAMPLE = "example"


class _SizedProxy(fx.Proxy):
    """A proxy of a tensor whose sizes are plain numbers, but for the first one; of anything else a plain proxy."""

    def __getattr__(self, name: str) -> Any:
        example = self.node.meta.get(_EXAMPLE)
        if isinstance(example, Tensor):
            if name == "shape":
                return self.size()
            if name in ("ndim", "dtype"):
                return getattr(example, name)
        return super().__getattr__(name)

    def size(self, place: int | None = None) -> Any:
        """Return the sizes, or the one at `place`."""
        example = self.node.meta[_EXAMPLE]
        if place is None:
            return (self.size(0), *example.shape[1:]) if example.dim() else ()
        if place % example.dim():
            return example.shape[place]
        return self.tracer.create_proxy("call_method", "size", (self, 0), {})

    def dim(self) -> int:
        """Return the number of dimensions."""
        return self.node.meta[_EXAMPLE].dim()  # type: ignore[no-any-return]

    def __len__(self) -> int:
        return len(self.node.meta[_EXAMPLE])

    def __iter__(self) -> Iterator[Any]:
        return (operator.getitem(self, i) for i in range(len(self)))


class SizedTracer(fx.Tracer):
    """Traces a network for images like the example, with the leaves that `leaves` says."""

    proxy_buffer_attributes = True

    def __init__(self, leaves: fx.Tracer, example: Tensor) -> None:
        """Remember the example (1, C, H, W) on the meta device."""
        super().__init__()
        self._leaves, self._example, self._running = leaves, example, False

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        """Ask the other tracer."""
        return self._leaves.is_leaf_module(m, module_qualified_name)

    def proxy(self, node: fx.Node) -> fx.Proxy:
        """Return a proxy that knows its sizes."""
        return _SizedProxy(node, self)

    def create_proxy(self, kind: str, target: Any, args: Any, kwargs: Any, *rest: Any, **options: Any) -> fx.Proxy:
        """Write a node and find out what it gives for the example."""
        made = super().create_proxy(kind, target, args, kwargs, *rest, **options)
        made.node.meta[_EXAMPLE] = self._run(made.node)
        return made

    @torch.no_grad()
    def _run(self, node: fx.Node) -> Any:
        if node.op == "placeholder":
            return self._example
        args: Any = fx.node.map_arg(node.args, self._known)
        kwargs: Any = fx.node.map_arg(node.kwargs, self._known)
        if node.op == "call_function":
            return node.target(*args, **kwargs)  # type: ignore[operator]
        if node.op == "call_method":
            return getattr(args[0], str(node.target))(*args[1:], **kwargs)
        if node.op == "call_module":
            self._running = True
            try:
                return self.root.get_submodule(str(node.target))(*args, **kwargs)
            finally:
                self._running = False
        return self._known(node)

    def call_module(self, m: nn.Module, forward: Callable[..., Any], args: Any, kwargs: Any) -> Any:
        """Trace a call of a module; the ones that the example runs through are only executed."""
        return forward(*args, **kwargs) if self._running else super().call_module(m, forward, args, kwargs)

    def getattr(self, attr: str, attr_val: Any, parameter_proxy_cache: dict[str, Any]) -> Any:
        """Return an attribute of a module, a parameter as a proxy; the example needs it as it is."""
        return attr_val if self._running else super().getattr(attr, attr_val, parameter_proxy_cache)

    def _known(self, node: fx.Node) -> Any:
        """Return what `node` gives; parameters become nodes without a proxy."""
        if _EXAMPLE in node.meta:
            return node.meta[_EXAMPLE]
        found: Any = self.root
        for part in str(node.target).split(".") if node.op == "get_attr" else ():
            found = getattr(found, part)
        return found


def trace_sized(model: nn.Module, leaves: fx.Tracer, example: Tensor) -> fx.Graph:
    """Return the graph of `model`, on the meta device, for any batch of images like `example` (1, C, H, W).

    Raises:
        ValueError: The forward pass makes constant tensors, whose values the meta device does not have.

    """
    before = set(vars(model))
    graph = SizedTracer(leaves, example).trace(model)
    if made := set(vars(model)) - before:
        raise ValueError(f"constants made in the forward pass: {', '.join(sorted(made))}")
    for node in graph.nodes:
        node.meta.pop(_EXAMPLE, None)
    return graph
