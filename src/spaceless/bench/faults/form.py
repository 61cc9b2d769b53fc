"""What a form of files is: a sound set to begin with, the reader of it, and the ways that reading may end."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

SIDE = 8  # pixels of the images of all sets but CIFAR
_LONGEST = 2000  # characters of a message


class RefusedError(Exception):
    """A reader has said in a warning, or in its list of problems, what is wrong, and has gone on without the file."""


class MalformedError(Exception):
    """A reader has accepted a file and returned something that is not what it promises."""


class Sound(NamedTuple):
    """A sound set: its files (path within a folder, content), which of them are damaged, what the reader is given.

    A damaged file may begin as any of several contents: `victims` are pairs of a path and a sound content for it.
    """

    files: dict[str, bytes]
    victims: tuple[tuple[str, bytes], ...]
    path: str


@dataclass(frozen=True)
class Form:
    """A form of files: its name, its share of all mutations, how a sound set is made and how it is read.

    `read` gets the path of the set; it returns None if it was accepted, and raises SpacelessError if it was refused.
    With `vouched`, a digest and a size that another file of the set tells of the damaged one are made right again in
    half of the cases, so that not only the digest has to stand it. With `named`, half of the cases leave the contents
    as they are and give a folder or file another name. With `anew` the set is written again before each mutation, since
    damage or the reader itself gives files other names.
    """

    name: str
    share: int
    make: Callable[[], Sound]
    read: Callable[[Path], None]
    vouched: bool = False
    named: bool = False
    anew: bool = False


def in_form(message: str) -> bool:
    """Tell whether a message says what was found, what was expected and how to mend it, in a readable length."""
    what, found, rest = message.partition(": found ")
    _, expected, cure = rest.partition(", expected ")
    return bool(what and found and expected and "; " in cure and len(message) <= _LONGEST)
