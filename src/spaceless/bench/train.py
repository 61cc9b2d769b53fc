"""`spaceless bench train`: images per second of our training against the loop that a user would write."""

from __future__ import annotations

import json
import math
import os
import statistics
import subprocess
import sys
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from spaceless.bench.plain import WORKERS
from spaceless.bench.record import made_by
from spaceless.bench.subjects import BATCH, CLASSES, QUARTER_VGG, RESNET, VGG, Network
from spaceless.bench.verdicts import Target, line, measurement, page, ratio, table
from spaceless.errors import SpacelessError

SECONDS = 12.0  # that each side of each case is measured for, in rounds
ROUND, LEAST_ROUNDS = 4.0, 3
ALLOCATOR = ("MALLOC_", "LD_PRELOAD")  # how the names of variables begin that change the allocator


class Case(NamedTuple):
    """A network, what is promised of it, and further words for the worker."""

    network: Network
    target: Target | None = None
    words: tuple[str, ...] = ()


CASES = (
    Case(QUARTER_VGG, Target(least=2.6, moonshot=3.2)),
    Case(VGG, Target(least=2.2, moonshot=2.8)),
    Case(RESNET, Target(least=3.8, moonshot=4.5)),
)


def run(seconds: float, progress: Callable[[str], None], cases: Sequence[Case] = CASES) -> dict[str, Any]:
    """Return images per second of both sides, each in a process of its own, and what one is of the other.

    Raises:
        SpacelessError: A side failed.

    """
    found = []
    for case in cases:
        rounds = max(LEAST_ROUNDS, math.ceil(seconds / ROUND))
        sides = [(_side("plain", case, min(seconds, ROUND)), _side("ours", case, min(seconds, ROUND)))
                 for _ in range(rounds)]
        plain, ours = zip(*sides, strict=True)
        times = {"plain": [_seconds_per_image(each) for each in plain],
                 "ours": [_seconds_per_image(each) for each in ours]}
        found.append(measurement(
            case.network.label, times, [ratio(times, "plain", "ours", case.target)],
            images_per_second={"plain": _median_speed(times["plain"]), "ours": _median_speed(times["ours"])},
            precision={"plain": plain[0]["precision"], "ours": ours[0]["precision"]}, batch=ours[0]["batch"],
            image_size=case.network.size, sides={"plain": plain, "ours": ours},
        ))
        progress(line(found[-1]))
    return {
        "what": _WHAT, "seconds": seconds, "shape": [BATCH, 3, 32, 32], "classes": CLASSES, "unit": "seconds per image",
        "measurements": found,
    }


def _seconds_per_image(side: dict[str, Any]) -> float:
    return float(side["seconds"] / (side["steps"] * side["batch"]))


def _median_speed(seconds: Sequence[float]) -> float:
    return round(1 / statistics.median(seconds), 1)


def _side(side: str, case: Case, seconds: float) -> dict[str, Any]:
    return in_worker(side, case.network, seconds, case.words)


def in_worker(side: str, network: Network, seconds: float, words: Sequence[str] = ()) -> dict[str, Any]:
    """Return what `spaceless.bench.train_worker` measures in a process of its own.

    Raises:
        SpacelessError: It failed.

    """
    words = [side, network.model, f"{network.width:g}", f"{seconds:g}", *words]
    command = [sys.executable, "-m", "spaceless.bench.train_worker", *words, "--size", str(network.size)]
    done = subprocess.run(  # noqa: S603
        command, env=environment(), capture_output=True, text=True, check=False)
    try:
        done.check_returncode()
        return dict(json.loads(done.stdout))
    except (subprocess.CalledProcessError, ValueError) as error:
        raise SpacelessError(
            f"training {' '.join(words)}", found=(done.stderr.strip().splitlines() or [str(error)])[-1][:200],
            expected="one line of JSON", cure=f"run it alone: {' '.join(['python', *command[1:]])}",
        ) from error


def environment() -> dict[str, str]:
    """Return the variables that both sides run with: none that changes the allocator; ours asks for its own."""
    return {name: value for name, value in os.environ.items() if not name.startswith(ALLOCATOR)}


def markdown(record: dict[str, Any]) -> str:
    """Return the page of a record."""
    speeds = ["| network | plain, images/s | ours, images/s | our precision |", "|---|---|---|---|"]
    speeds += [
        f"| {each['case']} | {each['images_per_second']['plain']:,.0f} | {each['images_per_second']['ours']:,.0f} | "
        f"{each['precision']['ours']} |" for each in record["measurements"]
    ]
    return page(record, "Training against the plain loop", made_by(record), table(record["measurements"]), speeds)


_WHAT = f"""\
Seconds per image of a training step, input included, batch {BATCH}, 32x32 pixels, {CLASSES} classes. *plain*: eager
fp32, torchvision's transforms on PIL images in {WORKERS} DataLoader workers, `torch.optim.SGD` as it comes, the
system's allocator (`spaceless/bench/plain.py`). *ours*: `spaceless.training.train` with its defaults, memory kept as
a trial keeps it. Each side of each round has a process of its own, plain and ours in turn; start-up (imports, making
the images, the workers' first batches, the first steps) is excluded. So is what happens between epochs of 390 steps,
in particular that a DataLoader starts its workers again, unless the machine is fast enough to reach the end of one."""
