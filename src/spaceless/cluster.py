"""Trials on a Ray cluster: Ray finds a machine and a GPU for each; which ones, skipping and resuming stay ours."""

from __future__ import annotations

import os
import shutil
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from spaceless.attempts import Event, Tell, attempt, finished, unforeseen
from spaceless.distributed import share
from spaceless.errors import InputError
from spaceless.paper import Planned
from spaceless.run import Place
from spaceless.studies import Plan

_LISTENING = 10.0  # seconds in which a cluster has to answer
_JOINING = 30.0  # seconds in which a machine that is large enough has to have joined
_EVERY = 1.0  # seconds between an attempt's words with the one that gave it out


@dataclass(frozen=True)
class Cluster:
    """Where the cluster is, and what each trial gets of it.

    Args:
        address: As `ray.init` takes it, such as `auto` or `ray://head:10001`; `local` starts one on this machine.
        gpus: For each process of a trial; several trials share a GPU by fractions. None is 1 where there are GPUs.
        processes: Processes that share each trial's batches (DDP in Ray Train), each with `gpus`.

    """

    address: str
    gpus: float | None = None
    processes: int = 1


@contextmanager
def on_cluster(cluster: Cluster, plan: Plan, place: Place, tell: Tell, *, threads: int) -> Iterator[OnCluster]:
    """Connect to the cluster and give the hands that run trials there, with `threads` processor threads each.

    The folder of outcomes has to be one that all of its machines see under the same path; so have the data.

    Raises:
        InputError: Ray is not installed, no cluster answers there, or it can never run such a trial.

    """
    local = cluster.address == "local"
    if not local:
        _offer_token()
    try:
        import ray
    except ImportError as error:
        raise InputError(
            "--ray", found="no package ray", expected="Ray", cure="install it: pip install 'ray[train]'") from error
    if cluster.processes < 1 or (cluster.gpus is not None and cluster.gpus < 0):
        what = ("--processes", cluster.processes, 1) if cluster.processes < 1 else ("--gpus", cluster.gpus, 0)
        raise InputError(what[0], found=what[1], expected=f"at least {what[2]}", cure="leave it out")
    _answering(cluster.address)
    try:
        # The address "local" is Ray's own word for a cluster that lives as long as we do.
        ray.init(cluster.address, log_to_driver=False, logging_level="error", **(
            {"include_dashboard": False} if local else {}))
    except (ConnectionError, ValueError, RuntimeError, OSError) as error:
        raise _no_cluster(cluster.address, error) from error
    try:
        there = ray.cluster_resources()
        gpus = cluster.gpus if cluster.gpus is not None else float(there.get("GPU", 0) > 0)
        for kind, needed in (("CPU", threads), ("GPU", gpus)):
            if needed > (largest := _largest(kind, needed, 0 if local else _JOINING)):
                raise InputError(
                    "--ray", found=f"{largest:g} {kind}s on its largest machine",
                    expected=f"at least {needed:g} for each process", cure="lower --threads or --gpus")
        yield OnCluster(replace(cluster, gpus=gpus), plan, replace(place, out=place.out.resolve()), tell, threads)
    finally:
        ray.shutdown()


def _largest(kind: str, needed: float, patience: float) -> float:
    """Return the most of a resource that one machine has, as soon as that is enough or patience has run out."""
    import ray

    end = time.monotonic() + patience
    while True:
        largest = max((node["Resources"].get(kind, 0.0) for node in ray.nodes() if node["Alive"]), default=0.0)
        if largest >= needed or time.monotonic() >= end:
            return float(largest)
        time.sleep(0.5)


def _offer_token() -> None:
    """Let Ray show the token of this machine, if it has one: given an address, it does not look for one by itself.

    `ray start` asks for a token wherever it finds one, and from 2.59 on every cluster of `ray.init` leaves one. Ray
    reads the mode when it is imported. A cluster that asks for no token does not mind being shown one.
    """
    kept = (Path.home() / ".ray" / "auth_token").is_file()
    if kept or os.environ.get("RAY_AUTH_TOKEN") or os.environ.get("RAY_AUTH_TOKEN_PATH"):
        os.environ.setdefault("RAY_AUTH_MODE", "token")


def _answering(address: str) -> None:
    """Raise InputError if nobody listens at `address`; Ray itself would try for minutes."""
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if not host:  # a word of Ray's own
        return
    try:
        with socket.create_connection((host, int(port)), timeout=_LISTENING):
            pass
    except (OSError, ValueError) as error:
        raise _no_cluster(address, error) from error


def _no_cluster(address: str, error: Exception) -> InputError:
    return InputError(
        "--ray", found=f"no cluster at {address} ({str(error).splitlines()[0][:120]})",
        expected="the address of a running cluster, auto, or local",
        cure="start one (`ray start --head`) or use --ray local; one that asks for a token has to find its own in "
        "~/.ray/auth_token here")


class OnCluster:
    """Hands for `dispatch`: every trial is a task of Ray, which queues what has no room yet."""

    def __init__(self, cluster: Cluster, plan: Plan, place: Place, tell: Tell, threads: int) -> None:
        """Start the actor that carries news; made by `on_cluster`."""
        import ray
        from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

        self.cluster, self.plan, self.place, self.tell, self.threads = cluster, plan, place, tell, threads
        # On our own machine: anywhere else it would go down with that one, and the study with it.
        here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
        self.news = ray.remote(_News).options(num_cpus=0, scheduling_strategy=here).remote()
        self.running: dict[Any, int] = {}  # the number of each task's trial
        self.interrupted = False

    def room(self) -> bool:
        """Tell whether one more trial may be given: always, so that a cluster that can grow knows how much waits."""
        return True

    def give(self, index: int) -> None:
        """Hand a trial to Ray."""
        import ray

        several = self.cluster.processes > 1
        task = ray.remote(_run_together if several else _run_alone).options(
            num_cpus=0 if several else self.threads, num_gpus=0 if several else self.cluster.gpus,
            max_retries=0, name=self.plan.planned[index].trial.label)
        given = _Given(index, self.plan.planned[index], self.place, self.cluster, self.threads, Path.cwd(), self.news)
        self.running[task.remote(given)] = index

    def endings(self, patience: float) -> list[Event]:
        """Hand on the news of all attempts and return those that have ended."""
        import ray

        if not self.running:
            time.sleep(patience)
            return []
        ended, _ = ray.wait(list(self.running), num_returns=len(self.running), timeout=patience)
        for event in ray.get(self.news.taken.remote()):
            self.tell(event)
        return [self._ending(task, self.running.pop(task)) for task in ended]

    def _ending(self, task: Any, index: int) -> Event:
        import ray

        try:
            event: Event = ray.get(task)
        except ray.exceptions.RayError as error:  # its process or its machine is gone, or an error in several processes
            if self.interrupted:
                return Event(index, "interrupted")
            found = f"{type(error).__name__}: {str(error).strip().splitlines()[-1]}"
            return Event(index, "failed", error=unforeseen(self.plan.planned[index].trial, found))
        if event.kind == "finished" and finished(self.plan.planned[index], self.place) is None:
            return Event(index, "failed", error=InputError(
                str(self.place.out), found="no outcome in it, though a machine of the cluster has written one there",
                expected="a folder that all machines share", cure="choose an --out on shared storage"))
        return event

    def interrupt(self) -> None:
        """Have every attempt save its state and end."""
        import ray

        self.interrupted = True
        ray.get(self.news.interrupt.remote())


class _News:
    """The actor that attempts tell their news and ask whether to end."""

    def __init__(self) -> None:
        self.events: list[Event] = []
        self.ending: dict[int, Event] = {}
        self.interrupted = False

    def put(self, event: Event) -> None:
        self.events.append(event)

    def taken(self) -> list[Event]:
        events, self.events = self.events, []
        return events

    def end(self, event: Event) -> None:
        self.ending[event.index] = event

    def ended(self, index: int) -> Event:
        return self.ending.pop(index)

    def interrupt(self) -> None:
        self.interrupted = True

    def asked(self) -> int | None:
        return 15 if self.interrupted else None  # SIGTERM, whatever the one was that reached the other end


class _Line:
    """An attempt's line to the actor, on which it does not speak more often than it must."""

    def __init__(self, news: Any) -> None:
        self.news, self.told, self.listened = news, 0.0, 0.0

    def tell(self, event: Event) -> None:
        if event.kind not in ("progress", "evaluating") or time.monotonic() - self.told > _EVERY:
            self.told = time.monotonic()
            self.news.put.remote(event)

    def stop(self) -> int | None:
        import ray

        if time.monotonic() - self.listened < _EVERY:
            return None
        self.listened = time.monotonic()
        return ray.get(self.news.asked.remote())  # type: ignore[no-any-return]


@dataclass(frozen=True)
class _Given:
    index: int
    planned: Planned
    place: Place
    cluster: Cluster
    threads: int
    home: Path  # the folder that relative paths of data begin at
    news: Any

    def settle(self) -> _Line:
        """Make this process one in which the trial computes what it would compute elsewhere."""
        with suppress(OSError):
            os.chdir(self.home)
        torch.set_num_threads(self.threads)
        # As under torchrun: that many processes share the processors of this machine.
        os.environ["LOCAL_WORLD_SIZE"] = str(max(1, (os.cpu_count() or 1) // self.threads))
        return _Line(self.news)


def _run_alone(given: _Given) -> Event:
    line = given.settle()
    return attempt(given.index, given.planned, given.place, line.stop, line.tell)


def _run_together(given: _Given) -> Event:
    import ray
    from ray.train import FailureConfig, RunConfig, ScalingConfig
    from ray.train.torch import TorchConfig, TorchTrainer

    gpus, notes = given.cluster.gpus, given.place.out / ".ray" / given.planned.trial.id
    trainer = TorchTrainer(
        _loop, train_loop_config={"given": given},
        scaling_config=ScalingConfig(
            num_workers=given.cluster.processes, use_gpu=bool(gpus),
            resources_per_worker={"CPU": given.threads} | ({"GPU": gpus} if gpus else {})),
        # Both, as in `distributed.joined`: tensors on the GPU travel by NCCL, agreements by gloo.
        torch_config=TorchConfig(backend="cpu:gloo,cuda:nccl" if gpus else "gloo"),
        run_config=RunConfig(
            name=notes.name, storage_path=str(notes.parent), failure_config=FailureConfig(max_failures=0)),
    )
    try:
        trainer.fit()
    finally:  # Ray's own notes; ours are in the trial's folder
        shutil.rmtree(notes, ignore_errors=True)
        with suppress(OSError):
            notes.parent.rmdir()
    return ray.get(given.news.ended.remote(given.index))  # type: ignore[no-any-return]


def _loop(config: dict[str, Any]) -> None:
    """Be one of the processes of a trial, within Ray Train, which has joined them."""
    import ray
    from ray.train.torch import get_device

    given: _Given = config["given"]
    line = given.settle()
    if (device := get_device()).type == "cuda":
        torch.cuda.set_device(device)
    tell = line.tell if share().rank == 0 else lambda _: None
    ending = attempt(given.index, given.planned, given.place, line.stop, tell)
    if share().rank == 0:
        ray.get(given.news.end.remote(ending))
