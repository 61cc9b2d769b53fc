"""Files are the old or the new state, whole, whatever fails; a state that is not what was saved is never used."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import pickle
import resource
import stat
import warnings
from pathlib import Path

import pytest
import torch

from spaceless import checkpoint
from spaceless.errors import CheckpointError

OLD, NEW = b"the old state", b"the new state, which is longer"


@pytest.fixture
def old(tmp_path: Path) -> Path:
    path = tmp_path / "outcome.json"
    checkpoint.atomic_write(path, OLD)
    return path


def failing(*_args, **_kwargs):
    raise OSError(errno.ENOSPC, "No space left on device")


def test_the_new_content_replaces_the_old_and_nothing_else_is_left(old):
    checkpoint.atomic_write(old, NEW)
    assert old.read_bytes() == NEW
    assert [p.name for p in old.parent.iterdir()] == ["outcome.json"]


@pytest.mark.parametrize("step", ["replace", "fsync", "chmod"])
def test_a_failure_at_any_step_leaves_the_old_file(old, monkeypatch, step):
    monkeypatch.setattr(os, step, failing)
    with pytest.raises(CheckpointError, match=r"outcome\.json: found No space left on device"):
        checkpoint.atomic_write(old, NEW)
    assert old.read_bytes() == OLD
    assert [p.name for p in old.parent.iterdir()] == ["outcome.json"]


def test_a_disk_that_fills_up_while_writing_leaves_the_old_file(old):
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 16, limits[1]))
    try:
        with pytest.raises(CheckpointError, match=r"outcome\.json"):
            checkpoint.atomic_write(old, bytes(1 << 20))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert old.read_bytes() == OLD
    assert [p.name for p in old.parent.iterdir()] == ["outcome.json"]


def test_a_file_system_that_cannot_flush_folders_is_no_error(old, monkeypatch):
    flush = os.fsync
    monkeypatch.setattr(os, "fsync", lambda d: failing() if stat.S_ISDIR(os.fstat(d).st_mode) else flush(d))
    checkpoint.atomic_write(old, NEW)
    assert old.read_bytes() == NEW


def test_content_is_on_disk_before_the_name_points_at_it(old, monkeypatch):
    done = []
    flush, replace = os.fsync, os.replace
    monkeypatch.setattr(os, "fsync", lambda d: (done.append(stat.S_ISDIR(os.fstat(d).st_mode)), flush(d))[1])
    monkeypatch.setattr(os, "replace", lambda *names: (done.append("replace"), replace(*names))[1])
    checkpoint.atomic_write(old, NEW)
    assert done == [False, "replace", True]


def test_a_place_that_is_a_file_is_a_checkpoint_error(old):
    with pytest.raises(CheckpointError):
        checkpoint.atomic_write(old / "below" / "a.json", NEW)
    assert old.read_bytes() == OLD


def test_files_are_readable_as_the_umask_says(tmp_path):
    before = os.umask(0o027)
    try:
        checkpoint.atomic_write(tmp_path / "a", NEW)
        assert os.umask(0o027) == 0o027
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "a").stat().st_mode) == 0o640


# --- training states -------------------------------------------------------------------------------------------------


def state(step: int) -> dict:
    return {"model": {"w": torch.full((3,), float(step))}, "step": step, "history": [{"epoch": 1, "loss": 0.5}]}


@pytest.fixture
def three(tmp_path: Path) -> Path:
    folder = tmp_path / "runs" / "abc" / "states"
    for step in (10, 20, 30):
        checkpoint.save(folder, state(step), step, "abc")
    return folder


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_the_last_two_states_are_kept_and_the_newest_is_used(three):
    assert names(three) == [f"state-{s:09d}.{kind}" for s in (20, 30) for kind in ("json", "pt")]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = checkpoint.load_latest(three, "abc")
    assert found["step"] == 30
    assert found["history"] == [{"epoch": 1, "loss": 0.5}]
    assert torch.equal(found["model"]["w"], torch.full((3,), 30.0))


def test_no_folder_is_no_state(tmp_path):
    assert checkpoint.load_latest(tmp_path / "none", "abc") is None
    checkpoint.discard(tmp_path / "none")


def _truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])


def _flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def _foreign(path: Path) -> None:
    manifest = json.loads(path.with_suffix(".json").read_text())
    path.with_suffix(".json").write_text(json.dumps(manifest | {"trial": "another"}))


def _manifest(text: str):
    return lambda path: path.with_suffix(".json").write_text(text, errors="surrogateescape")


def _signed(content: bytes):
    """Put in `content` with a manifest that agrees: only what parses it can still object."""

    def put(path: Path) -> None:
        path.write_bytes(content)
        path.with_suffix(".json").write_text(json.dumps({
            "step": 30, "trial": "abc", "bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}))

    return put


BREAKAGES = {
    "truncated": _truncate, "bit flipped": _flip, "empty": lambda p: p.write_bytes(b""),
    "foreign": _foreign, "payload missing": lambda p: p.unlink(), "manifest empty": _manifest(""),
    "manifest of another shape": _manifest("[1]"), "manifest without digest": _manifest('{"trial": "abc"}'),
    "manifest nested": _manifest("[" * 100_000), "manifest binary": _manifest("\udcff"),
    "signed noise": _signed(b"noise"), "signed pickle of a list": _signed(pickle.dumps([1], 2)),
}


@pytest.mark.parametrize("how", BREAKAGES)
def test_a_broken_state_is_set_aside_with_a_warning_and_the_one_before_is_used(three, how):
    BREAKAGES[how](three / "state-000000030.pt")
    with pytest.warns(UserWarning, match="state-000000030"):
        found = checkpoint.load_latest(three, "abc")
    assert found["step"] == 20
    assert "state-000000030.json.broken" in names(three)
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # it was set aside: no second complaint
        assert checkpoint.load_latest(three, "abc")["step"] == 20


def test_with_both_states_broken_training_starts_again(three):
    for step in (20, 30):
        _truncate(three / f"state-{step:09d}.pt")
    with pytest.warns(UserWarning, match="set aside"):
        assert checkpoint.load_latest(three, "abc") is None
    checkpoint.save(three, state(5), 5, "abc")  # an earlier step than the broken ones: it must not be taken for old
    assert checkpoint.load_latest(three, "abc")["step"] == 5


class _Payload:
    def __init__(self, command: str) -> None:
        self.command = command

    def __reduce__(self):
        return os.system, (self.command,)


def _torch_saved(value: object, path: Path) -> bytes:
    torch.save(value, path)
    return path.read_bytes()


@pytest.mark.parametrize("packed", ["pickle", "torch"])
def test_a_payload_that_wants_to_run_a_command_does_not(three, tmp_path, packed):
    witness = tmp_path / "executed"
    hostile = {"model": _Payload(f"touch {witness}")}
    content = pickle.dumps(hostile, 2) if packed == "pickle" else _torch_saved(hostile, tmp_path / "hostile.pt")
    pickle.loads(pickle.dumps(hostile))
    assert witness.exists()  # it would work: the rest of this test can fail
    witness.unlink()
    _signed(content)(three / "state-000000030.pt")
    with pytest.warns(UserWarning, match="UnpicklingError"):
        assert checkpoint.load_latest(three, "abc")["step"] == 20
    assert not witness.exists()


def test_killed_between_payload_and_manifest_the_state_before_serves(three, monkeypatch):
    write = checkpoint.atomic_write

    def killed_before_manifest(path: Path, content: bytes) -> None:
        if path.suffix == ".json":
            raise KeyboardInterrupt
        write(path, content)

    monkeypatch.setattr(checkpoint, "atomic_write", killed_before_manifest)
    with pytest.raises(KeyboardInterrupt):
        checkpoint.save(three, state(40), 40, "abc")
    assert checkpoint.load_latest(three, "abc")["step"] == 30


def test_a_full_disk_while_saving_is_a_checkpoint_error_and_the_states_stay(three, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", failing)
        with pytest.raises(CheckpointError, match="No space left"):
            checkpoint.save(three, state(40), 40, "abc")
    assert checkpoint.load_latest(three, "abc")["step"] == 30


def test_a_folder_that_cannot_be_made_is_a_checkpoint_error(tmp_path):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(CheckpointError):
        checkpoint.save(tmp_path / "file" / "states", state(1), 1, "abc")


def test_discard_removes_everything_even_what_a_killed_writer_left(three):
    (three / ".state-000000040.pt.xyz.tmp").write_bytes(b"half")
    checkpoint.discard(three)
    assert not three.exists()
