"""From run folders to rows: runs that differ only in their seed are one row, and a missing number stays missing."""

from __future__ import annotations

import re
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeVar

from spaceless.compression import Compression
from spaceless.errors import InputError
from spaceless.paper import Axis, Experiment, Printed, experiments
from spaceless.records import read
from spaceless.spec import Spec
from spaceless.trial import Change, Evaluation, Method, Outcome, Trial

_S = TypeVar("_S", bound=Spec)

METHOD_ORDER = ("baseline", "shuffle", "gap_fc", "conv1x1", "channel_shuffle", "strip")
_MOST_DIGITS = 18  # of a number within a name: Python makes no numbers of texts without end


class Planned(Spec, extra="ignore"):
    """A trial that a study asks for, and the extra test schemes it wants evaluated (None: as trained)."""

    trial: Trial
    evaluations: tuple[Any, ...] = ()

    @property
    def schemes(self) -> tuple[int, ...]:
        """The extra test schemes as numbers of shuffled last units."""
        found = (e.get("shuffle_last") if isinstance(e, dict) else e for e in self.evaluations)
        return tuple(s for s in found if isinstance(s, int))


class Truth(Spec, extra="ignore"):
    """What geometry says of one calibration cell.

    Every K up to `learnable_k` can be learnt; from `chance_from_k` on (None: nowhere) accuracy is exactly `chance`
    (percent). Between the two bounds nothing is claimed.
    """

    data: str
    method: Method
    learnable_k: int
    chance_from_k: int | None = None
    chance: float


class Study(Spec, extra="ignore"):
    """The manifest of a study, `NAME.study.json`: what was asked and which trials answer it."""

    name: str
    preset: str | None = None
    experiment: str | None = None
    title: str | None = None
    asks: str | None = None
    command: str | None = None
    kind: Literal["study", "calibration", "compression"] = "study"
    x: Axis | None = None
    x_ticks: tuple[int, ...] = ()
    planned: tuple[Planned, ...] = ()
    truth: tuple[Truth, ...] = ()
    compression: Compression | None = None


@dataclass(frozen=True)
class Problem:
    """A file that could not be used, and why."""

    where: str
    text: str


@dataclass(frozen=True)
class Row:
    """All runs of one trial that differ only in the seed, under one test scheme.

    Accuracies and spreads are in percent and percentage points. `top1` is the mean over runs; `spread` the standard
    deviation over runs (None for fewer than two); `shuffle_spread` the mean over runs of the standard deviation over
    repeated evaluations (None for single passes). `params` and `macs` are counts, `receptive_field` is in pixels.
    `latency` is the median over runs of their median time for one batch, in milliseconds (None for a test scheme that
    is not the one of the training: it changes the network and is not timed), `timed_on` the machines it was measured
    on.
    `images` counts the test images of all runs together. `seeds` are those of the runs that count, one for each run,
    and `ids` name their folders; runs that failed, diverged or are missing are named by their seeds and never averaged
    in. `changes` are those of surgery. `trained_least` is the least accuracy of any run on its training images,
    taken while the last epoch went on.
    """

    trial: Trial
    shuffle_last: int | None
    seeds: tuple[int, ...] = ()
    ids: tuple[str, ...] = ()
    top1: float | None = None
    spread: float | None = None
    shuffle_spread: float | None = None
    top5: float | None = None
    passes: int = 0
    images: int = 0
    units: int | None = None
    classes: int | None = None
    image_size: int | None = None
    params: int | None = None
    macs: int | None = None
    latency: float | None = None
    timed_on: tuple[str, ...] = ()
    receptive_field: int | None = None
    failed: tuple[int, ...] = ()
    diverged: tuple[int, ...] = ()
    missing: tuple[int, ...] = ()
    printed: tuple[Printed, ...] = ()
    changes: tuple[Change, ...] = ()
    trained_least: float | None = None

    @property
    def n(self) -> int:
        """The number of runs in the mean."""
        return len(self.seeds)

    @property
    def paper_top1(self) -> float | None:
        """The first accuracy that the paper prints for this row, in percent."""
        return next((p.top1 for p in self.printed if p.top1 is not None), None)

    @property
    def paper_params(self) -> float | None:
        """The first parameter count that the paper prints for this row, in millions."""
        return next((p.params_m for p in self.printed if p.params_m is not None), None)

    @property
    def difference(self) -> float | None:
        """Measured minus printed accuracy, in percentage points."""
        return None if self.top1 is None or self.paper_top1 is None else self.top1 - self.paper_top1


def load(dirs: Sequence[str | Path]) -> tuple[list[Outcome], list[Study], list[Problem]]:
    """Return all outcomes, study manifests and unusable files under `dirs` (run folders or single trial folders).

    A broken file becomes a problem, never an error. Of a trial that lies in several folders a finished outcome is kept,
    with the further tests of all copies of its weights; of those with other weights the one beside a study that plans
    it, then the one with the most tests, and the others become problems. The order of the folders does not matter.
    Raises InputError for a folder that does not exist.
    """
    copies: dict[str, list[_Copy]] = {}
    studies: dict[str, Study] = {}
    problems: list[Problem] = []
    for folder in map(Path, dirs):
        if not folder.is_dir():
            raise InputError(str(folder), found="no such folder", expected="a run folder or a trial's folder",
                             cure="name the folder that was given to --out")
        here = set()
        for path in sorted(folder.glob("*.study.json")):
            if study := read_record(Study, path, problems):
                studies[study.model_dump_json()] = study
                here |= {planned.trial.id for planned in study.planned}
        for path in sorted([*folder.glob("outcome.json"), *folder.glob("*/outcome.json")]):
            if outcome := read_record(Outcome, path, problems):
                trial = outcome.trial.id
                copy = _Copy(path, _with_evaluations(outcome, path.parent, problems), trial in here)
                copies.setdefault(trial, []).append(copy)
    outcomes = [_chosen(found, problems) for found in copies.values()]
    problems += _other_images(outcomes)
    planned = {p.trial.id for s in studies.values() for p in s.planned}
    for folder in map(Path, dirs):
        begun = [p.parent for p in sorted([*folder.glob("trial.json"), *folder.glob("*/trial.json")])]
        problems += [
            Problem(str(trial), "this trial has begun and has no outcome yet") for trial in begun
            if not (trial / "outcome.json").exists() and trial.resolve().name not in planned
        ]
    return outcomes, list(studies.values()), problems


@dataclass(frozen=True)
class _Copy:
    """An outcome in one of several folders; `planned` tells whether a study beside it asks for its trial."""

    path: Path
    outcome: Outcome
    planned: bool


def _chosen(copies: Sequence[_Copy], problems: list[Problem]) -> Outcome:
    """Return the one of several outcomes of a trial that counts, with all tests of its weights; see `load`."""
    finished = [copy for copy in copies if copy.outcome.status == "finished"]
    tests = {copy.outcome.weights_sha256: {e.shuffle_last for each in finished for e in each.outcome.evaluations
                                           if each.outcome.weights_sha256 == copy.outcome.weights_sha256}
             for copy in finished}
    best = min(finished or copies, key=lambda copy: (
        not copy.planned, -len(tests.get(copy.outcome.weights_sha256, ())), copy.outcome.weights_sha256 or "",
        str(copy.path)))
    outcome = best.outcome
    for copy in (each for each in finished if each is not best):
        if copy.outcome.weights_sha256 == outcome.weights_sha256:
            outcome = _merged(outcome, copy.outcome.evaluations)
        else:
            problems.append(Problem(str(copy.path), f"the same trial as {best.path}, with other weights: left out"))
    return outcome


def _other_images(outcomes: Iterable[Outcome]) -> list[Problem]:
    """Return a problem for each trial whose images are others than those of an earlier one with equal options."""
    first: dict[tuple[object, ...], Outcome] = {}
    found = []
    for each in outcomes:
        known = first.setdefault(each.trial.images, each)
        if each.data is not None and known.data is not None and each.data.digest != known.data.digest:
            found.append(Problem(each.trial.id, f"{each.trial.label}: its images are others than those of "
                                                f"{known.trial.id}, under the same name; the two do not compare"))
    return found


def read_record(kind: type[_S], path: Path, problems: list[Problem]) -> _S | None:
    """Return the record of `kind` in `path`, or None and one more problem if there is no such record in it."""
    try:
        return read(kind, path)
    except InputError as error:
        problems.append(Problem(str(path), str(error).removeprefix(str(path)).lstrip(": ")))
        return None


def _with_evaluations(outcome: Outcome, folder: Path, problems: list[Problem]) -> Outcome:
    extras = (read_record(Evaluation, path, problems) for path in sorted(folder.glob("evaluations/*.json")))
    return _merged(outcome, [extra for extra in extras if extra])


def _merged(outcome: Outcome, extras: Iterable[Evaluation]) -> Outcome:
    """Return `outcome` with these evaluations among its own: of one test scheme that with more passes."""
    schemes = {e.shuffle_last: e for e in outcome.evaluations}
    for extra in extras:
        if extra.shuffle_last not in schemes or len(extra.top1) > len(schemes[extra.shuffle_last].top1):
            schemes[extra.shuffle_last] = extra
    return outcome.model_copy(update={"evaluations": tuple(schemes.values())})


def rows(
    outcomes: Iterable[Outcome], planned: Iterable[Planned] = (), experiment: Experiment | None = None,
) -> list[Row]:
    """Return one row per trial (whatever its seeds) and test scheme, with the paper's printed numbers beside.

    `planned` trials and test schemes without an outcome give rows too, with their numbers missing; without a plan
    every stored test scheme is shown. The printed numbers are those of `experiment`, or of the whole paper.
    """
    each = [experiment] if experiment else experiments().values()
    printed = [p for e in each for p in (e.printed_all if experiment else e.printed) if not whole_curve(p)]
    outcomes, planned = list(outcomes), list(planned)
    trials = [*(outcome.trial for outcome in outcomes), *(plan.trial for plan in planned)]
    originals = {trial.id: trial.model_copy(update={"seed": 0}).id for trial in trials}
    groups: dict[str, _Group] = {}
    for outcome in outcomes:
        _group(groups, outcome.trial, originals).outcomes.append(outcome)
    for plan in planned:
        group = _group(groups, plan.trial, originals)
        group.schemes.update(plan.schemes)
        group.planned.add(plan.trial.seed)
    found = [row for group in groups.values() for row in group.rows(printed)]
    return sorted(found, key=_order)


def whole_curve(printed: Printed) -> bool:
    """Tell whether a printed number is about a whole line (its best K, or its largest) and not about one trial."""
    return printed.k is None and printed.only is None and printed.method != "baseline"


@dataclass
class _Group:
    trial: Trial
    outcomes: list[Outcome]
    planned: set[int]
    schemes: set[int]

    def rows(self, printed: Sequence[Printed]) -> list[Row]:
        stored = {e.shuffle_last for o in self.outcomes for e in o.evaluations if e.shuffle_last is not None}
        extra = self.schemes if self.planned else stored
        return [self._row(scheme, printed) for scheme in (None, *sorted(extra))]

    def _row(self, scheme: int | None, printed: Sequence[Printed]) -> Row:
        finished = [o for o in self.outcomes if o.status == "finished"]
        runs = [(o, e) for o in finished for e in o.evaluations if e.shuffle_last == scheme]
        means = [e.mean for _, e in runs]
        spreads = [e.spread for _, e in runs if e.spread is not None]
        trained = [o.history[-1].top1 for o, _ in runs if o.history]
        fives = [e.top5 for _, e in runs if e.top5 is not None]
        timed = [(o, o.latency.median) for o, _ in runs if scheme is None and o.latency]
        seeds = sorted(o.trial.seed for o, _ in runs)
        ended = {status: _seeds(o for o in self.outcomes if o.status == status) for status in ("failed", "diverged")}
        known = set(seeds).union(*ended.values())
        return Row(
            trial=self.trial,
            shuffle_last=scheme,
            seeds=tuple(seeds),
            ids=tuple(o.trial.id for o, _ in sorted(runs, key=lambda run: run[0].trial.seed)),
            top1=statistics.fmean(means) if means else None,
            spread=statistics.stdev(means) if len(means) > 1 else None,
            shuffle_spread=statistics.fmean(spreads) if spreads else None,
            top5=statistics.fmean(fives) if fives else None,
            passes=max((len(e.top1) for _, e in runs), default=0),
            images=sum(e.images for _, e in runs),
            units=_first(o.units for o in self.outcomes),
            classes=_first(o.data.classes if o.data else None for o in self.outcomes),
            image_size=_first(o.data.image_size if o.data else o.trial.image_size for o in self.outcomes),
            params=_first(o.params for o in self.outcomes),
            macs=_first(o.macs for o in self.outcomes),
            latency=1000 * statistics.median(seconds for _, seconds in timed) if timed else None,
            timed_on=tuple(sorted({_machine(o) for o, _ in timed})),
            receptive_field=_first(o.receptive_field for o in self.outcomes),
            failed=ended["failed"],
            diverged=ended["diverged"],
            missing=tuple(sorted((self.planned | _set(finished)) - known)),
            printed=tuple(p for p in printed if p.matches(self.trial, scheme)),
            changes=next((o.changes for o in self.outcomes if o.changes), ()),
            trained_least=min(trained, default=None),
        )


def _group(groups: dict[str, _Group], trial: Trial, originals: Mapping[str, str]) -> _Group:
    # Each seed starts from weights of its own; those of one original, whatever its seed, are of one row.
    start = trial.start and trial.start.model_copy(
        update={"run": originals.get(trial.start.run, "0" * 16), "weights_sha256": "0" * 64})
    alike = trial.model_copy(update={"seed": 0, "start": start})
    return groups.setdefault(alike.id, _Group(alike, [], set(), set()))


def _set(outcomes: Iterable[Outcome]) -> set[int]:
    return {o.trial.seed for o in outcomes}


def _seeds(outcomes: Iterable[Outcome]) -> tuple[int, ...]:
    return tuple(sorted(_set(outcomes)))


def _first(values: Iterable[int | None]) -> int | None:
    return next((v for v in values if v is not None), None)


def _machine(outcome: Outcome) -> str:
    threads = outcome.threads
    said = "" if threads is None else "1 thread" if threads == 1 else f"{threads} threads"
    return ", ".join(filter(None, (outcome.hardware, said)))


def _order(row: Row) -> tuple[Any, ...]:
    trial = row.trial
    return (
        natural(trial.model), natural(trial.data), trial.image_size or 0, trial.width, trial.train_images or 0,
        trial.recipe.augment, trial.recipe.name, METHOD_ORDER.index(trial.method), trial.downsample,
        trial.only is not None, trial.shuffle.words, trial.k, -(trial.only or 0), trial.strip,
        -1 if row.shuffle_last is None else row.shuffle_last, trial.id,
    )


def natural(name: str) -> list[tuple[int, str]]:
    """Return a key by which the numbers in names are sorted as numbers."""
    return [(int(part), "") if part.isdecimal() and len(part) <= _MOST_DIGITS else (-1, part)
            for part in re.split(r"(\d+)", name)]
