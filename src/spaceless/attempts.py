"""One attempt at one trial: claimed, run, evaluated under its further test schemes, and told how it ended."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Literal

from spaceless.claims import claimed, holder
from spaceless.distributed import from_first, share
from spaceless.errors import InputError, Interrupted, SpacelessError
from spaceless.estimate import missing_tests
from spaceless.paper import Planned
from spaceless.retest import evaluate_run
from spaceless.run import Place, run_trial, versions
from spaceless.training import Progress
from spaceless.trial import Outcome, Trial

Stop = Callable[[], int | None]
ENDINGS = ("finished", "known", "held", "failed", "interrupted")


@dataclass(frozen=True)
class Event:
    """News of the trial with number `index` in the plan.

    An attempt ends with `finished`, `known` (it had been finished before), `held` (another command works on it: see
    `note`), `failed` or `interrupted`. A failed one may be begun `again`.
    """

    index: int
    kind: Literal["started", "progress", "evaluating", "again", "finished", "known", "held", "failed", "interrupted"]
    progress: Progress | None = None
    share: float = 0.0  # of an evaluation
    outcome: Outcome | None = None
    error: SpacelessError | None = None
    note: str = ""


Tell = Callable[[Event], None]


def finished(planned: Planned, place: Place) -> Outcome | None:
    """Return the outcome of a trial of which nothing is left to do, or None; what failed is left to do."""
    known = from_first(place.store.outcome(planned.trial))
    left = known is None or known.status == "failed" or from_first(missing_tests(planned, known, place))
    return None if left else known


def attempt(index: int, planned: Planned, place: Place, stop: Stop, tell: Tell) -> Event:
    """Run one trial and its further test schemes unless another command does, tell about it, and return the ending.

    Under several processes on one training an error is raised instead: the others wait for this one, and must be told
    by its end.
    """
    if share().count == 1 and stop() is not None:  # before anything is written: a cluster may have hundreds waiting
        return Event(index, "interrupted")
    try:
        with _claimed_by_all(planned, place) as mine:
            if not mine:
                return Event(index, "held", note=from_first(holder(place.store.folder(planned.trial))))
            if (known := finished(planned, place)) is not None:
                return Event(index, "known", outcome=known)
            tell(Event(index, "started"))
            outcome = run_trial(
                planned.trial, place, stop=stop, progress=lambda now: tell(Event(index, "progress", progress=now)),
                on_evaluation=lambda share: tell(Event(index, "evaluating", share=share)),
            )
            for last in from_first(missing_tests(planned, outcome, place)):
                evaluate_run(
                    place.store.folder(planned.trial), place, shuffle_last=last,
                    repeats=planned.repeats if last else None, stop=stop,
                    progress=lambda share: tell(Event(index, "evaluating", share=share)),
                )
            return Event(index, "finished", outcome=outcome)
    except Interrupted:
        return Event(index, "interrupted")
    except SpacelessError as error:
        if share().count > 1:
            raise
        return Event(index, "failed", error=error)
    except Exception as error:  # one trial out of memory, say, must not end the others
        if share().count > 1:
            raise
        return Event(index, "failed", error=unforeseen(planned.trial, f"{type(error).__name__}: {error}"))


@contextmanager
def _claimed_by_all(planned: Planned, place: Place) -> Iterator[bool]:
    """Claim a trial for all processes of its training: the first one holds the lock."""
    if share().rank:
        yield from_first(False)
        return
    with claimed(place.store.folder(planned.trial)) as mine:
        yield from_first(mine)


def unforeseen(trial: Trial, found: str) -> SpacelessError:
    """Return the error for an attempt that ended in a way that nobody has thought of."""
    return SpacelessError(
        trial.label, found=found[:200], expected="an outcome", cure="mend the cause and run the same command again")


def worth_another_try(error: SpacelessError) -> bool:
    """Tell whether an attempt that failed with `error` may go well the next time: not if the input is at fault."""
    return not isinstance(error, InputError)


def record_failure(planned: Planned, place: Place, error: SpacelessError) -> None:
    """Store the outcome `failed` of a trial, for reports, unless another command works on it or has finished it."""
    with claimed(place.store.folder(planned.trial)) as mine:
        if mine and ((known := place.store.outcome(planned.trial)) is None or known.status == "failed"):
            place.store.begin(planned.trial)
            place.store.finish(Outcome(
                trial=planned.trial, status="failed", error=str(error), versions=versions(),
                started=datetime.now(UTC).isoformat(timespec="seconds"),
            ))
