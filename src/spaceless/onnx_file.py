"""A network as one ONNX file that takes images as they are decoded, checked against PyTorch through onnxruntime."""

from __future__ import annotations

import copy
import json
import logging
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from importlib import import_module
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from spaceless.cost import Latency, in_turn, quartiles
from spaceless.data.augment import normalise
from spaceless.data.feed import Batch
from spaceless.errors import InputError, SpacelessError
from spaceless.tracing import first_line

OPSET = 18  # the one that PyTorch's translation is written for: another would be converted to afterwards
PACKAGES = ("onnx", "onnxscript", "onnxruntime")
TOLERANCE = 1e-4  # between logits: about the fifth digit of fp32


def require_packages() -> None:
    """Raise InputError unless the packages of the extra `export` can be imported."""
    for name in PACKAGES:
        try:
            import_module(name)
        except ImportError as error:
            raise InputError(
                "export", found=f"no package {name}", expected="the packages that ONNX needs",
                cure=f"install them with: pip install {' '.join(PACKAGES)}",
            ) from error


class TakesImages(nn.Module):
    """A network behind its normalisation: images, uint8 (N, 3, H, W), to logits, float32 (N, classes).

    Args:
        model: Takes normalised images.
        mean: Per channel, in units where 255 is 1.
        std: The same.

    """

    def __init__(self, model: nn.Module, mean: Sequence[float], std: Sequence[float]) -> None:
        """Keep both as a factor and a summand, as `normalise` computes it."""
        super().__init__()
        self.model = model
        self.scale: Tensor
        self.shift: Tensor
        self.register_buffer("scale", torch.tensor([1 / (255 * s) for s in std])[:, None, None])
        self.register_buffer("shift", torch.tensor([-m / s for m, s in zip(mean, std, strict=True)])[:, None, None])

    def forward(self, images: Tensor) -> Tensor:
        """Return the logits of `images`."""
        return self.model(images.to(torch.float32) * self.scale + self.shift)  # type: ignore[no-any-return]


def to_onnx(
    model: nn.Module, image_size: int, mean: Sequence[float], std: Sequence[float], class_names: Sequence[str],
) -> bytes:
    """Return `model`, in evaluation mode on the CPU, as an ONNX file of operator set `OPSET` that holds its weights.

    Input `images`: uint8 (N, 3, image_size, image_size), N of any size. Output `logits`: float32 (N, classes). The
    class names are among the file's metadata, as a JSON list. What PyTorch notes about its own source is left out.

    Raises:
        SpacelessError: The network does something that ONNX, or PyTorch's translation to it, has no operation for.

    """
    import onnx

    images = torch.zeros(2, 3, image_size, image_size, dtype=torch.uint8)  # a batch of one would become the only size
    try:
        with _quiet():
            program = torch.onnx.export(
                TakesImages(model, mean, std).eval(), (images,), dynamo=True, opset_version=OPSET, verbose=False,
                input_names=["images"], output_names=["logits"], dynamic_shapes=({0: torch.export.Dim("batch")},),
            )
        assert program is not None
        made = program.model_proto
        _forget_source(made)
        made.metadata_props.add(key="class_names", value=json.dumps(list(class_names)))
        onnx.checker.check_model(made, full_check=True)
        content = made.SerializeToString(deterministic=True)
    except Exception as error:  # the network's own code and two libraries run here
        raise SpacelessError(
            "ONNX", found=f"{first_line(error)} in {type(model).__name__}",
            expected="a network that PyTorch can translate",
            cure="keep it in Python: spaceless.load_model(RUN) gives it back",
        ) from error
    return bytes(content)


def _forget_source(made: Any) -> None:
    """Remove what PyTorch notes about the code that an operation comes from: paths of this machine, twice the size."""
    graph = made.graph
    for part in (made, graph, *graph.node, *graph.input, *graph.output, *graph.initializer, *graph.value_info):
        part.ClearField("metadata_props")
        part.ClearField("doc_string")
    for function in made.functions:
        for part in (function, *function.node, *function.value_info):
            part.ClearField("metadata_props")
            part.ClearField("doc_string")


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep the translation from telling what it does: what goes wrong is raised."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)


def open_session(content: bytes) -> Any:
    """Return an onnxruntime session on the CPU for the ONNX file `content`, with as many threads as PyTorch uses."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    options.log_severity_level = 3  # errors
    return onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])


@dataclass(frozen=True)
class Parity:
    """How a network and its ONNX file answer the same images.

    `largest_difference` is between two logits; `same_class` counts the images that both give the same class;
    `correct_pytorch` and `correct_onnx` those that each classifies correctly. `rounding` is how far PyTorch's own
    logits are from those that it computes in float64; it is asked for where the difference exceeds `TOLERANCE`.
    """

    images: int
    largest_difference: float
    same_class: int
    correct_pytorch: int
    correct_onnx: int
    rounding: float | None = None

    @property
    def allowed(self) -> float:
        """The largest difference that is none: `TOLERANCE`, or four times what PyTorch's own rounding amounts to."""
        return max(TOLERANCE, 4 * (self.rounding or 0.0))

    def check(self) -> None:
        """Raise SpacelessError if two logits differ by more than is allowed, or one is no number."""
        if not self.largest_difference <= self.allowed:
            raise SpacelessError(
                "ONNX", found=f"logits that differ by {self.largest_difference:.3g} from PyTorch's on "
                f"{self.images:,} images ({self.images - self.same_class} other classes)",
                expected=f"at most {self.allowed:.3g}",
                cure="nothing was written; try other versions of torch, onnxscript and onnxruntime",
            )


def compare(
    model: nn.Module, session: Any, batches: Callable[[], Iterable[Batch]], mean: Sequence[float],
    std: Sequence[float],
) -> tuple[Parity, list[Tensor]]:
    """Return how `model` and the ONNX file in `session` answer the same images, and the logits of `model` per batch.

    `model` gets images that are normalised as in training; the file normalises for itself. `batches` gives the images
    anew with every call.
    """
    images, same, correct, answers = 0, 0, [0, 0], []
    largest = torch.zeros(())
    with torch.inference_mode():
        for each in batches():
            if not len(each.images):
                continue  # all of them were broken
            ours = model(normalise(each.images, mean, std))
            theirs = torch.from_numpy(session.run(["logits"], {"images": each.images.numpy()})[0])
            largest = torch.maximum(largest, (ours - theirs).abs().max())  # keeps what is no number
            classes = ours.argmax(1), theirs.argmax(1)
            same += int((classes[0] == classes[1]).sum())
            for place, found in enumerate(classes):
                correct[place] += int((found == each.labels).sum())
            images += len(each.images)
            answers.append(ours)
    parity = Parity(images, float(largest), same, *correct)
    if parity.largest_difference > TOLERANCE:
        parity = replace(parity, rounding=_rounding(model, answers, batches(), mean, std))
    return parity, answers


def _rounding(
    model: nn.Module, answers: Sequence[Tensor], batches: Iterable[Batch], mean: Sequence[float], std: Sequence[float],
) -> float | None:
    """Return the largest difference of `answers` from the logits in float64, or None if that cannot be computed."""
    exact = copy.deepcopy(model).double()
    largest = torch.zeros((), dtype=torch.float64)
    sound = (each.images for each in batches if len(each.images))
    try:
        with torch.inference_mode():
            for ours, images in zip(answers, sound, strict=True):
                found = exact(normalise(images, mean, std).double())
                largest = torch.maximum(largest, (ours - found).abs().max())
    except RuntimeError:  # something in it is float32 by itself
        return None
    return float(largest) if largest.isfinite() else None


def session_latencies(sessions: Sequence[Any], image_size: int, repeats: int) -> tuple[list[Latency], Latency | None]:
    """Return the times of each session for one image, passes taken in turn; with two also of their ratio, 1st / 2nd."""
    image = np.zeros((1, 3, image_size, image_size), np.uint8)
    passes: list[Callable[[], object]] = [partial(each.run, ["logits"], {"images": image}) for each in sessions]
    seconds = in_turn(passes, repeats)
    ratio = None if len(seconds) != 2 else quartiles([a / b for a, b in zip(*seconds, strict=True)])
    return [quartiles(each) for each in seconds], ratio
