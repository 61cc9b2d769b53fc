"""A disk that fills up within a study: no corrupt file now, and writes that would leave one are found out."""

from __future__ import annotations

import os
import resource
from contextlib import suppress

import pytest
import torch

from spaceless import checkpoint
from spaceless.atomic import atomic_write
from spaceless.bench.faults import full_disk
from spaceless.bench.faults.tiny_trials import FOUR
from spaceless.errors import CheckpointError

torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def a_disk_that_flushes_at_once(monkeypatch):
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)


def measure(points: int = 2) -> dict:
    return full_disk.run(lambda _: None, points=points)


def test_nothing_is_corrupt_and_the_study_completes_with_room_again():
    found = measure()
    assert found["failing"] == []
    counts = found["counts"]
    assert counts["points"] == counts["ended with an error that says so"] == 2
    assert counts["completed with room again, outcomes identical"] == 2
    assert counts["corrupt files"] == 0
    assert counts["files looked at"] > 10
    assert counts["writes of the study"] > 60  # four trials, eight states each, in two files


def _in_place(path, content):
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
    try:
        os.write(descriptor, content)
    finally:
        os.close(descriptor)


def test_half_files_are_found_out(monkeypatch):
    monkeypatch.setattr(checkpoint, "atomic_write", _in_place)
    found = measure(4)  # not every write is one of a state
    assert found["counts"]["corrupt files"] > 0
    assert len(found["failing"]) >= found["counts"]["corrupt files"]


def test_a_failure_that_is_swallowed_is_found_out(monkeypatch):
    for module in ("records", "checkpoint", "run"):
        monkeypatch.setattr(f"spaceless.{module}.atomic_write", _quiet)
    found = measure()
    assert found["counts"]["ended with an error that says so"] == 0
    assert sum("full from write" in each and "said" in each for each in found["failing"]) == 2


def _quiet(path, content):
    with suppress(CheckpointError):
        atomic_write(path, content)


def test_a_study_that_does_not_complete_is_found_out(monkeypatch):
    usual = full_disk._limited

    def leaving_a_lock(root, number):
        said = usual(root, number)
        _, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (hard, hard))
        (root / FOUR[3].id).mkdir(exist_ok=True)
        (root / FOUR[3].id / "trial.json").write_text(FOUR[2].model_dump_json())
        return said

    monkeypatch.setattr(full_disk, "_limited", leaving_a_lock)
    found = measure(1)
    assert found["counts"]["completed with room again, outcomes identical"] == 0
    assert any("not the same outcomes" in each for each in found["failing"])
