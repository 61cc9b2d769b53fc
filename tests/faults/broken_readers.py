"""Readers that each break one promise when they are given a damaged file; a sound one they read as is right."""

from __future__ import annotations

import os
import pickle
import signal
import time
from collections.abc import Callable
from pathlib import Path

from spaceless.bench.faults.data_forms import DATA
from spaceless.bench.faults.form import Form, MalformedError
from spaceless.errors import DataError

FORM = next(form for form in DATA if form.name == "CIFAR batches in pickles")
_SOUND = FORM.make().files
_KEPT = []


def _damaged(path: Path) -> bytes:
    """Return the content of the file that is not as it was, or nothing."""
    for name, content in _SOUND.items():
        if (found := (path.parent / name).read_bytes()) != content:
            return found
    return b""


def unpickles(path: Path) -> None:
    """Do what no reader may."""
    for file in path.iterdir():
        try:
            pickle.loads(file.read_bytes())
        except Exception as error:
            raise DataError(str(file), found="a broken pickle", expected="a sound one", cure="replace it") from error


def runs_without_pickle(path: Path) -> None:
    """Run what a file says by the interpreter's own means: no event tells of it but the file that is then there."""
    if b"touch '" in (content := _damaged(path)):
        command = content.split(b"touch '")[1].split(b"'")[0]
        os.mkfifo(command)


def raises_key_error(path: Path) -> None:
    if _damaged(path):
        raise KeyError("labels")


def tells_nothing(path: Path) -> None:
    if _damaged(path):
        error = DataError("", found="", expected="", cure="")
        error.args = ("broken",)
        raise error


def eats_memory(path: Path) -> None:
    if _damaged(path):
        _KEPT.append(b"\1" * (96 << 20))


def asks_for_more_than_there_is(path: Path) -> None:
    if _damaged(path):
        bytearray(1 << 50)


def kills_its_process(path: Path) -> None:
    if _damaged(path):
        os.kill(os.getpid(), signal.SIGSEGV)


def sleeps(path: Path) -> None:
    if _damaged(path):
        time.sleep(0.6)


def hangs(path: Path) -> None:
    if _damaged(path):
        time.sleep(60)


def returns_nonsense(path: Path) -> None:
    if _damaged(path):
        raise MalformedError("a list")


def writes_elsewhere(path: Path) -> None:
    if _damaged(path):
        with Path("/dev/null").open("w") as stream:
            stream.write("x")


def refuses_everything(path: Path) -> None:
    raise DataError(str(path), found="a file", expected="none", cure="remove it")


def accepts_everything(path: Path) -> None:
    """Return the same for whatever comes."""


def form(read: Callable[[Path], None], share: int) -> Form:
    return Form(read.__name__, share, FORM.make, read)
