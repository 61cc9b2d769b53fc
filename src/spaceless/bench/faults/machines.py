"""A Ray cluster of a head and two workers, as the documentation says to start it, one of which is killed."""

from __future__ import annotations

import json
import os
import secrets
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from spaceless.bench.faults.tiny import fingerprints, outcomes, start
from spaceless.store import OUTCOME

TITLE = "a study on a Ray cluster of a head and two workers, one of which is killed on the way"
_PATIENCE = 240.0  # seconds for anything that is waited for


def run(
    progress: Callable[[str], None], *, seed: int = 0, trials: int = 24, epochs: int = 60,  # noqa: ARG001
) -> dict[str, Any]:
    """Run so many trials on a cluster, kill a worker when a third of them is done, and compare with `--jobs 1`."""
    size = ("--trials", str(trials), "--epochs", str(epochs))
    with tempfile.TemporaryDirectory() as folder:
        alone, together = Path(folder, "alone"), Path(folder, "together")
        _ended(start(alone, *size))
        progress(f"{trials} trials run by one process")
        # Its own token, whatever is on this machine: with a token in the user's folder Ray's commands do not agree.
        token = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32)}
        with cluster(token) as (address, workers):
            process = start(together, *size, "--ray", address, variables=token)
            killed_at = _wait(process, together, trials // 3)
            os.killpg(workers[0].pid, signal.SIGKILL)
            progress(f"a worker killed with {killed_at} of {trials} trials finished")
            _ended(process)
        expected, found = fingerprints(alone), fingerprints(together)
        processes = {outcome.processes for outcome in outcomes(together).values()}
    same = sum(found.get(name) == digest for name, digest in expected.items())
    failing = [] if same == len(expected) == len(found) == trials else [
        f"{same} of {trials} outcomes equal to those of one process, {len(found)} stored"]
    return {
        "what": f"{trials} trials of {epochs} epochs on a cluster of a head without processors for trials and two "
        "workers with one each, all on this machine; the worker's whole process group is killed. Outcomes are compared "
        "by the SHA-256 of all that is in them but clocks.",
        "counts": {
            "trials": trials, "finished when a worker was killed": killed_at, "outcomes": len(found),
            "equal to those of one process": same, "processes of each trial": max(processes, default=0),
        },
        "failing": failing,
    }


@contextmanager
def cluster(
    variables: Mapping[str, str], workers: int = 2,
) -> Iterator[tuple[str, list[subprocess.Popen[bytes]]]]:
    """Start a head and workers on this machine by `ray start`; give the address and the workers' process groups.

    `variables` are added to their environment.
    """
    ray = str(Path(sys.executable).with_name("ray"))
    port = _free_port()
    address = f"127.0.0.1:{port}"
    with tempfile.TemporaryDirectory(prefix="ray") as notes:
        words = ["--disable-usage-stats", "--block"]
        head = ["--head", f"--port={port}", "--num-cpus=0", "--include-dashboard=false", f"--temp-dir={notes}"]
        member = [f"--address={address}", "--num-cpus=1"]
        started: list[subprocess.Popen[bytes]] = []
        try:
            for number, role in enumerate((head, *[member] * workers)):
                said = Path(notes, f"start-{number}.txt")
                with said.open("w") as file:
                    started.append(subprocess.Popen(  # noqa: S603
                        [ray, "start", *role, *words], start_new_session=True, stdout=file, stderr=file,
                        env=os.environ | {"OMP_NUM_THREADS": "1"} | dict(variables)))
                _up(started[-1], said)  # several that start at once on one machine can block one another
            yield address, started[1:]
        finally:
            for process in reversed(started):
                with suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGKILL)
                process.wait()


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _up(process: subprocess.Popen[bytes], said: Path) -> None:
    """Wait until `ray start`, which writes to `said`, has started."""
    end = time.monotonic() + _PATIENCE
    while "Ray runtime started" not in (text := said.read_text(encoding="utf-8")):
        if process.poll() is not None or time.monotonic() > end:
            raise RuntimeError(f"`ray start` came to: {text[-500:]}")
        time.sleep(0.1)


def _wait(process: subprocess.Popen[str], out: Path, count: int) -> int:
    """Wait until so many trials are finished."""
    end = time.monotonic() + _PATIENCE
    while (done := len(list(out.glob(f"*/{OUTCOME}")))) < count:
        if process.poll() is not None or time.monotonic() > end:
            raise RuntimeError(f"the study on the cluster came to {done} trials: {process.communicate()[1][-500:]}")
        time.sleep(0.1)
    return done


def _ended(process: subprocess.Popen[str]) -> None:
    try:
        _, errors = process.communicate(timeout=2 * _PATIENCE)
    except subprocess.TimeoutExpired:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        errors = process.communicate()[1] + "\ntook too long"
    if process.returncode:
        raise RuntimeError(f"a study ended with {process.returncode}: {json.dumps(errors[-800:])}")
