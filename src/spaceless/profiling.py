"""Where space matters in a network that is already trained: every unit shuffled alone, and the last K for every K.

One walk through the traced graph per batch: the clean activations at each unit are computed once and serve all that is
shuffled there; only what lies behind them is repeated. Nothing is trained (Figures 6 and 7 of the paper train or test
one network per point).
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Container, Sequence
from contextlib import closing
from dataclasses import dataclass

import torch
from torch import Tensor, fx, nn

from spaceless.data.augment import normalise
from spaceless.data.broken import LeftOut
from spaceless.data.feed import test_batches
from spaceless.data.readers import Images
from spaceless.distributed import gathered, highest, share, total
from spaceless.errors import InputError, Interrupted
from spaceless.evaluation import autocast, check_answers, check_pass, in_format, ranked
from spaceless.fast_layers import fast_layers
from spaceless.sensitivity import Curve, Sensitivity, Shuffled
from spaceless.shuffle import ShuffleConv, shuffles
from spaceless.surgery import remove_spatial, without_shuffle
from spaceless.tracing import put, trace_graph
from spaceless.units import Unit, find_units

_ALONE, _LAST = 0, 1
_APART = 0.01  # of the largest answer: far above the rounding of another kernel, far below what a wrong order gives


def measure_sensitivity(
    model: nn.Module, data: Images, *, repeats: int = 10, seed: int = 0, stem: bool = True, precision: str = "fp32",
    batch_size: int = 256, eager: bool = False, stop: Callable[[], int | None] | None = None,
    progress: Callable[[float], None] | None = None,
) -> Sensitivity:
    """Return the test accuracy of a trained `model` with each unit shuffled alone, and with the last K, for all K.

    K counts the units that the network has: one that was changed by `conv1x1` or `gap_fc` has fewer than its original.
    A network whose control flow depends on values cannot be cut: it is repeated as a whole, with a warning.

    Every pass is the one that `evaluate` makes of `remove_spatial(model, "shuffle", k)`, or of `only=i`, with the same
    seed, repeats and batch size: the same permutations, and so the same accuracies. Unit n alone is K = 1.

    Args:
        model: On its device, with trained weights; it is left as it was. Shuffles in it are taken out first.
        data: The data set; its test images are normalised with its own moments.
        repeats: Passes over the test images with fresh permutations, of every unit and every K.
        seed: The seed that the permutations derive from.
        stem: See `find_units`; the command line leaves the stem of the paper's residual networks out.
        precision: `fp32` or `bf16` (autocast).
        batch_size: Images per forward pass.
        eager: Compute every layer by PyTorch's own operations.
        stop: Asked after every pass over a batch; a signal number ends the work.
        progress: Called with the share that is done.

    Raises:
        InputError: The network changes a tensor in place that it uses again, so that no part of it can be repeated;
            or as `evaluate`.
        SurgeryError: A convolution runs several times.
        Interrupted: `stop` asked for it; nothing is kept.
        DataError: Too many images are broken.

    """
    check_pass(repeats, batch_size, precision)
    plain = without_shuffle(model).eval()
    units = find_units(plain, data.image_size, stem=stem)
    shuffled, _ = remove_spatial(plain, "shuffle", len(units), image_size=data.image_size, seed=seed, stem=stem)
    drawn = tuple(shuffles(shuffled))
    try:
        cuts, behind = cut_at_units(shuffled.eval(), units, data.image_size)
    except InputError as error:
        warnings.warn(f"the whole network is repeated, not the part behind each unit: {error}", stacklevel=2)
        cuts, behind = _uncut(shuffled, units)
    device = next(iter(plain.parameters())).device
    right = torch.zeros(2, len(units), repeats, dtype=torch.int64)  # correct answers: alone and last, unit, pass
    clean_right = seen = step = 0
    wide = min(5, data.classes)
    left_out = LeftOut(data.source, data.test_labels, data.class_names)
    batch_count = -(-data.test_count // batch_size)
    plan = [(place, scheme, repeat) for place in range(len(units)) for scheme in (_ALONE, _LAST)
            for repeat in range(repeats) if (place, scheme) != (len(units) - 1, _ALONE)]  # the last unit alone is K = 1
    with (torch.inference_mode(), autocast(device, precision), fast_layers(shuffled, eager=eager),
          closing(test_batches(data, batch_size, device, share())) as batches):
        for number, (images, labels, broken) in enumerate(batches):
            left_out.add(broken)
            x = in_format(normalise(images, data.mean, data.std), precision) if len(images) else images
            crossing: tuple[Tensor, ...] = (x,)
            # Nothing is left for some processes of a last, small batch: they still answer when all agree on a signal.
            for done, (place, scheme, repeat) in enumerate(plan, 1):
                if len(images):
                    if repeat == 0 and scheme == (_LAST if place == len(units) - 1 else _ALONE):
                        crossing = cuts[place].front(*crossing)  # the activations before it are free from here on
                    for shuffle in drawn:
                        shuffle.passes["eval"] = step + repeat
                    answers = (cuts[place].alone, cuts[place].last)[scheme](*crossing)
                    right[scheme, place, repeat] += int(ranked(answers, labels, wide)[:, 0].sum())
                if asked := highest(stop() or 0 if stop is not None else 0)[0]:
                    raise Interrupted(asked, saved=False)
                if progress is not None:
                    progress((number + done / len(plan)) / batch_count)
            if len(images):
                answers = behind(*crossing)
                check_answers(answers, len(images), data.classes)
                if number == 0:
                    _check(plain, x, answers)
                clean_right += int(ranked(answers, labels, wide)[:, 0].sum())
                seen += len(images)
                step += repeats
    right[_ALONE, -1] = right[_LAST, -1]
    counted = total(torch.cat([right.flatten(), torch.tensor([clean_right, seen])]))
    left_out.join(gathered(left_out.met.values()))
    percent = 100 * counted.double() / int(counted[-1])
    passes = percent[:-2].view(right.shape).tolist()
    return Sensitivity(
        clean=float(percent[-2]), images=int(counted[-1]), repeats=repeats, left_out=left_out.paths,
        units=tuple(
            Shuffled(index=unit.index, k=len(units) - unit.index + 1, name=unit.name, map=unit.in_size,
                     alone=Curve(top1=tuple(passes[_ALONE][i])), last=Curve(top1=tuple(passes[_LAST][i])))
            for i, unit in enumerate(units)
        ),
    )


@dataclass(frozen=True)
class Cut:
    """The network taken apart in front of one unit; what crosses a cut is every tensor that is used behind it.

    Attributes:
        front: From what crosses the cut before (for the first: the images) to what crosses this one, clean.
        alone: From what crosses this cut to the answers, with this unit shuffled.
        last: The same with this unit and all units behind it shuffled.

    """

    front: Callable[..., tuple[Tensor, ...]]
    alone: Callable[..., Tensor]
    last: Callable[..., Tensor]


def cut_at_units(
    model: nn.Module, units: Sequence[Unit], image_size: int,
) -> tuple[list[Cut], Callable[..., Tensor]]:
    """Return one cut per unit of `model`, in which all are shuffled, and the clean rest behind the last cut.

    What lies behind a cut is what depends on a shuffled layer of its unit or of a later one, so that branches and skip
    connections are whole wherever they begin and end.

    Raises:
        InputError: The control flow depends on the values of tensors.

    """
    unit_of = _shuffled(model, units)
    graph = trace_graph(model, image_size)
    depth: dict[fx.Node, int] = {}  # the highest index of a unit that the node depends on; 0 in front of them all
    for node in graph.nodes:
        own = unit_of.get(str(node.target), 0) if node.op == "call_module" else 0
        depth[node] = max([own, *(depth[source] for source in node.all_input_nodes)])

    def crossing(index: int) -> list[fx.Node]:
        return [n for n in depth if depth[n] < index and any(depth[user] >= index for user in n.users)]

    def part(first: int, last: int, shuffled: Container[int]) -> fx.GraphModule:
        """From what crosses the cut of unit `first` to that of `last`, or to the answers behind the last unit."""
        made = fx.Graph()
        known = {node: made.placeholder(node.name) for node in (crossing(first) if first else ())}
        for node in graph.nodes:
            if first <= depth[node] < last and (node.op != "output" or last > len(units)):
                known[node] = made.node_copy(node, lambda n: known[n])
                if str(node.target) in unit_of and unit_of[str(node.target)] not in shuffled:
                    known[node].target = f"{node.target}.conv"
        if last <= len(units):
            made.output(tuple(known[node] for node in crossing(last)))
        return fx.GraphModule(model, made)

    end = len(units) + 1
    cuts = [
        Cut(part(i - 1, i, ()), part(i, end, (i,)), part(i, end, range(i, end))) for i in range(1, end)
    ]
    return cuts, part(end - 1, end, ())


def _uncut(model: nn.Module, units: Sequence[Unit]) -> tuple[list[Cut], Callable[..., Tensor]]:
    """Return what `cut_at_units` returns for a network that cannot be taken apart: all of it behind every cut."""
    unit_of = _shuffled(model, units)
    found = {path: model.get_submodule(path) for path in unit_of}

    def whole(shuffled: Container[int]) -> Callable[[Tensor], Tensor]:
        def run(x: Tensor) -> Tensor:
            for path, module in found.items():
                assert isinstance(module, ShuffleConv)
                put(model, path, module if unit_of[path] in shuffled else module.conv)
            return model(x)  # type: ignore[no-any-return]

        return run

    end = len(units) + 1
    return [Cut(lambda x: (x,), whole((i,)), whole(range(i, end))) for i in range(1, end)], whole(())


def _shuffled(model: nn.Module, units: Sequence[Unit]) -> dict[str, int]:
    """Return the paths of the shuffled layers of `model`, each with the index of its unit."""
    paths = [path for path, module in model.named_modules() if isinstance(module, ShuffleConv)]
    return {path: unit.index for path in paths for unit in units if f"{path}.".startswith(f"{unit.name}.")}


def _check(plain: nn.Module, x: Tensor, answers: Tensor) -> None:
    """Raise InputError unless the walk came to the network's own answers: no repeated part spoilt its beginning."""
    expected = plain(x)
    apart = float((answers - expected).abs().max())
    largest = float(expected.abs().max())
    if not apart <= _APART * largest:
        raise InputError(
            f"profile of {type(plain).__name__}", found=f"answers that differ by {apart:.3g} of {largest:.3g} when it "
            "is computed in parts", expected="a network that changes no tensor in place that it uses again",
            cure="write these operations without an underscore, or evaluate with --shuffle-last",
        )
