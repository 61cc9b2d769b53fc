"""The exclusive right to work on a trial, held by a lock of the operating system that dies with its process."""

from __future__ import annotations

import fcntl
import json
import os
import socket
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path

from spaceless.errors import InputError

CLAIM = ".claim"
_PATIENCE = 1000  # times that a folder may be gone between two calls


@contextmanager
def claimed(folder: Path) -> Iterator[bool]:
    """Give True and hold the right to work in `folder`, or False if another process holds it.

    The lock is the operating system's (fcntl(2), "advisory record locking"; NFS 4 knows it too): when its holder ends,
    however it ends, the right is free at once and there is nothing to expire or to clean up. It does not hold the
    threads of one process apart. Within the file stands who holds it, for people to read.

    Raises:
        InputError: The folder cannot be written to.

    """
    made = [place for place in (folder, *folder.parents) if not place.exists()]
    descriptor = _locked(folder)
    try:
        yield descriptor is not None
    finally:
        if descriptor is not None:
            # Removed first: whoever has opened it meanwhile finds out in `_locked` that it is another file's name.
            with suppress(OSError):
                (folder / CLAIM).unlink()
            with suppress(OSError):  # not empty: something was written under the claim
                for place in made:
                    place.rmdir()
            os.close(descriptor)


def holder(folder: Path) -> str:
    """Return who works in `folder` in words, as far as that is known."""
    try:
        found = json.loads((folder / CLAIM).read_bytes())
        return f"process {found['process']} on {found['host']} since {found['since']}"
    except (OSError, ValueError, KeyError, TypeError):
        return "another process"


def _locked(folder: Path) -> int | None:
    path = folder / CLAIM
    for _ in range(_PATIENCE):
        try:
            folder.mkdir(parents=True, exist_ok=True)
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
        except FileNotFoundError:  # its last holder has removed the folder, which was empty, between the two calls
            continue
        except OSError as error:
            raise InputError(
                str(folder), found=error.strerror, expected="a folder that can be written to",
                cure="choose another --out",
            ) from error
        try:
            fcntl.lockf(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except (BlockingIOError, PermissionError):
            os.close(descriptor)
            return None
        except OSError as error:  # a file system without locks: nothing speaks against working there alone
            warnings.warn(
                f"{folder}: found a file system that keeps no locks ({error.strerror}), expected one that does; do not "
                "run two commands on this folder at a time", stacklevel=4)
        if _is_named(descriptor, path):
            _sign(descriptor)
            return descriptor
        os.close(descriptor)  # its last holder has removed the name between our open and our lock
    raise InputError(
        str(folder), found="a folder that vanishes again and again", expected="one that stays",
        cure="change into a folder that exists, or choose another --out")


def _sign(descriptor: int) -> None:
    """Write who holds a claim, for people to read: on a full disk it holds without."""
    since = datetime.now(UTC).isoformat(timespec="seconds")
    text = json.dumps({"process": os.getpid(), "host": socket.gethostname(), "since": since})
    with suppress(OSError):
        os.ftruncate(descriptor, 0)
        os.write(descriptor, text.encode())


def _is_named(descriptor: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(descriptor), path.stat())
    except FileNotFoundError:
        return False
