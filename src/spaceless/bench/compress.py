"""`spaceless bench compress`: bisection against the full sweep, warm starts against scratch, both against pruning."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from typing import Any

import torch
from torch import nn

from spaceless.bench import pruning
from spaceless.compress import Question, budget, plan, search, tuning_recipe
from spaceless.compression import Tried
from spaceless.cost import cost, in_turn, quartiles
from spaceless.errors import DataError, SpacelessError
from spaceless.judging import judged, right_images
from spaceless.paired import Paired, paired_interval
from spaceless.retest import open_trial, test_run
from spaceless.run import Place, load_data
from spaceless.signals import caught_signals
from spaceless.studies import Plan
from spaceless.tracing import example_input
from spaceless.trial import RECIPES, Distillation, Evaluation, Outcome, Recipe, Start, Trial

COMMAND = "spaceless bench compress"
PASSES = 60  # that each latency is the median of
BATCHES = (1, 64)  # images in such a pass


@dataclass(frozen=True)
class Case:
    """What is compressed, and on what: the first of `data` that is here."""

    model: str = "vgg16"
    width: float = 0.25
    method: str = "conv1x1"
    data: tuple[str, ...] = ("cifar100", "texture")
    train_images: int | None = None
    test_images: int | None = None
    recipe: Recipe = field(default_factory=lambda: RECIPES["fast"].model_copy(update={"epochs": 12}))
    holdout: float = 0.2
    seeds: tuple[int, ...] = (0,)
    tolerance: float = 1.0
    confidence: float = 0.95
    warm_k: int = 3
    kinds: tuple[str, ...] = tuple(pruning.KINDS)


@dataclass(frozen=True)
class _Entry:
    """A network of the comparison: its epochs beyond those of the original, one test of each kind for each seed."""

    name: str
    epochs: int
    model: nn.Module
    held_out: Sequence[Evaluation]
    test: Sequence[Evaluation]


def question(case: Case, place: Place) -> Question:
    """Return the search for the largest K of `case`, from scratch.

    Raises:
        DataError: None of its data sets is here.

    """
    for name in case.data:
        bases = tuple(Trial(
            model=case.model, width=case.width, data=name, recipe=case.recipe, seed=seed, holdout=case.holdout,
            train_images=case.train_images, test_images=case.test_images) for seed in case.seeds)
        try:
            load_data(bases[0], place.data_root)
        except DataError:
            if name == case.data[-1]:
                raise
            continue
        return Question(bases, case.recipe, case.method, tolerance=case.tolerance, confidence=case.confidence)
    raise ValueError("no data named")


def run(
    place: Place, train: Callable[[Plan], object], progress: Callable[[str], None], case: Case = Case(),
) -> dict[str, Any]:
    """Train every K, search among them, start warm at `warm_k`, prune to as many parameters as the chosen K has.

    Args:
        place: Its folder holds all trials; those that are finished are not run again.
        train: Runs the trials of a plan that are not finished.
        progress: Told what was found.
        case: What is compared.

    Raises:
        InputError: Torch-Pruning is not installed; nothing was trained.
        SpacelessError: The baseline has not learnt, or a training failed.

    """
    pruning.require_package()
    asked = question(case, place)
    allowed = budget(asked, place)

    def trained(variant: Question, k: int) -> list[Outcome]:
        train(plan(asked, variant.trials(k, place), COMMAND))
        return [_finished(trial, place) for trial in variant.trials(k, place)]

    train(plan(asked, [trial for k in range(allowed.possible + 1) for trial in asked.trials(k, place)], COMMAND))
    base = trained(asked, 0)
    sweep = [judged(k, trained(asked, k), base, asked.tolerance, asked.confidence)
             for k in range(1, allowed.possible + 1)]
    found = search(asked, allowed, place, train, COMMAND, progress)
    progress(f"the sweep accepts K = {accepted(sweep)}, the search K = {found.largest}")
    warm = _warm(asked, case.warm_k, trained)
    k = found.chosen or case.warm_k
    networks = _described(_networks(asked, k, case.kinds, base, place, trained), asked, base[0])
    whole, part = ((ks + 1) * len(case.seeds) for ks in (allowed.possible, len(found.tried) - 1))
    return {
        "what": _WHAT, "network": f"{case.model} x {case.width:g}", "method": case.method,
        "data": base[0].data and base[0].data.model_dump(mode="json"),
        "recipe": case.recipe.model_dump(mode="json"), "precision": base[0].precision, "seeds": list(case.seeds),
        "holdout": case.holdout, "tolerance": case.tolerance, "confidence": case.confidence, "units": allowed.units,
        "trained_on": base[0].hardware, "sweep": [tried.model_dump(mode="json") for tried in sweep],
        "search": found.model_dump(mode="json"), "trainings": {"sweep": whole, "search": part},
        "warm": warm, "k": k, "networks": networks,
        "promises": {
            _NEAR: abs(accepted(sweep) - found.largest) <= 1, _HALF: 2 * part <= whole,
            _WARM.format(case.warm_k): any(row["difference"] >= 0 for row in warm if row["start"] == "warm"),
        },
    }


_NEAR = "the search's largest K is the sweep's, or one beside it"
_HALF = "the search takes at most half of the sweep's trainings"
_WARM = "a warm start reaches the accuracy from scratch at K = {} in a quarter of the epochs"


def accepted(sweep: Iterable[Tried]) -> int:
    """Return the largest K of a full sweep, from 1 on, that is within the tolerance together with the K before it."""
    good = {0} | {each.k for each in sweep if each.verdict == "within"}
    return max(k for k in good if k == 0 or k - 1 in good)


def _finished(trial: Trial, place: Place) -> Outcome:
    found = place.store.outcome(trial)
    if found is None or found.status == "failed":
        raise SpacelessError(trial.label, found="no outcome" if found is None else f"a failure: {found.error}",
                             expected="a trained network", cure="mend the cause and run the same command again")
    return found


def _from_weights(asked: Question, epochs: int | None, distillation: Distillation | None = None) -> Question:
    """Return `asked` with a start from the original's weights and so many epochs (a quarter of them for None)."""
    pattern = Start(run="0" * 16, weights_sha256="0" * 64, distillation=distillation)
    return replace(asked, warm=pattern, recipe=tuning_recipe(asked.recipe, epochs))


def _warm(
    asked: Question, k: int, trained: Callable[[Question, int], list[Outcome]],
) -> list[dict[str, Any]]:
    """Return what networks of `k` reach: from scratch, in a quarter of the epochs, warm, and warm with distillation.

    The difference to the first is paired over held-out images, with an interval as in a search.
    """
    warm = _from_weights(asked, None)
    short = replace(asked, recipe=asked.recipe.model_copy(update={"epochs": warm.recipe.epochs}))
    arms = [("scratch", False, asked), ("scratch", False, short), ("warm", False, warm),
            ("warm", True, _from_weights(asked, None, Distillation()))]
    found = [trained(variant, k) for _, _, variant in arms]
    rows = []
    for (start, distilled, variant), outcomes in zip(arms, found, strict=True):
        gap = _gap(_tests(found[0]), _tests(outcomes), outcomes, asked)
        rows.append({
            "k": k, "start": start, "distilled": distilled, "epochs": variant.recipe.epochs,
            "seconds": statistics.fmean(o.seconds or 0.0 for o in outcomes),
            "top1": _mean(_tests(outcomes)), "difference": gap.difference, "low": gap.low, "high": gap.high,
            "notes": [note for o in outcomes for note in o.notes], "ids": [o.trial.id for o in outcomes],
        })
    return rows


def _tests(outcomes: Sequence[Outcome]) -> list[Evaluation]:
    """Return how the networks did on the images held out, seed by seed."""
    for each in outcomes:
        if not each.evaluations:
            raise SpacelessError(each.trial.label, found=each.status, expected="a network to compare",
                                 cure="the comparison has no answer with this recipe: choose another")
    return [outcome.evaluations[0] for outcome in outcomes]


def _mean(tests: Sequence[Evaluation]) -> float:
    return statistics.fmean([test.mean for test in tests])


def _gap(
    first: Sequence[Evaluation], second: Sequence[Evaluation], outcomes: Sequence[Outcome], asked: Question,
) -> Paired:
    """Return the second minus the first, seed by seed and image by image."""
    base, changed = ([right_images(each, outcome.trial) for each, outcome in zip(found, outcomes, strict=True)]
                     for found in (first, second))
    return paired_interval(base, changed, asked.confidence)


def _networks(
    asked: Question, k: int, kinds: Sequence[str], base: Sequence[Outcome], place: Place,
    trained: Callable[[Question, int], list[Outcome]],
) -> list[_Entry]:
    """Return the original, ours of `k`, and networks pruned to the same number of parameters, trained and tested.

    What starts from the original's weights is trained for a quarter of its epochs and, once more, for all of them.
    """
    quarter, whole = _from_weights(asked, None), _from_weights(asked, asked.recipe.epochs)

    def entry(name: str, epochs: int, outcomes: Sequence[Outcome]) -> _Entry:
        folders = [place.store.folder(outcome.trial) for outcome in outcomes]
        return _Entry(name, epochs, open_trial(folders[0], place).model, _tests(outcomes),
                      [test_run(folder, place) for folder in folders])

    found = [entry("original", 0, base), entry("from scratch", asked.recipe.epochs, trained(asked, k))]
    found += [entry("warm start", variant.recipe.epochs, trained(variant, k)) for variant in (quarter, whole)]
    params = cost(found[1].model, load_data(base[0].trial, place.data_root).image_size).params
    with caught_signals() as stop:
        for kind in kinds:
            for recipe in (quarter.recipe, whole.recipe):
                made = [pruning.tuned(outcome, kind, params, recipe, place, stop) for outcome in base]
                found.append(_Entry(f"pruned, {kind}", recipe.epochs, made[0][0], [p.held_out for _, p in made],
                                    [p.test for _, p in made]))
    return found


def _described(entries: Sequence[_Entry], asked: Question, outcome: Outcome) -> list[dict[str, Any]]:
    """Return the rows of the comparison: what each network costs and reaches, beside the first."""
    assert outcome.data is not None
    size, first = outcome.data.image_size, entries[0]
    outcomes = [outcome.model_copy(update={"trial": trial}) for trial in asked.baselines]
    rows = []
    for each, times in zip(entries, _times(entries, size), strict=True):
        costs = cost(each.model, size)
        gap = _gap(first.test, each.test, outcomes, asked)
        rows.append({
            "network": each.name, "epochs": each.epochs, "params": costs.params, "macs": costs.macs,
            "held_out": _mean(each.held_out), "test": _mean(each.test), "test_images": each.test[0].images,
            "difference": gap.difference, "low": gap.low, "high": gap.high,
            "latency": {str(batch): told for batch, told in times.items()},
        })
    return rows


def _times(entries: Sequence[_Entry], size: int) -> list[dict[int, dict[str, Any]]]:
    """Return for each network, by the images in a pass: its seconds, and how many times as fast as the first it is."""
    found: list[dict[int, dict[str, Any]]] = [{} for _ in entries]
    for batch in BATCHES:
        images = [example_input(each.model, size).expand(batch, -1, -1, -1).contiguous() for each in entries]
        for each in entries:
            each.model.eval()
        with torch.inference_mode():
            times = in_turn([partial(each.model, x) for each, x in zip(entries, images, strict=True)], PASSES)
        for row, seconds in zip(found, times, strict=True):
            row[batch] = {
                "seconds": asdict(quartiles(seconds)),
                "times_as_fast": asdict(quartiles([a / b for a, b in zip(times[0], seconds, strict=True)])),
            }
    return found


_WHAT = """\
Every K is trained, and the search looks for the largest within the tolerance among them. At one K a start from the
original's weights is compared with a training from scratch. Then, at the K that the search chose, our network is
compared with the same original pruned to as many parameters by Torch-Pruning (whole channels, least magnitude first:
`uniform`, the same share in every layer, or `global`, over all layers), fine-tuned by the same recipe as our warm
start. The images held out decide; each network is tested on the test images once."""
