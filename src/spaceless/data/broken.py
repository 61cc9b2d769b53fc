"""Images of class folders that cannot be read: left out by name, an error where they are too many.

One truncated file must not end a training of days, and nothing may be left out in silence. Archives, `.npz` and parquet
files are made by machines as a whole: there a broken image means a broken file, and is an error.
"""

from __future__ import annotations

import warnings
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from spaceless.data.images import UNREAD
from spaceless.errors import DataError

LARGEST_SHARE = 0.01  # of a split; more than that is a broken copy, or a disk that is gone, and no accident
_NAMED = 5
_UNREAD = "of a mode that is not read"


class Broken(NamedTuple):
    """An image that cannot be read: its number in its split, its path in the folder and what is wrong with it.

    The path is there to be shown: it is that of `find.printable`.
    """

    number: int
    path: str
    reason: str

    @property
    def unread(self) -> bool:
        """Whether it is sound, but of a mode that is not read: what has to be converted need not be replaced."""
        return self.reason.startswith(UNREAD)


def broken_note(paths: Collection[str]) -> str:
    """Return the sentence that belongs to every figure measured without these images; empty if there are none."""
    return _sentence(paths, "broken image", "left out")


def left_out_note(broken: Iterable[Broken]) -> str:
    """Return `broken_note`, where those that are not broken, but of a mode that is not read, are told from them."""
    images = list(broken)
    unread = _sentence([image.path for image in images if image.unread], "image", f"{_UNREAD} left out")
    return "; ".join(filter(None, (broken_note([image.path for image in images if not image.unread]), unread)))


def skipped_note(paths: Collection[str]) -> str:
    """Return the sentence about files of class folders that are not taken for images; empty if there are none."""
    return _sentence(paths, "file", "of the class folders skipped as no image")


def first_reasons(broken: Iterable[Broken]) -> tuple[str, ...]:
    """Return the first images that `left_out_note` names, each with what is wrong with it."""
    images = sorted(broken, key=lambda image: image.path)
    return tuple(f"{image.path}: {image.reason}" for image in images[:_NAMED])


def _sentence(paths: Collection[str], what: str, became: str) -> str:
    if not paths:
        return ""
    named = sorted(paths)
    more = f" and {len(named) - _NAMED:,} more" if len(named) > _NAMED else ""
    return f"{len(named):,} {what}{'s' * (len(named) > 1)} {became}: {', '.join(named[:_NAMED])}{more}"


def refuse_too_many(
    broken: Mapping[int, Broken], labels: Tensor, class_names: Sequence[str], source: str,
) -> None:
    """Raise DataError, naming the first image, if the `broken` ones of a split are more than can be left out.

    Args:
        broken: By number.
        labels: Of all images of the split, int64 (N,).
        class_names: As many as there are classes.
        source: The folder that the paths of `broken` are in.

    Raises:
        DataError: They are more than one and more than `LARGEST_SHARE`, or all images of a class.

    """
    if not broken:
        return
    first = broken[min(broken)]
    unread = sum(image.unread for image in broken.values())
    wrong = "broken" if not unread else _UNREAD if unread == len(broken) else f"broken or {_UNREAD}"
    lost = torch.bincount(labels[torch.tensor(list(broken))], minlength=len(class_names))
    emptied = ((lost > 0) & (lost == torch.bincount(labels, minlength=len(class_names)))).nonzero().flatten().tolist()
    if emptied:
        what = f"all images of class {class_names[emptied[0]]} are {wrong}"
    elif len(broken) > max(1, LARGEST_SHARE * len(labels)):
        what = f"{len(broken):,} of {len(labels):,} images are {wrong}"
    else:
        return
    convert = "convert these to 8-bit RGB or grey"
    cure = "replace this copy" if not unread else convert if unread == len(broken) else f"{convert}, replace the others"
    raise DataError(
        f"{source}/{first.path}", found=f"{first.reason}; {what}, this is the first",
        expected=f"at most {LARGEST_SHARE:.0%} {wrong} and some sound images of every class",
        cure=f"{cure}; `spaceless data PATH --verify` names every such image",
    )


class LeftOut:
    """The broken images of one split that a training or a test has met so far; each is warned about once."""

    def __init__(
        self, source: str, labels: Tensor, class_names: Sequence[str], known: Iterable[Broken] = (),
    ) -> None:
        """Begin with those that are `known` already, as a resumed training does."""
        self.source, self.labels, self.class_names = source, labels, class_names
        self.met = {image.number: image for image in known}

    def add(self, broken: Iterable[Broken]) -> None:
        """Warn of images that have not been met before; raise DataError as soon as they are too many."""
        new = [image for image in broken if image.number not in self.met]
        for image in new:
            self.met[image.number] = image
            warnings.warn(f"{self.source}/{image.path} is left out: {image.reason}", stacklevel=2)
        if new:
            refuse_too_many(self.met, self.labels, self.class_names, self.source)

    def join(self, others: Iterable[Broken]) -> None:
        """Take over what other processes have met, and warned about, already."""
        self.met |= {image.number: image for image in others}

    @property
    def paths(self) -> tuple[str, ...]:
        """The paths of all that were met, in alphabetical order."""
        return tuple(sorted(image.path for image in self.met.values()))
