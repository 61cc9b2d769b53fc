"""Accuracy on a test set, and the accuracy of shuffling networks over many passes with fresh permutations.

The part of the network in front of the first shuffle does not depend on the permutations: it is computed once per
batch, and only the rest is repeated (section 4.1 of the paper evaluates shuffling models 200 times).
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from contextlib import closing, nullcontext
from typing import Any

import torch
from torch import Tensor, fx, nn

from spaceless.data.augment import normalise
from spaceless.data.broken import Broken, LeftOut
from spaceless.data.feed import test_batches
from spaceless.data.readers import Images
from spaceless.distributed import gathered, highest, share, total
from spaceless.errors import InputError, Interrupted, unknown_name
from spaceless.fast_layers import fast_layers
from spaceless.paired import packed
from spaceless.shuffle import ShuffleConv, seek, several, shuffles
from spaceless.tracing import trace_graph
from spaceless.trial import Evaluation

Split = tuple[Callable[[Tensor], tuple[Tensor, ...]], Callable[..., Tensor]]


def evaluate(
    model: nn.Module, data: Images, *, repeats: int = 1, shuffle_last: int | None = None, precision: str = "fp32",
    batch_size: int | None = None, split: bool = True, each: bool = False, eager: bool = False,
    stop: Callable[[], int | None] | None = None, progress: Callable[[float], None] | None = None,
) -> Evaluation:
    """Return the accuracy of `model` on the test images of `data`.

    Args:
        model: On its device; it is put into evaluation mode and left there.
        data: The data set; its images are normalised with its own moments.
        repeats: Passes over the test images, each with fresh permutations; 1 is enough for a deterministic network.
        shuffle_last: Only written into the result: the test scheme that `model` has been prepared for.
        precision: `fp32` or `bf16` (autocast).
        batch_size: Images per forward pass; None is 256, and more of small images on a GPU.
        split: Compute the part in front of the first shuffle once. It changes the time, not the result.
        each: Write down which images were right, where there is a single pass.
        eager: Compute every layer by PyTorch's own operations.
        stop: Asked after every batch; a signal number ends the evaluation.
        progress: Called with the share that is done.

    Raises:
        InputError: A number or the precision is none that can be meant, or the network has another number of classes.
        Interrupted: `stop` asked for it; nothing of an evaluation is kept.
        DataError: Too many images are broken.

    """
    check_pass(repeats, batch_size, precision)
    model.eval()
    seek(model, 0, "eval")
    device = next(iter(model.parameters())).device
    prefix, tail = (_split_if_possible(model, data.image_size) if split and repeats > 1 else None) or (_whole, model)
    batch_size = batch_size or _batch_size(device, data.image_size)
    # Correct in each pass, among the best five, images. A GPU is not waited for before the end.
    counted = torch.zeros(repeats + 2, dtype=torch.int64, device=device)
    wide = min(5, data.classes)
    left_out = LeftOut(data.source, data.test_labels, data.class_names)
    right = torch.zeros(data.test_count if each and repeats == 1 else 0, dtype=torch.int64)
    with (torch.inference_mode(), autocast(device, precision), fast_layers(model, eager=eager),
          closing(test_batches(data, batch_size, device, share())) as batches):
        for number, (images, labels, broken) in enumerate(batches, 1):
            left_out.add(broken)
            if len(images):  # nothing is left for some processes of a last, small batch, or all of it is broken
                front = prefix(in_format(normalise(images, data.mean, data.std), precision))
            at_once = _passes_at_once(front, len(images)) if repeats > 1 and len(images) else 1
            for first in range(0, repeats if len(images) else 0, at_once):
                passes = min(at_once, repeats - first)
                with several(model, passes):
                    answers = tail(*(_copies(part, passes) for part in front))
                check_answers(answers, passes * len(images), data.classes)
                best = ranked(answers, labels.repeat(passes), wide).view(passes, len(images), wide)
                counted[first:first + passes] += best[:, :, 0].sum(1)
                counted[-2] += best.sum()
                if len(right):
                    right[_numbers(number, batch_size, data.test_count, broken)] = best[0, :, 0].long().cpu()
            counted[-1] += len(images)
            if asked := highest(stop() or 0 if stop is not None else 0)[0]:
                raise Interrupted(asked)
            if progress is not None:
                progress(min(1.0, number * batch_size / data.test_count))
    counted, right = total(counted.cpu()), total(right) if len(right) else right
    left_out.join(gathered(left_out.met.values()))
    seen = int(counted[-1])
    return Evaluation(
        shuffle_last=shuffle_last, images=seen, top1=tuple((100 * counted[:-2].double() / seen).tolist()),
        top5=100 * int(counted[-2]) / (repeats * seen) if data.classes > 5 else None, left_out=left_out.paths,
        right=packed(right.numpy()) if len(right) else None,
    )


def _numbers(batch: int, batch_size: int, images: int, broken: Sequence[Broken]) -> Tensor:
    """Return the numbers of this process's sound images of a batch, which is counted from 1."""
    mine = share().of(torch.arange((batch - 1) * batch_size, min(batch * batch_size, images)))
    return mine[~torch.isin(mine, torch.tensor([image.number for image in broken], dtype=torch.int64))]


def _copies(part: Tensor, passes: int) -> Tensor:
    """Return `part` for several passes; a copy even for one, since a tail that works in place would spoil the next."""
    return part.repeat(passes, *[1] * (part.dim() - 1)) if isinstance(part, Tensor) else part


def _passes_at_once(front: tuple[Tensor, ...], images: int) -> int:
    """Return how many passes the tail makes in one batch: several where maps are small and leave the processor idle."""
    parts = [part for part in front if isinstance(part, Tensor)]
    if len(parts) < len(front) or any(part.dim() == 0 or len(part) != images for part in parts):
        return 1  # a number that was taken from the batch would be another one
    positions = max((part[0, 0].numel() for part in parts if part.dim() == 4), default=1)
    numbers = _NUMBERS << 3 if parts[0].device.type == "cuda" else _NUMBERS
    return max(1, min(_MOST_PASSES, numbers // sum(part.numel() for part in parts))) if positions <= 64 else 1


_MOST_PASSES, _NUMBERS = 16, 1 << 23  # the second bounds the memory of what goes into the tail


def _batch_size(device: torch.device, image_size: int) -> int:
    return max(256, min(2048, (1 << 21) // image_size**2)) if device.type == "cuda" else 256


def check_pass(repeats: int, batch_size: int | None, precision: str) -> None:
    """Raise InputError unless there is at least one pass, of at least one image at a time, in a known precision."""
    for what, value in (("repeats", repeats), ("batch_size", 1 if batch_size is None else batch_size)):
        if value < 1:
            raise InputError(what, found=value, expected="at least 1", cure="leave it out")
    if precision not in ("fp32", "bf16"):
        raise unknown_name("precision", precision, ("fp32", "bf16"))


def check_answers(answers: Any, images: int, classes: int) -> None:
    """Raise InputError unless a network's answers to so many images are logits of so many classes."""
    found = tuple(answers.shape) if isinstance(answers, Tensor) else type(answers).__name__
    if found != (images, classes):
        raise InputError("the network's answers", found=f"{found} to {images} images",
                         expected=f"logits ({images}, {classes}), one for each class of the data",
                         cure="give a network with as many outputs as the data has classes")


def ranked(answers: Tensor, labels: Tensor, wide: int) -> Tensor:
    """Tell at which of the best `wide` places of `answers` (B, classes) each label (B,) stands: bool (B, wide).

    Which of two equal answers comes first is left to topk: in bf16 there are such, and every count has to agree on it.
    """
    return answers.topk(wide, dim=1).indices == labels[:, None]


def split_at_shuffle(model: nn.Module, image_size: int | None = None) -> Split | None:
    """Return the part of `model` in front of its first shuffle and the part behind it, or None if there is no shuffle.

    tail(*prefix(x)) equals model(x). Every tensor that crosses the cut is handed over, so that skip connections
    around a shuffled convolution are whole; the tail may overwrite what it is given. Parameters do not cross: the tail
    has them. `image_size` is `trace_graph`'s.
    """
    if not any(True for _ in shuffles(model)):
        return None
    graph = trace_graph(model, image_size)
    random: set[fx.Node] = set()
    fixed: set[fx.Node] = set()  # parameters and what follows from them alone: the same whatever the images are
    for node in graph.nodes:
        if node.op != "placeholder" and all(source in fixed for source in node.all_input_nodes):
            fixed.add(node)
        shuffling = node.op == "call_module" and isinstance(model.get_submodule(str(node.target)), ShuffleConv)
        if shuffling or any(source in random for source in node.all_input_nodes):
            random.add(node)
    crossing = [node for node in graph.nodes if node not in random and any(user in random for user in node.users)
                and node not in fixed]
    front, back = fx.Graph(), fx.Graph()
    known: dict[fx.Node, fx.Node] = {}
    for node in graph.nodes:
        if node not in random and node.op != "output":
            known[node] = front.node_copy(node, lambda n: known[n])
    front.output(tuple(known[node] for node in crossing))
    behind = {node: back.placeholder(node.name) for node in crossing}
    wanted = set(random)
    for node in reversed(graph.nodes):
        if node in fixed and any(user in wanted for user in node.users):
            wanted.add(node)
    for node in graph.nodes:
        if node in wanted:
            behind[node] = back.node_copy(node, lambda n: behind[n])
    return fx.GraphModule(model, front), fx.GraphModule(model, back)


def _split_if_possible(model: nn.Module, image_size: int) -> Split | None:
    try:
        return split_at_shuffle(model, image_size)
    except InputError as error:
        warnings.warn(f"the whole network is repeated, not the part behind the first shuffle: {error}", stacklevel=3)
        return None


def _whole(x: Tensor) -> tuple[Tensor, ...]:
    return (x,)


def autocast(device: torch.device, precision: str) -> torch.autocast | nullcontext[None]:
    """Return the context that computes in `precision` (`fp32`: as is) on `device`."""
    return torch.autocast(device.type, torch.bfloat16) if precision == "bf16" else nullcontext()


def in_format(x: Tensor, precision: str) -> Tensor:
    """Return x in the memory format that suits `precision`: channels_last pays in bf16 and costs in fp32."""
    return x.to(memory_format=torch.channels_last) if precision == "bf16" else x
