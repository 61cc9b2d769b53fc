"""Files are the old or the new one, whole, whatever fails, and what killed writers leave is removed."""

from __future__ import annotations

import errno
import fcntl
import os
import resource
import stat
from pathlib import Path

import pytest

from spaceless.atomic import atomic_write, set_aside
from spaceless.errors import CheckpointError

OLD, NEW = b"the old state", b"the new state, which is longer"


@pytest.fixture
def old(tmp_path: Path) -> Path:
    path = tmp_path / "outcome.json"
    atomic_write(path, OLD)
    return path


def failing(*_args, **_kwargs):
    raise OSError(errno.ENOSPC, "No space left on device")


def test_the_new_content_replaces_the_old_and_nothing_else_is_left(old):
    atomic_write(old, NEW)
    assert old.read_bytes() == NEW
    assert [p.name for p in old.parent.iterdir()] == ["outcome.json"]


@pytest.mark.parametrize("step", ["replace", "fsync", "fchmod", "write"])
def test_a_failure_at_any_step_leaves_the_old_file(old, monkeypatch, step):
    monkeypatch.setattr(os, step, failing)
    with pytest.raises(CheckpointError, match=r"outcome\.json: found No space left on device"):
        atomic_write(old, NEW)
    assert old.read_bytes() == OLD
    assert [p.name for p in old.parent.iterdir()] == ["outcome.json"]


def test_a_disk_that_fills_up_while_writing_leaves_the_old_file(old):
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 16, limits[1]))
    try:
        with pytest.raises(CheckpointError, match=r"outcome\.json"):
            atomic_write(old, bytes(1 << 20))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert old.read_bytes() == OLD
    assert [p.name for p in old.parent.iterdir()] == ["outcome.json"]


def test_a_file_system_that_cannot_flush_folders_is_no_error(old, monkeypatch):
    flush = os.fsync
    monkeypatch.setattr(os, "fsync", lambda d: failing() if stat.S_ISDIR(os.fstat(d).st_mode) else flush(d))
    atomic_write(old, NEW)
    assert old.read_bytes() == NEW


def test_content_is_on_disk_before_the_name_points_at_it(old, monkeypatch):
    done = []
    flush, replace = os.fsync, os.replace
    monkeypatch.setattr(os, "fsync", lambda d: (done.append(stat.S_ISDIR(os.fstat(d).st_mode)), flush(d))[1])
    monkeypatch.setattr(os, "replace", lambda *names: (done.append("replace"), replace(*names))[1])
    monkeypatch.setattr(os, "fchmod", lambda *words: done.append("mode"))
    atomic_write(old, NEW)
    assert done == ["mode", False, "replace", True]


def test_folders_that_are_made_are_on_disk_too(tmp_path, monkeypatch):
    flushed, flush = [], os.fsync
    monkeypatch.setattr(os, "fsync", lambda d: (flushed.append(Path(f"/proc/self/fd/{d}").resolve()), flush(d))[1])
    atomic_write(tmp_path / "a" / "b" / "c.json", NEW)
    assert {tmp_path, tmp_path / "a", tmp_path / "a" / "b"} <= set(flushed)


def test_a_write_that_is_cut_short_goes_on(old, monkeypatch):
    write = os.write
    monkeypatch.setattr(os, "write", lambda d, content: write(d, bytes(content[:7])))
    atomic_write(old, NEW)
    assert old.read_bytes() == NEW


def test_a_place_that_is_a_file_is_a_checkpoint_error(old):
    with pytest.raises(CheckpointError):
        atomic_write(old / "below" / "a.json", NEW)
    assert old.read_bytes() == OLD


def test_files_are_readable_as_the_umask_says(tmp_path):
    before = os.umask(0o027)
    try:
        atomic_write(tmp_path / "a", NEW)
        assert os.umask(0o027) == 0o027
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "a").stat().st_mode) == 0o640


# --- what killed writers leave ---------------------------------------------------------------------------------------

ABANDONED = ".state-000000007.json.abcd_123.tmp"


def test_temporary_files_that_nobody_writes_are_removed_at_the_next_write(old):
    (old.parent / ABANDONED).write_bytes(b"half")
    kept = [".hidden.tmp", "mine.tmp", ".outcome.json.short.tmp", "x.outcome.json.abcd_123.tmp"]
    for name in kept:
        (old.parent / name).write_bytes(b"not ours")
    atomic_write(old, NEW)
    assert sorted(p.name for p in old.parent.iterdir()) == sorted([*kept, "outcome.json"])


def test_a_temporary_file_that_is_being_written_stays(old):
    with (old.parent / ABANDONED).open("wb") as other:
        fcntl.flock(other, fcntl.LOCK_EX)
        atomic_write(old, NEW)
        assert (old.parent / ABANDONED).exists()
    atomic_write(old, OLD)
    assert not (old.parent / ABANDONED).exists()


def test_a_writer_holds_the_lock_until_its_file_has_its_name(old, monkeypatch):
    seen, replace = [], os.replace

    def looking(temporary, path):
        with Path(temporary).open("rb") as found, pytest.raises(BlockingIOError):
            fcntl.flock(found, fcntl.LOCK_EX | fcntl.LOCK_NB)
        atomic_write(old.with_name("another.json"), OLD)  # which looks for what is abandoned
        seen.append(Path(temporary).exists())
        monkeypatch.setattr(os, "replace", replace)
        replace(temporary, path)

    monkeypatch.setattr(
        os, "replace", lambda *names: replace(*names) if "another" in str(names[1]) else looking(*names))
    atomic_write(old, NEW)
    assert (seen, old.read_bytes()) == ([True], NEW)


def test_a_file_that_was_taken_for_abandoned_before_it_was_locked_is_made_again(old, monkeypatch):
    lock, taken = fcntl.flock, []

    def late(descriptor, how):
        if how == fcntl.LOCK_EX and not taken:
            taken.append(Path(f"/proc/self/fd/{descriptor}").resolve())
            taken[0].unlink()
        lock(descriptor, how)

    monkeypatch.setattr(fcntl, "flock", late)
    atomic_write(old, NEW)
    assert taken
    assert old.read_bytes() == NEW


def test_a_file_system_without_locks_is_written_to_and_nothing_is_taken_for_abandoned(old, monkeypatch):
    (old.parent / ABANDONED).write_bytes(b"half")
    monkeypatch.setattr(fcntl, "flock", failing)
    atomic_write(old, NEW)
    assert old.read_bytes() == NEW
    assert (old.parent / ABANDONED).exists()


# --- broken files ----------------------------------------------------------------------------------------------------


def test_a_broken_file_is_set_aside_once(old):
    assert set_aside(old).read_bytes() == OLD
    assert not old.exists()
    assert set_aside(old).read_bytes() == OLD  # another process was faster


def test_a_file_that_cannot_be_set_aside_is_named(old, monkeypatch):
    monkeypatch.setattr(os, "replace", failing)
    with pytest.raises(CheckpointError, match=r"outcome\.json: found a broken file that cannot be renamed"):
        set_aside(old)
