"""Class folders to pixels in memory: every image decoded once, at one size."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from spaceless.data.broken import Broken, first_reasons, left_out_note, refuse_too_many
from spaceless.data.classes import ClassFiles, labels_of
from spaceless.data.dataset import Parts
from spaceless.data.find import printable
from spaceless.data.images import decode_into, empty_pixels
from spaceless.errors import DataError

_BLOCK = 4096  # images moved at a time
_CURE = (
    "choose a smaller image size, or train with --recipe imagenet, which decodes images anew in every epoch "
    "and keeps none"
)


def no_image_size(folder: Path) -> DataError:
    """Return the error for class folders that are to be read without an image size."""
    return DataError(
        printable(folder), found="no image size", expected="one, since images in folders may have any size",
        cure="give --image-size (in the file of a study image_sizes), or train with --recipe imagenet, which takes 224",
    )


def decoded_folders(folder: Path, image_size: int, found: ClassFiles) -> Parts:
    """Decode the files `found` in class folders; labels follow the alphabetical order of the folders' names.

    A few broken images are left out, with a note that names them.

    Args:
        folder: It holds `train` and `test` (or `val`, `validation`, `valid`).
        image_size: The edge of the square images, in pixels: shorter side resized to it, centre cut out.
        found: As `class_files` returns it.

    Raises:
        DataError: Too many images are broken, or the pixels do not fit into memory.

    """
    *train, lost = _decoded(found.train, image_size, folder)
    *test, also_lost = _decoded(found.test, image_size, folder)
    broken = lost + also_lost
    return Parts(train[0], train[1], test[0], test[1], found.names, left_out_note(broken), first_reasons(broken))


def _decoded(classes: dict[str, list[Path]], image_size: int, folder: Path) -> tuple[Tensor, Tensor, list[Broken]]:
    """Return the pixels and labels of the sound images of a split, and what the others are."""
    files = [file for of_class in classes.values() for file in of_class]
    labels = labels_of(classes)
    pixels = empty_pixels(len(files), image_size, printable(folder), _CURE)
    errors: dict[int, DataError] = {}
    decode_into(pixels, files, lambda i: printable(files[i]), crop=True, broken=errors)
    broken = {i: Broken(i, printable(files[i].relative_to(folder).as_posix()), f"{error.found}")
              for i, error in errors.items()}
    refuse_too_many(broken, labels, tuple(map(printable, classes)), printable(folder))
    kept = np.array([i for i in range(len(files)) if i not in broken])
    if broken:
        for start in range(0, len(kept), _BLOCK):  # moved up in place: a second copy might not fit into memory
            block = kept[start : start + _BLOCK]
            pixels[start : start + len(block)] = pixels[block]
    return torch.from_numpy(pixels[: len(kept)]), labels[torch.from_numpy(kept)], list(broken.values())
