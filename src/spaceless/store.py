"""Where outcomes live: one folder per trial, named by its identity, `outcome.json` written last."""

from __future__ import annotations

import os
import warnings
from pathlib import Path
from typing import Any

from spaceless.atomic import make_folder, set_aside
from spaceless.checkpoint import discard
from spaceless.errors import DamagedError, InputError
from spaceless.records import read, read_edited, write
from spaceless.sensitivity import PROFILES, Sensitivity
from spaceless.spec import Spec
from spaceless.trial import Evaluation, Outcome, Trial

OUTCOME, TRIAL, WEIGHTS = "outcome.json", "trial.json", "model.safetensors"


class _Planned(Spec, extra="ignore"):
    trial: Trial


class _Manifest(Spec, extra="ignore"):
    """What is compared of two studies of one name."""

    planned: tuple[_Planned, ...] = ()


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
        """Create the folder of `trial`, write down what it is, and return it.

        Raises:
            InputError: The folder cannot be created, or it holds another trial.
            CheckpointError: It cannot be written to.

        """
        self._refuse_another(trial)
        folder = self.folder(trial)
        try:
            make_folder(folder)
        except OSError as error:
            raise self._unwritable(error.strerror) from error
        if not (folder / TRIAL).exists():
            write(folder / TRIAL, trial.model_dump(mode="json"))
        return folder

    def finish(self, outcome: Outcome) -> None:
        """Write the outcome of a trial: from now on it is finished."""
        write(self.folder(outcome.trial) / OUTCOME, outcome.model_dump(mode="json"))

    def look(self, trial: Trial) -> Outcome | None:
        """Return the stored outcome of `trial`, or None if it is not finished; nothing is changed.

        Raises:
            DamagedError: The outcome is not what was written.
            InputError: It cannot be read, or the folder or the outcome belongs to another trial.

        """
        self._refuse_another(trial)
        path = self.folder(trial) / OUTCOME
        if not path.exists():
            return None
        found = read_outcome(path)
        if found.trial != trial:
            raise InputError(
                str(path), found=f"the outcome of {_unlike(found.trial, trial)}", expected=f"the one of {trial.label}",
                cure="move this folder away; the trial then runs again",
            )
        return found

    def outcome(self, trial: Trial) -> Outcome | None:
        """Return the stored outcome of `trial`, or None if it has to run.

        What is damaged in its folder is set aside as `*.broken`, with a warning, so that it is made again: a damaged
        outcome together with the further test schemes of the weights that it told of. Training states that are left of
        a trial that has ended are removed.

        Raises:
            InputError: As `look`.
            CheckpointError: A damaged file cannot be set aside.

        """
        self._refuse_another(trial)
        folder = self.folder(trial)
        further = sorted(folder.glob("evaluations/*.json"))
        if _damaged(Trial, folder / TRIAL):
            self.begin(trial)
        if _damaged(Outcome, folder / OUTCOME):
            for path in further:
                set_aside(path)
            return None
        for path in further:
            _damaged(Evaluation, path)
        found = self.look(trial)
        if found is not None and found.status != "failed":
            discard(self.states(trial))  # whoever wrote the outcome may have been killed before
        return found

    def _refuse_another(self, trial: Trial) -> None:
        path = self.folder(trial) / TRIAL
        said = read_edited(Trial, path) if path.exists() else None
        if said is not None and said != trial:
            raise InputError(
                str(path), found=_unlike(said, trial), expected=f"{trial.label}, whose folder this is",
                cure="remove this file if it was edited, or choose another --out",
            )

    def add_evaluation(self, trial: Trial, evaluation: Evaluation) -> Path:
        """Store one more test scheme of a finished trial beside its outcome, and return the file."""
        path = self.evaluation(trial, evaluation.shuffle_last or 0, len(evaluation.top1))
        write(path, evaluation.model_dump(mode="json"))
        return path

    def evaluation(self, trial: Trial, shuffle_last: int, repeats: int) -> Path:
        """Return the file of one more test scheme of `trial`."""
        return self.folder(trial) / "evaluations" / f"shuffle-last-{shuffle_last}-repeats-{repeats}.json"

    def add_sensitivity(self, trial: Trial, found: Sensitivity) -> Path:
        """Store a spatial profile of a finished trial beside its outcome, and return the file."""
        path = self.folder(trial) / PROFILES / f"images-{found.images}-repeats-{found.repeats}.json"
        write(path, found.model_dump(mode="json"))
        return path

    def write_study(self, manifest: dict[str, Any]) -> Path:
        """Write down what a study consists of, so that a report knows what is still missing, and return the file.

        A study may grow: one of the same name is replaced if all of its trials are in the new one.

        Raises:
            InputError: The folder cannot be created, or a study of this name has other trials.
            CheckpointError: The file cannot be written.

        """
        try:
            make_folder(self.root)
        except OSError as error:
            raise self._unwritable(error.strerror) from error
        path = self.root / f"{manifest['name']}.study.json"
        if path.exists() and not _damaged(_Manifest, path):
            before, now = (_trials(each) for each in (read(_Manifest, path), _Manifest.model_validate(manifest)))
            if lost := [trial for key, trial in before.items() if key not in now]:
                raise InputError(
                    str(path), found=f"a study of this name with {len(lost)} other trials, first {lost[0].label}",
                    expected=f"the {len(now)} trials of this one, or some of them",
                    cure="choose another --out or another name, or remove this file: the outcomes stay",
                )
        write(path, manifest)
        return path


def read_outcome(path: Path) -> Outcome:
    """Return the outcome in `path`, or raise InputError naming it (DamagedError if it is not what was written)."""
    return read(Outcome, path)


def read_trial(folder: Path) -> Trial:
    """Return the trial whose folder this is, or raise InputError (DamagedError if it is not what was written)."""
    path = folder / TRIAL
    if not path.is_file():
        raise InputError(
            str(folder), found="no trial.json", expected="the folder of a trial",
            cure="name a folder that `spaceless train` or `spaceless study` printed",
        )
    return read(Trial, path)


def _damaged(kind: type[Spec], path: Path) -> bool:
    """Tell whether there is a damaged record in `path`, which is then set aside with a warning."""
    if not path.exists():
        return False
    try:
        read(kind, path)
    except DamagedError as error:
        aside = set_aside(path)
        warnings.warn(f"{error.what}: found {error.found}; set aside as {aside.name} and made again", stacklevel=3)
        return True
    return False


def _trials(manifest: _Manifest) -> dict[str, Trial]:
    return {each.trial.id: each.trial for each in manifest.planned}


def _unlike(found: Trial, wanted: Trial) -> str:
    """Return what `found` is, with the first of its fields that `wanted` has otherwise."""
    place, one, other = "", found.model_dump(), wanted.model_dump()
    while isinstance(one, dict):
        name = next((name for name in one if one[name] != other[name]), None)
        if name is None:
            return found.label
        place, one, other = f"{place}.{name}".lstrip("."), one[name], other[name]
    return f"{found.label} with {place} {one}"
