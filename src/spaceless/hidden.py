"""Where positions count without a spatial nn.Conv2d: kernels in functions, embeddings of places, pooled rows."""

from __future__ import annotations

import math

from torch import fx, nn

from spaceless.errors import SurgeryError
from spaceless.tracing import Trace, module_stack
from spaceless.units import Unit

_KERNEL_FUNCTIONS = ("conv1d", "conv2d", "conv3d", "conv_transpose2d", "deform_conv2d")
_UNFOLDING = ("fold", "unfold", "pixel_unshuffle", "roll")
_COUNTING = ("arange", "linspace", "cumsum", "meshgrid")
_PRODUCTS = ("matmul", "bmm", "einsum", "baddbmm", "scaled_dot_product_attention")
_KERNEL_MODULES = (nn.ConvTranspose2d, nn.Unfold, nn.Fold, nn.Conv1d, nn.Conv3d, nn.PixelUnshuffle)


def is_filter(traced: Trace, node: fx.Node) -> bool:
    """Tell whether `node` is a function that joins neighbouring positions by a kernel."""
    if node.op != "call_function" or getattr(node.target, "__name__", "") not in _KERNEL_FUNCTIONS:
        return False
    if len(node.all_input_nodes) == 1:
        raise SurgeryError(
            _place(traced, node), found=f"a kernel that is neither parameter nor buffer ({node.name})",
            expected="layers that the network knows of", cure="register it, or keep the layers in an nn.ModuleList")
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


def refuse_hidden(traced: Trace, targets: list[Unit], *, behind: bool) -> None:
    """Raise SurgeryError if such weights look at positions in the first of the units to change, or `behind` it.

    No surgery knows what they would become, and a network that goes on using positions there would be a silent failure.
    The same holds for weights that belong to positions: embeddings of places, absolute or relative.
    """
    inside = {node for unit in targets[:1] for node in traced.inside(unit.name)}
    start = next((i for i, node in enumerate(traced.nodes) if node in inside), len(traced.nodes))
    constant = _telling(traced)
    for node in (node for node in traced.nodes[start:] if behind or node in inside):
        unfolded = node.op == "call_function" and _name(node) in _UNFOLDING
        kernel = is_filter(traced, node) and is_learned(traced, node)
        module = isinstance(traced.module_of(node), _KERNEL_MODULES)
        if (kernel or unfolded or module) and _sees_positions(traced, node):
            raise SurgeryError(
                _place(traced, node), found=f"spatial weights that are no Conv2d ({node.name})",
                expected="spatial convolutions as nn.Conv2d modules",
                cure="use nn.Conv2d there, or change only units behind it",
            )
        weights = [source for source in node.all_input_nodes if source in constant and node not in constant]
        if any(_tells_places(traced, node, source) for source in weights) or _of_places(traced, node):
            raise SurgeryError(
                _place(traced, node), found=f"weights that tell positions apart ({node.name})",
                expected="layers that treat all positions alike", cure="change only units behind it",
            )
        if _one_side(traced, node):
            raise SurgeryError(
                _place(traced, node), found=f"rows or columns pooled by themselves ({node.name})",
                expected="pooling in both directions", cure="change only units behind it",
            )


def _sees_positions(traced: Trace, node: fx.Node) -> bool:
    """Tell whether what `node` reads comes from a map of several positions without having been pooled on the way.

    A kernel over the channels of a pooled vector, as in efficient channel attention, sees none.
    """
    seen, waiting = set(), list(node.all_input_nodes[:1])
    while waiting:
        source = waiting.pop()
        shape = traced.shapes.get(source, ())
        pooled = len(shape) == 2 or (len(shape) == 4 and traced.sides(source) == (1, 1))
        if _is_size(source) or source in seen or pooled:
            continue
        if len(shape) == 4:
            return True
        seen.add(source)
        waiting += source.all_input_nodes
    return False


def _telling(traced: Trace) -> set[fx.Node]:
    """Return the nodes that give what may tell positions apart, whatever the image is.

    These are trained weights, numbers that count positions, and what is computed from such alone.
    """
    parameters = dict(traced.model.named_parameters())
    found: set[fx.Node] = set()
    uniform: set[fx.Node] = set()  # zeros and ones: the same everywhere
    numbers: set[fx.Node] = set()  # read off a map, not the map
    for node in traced.nodes:
        tensors = [source for source in node.all_input_nodes if source not in numbers]
        given = found | uniform
        if _is_size(node) or (node not in traced.shapes and node.all_input_nodes and not tensors):
            numbers.add(node)
        elif node.op == "get_attr":
            (found if str(node.target) in parameters else uniform).add(node)
        elif node.op in ("placeholder", "output") or not given.issuperset(tensors):
            continue
        elif _name(node) in _COUNTING or not uniform.issuperset(tensors):
            found.add(node)
        else:
            uniform.add(node)
    return found


def _tells_places(traced: Trace, node: fx.Node, weights: fx.Node) -> bool:
    """Tell whether `node` gives each position of the map its own of `weights`, or looks them up by products."""
    if _name(node) in _PRODUCTS:
        return True
    shape, result = traced.shapes.get(weights, ()), traced.shapes.get(node, ())
    if len(result) == 3:  # (N, positions, C) or (N, C, positions)
        return len(shape) >= 2 and min(shape[-2:]) > 1
    if len(shape) < 2 or len(result) != 4:
        return False
    own = (0, *shape)[-3:-1] if node in traced.channels_last else shape[-2:]
    return any(side > 1 for side in own)


def _of_places(traced: Trace, node: fx.Node) -> bool:
    """Tell whether `node` is a module whose weights belong to positions, or which reads them in their order."""
    module = traced.module_of(node)
    if not isinstance(module, nn.LayerNorm | nn.RMSNorm | nn.Linear | nn.RNNBase) or not _sees_positions(traced, node):
        return False
    if not isinstance(module, nn.Linear):
        return isinstance(module, nn.RNNBase) or len(module.normalized_shape) > 1
    (source,) = node.all_input_nodes
    if _is_map(traced, source):  # over its columns
        return True
    before, flat = source.all_input_nodes[:1], traced.shapes.get(source, ())
    return any(_is_map(traced, each) and tuple(flat) == (*traced.shapes[each][:2], math.prod(traced.sides(each)))
               for each in before)


def _is_map(traced: Trace, node: fx.Node) -> bool:
    """Tell whether `node` is surely a map (N, C, H, W): what a layer for such maps has put out, or as large."""
    shape = traced.shapes.get(node, ())
    while len(shape) == 4:
        if isinstance(traced.module_of(node), nn.Conv2d | nn.BatchNorm2d):
            return True
        before = [each for each in node.all_input_nodes if traced.shapes.get(each, ()) == shape]
        if not before or _name(node) in ("permute", "transpose", "reshape", "view"):
            return False
        node = before[0]
    return False


def _one_side(traced: Trace, node: fx.Node) -> bool:
    """Tell whether `node` pools a map along one side only, which leaves the other's positions apart."""
    maps = [source for source in node.all_input_nodes if len(traced.shapes.get(source, ())) == 4]
    if len(traced.shapes.get(node, ())) != 4 or not maps or isinstance(traced.module_of(node), nn.Conv2d):
        return False
    if _name(node) in ("view", "reshape", "permute", "transpose", "getitem", "matmul", *_PRODUCTS):
        return False
    before, after = traced.sides(maps[0]), traced.sides(node)
    return min(before) > 1 and (after[0] == 1) != (after[1] == 1)


def _is_size(node: fx.Node) -> bool:
    return node.target is getattr or _name(node) in ("size", "dim")


def _name(node: fx.Node) -> str:
    return node.target if isinstance(node.target, str) else getattr(node.target, "__name__", "")


def _place(traced: Trace, node: fx.Node) -> str:
    """Return the path of the module that `node` is or is executed in, or the network's class."""
    own = [str(node.target)] if node.op == "call_module" else []
    return [type(traced.model).__name__, *module_stack(node), *own][-1]
