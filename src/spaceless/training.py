"""One training, as one loop that reads from top to bottom, and resumes from where it stopped.

All randomness (order, augmentation, shuffles, dropout) is derived from (seed, purpose, step), so that a resumed
training is the uninterrupted one without any generator state being saved.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from spaceless import checkpoint
from spaceless.data.augment import crop_flip, normalise
from spaceless.data.dataset import Dataset
from spaceless.errors import Interrupted
from spaceless.evaluation import autocast, in_format
from spaceless.schedule import learning_rate
from spaceless.seeds import derive, generator
from spaceless.shuffle import shuffles
from spaceless.trial import Epoch, Recipe


@dataclass(frozen=True)
class Progress:
    """How far a training is: the share done, the epoch (from 1), and speed over the current epoch."""

    share: float
    epoch: int
    epochs: int
    images_per_second: float


@dataclass(frozen=True)
class States:
    """Where a training keeps its states, whose they are, and how often one is written."""

    folder: Path
    trial: str
    every_seconds: float = 60.0


@dataclass(frozen=True)
class Training:
    """What came of a training: its epochs, and whether the loss or a weight ended up not being a number."""

    history: tuple[Epoch, ...]
    diverged: bool


def train(
    model: nn.Module, data: Dataset, recipe: Recipe, seed: int, *, precision: str = "fp32",
    states: States | None = None, stop: Callable[[], int | None] | None = None,
    progress: Callable[[Progress], None] | None = None,
) -> Training:
    """Train `model` in place on the training images of `data` by `recipe`.

    Args:
        model: On the device to train on; it ends in training mode with the weights of the last step.
        data: Images stay uint8 and are moved to the device of `model` as one tensor.
        recipe: Optimiser, schedule, batch size, epochs, augmentation.
        seed: Everything random derives from it.
        precision: `fp32` or `bf16` (autocast; weights stay fp32).
        states: Where to resume from and save to; None trains in one go.
        stop: Asked after every step; a signal number ends the training with its state saved.
        progress: Told about every step.

    Raises:
        Interrupted: `stop` asked for it. The same call goes on from there.

    """
    device = next(iter(model.parameters())).device
    images, labels = data.train_images.to(device), data.train_labels.to(device)
    batches = _batches(len(images), recipe.batch_size)
    total = batches * recipe.epochs
    if precision == "bf16":
        model.to(memory_format=torch.channels_last)
    model.train()
    optimizer = _optimizer(model, recipe)
    layers = list(shuffles(model))
    history: list[Epoch] = []
    step, spent, sums = 0, 0.0, torch.zeros(3, dtype=torch.float64, device=device)  # loss, correct, images
    resumed = checkpoint.load_latest(states.folder, states.trial) if states else None
    if resumed:
        model.load_state_dict(resumed["model"])
        optimizer.load_state_dict(resumed["optimizer"])
        step, spent, sums = resumed["step"], resumed["spent"], resumed["sums"].to(device)
        history = [Epoch(**epoch) for epoch in resumed["history"]]
    saved = resume_mark = time.perf_counter()

    def save() -> None:
        if states:
            content = {
                "model": model.state_dict(), "optimizer": optimizer.state_dict(), "step": step, "sums": sums,
                "spent": spent + time.perf_counter() - resume_mark, "history": [e.model_dump() for e in history],
            }
            checkpoint.save(states.folder, content, step, states.trial)

    order = torch.empty(0, dtype=torch.int64)
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        while step < total:
            epoch, within = divmod(step, batches)
            if within == 0 or not len(order):
                order = torch.randperm(len(images), generator=generator(seed, "order", epoch)).to(device)
            rate = learning_rate(recipe, step / total)
            for group in optimizer.param_groups:
                group["lr"] = rate
            for layer in layers:
                layer.passes["train"] = step
            torch.manual_seed(derive(seed, "dropout", step))
            chosen = order[within * recipe.batch_size:(within + 1) * recipe.batch_size]
            x, y = images.index_select(0, chosen), labels[chosen]  # (B, 3, H, W) uint8, (B,)
            if recipe.augment == "crop_flip":
                x = crop_flip(x, generator(seed, "augment", step))
            x = in_format(normalise(x, data.mean, data.std), precision)
            with autocast(device, precision):
                logits: Tensor = model(x)
            loss = functional.cross_entropy(logits.float(), y)
            optimizer.zero_grad(set_to_none=True)
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            with torch.no_grad():
                sums += torch.stack([loss.double() * len(y), (logits.argmax(1) == y).sum().double(),
                                     torch.tensor(float(len(y)), dtype=torch.float64, device=device)])
            step += 1
            seconds = spent + time.perf_counter() - resume_mark
            if progress is not None:
                done = (step - epoch * batches) * recipe.batch_size
                progress(Progress(step / total, epoch + 1, recipe.epochs, done / seconds))
            if step % batches == 0:
                mean, correct, seen = sums.tolist()
                if not math.isfinite(mean):
                    return Training(tuple(history), diverged=True)
                history.append(Epoch(
                    epoch=epoch + 1, loss=mean / seen, top1=100 * correct / seen, learning_rate=rate,
                    seconds=seconds, images_per_second=seen / seconds,
                ))
                sums.zero_()
                spent, resume_mark = 0.0, time.perf_counter()
                if states and (step == total or time.perf_counter() - saved >= states.every_seconds):
                    save()  # the last state too: an interrupted evaluation must not cost the training
                    saved = time.perf_counter()
            elif states and time.perf_counter() - saved >= 5 * states.every_seconds:  # an epoch that takes very long
                save()
                saved = time.perf_counter()
            asked = stop() if stop is not None else None
            if asked is not None:
                save()
                raise Interrupted(asked)
    return Training(tuple(history), diverged=not _finite(model))  # the last step has no loss after it that would tell


def _finite(model: nn.Module) -> bool:
    return all(bool(weight.isfinite().all()) for weight in model.parameters())


def _batches(images: int, size: int) -> int:
    """Return how many batches an epoch has: all images, but never a last batch of a single one.

    Batch normalisation has no variance to take over one image of one position.
    """
    return max(1, images // size + (images % size > 1))


def _optimizer(model: nn.Module, recipe: Recipe) -> torch.optim.Optimizer:
    common: dict[str, Any] = {
        "lr": recipe.learning_rate, "weight_decay": recipe.weight_decay,
        "fused": next(iter(model.parameters())).device.type in ("cpu", "cuda"),
    }
    if recipe.optimizer == "adamw":
        return torch.optim.AdamW(model.parameters(), **common)
    nesterov = recipe.nesterov and recipe.momentum > 0  # without momentum there is nothing to look ahead along
    return torch.optim.SGD(model.parameters(), momentum=recipe.momentum, nesterov=nesterov, **common)
