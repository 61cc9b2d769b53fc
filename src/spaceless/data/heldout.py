"""A validation split: some of the training images, held out of the training to choose by."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from spaceless.data.dataset import Dataset, drawn
from spaceless.data.readers import Images
from spaceless.errors import InputError

JUDGED_ON_THEM = ", and accuracies are those on them, not on the test images"


def held_out(data: Images, share: float, *, keep_test: bool = False) -> Images:
    """Return `data` without `share` of its training images, which take the place of the test images.

    The draw is as even over the classes as their sizes allow and always the same one, so that all networks and seeds
    are compared on the same images. Both parts keep the order of the images.

    Args:
        data: The data set, at the number of images that is asked for.
        share: Of the training images, more than 0 and less than 1.
        keep_test: Leave the test images where they are: what was trained without the images held out is then tested,
            normalised as in its training.

    Raises:
        InputError: One of the two parts would have fewer images than there are classes.

    """
    rest, kept = _parted(data.train_labels.cpu(), share, data.classes, data.name)
    note = f"{len(kept):,} of {len(data.train_labels):,} training images are held out"
    if not keep_test:
        note += JUDGED_ON_THEM
    note = "; ".join(filter(None, (data.note, note)))
    if isinstance(data, Dataset):
        rest, kept = rest.to(data.train_images.device), kept.to(data.train_images.device)
        changed = {"train_images": data.train_images[rest], "train_labels": data.train_labels[rest]}
        if not keep_test:
            changed |= {"test_images": data.train_images[kept], "test_labels": data.train_labels[kept]}
        return replace(data, note=note, **changed)  # type: ignore[arg-type]
    test = data.test if keep_test else data.train.taken(kept)
    return replace(data, note=note, train=data.train.taken(rest), test=test)


def _parted(labels: Tensor, share: float, classes: int, name: str) -> tuple[Tensor, Tensor]:
    """Return the sorted numbers of the images that are trained on and of those that are held out."""
    wanted = round(share * len(labels))
    if not classes <= wanted <= len(labels) - classes:
        raise InputError(
            f"holdout of {name}", found=f"{share:g}, which is {wanted:,} of {len(labels):,} training images",
            expected=f"at least {classes} on either side, as many as there are classes",
            cure="choose another share or more images",
        )
    kept = drawn(labels, wanted, 0, "held-out", name)
    assert kept is not None  # fewer than all
    others = torch.ones(len(labels), dtype=torch.bool)
    others[kept] = False
    return others.nonzero().flatten(), kept
