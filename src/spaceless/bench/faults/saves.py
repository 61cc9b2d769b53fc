"""A process that ends at any file operation of a save: the old or the new state is there, and the work goes on."""

from __future__ import annotations

import shutil
import tempfile
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from spaceless.bench.faults.operations import ENDED, When, ended_at, intercepted, listed
from spaceless.bench.faults.tiny_trials import (
    FOUR,
    get_ready,
    identical,
    in_child,
    owner,
    place,
    state_and_complaints,
    study,
    timeless,
)
from spaceless.checkpoint import save
from spaceless.errors import InputError
from spaceless.run import run_trial
from spaceless.store import Store
from spaceless.trial import Outcome, Trial

TITLE = "Exit before, within and after every file operation of a save, and a power cut there"
OLD, NEW = "old", "new"


@dataclass(frozen=True)
class _Save:
    """A save from a prepared folder, and the save that follows it.

    `found` says whether the old or the new state is there, or what is wrong; `followed` whether the one after it is.
    """

    name: str
    prepare: Callable[[Path], object]
    save: Callable[[Path], object]
    go_on: Callable[[Path], object]
    found: Callable[[Path], str]
    followed: Callable[[Path], bool]


_COUNTED = (
    "file operations of saves", "exits within saves", "old or new state there, bit for bit", "of them old",
    "of them new", "gone on with, nothing left behind", "file operations of trainings", "exits within trainings",
    "states and outcome whole", "same outcome and files after the same command",
)


@dataclass
class _Count:
    counts: Counter[str] = field(default_factory=lambda: Counter(dict.fromkeys(_COUNTED, 0)))
    failing: list[str] = field(default_factory=list)

    def check(self, good: bool, counted: str, complaint: str) -> None:
        self.counts[counted] += good
        if not good:
            self.failing.append(complaint)


def run(
    progress: Callable[[str], None], *, seed: int = 0, trainings: int = 300, stride: int = 1,
) -> dict[str, Any]:
    """End child processes at the points of saves of states, outcomes and studies, and of whole tiny trainings.

    Args:
        progress: Told about what comes next.
        seed: Of the states' values, and of the points at which trainings are ended.
        trainings: How many of these.
        stride: Of the points of the saves every `stride`-th is taken; 1 is all of them.

    """
    count = _Count()
    get_ready()
    with tempfile.TemporaryDirectory() as folder:
        for number, each in enumerate(_saves(seed)):
            progress(f"{each.name}: exit at its file operations")
            _end_saves(each, Path(folder, str(number)), stride, count)
        for number, trial in enumerate(FOUR[:2]):
            share = trainings // 2 + (trainings % 2 if number == 0 else 0)
            progress(f"{trial.label}: exit at {share} file operations of the training")
            _end_trainings(trial, Path(folder, trial.id), share, seed + number, count)
    return {"what": _WHAT, "counts": dict(count.counts), "failing": count.failing}


def _saves(seed: int) -> list[_Save]:
    trial = FOUR[0]
    outcomes = [Outcome(trial=trial, status="failed", error=error) for error in ("once", "twice")]
    plans = [study().manifest() | {"asks": asks} for asks in ("Once?", "Twice?")]

    def outcome(number: int) -> Callable[[Path], object]:
        return lambda folder: Store(folder).finish(outcomes[number])

    def asks(number: int) -> Callable[[Path], object]:
        return lambda folder: Store(folder).write_study(plans[number])

    def record(name: str, prepare: Callable[[Path], object], write: Callable[[Path], object],
               found: Callable[[Path], str]) -> _Save:
        return _Save(name, prepare, write, write, found, lambda folder: found(folder) == NEW)

    return [
        *(_state_save(step, seed) for step in (1, 2, 3)),
        record("first outcome", lambda _: None, outcome(1), _record(None, outcomes[1], _outcome)),
        record("second outcome", outcome(0), outcome(1), _record(outcomes[0], outcomes[1], _outcome)),
        record("study", asks(0), asks(1), _record(plans[0]["asks"], plans[1]["asks"], _asks)),
    ]


def _state_save(new: int, seed: int) -> _Save:
    """Return the save of state `new` behind those before it."""
    states = [_state(step, seed) for step in range(new + 2)]

    def put(step: int, folder: Path) -> None:
        save(folder, states[step], step, "mine")

    def prepare(folder: Path) -> None:
        for step in range(1, new):
            put(step, folder)

    def found(folder: Path) -> str:
        state, complaints = state_and_complaints(folder, "mine")
        if complaints:
            return complaints[0]
        if identical(state, states[new]):
            return NEW
        old = identical(state, states[new - 1]) if new > 1 else state is None
        return OLD if old else "a state that was not saved"

    def followed(folder: Path) -> bool:
        state, complaints = state_and_complaints(folder, "mine")
        return not complaints and identical(state, states[new + 1])

    return _Save(f"state {new}", prepare, partial(put, new), partial(put, new + 1), found, followed)


def _state(step: int, seed: int) -> dict[str, Any]:
    drawn = torch.Generator().manual_seed(1000 * seed + step)
    weights = {"0.weight": torch.randn(8, 3, 3, 3, generator=drawn), "1.num_batches_tracked": torch.tensor(step)}
    moments = {0: {"momentum_buffer": torch.randn(8, 3, 3, 3, generator=drawn)}}
    return {"model": weights, "optimizer": {"state": moments, "param_groups": [{"lr": 0.1}]}, "step": step}


def _record(old: object, new: object, read: Callable[[Path], object]) -> Callable[[Path], str]:
    def look(folder: Path) -> str:
        try:
            found = read(folder)
        except InputError as error:
            return str(error)
        return NEW if found == new else OLD if found == old else "what was not written"

    return look


def _outcome(folder: Path) -> object:
    return Store(folder).look(FOUR[0])


def _asks(folder: Path) -> object:
    from spaceless.rows import load

    _, studies, problems = load([folder])
    return problems[0].text if problems else studies[0].asks if studies else None


def _names(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}


def _end_saves(each: _Save, folder: Path, stride: int, count: _Count) -> None:
    whole = folder / "whole"
    whole.mkdir(parents=True)
    each.prepare(whole)
    shutil.copytree(whole, folder / "before")
    operations = listed(lambda: each.save(whole))
    each.go_on(whole)
    count.counts["file operations of saves"] += len(operations)
    points = [(operation.number, when) for operation in operations for when in _whens(operation.name)]
    for number, when in points[::stride]:
        where = f"{each.name}, {when} {operations[number - 1].name} ({number} of {len(operations)})"
        here = folder / f"{number}-{when}"
        shutil.copytree(folder / "before", here)
        status, _ = in_child(partial(_ended, partial(each.save, here), number, when))
        count.check(status == ENDED, "exits within saves", f"{where}: the child ended with status {status}")
        found = each.found(here)
        count.check(found in (OLD, NEW), "old or new state there, bit for bit", f"{where}: {found}")
        count.counts[f"of them {found}"] += found in (OLD, NEW)
        if found != NEW:
            each.save(here)
        each.go_on(here)
        good = _names(here) == _names(whole) and each.followed(here)
        count.check(good, "gone on with, nothing left behind", f"{where}: then {sorted(_names(here) ^ _names(whole))}")
        shutil.rmtree(here)


def _whens(name: str) -> tuple[When, ...]:
    return ("before", "within", "after", "power") if name == "write" else ("before", "after", "power")


def _ended(work: Callable[[], object], number: int, when: When) -> None:
    with intercepted(ended_at(number, when)):
        work()


def _end_trainings(trial: Trial, folder: Path, trainings: int, seed: int, count: _Count) -> None:
    folder.mkdir()  # whoever makes it does more than the others
    whole = folder / "whole"
    _, told = in_child(lambda: "\n".join(op.name for op in listed(lambda: run_trial(trial, place(whole)))))
    names = told.split("\n")
    count.counts["file operations of trainings"] += len(names)
    reference = Store(whole).look(trial)
    points = [(number, when) for number, name in enumerate(names, 1) for when in _whens(name)]
    chosen = np.random.default_rng(seed).permutation(len(points))[:trainings]
    for number, when in (points[index] for index in sorted(chosen)):
        where = f"{trial.label}, {when} {names[number - 1]} ({number} of {len(names)})"
        here = folder / f"{number}-{when}"
        status, _ = in_child(partial(_ended, partial(run_trial, trial, place(here)), number, when))
        count.check(status == ENDED, "exits within trainings", f"{where}: the child ended with status {status}")
        _, complaints = state_and_complaints(Store(here).states(trial), owner(trial))
        count.check(not complaints, "states and outcome whole", f"{where}: {''.join(complaints[:1])}")
        status, _ = in_child(partial(_again, trial, here))
        found = Store(here).look(trial) if status == 0 else None
        same = found is not None and reference is not None and timeless(found) == timeless(reference)
        count.check(same and _names(here) == _names(whole), "same outcome and files after the same command",
                    f"{where}: run again, it ends with status {status} and " + (
                        f"leaves {sorted(_names(here) ^ _names(whole))}" if same else "another outcome"))
        shutil.rmtree(here)


def _again(trial: Trial, folder: Path) -> None:
    run_trial(trial, place(folder))


_WHAT = """\
A child process is ended by `os._exit` before and after each call of `os` with which a save touches files, and within
each write after half of it. In a power cut, half of all that was written and not flushed is lost as well. Saved are the
first, the second and the third state of a training, a first and a second outcome, and a study. Then whole trainings of
two tiny trials that save after every step are ended in the same way, and run again."""
