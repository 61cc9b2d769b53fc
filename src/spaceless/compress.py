"""The search for the largest K by trainings: which trials it takes, how a K is judged, what is chosen in the end."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from spaceless.compression import Compression, Objective, Tested, Tried
from spaceless.errors import InputError, SpacelessError, SurgeryError
from spaceless.estimate import Estimate, check, estimate
from spaceless.findings import least_top1
from spaceless.judging import baseline, best, held_out_images, judged, right_images
from spaceless.numerals import points
from spaceless.paired import paired_interval
from spaceless.paper import Planned
from spaceless.retest import test_run
from spaceless.run import Place, count_units, head_notes, load_data
from spaceless.search import first_k, largest_k, usual_budget
from spaceless.store import WEIGHTS
from spaceless.studies import Plan
from spaceless.trial import Outcome, Recipe, Start, Trial

NAME = "compress"  # of the study: its page and its records are those of the last search in a folder
TUNING_SHARE = 4  # a warm start is trained for a quarter of the original's epochs, at a tenth of its learning rate
_TUNING_RATE = 0.1


@dataclass(frozen=True)
class Question:
    """What is searched for: the largest K of `method` within `tolerance` percentage points of the baselines.

    `baselines` are the unchanged networks, one per seed, all with the same holdout. `recipe` is that of the changed
    networks. `warm` is a pattern for their start (`run` and `weights_sha256` are put in from each seed's baseline),
    None to train them from scratch. `budget` is the number of K's tried at most, None for `usual_budget`. `given` tells
    whether the baselines are trained already.
    """

    baselines: tuple[Trial, ...]
    recipe: Recipe
    method: str = "conv1x1"
    downsample: str = "avg"
    objective: Objective = "params"
    tolerance: float = 1.0
    confidence: float = 0.95
    budget: int | None = None
    warm: Start | None = None
    given: bool = False

    def trials(self, k: int, place: Place) -> tuple[Trial, ...]:
        """Return the trials of K, one per seed; with a warm start the baselines must be finished."""
        if k == 0:
            return self.baselines
        fields = {"method": self.method, "k": k, "downsample": self.downsample, "recipe": self.recipe}
        return tuple(Trial.model_validate(base.model_dump() | fields | {"start": self._start(base, place)})
                     for base in self.baselines)

    def _start(self, base: Trial, place: Place) -> Start | None:
        if self.warm is None:
            return None
        known = place.store.outcome(base)
        digest = known.weights_sha256 if known is not None else "0" * 64  # only what it costs is asked for
        return self.warm.model_copy(update={"run": base.id, "weights_sha256": digest})


def tuning_recipe(original: Recipe, epochs: int | None) -> Recipe:
    """Return the short recipe for a network that starts from weights trained by `original`.

    A quarter of its epochs unless told otherwise, one cycle that peaks at a tenth of its learning rate.
    """
    return original.model_copy(update={
        "name": f"{original.name}-tuning", "epochs": epochs or math.ceil(original.epochs / TUNING_SHARE),
        "learning_rate": _TUNING_RATE * original.learning_rate, "schedule": "one_cycle", "warmup": 0.1,
        "milestones": (),
    })


@dataclass(frozen=True)
class Budget:
    """What a search may cost: the largest K that can be made, how many K's are tried at most, and their estimate.

    `units` counts the network's; `refused` says why not all of them can be changed, if so.
    """

    units: int
    possible: int
    tries: int
    trainings: int
    estimate: Estimate
    refused: str = ""


def budget(question: Question, place: Place) -> Budget:
    """Return what `question` may cost at most: every K at the price of the dearest ones. Nothing is trained.

    Raises:
        InputError: The question cannot be asked: bad data, no K that can be made, a number out of range.

    """
    for name, value, low, high in (("tolerance", question.tolerance, 0, 100),
                                   ("confidence", question.confidence, 0.5, 0.9999)):
        if not low <= value <= high:
            raise InputError(f"--{name}", found=f"{value:g}", expected=f"{low:g} to {high:g}", cure="choose another")
    if question.budget is not None and question.budget < 1:
        raise InputError("--budget", found=question.budget, expected="1 or more", cure="leave it out")
    first = question.baselines[0]
    data = load_data(first, place.data_root)
    if least_top1(data.classes, data.test_count, question.tolerance) >= 100:
        raise InputError("--holdout", found=f"{data.test_count} images held out of {data.classes} classes",
                         expected="enough to tell a network from a blind guess", cure="hold out a larger share")
    units = count_units(first, data.classes, data.image_size)
    possible, refused = _possible(question, units, place)
    tries = min(possible, question.budget or usual_budget(possible))
    dearest = [Planned(trial=t) for k in range(question.given, tries + 1) for t in question.trials(k, place)]
    return Budget(units, possible, tries, len(dearest), estimate(dearest, place), refused)


def _possible(question: Question, units: int, place: Place) -> tuple[int, str]:
    """Return the largest K that the method can be applied to, and why not a larger one."""
    refused = ""
    for k in range(units, 0, -1):
        try:
            check([Planned(trial=question.trials(k, place)[0])], place)
        except SurgeryError as error:
            if k == 1:
                raise
            refused = refused or f"K = {k} cannot be made: {error}"
        else:
            return k, refused
    raise InputError("model", found="no units", expected="a network with spatial convolutions", cure="choose another")


def search(
    question: Question, allowed: Budget, place: Place, run: Callable[[Plan], object], command: str,
    tell: Callable[[str], None], *, ahead: bool = False,
) -> Compression:
    """Search the largest K (see `largest_k`), choose by the objective, test once, and return what came of it.

    A K is within the tolerance if, at the confidence asked for, its accuracy on the images held out is no more than the
    tolerance below the baseline's: the lower end of `paired_interval` decides. One diverged training rules a K out.

    Args:
        question: What is searched for.
        allowed: What it may cost, from `budget`.
        place: Where its trials are stored; those that are finished are not run again.
        run: Runs the trials of a plan that are not finished.
        command: The command line that asks this question.
        tell: Told about every step in a sentence.
        ahead: Train the first K together with the baselines, for what would be idle otherwise.

    Raises:
        SpacelessError: The baseline has not learnt, or a training failed.
        InputError: A network that was trained before has no weights, which are needed for the test.

    """
    tried: list[Tried] = []
    planned: list[Trial] = []

    def trained(*ks: int) -> None:
        for k in ks:
            new = [trial for trial in question.trials(k, place) if trial not in planned]
            for trial in new:
                _has_weights_if_finished(trial, place)
            planned.extend(new)
        run(plan(question, planned, command))

    # The first K needs no answer before it; a warm start has to wait for the weights that it starts from.
    trained(0, *((first_k(allowed.possible, allowed.tries),) if ahead and question.warm is None else ()))
    base = _outcomes(question.baselines, place)
    tried.append(baseline(base, question.tolerance))
    tell(f"baseline: {tried[0].top1:.2f} % on {held_out_images(base[0]):,} held-out images; "
         f"at most {allowed.tries} K to try")

    def within(k: int) -> bool:
        trained(k)
        found = judged(k, _outcomes(question.trials(k, place), place), base, question.tolerance, question.confidence)
        tried.append(found)
        gone = "diverged" if found.difference is None else (
            f"{found.difference:+.2f} points, at least {found.low:+.2f}: {found.verdict}")
        tell(f"K = {k}: {gone}; {allowed.tries - len(tried) + 1} more K to try at most")
        return found.verdict == "within"

    found = largest_k(allowed.possible, within, allowed.tries)
    chosen = best([each for each in tried if each.k in found.accepted], question.objective)
    first = question.baselines[0]
    return Compression(
        model=first.model, data=first.data, method=question.method, objective=question.objective,  # type: ignore[arg-type]
        tolerance=question.tolerance, confidence=question.confidence, holdout=first.holdout or 0.0,
        images=held_out_images(base[0]), seeds=tuple(t.seed for t in question.baselines), units=allowed.units,
        possible=allowed.possible, refused=allowed.refused, budget=allowed.tries, spent=found.spent, tried=tuple(tried),
        largest=found.largest, chosen=chosen, alone=found.alone, warm=_told(question),
        head=head_notes(question.trials(chosen or 1, place)[0], load_data(first, place.data_root)),
        test=_test(question, chosen, place) if chosen else None,
    )


def _has_weights_if_finished(trial: Trial, place: Place) -> None:
    """Raise InputError for a network that was trained without keeping its weights: now, not after all trainings."""
    known, folder = place.store.outcome(trial), place.store.folder(trial)
    if known is not None and known.status == "finished" and not (folder / WEIGHTS).is_file():
        raise InputError(str(folder), found="a trained network without its weights", expected="weights to test it with",
                         cure="remove this folder, and the same command trains it again; or choose another --out")


def plan(question: Question, trials: Sequence[Trial], command: str, found: Compression | None = None) -> Plan:
    """Return the study of a search: its trials so far, and what came of it once that is known."""
    first = question.baselines[0]
    return Plan(
        NAME, f"Largest K of {first.model} on {first.data}",
        f"How many units can do without space at no more than {points(question.tolerance)} of accuracy?",
        command, tuple(Planned(trial=t) for t in trials), kind="compression",
        compression=None if found is None else found.model_dump(mode="json"),
    )


def _told(question: Question) -> str | None:
    if question.warm is None:
        return None
    teacher, epochs = question.warm.distillation, question.recipe.epochs
    text = (f"Warm start: the changed networks begin from the baseline's weights and are trained for "
            f"{epochs} epoch{'s' * (epochs > 1)} instead of {question.baselines[0].recipe.epochs}")
    return text + ("." if teacher is None else
                   f", with the baseline's answers as targets (temperature {teacher.temperature:g}, weight "
                   f"{teacher.weight:g}).")


def _outcomes(trials: Sequence[Trial], place: Place) -> list[Outcome]:
    found = [place.store.outcome(trial) for trial in trials]
    for trial, outcome in zip(trials, found, strict=True):
        if outcome is None or outcome.status == "failed":
            why = "no outcome" if outcome is None else f"a failure: {outcome.error}"
            raise SpacelessError(trial.label, found=why, expected="a trained network",
                                 cure="mend the cause and run the same command again")
    return [outcome for outcome in found if outcome is not None]


def _test(question: Question, chosen: int, place: Place) -> Tested:
    """Return the accuracies of the baseline and the chosen network on the test images, which nothing has seen yet."""
    with torch.no_grad():
        pairs = [[test_run(place.store.folder(trial), place) for trial in question.trials(k, place)]
                 for k in (0, chosen)]
    base, other = ([right_images(each, trial) for each, trial in zip(found, question.trials(k, place), strict=True)]
                   for found, k in zip(pairs, (0, chosen), strict=True))
    interval = paired_interval(base, other, question.confidence)
    means = [statistics.fmean(each.mean for each in found) for found in pairs]
    return Tested(images=pairs[0][0].images, baseline=means[0], chosen=means[1], difference=interval.difference,
                  low=interval.low, high=interval.high)
