"""What a study would cost, and whether it can be run at all: every network built, none trained."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import NamedTuple

import torch

from spaceless.cost import cost
from spaceless.data import Dataset
from spaceless.data.readers import Images
from spaceless.errors import DamagedError, DataError, InputError
from spaceless.paper import Planned, data_sets
from spaceless.rows import load
from spaceless.run import Place, build, choose_device, choose_precision, count_units, load_data
from spaceless.tracing import trace
from spaceless.training import train
from spaceless.trial import RANDOM_METHODS, RECIPES, Outcome, Trial

_PROBE_SECONDS = 3.0  # the longest step that is measured whole; a longer one is measured on fewer images
_FEW = 8  # images
_STEPS, _STEPS_ON_GPU = 3, 12  # the first allocates; on a GPU the first few are recorded, and only then repeated


@dataclass
class Estimate:
    """What a plan costs: trials in all and still to run, and the multiply-adds of training these.

    Args:
        trials: Their number.
        to_run: How many of them are not finished, or lack one of their tests.
        macs: Multiply-adds of the training that is still to run.
        seconds: The time for it and for its tests on this machine, one trial after another; None without a probe.
        probes: Images per second of a training step by kind of network, as measured.
        absent: Data sets that are not here, whose sizes are those that the paper's have.

    """

    trials: int
    to_run: int = 0
    macs: int = 0
    seconds: float | None = None
    probes: dict[str, float] = field(default_factory=dict)
    absent: tuple[str, ...] = ()


class _Size(NamedTuple):
    classes: int
    image_size: int
    train_images: int
    test_images: int
    digest: str | None


def check(planned: Sequence[Planned], place: Place) -> Estimate:
    """Build every network of a plan without computing anything, and return what the plan costs.

    Raises:
        InputError: The first trial that cannot be run; nothing was written.

    """
    return _look(planned, place, foresee=False)


def estimate(planned: Sequence[Planned], place: Place) -> Estimate:
    """Do what `check` does, time a few training steps of each network, and put up with the paper's absent data sets.

    The time is that of the unchanged network's steps in proportion to the multiply-adds, decoding not included.
    """
    return _look(planned, place, foresee=True)


def _look(planned: Sequence[Planned], place: Place, *, foresee: bool) -> Estimate:
    device = choose_device(place.device)
    costs: dict[str, int] = {}
    units: dict[str, int] = {}
    sizes: dict[tuple[object, ...], _Size] = {}
    absent: set[str] = set()
    found = Estimate(len(planned), seconds=0.0 if foresee else None)
    for each in planned:
        trial = each.trial
        if trial.images not in sizes:
            try:
                sizes[trial.images] = _size(load_data(trial, place.data_root))
            except DataError:
                if not foresee or trial.data not in data_sets():
                    raise
                absent.add(trial.data)
                sizes[trial.images] = _published(trial)
        size = sizes[trial.images]
        # Neither the training nor the seed changes what a network is built of: one look per kind is enough.
        usual = {"seed": 0, "repeats": 1, "train_images": None, "test_images": None, "recipe": RECIPES["paper"],
                 "holdout": None, "start": None}
        kind = trial.model_copy(update=usual | {"data": f"{size.classes} classes, {size.image_size} pixels"}).id
        if kind not in costs:
            costs[kind] = _macs(trial, size)
        if each.evaluations and not place.keep_weights:
            raise InputError(
                "--no-weights", found=f"further test schemes for {trial.label}", expected="trained weights to test",
                cure="leave --no-weights out",
            )
        if each.evaluations:
            if kind not in units:
                units[kind] = count_units(trial, size.classes, size.image_size)
            _check_tests(each, units[kind])
        known = _finished(trial, place)
        tests = each.evaluations if known is None else missing_tests(each, known, place)
        if known is not None and not tests:
            continue
        steps = 0 if known is not None else size.train_images * trial.recipe.epochs  # in images
        found.to_run += 1
        found.macs += 3 * costs[kind] * steps  # forward, and twice that backward
        if found.seconds is not None:
            epochs = _STEPS_ON_GPU if device.type == "cuda" else _STEPS
            recipe = trial.recipe.model_copy(update={"epochs": epochs, "augment": "none"})
            plain = Trial(model=trial.model, data="noise", width=trial.width, recipe=recipe)
            speed = _images_per_second(plain, size.classes, size.image_size, device, place.eager)
            found.probes[f"{trial.model} x {trial.width:g} at {size.image_size} pixels"] = speed
            if plain.id not in costs:
                costs[plain.id] = _macs(plain, size)
            passes = 0 if known is not None else trial.repeats if trial.method in RANDOM_METHODS else 1
            passes += sum(each.repeats if last else 1 for last in tests)
            share = costs[kind] / costs[plain.id]
            found.seconds += share * (steps + size.test_images * passes / 3) / speed
    found.absent = tuple(sorted(absent))
    _check_images({images: size.digest for images, size in sizes.items()}, place)
    return found


def _check_images(digests: Mapping[tuple[object, ...], str | None], place: Place) -> None:
    """Raise InputError if a trial in the folder of outcomes had other images under the name of these."""
    for outcome in load([place.out])[0] if place.out.is_dir() else ():
        digest = digests.get(outcome.trial.images)
        if digest is not None and outcome.data is not None and outcome.data.digest != digest:
            raise InputError(
                f"data {outcome.trial.data}", found=f"other images than {outcome.trial.label} in {place.out} had",
                expected="the same, or their accuracies would not compare",
                cure="choose another --out for the new images")


def missing_tests(planned: Planned, outcome: Outcome, place: Place) -> list[int]:
    """Return the further test schemes of a trial that are not evaluated yet; one that diverged has none."""
    return [last for last in planned.evaluations if outcome.status == "finished"
            and not place.store.evaluation(planned.trial, last, planned.repeats if last else 1).exists()]


def _check_tests(planned: Planned, units: int) -> None:
    """Raise InputError for a test scheme that the trained network could not be tested under."""
    trial = planned.trial
    if trial.method not in ("baseline", "shuffle") or trial.strip:
        raise InputError("shuffle_last", found=f"{list(planned.evaluations)} for {trial.label}",
                         expected="it for the unchanged network and method shuffle alone",
                         cure="take it out of this series: its last units have no places left to shuffle")
    if beyond := [last for last in planned.evaluations if last > units]:
        raise InputError("shuffle_last", found=beyond[-1], expected=f"0 to {units}, the units of {trial.model}",
                         cure="choose a smaller number")


def _finished(trial: Trial, place: Place) -> Outcome | None:
    """Return the stored outcome of a trial that need not be trained again."""
    try:
        found = place.store.look(trial)
    except DamagedError:  # the study sets it aside and runs the trial again
        return None
    return None if found is not None and found.status == "failed" else found


def _size(data: Images) -> _Size:
    return _Size(data.classes, data.image_size, data.train_count, data.test_count, data.digest)


def _published(trial: Trial) -> _Size:
    """Return what the paper's own data set would give `trial`."""
    theirs = data_sets()[trial.data]
    train, test = trial.train_images or theirs.train_images, trial.test_images or theirs.test_images
    if trial.holdout is not None:
        test = round(trial.holdout * train)
        train -= test
    return _Size(theirs.classes, trial.image_size or theirs.image_size, train, test, None)


def _macs(trial: Trial, size: _Size) -> int:
    try:
        with torch.device("meta"):
            model, _ = build(trial, size.classes, size.image_size)
    except NotImplementedError:  # a constructor that looks at its own weights needs real ones
        model, _ = build(trial, size.classes, size.image_size)
    try:
        return cost(model, size.image_size).macs
    except Exception:  # a network runs its own forward: anything can come out of it
        trace(model, size.image_size)  # which says what the network does not accept
        raise


@lru_cache(maxsize=64)
def _images_per_second(
    trial: Trial, classes: int, image_size: int, device: torch.device, eager: bool,
) -> float:
    """Measure the training of the network of `trial` on noise: the fastest of a few steps of its batch size."""
    model, _ = build(trial, classes, image_size)
    model.to(device)
    precision = choose_precision(trial.recipe.precision, device)

    def measured(images: int) -> float:
        pixels = torch.randint(0, 256, (images, 3, image_size, image_size), dtype=torch.uint8)
        labels = torch.arange(images) % classes
        noise = Dataset("noise", "noise", "", pixels, labels, pixels[:1], labels[:1], tuple(map(str, range(classes))))
        recipe = trial.recipe.model_copy(update={"batch_size": images})
        return max(epoch.images_per_second for epoch in train(
            model, noise, recipe, 0, precision=precision, eager=eager).history)

    few = min(_FEW, trial.recipe.batch_size)
    speed = measured(few)
    whole = trial.recipe.batch_size
    return measured(whole) if few < whole and whole / speed < _PROBE_SECONDS else speed
