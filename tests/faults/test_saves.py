"""Exits at the file operations of saves: nothing is lost now, and a save that would lose something is found out."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

import pytest
import torch

from spaceless import atomic, checkpoint
from spaceless.bench.faults import saves

torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def a_disk_that_flushes_at_once(monkeypatch):
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)


def measure(**sizes) -> dict:
    return saves.run(lambda _: None, **{"trainings": 0, "stride": 7} | sizes)


def test_the_old_or_the_new_state_is_always_there():
    found = measure(trainings=6)
    assert found["failing"] == []
    counts = found["counts"]
    assert counts["exits within saves"] > 30
    assert counts["old or new state there, bit for bit"] == counts["exits within saves"]
    assert counts["gone on with, nothing left behind"] == counts["exits within saves"]
    assert counts["of them old"] + counts["of them new"] == counts["exits within saves"]
    assert min(counts["of them old"], counts["of them new"]) > 5
    assert counts["exits within trainings"] == counts["same outcome and files after the same command"] == 6
    assert counts["file operations of saves"] > 60


def test_other_values_and_points_by_another_seed():
    assert measure(stride=40, seed=1)["failing"] == []


def _in_place(path, content):
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
    os.write(descriptor, content)
    os.close(descriptor)


def test_writing_in_place_is_found_out(monkeypatch):
    monkeypatch.setattr("spaceless.records.atomic_write", _in_place)
    monkeypatch.setattr(checkpoint, "atomic_write", _in_place)
    assert any("within write" in each for each in measure(stride=2)["failing"])


def _not_flushed(path, content):
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".tmp")
    os.write(descriptor, content)
    os.close(descriptor)
    Path(name).replace(path)


def test_content_that_is_not_flushed_before_its_name_is_found_out(monkeypatch):
    monkeypatch.setattr("spaceless.records.atomic_write", _not_flushed)
    monkeypatch.setattr(checkpoint, "atomic_write", _not_flushed)
    failing = [each for each in measure(stride=2)["failing"] if ".tmp" not in each]
    assert failing
    assert all(", power " in each for each in failing)


def test_the_manifest_before_its_tensors_is_found_out(monkeypatch):
    write, waiting = checkpoint.atomic_write, []

    def turned(path, content):
        if path.suffix == ".safetensors":
            waiting.append((path, content))
        else:
            write(path, content)
            write(*waiting.pop())

    monkeypatch.setattr(checkpoint, "atomic_write", turned)
    assert any("is set aside" in each for each in measure(stride=6)["failing"])


def test_temporary_files_that_are_left_are_found_out(monkeypatch):
    monkeypatch.setattr(atomic, "remove_abandoned", lambda folder: None)
    failing = measure(stride=6)["failing"]
    assert failing
    assert all(".tmp" in each for each in failing)


def test_a_training_that_goes_on_from_the_wrong_place_is_found_out(monkeypatch):
    def forgetful(folder, state, step, trial):
        return save(folder, {**state, "optimizer": {**state["optimizer"], "state": {}}}, step, trial)

    save = checkpoint.save
    monkeypatch.setattr(checkpoint, "save", forgetful)
    failing = measure(stride=1000, trainings=8)["failing"]
    assert failing
    assert all("another outcome" in each for each in failing)


def test_a_point_that_is_not_reached_is_no_success(monkeypatch):
    monkeypatch.setattr(saves, "ended_at", lambda number, when: lambda operation: operation.do())
    found = measure(stride=20)
    assert found["counts"].get("exits within saves", 0) == 0
    assert all("ended with status 0" in each for each in found["failing"])
