"""`spaceless bench evaluate`: 200 evaluations of a shuffling network, ours against running the whole network."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch

from spaceless.allocator import keep_memory
from spaceless.bench.record import made_by
from spaceless.bench.subjects import QUARTER_VGG, VGG, Network, made_images
from spaceless.bench.timing import device, interleaved, precisions, timed
from spaceless.bench.verdicts import Target, line, measurement, page, ratio, table
from spaceless.cost import cost
from spaceless.data import Dataset
from spaceless.data.augment import normalise
from spaceless.evaluation import evaluate, split_at_shuffle

SECONDS = 5.0
REPEATS, NAIVE_REPEATS = 200, 4
IMAGES, BATCH = 256, 256


class Case(NamedTuple):
    """A network with its last K units shuffled; what is promised in the same precision and against fp32."""

    network: Network
    k: int
    same: Target | None = None
    fp32: Target | None = None


CASES = (
    Case(VGG, 1, Target(least=10, moonshot=14), Target(least=20, moonshot=60)),
    Case(VGG, 3, Target(least=6.5, moonshot=11), Target(least=10, moonshot=45)),
    Case(VGG, 5, Target(least=2.9, moonshot=3.4), Target(least=4.5, moonshot=5)),
    Case(QUARTER_VGG, 1), Case(QUARTER_VGG, 3), Case(QUARTER_VGG, 5),
)


def run(
    seconds: float, progress: Callable[[str], None], cases: Sequence[Case] = CASES, images: int = IMAGES,
    repeats: int = REPEATS, naive_repeats: int = NAIVE_REPEATS,
) -> dict[str, Any]:
    """Return the times of `repeats` evaluations, the naive ones scaled up from `naive_repeats`."""
    kept = keep_memory()
    found = []
    for case in cases:
        found.append(_case(case, seconds, images, repeats, naive_repeats))
        progress(line(found[-1]))
    return {
        "what": _WHAT.format(repeats=repeats, naive=naive_repeats, images=images, batch=BATCH), "seconds": seconds,
        "images": images, "repeats": repeats, "naive_repeats": naive_repeats, "batch": BATCH,
        "memory_kept": kept,
        "unit": "seconds for all repeats (ours) and for naive_repeats of them (naive)", "measurements": found,
    }


def _case(case: Case, seconds: float, images: int, repeats: int, naive_repeats: int) -> dict[str, Any]:
    data = made_images(BATCH, images, size=case.network.size)
    model = case.network.build("shuffle", case.k).to(device())
    own = precisions()[-1]
    evaluate(model, data, repeats=2, precision=own, batch_size=BATCH)  # a warm-up of all repeats would take too long
    works = {"ours": timed(lambda: evaluate(model, data, repeats=repeats, precision=own, batch_size=BATCH))}
    for precision in reversed(precisions()):

        def naive(precision: str = precision) -> object:
            return naive_passes(model, data, naive_repeats, precision)

        naive_passes(model, data, 1, precision)
        works[f"naive {precision}"] = timed(naive)
    times = interleaved(works, seconds, warm_up=0)
    figures = [ratio(times, f"naive {own}", "ours", case.same, repeats / naive_repeats)]
    if own != "fp32":
        figures.append(ratio(times, "naive fp32", "ours", case.fp32, repeats / naive_repeats))
    return measurement(
        f"{case.network.label}, K = {case.k}", times, figures, precision=own, image_size=case.network.size,
        promised=promised(model, case.network.size, repeats),
    )


def promised(model: torch.nn.Module, image_size: int, repeats: int) -> float:
    """Return how many times fewer multiply-adds it takes to compute the part in front of the first shuffle once."""
    split = split_at_shuffle(model)
    assert split is not None
    whole, front = cost(model, image_size).macs, cost(split[0], image_size).macs  # type: ignore[arg-type]
    return round(repeats * whole / (front + repeats * (whole - front)), 2)


@torch.inference_mode()
def naive_passes(model: torch.nn.Module, data: Dataset, repeats: int, precision: str) -> list[float]:
    """Return the accuracies, in percent, of `repeats` passes of the whole network over the test images."""
    model.eval()
    where = next(model.parameters()).device
    accuracies = []
    parts = [torch.split(part, BATCH) for part in (data.test_images, data.test_labels)]
    for _ in range(repeats):
        correct = 0
        for images, labels in zip(*parts, strict=True):
            with torch.autocast(where.type, torch.bfloat16, enabled=precision == "bf16"):
                answers = model(normalise(images.to(where), data.mean, data.std)).argmax(1)
            correct += int((answers == labels.to(where)).sum())
        accuracies.append(100 * correct / data.test_count)
    return accuracies


def markdown(record: dict[str, Any]) -> str:
    """Return the page of a record."""
    promises = ["| case | our precision | ours, seconds | the multiply-adds allow |", "|---|---|---|---|"]
    for each in record["measurements"]:
        ours = statistics.median(each["times"]["ours"])
        promises.append(f"| {each['case']} | {each['precision']} | {ours:.3g} | {each['promised']:g} |")
    return page(
        record, "Repeated evaluation of shuffling networks", made_by(record), table(record["measurements"]), promises)


_WHAT = """\
{repeats} evaluations with fresh permutations on {images} images of 32x32 pixels: `spaceless.evaluation.evaluate` with
its defaults against the whole network run each time, batch {batch}, contiguous maps, with the same weights and the
same shuffling modules and allocator settings on both sides. The naive way is timed for {naive} repeats and scaled up
to {repeats}: its time per repeat does not depend on their number. "The multiply-adds allow" is what computing the
part in front of the first shuffle once saves of them."""
