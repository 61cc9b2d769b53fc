"""Where outcomes live: one folder per trial, named by its identity, `outcome.json` written last."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from spaceless.checkpoint import atomic_write
from spaceless.errors import InputError
from spaceless.sensitivity import PROFILES, Sensitivity
from spaceless.trial import Evaluation, Outcome, Trial, parse

OUTCOME, TRIAL, WEIGHTS = "outcome.json", "trial.json", "model.safetensors"


class Store:
    """The folder `root` with one folder per trial and one `NAME.study.json` per study.

    A trial is finished when its `outcome.json` exists; everything else in its folder may be half done.
    """

    def __init__(self, root: Path | str) -> None:
        """Look at `root`; nothing is created before the first write."""
        self.root = Path(root)

    def folder(self, trial: Trial) -> Path:
        """Return the folder of `trial`."""
        return self.root / trial.id

    def states(self, trial: Trial) -> Path:
        """Return the folder of the training states of `trial`."""
        return self.folder(trial) / "states"

    def check(self) -> None:
        """Raise InputError unless outcomes can be written here; nothing is created."""
        place = next(p for p in (self.root.absolute(), *self.root.absolute().parents) if p.exists())
        if not place.is_dir():
            raise self._unwritable(f"a file at {place}")
        if not os.access(place, os.W_OK | os.X_OK):
            raise self._unwritable("no permission to write")

    def _unwritable(self, found: str | None) -> InputError:
        return InputError(
            str(self.root), found=found, expected="a folder that can be written to", cure="choose another --out")

    def begin(self, trial: Trial) -> Path:
        """Create the folder of `trial`, write down what it is, and return it."""
        folder = self.folder(trial)
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise self._unwritable(error.strerror) from error
        if not (folder / TRIAL).exists():
            atomic_write(folder / TRIAL, _json(trial.model_dump(mode="json")))
        return folder

    def finish(self, outcome: Outcome) -> None:
        """Write the outcome of a trial: from now on it is finished."""
        atomic_write(self.folder(outcome.trial) / OUTCOME, _json(outcome.model_dump(mode="json")))

    def outcome(self, trial: Trial) -> Outcome | None:
        """Return the stored outcome of `trial`, or None if it is not finished.

        Raises:
            InputError: The file is broken or belongs to another trial.

        """
        path = self.folder(trial) / OUTCOME
        if not path.exists():
            return None
        found = read_outcome(path)
        if found.trial != trial:
            raise InputError(
                str(path), found=f"the outcome of {found.trial.label}", expected=f"the one of {trial.label}",
                cure="move this folder away; the trial then runs again",
            )
        return found

    def add_evaluation(self, trial: Trial, evaluation: Evaluation) -> Path:
        """Store one more test scheme of a finished trial beside its outcome, and return the file."""
        path = self.evaluation(trial, evaluation.shuffle_last or 0, len(evaluation.top1))
        path.parent.mkdir(exist_ok=True)
        atomic_write(path, _json(evaluation.model_dump(mode="json")))
        return path

    def evaluation(self, trial: Trial, shuffle_last: int, repeats: int) -> Path:
        """Return the file of one more test scheme of `trial`."""
        return self.folder(trial) / "evaluations" / f"shuffle-last-{shuffle_last}-repeats-{repeats}.json"

    def add_sensitivity(self, trial: Trial, found: Sensitivity) -> Path:
        """Store a spatial profile of a finished trial beside its outcome, and return the file."""
        path = self.folder(trial) / PROFILES / f"images-{found.images}-repeats-{found.repeats}.json"
        atomic_write(path, _json(found.model_dump(mode="json")))
        return path

    def write_study(self, manifest: dict[str, Any]) -> Path:
        """Write down what a study consists of, so that a report knows what is still missing."""
        try:
            self.root.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise self._unwritable(error.strerror) from error
        path = self.root / f"{manifest['name']}.study.json"
        atomic_write(path, _json(manifest))
        return path


def read_outcome(path: Path) -> Outcome:
    """Return the outcome in `path`, or raise InputError naming the file."""
    return parse(Outcome, _text(path), str(path))


def read_trial(folder: Path) -> Trial:
    """Return the trial whose folder this is, or raise InputError."""
    path = folder / TRIAL
    if not path.is_file():
        raise InputError(
            str(folder), found="no trial.json", expected="the folder of a trial",
            cure="name a folder that `spaceless train` or `spaceless study` printed",
        )
    return parse(Trial, _text(path), str(path))


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(
            str(path), found=f"{type(error).__name__}: {error}", expected="a readable JSON file",
            cure="move this folder away; the trial then runs again",
        ) from error


def _json(value: Any) -> bytes:
    return (json.dumps(value, indent=1, sort_keys=False) + "\n").encode()
