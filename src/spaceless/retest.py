"""A trained network tested again: as it was trained, on the test set, with its last units or each unit shuffled."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import torch
from torch import nn

from spaceless import records
from spaceless.data import Images
from spaceless.distributed import share
from spaceless.errors import InputError, Interrupted
from spaceless.evaluation import evaluate
from spaceless.models import stem_is_unit
from spaceless.profiling import measure_sensitivity
from spaceless.rebuild import compare_weights, read_weights
from spaceless.run import Place, build, choose_device, choose_precision, hardware, load_data, versions
from spaceless.sensitivity import Sensitivity
from spaceless.shuffle import shuffles
from spaceless.store import OUTCOME, WEIGHTS, Store, read_outcome, read_trial
from spaceless.surgery import remove_spatial, without_shuffle
from spaceless.trial import Evaluation, Outcome, Trial
from spaceless.units import find_units

_REPEATS = 200  # evaluations of a network that shuffles: the paper's (Table 2 left)
TESTED = "tested.json"  # of a network trained with a holdout: its accuracy on the test images


@dataclass(frozen=True)
class Trained:
    """A finished trial whose weights are at hand: the network as it was trained, and its data."""

    outcome: Outcome
    model: nn.Module
    data: Images
    store: Store

    @property
    def trial(self) -> Trial:
        """The trial."""
        return self.outcome.trial


def evaluate_run(
    folder: Path, place: Place, *, shuffle_last: int | None = None, repeats: int | None = None,
    test_images: int | None = None,
    stop: Callable[[], int | None] | None = None, progress: Callable[[float], None] | None = None,
) -> Evaluation:
    """Evaluate a trained network again, as it was trained or with its last `shuffle_last` units shuffled (0: clean).

    The evaluation is stored beside the outcome when it is another scheme than the trained one, on all of the trial's
    test images: on a balanced draw of `test_images` it is only returned.

    Raises:
        InputError: The folder holds no finished trial with weights, a number is out of range, or `repeats` are asked
            for of a network that answers alike in every pass.

    """
    _check_repeats(1 if repeats is None else repeats, _REPEATS)
    trained = open_trial(folder, place, test_images, "--shuffle-last" if shuffle_last is not None else "")
    trial, data, model = trained.trial, trained.data, trained.model
    if shuffle_last is not None:
        model = without_shuffle(model)
        count = len(find_units(model, data.image_size, stem=stem_is_unit(trial.model)))
        if not 0 <= shuffle_last <= count:
            raise InputError("--shuffle-last", found=shuffle_last, expected=f"0 to {count}, the number of units",
                             cure="see the units with inspect")
        if shuffle_last:
            model, _ = remove_spatial(
                model, "shuffle", shuffle_last, image_size=data.image_size, seed=trial.seed,
                stem=stem_is_unit(trial.model),
            )
    if repeats is not None and not any(shuffles(model)):
        raise InputError(f"--repeats {repeats}", found="a network without a shuffle", expected="one with a shuffle",
                         cure="leave it out: every pass is the same")
    device = choose_device(place.device)
    passes = (repeats or _REPEATS) if any(shuffles(model)) else 1
    try:
        found = evaluate(
            model.to(device), data, repeats=passes, shuffle_last=shuffle_last,
            precision=choose_precision(trial.recipe.precision, device), eager=place.eager, stop=stop, progress=progress,
        )
    except Interrupted as interrupted:
        raise Interrupted(interrupted.signum, saved=False) from None
    if shuffle_last is not None and test_images is None and share().rank == 0:
        trained.store.add_evaluation(trial, found)
    return found


class _Tested(Evaluation):
    """An evaluation on the test images, and the SHA-256 of the weights that it is of."""

    weights_sha256: str | None = None


def tested(folder: Path) -> Evaluation | None:
    """Return what `test_run` stored in the folder of a finished trial, or None; raise InputError if it is broken.

    What it stored of other weights than those of the outcome does not count.
    """
    path = folder / TESTED
    if not path.exists():
        return None
    found = records.read(_Tested, path)
    return found if found.weights_sha256 == read_outcome(folder / OUTCOME).weights_sha256 else None


def test_run(
    folder: Path, place: Place, *, stop: Callable[[], int | None] | None = None,
    progress: Callable[[float], None] | None = None,
) -> Evaluation:
    """Test a network that was trained with a holdout on the test images, once: the result is stored beside its outcome.

    Raises:
        InputError: The folder holds no such network with weights, or what is stored there is broken.
        Interrupted: `stop` asked for it; nothing is stored.

    """
    known = tested(folder)
    if known is not None:
        return known
    trained = open_trial(folder, place, None, "")
    if trained.trial.holdout is None:
        raise InputError(
            str(folder), found="a network trained on all training images", expected="one trained with a holdout",
            cure="its accuracy on the test images is in its outcome",
        )
    device = choose_device(place.device)
    try:
        found = evaluate(
            trained.model.to(device), load_data(trained.trial, place.data_root, test=True), each=True,
            precision=choose_precision(trained.trial.recipe.precision, device), eager=place.eager, stop=stop,
            progress=progress,
        )
    except Interrupted as interrupted:
        raise Interrupted(interrupted.signum, saved=False) from None
    if share().rank == 0:
        records.write(folder / TESTED, found.model_dump(mode="json")
                      | {"weights_sha256": trained.outcome.weights_sha256})
    return found


def profile_run(
    folder: Path, place: Place, *, repeats: int = 10, test_images: int | None = None,
    stop: Callable[[], int | None] | None = None, progress: Callable[[float], None] | None = None,
) -> Sensitivity:
    """Measure where space matters in a trained network, and store it beside the outcome; see `measure_sensitivity`.

    Raises:
        InputError: As `evaluate_run`; or the network cannot be taken apart.

    """
    _check_repeats(repeats, 10)
    trained = open_trial(folder, place, test_images, "--profile")
    trial, device = trained.trial, choose_device(place.device)
    precision = choose_precision(trial.recipe.precision, device)
    started, begun = datetime.now(UTC), time.perf_counter()
    found = measure_sensitivity(
        trained.model.to(device), trained.data, repeats=repeats, seed=trial.seed, stem=stem_is_unit(trial.model),
        precision=precision, eager=place.eager, stop=stop, progress=progress,
    ).model_copy(update={
        "weights_sha256": trained.outcome.weights_sha256, "precision": precision, "versions": versions(),
        "hardware": hardware(device), "threads": torch.get_num_threads(), "processes": share().count,
        "started": started.isoformat(timespec="seconds"), "seconds": round(time.perf_counter() - begun, 3),
    })
    if share().rank == 0:
        trained.store.add_sensitivity(trial, found)
    return found


def _check_repeats(repeats: int, usual: int) -> None:
    if repeats < 1:
        raise InputError("repeats", found=repeats, expected="at least 1", cure=f"leave it out for {usual}")


def open_trial(folder: Path, place: Place, test_images: int | None = None, shuffling: str = "") -> Trained:
    """Return the trained network in `folder`; `shuffling` is the option that wants to shuffle it, if there is one.

    Raises:
        InputError: The folder holds no finished trial with weights, or the images are not those of the training.

    """
    folder = folder.resolve()  # "." has a parent too
    trial = read_trial(folder)
    if folder.name != trial.id:
        raise InputError(str(folder), found="the folder of a trial under another name", expected=trial.id,
                         cure="rename it: outcomes are found by the names of their folders")
    store = Store(folder.parent)
    weights = folder / WEIGHTS
    outcome = store.look(trial)
    if outcome is None or not weights.is_file():
        raise InputError(
            str(folder), found="no outcome" if outcome is None else "no weights",
            expected="a finished trial with weights",
            cure="remove this folder and run the trial again, without --no-weights",
        )
    if outcome.status != "finished":
        raise InputError(
            str(folder), found=f"a trial that {outcome.status}", expected="a finished trial",
            cure="there is no accuracy to measure: train with another recipe",
        )
    data = load_data(trial, place.data_root)
    if outcome.data is not None and data.digest != outcome.data.digest:
        raise InputError(
            f"data {trial.data}", found=f"other images in {data.source} than the training had",
            expected=f"those of {outcome.data.source}", cure="name the folder that holds them with --data-root",
        )
    if shuffling and (trial.method not in ("baseline", "shuffle") or trial.strip):
        raise InputError(
            shuffling, found=f"a network changed by {trial.method}", expected="an unchanged or a shuffling one",
            cure=f"leave {shuffling} out: K counts the units of a network that is otherwise unchanged",
        )
    model, _ = build(trial, data.classes, data.image_size)
    load_weights(model, weights, outcome.weights_sha256)
    return Trained(outcome, model, data.subset(None, test_images), store)


def load_weights(model: nn.Module, path: Path, sha256: str | None) -> None:
    """Put the weights in the safetensors file `path` into `model`, in place, or leave it as it was.

    Raises:
        InputError: The file's SHA-256 is not `sha256`, or its names, shapes and types are not those of `model`.

    """
    cure = "remove this trial's folder and run it again"
    weights = read_weights(path, sha256, cure)  # the digest only says that the outcome is as old as the weights
    compare_weights(weights, model.state_dict(), path, cure)
    model.load_state_dict(weights)
