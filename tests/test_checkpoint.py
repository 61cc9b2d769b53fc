"""A state that is not what was saved is never used: it is set aside, and the one before it serves."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import pickle
import warnings
from pathlib import Path

import pytest
import torch
from safetensors.torch import save as save_tensors

from hostile_places import put_state
from spaceless import checkpoint
from spaceless.errors import CheckpointError
from spaceless.records import sealed


def failing(*_args, **_kwargs):
    raise OSError(errno.ENOSPC, "No space left on device")


def state(step: int) -> dict:
    moments = {0: {"momentum_buffer": torch.full((3,), -float(step))}, 2: {}}
    return {"model": {"w": torch.full((3,), float(step))}, "optimizer": {"state": moments, "param_groups": []},
            "step": step, "history": [{"epoch": 1, "loss": 0.5}]}


def latest(folder: Path, trial: str = "abc"):
    return checkpoint.load_latest(folder, trial, dict)


@pytest.fixture
def three(tmp_path: Path) -> Path:
    folder = tmp_path / "runs" / "abc" / "states"
    for step in (10, 20, 30):
        checkpoint.save(folder, state(step), step, "abc")
    return folder


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_the_last_two_states_are_kept_and_the_newest_is_used(three):
    assert names(three) == [f"state-{s:09d}.{kind}" for s in (20, 30) for kind in ("json", "safetensors")]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = latest(three)
    assert found["step"] == 30
    assert found["history"] == [{"epoch": 1, "loss": 0.5}]
    assert torch.equal(found["model"]["w"], torch.full((3,), 30.0))
    assert torch.equal(found["optimizer"]["state"][0]["momentum_buffer"], torch.full((3,), -30.0))
    assert found["optimizer"]["state"].keys() == {0, 2}


def test_the_manifest_says_in_words_what_the_payload_does_not(three):
    manifest = json.loads((three / "state-000000030.json").read_text())
    assert (manifest["trial"], manifest["step"], manifest["state"]["step"]) == ("abc", 30, 30)
    assert manifest["state"]["history"] == [{"epoch": 1, "loss": 0.5}]
    payload = (three / "state-000000030.safetensors").read_bytes()
    assert (manifest["bytes"], manifest["sha256"]) == (len(payload), hashlib.sha256(payload).hexdigest())


def test_tensors_come_back_as_they_were_however_they_lay_in_memory(tmp_path):
    whole = torch.arange(120.0).reshape(2, 3, 4, 5)
    tensors = {
        "strided": whole.to(memory_format=torch.channels_last), "part": whole[:, 1], "again": whole,
        "half": whole.half(), "brain": whole.bfloat16(), "count": torch.tensor(7), "flags": whole > 50,
        "none": torch.empty(0, 3),
        "double": whole.double() / 3, "a/b~c": whole[0, 0], "not": torch.tensor([float("nan"), -0.0]),
    }
    checkpoint.save(tmp_path, {"model": tensors}, 1, "abc")
    found = latest(tmp_path)["model"]
    assert found.keys() == tensors.keys()
    for name, tensor in tensors.items():
        assert (found[name].dtype, found[name].shape) == (tensor.dtype, tensor.shape)
        torch.testing.assert_close(found[name], tensor, rtol=0, atol=0, equal_nan=True)
    assert torch.signbit(found["not"][1])


def test_no_folder_is_no_state(tmp_path):
    assert latest(tmp_path / "none") is None
    checkpoint.discard(tmp_path / "none")


def _truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])


def _flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def _on_manifest(damage):
    return lambda path: damage(path.with_suffix(".json"))


def _resealed(**changed):
    """Change the manifest and seal it again, as nothing that happens by chance does."""

    def put(path: Path) -> None:
        manifest = json.loads(path.with_suffix(".json").read_text())
        del manifest["checksum"]
        path.with_suffix(".json").write_bytes(sealed(manifest | changed))

    return put


def _unsealed(path: Path) -> None:
    manifest = json.loads(path.with_suffix(".json").read_text())
    del manifest["checksum"]
    path.with_suffix(".json").write_text(json.dumps(manifest))


def _manifest(text: str):
    return lambda path: path.with_suffix(".json").write_text(text, errors="surrogateescape")


def _signed(content: bytes, **plain):
    """Put in `content` with a manifest that agrees: only what parses it can still object."""
    return lambda path: put_state(path.parent, 30, "abc", content, plain)


def _of_another_step(path: Path) -> None:
    for kind in (".json", ".safetensors"):
        path.with_name(f"state-000000020{kind}").replace(path.with_suffix(kind))
    checkpoint.save(path.parent, state(20), 20, "abc")


W = {"model/w": torch.zeros(3)}
BREAKAGES = {
    "truncated": _truncate, "bit flipped": _flip, "empty": lambda p: p.write_bytes(b""),
    "longer": lambda p: p.write_bytes(p.read_bytes() + b" "), "payload missing": lambda p: p.unlink(),
    "payload a folder": lambda p: (p.unlink(), p.mkdir()), "foreign": _resealed(trial="another"),
    "of another step": _of_another_step, "step not a number": _resealed(step=None),
    "manifest truncated": _on_manifest(_truncate), "manifest bit flipped": _on_manifest(_flip),
    "manifest empty": _manifest(""), "manifest without checksum": _unsealed,
    "manifest of another shape": lambda p: p.with_suffix(".json").write_bytes(sealed({"1": 1})),
    "manifest nested": _manifest("[" * 100_000), "manifest binary": _manifest("\udcff"),
    "state not a mapping": _resealed(state=5), "state nested": _resealed(state={"model": []}),
    "signed noise": _signed(b"noise"), "signed pickle of a list": _signed(pickle.dumps([1], 2)),
    "signed, no place for a tensor": _signed(save_tensors(W)),
    "signed, twice": _signed(save_tensors(W), model={"w": 1}),
}


@pytest.mark.parametrize("how", BREAKAGES)
def test_a_broken_state_is_set_aside_with_a_warning_and_the_one_before_is_used(three, how):
    BREAKAGES[how](three / "state-000000030.safetensors")
    with pytest.warns(UserWarning, match="state-000000030"):
        found = latest(three)
    assert found["step"] == 20
    assert "state-000000030.json.broken" in names(three)
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # it was set aside: no second complaint
        assert latest(three)["step"] == 20


@pytest.mark.parametrize("kind", ["json", "safetensors"])
def test_every_single_flipped_bit_of_a_manifest_or_of_a_header_is_noticed(tmp_path, kind):
    checkpoint.save(tmp_path, state(1), 1, "abc")
    path = tmp_path / f"state-000000001.{kind}"
    content = path.read_bytes()
    for bit in range(8 * min(len(content), 400)):
        changed = bytearray(content)
        changed[-1 - bit // 8] ^= 1 << bit % 8  # from the end: the checksum is there
        path.write_bytes(changed)
        with pytest.raises(CheckpointError):
            checkpoint._verified(tmp_path, 1, "abc")
    path.write_bytes(content)
    assert latest(tmp_path)["step"] == 1


def test_what_its_reader_refuses_is_set_aside_too(three):
    def read(found):
        if found["step"] == 30:
            raise ValueError("found 30, expected fewer")
        return found["step"]

    with pytest.warns(UserWarning, match="found ValueError: found 30, expected fewer"):
        assert checkpoint.load_latest(three, "abc", read) == 20


def test_with_both_states_broken_training_starts_again(three):
    for step in (20, 30):
        _truncate(three / f"state-{step:09d}.safetensors")
    with pytest.warns(UserWarning, match="set aside"):
        assert latest(three) is None
    checkpoint.save(three, state(5), 5, "abc")  # an earlier step than the broken ones: it must not be taken for old
    assert latest(three)["step"] == 5


class _Payload:
    def __init__(self, command: str) -> None:
        self.command = command

    def __reduce__(self):
        return os.system, (self.command,)


def _torch_saved(value: object, path: Path) -> bytes:
    torch.save(value, path)
    return path.read_bytes()


@pytest.mark.parametrize("suffix", ["safetensors", "pt"])
@pytest.mark.parametrize("packed", ["pickle", "torch"])
def test_a_payload_that_wants_to_run_a_command_does_not(three, tmp_path, packed, suffix):
    witness = tmp_path / "executed"
    hostile = {"model": _Payload(f"touch {witness}")}
    content = pickle.dumps(hostile, 2) if packed == "pickle" else _torch_saved(hostile, tmp_path / "hostile.pt")
    pickle.loads(pickle.dumps(hostile))
    assert witness.exists()  # it would work: the rest of this test can fail
    witness.unlink()
    path = put_state(three, 30, "abc", content, {"model": {}})
    path.replace(path.with_suffix(f".{suffix}"))
    with pytest.warns(UserWarning, match="SafetensorError" if suffix == "safetensors" else "earlier version"):
        assert latest(three)["step"] == 20
    assert not witness.exists()


def test_a_state_of_an_earlier_version_is_named_and_the_training_starts_again(tmp_path):
    _torch_saved({"step": 7}, tmp_path / "state-000000007.pt")
    content = (tmp_path / "state-000000007.pt").read_bytes()
    (tmp_path / "state-000000007.json").write_text(json.dumps(
        {"step": 7, "trial": "abc", "bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}))
    with pytest.warns(UserWarning, match=r"state-000000007\.pt: found a state of an earlier version"):
        assert latest(tmp_path) is None
    assert names(tmp_path) == ["state-000000007.json.broken", "state-000000007.pt.broken"]


def test_killed_between_payload_and_manifest_the_state_before_serves(three, monkeypatch):
    write = checkpoint.atomic_write

    def killed_before_manifest(path: Path, content: bytes) -> None:
        if path.suffix == ".json":
            raise KeyboardInterrupt
        write(path, content)

    with monkeypatch.context() as patch:
        patch.setattr(checkpoint, "atomic_write", killed_before_manifest)
        with pytest.raises(KeyboardInterrupt):
            checkpoint.save(three, state(40), 40, "abc")
    assert latest(three)["step"] == 30
    checkpoint.save(three, state(35), 35, "abc")
    assert names(three) == [f"state-{s:09d}.{kind}" for s in (30, 35) for kind in ("json", "safetensors")]


def test_a_full_disk_while_saving_is_a_checkpoint_error_and_the_states_stay(three, monkeypatch):
    before = names(three)
    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", failing)
        with pytest.raises(CheckpointError, match="No space left"):
            checkpoint.save(three, state(40), 40, "abc")
    assert names(three) == before
    assert latest(three)["step"] == 30


def test_a_folder_that_cannot_be_made_is_a_checkpoint_error(tmp_path):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(CheckpointError):
        checkpoint.save(tmp_path / "file" / "states", state(1), 1, "abc")


def test_discard_removes_everything_even_what_a_killed_writer_left(three):
    (three / ".state-000000040.pt.xyz.tmp").write_bytes(b"half")
    checkpoint.discard(three)
    assert not three.exists()
