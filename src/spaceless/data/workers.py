"""Decoding in worker processes, ahead of the training or test that asks for it.

What an image looks like in an epoch depends on the seed, the epoch and the image alone: neither on the number of
workers or of processes that share a training, nor on where it was resumed.
"""

from __future__ import annotations

import os
import signal
import sys
import warnings
from collections.abc import Iterable, Iterator
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader

from spaceless.data.broken import Broken
from spaceless.data.find import printable
from spaceless.data.images import centre, opened_image
from spaceless.data.stream import SHORTER_SIDE, Files
from spaceless.errors import DataError, InputError
from spaceless.seeds import derive

WORKERS_VARIABLE = "SPACELESS_WORKERS"
_SIGNALS = {signal.SIGINT, signal.SIGTERM, signal.SIGUSR1}
_MOST_WORKERS = 16  # each holds two batches ready, 40 MB each at 256 images of 224 pixels


class Decoded(NamedTuple):
    """Some images of a split as they were asked for: uint8 (M, 3, S, S), their numbers (M,), and the broken ones."""

    images: Tensor
    numbers: Tensor
    broken: tuple[Broken, ...]


class Draw(NamedTuple):
    """How images are cut: at random, as it follows from seed, epoch and the image's number."""

    seed: int
    epoch: int


Work = tuple[Draw | None, list[int]]  # None: the middle, as in a test


class _Decoder:
    """Decodes what it is asked for; it works in worker processes and holds what they need."""

    def __init__(self, files: Files, size: int) -> None:
        from torchvision.transforms import v2

        self.files, self.size = files, size
        # Defaults: 8 to 100 % of the area, ratio 3/4 to 4/3 (Szegedy et al. 2014), bilinear; as on images in memory.
        self.cut = v2.Compose([v2.RandomResizedCrop(size, antialias=True), v2.RandomHorizontalFlip()])

    def __getitem__(self, work: Work) -> Decoded:
        draw, numbers = work
        images = torch.empty((len(numbers), 3, self.size, self.size), dtype=torch.uint8)
        sound: list[int] = []
        broken = []
        for number in numbers:
            path = self.files.path(number)
            try:
                pixels = opened_image(self.files.folder / path, path, partial(self._pixels, draw=draw, number=number))
            except DataError as error:
                broken.append(Broken(number, printable(path), f"{error.found}"))
            else:
                images[len(sound)] = pixels
                sound.append(number)
        return Decoded(images[: len(sound)], torch.tensor(sound, dtype=torch.int64), tuple(broken))

    def _pixels(self, image: Any, draw: Draw | None, number: int) -> Tensor:
        """Return (3, S, S) of an open image."""
        rgb = image.convert("RGB")
        if draw is None:
            cut = centre(rgb, round(SHORTER_SIDE * self.size), self.size, self.files.path(number))
        else:
            with torch.random.fork_rng(devices=[]):  # without workers this is the generator of the training
                torch.default_generator.manual_seed(derive(draw.seed, f"augment/{number}", draw.epoch))
                cut = self.cut(rgb)
        return torch.from_numpy(np.asarray(cut).copy()).permute(2, 0, 1)


def decoded(
    files: Files, size: int, work: Iterable[Work], device: torch.device, workers: int,
) -> Iterator[Decoded]:
    """Yield what is asked for in `work`, in that order, decoded ahead by `workers` processes (0: by this one).

    The processes end with the iterator, or with this process, however it ends.
    """
    pinned = device.type == "cuda"
    # Forked where that is sound: a process that starts afresh imports for seconds what this one has, before every
    # training and every test. The workers touch no GPU, compute in one thread and print nothing.
    context = "fork" if workers and sys.platform == "linux" else None
    # A batch of ours is one item of the loader's: it is put together where it is decoded.
    loader: DataLoader[Decoded] = DataLoader(
        _Decoder(files, size), batch_size=None, sampler=work, num_workers=workers,  # type: ignore[arg-type]
        collate_fn=_as_it_is, pin_memory=pinned, worker_init_fn=_begin_work, generator=torch.Generator(),
        multiprocessing_context=context,
    )
    before = signal.pthread_sigmask(signal.SIG_BLOCK, _SIGNALS)  # inherited: none comes before `_begin_work`
    try:
        batches = iter(loader)
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
    for images, numbers, broken in batches:
        yield Decoded(images.to(device, non_blocking=pinned), numbers, broken)


def _as_it_is(item: Any) -> Any:
    return item


def _begin_work(_number: int) -> None:
    """Make a worker deaf to what a terminal, `torchrun` or a cluster sends to all: its parent says when to end."""
    os.setpgrp()
    for number in _SIGNALS - {signal.SIGTERM}:  # by which the parent ends a worker that does not end by itself
        signal.signal(number, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, _SIGNALS)
    # Decoders warn of odd metadata; whoever prints here may wait for a lock that the parent held when it forked.
    warnings.simplefilter("ignore")


def worker_count() -> int:
    """Return how many processes should decode for this one: `$SPACELESS_WORKERS`, else its share of the processors.

    `$LOCAL_WORLD_SIZE` is how many processes like this one share the machine, as `torchrun` sets it.

    Raises:
        InputError: The variable is no number of processes.

    """
    if asked := os.environ.get(WORKERS_VARIABLE):
        if not asked.isdecimal():
            raise InputError(
                WORKERS_VARIABLE, found=repr(asked), expected="a number of processes, 0 for none",
                cure="correct it, or leave it out",
            )
        return int(asked)
    processors = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min(_MOST_WORKERS, max(1, processors // int(os.environ.get("LOCAL_WORLD_SIZE", "1"))))
