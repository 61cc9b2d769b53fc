"""`spaceless bench floor`: what share of the machine's measured matrix peak a training step reaches."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import torch

from spaceless.allocator import keep_memory
from spaceless.bench import parts as parts_room
from spaceless.bench.parts import parts
from spaceless.bench.record import made_by
from spaceless.bench.subjects import BATCH, QUARTER_VGG, RECIPE, RESNET, VGG, Network
from spaceless.bench.timing import LEAST_ROUNDS, device, interleaved, now, precisions, timed, training_steps
from spaceless.bench.train import in_worker
from spaceless.bench.verdicts import Target, figure, line, measurement, page, ratio, table
from spaceless.cost import cost
from spaceless.errors import SpacelessError
from spaceless.sharing import shared_gpu

SECONDS = 5.0
SIDES = (1024, 2048, 4096)  # of the squares that are multiplied
MOST_REPEATS = 100  # of each
PASSES, FLOPS_PER_MAC = 3, 2  # forward, and backward to the inputs and to the weights
MOVED = 16 << 20  # numbers that are copied to measure the bandwidth
# How often every number that a convolution puts out passes through memory in one step: normalisation reads it twice and
# writes it once, and backwards reads map and gradient twice and writes once; ReLU reads and writes, backwards 2 and 1.
TRIPS = 3 + 5 + 2 + 3


class Step(NamedTuple):
    """A network trained in one precision (`auto`: the fastest here)."""

    network: Network
    precision: str


class Together(NamedTuple):
    """Several trainings at once on one GPU, and what is promised of them together."""

    network: Network = VGG
    jobs: tuple[int, ...] = (1, 4, 6)
    target: Target = Target(least=0.25, moonshot=0.4)  # of the most of them


class Reduced(NamedTuple):
    """A network, numbers of last units that lose their spatial information, and the precision."""

    network: Network
    ks: tuple[int, ...] = (5, 13)
    precision: str = "auto"


STEPS = (
    Step(VGG, "fp32"), Step(VGG, "bf16"), Step(QUARTER_VGG, "fp32"), Step(QUARTER_VGG, "bf16"), Step(RESNET, "auto"),
)
REDUCED = (Reduced(VGG, precision="fp32"), Reduced(VGG, precision="bf16"), Reduced(QUARTER_VGG))
METHODS = ("gap_fc", "conv1x1")
PROMISE = Target(least=0.75)  # of what the multiply-adds say: within 25 %


def run(
    seconds: float, progress: Callable[[str], None], steps: Sequence[Step] = STEPS,
    reduced: Sequence[Reduced] = REDUCED, sides: Sequence[int] = SIDES, batch: int = BATCH,
    together: Together = Together(),  # noqa: B008
) -> dict[str, Any]:
    """Return the peaks, the share of them that steps reach, and what fewer multiply-adds buy.

    On a GPU also what several trainings at once reach together.
    """
    kept = keep_memory()
    peaks = {}
    for precision in precisions():
        peaks[precision] = peak(precision, sides, seconds) | {"copied": bandwidth(precision, seconds)}
        progress(f"matrix product, {precision}: {peaks[precision]['flops'] / 1e9:,.0f} GFLOP/s")
    found = []
    for step in steps:
        if (precision := _precision(step)) in precisions():
            found.append(_share(step, precision, peaks[precision]["flops"], seconds, batch))
            progress(line(found[-1]))
    if device().type == "cuda":
        found.append(_together(together, peaks[precisions()[-1]]["flops"], seconds))
        progress(line(found[-1]))
    for case in reduced:
        if (precision := _precision(case)) in precisions():
            found.append(_reduced(case, precision, peaks[precision]["copied"], seconds, batch))
            progress(line(found[-1]))
    return {
        "what": _WHAT, "seconds": seconds, "batch": batch, "unit": "seconds per step", "memory_kept": kept,
        "peaks": peaks, "measurements": found,
    }


def _precision(case: Step | Reduced) -> str:
    return precisions()[-1] if case.precision == "auto" else case.precision


def peak(precision: str, sides: Sequence[int], seconds: float) -> dict[str, Any]:
    """Return the best floating-point operations per second of `torch.mm` of squares, over all `sides` and repeats."""
    dtype = torch.bfloat16 if precision == "bf16" else torch.float32
    best: dict[str, Any] = {"flops": 0.0}
    times: dict[str, list[float]] = {}
    for side in sides:
        one, other = (torch.randn(side, side, device=device()).to(dtype) for _ in range(2))
        multiply = timed(lambda one=one, other=other: torch.mm(one, other))  # type: ignore[misc]
        multiply()
        taken, end = [multiply()], now() + seconds / len(sides)
        while time.perf_counter() < end and len(taken) < MOST_REPEATS:
            taken.append(multiply())
        times[str(side)] = [float(f"{each:.6g}") for each in taken]
        flops = FLOPS_PER_MAC * side**3 / min(taken)
        if flops > best["flops"]:
            best = {"flops": float(f"{flops:.6g}"), "side": side}
    return best | {"times": times}


def bandwidth(precision: str, seconds: float, count: int = MOVED) -> float:
    """Return the most bytes per second, read and written, of a copy of `count` numbers."""
    one = torch.ones(count, device=device(), dtype=torch.bfloat16 if precision == "bf16" else torch.float32)
    other = torch.empty_like(one)
    copy = timed(lambda: other.copy_(one))
    copy()
    taken, end = [copy()], now() + seconds / 10
    while time.perf_counter() < end and len(taken) < MOST_REPEATS:
        taken.append(copy())
    return float(f"{2 * one.numel() * one.element_size() / min(taken):.6g}")


def step_flops(macs: int, batch: int) -> int:
    """Return the floating-point operations of a training step on a network of `macs` multiply-adds for an image."""
    return macs * PASSES * FLOPS_PER_MAC * batch


def _share(step: Step, precision: str, flops: float, seconds: float, batch: int) -> dict[str, Any]:
    model = step.network.build()
    macs = cost(model, step.network.size).macs
    recipe = RECIPE.model_copy(update={"batch_size": batch})
    times = interleaved(
        {"step": training_steps(model, precision, recipe=recipe, size=step.network.size)}, seconds, warm_up=0)
    shares = [step_flops(macs, batch) / each / flops for each in times["step"]]
    return measurement(
        f"{step.network.label}, {precision}", times, [figure("share of the matrix peak", shares)],
        macs=macs, precision=precision, image_size=step.network.size,
    )


def _together(case: Together, flops: float, seconds: float) -> dict[str, Any]:
    """Measure so many trainings at once, each in a process of its own, over the same seconds.

    Raises:
        SpacelessError: One began too late to be measured with the others.

    """
    macs = cost(case.network.build(), case.network.size).macs
    times: dict[str, list[float]] = {}
    in_worker("ours", case.network, min(seconds, 1.0))  # kernels are compiled once, and then found on the disk
    figures = []
    served: set[bool] = set()
    said: set[str] = set()
    for jobs in case.jobs:
        times[f"{jobs} at once"] = []
        for _ in range(LEAST_ROUNDS):
            at = time.time() + _STARTING
            with shared_gpu() as shared, ThreadPoolExecutor(jobs) as pool:
                sides = list(pool.map(lambda _: in_worker(
                    "ours", case.network, seconds, ("--at", f"{at:.3f}")), range(jobs)))  # noqa: B023
            if (late := max(side["began"] for side in sides) - at) > _LATE:
                raise SpacelessError(
                    f"{jobs} trainings at once", found=f"one that began {late:.1f} s after the others",
                    expected="all at once", cure="run it on a machine that does nothing else")
            served.add(shared)
            said.update(each for side in sides for each in side["warnings"])
            speed = sum(side["images_per_second"] for side in sides)
            times[f"{jobs} at once"].append(sides[0]["batch"] / speed)
        shares = [step_flops(macs, BATCH) / each / flops for each in times[f"{jobs} at once"]]
        most = jobs == max(case.jobs)
        figures.append(figure(f"share of the matrix peak, {jobs} at once", shares, case.target if most else None))
    return measurement(
        f"{case.network.label}, {precisions()[-1]}, several at once", times, figures, macs=macs,
        precision=precisions()[-1], image_size=case.network.size, served_by_mps=sorted(served), warnings=sorted(said),
    )


_LATE = 1.0  # seconds
_STARTING = 25.0  # seconds in which all processes have imported, recorded their step and warmed up


def _reduced(case: Reduced, precision: str, copied: float, seconds: float, batch: int) -> dict[str, Any]:
    recipe = RECIPE.model_copy(update={"batch_size": batch})
    models = {"K = 0": case.network.build()}
    models |= {f"{method} K = {k}": case.network.build(method, k) for method in METHODS for k in case.ks}
    costs = {name: cost(model, case.network.size) for name, model in models.items()}
    macs = {name: each.macs for name, each in costs.items()}
    times = interleaved({
        name: training_steps(model, precision, recipe=recipe, size=case.network.size) for name, model in models.items()
    }, seconds, warm_up=0)
    figures = []
    for name in list(models)[1:]:
        found = ratio(times, "K = 0", name, PROMISE, macs[name] / macs["K = 0"])
        figures.append(found | {"of": f"speed-up / promised, {name}", "promised": round(macs["K = 0"] / macs[name], 3)})
        moved = TRIPS * costs[name].activations * batch * (2 if precision == "bf16" else 4) / copied
        figures.append(figure(f"moving the maps / promised time, {name}", [
            moved / (macs[name] / macs["K = 0"]) / each for each in times["K = 0"]]))
    return measurement(
        f"{case.network.label}, {precision}", times, figures, macs=macs, precision=precision,
        image_size=case.network.size,
        parts={name: parts(model, precision, recipe=recipe, size=case.network.size) for name, model in models.items()}
        if device().type == "cpu" else {},
    )


def markdown(record: dict[str, Any]) -> str:
    """Return the page of a record."""
    peaks = ["| precision | best matrix product, GFLOP/s | of squares of side | copy, GB/s |", "|---|---|---|---|"]
    peaks += [f"| {name} | {each['flops'] / 1e9:,.0f} | {each['side']} | {each['copied'] / 1e9:.1f} |"
              for name, each in record["peaks"].items()]
    return page(record, "How near to the machine's peak", made_by(record), peaks, table(record["measurements"]),
                parts_room.table(record["measurements"]))


_WHAT = """\
The peak is the best of many `torch.mm` of large squares. A training step (`spaceless.training.train`, input and
optimiser included) is counted as three times the network's multiply-adds for every image, two operations each.
"Speed-up / promised": how many times faster the step is than that of the unchanged network, divided by how many times
fewer its multiply-adds are; 1 is as fast as they promise. "Moving the maps / promised time": what normalisation and
ReLU alone would take if they did nothing but pass every number that a convolution puts out 13 times through memory, as
layer by layer they must, at the measured speed of a copy, as a share of the time that the multiply-adds promise. What
keeps a step from it shows the last table: the shares of its time, by kinds of operations, from PyTorch's profiler; only
the first kind is what multiply-adds count."""
