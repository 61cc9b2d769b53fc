"""Many trials: the finished ones skipped, the others run here or in several local processes."""

from __future__ import annotations

import multiprocessing
import os
import queue
import signal
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, Literal

import torch

from spaceless.distributed import from_first, share
from spaceless.errors import InputError, Interrupted, SpacelessError
from spaceless.estimate import check
from spaceless.paper import Planned
from spaceless.retest import evaluate_run
from spaceless.run import Place, run_trial
from spaceless.signals import caught_signals
from spaceless.studies import Plan
from spaceless.training import Progress
from spaceless.trial import Outcome, Trial

Stop = Callable[[], int | None]
_PATIENCE = 0.2  # seconds between a worker's looks at its parent and the parent's looks at its workers


@dataclass(frozen=True)
class Event:
    """News of the trial with number `index` in the plan."""

    index: int
    kind: Literal["started", "progress", "evaluating", "finished", "known", "failed"]
    progress: Progress | None = None
    share: float = 0.0  # of an evaluation
    outcome: Outcome | None = None
    error: SpacelessError | None = None


@dataclass
class Tally:
    """What a study came to: trials that ran now, that were finished before, and that failed."""

    ran: list[Outcome] = field(default_factory=list)
    known: list[Outcome] = field(default_factory=list)
    failed: list[tuple[Trial, SpacelessError]] = field(default_factory=list)


def run_study(
    plan: Plan, place: Place, *, jobs: int = 1, watch: Callable[[Event], None] | None = None,
    studies: Sequence[Plan] | None = None,
) -> Tally:
    """Run the trials of `plan` that are not finished, and evaluate them under their further test schemes.

    Args:
        plan: What to run, in this order.
        place: Where.
        jobs: Processes; each gets its share of the processor's threads.
        watch: Told about every event.
        studies: What the plan is made of: a `NAME.study.json` is written for each, by which a report knows it. None is
            the plan itself.

    Raises:
        InputError: The plan cannot be run; nothing was written.
        Interrupted: A signal came; states are saved and the same call goes on from there.

    """
    if jobs < 1:
        raise InputError("jobs", found=jobs, expected="at least 1", cure="leave it out")
    mine = share()
    if jobs > 1 and mine.count > 1:
        raise InputError("jobs", found=f"{jobs} under torchrun", expected="1", cure="leave --jobs or torchrun out")
    place.store.check()
    check(plan.planned, place)
    for study in ((plan,) if studies is None else studies) if mine.rank == 0 else ():
        place.store.write_study(study.manifest())
    tally = Tally()
    tell = watch or (lambda _: None)
    todo = []
    for index, planned in enumerate(plan.planned):
        known = from_first(place.store.outcome(planned.trial))
        if known is not None and not _missing(planned, known, place):
            tally.known.append(known)
            tell(Event(index, "known", outcome=known))
        else:
            todo.append(index)

    def note(event: Event) -> None:
        if event.kind == "finished" and event.outcome is not None:
            tally.ran.append(event.outcome)
        elif event.kind == "failed" and event.error is not None:
            tally.failed.append((plan.planned[event.index].trial, event.error))
        tell(event)

    # How many threads add up a sum decides its last bit, so their number follows from `jobs` and not from what is left.
    before = torch.get_num_threads()
    threads = max(1, before // jobs)
    with caught_signals(patient=mine.count > 1) as stop:  # torchrun hands on what a terminal has sent already
        if jobs > 1 and len(todo) > 1:
            _in_processes(plan, place, todo, min(jobs, len(todo)), threads, stop, note)
        else:
            torch.set_num_threads(threads)
            try:
                for index in todo:
                    _one(index, plan.planned[index], place, stop, note)
            finally:
                torch.set_num_threads(before)
    return tally


def _missing(planned: Planned, outcome: Outcome, place: Place) -> list[int]:
    """Return the further test schemes of a trial that are not evaluated yet; one that diverged has none."""
    return from_first([
        last for last in planned.evaluations if outcome.status == "finished"
        and not place.store.evaluation(planned.trial, last, planned.repeats if last else 1).exists()
    ])


def _one(index: int, planned: Planned, place: Place, stop: Stop, tell: Callable[[Event], None]) -> None:
    """Run one trial and its further test schemes, and tell what comes of it; only an interruption is raised."""
    tell(Event(index, "started"))
    try:
        outcome = run_trial(
            planned.trial, place, stop=stop, progress=lambda now: tell(Event(index, "progress", progress=now)),
            on_evaluation=lambda share: tell(Event(index, "evaluating", share=share)),
        )
        for last in _missing(planned, outcome, place):
            evaluate_run(
                place.store.folder(planned.trial), place, shuffle_last=last, repeats=planned.repeats, stop=stop,
                progress=lambda share: tell(Event(index, "evaluating", share=share)),
            )
    except Interrupted:
        raise
    except SpacelessError as error:
        if share().count > 1:  # the other processes wait for this one, and must be told by its end
            raise
        tell(Event(index, "failed", error=error))
    except Exception as error:  # one trial out of memory, say, must not end the others
        if share().count > 1:
            raise
        reason = f"{type(error).__name__}: {error}"[:200]
        tell(Event(index, "failed", error=SpacelessError(
            planned.trial.label, found=reason, expected="an outcome",
            cure="mend the cause and run the same command again",
        )))
    else:
        tell(Event(index, "finished", outcome=outcome))


def _in_processes(
    plan: Plan, place: Place, todo: Sequence[int], jobs: int, threads: int, stop: Stop,
    tell: Callable[[Event], None],
) -> None:
    """Let `jobs` processes take trials from one queue; a signal here is handed on to all of them."""
    context = multiprocessing.get_context("spawn")  # a forked process would inherit torch's threads half-way
    tasks, news = context.Queue(), context.Queue()
    for index in (*todo, *[None] * jobs):  # None: there is nothing left to do
        tasks.put(index)
    arguments = (plan, place, tasks, news, threads, jobs, os.getpid())
    # Not daemons, which may have no processes of their own to decode images.
    workers = [context.Process(target=_work, args=arguments) for _ in range(jobs)]
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})  # inherited: no Ctrl-C tears a worker's imports apart
    for worker in workers:
        worker.start()
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})
    open_trials = set(todo)
    try:
        _follow(workers, news, open_trials, stop, tell)
    finally:  # if it failed, no worker goes on without anyone to tell
        for worker in workers:
            worker.terminate()
    if (signum := stop()) is not None:
        raise Interrupted(signum)
    for index in sorted(open_trials):  # a worker died without a word: killed, or out of memory
        tell(Event(index, "failed", error=_died(plan.planned[index].trial, workers)))


def _follow(
    workers: Sequence[Any], news: Any, open_trials: set[int], stop: Stop, tell: Callable[[Event], None],
) -> None:
    """Tell what the workers report until none is left, striking off `open_trials` what has ended."""
    handed_on = False
    while open_trials:
        alive = any(worker.is_alive() for worker in workers)  # asked first: a worker's last news may still be coming
        try:
            event = news.get(timeout=_PATIENCE)
        except queue.Empty:
            if not alive:
                break
        else:
            tell(event)
            if event.kind in ("finished", "failed"):
                open_trials.discard(event.index)
        if stop() is not None and not handed_on:
            handed_on = True
            for worker in workers:
                if worker.is_alive() and worker.pid is not None:
                    os.kill(worker.pid, signal.SIGTERM)
    while any(worker.is_alive() for worker in workers):  # a process ends only when its last news are fetched
        with suppress(queue.Empty):
            news.get(timeout=_PATIENCE)


def _work(plan: Plan, place: Place, tasks: Any, news: Any, threads: int, jobs: int, parent: int) -> None:
    """Run trials until there are none left, a signal comes or the parent is gone."""
    torch.set_num_threads(threads)
    os.environ["LOCAL_WORLD_SIZE"] = str(jobs)  # as under torchrun: the processors are shared by as many
    last_told = 0.0

    def tell(event: Event) -> None:
        nonlocal last_told
        if event.kind not in ("progress", "evaluating") or time.monotonic() - last_told > _PATIENCE:
            last_told = time.monotonic()
            news.put(event)

    with caught_signals(patient=True) as asked:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})

        def stop() -> int | None:
            return signal.SIGTERM if os.getppid() != parent else asked()

        while stop() is None:
            try:
                index = tasks.get(timeout=_PATIENCE)
            except queue.Empty:
                continue
            if index is None:
                return
            try:
                _one(index, plan.planned[index], place, stop, tell)
            except Interrupted:
                return


def _died(trial: Trial, workers: Sequence[Any]) -> SpacelessError:
    codes = sorted({worker.exitcode for worker in workers if worker.exitcode})
    return SpacelessError(
        trial.label, found=f"a worker process that ended with status {codes}", expected="an outcome",
        cure="run the same command again, with fewer --jobs if memory ran out",
    )
