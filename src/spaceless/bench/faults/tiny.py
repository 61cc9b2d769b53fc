"""The study that is tormented: trials of a network of two convolutions on made images, each over in a second or two.

`python -m spaceless.bench.faults.tiny OUT` runs it; the same command goes on where it was stopped.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from spaceless.attempts import Event
from spaceless.bench.faults.tiny_trials import timeless, tiny
from spaceless.cluster import Cluster
from spaceless.errors import Interrupted
from spaceless.paper import Planned
from spaceless.run import Place
from spaceless.store import OUTCOME, read_outcome
from spaceless.studies import Plan
from spaceless.study import run_study
from spaceless.trial import RECIPES, Outcome

_CHANGES: tuple[dict[str, Any], ...] = (
    {}, {"method": "shuffle", "k": 1}, {"method": "conv1x1", "k": 2}, {"method": "gap_fc", "k": 1})


def plan(trials: int = 4, epochs: int = 40, images: int = 64) -> Plan:
    """Return a study of so many trials of so many epochs of 64 images (or more), four kinds of network in turn."""
    recipe = RECIPES["control"].model_copy(update={"epochs": epochs, "batch_size": 16, "precision": "fp32"})
    made = [
        tiny(train_images=images, recipe=recipe, seed=number // len(_CHANGES), **_CHANGES[number % len(_CHANGES)])
        for number in range(trials)
    ]
    return Plan("tiny", "Tiny", "-", "spaceless bench faults", tuple(Planned(trial=each) for each in made))


def outcomes(out: Path) -> dict[str, Outcome]:
    """Return the outcomes under `out` by the identities of their trials; a damaged one is an InputError."""
    return {path.parent.name: read_outcome(path) for path in sorted(out.glob(f"*/{OUTCOME}"))}


def fingerprint(outcome: Outcome) -> str:
    """Return the SHA-256 of everything in an outcome, the weights' among it, but what clocks have told."""
    return hashlib.sha256(json.dumps(timeless(outcome), sort_keys=True).encode()).hexdigest()


def fingerprints(out: Path) -> dict[str, str]:
    """Return those of all outcomes under `out`."""
    return {name: fingerprint(outcome) for name, outcome in outcomes(out).items()}


def start(out: Path, *words: str, variables: Mapping[str, str] | None = None) -> subprocess.Popen[str]:
    """Start the study in a process group of its own; one line, `begun`, comes from it when its first trial begins.

    `variables` are added to its environment.
    """
    command = [sys.executable, "-m", "spaceless.bench.faults.tiny", str(out), *words]
    return subprocess.Popen(  # noqa: S603
        command, start_new_session=True, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        env=os.environ | {"OMP_NUM_THREADS": "1"} | dict(variables or {}))


def main(words: list[str] | None = None) -> None:
    """Run the study; the exit status is that of the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("out", type=Path)
    parser.add_argument("--jobs", type=int, default=1)
    parser.add_argument("--trials", type=int, default=4)
    parser.add_argument("--epochs", type=int, default=40)
    parser.add_argument("--images", type=int, default=64)
    parser.add_argument("--ray")
    asked = parser.parse_args(words)
    torch.set_num_threads(1)
    begun = False

    def watch(event: Event) -> None:
        nonlocal begun
        if event.kind == "started" and not begun:
            begun = True
            print("begun", flush=True)
        if event.kind == "failed":
            print(event.error, file=sys.stderr)

    # A state after every epoch, so that there is something to go on from.
    place = Place(asked.out, device="cpu", save_seconds=0)
    try:
        tally = run_study(
            plan(asked.trials, asked.epochs, asked.images), place, jobs=asked.jobs, threads=1, watch=watch,
            cluster=None if asked.ray is None else Cluster(asked.ray))
    except Interrupted as error:
        print(error, file=sys.stderr)
        sys.exit(error.exit_status)
    sys.exit(1 if tally.failed else 0)


if __name__ == "__main__":
    main()
