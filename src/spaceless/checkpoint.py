"""Files that are either the old or the new state, never half of one: atomic writes and verified training states."""

from __future__ import annotations

import hashlib
import io
import json
import os
import re
import shutil
import tempfile
import warnings
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch

from spaceless.errors import CheckpointError

KEPT = 2  # if the newest state turns out broken, the one before it still serves


def atomic_write(path: Path, content: bytes) -> None:
    """Write `content` to `path` so that a reader sees the old or the new file whole, whenever the writer dies.

    Raises:
        CheckpointError: The folder cannot be written to or the disk is full; the old file is left as it was.

    """
    temporary = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=path.parent, prefix=f".{path.name}.", suffix=".tmp", delete=False) as out:
            temporary = out.name
            out.write(content)
            out.flush()
            os.fsync(out.fileno())
        Path(temporary).chmod(0o666 & ~_umask())
        Path(temporary).replace(path)
    except OSError as error:
        if temporary is not None:
            Path(temporary).unlink(missing_ok=True)
        raise CheckpointError(
            str(path), found=error.strerror or error, expected="a folder with room that may be written to",
            cure="free some space or choose another --out; the same command then goes on",
        ) from error
    _flush_folder(path.parent)


def _umask() -> int:
    current = os.umask(0o022)
    os.umask(current)
    return current


def _flush_folder(folder: Path) -> None:
    """Put the new name on disk, where that can be asked for: some network file systems cannot flush a folder."""
    with suppress(OSError):  # the file itself is whole and in its place
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def save(folder: Path, state: Mapping[str, Any], step: int, trial: str) -> None:
    """Store a training state (tensors and plain values) as `state-STEP.pt` with a manifest, which is written last.

    The last two states are kept. `trial` is the identity that `load_latest` must ask for.
    """
    buffer = io.BytesIO()
    torch.save(dict(state), buffer)
    content = buffer.getvalue()
    manifest = {
        "step": step, "trial": trial, "bytes": len(content), "sha256": hashlib.sha256(content).hexdigest(),
    }
    atomic_write(_payload(folder, step), content)
    atomic_write(_payload(folder, step).with_suffix(".json"), json.dumps(manifest).encode())
    for old in _steps(folder)[KEPT:]:
        _payload(folder, old).with_suffix(".json").unlink(missing_ok=True)
        _payload(folder, old).unlink(missing_ok=True)


def load_latest(folder: Path, trial: str) -> dict[str, Any] | None:
    """Return the newest sound state of `trial` in `folder`, or None if there is none.

    A state whose size, digest or owner does not match its manifest is set aside as `*.broken`, with a warning, before
    anything in it is parsed.
    """
    for step in _steps(folder):
        payload = _payload(folder, step)
        try:
            return _verified(payload, trial)
        except CheckpointError as error:
            warnings.warn(f"{error}", stacklevel=2)
            for path in (payload, payload.with_suffix(".json")):
                if path.exists():
                    path.replace(path.with_name(path.name + ".broken"))
    return None


def discard(folder: Path) -> None:
    """Remove the folder of states: the training that they belong to is over. What cannot be removed stays."""
    shutil.rmtree(folder, ignore_errors=True)


def _payload(folder: Path, step: int) -> Path:
    return folder / f"state-{step:09d}.pt"


def _steps(folder: Path) -> list[int]:
    """Return the steps of the states that have a manifest, newest first."""
    names = (re.fullmatch(r"state-(\d{9})\.json", path.name) for path in folder.glob("state-*.json"))
    return sorted((int(name[1]) for name in names if name), reverse=True)


def _verified(payload: Path, trial: str) -> dict[str, Any]:
    try:
        manifest = json.loads(payload.with_suffix(".json").read_bytes())
        content = payload.read_bytes()
        wanted = manifest["trial"], manifest["bytes"], manifest["sha256"]
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise _broken(payload, f"{type(error).__name__}: {error}") from error
    if wanted != (trial, len(content), hashlib.sha256(content).hexdigest()):
        raise _broken(payload, "content that is not what its manifest says")
    try:
        state = torch.load(io.BytesIO(content), weights_only=True, map_location="cpu")
    except Exception as error:  # the unpickler can fail in any way on what another version wrote
        raise _broken(payload, f"{type(error).__name__}") from error
    if not isinstance(state, dict):
        raise _broken(payload, type(state).__name__)
    return state


def _broken(payload: Path, found: str) -> CheckpointError:
    return CheckpointError(
        str(payload), found=found, expected="the state that was saved",
        cure="it is set aside and the state before it is used",
    )
