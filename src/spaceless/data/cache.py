"""Decoded images kept under the user's cache folder, so that the second start does not decode them again.

One uncompressed `.npz` per set: written aside and renamed, so that it is whole or absent, with a checksum per array,
and read by the same suspicious reader as any other `.npz`. It may be deleted at any time.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np
import platformdirs

from spaceless.atomic import remove_abandoned, temporary
from spaceless.data.dataset import Parts
from spaceless.data.npz import KEYS, MOST_BYTES, NAMES_KEY, NOTE_KEY, read_npz
from spaceless.errors import DataError

_FORMAT = 1  # raise it when decoding begins to give other pixels


def cache_file(files: Iterable[Path], variant: str) -> Path:
    """Return where the decoded `files` are kept: a name made of their paths, sizes and times, and of `variant`."""
    key = hashlib.sha256(f"{_FORMAT}|{variant}".encode())
    for file in files:
        state = file.stat()
        key.update(f"\n{file.resolve()}|{state.st_size}|{state.st_mtime_ns}".encode("utf-8", "surrogateescape"))
    return Path(platformdirs.user_cache_dir("spaceless")) / "decoded" / f"{key.hexdigest()[:32]}.npz"


def cached(files: Iterable[Path], variant: str, decode: Callable[[], Parts]) -> Parts:
    """Return what `decode` returns, from the cache if it is there and sound, else decoded and put there.

    Args:
        files: All that the result depends on; a change of any of them is noticed.
        variant: What else the result depends on.
        decode: The slow way.

    """
    file = cache_file(files, variant)
    if file.is_file():
        with contextlib.suppress(DataError):  # broken: as good as absent
            return read_npz(file)
    parts = decode()
    with contextlib.suppress(OSError):  # a full or read-only disk costs time at the next start, nothing else
        _write(file, parts)
    return parts


def _write(file: Path, parts: Parts) -> None:
    arrays = {key: tensor.numpy() for key, tensor in zip(KEYS[0], parts[:4], strict=True)}
    if sum(array.nbytes for array in arrays.values()) > MOST_BYTES - (1 << 20):
        return  # it could not be read back
    file.parent.mkdir(parents=True, exist_ok=True)
    remove_abandoned(file.parent)  # of processes that were killed
    with temporary(file) as (descriptor, aside):
        with os.fdopen(os.dup(descriptor), "wb") as stream:
            texts = {NAMES_KEY: np.array(parts.class_names), NOTE_KEY: np.array([parts.note])}
            np.savez(stream, **arrays, **texts)  # type: ignore[arg-type]
        aside.replace(file)
