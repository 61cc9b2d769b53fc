"""Spatial weights that are no nn.Conv2d: kernels given to functions, of which no unit is made."""

from __future__ import annotations

from torch import fx, nn

from spaceless.errors import SurgeryError
from spaceless.tracing import Trace, module_stack
from spaceless.units import Unit

_KERNEL_FUNCTIONS = ("conv1d", "conv2d", "conv3d", "conv_transpose2d", "deform_conv2d")
_UNFOLDING = ("fold", "unfold")
_KERNEL_MODULES = (nn.ConvTranspose2d, nn.Unfold, nn.Fold, nn.Conv1d, nn.Conv3d)


def is_filter(traced: Trace, node: fx.Node) -> bool:
    """Tell whether `node` is a function that joins neighbouring positions by a kernel."""
    if node.op != "call_function" or getattr(node.target, "__name__", "") not in _KERNEL_FUNCTIONS:
        return False
    kernel = traced.shapes.get(node.all_input_nodes[1], ())
    return len(kernel) != 4 or kernel[2:] != (1, 1)


def is_learned(traced: Trace, node: fx.Node) -> bool:
    """Tell whether a parameter has a say in what `node` reads besides the map itself: a kernel that is trained."""
    seen: set[fx.Node] = set()
    open_ = list(node.all_input_nodes[1:])
    while open_:
        source = open_.pop()
        if source not in seen:
            seen.add(source)
            open_ += source.all_input_nodes
    parameters = dict(traced.model.named_parameters())
    return any(source.op == "get_attr" and str(source.target) in parameters for source in seen)


def refuse_hidden(traced: Trace, targets: list[Unit]) -> None:
    """Raise SurgeryError if such weights look at positions in or behind the first of the units to change.

    No surgery knows what they would become, and a network that goes on using positions there would be a silent failure.
    """
    inside = {node for unit in targets[:1] for node in traced.inside(unit.name)}
    behind = inside and traced.nodes[min(i for i, node in enumerate(traced.nodes) if node in inside):]
    for node in behind or ():
        hidden = is_filter(traced, node) and is_learned(traced, node)
        unfolded = node.op == "call_function" and getattr(node.target, "__name__", "") in _UNFOLDING
        if hidden or unfolded or isinstance(traced.module_of(node), _KERNEL_MODULES):
            own = [str(node.target)] if node.op == "call_module" else []
            raise SurgeryError(
                [type(traced.model).__name__, *module_stack(node), *own][-1],
                found=f"spatial weights that are no Conv2d ({node.name})",
                expected="spatial convolutions as nn.Conv2d modules",
                cure="use nn.Conv2d there, or change only units behind it",
            )
