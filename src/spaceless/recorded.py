"""Training steps that a GPU repeats from a recording: told once what to do, it needs no more words from the host.

An eager step of VGG-16 takes several milliseconds of Python and kernel launches, its arithmetic on a fast GPU less than
one. A CUDA graph launches all of it at once.
"""

from __future__ import annotations

import gc
import random
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from spaceless.ahead import Ahead
from spaceless.shuffle import Shuffle

Work = Callable[..., None]  # from how many images the batch of all processes has, and its parts
_EAGER = 3  # steps of a size in front of its recording: they choose algorithms and make the optimiser's tensors
_MOST = 4  # sizes that are recorded: a whole batch, the last of an epoch, some with broken images left out


class Steps:
    """Makes training steps by calling `work`, or, on a GPU, by repeating what it did.

    The same size of a batch is the same recording. What `work` reads and changes has to stay where it is in memory, and
    what it does must not depend on anything on the host that changes: neither on Python's numbers nor on its seeds,
    apart from those of `torch.manual_seed`, which is to be called before each step, and those of `shuffles`. A network
    that is seen to draw at random on the host, or to change its tensors for others, is not recorded.

    Args:
        work: Makes one step.
        model: The network that it trains.
        shuffles: The shuffles of the network; each has its count of passes set before each step.
        recording: Whether steps are recorded at all.
        moves: Whether the shuffles may use the GPU's own kernel, see `Ahead`.

    """

    def __init__(
        self, work: Work, model: nn.Module, shuffles: Sequence[Shuffle], *, recording: bool, moves: bool = False,
    ) -> None:
        """Record nothing yet."""
        self.work, self.model, self.shuffles, self.recording, self.moves = work, model, shuffles, recording, moves
        self.made: Counter[tuple[object, ...]] = Counter()
        self.ahead: dict[tuple[object, ...], Ahead] = {}
        self.recorded: dict[tuple[object, ...], _Recording] = {}
        self.pool: Any = None  # of memory, that all recordings share: no two are repeated at the same time

    def make(self, step: int, whole: int, parts: Sequence[Tensor]) -> None:
        """Make step number `step` (from 0) on the `parts` of a batch of `whole` images."""
        size = whole, *(part.shape for part in parts)
        if self.recording and self.made[size] == _EAGER and size in self.ahead:
            self._record(size, step, whole, parts)
        self.made[size] += 1
        ahead = self.ahead.get(size) or Ahead(())
        ahead.fill(step)
        if size in self.recorded:
            self.recorded[size].replay(parts)
            return
        before = _host(self.model) if self.recording and self.made[size] <= _EAGER else None
        with ahead, _benchmark(self.recording):
            self.work(whole, *parts)
        if before is not None and self.made[size] > 1 and _host(self.model) != before:  # the first may set itself up
            self._give_up("it draws random numbers on the host, or changes its tensors for others")
        if self.made[size] == 1 and len(self.ahead) < _MOST:  # which has told how large the maps are
            ahead = Ahead(self.shuffles, moves=self.moves)
            if self.recording or ahead.steps > 1:
                self.ahead[size] = ahead

    def _record(self, size: tuple[object, ...], step: int, whole: int, parts: Sequence[Tensor]) -> None:
        device = parts[0].device
        self.pool = self.pool or torch.cuda.graph_pool_handle()
        try:
            gc.collect()  # nothing must be freed within the recording
            with _benchmark(True):
                self.recorded[size] = _Recording(self.work, self.ahead[size], whole, parts, self.pool)
        except RuntimeError as error:
            _forget_recording(device, self.pool)
            if isinstance(error, torch.OutOfMemoryError):
                torch.cuda.empty_cache()
            self._give_up(str(error.__context__ or error).splitlines()[0])
            for layer in self.shuffles:  # counted by the pass that came to nothing
                layer.passes["train"] = step

    def _give_up(self, why: str) -> None:
        self.recording = False
        self.recorded.clear()
        self.ahead.clear()
        warnings.warn(
            f"a training step cannot be recorded for the GPU, so that all of its parts are launched one by one: {why}",
            stacklevel=5)


class _Recording:
    """A CUDA graph of one step, and the places that it reads its batch from."""

    def __init__(self, work: Work, ahead: Ahead, whole: int, parts: Sequence[Tensor], pool: Any) -> None:
        self.parts = [part.clone() for part in parts]
        self.graph = torch.cuda.CUDAGraph()
        with ahead, torch.cuda.graph(
            self.graph, pool=pool, stream=torch.cuda.current_stream(), capture_error_mode="thread_local",
        ):
            work(whole, *self.parts)

    def replay(self, parts: Sequence[Tensor]) -> None:
        torch._foreach_copy_(self.parts, list(parts))
        self.graph.replay()


def _host(model: nn.Module) -> tuple[object, ...]:
    """Return what a step must leave as it was: the host's random states, and where the network's tensors lie."""
    places = [tensor.data_ptr() for tensor in (*model.parameters(), *model.buffers())]
    kind, keys, *rest = np.random.get_state()
    return torch.get_rng_state().tolist(), random.getstate(), (kind, np.asarray(keys).tobytes(), *rest), places


def _forget_recording(device: torch.device, pool: Any) -> None:
    """Tell PyTorch that the recording which has failed is over: its generator and its allocator go on waiting for more.

    The functions of the allocator are PyTorch's own, as its graphs use them; without them memory is only kept longer.
    """
    own = torch.cuda.default_generators[device.index]
    fresh = torch.Generator(device).manual_seed(own.initial_seed())
    own.graphsafe_set_state(fresh.graphsafe_get_state())
    for name in ("_cuda_endAllocateToPool", "_cuda_releasePool"):
        with suppress(RuntimeError, AttributeError):
            getattr(torch._C, name)(device.index, pool)


@contextmanager
def _benchmark(wanted: bool) -> Iterator[None]:
    """Have cuDNN choose its algorithms by trying them, since each size comes again and again."""
    before = torch.backends.cudnn.benchmark
    torch.backends.cudnn.benchmark = before or (wanted and not torch.backends.cudnn.deterministic)
    try:
        yield
    finally:
        torch.backends.cudnn.benchmark = before


@contextmanager
def own_stream(device: torch.device) -> Iterator[None]:
    """Work on a stream of one's own, on a GPU: what is recorded must not be mixed with others' work."""
    if device.type != "cuda":
        yield
        return
    stream = _stream(device)
    stream.wait_stream(torch.cuda.current_stream(device))
    try:
        with torch.cuda.stream(stream):
            yield
    finally:
        torch.cuda.current_stream(device).wait_stream(stream)


@lru_cache(maxsize=16)  # each stream keeps memory of its own
def _stream(device: torch.device) -> torch.cuda.Stream:
    return torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
