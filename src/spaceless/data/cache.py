"""Decoded images kept under the user's cache folder, so that the second start does not decode them again.

One uncompressed `.npz` per set and image size: written aside and renamed, so that it is whole or absent, with a
checksum per array, and read by the same suspicious reader as any other `.npz`. It may be deleted at any time, and what
was decoded of an earlier state of the set is, as soon as there is a newer one.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import platformdirs

from spaceless.atomic import remove_abandoned, temporary
from spaceless.data.dataset import Parts
from spaceless.data.npz import KEYS, MOST_BYTES, NAMES_KEY, NOTE_KEY, REASONS_KEY, read_npz
from spaceless.errors import DataError

_FORMAT = 2  # raise it when decoding begins to give other pixels, labels or texts


def cache_file(files: Sequence[Path], variant: str, class_names: Sequence[str] = ()) -> Path:
    """Return where the decoded `files` are kept: `SET-STATE.npz`.

    SET is made of the folder that all of them are in and of `variant`, STATE of their paths, of what links among them
    lead to, of sizes and times, and of `class_names`.
    """
    folder = os.path.commonpath([file.absolute() for file in files])
    of_set = hashlib.sha256(f"{_FORMAT}|{variant}|{folder}".encode("utf-8", "surrogateescape"))
    key = hashlib.sha256("\n".join((of_set.hexdigest(), *class_names)).encode("utf-8", "surrogateescape"))
    for file in files:
        # The path as it is tells split and class: a link in another class folder is another label of the same image.
        state = f"\n{file.absolute()}|{os.path.realpath(file)}|"
        with contextlib.suppress(OSError):  # a link that leads nowhere
            found = file.stat()
            state += f"{found.st_size}|{found.st_mtime_ns}"
        key.update(state.encode("utf-8", "surrogateescape"))
    place = Path(platformdirs.user_cache_dir("spaceless")) / "decoded"
    return place / f"{of_set.hexdigest()[:16]}-{key.hexdigest()[:32]}.npz"


def cached(
    files: Sequence[Path], variant: str, decode: Callable[[], Parts], class_names: Sequence[str] = (),
) -> Parts:
    """Return what `decode` returns, from the cache if it is there and sound, else decoded and put there.

    Args:
        files: All that the result depends on; a change of any of them is noticed.
        variant: What else the result depends on.
        decode: The slow way.
        class_names: What the classes are called, where `files` do not tell.

    """
    file = cache_file(files, variant, class_names)
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
            texts = {NAMES_KEY: np.array(parts.class_names), NOTE_KEY: np.array([parts.note]),
                     REASONS_KEY: np.array(parts.reasons or [""])}
            np.savez(stream, **arrays, **texts)  # type: ignore[arg-type]
        aside.replace(file)
    for earlier in file.parent.glob(f"{file.name.partition('-')[0]}-*.npz"):
        if earlier != file:
            with contextlib.suppress(OSError):  # another process was faster
                earlier.unlink()
