"""Training states: tensors as safetensors and all else as JSON, verified before anything in them is used."""

from __future__ import annotations

import hashlib
import json
import re
import shutil
import warnings
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, TypeVar

from safetensors import SafetensorError
from safetensors.torch import load as parse_tensors
from safetensors.torch import save as dump_tensors
from torch import Tensor

from spaceless.atomic import atomic_write, set_aside
from spaceless.errors import CheckpointError, DamagedError
from spaceless.packing import pack, unpack
from spaceless.records import LARGEST_FILE, sealed, unsealed

_T = TypeVar("_T")

KEPT = 2  # if the newest state turns out broken, the one before it still serves
_PAYLOAD, _MANIFEST, _EARLIER = ".safetensors", ".json", ".pt"


def save(folder: Path, state: Mapping[str, Any], step: int, trial: str) -> None:
    """Store a training state that `folder` does not have yet, and keep the last two.

    The tensors of the nested `state` become `state-STEP.safetensors`; all else goes into `state-STEP.json`, which is
    written last and holds size and SHA-256 of the tensors' file and a checksum of itself. `trial` is the identity that
    `load_latest` must ask for. Only one process at a time may save into a folder.

    Raises:
        CheckpointError: The disk is full or the folder cannot be written to; the states before are left as they were.

    """
    tensors, plain = pack(state)
    content = dumped(tensors)
    manifest = {
        "trial": trial, "step": step, "bytes": len(content), "sha256": hashlib.sha256(content).hexdigest(),
        "state": plain,
    }
    atomic_write(_file(folder, step, _PAYLOAD), content)
    atomic_write(_file(folder, step, _MANIFEST), sealed(manifest))
    _remove_older(folder)


def load_latest(folder: Path, trial: str, read: Callable[[dict[Any, Any]], _T]) -> _T | None:
    """Return what `read` makes of the newest sound state of `trial` in `folder`, or None if there is none.

    A state whose size, digest, step or owner is not what its manifest says is set aside as `*.broken`, with a warning,
    before anything in it is parsed; so is one that `read` refuses by a LookupError, TypeError or ValueError, in which
    case it must not have used any of it. Then the state before it is looked at.
    """
    for step in _steps(folder):
        try:
            return _read(folder, step, trial, read)
        except CheckpointError as error:
            warnings.warn(f"{error}", stacklevel=2)
            for kind in (_PAYLOAD, _EARLIER, _MANIFEST):
                set_aside(_file(folder, step, kind))
    return None


def discard(folder: Path) -> None:
    """Remove the folder of states: the training that they belong to is over. What cannot be removed stays."""
    shutil.rmtree(folder, ignore_errors=True)


def dumped(tensors: Mapping[str, Tensor]) -> bytes:
    """Return `tensors` as the content of a safetensors file, on the processor.

    The format knows no tensors that share their memory: weights under two names are stored once under each.
    """
    found: dict[str, Tensor] = {}
    seen = set()
    for name, tensor in tensors.items():
        whole = tensor.detach().cpu().contiguous()
        place = whole.untyped_storage().data_ptr()
        found[name] = whole.clone() if place in seen else whole
        seen.add(place)
    return dump_tensors(found)


def _file(folder: Path, step: int, suffix: str) -> Path:
    return folder / f"state-{step:09d}{suffix}"


def _steps(folder: Path) -> list[int]:
    """Return the steps of the states that have a manifest, newest first."""
    names = (re.fullmatch(r"state-(\d{9})\.json", path.name) for path in folder.glob("state-*.json"))
    return sorted((int(name[1]) for name in names if name), reverse=True)


def _remove_older(folder: Path) -> None:
    """Remove all but the newest states, and tensors whose manifest was never written."""
    kept = {_file(folder, step, kind).name for step in _steps(folder)[:KEPT] for kind in (_PAYLOAD, _MANIFEST)}
    with suppress(OSError):  # a state too many harms nobody
        for kind in (_MANIFEST, _PAYLOAD):  # in this order: a manifest promises its tensors
            for path in folder.glob(f"state-*{kind}"):
                if path.name not in kept:
                    path.unlink()


def _read(folder: Path, step: int, trial: str, read: Callable[[dict[Any, Any]], _T]) -> _T:
    payload = _file(folder, step, _PAYLOAD)
    if not payload.exists() and _file(folder, step, _EARLIER).exists():
        raise _broken(_file(folder, step, _EARLIER), "a state of an earlier version, which is not read any more")
    manifest, content = _verified(folder, step, trial)
    try:
        return read(unpack(parse_tensors(content), manifest["state"]))
    except (SafetensorError, LookupError, TypeError, ValueError, AttributeError, RecursionError) as error:
        raise _broken(payload, f"{type(error).__name__}: {error}".splitlines()[0][:160]) from error


def _verified(folder: Path, step: int, trial: str) -> tuple[dict[str, Any], bytes]:
    """Return the manifest and the bytes of the tensors' file, neither of them parsed further than to verify it."""
    path, payload = _file(folder, step, _MANIFEST), _file(folder, step, _PAYLOAD)
    try:
        if path.stat().st_size > LARGEST_FILE:
            raise _broken(path, f"a file of more than {LARGEST_FILE:,} bytes")
        manifest = json.loads(unsealed(path.read_bytes(), str(path), required=True))
        if (manifest["trial"], manifest["step"]) != (trial, step):
            raise _broken(path, f"step {manifest['step']} of {manifest['trial']}"[:160])
        if manifest["bytes"] != payload.stat().st_size:
            raise _broken(payload, f"a file of {payload.stat().st_size:,} bytes")
        content = payload.read_bytes()
        if hashlib.sha256(content).hexdigest() != manifest["sha256"]:
            raise _broken(payload, "content that is not what its manifest says")
    except DamagedError as error:
        raise _broken(path, str(error.found)) from error
    except (OSError, ValueError, LookupError, TypeError, RecursionError) as error:
        raise _broken(path, f"{type(error).__name__}: {error}"[:160]) from error
    return manifest, content


def _broken(path: Path, found: str) -> CheckpointError:
    return CheckpointError(
        str(path), found=found, expected="the state that was saved",
        cure="it is set aside and the state before it is used",
    )
