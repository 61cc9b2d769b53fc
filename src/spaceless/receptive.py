"""The analytic receptive field of every tensor in a traced network: size, stride and offset in pixels of the image.

Araujo, Norris and Sim, "Computing receptive fields of convolutional neural networks" (Distill 2019). Where branches
meet, a position reads from the hull of what the branches read. A tensor whose positions mean nothing any more (after
global pooling or a shuffle) has no receptive field: None. It adds nothing to a branch with positions that it meets: the
gate of squeeze and excitation, say, which sees the whole image but not the places in it, is left out, as in published
figures; so are the statistics of normalisations. Channels are not told apart: behind a concatenation each counts as
reading what the widest reads. An operation that no rule in `operations` knows ends what is known, see
`unknown_operations`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from torch import fx, nn

from spaceless.errors import InputError
from spaceless.fields import Field
from spaceless.operations import GONE, State, Unknown, propagate
from spaceless.tracing import Trace, trace


@dataclass(frozen=True)
class ReceptiveField:
    """What one position of a map sees, along the side (height or width) on which that is more.

    Attributes:
        size: Pixels from the first to the last that it reads.
        stride: Pixels between neighbours; their mean behind an up-sampling, where it need not be whole.
        offset: The first pixel that position 0 reads, negative in the padding: minus the "effective padding" of Araujo
            et al. Position i is centred on pixel offset + i * stride + (size - 1) / 2.
        aligned: False where branches of differing strides have met (`Reach.aligned`).

    """

    size: int
    stride: float
    offset: int = 0
    aligned: bool = True


def receptive_fields(traced: Trace) -> dict[fx.Node, ReceptiveField | None]:
    """Return the receptive field of every node of `traced` whose output is one tensor; None also where unknown."""
    return {node: _public(state) for node, state in propagate(traced).items() if node in traced.shapes}


def unit_fields(traced: Trace, names: list[str]) -> list[ReceptiveField | None]:
    """Return the receptive field of the output of each module in `names`."""
    return [_public(field) for field in fields_of(traced, names)]


def fields_of(traced: Trace, names: list[str]) -> list[Field | None]:
    """Return which pixels each position of the output of each module in `names` reads, where that is known."""
    states = propagate(traced)
    executed = [traced.inside(name) for name in names]
    found = [states.get(nodes[-1]) if nodes else None for nodes in executed]
    return [state if isinstance(state, Field) else None for state in found]


def unknown_operations(traced: Trace) -> list[str]:
    """Return the operations, each with its place, whose reading no rule knows; what is behind them has no field."""
    found = (state.operation for state in propagate(traced).values() if isinstance(state, Unknown))
    return list(dict.fromkeys(found))


def usable_field(model: nn.Module, image_size: int) -> ReceptiveField:
    """Return the receptive field of the last map of `model` whose positions still mean something.

    For a network changed by `shuffle` or `gap_fc` this is the input of the first changed unit, for `conv1x1` and for
    an unchanged network the final map. It is the largest field that enters a shuffle or a global pooling. A shuffle by
    one fixed permutation, or of patches, takes the meaning of positions away only in part: what is left is not known.

    Raises:
        InputError: The last map is not pooled globally (a linear layer sees each of its positions, for instance), or
            no rule knows an operation in front of it.

    """
    traced = trace(model, image_size)
    states = propagate(traced)
    output = [states.get(source) for source in traced.nodes[-1].all_input_nodes]
    if unknown := [state.operation for state in output if isinstance(state, Unknown)]:
        raise InputError(
            type(model).__name__, found=unknown[0], expected="operations whose reading is known",
            cure="ask for the receptive field of a unit in front of it",
        )
    entering = [
        found for node in traced.nodes if states.get(node) is GONE
        for source in node.all_input_nodes if (found := _public(states.get(source))) is not None
    ]
    if not entering or any(isinstance(state, Field) for state in output):
        raise InputError(
            type(model).__name__, found="no global pooling and no shuffle",
            expected="a map whose positions are given up",
            cure="ask for the receptive field of a unit instead",
        )
    return max(entering, key=lambda field: (field.size, -field.stride))


def head_note(traced: Trace) -> str | None:
    """Return a sentence for a network whose head tells the positions of the last map apart, None for all others.

    A linear layer on a flattened map does, as in AlexNet and in the VGG of torchvision.
    """
    fields = {node: state for node, state in propagate(traced).items() if isinstance(state, Field)}
    if fields.keys().isdisjoint(traced.nodes[-1].all_input_nodes):
        return None
    flattened = [source for node, field in fields.items() if not field.dims
                 for source in node.all_input_nodes if source in fields and fields[source].dims]
    positions = max((_positions(node, fields) for node in flattened), default=1)
    return None if positions == 1 else (
        f"The head reads each of {positions} positions of the last map by itself: 1x1 convolutions in front of it "
        "cannot take that information away.")


def _positions(node: fx.Node, fields: dict[fx.Node, Field]) -> int:
    """Return how many positions the map tells apart that `node` gives: pooling to a larger one repeats them."""
    found, sources = [], [node]
    while len(sources) == 1:
        (node,) = sources
        found.append(math.prod(fields[node].sides))
        sources = [source for source in node.all_input_nodes if source in fields]
    return min(found)


def _public(state: State | None) -> ReceptiveField | None:
    if not isinstance(state, Field):
        return None
    reach = max(state.reach, key=lambda side: (side.size, side.stride))
    stride = reach.stride
    whole = stride.denominator == 1
    return ReceptiveField(reach.size, int(stride) if whole else float(stride), reach.first[0], reach.aligned)
