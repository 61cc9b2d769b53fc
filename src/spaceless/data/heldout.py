"""A validation split: some of the training images, held out of the training to choose by."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from spaceless.data.dataset import Dataset, drawn
from spaceless.data.readers import Images
from spaceless.errors import InputError
from spaceless.seeds import generator

JUDGED_ON_THEM = ", and accuracies are those on them, not on the test images"


def held_out(data: Images, share: float, *, keep_test: bool = False) -> Images:
    """Return `data` without `share` of its training images, which take the place of the test images.

    The draw is in proportion to the sizes of the classes, leaves each of them an image to train on, and is always the
    same one, so that all networks and seeds are compared on the same images. Both parts keep the order of the images.

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
    kept = _in_proportion(labels, wanted, name)
    others = torch.ones(len(labels), dtype=torch.bool)
    others[kept] = False
    return others.nonzero().flatten(), kept


def _in_proportion(labels: Tensor, wanted: int, name: str) -> Tensor:
    """Return the sorted numbers of `wanted` images, of each class its share within one image and never all."""
    counts = torch.bincount(labels)
    even = drawn(labels, wanted, 0, "held-out", name)
    assert even is not None  # fewer than all
    taken = torch.bincount(labels[even], minlength=len(counts))
    # Where turns of the classes come to their proportion, as in every balanced set, they stay: outcomes depend on them.
    if bool(((taken * len(labels) - counts * wanted).abs() < len(labels)).all() and (taken < counts)[counts > 0].all()):
        return even
    random = generator(0, "held-out in proportion")
    order = torch.randperm(len(labels), generator=random)
    of_classes = torch.split(order[labels[order].argsort(stable=True)], counts.tolist())
    quotas = _quotas(counts, wanted, torch.randperm(len(counts), generator=random)).tolist()
    return torch.cat([part[:quota] for part, quota in zip(of_classes, quotas, strict=True)]).sort().values


def _quotas(counts: Tensor, wanted: int, rank: Tensor) -> Tensor:
    """Return how many of the `counts` images of each class make up `wanted`, fewer than all of a class: int64 (C,).

    By largest remainders, and by `rank`, a permutation of the classes, where they are equal.
    """
    total = int(counts.sum())
    quotas, remainders = counts * wanted // total, counts * wanted % total
    while left := wanted - int(quotas.sum()):  # anew where classes too small for a further image leave some over
        able = (quotas < counts - 1).nonzero().flatten()
        quotas[able[(rank[able] - remainders[able] * len(rank)).argsort()[:left]]] += 1
    return quotas
