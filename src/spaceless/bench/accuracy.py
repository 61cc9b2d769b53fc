"""`spaceless bench accuracy`: one training by the plain loop and by ours, over seeds, comes to one accuracy."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import torch

from spaceless.bench.plain import WORKERS, plain_accuracy, train_plainly
from spaceless.bench.record import made_by
from spaceless.bench.subjects import Network
from spaceless.bench.timing import device
from spaceless.bench.verdicts import page
from spaceless.certainty import interval
from spaceless.data import Dataset
from spaceless.errors import DataError
from spaceless.evaluation import evaluate
from spaceless.models import build_model
from spaceless.rows import Row
from spaceless.run import choose_precision, load_data
from spaceless.training import train
from spaceless.trial import RECIPES, Trial

SECONDS = 900.0
LEAST_SEEDS = 3


class Case(NamedTuple):
    """What is trained, and on what: the first of `data` that is here."""

    network: Network = Network("vgg16", 0.25)
    data: tuple[str, ...] = ("cifar100", "texture")
    images: int = 50_000
    tests: int = 10_000
    epochs: int = 5
    batch: int = 128
    workers: int = WORKERS


def run(
    seconds: float, progress: Callable[[str], None], case: Case = Case(),  # noqa: B008
) -> dict[str, Any]:
    """Train pairs of networks from the same weights by both loops until `seconds` are over, `LEAST_SEEDS` at least."""
    data, trial = _data(case)
    recipe = trial.recipe
    where = device()
    precision = choose_precision("auto", where)
    top1: dict[str, list[float]] = {"plain": [], "ours": []}
    times: dict[str, list[float]] = {"plain": [], "ours": []}
    end = time.monotonic() + seconds
    seed = 0
    while seed < LEAST_SEEDS or time.monotonic() < end:
        for side, reached in top1.items():
            model = build_model(trial.model, data.classes, data.image_size, width=trial.width, seed=seed).to(where)
            start = time.perf_counter()
            if side == "plain":
                with torch.random.fork_rng():
                    torch.manual_seed(seed)
                    train_plainly(model, data, recipe, workers=case.workers)
                    reached.append(plain_accuracy(model, data))
            else:
                train(model, data, recipe, seed, precision=precision)
                reached.append(evaluate(model, data, precision=precision).mean)
            times[side].append(round(time.perf_counter() - start, 3))
        progress(f"seed {seed}: plain {top1['plain'][-1]:.2f} %, ours {top1['ours'][-1]:.2f} %")
        seed += 1
    return {
        "what": _WHAT, "seconds": seconds, "network": case.network.label, "data": data.name,
        "train_images": data.train_count, "test_images": data.test_count, "image_size": data.image_size,
        "recipe": recipe.model_dump(mode="json"),
        "precision": {"plain": "fp32", "ours": precision}, "seeds": list(range(seed)), "top1": top1, "times": times,
        "difference": difference(trial, top1["ours"], top1["plain"]),
    }


def _data(case: Case) -> tuple[Dataset, Trial]:
    recipe = RECIPES["fast"].model_copy(update={"epochs": case.epochs, "batch_size": case.batch})
    for name in case.data:
        made = name == "texture"
        trial = Trial(
            model=case.network.model, width=case.network.width, data=name, recipe=recipe,
            train_images=None if made and case.images >= 4096 else case.images,
            test_images=None if made and case.tests >= 2048 else case.tests,
        )
        try:
            data = load_data(trial)
        except DataError:
            if name == case.data[-1]:
                raise
            continue
        assert isinstance(data, Dataset)
        return data, trial
    raise ValueError("no data named")


def difference(trial: Trial, ours: list[float], plain: list[float]) -> dict[str, Any]:
    """Return ours minus plain in percentage points: Student's 95 % interval, and whether nought lies in it."""
    left, right = (
        Row(trial, None, seeds=tuple(range(len(each))), top1=statistics.fmean(each), spread=statistics.stdev(each))
        for each in (ours, plain)
    )
    found = interval(left, right)
    assert found is not None
    return {
        "points": round(found.difference, 3), "low": round(found.low, 3), "high": round(found.high, 3),
        "within_noise": found.low <= 0 <= found.high,
    }


def markdown(record: dict[str, Any]) -> str:
    """Return the page of a record."""
    rows = ["| loop | precision | top-1, % | over seeds | n |", "|---|---|---|---|---|"]
    rows += [
        f"| {side} | {record['precision'][side]} | {statistics.fmean(values):.2f} | ± {statistics.stdev(values):.2f} | "
        f"{len(values)} |" for side, values in record["top1"].items()
    ]
    told = record["difference"]
    verdict = "met: no difference beyond noise" if told["within_noise"] else "**not met**: they differ"
    from_to = f"{told['low']:+.2f} to {told['high']:+.2f} (95 %)"
    last = [f"Ours minus plain: {told['points']:+.2f} points, {from_to}; {verdict}."]
    recipe = record["recipe"]
    setting = [
        f"{record['network']} on {record['train_images']:,} images of {record['data']}, {recipe['epochs']} epochs, "
        f"{record['test_images']:,} test images.",
    ]
    return page(record, "The fast path costs no accuracy", made_by(record), setting, rows, last)


_WHAT = """\
Pairs of trainings from the same weights with the same recipe, one by the plain loop in fp32 and one by ours with its
defaults, each tested by its own code. Order and crops differ, as they do between any two runs."""
