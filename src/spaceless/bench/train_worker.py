"""One side of `spaceless bench train` in a process of its own: `SIDE MODEL WIDTH SECONDS` to one line of JSON."""

from __future__ import annotations

import argparse
import json
import signal
import time
import warnings
from contextlib import suppress
from typing import Any

import torch
from torch import nn

from spaceless.allocator import keep_memory
from spaceless.bench.plain import WORKERS, train_plainly
from spaceless.bench.subjects import RECIPE, Network, made_images
from spaceless.bench.timing import device, now
from spaceless.data import Dataset
from spaceless.data.feed import steps_per_epoch
from spaceless.errors import Interrupted
from spaceless.run import choose_precision
from spaceless.training import Progress, train
from spaceless.trial import Recipe

WARM_UP = 2  # steps; and a quarter of the time, in which the workers of a DataLoader fill their queue
IMAGES = 390 * 128  # as many whole batches as CIFAR-100 has


class Clock:
    """Times a loop that tells it how many steps it has made, from the end of its warm-up until it has had enough.

    Args:
        seconds: To measure.
        at: The Unix time before which nothing is measured: several loops that are measured at the same time begin, and
            go on for a while, together.

    """

    def __init__(self, seconds: float, at: float = 0.0) -> None:
        """Measure nothing yet."""
        self.seconds, self.at = seconds, at
        self.started = time.perf_counter()
        self.marks: list[tuple[int, float]] = []  # steps done and the time, of every step behind the warm-up
        self.over = False
        self.began = 0.0  # the Unix time of the first mark

    def step(self, done: int) -> bool:
        """Note that `done` steps are made, and tell whether that is enough."""
        if not self.marks:
            if done == 1:
                self.started = time.perf_counter()
            elif done >= WARM_UP and time.perf_counter() - self.started >= self.seconds / 4 and time.time() >= self.at:
                self.marks.append((done, now()))
                self.began = time.time()
        elif not self.over:
            self.marks.append((done, time.perf_counter()))
            if self.marks[-1][1] - self.marks[0][1] >= self.seconds:
                self.marks[-1] = (done, now())
                self.over = True
        return self.over and (not self.at or time.time() >= self.at + 1.2 * self.seconds)

    @property
    def steps(self) -> int:
        """The number of steps that were timed."""
        return self.marks[-1][0] - self.marks[0][0]

    @property
    def elapsed(self) -> float:
        """Their seconds."""
        return self.marks[-1][1] - self.marks[0][1]


def measure(
    side: str, network: Network, seconds: float, *, images: int = IMAGES, batch_size: int = RECIPE.batch_size,
    workers: int = WORKERS, at: float = 0.0,
) -> dict[str, Any]:
    """Train `network` for some time by the `plain` loop or by `ours`, and return how fast it was.

    Start-up is excluded: imports, made data, the first batch of the workers and the first steps.
    """
    kept = side == "ours" and keep_memory()  # before anything large is allocated, as a trial does
    data = made_images(images, size=network.size)
    recipe = RECIPE.model_copy(update={"batch_size": batch_size})
    model = network.build().to(device())
    precision = "fp32" if side == "plain" else choose_precision("auto", device())
    clock = Clock(seconds, at)
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        _train(side, model, data, recipe, precision, clock, workers)
    return {
        "side": side, "precision": precision, "batch": batch_size, "steps": clock.steps, "seconds": clock.elapsed,
        "images_per_second": clock.steps * batch_size / clock.elapsed,
        "marks": [round(at - clock.marks[0][1], 6) for _, at in clock.marks], "threads": torch.get_num_threads(),
        "memory_kept": kept, "began": clock.began, "warnings": sorted({str(each.message) for each in said}),
    }


def _train(
    side: str, model: nn.Module, data: Dataset, recipe: Recipe, precision: str, clock: Clock, workers: int,
) -> None:
    if side == "plain":
        train_plainly(model, data, recipe, workers=workers, enough=clock.step)
    else:
        last = steps_per_epoch(data.train_count, recipe.batch_size) * recipe.epochs

        enough = False

        def tick(progress: Progress) -> None:
            nonlocal enough
            enough = clock.step(round(progress.share * last))

        with suppress(Interrupted):
            train(
                model, data, recipe, 0, precision=precision, progress=tick,
                stop=lambda: signal.SIGTERM if enough else None,
            )


def main(words: list[str] | None = None) -> None:
    """Measure what the words of the command line ask for and print it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("side", choices=("plain", "ours"))
    parser.add_argument("model")
    parser.add_argument("width", type=float)
    parser.add_argument("seconds", type=float)
    parser.add_argument("--size", type=int, default=32, help="side of the images in pixels")
    parser.add_argument("--images", type=int, default=IMAGES, help="number of training images")
    parser.add_argument("--batch", type=int, default=RECIPE.batch_size)
    parser.add_argument("--at", type=float, default=0.0, help="Unix time before which nothing is measured")
    asked = parser.parse_args(words)
    network = Network(asked.model, asked.width, asked.size)
    print(json.dumps(measure(asked.side, network, asked.seconds, images=asked.images, batch_size=asked.batch,
                             at=asked.at)))


if __name__ == "__main__":
    main()
