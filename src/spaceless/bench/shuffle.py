"""`spaceless bench shuffle`: the operator against a copy and against the naive ways, and what it adds to a step."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from spaceless.ahead import STEPS as AHEAD
from spaceless.allocator import keep_memory
from spaceless.bench.record import made_by
from spaceless.bench.subjects import BATCH, QUARTER_VGG, RECIPE, VGG, Network
from spaceless.bench.timing import Work, device, interleaved, precisions, timed, training_steps
from spaceless.bench.verdicts import Target, line, measurement, page, ratio, table
from spaceless.shuffle import Shuffle, ShuffleConv
from spaceless.surgery import remove_spatial
from spaceless.units import find_units

SECONDS = 2.5
WHOLE = 60  # times as many for whole steps, which take as much longer


class Case(NamedTuple):
    """A network whose convolutions are all shuffled, trained in `precision`, and what that may cost."""

    network: Network
    precision: str
    target: Target | None = None
    batch: int = BATCH


STEPS = (
    Case(VGG, "fp32", Target(most=1.06, moonshot=1.03)),
    Case(VGG, "bf16", Target(most=1.12, moonshot=1.06)),
    Case(QUARTER_VGG, "fp32", Target(most=1.2, moonshot=1.1)),
    Case(QUARTER_VGG, "bf16", Target(most=1.2, moonshot=1.1)),
)


def run(
    seconds: float, progress: Callable[[str], None], network: Network = VGG, steps: Sequence[Case] = STEPS,
    batch: int = BATCH,
) -> dict[str, Any]:
    """Return the times of the operator on every map that enters a convolution of `network`, and of whole steps."""
    kept = keep_memory()
    operator = []
    for dtype in precisions():
        for shape in map_shapes(network, batch):
            for backward in (False, True):
                operator.append(_operator(shape, dtype, backward, seconds))
                progress(line(operator[-1]))
    whole = []
    for case in steps:
        if case.precision in precisions():
            whole.append(_step(case, WHOLE * seconds))
            progress(line(whole[-1]))
    return {
        "what": _WHAT, "seconds": seconds, "batch": batch, "network": network.label, "unit": "seconds",
        "memory_kept": kept,
        "operator": operator, "measurements": whole,
    }


def map_shapes(network: Network, batch: int) -> list[tuple[int, int, int, int]]:
    """Return the different shapes (N, C, H, W) of the maps that are shuffled when all units are, in their order."""
    model = network.build()
    shuffled, _ = remove_spatial(
        model, "shuffle", len(find_units(model, network.size)), image_size=network.size)
    shapes: list[tuple[int, int, int, int]] = []
    for module in shuffled.modules():
        if isinstance(module, ShuffleConv):
            module.register_forward_pre_hook(lambda _, inputs: shapes.append((batch, *inputs[0].shape[1:])))
    with torch.no_grad():
        shuffled.eval()(torch.zeros(1, 3, network.size, network.size))
    return list(dict.fromkeys(shapes))


def randperm_loop(x: Tensor) -> Tensor:
    """Shuffle x (N, C, H, W) channel by channel: the shortest thing to write."""
    flat = x.flatten(2)
    return torch.stack([
        flat[:, channel, torch.randperm(flat.shape[2], device=x.device)] for channel in range(x.shape[1])
    ], 1).view(x.shape)


def argsort_gather(x: Tensor) -> Tensor:
    """Shuffle x (N, C, H, W) in one go: random numbers, argsort, gather."""
    flat = x.flatten(2)
    order = torch.rand(flat.shape[1:], device=x.device).argsort(1)
    return flat.gather(2, order.expand_as(flat)).view(x.shape)


def _operator(shape: tuple[int, ...], precision: str, backward: bool, seconds: float) -> dict[str, Any]:
    dtype = torch.bfloat16 if precision == "bf16" else torch.float32
    layout = torch.channels_last if precision == "bf16" else torch.contiguous_format
    x, gradient = (torch.randn(shape, device=device()).to(dtype).contiguous(memory_format=layout) for _ in range(2))
    ways: dict[str, Callable[[Tensor], Tensor]] = {
        "ours": Shuffle(0, 0), "randperm": randperm_loop, "argsort": argsort_gather,
    }
    works: dict[str, Work] = {"copy": timed(lambda: (x.clone(), gradient.clone()) if backward else x.clone())}
    x.requires_grad_(backward)

    def work(way: Callable[[Tensor], Tensor]) -> Work:
        if not backward:
            return timed(lambda: way(x))
        return timed(lambda: torch.autograd.grad(way(x), x, gradient))

    works |= {name: work(way) for name, way in ways.items()}
    times = interleaved(works, seconds)
    return measurement(
        f"{'x'.join(map(str, shape))} {precision}{' with backward' if backward else ''}", times,
        [ratio(times, "ours", "copy"), ratio(times, "randperm", "ours"), ratio(times, "argsort", "ours")],
        shape=shape, precision=precision, layout="channels_last" if precision == "bf16" else "contiguous",
        backward=backward,
    )


def _step(case: Case, seconds: float) -> dict[str, Any]:
    plain = case.network.build()
    units = len(find_units(plain, case.network.size))
    shuffled = case.network.build("shuffle", units)
    recipe = RECIPE.model_copy(update={"batch_size": case.batch})
    steps = AHEAD if device().type == "cpu" else None  # drawn for at once: one drawing is among them; a GPU makes more
    works = {name: training_steps(model, case.precision, steps=steps, recipe=recipe, size=case.network.size)
             for name, model in (("shuffled", shuffled), ("unshuffled", plain))}
    times = interleaved(works, seconds, warm_up=0)
    return measurement(
        f"step of {case.network.label}, all {units} units, {case.precision}", times,
        [ratio(times, "shuffled", "unshuffled", case.target)], batch=case.batch, precision=case.precision, units=units,
        image_size=case.network.size,
    )


def markdown(record: dict[str, Any]) -> str:
    """Return the page of a record."""
    head = [each["of"] for each in record["operator"][0]["figures"]]
    rows = [f"| map | {' | '.join(head)} | ours, ms |", f"|---{'|---' * len(head)}|---|"]
    for each in record["operator"]:
        cells = [f"{found['median']:.3g} ({found['lower']:.3g} to {found['upper']:.3g})" for found in each["figures"]]
        ours = statistics.median(each["times"]["ours"])
        rows.append(f"| {each['case']} | {' | '.join(cells)} | {1000 * ours:.3g} |")
    return page(record, "Shuffling", made_by(record), table(record["measurements"]), rows)


_WHAT = """\
First a whole training step (`spaceless.training.train`) with a shuffle in front of every convolution against the same
step without. Then the operator alone on every map that enters a convolution of the network: against `clone` of its
input (with backward: of input and gradient), which no gather can beat; a loop of `torch.randperm` over the channels;
and `torch.rand`, `argsort` and `gather`. fp32 maps are contiguous, bf16 maps channels_last. Drawing is included.
Every way has the tool's allocator settings, so a copy is as cheap as it gets. On a CPU 16 steps in a row are timed,
for which training draws its permutations at once; the operator alone draws in every call."""
