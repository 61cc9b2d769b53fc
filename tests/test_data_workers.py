"""Worker processes: how many, whom they obey, how long they live."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import pytest
import torch

from made_folders import make_folders
from spaceless.data import find
from spaceless.data.feed import training_batches
from spaceless.data.stream import open_stream
from spaceless.data.workers import worker_count
from spaceless.errors import InputError
from spaceless.trial import RECIPES

RECIPE = RECIPES["imagenet"].model_copy(update={"epochs": 2, "batch_size": 5})


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return make_folders(tmp_path_factory.mktemp("data") / "imagenet")


def test_processors_are_shared_by_the_processes_of_a_machine(monkeypatch):
    monkeypatch.delenv("SPACELESS_WORKERS", raising=False)
    monkeypatch.delenv("LOCAL_WORLD_SIZE", raising=False)
    for processors, processes, expected in ((12, 1, 12), (12, 4, 3), (12, 5, 2), (2, 4, 1), (96, 1, 16)):
        monkeypatch.setattr(os, "sched_getaffinity", lambda _, n=processors: set(range(n)), raising=False)
        monkeypatch.setenv("LOCAL_WORLD_SIZE", str(processes))
        assert worker_count() == expected
    for text, expected in (("0", 0), ("7", 7)):
        monkeypatch.setenv("SPACELESS_WORKERS", text)
        assert worker_count() == expected
    for text in ("-1", "two", "1.5"):
        monkeypatch.setenv("SPACELESS_WORKERS", text)
        with pytest.raises(InputError, match="SPACELESS_WORKERS"):
            worker_count()


ENDLESS = """
import sys, time
from spaceless.data import find
from spaceless.data.feed import training_batches
from spaceless.data.stream import open_stream
from spaceless.signals import caught_signals
from spaceless.trial import RECIPES
import torch
data = open_stream(find(sys.argv[1]), 24)
recipe = RECIPES["imagenet"].model_copy(update={"epochs": 10**6, "batch_size": 5})
more = 60  # batches after the signal: far more than have been decoded ahead
with caught_signals() as stop:
    for number, batch in enumerate(training_batches(data, recipe, 0, 0, torch.device("cpu"))):
        if number == 2:
            print("running", flush=True)
        if stop():
            time.sleep(0.01)
            more -= 1
        if not more:
            print("stopping", flush=True)
            break
"""


@pytest.fixture
def endless(folder):
    """A process with two workers that takes batches until a signal comes."""
    process = subprocess.Popen(
        [sys.executable, "-c", ENDLESS, str(folder)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        start_new_session=True, env=os.environ | {"SPACELESS_WORKERS": "2", "OMP_NUM_THREADS": "1"},
    )
    assert process.stdout.readline() == "running\n"
    yield process
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.communicate()


def children(pid: int) -> list[int]:
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def running(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except FileNotFoundError:
        return False


def gone(pids: list[int], seconds: float = 20) -> bool:
    end = time.monotonic() + seconds
    while any(running(pid) for pid in pids):
        if time.monotonic() > end:
            return False
        time.sleep(0.05)
    return True


@pytest.mark.skipif(not Path("/proc/self/task").is_dir(), reason="needs /proc")
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_to_the_whole_group_does_not_disturb_the_workers(endless, number):
    workers = children(endless.pid)
    assert len(workers) == 2
    os.killpg(endless.pid, number)
    out, errors = endless.communicate(timeout=60)
    assert (endless.returncode, out, errors) == (0, "stopping\n", "")
    assert gone(workers)


@pytest.mark.skipif(not Path("/proc/self/task").is_dir(), reason="needs /proc")
def test_workers_die_with_their_parent(endless):
    workers = children(endless.pid)
    assert len(workers) == 2 and all(running(worker) for worker in workers)
    endless.kill()
    endless.wait(timeout=60)
    assert gone(workers), "workers outlive their parent"


@pytest.mark.skipif(not Path("/proc/self/task").is_dir(), reason="needs /proc")
def test_workers_last_as_long_as_the_batches_are_wanted(folder, monkeypatch):
    monkeypatch.setenv("SPACELESS_WORKERS", "2")
    before = set(children(os.getpid()))
    feed = training_batches(open_stream(find(folder), 24), RECIPE, 0, 0, torch.device("cpu"))
    seen = set()
    for _ in range(6):  # into the second epoch: the same processes
        next(feed)
        seen |= set(children(os.getpid())) - before
    assert len(seen) == 2
    feed.close()
    assert gone(list(seen), 6) and set(children(os.getpid())) <= before
