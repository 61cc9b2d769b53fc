"""What a network costs: parameters, multiply-adds, activations and latency, and what was not counted.

Conventions, all for one image. One multiply-add is one operation: convolutions and matrix products are counted as
executed (`torch.utils.flop_counter` counts two floating-point operations for each), without biases. Activations are the
entries of what they put out (Radosavovic et al., "Designing Network Design Spaces", CVPR 2020, count the outputs of all
convolutions; fvcore's `ActivationCountAnalysis` those of matrix products too, as here). All other arithmetic is listed
as not counted: layers by their kind, unless a counted operation runs in them, functions between layers by their name
(the `add` of a residual block).
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode, flop_registry

from spaceless.errors import InputError
from spaceless.tracing import ShapesOnly, example_input, shapes_of

_FREE = (nn.Identity, nn.Dropout, nn.Flatten, nn.Sequential)  # a Sequential without parts is an identity
_MOVES = {  # operations that only make, name or move numbers
    "_reshape_alias", "_to_copy", "_unsafe_view", "arange", "cat", "clone", "constant_pad_nd", "copy_", "detach",
    "empty", "empty_like", "fill_", "full", "index", "lift_fresh", "new_empty", "new_zeros", "ones", "ones_like",
    "pixel_shuffle", "pixel_unshuffle", "reflection_pad2d", "replication_pad2d", "scalar_tensor", "stack", "zeros",
    "zeros_like",
}


@dataclass(frozen=True)
class Cost:
    """Parameters; multiply-adds and activations for one image; and the arithmetic that is in neither."""

    params: int
    macs: int
    activations: int
    not_counted: tuple[str, ...]


@dataclass(frozen=True)
class Latency:
    """Median, lower and upper quartile of the seconds for one batch, over `repeats` timed passes after warm-up.

    Or of a ratio of such seconds, see `compare_latency`.
    """

    median: float
    lower: float
    upper: float
    repeats: int


def count_parameters(model: nn.Module) -> int:
    """Return the number of trainable and fixed parameters; shared ones count once."""
    return sum(p.numel() for p in model.parameters())


def cost(model: nn.Module, image_size: int) -> Cost:
    """Return what `model` costs for one image of side `image_size`; it is not changed and nothing is computed."""
    shadow = shapes_of(model)
    x = example_input(shadow, image_size)
    seen = _Seen()
    with torch.no_grad(), ShapesOnly(), FlopCounterMode(display=False) as counter, seen, _layers(shadow, seen):
        shadow(x)
    left_out = {kind.__name__ for kind in seen.kinds - seen.counted if not issubclass(kind, _FREE)}
    left_out |= {name.strip("_").removesuffix("_with_indices") for name in seen.functions if name not in _MOVES}
    return Cost(count_parameters(model), counter.get_total_flops() // 2, seen.activations, tuple(sorted(left_out)))


class _Seen(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """What was executed: the entries that counted operations put out, the kinds of layers, functions between them.

    `counted` are the kinds in which a counted operation ran.
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.activations = 0
        self.kinds: set[type[nn.Module]] = set()
        self.counted: set[type[nn.Module]] = set()
        self.functions: set[str] = set()
        self.inside: list[type[nn.Module]] = []  # kinds of the layers that are being executed

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None,
    ) -> Any:
        output = func(*args, **(kwargs or {}))
        if func._overloadpacket in flop_registry:
            first = output if isinstance(output, Tensor) else output[0]  # attention gives statistics with its result
            self.activations += first.numel()
            self.counted.update(self.inside)
        elif not self.inside and not func.is_view:
            self.functions.add(func._overloadpacket.__name__)
        return output


@contextmanager
def _layers(model: nn.Module, seen: _Seen) -> Iterator[None]:
    """Tell `seen` which modules without parts are executed, and when."""

    def enter(module: nn.Module, _: Any) -> None:
        seen.inside.append(type(module))
        seen.kinds.add(type(module))

    def leave(_module: nn.Module, _inputs: Any, _output: Any) -> None:
        seen.inside.pop()

    leaves = [module for module in model.modules() if not list(module.children())]
    handles = [handle for module in leaves
               for handle in (module.register_forward_pre_hook(enter), module.register_forward_hook(leave))]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def latency(model: nn.Module, image_size: int, *, batch: int = 1, repeats: int = 20) -> Latency:
    """Return the time of a forward pass in evaluation mode, on the device and threads that the model is on now.

    Raises:
        InputError: Fewer than two repeats, which have no quartiles.

    """
    (seconds,) = _timed([model], image_size, batch, repeats)
    return quartiles(seconds)


def compare_latency(
    before: nn.Module, after: nn.Module, image_size: int, *, batch: int = 1, repeats: int = 20,
) -> tuple[Latency, Latency, Latency]:
    """Return the times of `before` and of `after`, and of their ratio before / after, pass by pass in turn.

    What else the machine does slows neighbouring passes alike, so that the ratio is steadier than the times.

    Raises:
        InputError: Fewer than two repeats, which have no quartiles.

    """
    first, second = _timed([before, after], image_size, batch, repeats)
    ratios = [a / b for a, b in zip(first, second, strict=True)]
    return quartiles(first), quartiles(second), quartiles(ratios)


def _timed(models: Sequence[nn.Module], image_size: int, batch: int, repeats: int) -> list[list[float]]:
    images = [example_input(model, image_size).expand(batch, -1, -1, -1).contiguous() for model in models]
    modes = {module: module.training for model in models for module in model.modules()}  # a part may be frozen
    for model in models:
        model.eval()

    def forward(model: nn.Module, x: Tensor) -> None:
        model(x)
        if x.device.type == "cuda":
            torch.cuda.synchronize(x.device)

    try:
        with torch.inference_mode():
            passes = [partial(forward, model, x) for model, x in zip(models, images, strict=True)]
            return in_turn(passes, repeats)
    finally:
        for module, mode in modes.items():
            module.training = mode


def in_turn(passes: Sequence[Callable[[], object]], repeats: int) -> list[list[float]]:
    """Return the seconds of `repeats` calls of each of `passes`, called in turn, after three of warm-up.

    Raises:
        InputError: Fewer than two repeats, which have no quartiles.

    """
    if repeats < 2:
        raise InputError("repeats", found=repeats, expected="2 or more", cure="quartiles need several passes")
    seconds: list[list[float]] = [[] for _ in passes]
    for step in range(repeats + 3):
        for run, found in zip(passes, seconds, strict=True):
            start = time.perf_counter()
            run()
            if step >= 3:  # the first passes allocate and choose algorithms
                found.append(time.perf_counter() - start)
    return seconds


def quartiles(values: Sequence[float]) -> Latency:
    """Return median and quartiles of two or more values, within what was measured."""
    lower, median, upper = statistics.quantiles(values, n=4, method="inclusive")
    return Latency(median, lower, upper, len(values))
