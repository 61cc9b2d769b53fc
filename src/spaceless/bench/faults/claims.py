"""Many processes on the same trials, and one that dies with its claim held."""

from __future__ import annotations

import multiprocessing
import os
import random
import signal
import tempfile
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

from spaceless.attempts import Event
from spaceless.bench.faults.tiny import plan as tiny_plan
from spaceless.claims import claimed
from spaceless.dispatch import dispatch
from spaceless.run import Place
from spaceless.store import OUTCOME
from spaceless.studies import Plan
from spaceless.trial import Outcome

TITLE = "several processes on one folder of trials, each to be run by one of them; one is killed with its claim held"
_DIARY = "runs.txt"


class Instantly:
    """Hands whose trials do nothing but write down, in one line each, that they were run."""

    def __init__(self, plan: Plan, place: Place, hold: Callable[[], None] = lambda: None) -> None:
        """Take what an attempt takes, and what to do while a trial is held."""
        self.plan, self.place, self.hold = plan, place, hold
        self.given: list[int] = []

    def room(self) -> bool:
        """Tell whether one more trial may be given."""
        return not self.given

    def give(self, index: int) -> None:
        """Take on a trial."""
        self.given.append(index)

    def endings(self, _patience: float) -> list[Event]:
        """Run the trial at hand as `attempts.attempt` does: claim, look, run, store."""
        if not self.given:
            return []
        index = self.given.pop()
        trial, store = self.plan.planned[index].trial, self.place.store
        with claimed(store.folder(trial)) as mine:
            if not mine:
                return [Event(index, "held")]
            if (known := store.outcome(trial)) is not None:
                return [Event(index, "known", outcome=known)]
            with (self.place.out / _DIARY).open("a", encoding="ascii") as diary:  # one short line: appended whole
                diary.write(f"{trial.id}\n")
            self.hold()
            outcome = Outcome(trial=trial, status="finished")
            store.finish(outcome)
            return [Event(index, "finished", outcome=outcome)]

    def interrupt(self) -> None:
        """Do nothing: nobody asks these to end."""


def work(plan: Plan, place: Place, seed: int, hold: Callable[[], None] = lambda: None) -> None:
    """Do all trials of a plan that nobody else does, in an order of our own."""
    order = list(range(len(plan.planned)))
    random.Random(seed).shuffle(order)  # noqa: S311
    dispatch(plan, place, order, Instantly(plan, place, hold), lambda: None, lambda _: None, 0)


def run(
    progress: Callable[[str], None], *, seed: int = 0, workers: int = 8, trials: int = 200, rounds: int = 20,
) -> dict[str, Any]:
    """Let so many processes loose on so many trials, so often, and count how often each trial was run."""
    context = multiprocessing.get_context("fork")  # nothing is computed in them
    plan = tiny_plan(trials)
    counts: Counter[str] = Counter()
    failing: list[str] = []
    for number in range(rounds):
        with tempfile.TemporaryDirectory() as folder:
            place = _place(folder)
            processes = [context.Process(target=work, args=(plan, place, seed + workers * number + each))
                         for each in range(workers)]
            _all(processes)
            ran = _diary(place)
            counts["run exactly once"] += sum(times == 1 for times in ran.values())
            counts["run more than once"] += sum(times > 1 for times in ran.values())
            counts["outcomes stored"] += len(list(place.out.glob(f"*/{OUTCOME}")))
            counts["claims left behind"] += len(list(place.out.glob("*/.claim")))
        progress(f"round {number + 1} of {rounds}: {counts['run exactly once']} run exactly once")
    whole = trials * rounds
    takeovers, again = _killed_with_its_claim(context, workers, seed)
    if counts["run exactly once"] != whole or counts["outcomes stored"] != whole:
        failing.append(f"{whole - counts['run exactly once']} of {whole} not run exactly once")
    if counts["claims left behind"]:
        failing.append(f"{counts['claims left behind']} claims left behind")
    if (takeovers, again) != (1, 1):
        failing.append(f"the claim of a dead process was taken over {takeovers} times")
    return {
        "what": f"{workers} processes, each on all {trials} trials in an order of its own, {rounds} times; then one is "
        "killed while it holds a claim and the others come for it.",
        "counts": {
            "processes": workers, "trials": whole, **{name: counts[name] for name in (
                "run exactly once", "run more than once", "outcomes stored", "claims left behind")},
            "claims of a killed process taken over": takeovers,
        },
        "failing": failing,
    }


def _killed_with_its_claim(context: Any, workers: int, seed: int) -> tuple[int, int]:
    """Return how often the trial of a process that was killed holding it was run again, and outcomes stored."""
    plan = tiny_plan(1)
    with tempfile.TemporaryDirectory() as folder:
        place = _place(folder)
        holding = context.Event()

        def hang() -> None:
            holding.set()
            signal.pause()

        first = context.Process(target=work, args=(plan, place, seed, hang))
        first.start()
        holding.wait(60)
        others = [context.Process(target=work, args=(plan, place, seed + each)) for each in range(1, workers)]
        for process in others:
            process.start()
        os.kill(first.pid, signal.SIGKILL)
        first.join()
        for process in others:
            process.join()
        return _diary(place).total() - 1, len(list(place.out.glob(f"*/{OUTCOME}")))


def _place(folder: str) -> Place:
    return Place(Path(folder))


def _all(processes: list[Any]) -> None:
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    if codes := [process.exitcode for process in processes if process.exitcode]:
        raise RuntimeError(f"processes ended with {codes}")


def _diary(place: Place) -> Counter[str]:
    path = place.out / _DIARY
    return Counter(path.read_text(encoding="ascii").split()) if path.exists() else Counter()
