"""Outcomes made up for the tests of the report side: nothing is trained here."""

import json
from pathlib import Path

from spaceless.trial import RECIPES, DataFacts, Evaluation, Latency, Outcome, Recipe, Trial

FAST = RECIPES["fast"]


def outcome(
    method: str = "baseline", k: int = 0, *, seed: int = 0, top1: float | tuple[float, ...] = 74.0,
    params: int | None = 34_000_000, status: str = "finished", extra: dict[int, tuple[float, ...]] | None = None,
    images: int = 10_000, classes: int = 100, note: str = "", field: int | None = None, units: int = 13,
    recipe: Recipe = FAST, latency: float | None = None, **trial: object,
) -> Outcome:
    """Return an outcome on 10,000 test images of CIFAR-100 unless told otherwise; `extra` maps shuffle_last to top1.

    `latency` is the median in seconds, between quartiles a tenth away.
    """
    passes = top1 if isinstance(top1, tuple) else (top1,)
    specified = {"model": "vgg16", "data": "cifar100", "repeats": len(passes), **trial}
    made = Trial(method=method, k=k, seed=seed, recipe=recipe, **specified)
    evaluations = [Evaluation(images=images, top1=passes)]
    evaluations += [Evaluation(shuffle_last=s, images=images, top1=t) for s, t in (extra or {}).items()]
    facts = DataFacts(
        name=made.data, source="/data", note=note, classes=classes, image_size=made.image_size or 32,
        train_images=made.train_images or 50_000, test_images=images, digest="0" * 16,
    )
    timed = latency and Latency(median=latency, lower=0.9 * latency, upper=1.1 * latency, batch=1, repeats=20)
    return Outcome(
        trial=made, status=status, units=units, params=params, macs=314_000_000, receptive_field=field,
        evaluations=tuple(evaluations) if status == "finished" else (), data=facts, precision="fp32",
        error=None if status == "finished" else "loss is not finite", versions={"torch": "2.15.0"},
        hardware="2 cores", threads=1, latency=timed, started="2026-11-22T20:00:00+00:00", seconds=60.0,
    )


def store(root: Path, *outcomes: Outcome) -> Path:
    """Write `outcomes` as a run folder."""
    for each in outcomes:
        folder = root / each.trial.id
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "outcome.json").write_text(each.model_dump_json())
    return root


def manifest(root: Path, name: str, planned: list[Outcome | Trial], **fields: object) -> Path:
    """Write the manifest of a study that plans the trials of `planned`."""
    trials = [each.trial if isinstance(each, Outcome) else each for each in planned]
    schemes = [[e.shuffle_last for e in each.evaluations if e.shuffle_last is not None]
               if isinstance(each, Outcome) else [] for each in planned]
    fields = {"name": name, "preset": "fast", "experiment": None, "title": f"Study {name}", "asks": "What then?",
              "command": f"spaceless study {name}", "kind": "study", "truth": [], **fields}
    fields["planned"] = [{"trial": t.model_dump(mode="json"), "evaluations": s, "repeats": 200}
                         for t, s in zip(trials, schemes, strict=True)]
    root.mkdir(parents=True, exist_ok=True)
    path = root / f"{name}.study.json"
    path.write_text(json.dumps(fields))
    return path


def calibration(root: Path, curves: dict[int, tuple[float, ...]], learnable: int, chance_from: int | None) -> Path:
    """Write a calibration of one cell: `curves` maps K to the accuracies of its runs (1,000 images, chance 25)."""
    made = [
        outcome("shuffle" if k else "baseline", k, seed=seed, top1=value, images=1000, classes=4, units=6,
                model="chain:8-8", data="arrangement-5", recipe=RECIPES["control"])
        for k, values in curves.items() for seed, value in enumerate(values)
    ]
    truth = {"data": "arrangement-5", "method": "shuffle", "learnable_k": learnable, "chance_from_k": chance_from,
             "chance": 25.0}
    store(root, *made)
    return manifest(root, "calibration-smoke", list(made), kind="calibration", truth=[truth])
