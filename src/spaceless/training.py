"""One training, as one loop that reads from top to bottom, and resumes from where it stopped.

All randomness (order, augmentation, shuffles, dropout) is derived from (seed, purpose, step), so that a resumed
training is the uninterrupted one without any generator state being saved.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from contextlib import ExitStack, closing
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from spaceless import checkpoint
from spaceless.data.augment import normalise
from spaceless.data.broken import LeftOut
from spaceless.data.feed import steps_per_epoch, training_feed
from spaceless.data.readers import Images
from spaceless.distill import Loss, cross_entropy
from spaceless.distributed import average_gradients, from_first, gathered, highest, share, spread, total
from spaceless.errors import Interrupted
from spaceless.evaluation import autocast, in_format
from spaceless.fast_layers import fast_layers
from spaceless.fused import Halves, kernels_work, quick
from spaceless.recorded import Steps, own_stream
from spaceless.resuming import resumed
from spaceless.schedule import learning_rate
from spaceless.seeds import derive
from spaceless.shuffle import shuffles
from spaceless.trial import Epoch, Recipe


@dataclass(frozen=True)
class Progress:
    """How far a training is: the share done, the epoch (from 1), and speed over the current epoch.

    `begun` is the share that it went on from, done by an earlier call.
    """

    share: float
    epoch: int
    epochs: int
    images_per_second: float
    begun: float = 0.0


@dataclass(frozen=True)
class States:
    """Where a training keeps its states, whose they are, and how often one is written."""

    folder: Path
    trial: str
    every_seconds: float = 60.0


@dataclass(frozen=True)
class Training:
    """What came of a training: its epochs, and whether the loss or a weight ended up not being a number.

    `left_out` are the paths of the broken images that it met.
    """

    history: tuple[Epoch, ...]
    diverged: bool
    left_out: tuple[str, ...] = ()


def train(
    model: nn.Module, data: Images, recipe: Recipe, seed: int, *, precision: str = "fp32",
    loss: Loss = cross_entropy, states: States | None = None, stop: Callable[[], int | None] | None = None,
    progress: Callable[[Progress], None] | None = None, eager: bool = False,
) -> Training:
    """Train `model` in place on the training images of `data` by `recipe`.

    Args:
        model: On the device to train on; it ends in training mode with the weights of the last step.
        data: Images stay uint8; those in memory are moved to the device of `model` as one tensor.
        recipe: Optimiser, schedule, batch size, epochs, augmentation.
        seed: Everything random derives from it.
        precision: `fp32` or `bf16` (autocast; weights stay fp32).
        loss: What is minimised, see `spaceless.distill`.
        states: Where to resume from and save to; None trains in one go.
        stop: Asked after every step; a signal number ends the training with its state saved.
        progress: Told about every step.
        eager: Compute every layer by PyTorch's own operations, and on a GPU launch each by itself instead of recording
            a step with our kernels and repeating it.

    Raises:
        Interrupted: `stop` asked for it. The same call goes on from there.
        DataError: Too many images are broken.
        CheckpointError: A state cannot be written. The same call goes on from the state before it.

    """
    device = next(iter(model.parameters())).device
    mine = share()
    per_epoch = steps_per_epoch(data.train_count, recipe.batch_size)
    last = per_epoch * recipe.epochs
    if precision == "bf16":
        model.to(memory_format=torch.channels_last)
    model.train()
    recording = device.type == "cuda" and mine.count == 1 and not eager
    optimizer = _optimizer(model, recipe, recording)
    layers = list(shuffles(model))
    history: list[Epoch] = []
    step, spent, sums = 0, 0.0, torch.zeros(3, dtype=torch.float64, device=device)  # loss, correct, images
    before = from_first(
        checkpoint.load_latest(
            states.folder, states.trial, partial(resumed, model=model, optimizer=optimizer, last=last))
        if states and mine.rank == 0 else None)
    if before is not None:
        before.put_into(model, optimizer)
        step, spent, history = before.step, before.spent, [*before.history]
        if mine.rank == 0:  # the sums of all processes are in it
            sums.copy_(before.sums)
    begun = step / last
    left_out = LeftOut(data.source, data.train_labels, data.class_names, before.broken if before else ())
    saved = resume_mark = time.perf_counter()

    def save() -> None:
        summed = total(sums)
        left_out.join(gathered(left_out.met.values()))
        if states and mine.rank == 0:
            content = {
                "model": model.state_dict(), "optimizer": _state(optimizer), "step": step, "sums": summed,
                "spent": spent + time.perf_counter() - resume_mark, "history": [e.model_dump() for e in history],
                "broken": [tuple(image) for image in sorted(left_out.met.values())],
            }
            checkpoint.save(states.folder, content, step, states.trial)
        if mine.rank:
            sums.zero_()
        else:
            sums.copy_(summed)

    def ended(diverged: bool) -> Training:
        left_out.join(gathered(left_out.met.values()))
        return Training(tuple(history), diverged, left_out.paths)

    devices = [device] if device.type == "cuda" else []
    with (torch.random.fork_rng(devices=devices), own_stream(device), fast_layers(model, eager=eager),
          spread(model) as parallel, ExitStack() as stack):
        network: nn.Module | Halves = parallel
        moves = recording and precision == "bf16" and kernels_work(device)
        if recording and precision == "bf16":
            network = quick(model, data.image_size, kernels=moves)
        feed = training_feed(data, recipe, seed, step, device, mine)
        stack.enter_context(closing(feed.work))

        def work(whole: int, *parts: Tensor) -> None:
            """Make one step on a batch of which all processes together have `whole` images."""
            x, y = feed.batch(*parts)
            inputs = in_format(normalise(x, data.mean, data.std), precision)
            with autocast(device, precision):
                logits: Tensor = network(inputs)
            cost = loss(logits.float(), y, inputs) / whole
            optimizer.zero_grad(set_to_none=True)
            (cost * mine.count).backward()  # type: ignore[no-untyped-call]
            if isinstance(network, Halves):
                network.hand_back()
            average_gradients(parallel)
            optimizer.step()
            with torch.no_grad():
                sums.add_(torch.stack([
                    cost.double() * whole, (logits.argmax(1) == y).sum().double(), sums.new_full((), len(y))]))

        stack.callback(optimizer.zero_grad, set_to_none=True)  # gradients lie in the memory of the recordings
        steps = Steps(work, model, layers, recording=recording, moves=moves)
        for parts, broken in feed.work:
            left_out.add(broken)
            epoch, within = divmod(step, per_epoch)
            rate = learning_rate(recipe, step / last)
            _set_rate(optimizer, rate)
            for layer in layers:
                layer.passes["train"] = step
            torch.manual_seed(derive(seed, f"dropout/{mine.rank}" if mine.rank else "dropout", step))
            whole = min(recipe.batch_size, data.train_count - within * recipe.batch_size)  # images of all processes
            steps.make(step, whole, parts)
            step += 1
            seconds = spent + time.perf_counter() - resume_mark
            if progress is not None:
                done = (step - epoch * per_epoch) * recipe.batch_size
                progress(Progress(step / last, epoch + 1, recipe.epochs, done / seconds, begun))
            age = time.perf_counter() - saved
            asked, due, overdue = highest(
                stop() or 0 if stop is not None else 0,
                int(states is not None and age >= states.every_seconds),
                int(states is not None and age >= 5 * states.every_seconds),  # an epoch that takes very long
            )
            if step % per_epoch == 0:
                mean, correct, seen = total(sums).tolist()  # a GPU is waited for here, and not before
                seconds = spent + time.perf_counter() - resume_mark
                if not math.isfinite(mean):
                    return ended(diverged=True)
                history.append(Epoch(
                    epoch=epoch + 1, loss=mean / seen, top1=100 * correct / seen, learning_rate=rate,
                    seconds=seconds, images_per_second=seen / seconds,
                ))
                sums.zero_()
                spent, resume_mark = 0.0, time.perf_counter()
            # The last state too: an interrupted evaluation must not cost the training.
            if asked or overdue or (step % per_epoch == 0 and (due or step == last)):
                save()
                saved = time.perf_counter()
            if asked:
                highest(0)  # not before the state is on disk: torchrun kills the others soon after the first has ended
                raise Interrupted(asked)
    return ended(diverged=not _finite(model))  # the last step has no loss after it that would tell


def _set_rate(optimizer: torch.optim.Optimizer, rate: float) -> None:
    for group in optimizer.param_groups:
        if isinstance(group["lr"], Tensor):
            group["lr"].fill_(rate)
        else:
            group["lr"] = rate


def _state(optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    """Return the state of `optimizer` as any device has it, with rates that are numbers."""
    state = optimizer.state_dict()
    return state | {"param_groups": [group | {"lr": float(group["lr"])} for group in state["param_groups"]]}


def _finite(model: nn.Module) -> bool:
    return all(bool(weight.isfinite().all()) for weight in model.parameters())


def _optimizer(model: nn.Module, recipe: Recipe, recording: bool) -> torch.optim.Optimizer:
    """Return the optimiser of `recipe`; for `spaceless.recorded` its rate lies on the GPU, where it can be changed."""
    device = next(iter(model.parameters())).device
    common: dict[str, Any] = {
        "lr": torch.tensor(recipe.learning_rate, device=device) if recording else recipe.learning_rate,
        "weight_decay": recipe.weight_decay, "fused": device.type in ("cpu", "cuda"),
    }
    if recipe.optimizer == "adamw":
        found = torch.optim.AdamW(model.parameters(), capturable=recording, **common)
        found._warned_capturable_if_run_uncaptured = True  # as the first steps are
        return found
    nesterov = recipe.nesterov and recipe.momentum > 0  # without momentum there is nothing to look ahead along
    return torch.optim.SGD(model.parameters(), momentum=recipe.momentum, nesterov=nesterov, **common)
