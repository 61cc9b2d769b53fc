"""The exclusive right to work in a folder: held by one, free when its holder is gone."""

from __future__ import annotations

import errno
import fcntl
import multiprocessing
import os
import signal

import pytest

from spaceless import claims as claims_room
from spaceless.bench.faults import claims as bench
from spaceless.claims import CLAIM, claimed, holder
from spaceless.errors import InputError

FORK = multiprocessing.get_context("fork")


def hold(folder, holding, go):
    with claimed(folder) as mine:
        assert mine
        holding.set()
        go.wait(60)


@pytest.fixture
def other(tmp_path):
    """Another process that holds the claim until `go` is set."""
    holding, go = FORK.Event(), FORK.Event()
    process = FORK.Process(target=hold, args=(tmp_path, holding, go))
    process.start()
    assert holding.wait(60)
    yield process, go
    process.kill()
    process.join()


def test_one_holds_it_and_the_others_learn_who(tmp_path, other):
    process, go = other
    with claimed(tmp_path) as mine:
        assert not mine
    words = holder(tmp_path)
    assert f"process {process.pid} on " in words
    assert " since 20" in words
    go.set()
    process.join()
    assert process.exitcode == 0
    assert not (tmp_path / CLAIM).exists()
    with claimed(tmp_path) as mine:
        assert mine
    assert holder(tmp_path) == "another process"  # nobody: there is no name to tell


def test_it_dies_with_its_holder_and_children_do_not_inherit_it(tmp_path, other):
    process, _ = other
    os.kill(process.pid, signal.SIGKILL)
    process.join()
    assert (tmp_path / CLAIM).exists()
    with claimed(tmp_path) as mine:
        assert mine
        child = FORK.Process(target=os._exit, args=(0,))  # a forked process ends, and closes what it has inherited
        child.start()
        child.join()
        seen = FORK.Queue()
        asker = FORK.Process(target=lambda: seen.put(ask(tmp_path)))
        asker.start()
        assert seen.get(timeout=60) is False
        asker.join()


def ask(folder):
    with claimed(folder) as mine:
        return mine


def test_nothing_is_left_of_a_claim_under_which_nothing_was_written(tmp_path):
    folder = tmp_path / "runs" / "trial"
    with claimed(folder) as mine:
        assert mine
        assert folder.is_dir()
    assert not folder.exists()
    with claimed(folder):
        (folder / "something").write_text("x")
    assert [path.name for path in folder.iterdir()] == ["something"]


def test_a_name_that_is_removed_between_opening_and_locking_does_not_count(tmp_path, monkeypatch):
    real, opened = fcntl.lockf, []

    def late(descriptor, operation):
        real(descriptor, operation)
        if not opened:  # the last holder ends between our open and our lock
            (tmp_path / CLAIM).unlink()
        opened.append(descriptor)

    monkeypatch.setattr(claims_room.fcntl, "lockf", late)
    with claimed(tmp_path) as mine:
        assert mine
        assert len(opened) == 2
        assert (tmp_path / CLAIM).exists()


def test_a_folder_that_cannot_be_written_to_is_named(tmp_path):
    (tmp_path / "file").write_text("x")
    with pytest.raises(InputError, match="choose another --out"), claimed(tmp_path / "file" / "trial"):
        pass


def test_a_file_system_without_locks_is_told_and_worked_on(tmp_path, monkeypatch):
    def none(*_):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(claims_room.fcntl, "lockf", none)
    with pytest.warns(UserWarning, match="keeps no locks"), claimed(tmp_path) as mine:
        assert mine


def test_many_processes_run_each_trial_once_and_take_over_from_the_dead():
    found = bench.run(lambda _: None, workers=4, trials=12, rounds=2)
    assert found["failing"] == []
    assert found["counts"] == {
        "processes": 4, "trials": 24, "run exactly once": 24, "run more than once": 0, "outcomes stored": 24,
        "claims left behind": 0, "claims of a killed process taken over": 1,
    }


def test_the_measurement_notices_claims_that_do_not_hold(monkeypatch):
    from contextlib import contextmanager

    @contextmanager
    def everybody(folder):
        folder.mkdir(parents=True, exist_ok=True)
        yield True

    monkeypatch.setattr(bench, "claimed", everybody)
    found = bench.run(lambda _: None, workers=4, trials=12, rounds=2)
    assert any("not run exactly once" in text for text in found["failing"])


def descriptors():
    return len(list(claims_room.Path("/proc/self/fd").iterdir()))


def test_a_full_disk_takes_the_signature_and_not_the_claim(tmp_path, monkeypatch):
    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(claims_room.os, "write", full)
    before = descriptors()
    with claimed(tmp_path) as mine:
        assert mine
        assert holder(tmp_path) == "another process"
    assert descriptors() == before
    assert not (tmp_path / CLAIM).exists()


def test_a_claim_is_given_back_where_its_name_cannot_be_removed(tmp_path, monkeypatch):
    def stale(self, missing_ok=False):
        raise OSError(errno.ESTALE, "Stale file handle")

    before = descriptors()
    with monkeypatch.context() as context, claimed(tmp_path) as mine:
        assert mine
        context.setattr(claims_room.Path, "unlink", stale)
    assert descriptors() == before


def test_a_working_folder_that_is_gone_is_bad_input_and_no_loop(tmp_path, monkeypatch):
    gone = tmp_path / "gone"
    gone.mkdir()
    monkeypatch.chdir(gone)
    gone.rmdir()
    with pytest.raises(InputError, match="vanishes again and again"), claimed(claims_room.Path("runs/trial")):
        pass
