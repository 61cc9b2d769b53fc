"""Images of class folders that cannot be decoded: left out by name, an error where they are too many.

One truncated file must not end a training of days, and nothing may be left out in silence. Archives, `.npz` and parquet
files are made by machines as a whole: there a broken image means a broken file, and is an error.
"""

from __future__ import annotations

import warnings
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from spaceless.errors import DataError

LARGEST_SHARE = 0.01  # of a split; more than that is a broken copy, or a disk that is gone, and no accident
_NAMED = 5


class Broken(NamedTuple):
    """An image that cannot be decoded: its number in its split, its path in the folder and what is wrong with it."""

    number: int
    path: str
    reason: str


def broken_note(paths: Collection[str]) -> str:
    """Return the sentence that belongs to every figure measured without these images; empty if there are none."""
    if not paths:
        return ""
    named = sorted(paths)
    more = f" and {len(named) - _NAMED:,} more" if len(named) > _NAMED else ""
    return f"{len(named):,} broken image{'s' * (len(named) > 1)} left out: {', '.join(named[:_NAMED])}{more}"


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
    lost = torch.bincount(labels[torch.tensor(list(broken))], minlength=len(class_names))
    emptied = ((lost > 0) & (lost == torch.bincount(labels, minlength=len(class_names)))).nonzero().flatten().tolist()
    if emptied:
        what = f"all images of class {class_names[emptied[0]]} are broken"
    elif len(broken) > max(1, LARGEST_SHARE * len(labels)):
        what = f"{len(broken):,} of {len(labels):,} images are broken"
    else:
        return
    raise DataError(
        f"{source}/{first.path}", found=f"{first.reason}; {what}, this is the first",
        expected=f"at most {LARGEST_SHARE:.0%} broken and some sound images of every class",
        cure="replace this copy; `spaceless data PATH --verify` names every broken image",
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
