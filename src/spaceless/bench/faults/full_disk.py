"""A disk that is full from some write of a study on: no file is corrupt, and with room again the study completes."""

from __future__ import annotations

import resource
import shutil
import signal
import tempfile
from collections import Counter
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError
from safetensors.torch import load_file

from spaceless.bench.faults.operations import Operation, intercepted, listed
from spaceless.bench.faults.tiny_trials import (
    FOUR,
    get_ready,
    in_child,
    owner,
    place,
    state_and_complaints,
    study,
    timeless,
)
from spaceless.errors import SpacelessError
from spaceless.rows import load
from spaceless.store import WEIGHTS, Store, read_trial
from spaceless.study import run_study

TITLE = "A limit of the size of files, hit in the middle of a write"


def run(progress: Callable[[str], None], *, seed: int = 0, points: int = 20) -> dict[str, Any]:
    """Run a study of four tiny trials with a limit that bites within one of its writes and stays, then without it.

    Args:
        progress: Told about what comes next.
        seed: Of the choice of the writes.
        points: How many of them, spread over the whole study.

    """
    counts: Counter[str] = Counter()
    failing: list[str] = []
    get_ready()
    with tempfile.TemporaryDirectory() as folder:
        whole, here = Path(folder, "whole"), Path(folder, "here")
        status, told = in_child(lambda: " ".join(str(op.number) for op in listed(
            lambda: run_study(study(), place(whole))) if op.name == "write"))
        assert status == 0, "the study without a limit"
        reference = _outcomes(whole)
        writes = [int(number) for number in told.split()]
        counts["writes of the study"] = len(writes)
        parts = np.array_split(writes, min(points, len(writes)))
        rng = np.random.default_rng(seed)
        for index, number in enumerate(int(rng.choice(part)) for part in parts):
            where = f"full from write {writes.index(number) + 1} on"
            progress(f"{where}, of {len(writes)}: point {index + 1} of {len(parts)}")
            counts["points"] += 1
            status, said = in_child(partial(_limited, here, number))
            told_so = status == 0 and "File too large" in said
            counts["ended with an error that says so"] += told_so
            if not told_so:
                failing.append(f"{where}: status {status}, said {said or 'nothing'}")
            looked, corrupt = _corrupt(here)
            counts["files looked at"] += looked
            counts["corrupt files"] += len(corrupt)
            failing += [f"{where}: {each}" for each in corrupt]
            status, _ = in_child(lambda: str(run_study(study(), place(here)).failed))
            same = status == 0 and _outcomes(here) == reference
            counts["completed with room again, outcomes identical"] += same
            if not same:
                failing.append(f"{where}: with room again, status {status} and not the same outcomes")
            shutil.rmtree(here)
    return {"what": _WHAT, "counts": dict(counts), "failing": failing}


def _limited(root: Path, number: int) -> str:
    """Run the study with files limited to half of its write of this number, from then on; return what it says."""
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)  # the write fails then, as on a full disk

    def meet(operation: Operation) -> Any:
        if operation.number == number:
            _, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
            resource.setrlimit(resource.RLIMIT_FSIZE, (len(operation.arguments[1]) // 2, hard))
        return operation.do()

    try:
        with intercepted(meet):
            failed = run_study(study(), place(root)).failed
    except SpacelessError as error:
        return str(error)
    return "; ".join(str(error) for _, error in failed)


def _outcomes(root: Path) -> dict[str, dict[str, Any]]:
    return {each.trial.id: timeless(each) for each in load([root])[0]}


def _corrupt(root: Path) -> tuple[int, list[str]]:
    """Return how many files there are, and what is wrong with any: half a file, or a temporary one that was left."""
    files = [path for path in root.rglob("*") if path.is_file()]
    found = [f"{path.name} was left" for path in files if path.suffix == ".tmp"]
    found += [f"{problem.where}: {problem.text}" for problem in load([root])[2] if Path(problem.where).is_file()]
    for trial in FOUR:
        folder = Store(root).folder(trial)
        try:
            if (folder / "trial.json").exists():
                read_trial(folder)
            if (folder / WEIGHTS).exists():
                load_file(folder / WEIGHTS)
        except (SpacelessError, SafetensorError) as error:
            found.append(f"{folder.name}: {error}")
        found += state_and_complaints(Store(root).states(trial), owner(trial))[1]
    return len(files), found


_WHAT = """\
A limit of the size of files (RLIMIT_FSIZE) is set within one of the writes of a study to half of what is written, and
stays: the write is cut short and the next one fails, as on a full disk. Looked at are all files that are there then.
Afterwards the same study runs without a limit; outcomes are compared with those of a study that never had one, without
times."""
