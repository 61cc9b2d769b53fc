"""Class folders, `train/CLASS/*` and `test/CLASS/*` (or `val/`): every image resized and cropped to one square size."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from spaceless.data.dataset import Parts
from spaceless.data.find import TEST_FOLDERS
from spaceless.data.images import IMAGE_SUFFIXES, decode_into, empty_pixels
from spaceless.errors import DataError


def class_files(folder: Path) -> tuple[dict[str, list[Path]], dict[str, list[Path]]]:
    """Return the image files of each class of the training and of the test split, both in alphabetical order.

    Raises:
        DataError: A split has no class folders, the two splits have different ones, or one has no images.

    """
    train = _classes(folder / "train")
    tests = [folder / name for name in TEST_FOLDERS if (folder / name).is_dir()]
    # ImageNet's own test/ has no classes: then the labelled images are in val/.
    chosen = next((path for path in tests if any(entry.is_dir() for entry in path.iterdir())), tests[0])
    test = _classes(chosen)
    if set(train) != set(test):
        only = [f"{'train' if name in train else chosen.name}/{name}" for name in sorted(set(train) ^ set(test))]
        raise _problem(
            folder, f"{len(only)} classes in one split only: {', '.join(only[:4])}", "the same classes in both splits",
            "add or remove these folders",
        )
    return train, test


def _classes(split: Path) -> dict[str, list[Path]]:
    folders = sorted(path for path in split.iterdir() if path.is_dir() and not path.name.startswith("."))
    if not folders:
        raise _problem(split, "no class folders", "one folder of images per class", "sort the images into folders")
    found = {}
    for folder in folders:
        files = sorted(
            path for path in folder.iterdir()
            if path.suffix.lower() in IMAGE_SUFFIXES and not path.name.startswith(".") and path.is_file()
        )
        if not files:
            raise _problem(folder, "no images", "files like *.png or *.jpg", "add some or remove it")
        found[folder.name] = files
    return found


def read_folders(folder: Path, image_size: int | None) -> Parts:
    """Read class folders; labels follow the alphabetical order of the folders' names.

    Args:
        folder: It holds `train` and `test` (or `val`, `validation`).
        image_size: The edge of the square images, in pixels: shorter side resized to it, centre cut out. Required.

    Raises:
        DataError: The folders disagree, an image is broken, or the pixels do not fit into memory.

    """
    if image_size is None:
        raise _problem(folder, "no image size", "one, since images in folders may have any size", "give --image-size")
    train, test = class_files(folder)
    return Parts(*_decoded(train, image_size, folder), *_decoded(test, image_size, folder), tuple(train))


def _decoded(classes: dict[str, list[Path]], image_size: int, folder: Path) -> tuple[Tensor, Tensor]:
    files = [file for of_class in classes.values() for file in of_class]
    pixels = empty_pixels(len(files), image_size, str(folder))
    decode_into(pixels, files, lambda i: str(files[i]), crop=True)
    labels = np.repeat(np.arange(len(classes)), [len(of_class) for of_class in classes.values()])
    return torch.from_numpy(pixels), torch.from_numpy(labels.astype(np.int64))


def _problem(what: Path, found: str, expected: str, cure: str) -> DataError:
    return DataError(str(what), found=found, expected=expected, cure=cure)
