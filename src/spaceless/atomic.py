"""Files that are the old or the new one, whole, whenever their writer dies; and broken ones, set aside."""

from __future__ import annotations

import fcntl
import os
import re
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from spaceless.errors import CheckpointError

_TEMPORARY = re.compile(r"\..+\.[a-z0-9_]{8}\.tmp")  # as `temporary` names them


def atomic_write(path: Path, content: bytes) -> None:
    """Write `content` to `path` so that a reader sees the old or the new file whole, whenever the writer dies.

    The content is on disk before the name points at it, and the name before this returns. What writers that were killed
    have left in the folder is removed.

    Raises:
        CheckpointError: The folder cannot be written to or the disk is full; the old file is left as it was.

    """
    try:
        make_folder(path.parent)
        remove_abandoned(path.parent)
        with temporary(path) as (descriptor, aside):
            os.fchmod(descriptor, 0o666 & ~_umask())
            _write_all(descriptor, content)
            os.fsync(descriptor)
            aside.replace(path)
    except OSError as error:
        raise CheckpointError(
            str(path), found=error.strerror or error, expected="a folder with room that may be written to",
            cure="free some space or choose another --out; the same command then goes on",
        ) from error
    _flush(path.parent)


def set_aside(path: Path) -> Path:
    """Rename a broken file to `*.broken`, for whoever wants to look at it, and return its new path.

    Raises:
        CheckpointError: It cannot be renamed. One that is gone already, as another process did the same, is no error.

    """
    aside = path.with_name(f"{path.name}.broken")
    try:
        with suppress(FileNotFoundError):
            path.replace(aside)
    except OSError as error:
        raise CheckpointError(
            str(path), found=f"a broken file that cannot be renamed: {error.strerror or error}",
            expected="a folder that may be written to", cure="remove this file",
        ) from error
    return aside


def make_folder(folder: Path) -> None:
    """Create `folder` and all above it that are missing, each with its name on disk; OSError if that cannot be."""
    missing = [each for each in (folder, *folder.parents) if not each.exists()]
    folder.mkdir(parents=True, exist_ok=True)
    for each in missing:
        _flush(each.parent)


@contextmanager
def temporary(path: Path) -> Iterator[tuple[int, Path]]:
    """Yield a new file beside `path`, locked for as long as it has this name; it is removed if anything fails."""
    while True:
        descriptor, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".tmp")
        with suppress(OSError):  # a file system without locks: there nobody takes a file for abandoned
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        if os.fstat(descriptor).st_nlink:
            break
        os.close(descriptor)  # another writer has taken it for abandoned in the moment before it was locked
    try:
        yield descriptor, Path(name)
    except BaseException:
        with suppress(OSError):
            Path(name).unlink()
        raise
    finally:
        os.close(descriptor)


def remove_abandoned(folder: Path) -> None:
    """Remove temporary files that nobody writes any more: the lock of a process ends with it, wherever it ran."""
    with suppress(OSError):  # a folder that cannot be listed may still be written to
        for path in [each for each in folder.iterdir() if _TEMPORARY.fullmatch(each.name)]:
            with suppress(OSError):  # it is being written, or gone in this moment
                descriptor = os.open(path, os.O_RDWR | os.O_NOFOLLOW | os.O_NONBLOCK)
                try:
                    fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    path.unlink()
                finally:
                    os.close(descriptor)


def _write_all(descriptor: int, content: bytes) -> None:
    left = memoryview(content)
    while left:
        left = left[os.write(descriptor, left):]


def _umask() -> int:
    current = os.umask(0o022)
    os.umask(current)
    return current


def _flush(folder: Path) -> None:
    """Put the new name on disk, where that can be asked for: some network file systems cannot flush a folder."""
    with suppress(OSError):  # the file itself is whole and in its place
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
