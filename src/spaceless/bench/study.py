"""`spaceless bench study`: what a whole study takes beyond its training loops, the input's share, and start-up."""

from __future__ import annotations

import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from spaceless.allocator import keep_memory
from spaceless.bench.record import made_by
from spaceless.bench.subjects import BATCH, QUARTER_VGG, RECIPE, VGG, Network, for_steps
from spaceless.bench.timing import LEAST_ROUNDS, Work, device, interleaved, now, precisions, timed, training_steps
from spaceless.bench.verdicts import Target, figure, line, measurement, page, ratio, table
from spaceless.data.augment import normalise
from spaceless.data.feed import training_batches
from spaceless.errors import SpacelessError
from spaceless.run import build, choose_precision, load_data
from spaceless.studies import Plan, plan_study
from spaceless.training import train
from spaceless.trial import is_control

SECONDS = 120.0  # of training in a study; a study that trains for longer has less beside it
INPUT_STEPS = 20
STARTS: tuple[tuple[tuple[str, ...], Target], ...] = (
    (("--help",), Target(most=0.5)), (("inspect", "vgg16"), Target(most=4.0)),
)


class Small(NamedTuple):
    """A study of four trials on made images: the baseline and three methods at one K."""

    network: Network = QUARTER_VGG
    data: str = "texture"
    k: int = 5
    train_images: int = 4096
    test_images: int = 512
    batch: int = BATCH

    def text(self, epochs: int) -> str:
        """Return it as a TOML file, with the same test passes for each training image as the paper's protocol has.

        That is 200 passes over 10,000 images after 200 epochs of 50,000.
        """
        assert is_control(self.data)
        repeats = max(2, round(0.2 * epochs * self.train_images / self.test_images))
        return f"""\
title = "A small study"
asks = "How long does all of it take?"
[scale]
name = "own"
width = {self.network.width}
train_images = {self.train_images}
test_images = {self.test_images}
repeats = {repeats}
[[series]]
model = "{self.network.model}"
data = "{self.data}"
methods = ["shuffle", "gap_fc", "conv1x1"]
ks = [0, {self.k}]
recipe = "fast"
overrides = {{ epochs = {epochs}, batch_size = {self.batch} }}
"""


def run(
    seconds: float, progress: Callable[[str], None], small: Small = Small(),  # noqa: B008
    inputs: Sequence[Network] = (QUARTER_VGG, VGG),
) -> dict[str, Any]:
    """Return the times of start-up, of fetching a batch, and of whole studies beside their bare loops.

    Raises:
        SpacelessError: A command failed.

    """
    kept = keep_memory()
    found = []
    for words, target in STARTS:
        times = {"start": [_seconds_of(words) for _ in range(LEAST_ROUNDS)]}
        found.append(measurement(
            f"`spaceless {' '.join(words)}`", times, [figure("wall time", times["start"], target, " s")]))
        progress(line(found[-1]))
    for network in inputs:
        found.append(_input(network, small.batch, seconds))
        progress(line(found[-1]))
    found.append(_whole(small, seconds, progress))
    progress(line(found[-1]))
    return {
        "what": _WHAT, "seconds": seconds, "unit": "seconds", "batch": small.batch, "memory_kept": kept,
        "measurements": found,
    }


def _seconds_of(words: Sequence[str]) -> float:
    start = now()
    command = [sys.executable, "-m", "spaceless", *words]
    done = subprocess.run(command, capture_output=True, text=True, check=False)  # noqa: S603
    if done.returncode:
        raise SpacelessError(
            f"spaceless {' '.join(words)}", found=(done.stderr.strip().splitlines() or ["nothing said"])[-1][:200],
            expected="exit status 0", cure="run it alone",
        )
    return now() - start


def _input(network: Network, batch: int, seconds: float) -> dict[str, Any]:
    precision = precisions()[-1]
    recipe = RECIPE.model_copy(update={"batch_size": batch})
    model = network.build()
    works = {"input": _fetching(network, batch),
             "step": training_steps(model, precision, recipe=recipe, size=network.size)}
    times = interleaved(works, min(seconds, 5.0), warm_up=0)
    return measurement(
        f"a batch for {network.label}, {precision}", times, [ratio(times, "input", "step", Target(most=0.02))],
        precision=precision, augment=recipe.augment, image_size=network.size,
    )


def _fetching(network: Network, batch: int) -> Work:
    """Return the work of making one batch as the loop sees it: drawn, cropped, flipped, normalised."""
    data, recipe = for_steps(INPUT_STEPS + 1, RECIPE.model_copy(update={"batch_size": batch}), network.size)

    def measured() -> float:
        start = 0.0
        for number, (images, *_) in enumerate(training_batches(data, recipe, 0, 0, device())):
            normalise(images, data.mean, data.std)
            if number == 0:  # in which the feed sets itself up
                start = now()
        return (now() - start) / INPUT_STEPS

    return measured


def _whole(small: Small, seconds: float, progress: Callable[[str], None]) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, "small.toml")
        file.write_text(small.text(1), encoding="utf-8")
        epochs = max(1, round(seconds / _bare(plan_study(str(file)))))  # the loop warms up here too
        file.write_text(small.text(epochs), encoding="utf-8")
        plan = plan_study(str(file))
        images = sum(p.trial.recipe.epochs for p in plan.planned) * small.train_images
        progress(f"a study of {len(plan.planned)} trials, {epochs} epochs, {LEAST_ROUNDS} times")
        times: dict[str, list[float]] = {"bare loop": [], "whole study": []}
        for number in range(LEAST_ROUNDS):
            times["bare loop"].append(_bare(plan))
            times["whole study"].append(_seconds_of(
                ("study", str(file), "--jobs", "1", "--out", str(Path(folder, str(number))))))
    return measurement(
        f"a study of {small.network.label}, {len(plan.planned)} trials", times,
        [ratio(times, "bare loop", "whole study", Target(least=0.9))],
        epochs=epochs, images=images, test_passes=plan.planned[-1].repeats, trials=len(plan.planned),
        images_per_second={name: round(images / statistics.median(values), 1) for name, values in times.items()},
        precision=choose_precision("auto", device()),
    )


def _bare(plan: Plan) -> float:
    """Return the seconds of the training loops of a plan alone: data, networks and imports are there before."""
    seconds = 0.0
    for trial in (planned.trial for planned in plan.planned):
        data = load_data(trial)
        model, _ = build(trial, data.classes, data.image_size)
        model.to(device())
        precision = choose_precision(trial.recipe.precision, device())

        def loop(
            model: Any = model, data: Any = data, trial: Any = trial, precision: str = precision,
        ) -> object:
            return train(model, data, trial.recipe, trial.seed, precision=precision)

        seconds += timed(loop)()
    return seconds


def markdown(record: dict[str, Any]) -> str:
    """Return the page of a record."""
    whole = record["measurements"][-1]
    speeds = [
        f"The study: {whole['trials']} trials of {whole['epochs']} epochs, {whole['images']:,} images in all, "
        f"{whole['precision']}; " + ", ".join(
            f"{name} {speed:,.0f} images/s" for name, speed in whole["images_per_second"].items()) + ".",
    ]
    return page(record, "Beside the training", made_by(record), table(record["measurements"]), speeds)


_WHAT = """\
Start-up is the wall time of a whole process. The input of a step is drawing, cropping, flipping and normalising its
images, timed alone. A whole study is `spaceless study FILE.toml --jobs 1` in a process of its own, from its start to
its end, with imports, data, tests, weights, outcomes and report; its bare loop is `spaceless.training.train` of the
same trials, one after another in one process that has all of it ready. The study has as many test passes for each
training image as the paper's protocol has; a longer one has less beside its training."""
