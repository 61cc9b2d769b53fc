"""`run_trial`: the only place that joins network, surgery, data, training and measures, into one stored outcome."""

from __future__ import annotations

import hashlib
import math
import os
import platform
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from functools import lru_cache
from importlib.metadata import version
from pathlib import Path

import torch
from torch import nn

from spaceless import checkpoint
from spaceless.allocator import keep_memory
from spaceless.atomic import atomic_write
from spaceless.cost import cost, latency
from spaceless.data import Images, open_images
from spaceless.data.broken import broken_note
from spaceless.data.controls import make_control
from spaceless.data.find import ROOT_VARIABLE
from spaceless.data.heldout import held_out
from spaceless.distill import Loss, cross_entropy, distilled
from spaceless.distributed import from_first, refuse_unshareable, share, told_by_all
from spaceless.errors import InputError
from spaceless.evaluation import evaluate
from spaceless.fast_layers import fast_layers
from spaceless.models import build_model, stem_is_unit, untrained
from spaceless.rebuild import changed
from spaceless.receptive import head_note, usable_field
from spaceless.shuffle import shuffles
from spaceless.store import WEIGHTS, Store
from spaceless.tracing import trace
from spaceless.training import Progress, States, Training, train
from spaceless.trial import Change, DataFacts, Evaluation, Latency, Outcome, Trial, is_control
from spaceless.units import find_units
from spaceless.warm import load_original, warm_start


@dataclass(frozen=True)
class Place:
    """Where and how trials run, which must not change what comes of them: outcomes, data, device, saving, speed."""

    out: Path
    data_root: Path | None = None
    device: str = "auto"
    keep_weights: bool = True
    save_seconds: float = 60.0
    eager: bool = False

    @property
    def store(self) -> Store:
        """The store of outcomes."""
        return Store(self.out)


def load_data(trial: Trial, data_root: Path | None = None, *, test: bool = False) -> Images:
    """Return the data that `trial` names, at its size and number of images; class folders as its recipe asks.

    Made data differ from seed to seed; a draw of real images does not, so that seeds share it. Of a trial with a
    holdout the images held out take the place of the test images, unless it is the `test` that is asked for.

    Raises:
        DataError: The set is missing or broken.

    """
    made = is_control(trial.data)
    where = (None, None, None) if made else (data_root, os.environ.get(ROOT_VARIABLE), Path.cwd())
    return _prepared(
        trial.data, *where, trial.image_size, trial.train_images, trial.test_images, trial.seed if made else None,
        trial.recipe.augment == "resized_crop", trial.holdout, test and trial.holdout is not None)


@lru_cache(maxsize=2)  # the trials of a study share their data
def _prepared(
    name: str, root: Path | None, _variable: str | None, _here: Path | None, size: int | None,
    train_images: int | None, test_images: int | None, seed: int | None, streamed: bool, holdout: float | None,
    test: bool,
) -> Images:
    if seed is None:
        data: Images = open_images(
            name, data_root=root, image_size=size, train=train_images, test=test_images, streamed=streamed)
    else:
        data = make_control(name, seed).subset(train_images, test_images)
        data = data if size is None else data.resized(size)
    return data if holdout is None else held_out(data, holdout, keep_test=test)


def build(
    trial: Trial, classes: int, image_size: int, original: nn.Module | None = None,
) -> tuple[nn.Module, list[Change]]:
    """Return the network of `trial`, changed by its method, and what changed; untrained unless made of `original`."""
    model = original or build_model(trial.model, classes, image_size, width=trial.width, seed=trial.seed)
    return changed(model, trial, image_size)


def count_units(trial: Trial, classes: int, image_size: int) -> int:
    """Return how many units the network has before surgery; shapes are enough to count them."""
    model = untrained(trial.model, classes, image_size, width=trial.width)
    return len(find_units(model, image_size, stem=stem_is_unit(trial.model)))


def head_notes(trial: Trial, data: Images) -> tuple[str, ...]:
    """Return what has to be said of the head of a network with 1x1 convolutions, see `head_note`."""
    if trial.method != "conv1x1":
        return ()
    model = untrained(trial.model, data.classes, data.image_size, width=trial.width)
    note = head_note(trace(model, data.image_size))
    return () if note is None else (note,)


def run_trial(
    trial: Trial, place: Place, *, stop: Callable[[], int | None] | None = None,
    progress: Callable[[Progress], None] | None = None, on_evaluation: Callable[[float], None] | None = None,
) -> Outcome:
    """Train and evaluate `trial`, store its outcome and return it; a finished trial is returned as it is stored.

    The latency of the trained network is measured last of all, see `_latency`, and changes nothing else.

    Raises:
        InputError: Bad name, missing data, impossible surgery, a folder that holds another trial. Nothing was written.
        CheckpointError: The disk is full or cannot be written to. The same call goes on from the last state.
        Interrupted: `stop` returned a signal number; the same call resumes.

    """
    keep_memory()
    store, mine = place.store, share()
    known = from_first(None if mine.rank else store.outcome(trial))
    if known is not None and known.status != "failed":
        return known
    if trial.shuffle.per_image and mine.count > 1:
        raise InputError(
            "processes", found=f"{mine.count} for per-image shuffles", expected="one", cure="run it without torchrun")
    data = load_data(trial, place.data_root)
    original = None if trial.start is None else load_original(trial, store, data)
    model, changes = build(trial, data.classes, data.image_size, original)
    refuse_unshareable(model)
    units = count_units(trial, data.classes, data.image_size)
    costs = cost(model, data.image_size)
    device = choose_device(place.device)
    precision = choose_precision(trial.recipe.precision, device)
    started = datetime.now(UTC)
    folder = store.folder(trial) if mine.rank else store.begin(trial)
    model.to(device)
    notes = head_notes(trial, data)
    loss: Loss = cross_entropy
    if original is not None and trial.start is not None:
        notes += warm_start(model, original.to(device), data, trial.recipe, trial.seed, trial.start)
        if trial.start.distillation is not None:
            loss = distilled(original, trial.start.distillation, precision)
    # Of the teacher too, and once: what is kept of weights that do not change lasts as long as the context.
    with told_by_all(), fast_layers(nn.Identity() if original is None else original, eager=place.eager):
        training = train(
            model, data, trial.recipe, trial.seed, precision=precision, loss=loss, stop=stop, progress=progress,
            eager=place.eager,
            # A state belongs to the images as well, a file may change under its name; and to the precision, which
            # another machine that goes on may choose otherwise.
            states=States(store.states(trial), f"{trial.id} on {data.digest} in {precision}", place.save_seconds),
        )
        trained = time.perf_counter()
        repeats = trial.repeats if any(shuffles(model)) else 1  # with `strip` there may be no shuffle left
        evaluations = () if training.diverged else (
            evaluate(model, data, repeats=repeats, precision=precision, each=trial.holdout is not None,
                     eager=place.eager, stop=stop, progress=on_evaluation),
        )
    weights = checkpoint.dumped(model.state_dict())
    if place.keep_weights and mine.rank == 0:
        atomic_write(folder / WEIGHTS, weights)
    field = _field(model, data.image_size)
    seconds = sum(epoch.seconds for epoch in training.history) + time.perf_counter() - trained
    alone = mine.count == 1 and not training.diverged
    outcome = Outcome(
        trial=trial, status="diverged" if training.diverged else "finished", units=units, changes=tuple(changes),
        params=costs.params, macs=costs.macs, receptive_field=field and field[0], receptive_stride=field and field[1],
        evaluations=evaluations, history=training.history, data=_facts(data, training, evaluations),
        precision=precision, weights_sha256=hashlib.sha256(weights).hexdigest(), notes=notes, versions=versions(),
        hardware=hardware(device), threads=torch.get_num_threads(), processes=mine.count,
        started=started.isoformat(timespec="seconds"),
        seconds=round(seconds, 3), latency=_latency(model, data.image_size) if alone else None,
    )
    if mine.rank == 0:
        store.finish(outcome)
        checkpoint.discard(store.states(trial))
    return from_first(outcome)


def _facts(data: Images, training: Training, evaluations: Sequence[Evaluation]) -> DataFacts:
    """Return the facts of `data` with a note on the images that turned out broken."""
    broken = broken_note({*training.left_out, *(path for each in evaluations for path in each.left_out)})
    facts = data.facts
    return facts.model_copy(update={"note": "; ".join(filter(None, (facts.note, broken)))})


def _field(model: nn.Module, image_size: int) -> tuple[int, int] | None:
    """Return size and stride of the last receptive field whose position matters, or None where there is none."""
    try:
        found = usable_field(model, image_size)
    except InputError:
        return None
    return found.size, math.ceil(found.stride)


def _latency(model: nn.Module, image_size: int) -> Latency:
    """Return the seconds of a forward pass of one image, over 20 passes after 3 of warm-up, where `model` is now.

    Timed is the network in evaluation mode, in fp32 and contiguous memory format, without autocast, even if it was
    trained in bf16 and channels_last; a network that shuffles draws its permutations in every pass. So the figure is
    that of `inspect --latency`. The model is left in contiguous format.
    """
    # bf16 training leaves the weights in channels_last, which costs in fp32: precisions would not be comparable.
    plain = model.to(memory_format=torch.contiguous_format)
    return Latency(**asdict(latency(plain, image_size, batch=1, repeats=20)), batch=1)


def choose_device(name: str) -> torch.device:
    """Return the device called `name`; `auto` is the GPU if there is one."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    cause = None
    try:
        device = torch.empty(0, device=name).device
        if device.type != "meta":  # shapes without values: nothing can be trained on them
            return device
    except (RuntimeError, AssertionError) as error:
        cause = error
    raise InputError(
        "device", found=repr(name), expected="auto, cpu or a GPU that is there, such as cuda:0",
        cure="leave --device out",
    ) from cause


def choose_precision(wanted: str, device: torch.device) -> str:
    """Return `fp32` or `bf16`; `auto` is bf16 where the hardware multiplies it natively (GPU, or CPU with AMX)."""
    if wanted != "auto":
        return wanted
    native = torch.cuda.is_bf16_supported() if device.type == "cuda" else torch.cpu._is_amx_tile_supported()
    return "bf16" if native else "fp32"


def versions() -> dict[str, str]:
    """Return the versions of everything that a result can depend on."""
    names = ("spaceless", "torch", "torchvision", "numpy")
    return {"python": platform.python_version()} | {name: version(name) for name in names}


def hardware(device: torch.device) -> str:
    """Return one line about the processor that computed."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        name = next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):  # not Linux: the platform's own name has to do, for which it may ask a program
        name = platform.processor() or platform.machine()
    return f"{name}, {os.cpu_count()} logical processors"
