"""Trials that take a fraction of a second, what of an outcome must not depend on luck, and work in a child process."""

from __future__ import annotations

import os
import sys
import traceback
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from spaceless.checkpoint import load_latest
from spaceless.paper import Planned
from spaceless.run import Place, build, load_data
from spaceless.studies import Plan
from spaceless.trial import RECIPES, Outcome, Trial

_RECIPE = RECIPES["control"].model_copy(update={"epochs": 2, "batch_size": 16, "precision": "fp32"})
_SGD = _RECIPE.model_copy(update={"optimizer": "sgd", "learning_rate": 0.05})
STEPS = 8  # of each training


def tiny(**fields: Any) -> Trial:
    """Return the trial of a network with two convolutions on 64 made images; `fields` replace its own."""
    base = {"model": "chain:4-M-8", "data": "arrangement-4", "train_images": 64, "test_images": 40, "recipe": _RECIPE,
            "repeats": 2}
    return Trial.model_validate(base | fields)


FOUR = (tiny(recipe=_SGD), tiny(method="shuffle", k=1), tiny(method="conv1x1", k=2), tiny(method="gap_fc", k=1))


def study() -> Plan:
    """Return a study of four trials, with a further test scheme for those that still have positions to shuffle."""
    planned = tuple(
        Planned(trial=trial, evaluations=(0,) if trial.method in ("baseline", "shuffle") else (), repeats=2)
        for trial in FOUR)
    return Plan("tiny", "Four tiny trials", "Do they survive?", "spaceless bench faults", planned)


def get_ready() -> None:
    """Import and make here, once, what every child would import and make for itself; nothing is trained.

    A process that has trained on a GPU cannot be forked to train again.
    """
    for trial in FOUR:
        data = load_data(trial)
        build(trial, data.classes, data.image_size)


def place(out: Path) -> Place:
    """Return `out` as a place on the processor where a state is saved after every step."""
    return Place(out, device="cpu", save_seconds=0.0)


def owner(trial: Trial) -> str:
    """Return the identity that the states of `trial` carry."""
    return f"{trial.id} on {load_data(trial).digest} in fp32"


def timeless(outcome: Outcome) -> dict[str, Any]:
    """Return `outcome` as JSON values, without what a clock has said."""
    found = outcome.model_dump(mode="json", exclude={"started", "seconds", "latency"})
    for epoch in found["history"]:
        del epoch["seconds"], epoch["images_per_second"]
    return found


def state_and_complaints(folder: Path, trial: str) -> tuple[dict[Any, Any] | None, list[str]]:
    """Return the newest sound state in `folder`, as it was stored, and the warnings about others."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        state = load_latest(folder, trial, dict)
    return state, [str(each.message) for each in caught]


def identical(one: Any, other: Any) -> bool:
    """Tell whether two nested values are the same to the last bit of every tensor."""
    if isinstance(one, torch.Tensor) and isinstance(other, torch.Tensor):
        same = (one.dtype, one.shape) == (other.dtype, other.shape)
        return same and one.contiguous().numpy().tobytes() == other.contiguous().numpy().tobytes()
    if isinstance(one, dict) and isinstance(other, dict):
        return one.keys() == other.keys() and all(identical(one[key], other[key]) for key in one)
    if isinstance(one, list | tuple) and isinstance(other, list | tuple):
        return len(one) == len(other) and all(map(identical, one, other))
    return type(one) is type(other) and bool(one == other)


def in_child(work: Callable[[], str | None]) -> tuple[int, str]:
    """Do `work` in a forked process of one thread, and return its exit status and what it returned.

    The status is 1 for an exception, whose traceback is printed, and negative for a signal.
    """
    sys.stdout.flush()
    sys.stderr.flush()
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        status = 1
        try:
            os.close(reading)
            torch.set_num_threads(1)
            os.write(writing, (work() or "").encode()[:4096])
            status = 0
        except BaseException:
            traceback.print_exc()
            sys.stderr.flush()
        finally:
            os._exit(status)
    os.close(writing)
    with os.fdopen(reading, "rb") as pipe:
        told = pipe.read().decode()
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), told
