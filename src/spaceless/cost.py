"""What a network costs: parameters, multiply-adds and latency, and what was not counted.

Convention: one multiply-add is one operation, for one image; convolutions and matrix products are counted as executed
(`torch.utils.flop_counter` counts two floating-point operations for each), without biases; every other kind of layer is
listed as not counted. What a network computes between its layers (the sum of a residual block) is in neither.
"""

from __future__ import annotations

import copy
import statistics
import time
from dataclasses import dataclass

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from spaceless.errors import InputError
from spaceless.tracing import ShapesOnly, example_input

_COUNTED = (nn.Conv2d, nn.Linear)
_FREE = (nn.Identity, nn.Dropout, nn.Flatten)


@dataclass(frozen=True)
class Cost:
    """Parameters, multiply-adds for one image, and the kinds of layers whose arithmetic is not in that figure."""

    params: int
    macs: int
    not_counted: tuple[str, ...]


@dataclass(frozen=True)
class Latency:
    """Median, lower and upper quartile of the seconds for one batch, over `repeats` timed passes after warm-up."""

    median: float
    lower: float
    upper: float
    repeats: int


def count_parameters(model: nn.Module) -> int:
    """Return the number of trainable and fixed parameters; shared ones count once."""
    return sum(p.numel() for p in model.parameters())


def cost(model: nn.Module, image_size: int) -> Cost:
    """Return what `model` costs for one image of side `image_size`; it is not changed and nothing is computed."""
    shadow = copy.deepcopy(model).to("meta").eval()
    x = example_input(shadow, image_size)
    with torch.no_grad(), ShapesOnly(), FlopCounterMode(display=False) as counter:
        shadow(x)
    leaves = {type(m) for m in shadow.modules() if not list(m.children())}
    left_out = {kind.__name__ for kind in leaves if not issubclass(kind, _COUNTED + _FREE)}
    return Cost(count_parameters(model), counter.get_total_flops() // 2, tuple(sorted(left_out)))


def latency(model: nn.Module, image_size: int, *, batch: int = 1, repeats: int = 20) -> Latency:
    """Return the time of a forward pass in evaluation mode, on the device and threads that the model is on now.

    Raises:
        InputError: Fewer than two repeats, which have no quartiles.

    """
    if repeats < 2:
        raise InputError("repeats", found=repeats, expected="2 or more", cure="quartiles need several passes")
    x = example_input(model, image_size).expand(batch, -1, -1, -1).contiguous()
    modes = {module: module.training for module in model.modules()}  # a part may be frozen in evaluation mode
    model.eval()
    seconds = []
    with torch.inference_mode():
        for step in range(repeats + 3):
            start = time.perf_counter()
            model(x)
            if x.device.type == "cuda":
                torch.cuda.synchronize(x.device)
            if step >= 3:  # the first passes allocate and choose algorithms
                seconds.append(time.perf_counter() - start)
    for module, mode in modes.items():
        module.training = mode
    lower, median, upper = statistics.quantiles(seconds, n=4, method="inclusive")  # within what was measured
    return Latency(median, lower, upper, repeats)
