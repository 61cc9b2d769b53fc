"""Several processes of this machine that run trials, each with a pipe of its own."""

from __future__ import annotations

import multiprocessing
import os
import signal
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing import resource_tracker
from multiprocessing.connection import Connection, wait
from multiprocessing.context import SpawnProcess
from types import TracebackType
from typing import Self

import torch

from spaceless.attempts import ENDINGS, Event, Stop, Tell, attempt, unforeseen
from spaceless.run import Place
from spaceless.signals import caught_signals
from spaceless.studies import Plan

_PATIENCE = 0.2  # seconds between a worker's looks at its parent, and between two pieces of news of progress


@dataclass
class _Worker:
    process: SpawnProcess
    pipe: Connection
    index: int | None = None  # of the trial at hand


class Processes:
    """Up to `jobs` worker processes, started when there is work for them; one that dies costs its attempt only.

    No queue is shared: a process that is killed while it holds the lock of a queue would silence all others.
    """

    def __init__(self, plan: Plan, place: Place, tell: Tell, *, jobs: int, threads: int) -> None:
        """Take what an attempt needs, the number of processes, and the threads of each."""
        self.plan, self.place, self.tell, self.jobs, self.threads = plan, place, tell, jobs, threads
        self.workers: list[_Worker] = []
        self.interrupted = False

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None,
    ) -> None:
        """End the workers: idle ones now, others (if we failed) after their current step."""
        for worker in self.workers:
            worker.pipe.close()
            if worker.index is not None:
                worker.process.terminate()
        for worker in self.workers:
            worker.process.join()

    def room(self) -> bool:
        """Tell whether one more trial may be given."""
        return len(self.workers) < self.jobs or any(worker.index is None for worker in self.workers)

    def give(self, index: int) -> None:
        """Give a trial to an idle worker, or to a new one."""
        worker = next((worker for worker in self.workers if worker.index is None), None) or self._start()
        worker.index = index
        with suppress(OSError):  # it has died meanwhile, which the next look for endings finds out
            worker.pipe.send(index)

    def _start(self) -> _Worker:
        context = multiprocessing.get_context("spawn")  # a forked process would inherit torch's threads half-way
        ours, theirs = context.Pipe()
        # Not a daemon, which may have no processes of its own to decode images.
        process = context.Process(
            target=_work, args=(self.plan, self.place, theirs, self.threads, self.jobs, os.getpid()))
        resource_tracker.ensure_running()  # its start, within that of the first worker, would unblock SIGINT
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})  # inherited: no Ctrl-C tears its imports apart
        try:
            process.start()
        finally:
            signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})
        theirs.close()  # so that our end tells when the worker's is gone
        self.workers.append(_Worker(process, ours))
        return self.workers[-1]

    def endings(self, patience: float) -> list[Event]:
        """Hand on the workers' news and return those of attempts that have ended."""
        found = []
        ready = wait([worker.pipe for worker in self.workers], patience)  # without any it waits all the same
        for worker in [worker for worker in self.workers if worker.pipe in ready]:
            try:
                event: Event = worker.pipe.recv()
            except (EOFError, OSError):  # it is gone, perhaps in the middle of a message
                self.workers.remove(worker)
                worker.pipe.close()
                worker.process.join()
                if worker.index is not None:
                    found.append(self._died(worker, worker.index))
                continue
            if event.kind in ENDINGS:
                worker.index = None
                found.append(event)
            else:
                self.tell(event)
        return found

    def _died(self, worker: _Worker, index: int) -> Event:
        if self.interrupted:
            return Event(index, "interrupted")
        return Event(index, "failed", error=unforeseen(
            self.plan.planned[index].trial,
            f"a worker process that ended with status {worker.process.exitcode} (killed, or out of memory)"))

    def interrupt(self) -> None:
        """Hand a signal on to the workers that have a trial at hand."""
        self.interrupted = True
        for worker in self.workers:
            if worker.index is not None:
                worker.process.terminate()


def _work(plan: Plan, place: Place, pipe: Connection, threads: int, jobs: int, parent: int) -> None:
    """Run the trials that come through `pipe` until it is closed, a signal comes or the parent is gone."""
    torch.set_num_threads(threads)
    os.environ["LOCAL_WORLD_SIZE"] = str(jobs)  # as under torchrun: the processors are shared by as many
    last_told = 0.0

    def tell(event: Event) -> None:
        nonlocal last_told
        if event.kind not in ("progress", "evaluating") or time.monotonic() - last_told > _PATIENCE:
            last_told = time.monotonic()
            with suppress(OSError):  # nobody is left to be told
                pipe.send(event)

    with caught_signals(patient=True) as asked:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})

        def stop() -> int | None:
            return signal.SIGTERM if os.getppid() != parent else asked()

        for index in _given(pipe, stop):
            tell(attempt(index, plan.planned[index], place, stop, tell))


def _given(pipe: Connection, stop: Stop) -> Iterator[int]:
    while stop() is None:
        try:
            if pipe.poll(_PATIENCE):
                yield pipe.recv()
        except (EOFError, OSError):
            return
