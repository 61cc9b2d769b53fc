"""Training steps that a GPU repeats from a recording: told once what to do, it needs no more words from the host.

An eager step of VGG-16 takes several milliseconds of Python and kernel launches, its arithmetic on a fast GPU less than
one. A CUDA graph launches all of it at once.
"""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor

from spaceless.ahead import Ahead
from spaceless.shuffle import Shuffle

Work = Callable[..., None]  # from how many images the batch of all processes has, and its parts
_EAGER = 3  # steps of a size in front of its recording: they choose algorithms and make the optimiser's tensors


class Steps:
    """Makes training steps by calling `work`, or, on a GPU, by repeating what it did.

    The same size of a batch is the same recording. What `work` reads and changes has to stay where it is in memory, and
    what it does must not depend on anything on the host that changes: neither on Python's numbers nor on its seeds,
    apart from those of `torch.manual_seed`, which is to be called before each step, and those of `shuffles`.

    Args:
        work: Makes one step.
        shuffles: The shuffles of the network; each has its count of passes set before each step.
        recording: Whether steps are recorded at all.
        moves: Whether the shuffles may use the GPU's own kernel, see `Ahead`.

    """

    def __init__(self, work: Work, shuffles: Sequence[Shuffle], *, recording: bool, moves: bool = False) -> None:
        """Record nothing yet."""
        self.work, self.shuffles, self.recording, self.moves = work, shuffles, recording, moves
        self.made: Counter[tuple[object, ...]] = Counter()
        self.ahead: dict[tuple[object, ...], Ahead] = {}
        self.recorded: dict[tuple[object, ...], _Recording] = {}

    def make(self, step: int, whole: int, parts: Sequence[Tensor]) -> None:
        """Make step number `step` (from 0) on the `parts` of a batch of `whole` images."""
        size = whole, *(part.shape for part in parts)
        if self.recording and self.made[size] == 1:  # the first has told how large the maps are
            self.ahead[size] = Ahead(self.shuffles, moves=self.moves)
        if self.recording and self.made[size] == _EAGER:
            self._record(size, whole, parts)
        self.made[size] += 1
        ahead = self.ahead.get(size, Ahead(())) if self.recording else Ahead(())
        ahead.fill(step)
        if size in self.recorded:
            self.recorded[size].replay(parts)
            return
        with ahead, torch.backends.cudnn.flags(enabled=True, benchmark=self.recording):  # a size comes again and again
            self.work(whole, *parts)

    def _record(self, size: tuple[object, ...], whole: int, parts: Sequence[Tensor]) -> None:
        try:
            self.recorded[size] = _Recording(self.work, self.ahead[size], whole, parts)
        except RuntimeError as error:
            if isinstance(error, torch.OutOfMemoryError):
                raise
            self.recording = False
            own = torch.cuda.default_generators[parts[0].device.index]
            fresh = torch.Generator(parts[0].device).manual_seed(own.initial_seed())
            own.graphsafe_set_state(fresh.graphsafe_get_state())  # it would go on as if a step were being recorded
            warnings.warn(
                f"a training step cannot be recorded for the GPU, so that all of its parts are launched one by one: "
                f"{str(error.__context__ or error).splitlines()[0]}", stacklevel=4)


class _Recording:
    """A CUDA graph of one step, and the places that it reads its batch and its permutations from."""

    def __init__(self, work: Work, ahead: Ahead, whole: int, parts: Sequence[Tensor]) -> None:
        self.parts = [part.clone() for part in parts]
        self.graph = torch.cuda.CUDAGraph()
        with ahead, torch.cuda.graph(
            self.graph, stream=torch.cuda.current_stream(), capture_error_mode="thread_local",
        ):
            work(whole, *self.parts)

    def replay(self, parts: Sequence[Tensor]) -> None:
        torch._foreach_copy_(self.parts, list(parts))
        self.graph.replay()


@contextmanager
def own_stream(device: torch.device) -> Iterator[None]:
    """Work on a stream of one's own, on a GPU: what is recorded must not be mixed with others' work."""
    if device.type != "cuda":
        yield
        return
    stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
    stream.wait_stream(torch.cuda.current_stream(device))
    try:
        with torch.cuda.stream(stream):
            yield
    finally:
        torch.cuda.current_stream(device).wait_stream(stream)
