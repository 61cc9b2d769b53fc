"""Damaged data sets and training files, many thousands: whatever a file says, a reader reads it or says what is wrong.

Every set is read in a child process, so that one that dies of a file is noticed, and the file named. Promised is: no
code in a file is executed, every refusal is an error in the tool's form, memory and time are bounded, and what is
accepted is well-formed.
"""

from __future__ import annotations

import multiprocessing
import os
import shutil
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import dataclass, field
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from typing import Any

from spaceless.bench.faults.data_forms import DATA
from spaceless.bench.faults.form import Form
from spaceless.bench.faults.sandbox import Begun, Ended, Limits, work
from spaceless.bench.faults.training_forms import TRAINING

TITLE = "damaged data sets, weights, states and records through their readers"
FORMS = (*DATA, *TRAINING)
LIMITS = Limits(memory=1 << 30, seconds=10.0)
FAULTS = (
    "code executed", "process killed", "other exception", "a message that is none", "too much memory", "too slow",
    "malformed result", "unfit to begin",
)
_START = 120.0  # seconds that a process may take until it reads
_GRACE = 5.0  # seconds beyond the limit, after which a process is killed
_MOST_STARTS = 100  # of one child's share: what kills or bloats as many processes needs no more proof


@dataclass
class _Child:
    """One process with its share of the mutations; it is started again behind what killed it."""

    numbers: Sequence[int]
    process: BaseProcess
    connection: Connection
    starts: int = 1
    heard: float = field(default_factory=time.monotonic)
    begun: Begun | None = None


def run(
    progress: Callable[[str], None], *, seed: int = 0, mutations: int = 100_000, jobs: int | None = None,
    forms: Sequence[Form] = FORMS, limits: Limits = LIMITS,
) -> dict[str, Any]:
    """Read `mutations` damaged sets of all `forms` by `jobs` processes and return what became of them.

    Args:
        progress: Is told now and then how far it is.
        seed: With a mutation's number it decides everything about it; both are named in what fails.
        mutations: How many.
        jobs: Processes; None: one for each processor.
        forms: What is damaged, how it is read.
        limits: Of memory and time for one set.

    Returns:
        `what` was done, `counts` in words, and `failing`: one text for each broken promise.

    """
    count = min(jobs or os.cpu_count() or 1, mutations)
    seen: Counter[str] = Counter()
    failing: list[str] = []
    slowest, growth, done = 0.0, 0, 0
    shares = [range(first, mutations, count) for first in range(count)]
    for told in _results(shares, forms, seed, limits):
        if isinstance(told, str):
            seen["unfit to begin"] += 1
            failing.append(told)
            continue
        begun, ended = told
        done += 1
        slowest, growth = max(slowest, ended.seconds), max(growth, ended.growth)
        seen[f"{ended.form}: {'accepted' if ended.accepted else 'refused'}"] += 1
        if ended.fault:
            seen[ended.fault] += 1
            failing.append(f"{ended.form}, mutation {ended.number} of seed {seed} ({begun.what}): "
                           f"{ended.fault}: {ended.detail}")
        if done % 2000 == 0 or done == mutations:
            progress(f"{done:,} of {mutations:,} damaged sets read, {len(failing):,} broken promises")
    if done < mutations:
        failing.append(f"{mutations - done:,} mutations were given up: too many processes died")
    counts: dict[str, Any] = {"mutations": done}
    for form in forms:
        refused, accepted = (seen[f"{form.name}: {kind}"] for kind in ("refused", "accepted"))
        counts |= {f"{form.name}: mutated": refused + accepted, f"{form.name}: refused": refused,
                   f"{form.name}: accepted": accepted}
    counts |= {fault: seen[fault] for fault in FAULTS}
    counts |= {"largest growth of memory, MB": round(growth / 1e6), "slowest set, seconds": round(slowest, 2)}
    what = (f"{mutations:,} seeded mutations of valid files read in child processes; at most "
            f"{limits.memory / 1e6:,.0f} MB more memory and {limits.seconds:g} s for each")
    return {"what": what, "counts": counts, "failing": failing}


def _results(
    shares: Sequence[Sequence[int]], forms: Sequence[Form], seed: int, limits: Limits,
) -> Iterator[tuple[Begun, Ended] | str]:
    """Yield what became of each mutation, or what is wrong with a sound set, as it comes."""
    context = multiprocessing.get_context("spawn")
    room = tempfile.mkdtemp(prefix="spaceless-faults-")

    def started(numbers: Sequence[int], starts: int = 1) -> _Child:
        ours, theirs = context.Pipe(duplex=False)
        process = context.Process(target=work, args=(theirs, tuple(forms), seed, numbers, limits, room), daemon=True)
        process.start()
        theirs.close()
        return _Child(numbers, process, ours, starts)

    children: list[_Child] = []
    refused: set[str] = set()
    try:
        children += map(started, shares)
        while children:
            ready = wait([child.connection for child in children], timeout=1.0)
            for child in list(children):
                if child.connection in ready:
                    dead = yield from _heard(child, refused)
                else:
                    allowed = limits.seconds + _GRACE if child.begun else _START
                    dead = time.monotonic() - child.heard > allowed
                    if dead:
                        child.process.kill()
                if not dead:
                    continue
                children.remove(child)
                child.process.join()
                child.connection.close()
                if child.begun is not None:
                    yield child.begun, _killed(child, limits)
                    child.numbers = child.numbers[1:]
                elif child.process.exitcode != 0:  # not of a file that it read: nothing more is to be learnt from it
                    yield f"a process ended before it read: exit status {child.process.exitcode}"
                    continue
                if child.numbers and child.starts < _MOST_STARTS:
                    children.append(started(child.numbers, child.starts + 1))
    finally:
        for child in children:
            child.process.kill()
            child.process.join()
        shutil.rmtree(room, ignore_errors=True)


def _heard(child: _Child, refused: set[str]) -> Generator[tuple[Begun, Ended] | str, None, bool]:
    """Take one message; yield what it says that others must know, and return whether the process is gone."""
    try:
        message = child.connection.recv()
    except (EOFError, ConnectionError):
        return True
    child.heard = time.monotonic()
    if isinstance(message, Begun):
        child.begun = message
    elif isinstance(message, Ended):
        assert child.begun is not None
        yield child.begun, message
        child.begun, child.numbers = None, child.numbers[1:]
    else:
        for text in set(message) - refused:
            refused.add(text)
            yield text
    return False


def _killed(child: _Child, limits: Limits) -> Ended:
    """Return the end of a set whose reading ended its process: by itself, or because it took for ever."""
    assert child.begun is not None
    seconds = time.monotonic() - child.heard
    fault, detail = "process killed", f"exit status {child.process.exitcode}"
    if seconds > limits.seconds:
        fault, detail = "too slow", f"killed after {seconds:.0f} s"
    return Ended(child.begun.number, child.begun.form, False, fault, detail, seconds, 0)
