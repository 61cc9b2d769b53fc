"""SIGKILL at any moment, and the same command again."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import tempfile
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

from spaceless.bench.faults.tiny import fingerprints, start
from spaceless.store import OUTCOME

TITLE = "SIGKILL to the process group of a study at random moments, and the same command again each time"
_LONGEST = 300.0  # seconds that a study may take that nobody kills


def run(
    progress: Callable[[str], None], *, seed: int = 0, kills: int = 50, trials: int = 4, epochs: int = 100,
) -> dict[str, Any]:
    """Kill a study again and again, let it end, and compare it with one that was left alone.

    Half of the lives have one process, half have two workers. One in four is killed while it starts, the others
    while they train, test and store.
    """
    source = random.Random(seed)  # noqa: S311
    size = ("--trials", str(trials), "--epochs", str(epochs))
    failing: list[str] = []
    hit = repeated = lost = 0
    with tempfile.TemporaryDirectory() as folder:
        whole, broken = Path(folder, "whole"), Path(folder, "broken")
        # Long enough on average that the lives together come to most of the work, but not to all of it.
        longest = 2 * _finish(whole, size) / kills
        before: dict[str, tuple[int, int]] = {}
        for number in range(kills):
            process = start(broken, *size, "--jobs", str(1 + number % 2))
            early = source.random() < 0.25
            if not early and process.stdout is not None:
                process.stdout.readline()  # `begun`, or nothing if all trials are finished
            moment = source.uniform(0, 3.0 if early else longest)
            end = time.monotonic() + moment
            # At the latest when one more trial is finished: no life does all of the work, however fast the machine is.
            while process.poll() is None and time.monotonic() < end and len(_finished(broken)) <= len(before):
                time.sleep(0.005)
            hit += process.poll() is None
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.communicate()
            now = _finished(broken)
            lost += len(before.keys() - now.keys())
            repeated += sum(now[name] != stamp for name, stamp in before.items() if name in now)
            before = now
            progress(f"killed {number + 1} of {kills}: {len(now)} of {trials} trials finished")
        interrupted = len(before)
        _finish(broken, size)
        now = _finished(broken)
        repeated += sum(now.get(name) != stamp for name, stamp in before.items())
        expected, found = fingerprints(whole), fingerprints(broken)
    lost += len(expected.keys() - found.keys())
    different = sum(found.get(name) != digest for name, digest in expected.items())
    failing += [f"{count} trials {what}" for count, what in (
        (lost, "lost"), (repeated, "run again though finished"), (different, "with another outcome")) if count]
    if not hit:
        failing.append("no study was alive when it was to be killed")
    return {
        "what": f"{trials} trials of {epochs} epochs with a state after every one; moments from seed {seed}. Outcomes "
        "are compared by the SHA-256 of all that is in them, weights and metrics included, but clocks.",
        "counts": {
            "kills": kills, "of these while the study ran": hit, "trials": trials,
            "finished before the last kill": interrupted, "lost": lost, "repeated": repeated,
            "identical to the uninterrupted run": len(expected) - different,
        },
        "failing": failing,
    }


def _finish(out: Path, size: tuple[str, ...]) -> float:
    """Run the study to its end and return the seconds from the beginning of its first trial on."""
    process = start(out, *size)
    assert process.stdout is not None
    process.stdout.readline()
    began = time.monotonic()
    try:
        _, errors = process.communicate(timeout=_LONGEST)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        _, errors = process.communicate()
    if process.returncode:
        raise RuntimeError(f"a study that nobody interrupts ended with {process.returncode}: {errors[-500:]}")
    return time.monotonic() - began


def _finished(out: Path) -> dict[str, tuple[int, int]]:
    """Return what tells of each stored outcome whether it has been written again: its file's number and time."""
    stats = {path.parent.name: path.stat() for path in out.glob(f"*/{OUTCOME}")}
    return {name: (stat.st_ino, stat.st_mtime_ns) for name, stat in stats.items()}
