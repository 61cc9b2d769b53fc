"""Commands of the command line, run in this process: their words, what they print, what is an error."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from spaceless import cli

TINY = {"model": "chain:4-M-8", "data": "arrangement-4", "recipe": "control", "train-images": 64, "test-images": 40,
        "epochs": 1, "batch-size": 16, "precision": "fp32"}


def train(**changed: object) -> tuple[str, ...]:
    """Return the words of a tiny training with some options changed; None leaves one out."""
    options = TINY | {name.replace("_", "-"): value for name, value in changed.items()}
    return ("train", *(str(word) for name, value in options.items() if value is not None
                       for word in ((f"--{name}",) if value is True else (f"--{name}", value))))


STUDY = """
name = "mine"
title = "Mine"
asks = "Does it run?"
[scale]
name = "own"
train_images = 64
test_images = 40
repeats = 2
[[series]]
model = "chain:4-M-8"
data = "arrangement-4"
methods = ["shuffle"]
ks = [0, 1]
shuffle_last = [0]
recipe = "control"
overrides = { epochs = 1, batch_size = 16, precision = "fp32" }
"""


class Commands:
    """Runs commands in an empty folder."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
        self.monkeypatch, self.capsys = monkeypatch, capsys
        monkeypatch.chdir(folder)
        monkeypatch.setenv("SPACELESS_DATA", str(folder / "data"))
        monkeypatch.setenv("COLUMNS", "120")

    def __call__(self, *words: object) -> tuple[int, str, str]:
        """Return exit status, standard output and standard error."""
        self.monkeypatch.setattr(sys, "argv", ["spaceless", *map(str, words)])
        self.capsys.readouterr()
        status = 0
        try:
            cli.main()
        except SystemExit as end:
            status = end.code or 0
        told = self.capsys.readouterr()
        return status, told.out, told.err


def tree(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*")}


def is_an_error(status: int, out: str, err: str, expected: int = 2) -> None:
    assert status == expected, err
    assert out == ""
    assert err.startswith("error: "), err
    assert len(err.rstrip("\n").splitlines()) <= 3, err
    assert "Traceback" not in err
