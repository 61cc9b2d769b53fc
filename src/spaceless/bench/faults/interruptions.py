"""SIGINT, SIGTERM and SIGUSR1 at any moment of a study."""

from __future__ import annotations

import os
import random
import signal
import statistics
import subprocess
import tempfile
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

from spaceless.bench.faults.tiny import start

TITLE = "SIGINT, SIGTERM and SIGUSR1 to a running study: exit status, time, and what is left running"
SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)
_MOMENTS = 2.0  # seconds in which what multiprocessing keeps beside its workers finds out that they are gone
_SOON = 5.0  # seconds in which a study has to end; its steps take milliseconds


def run(progress: Callable[[str], None], *, seed: int = 0, each: int = 30) -> dict[str, Any]:
    """Send each signal so often, to a study of one process and of two workers in turn, and go on with the same folder.

    SIGINT goes to the whole group, as a terminal sends it; the others to the first process alone, as a scheduler does.
    """
    source = random.Random(seed)  # noqa: S311
    failing: list[str] = []
    right = orphans = resumed = 0
    times: list[float] = []
    with tempfile.TemporaryDirectory() as folder:
        for number in range(each):
            for kind in SIGNALS:
                jobs = 1 + number % 2
                label = f"{kind.name} number {number + 1} with {jobs} jobs"
                out = Path(folder, f"jobs-{jobs}")
                process = start(out, "--epochs", "1000000", "--jobs", str(jobs))
                assert process.stdout is not None
                if process.stdout.readline() != "begun\n":
                    failing.append(f"{label}: {process.communicate()[1][-300:]}")
                    continue
                time.sleep(source.uniform(0, 0.5))
                states = _newest(out)
                began = time.monotonic()
                os.killpg(process.pid, kind) if kind is signal.SIGINT else process.send_signal(kind)
                with suppress(subprocess.TimeoutExpired):
                    process.wait(10 * _SOON)
                times.append(time.monotonic() - began)
                left = _left(process.pid)
                with suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGKILL)
                process.communicate()
                orphans += len(left)
                right += process.returncode == 128 + kind
                resumed += _newest(out) >= max(states, 1)
                if process.returncode != 128 + kind or times[-1] > _SOON or left:
                    failing.append(f"{label}: status {process.returncode} after {times[-1]:.1f} s, {len(left)} left")
            progress(f"{number + 1} of {each} of each: {right} ended with the right status")
    whole = each * len(SIGNALS)
    if resumed != whole:
        failing.append(f"{whole - resumed} times no state was saved")
    return {
        "what": "A signal up to half a second after the first trial has begun, to a study of one process or of two "
        f"workers in turn; the next one goes on from its states. Moments from seed {seed}.",
        "counts": {
            "signals": whole, "right exit status (128 + the signal's number)": right,
            f"ended within {_SOON:g} s": sum(taken <= _SOON for taken in times),
            "seconds until the end, median": round(statistics.median(times), 3) if times else 0.0,
            "seconds until the end, longest": round(max(times, default=0.0), 3),
            "processes left running": orphans, "states saved": resumed,
        },
        "failing": failing,
    }


def _newest(out: Path) -> int:
    """Return the highest step of a stored state."""
    return max((int(path.stem.removeprefix("state-")) for path in out.glob("*/states/state-*.json")), default=0)


def _left(leader: int) -> list[int]:
    """Return the processes of a group that do not end within moments of their leader."""
    end = time.monotonic() + _MOMENTS
    while (found := _group(leader)) and time.monotonic() < end:
        time.sleep(0.05)
    return found


def _group(leader: int) -> list[int]:
    """Return the processes of a group that have not ended."""
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with suppress(OSError):
            state, _, group = stat.read_text(encoding="utf-8").rsplit(")", 1)[1].split()[:3]
            if int(group) == leader and state != "Z":
                found.append(int(stat.parent.name))
    return found
