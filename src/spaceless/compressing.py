"""What the verb `compress` does: options to a question, the search with its progress shown, its page and record."""

from __future__ import annotations

import json
import re
import sys
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from cyclopts import Parameter

from spaceless import work
from spaceless.errors import InputError, unknown_name
from spaceless.trial import Augment, Distillation, Downsample, Precision, Recipe, Reduction, Start, Trial, make

if TYPE_CHECKING:
    from spaceless.compress import Budget, Question
    from spaceless.compression import Compression
    from spaceless.run import Place

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
        `0-2` or `0,1,2`: as many trainings of each network (default: 0). Several are judged by their spread too, for
        which three are better than two.
    recipe
        `paper`, `fast`, `smoke`, `imagenet` or `control` (default: paper).
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


def compress(
    model: str, data: str, wanted: Wanted, place: Place, workers: work.Workers, *, dry_run: bool, as_json: bool,
) -> None:
    """Search the largest K, show what it may cost before and what came of it after, and write page and records.

    Raises:
        InputError: Options that cannot be meant; nothing was written.
        SpacelessError: The baseline has not learnt, or a training failed.

    """
    from spaceless import compress as room
    from spaceless.console import screen
    from spaceless.distributed import asked_processes

    if asked_processes() > 1:
        raise InputError("compress", found=f"{asked_processes()} processes under torchrun", expected="one",
                         cure="run it without torchrun, with --jobs for several seeds at once")
    if not place.keep_weights:
        raise InputError("--no-weights", found="with compress", expected="trained weights to test in the end",
                         cure="leave it out")
    question = ask(model, data, wanted)
    if workers.jobs > 1 and len(question.baselines) == 1 and question.warm is not None:
        raise InputError("--jobs", found=f"{workers.jobs} for one seed", expected="1: one training waits for another",
                         cure="leave it out or ask for several --seeds")
    allowed = room.budget(question, place)
    if dry_run:
        _show_budget(question, allowed, as_json)
        return
    out = screen()
    out.print(_budget_text(question, allowed), markup=False)
    command = _command(model, data, wanted)
    _fetch(wanted, question, place)
    found = room.search(question, allowed, place, lambda plan: work.run(plan, place, workers), command,
                        lambda text: out.print(text, markup=False))
    _finish(question, found, place, command, as_json)


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
        wanted.downsample or "avg", wanted.objective, wanted.tolerance, wanted.confidence, wanted.budget, warm)


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


def _fetch(wanted: Wanted, question: Question, place: Place) -> None:
    """Copy the run that --from names into the folder of outcomes, its outcome last: the search stands on it."""
    from spaceless.checkpoint import atomic_write
    from spaceless.store import OUTCOME, TRIAL, WEIGHTS

    if wanted.original in (None, OWN):
        return
    source, target = Path(wanted.original or "").resolve(), place.store.folder(question.baselines[0])
    if source == target.resolve() or (target / OUTCOME).exists():
        return
    place.store.begin(question.baselines[0])
    for name in (WEIGHTS, TRIAL, OUTCOME):
        atomic_write(target / name, (source / name).read_bytes())


def _command(model: str, data: str, wanted: Wanted) -> str:
    """Return the command that asks this question: every option that was given."""
    import shlex

    words = ["spaceless", "compress", model, "--data", data]
    for each in fields(Wanted):
        value = getattr(wanted, each.name)
        if value == each.default:
            continue
        option = "--from" if each.name == "original" else f"--{each.name.replace('_', '-')}"
        words += [option] if value is True else [option, f"{value:g}" if isinstance(value, float) else str(value)]
    return shlex.join(words)


def _budget_text(question: Question, allowed: Budget) -> str:
    from spaceless.console import duration

    seeds = len(question.baselines)
    epochs = question.baselines[0].recipe.epochs
    changed = "" if question.recipe.epochs == epochs else f", changed networks {question.recipe.epochs}"
    text = (f"at most {allowed.trainings} trainings: the baseline and {allowed.tries} of {allowed.units} K, "
            f"{seeds} seed{'s' * (seeds > 1)} each, {epochs} epoch{'s' * (epochs > 1)}{changed}")
    if allowed.estimate.seconds:
        text += f"; about {duration(allowed.estimate.seconds)} at most, one training after another"
    return text + (f"\n{allowed.refused}" if allowed.refused else "")


def _show_budget(question: Question, allowed: Budget, as_json: bool) -> None:
    if as_json:
        from dataclasses import asdict

        print(json.dumps(asdict(allowed), indent=1))
    else:
        print(_budget_text(question, allowed))


def _finish(question: Question, found: Compression, place: Place, command: str, as_json: bool) -> None:
    """Write the record and the page of a search and show its answer, its table and where all of it lies."""
    from spaceless.checkpoint import atomic_write
    from spaceless.compress import NAME, plan
    from spaceless.console import table
    from spaceless.report import answers, write_report
    from spaceless.tradeoff import compression_table

    trials = [trial for each in found.tried for trial in question.trials(each.k, place)]
    place.store.write_study(plan(question, trials, command, found).manifest())
    record = place.out / f"{NAME}.json"
    atomic_write(record, (found.model_dump_json(indent=1) + "\n").encode())
    page = place.out / f"{NAME}.html"
    write_report([place.out], html=page, study=NAME)
    network = export_network(place, found)
    told = answers([place.out], NAME)
    if as_json:
        document: dict[str, Any] = found.model_dump(mode="json") | {
            "answers": told, "network": network and str(network), "report": str(page)}
        json.dump(document, sys.stdout, indent=1)
        print()
        return
    made = compression_table(found)
    heads = [" ".join(filter(None, (c.name, c.about and f"({c.about})"))) + ("" if c.numeric else ":")
             for c in made.columns]
    table(made.title, heads, made.lines)
    for line in told:
        print(line)
    for path in filter(None, (network, record, page)):
        print(path)


def export_network(place: Place, found: Compression) -> Path | None:
    """Return the folder that holds the chosen network of the first seed with its weights; None if none was chosen."""
    return place.out / found.at(found.chosen).ids[0] if found.chosen else None
