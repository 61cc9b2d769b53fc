"""Timing: works in turn, A B A B, so that what disturbs the machine disturbs all of them; steps of the real loop."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping

import torch
from torch import nn

from spaceless.bench.subjects import RECIPE, SIZE, for_steps
from spaceless.run import choose_device, choose_precision
from spaceless.training import Progress, train
from spaceless.trial import Recipe

Work = Callable[[], float]  # does something once and returns its seconds
LEAST_ROUNDS = 3
STEPS, STEPS_ON_GPU = 3, 100  # that are timed in one go
FRONT, FRONT_ON_GPU = 1, 10  # steps in front of them, in which the loop sets itself up; on a GPU, records a step


def device() -> torch.device:
    """Return what is measured: the GPU if there is one."""
    return choose_device("auto")


def precisions() -> tuple[str, ...]:
    """Return what is worth measuring here: fp32, and bf16 where the hardware multiplies it natively."""
    return ("fp32",) if choose_precision("auto", device()) == "fp32" else ("fp32", "bf16")


def now() -> float:
    """Return the time in seconds when everything that was asked of the device is done."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter()


def timed(work: Callable[[], object]) -> Work:
    """Return `work` as one that is timed from its start to the end of what it asked of the device."""

    def measured() -> float:
        start = now()
        work()
        return now() - start

    return measured


def interleaved(works: Mapping[str, Work], seconds: float, warm_up: int = 1) -> dict[str, list[float]]:
    """Return the seconds of each of `works` in rounds of one turn each, in order, until `seconds` have gone by.

    Args:
        works: By name.
        seconds: The last round begins before they are over; there are `LEAST_ROUNDS` whatever they last.
        warm_up: Rounds in front that are not counted: the first ones allocate and choose algorithms.

    """
    for _ in range(warm_up):
        for work in works.values():
            work()
    times: dict[str, list[float]] = {name: [] for name in works}
    end = time.perf_counter() + seconds
    rounds = 0
    while rounds < LEAST_ROUNDS or time.perf_counter() < end:
        for name, work in works.items():
            times[name].append(work())
        rounds += 1
    return times


def training_steps(
    model: nn.Module, precision: str, *, steps: int | None = None, recipe: Recipe = RECIPE, size: int = SIZE,
) -> Work:
    """Return the work of `steps` steps of the real loop on made images, input included; its time is that of one step.

    Some steps more are made in front, in which the loop sets itself up. None is `STEPS`, more on a GPU.
    """
    gpu = device().type == "cuda"
    steps, front = steps or (STEPS_ON_GPU if gpu else STEPS), FRONT_ON_GPU if gpu else FRONT
    model.to(device())
    data, recipe = for_steps(steps + front, recipe, size)

    def measured() -> float:
        marks: dict[int, float] = {}

        def mark(at: Progress) -> None:
            step = round(at.share * (steps + front))
            if step in (front, steps + front):
                marks[step] = now()

        train(model, data, recipe, 0, precision=precision, progress=mark)
        return (marks[steps + front] - marks[front]) / steps

    return measured
