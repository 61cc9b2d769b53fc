"""The options of `compress`: what they are, and the question that they make together."""

from __future__ import annotations

import re
import shlex
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from cyclopts import Parameter

from spaceless.errors import InputError, unknown_name
from spaceless.numerals import typed
from spaceless.spec import make
from spaceless.trial import Augment, Distillation, Downsample, Precision, Recipe, Reduction, Start, Trial

if TYPE_CHECKING:
    from spaceless.compress import Question

OWN = "baseline"  # --from: the search's own
_HOLDOUT = 0.1


@dataclass(frozen=True)
class Wanted:
    """What is searched for and how its networks are trained.

    Parameters
    ----------
    method
        `conv1x1` or `gap_fc`: what happens to the last K units.
    downsample
        What replaces a strided convolution for `conv1x1` (default: avg).
    tolerance
        Percentage points of accuracy that may be lost.
    confidence
        How sure it must be that no more is lost; 0.5 goes by the measured difference alone.
    objective
        Which of the acceptable K is taken: the one with the fewest parameters (`params`), multiply-adds (`macs`), or
        the shortest measured forward pass (`latency`).
    budget
        How many K are tried at most (default: the steps of a bisection and two neighbours).
    original
        Start from trained weights instead of from scratch: `baseline` is the one that the search trains; or the folder
        of a finished run with a holdout.
    reduction
        With --from: what becomes of a spatial kernel: `centre`, `sum`, `mean`, `least_squares` or for each layer the
        `best` of these (default).
    distill
        With --from: the original's answers as targets beside the labels.
    tune_epochs
        With --from: epochs of the changed networks (default: a quarter of the original's).
    holdout
        The share of the training images that K is chosen on (default: 0.1).
    seeds
        Each network is trained once with each of these, `0-2` or `0,1,2` (default: once, with seed 0). Several are
        judged by their spread too, for which three are better than two.
    recipe
        `paper` (default): 200 epochs of SGD in steps. `fast`: 30, one cycle. `smoke`: 10, for few images. `imagenet`:
        90, images decoded anew in each. `control`: 6 of AdamW, no augmentation, for the made sets.
    epochs
        Instead of the recipe's.
    batch_size
        Instead of the recipe's.
    augment
        Instead of the recipe's.
    precision
        Instead of the recipe's.
    width
        The factor for all channel counts.
    image_size
        Resize the images to this side in pixels.
    train_images
        Use a balanced draw of this many.
    test_images
        Use a balanced draw of this many.

    """

    method: Literal["conv1x1", "gap_fc"] = "conv1x1"
    downsample: Downsample | None = None
    tolerance: float = 1.0
    confidence: float = 0.95
    objective: Literal["params", "latency", "macs"] = "params"
    budget: int | None = None
    original: Annotated[str | None, Parameter(name="--from")] = None
    reduction: Reduction | None = None
    distill: bool = False
    tune_epochs: int | None = None
    holdout: float | None = None
    seeds: str | None = None
    recipe: str | None = None
    epochs: int | None = None
    batch_size: int | None = None
    augment: Augment | None = None
    precision: Precision | None = None
    width: float | None = None
    image_size: int | None = None
    train_images: int | None = None
    test_images: int | None = None


_OF_THE_ORIGINAL = ("holdout", "seeds", "recipe", "epochs", "batch_size", "augment", "precision", "width", "image_size",
                    "train_images", "test_images")


def ask(model: str, data: str, wanted: Wanted) -> Question:
    """Return what the options mean.

    Raises:
        InputError: One that cannot be meant, or that would have no effect.

    """
    from spaceless.compress import Question, tuning_recipe

    if wanted.original is None:
        for name, value in (("--reduction", wanted.reduction), ("--distill", wanted.distill or None),
                            ("--tune-epochs", wanted.tune_epochs)):
            if value is not None:
                raise InputError(name, found="no --from beside it", expected="a network to start from",
                                 cure=f"add --from {OWN} or --from RUN, or leave it out")
    if wanted.downsample is not None and wanted.method != "conv1x1":
        raise InputError("--downsample", found=f"method {wanted.method}", expected="conv1x1", cure="leave it out")
    if wanted.tune_epochs is not None and wanted.tune_epochs < 1:
        raise InputError("--tune-epochs", found=wanted.tune_epochs, expected="1 or more", cure="leave it out")
    given = wanted.original not in (None, OWN)
    bases = (_given(model, data, wanted),) if given else _baselines(model, data, wanted)
    warm = None if wanted.original is None else Start(
        run="0" * 16, weights_sha256="0" * 64, reduction=wanted.reduction or "best",
        distillation=Distillation() if wanted.distill else None)
    recipe = bases[0].recipe
    return Question(
        bases, recipe if warm is None else tuning_recipe(recipe, wanted.tune_epochs), wanted.method,
        wanted.downsample or "avg", wanted.objective, wanted.tolerance, wanted.confidence, wanted.budget, warm,
        given)


def _baselines(model: str, data: str, wanted: Wanted) -> tuple[Trial, ...]:
    from spaceless.trial import RECIPES

    name = wanted.recipe or "paper"
    if name not in RECIPES:
        raise unknown_name("recipe", name, RECIPES)
    changed = {key: value for key in ("epochs", "batch_size", "augment", "precision")
               if (value := getattr(wanted, key)) is not None}
    recipe = make(Recipe, "recipe", **RECIPES[name].model_dump() | changed)
    given = {key: value for key in ("width", "image_size", "train_images", "test_images", "holdout")
             if (value := getattr(wanted, key)) is not None}
    return tuple(
        make(Trial, "compress", **{"model": model, "data": data, "recipe": recipe, "seed": seed, "holdout": _HOLDOUT}
             | given) for seed in _seeds(wanted.seeds or "0"))


def _seeds(text: str) -> list[int]:
    found: list[int] = []
    for part in text.split(","):
        match = re.fullmatch(r"\s*(\d{1,9})\s*(?:-\s*(\d{1,9})\s*)?", part)
        first, last = (int(match[1]), int(match[2] or match[1])) if match else (1, 0)
        if not first <= last <= first + 999:
            raise InputError("--seeds", found=repr(text), expected="0-2 or 0,1,2", cure="list the seeds")
        found += range(first, last + 1)
    return list(dict.fromkeys(found))


def _given(model: str, data: str, wanted: Wanted) -> Trial:
    """Return the trial of the trained network in the folder that --from names."""
    from spaceless.store import WEIGHTS, Store, read_trial

    beside = [f"--{name.replace('_', '-')}" for name in _OF_THE_ORIGINAL if getattr(wanted, name) is not None]
    if beside:
        raise InputError(beside[0], found=f"--from {wanted.original} beside it", expected="one of the two",
                         cure="leave it out: it is that run's")
    folder = Path(wanted.original or "").resolve()
    trial = read_trial(folder)
    if (trial.model, trial.data) != (model, data):
        raise InputError("--from", found=f"a run of {trial.model} on {trial.data}", expected=f"{model} on {data}",
                         cure="name its own model and data")
    if trial.method != "baseline" or trial.holdout is None:
        found = "trained on all training images" if trial.holdout is None else f"changed by {trial.method}"
        raise InputError("--from", found=f"a network {found}",
                         expected="an unchanged one that has not seen the images held out",
                         cure=f"train it with `spaceless train --holdout {_HOLDOUT:g}`, or write --from {OWN}")
    outcome = Store(folder.parent).outcome(trial) if folder.name == trial.id else None
    if outcome is None or outcome.status != "finished" or not (folder / WEIGHTS).is_file():
        raise InputError("--from", found=f"no finished run with weights in {folder}", expected="one, in its own folder",
                         cure="name the folder that `spaceless train` printed")
    return trial


def command_line(model: str, data: str, wanted: Wanted) -> str:
    """Return the command that asks this question: every option that was given."""
    words = ["spaceless", "compress", model, "--data", data]
    for each in fields(Wanted):
        value = getattr(wanted, each.name)
        if value == each.default:
            continue
        option = "--from" if each.name == "original" else f"--{each.name.replace('_', '-')}"
        words += [option] if value is True else [option, typed(value) if isinstance(value, float) else str(value)]
    return shlex.join(words)
