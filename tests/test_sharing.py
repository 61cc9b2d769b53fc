"""Several processes on one GPU: the service is started, used and ended, or its absence put up with."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from spaceless import sharing
from spaceless.sharing import shared_gpu

PLACES = ("CUDA_MPS_PIPE_DIRECTORY", "CUDA_MPS_LOG_DIRECTORY")


@pytest.fixture
def path(tmp_path, monkeypatch) -> Path:
    folder = tmp_path / "bin"
    folder.mkdir()
    monkeypatch.setenv("PATH", str(folder) + os.pathsep + os.defpath)
    monkeypatch.setattr(sharing, "_PROBE", "import os; assert os.environ['CUDA_MPS_PIPE_DIRECTORY']")
    for name in PLACES:
        monkeypatch.delenv(name, raising=False)
    return folder


def service(path: Path, status: int = 0) -> Path:
    """Put a program there that notes how it is called, where it is asked to live and what it is told."""
    notes = path / "notes"
    program = path / "nvidia-cuda-mps-control"
    program.write_text(f"""#!/bin/sh
echo "$* $CUDA_MPS_PIPE_DIRECTORY$CUDA_VISIBLE_DEVICES" >> {notes}
[ "$1" = -d ] || cat >> {notes}
exit {status}
""", encoding="utf-8")
    program.chmod(0o755)
    return notes


def test_it_is_started_in_a_place_of_its_own_and_told_to_quit(path, monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "1")  # for the processes, not for the service
    notes = service(path)
    with shared_gpu() as shared:
        assert shared
        place = os.environ[PLACES[0]]
        assert os.environ[PLACES[1]] == place
        assert Path(place).is_dir()
        assert notes.read_text(encoding="utf-8") == f"-d {place}\n"
    assert notes.read_text(encoding="utf-8") == f"-d {place}\n {place}\nquit\n"
    assert not Path(place).exists()
    assert not any(name in os.environ for name in PLACES)


def test_it_ends_with_an_error_too(path):
    notes = service(path)
    with pytest.raises(ZeroDivisionError), shared_gpu():
        raise ZeroDivisionError
    assert notes.read_text(encoding="utf-8").endswith("quit\n")


def test_one_that_is_there_is_used(path, monkeypatch):
    notes = service(path)
    monkeypatch.setenv(PLACES[0], "/somewhere")
    with shared_gpu() as shared:
        assert shared
        assert os.environ[PLACES[0]] == "/somewhere"
    assert not notes.exists()


def test_without_it_processes_take_turns(path):
    with shared_gpu() as shared:
        assert not shared
    service(path, status=3)
    with pytest.warns(UserWarning, match="take turns"), shared_gpu() as shared:
        assert not shared


def test_one_that_starts_and_does_not_serve_is_told_to_quit(path, monkeypatch):
    notes = service(path)
    monkeypatch.setattr(sharing, "_PROBE", "raise SystemExit(1)")
    with pytest.warns(UserWarning, match="does not serve"), shared_gpu() as shared:
        assert not shared
    assert notes.read_text(encoding="utf-8").endswith("quit\n")
    assert not any(name in os.environ for name in PLACES)
