"""Class folders, `train/CLASS/*` and `test/CLASS/*` (or `val/`), and Tiny-ImageNet as it comes: files, then pixels."""

from __future__ import annotations

import os
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from spaceless.data.broken import Broken, broken_note, refuse_too_many
from spaceless.data.dataset import Parts
from spaceless.data.find import TEST_FOLDERS
from spaceless.data.images import IMAGE_SUFFIXES, decode_into, empty_pixels
from spaceless.errors import DataError

_ANNOTATIONS, _WORDS = "val_annotations.txt", "words.txt"  # of Tiny-ImageNet
_MOST_TEXT = 1 << 26  # bytes of such a file
_BLOCK = 4096  # images moved at a time
_CURE = (
    "choose a smaller image size, or train with --recipe imagenet, which decodes images anew in every epoch "
    "and keeps none"
)


class ClassFiles(NamedTuple):
    """The image files of each class of the training and of the test split, classes and files in alphabetical order.

    `names` are what the classes are called, in this order; `lists` are further files that all this was read from.
    """

    train: dict[str, list[Path]]
    test: dict[str, list[Path]]
    names: tuple[str, ...]
    lists: tuple[Path, ...]


def class_files(folder: Path) -> ClassFiles:
    """Return the files of class folders, or of Tiny-ImageNet's `train/CLASS/images/*` and annotated `val/images/*`.

    Raises:
        DataError: A split has no class folders, the two splits have different ones, or one has no images.

    """
    train = _classes(folder / "train")
    lists = [folder / _WORDS] if (folder / _WORDS).is_file() else []
    annotations = folder / "val" / _ANNOTATIONS
    if annotations.is_file() and (annotations.parent / "images").is_dir():
        test_name, test = "val", _annotated(annotations)
        lists.append(annotations)
    else:
        chosen = _test_folder(folder, train)
        test_name, test = chosen.name, _classes(chosen)
    if set(train) != set(test):
        only = [f"{'train' if name in train else test_name}/{name}" for name in sorted(set(train) ^ set(test))]
        raise _problem(
            folder, f"{len(only)} classes in one split only: {', '.join(only[:4])}", "the same classes in both splits",
            "add or remove these folders",
        )
    words = _words(folder / _WORDS) if lists and lists[0].name == _WORDS else {}
    return ClassFiles(train, test, tuple(words.get(name, name) for name in train), tuple(lists))


def _test_folder(folder: Path, train: dict[str, list[Path]]) -> Path:
    """Return the test split's folder: of several the one with classes, since ImageNet's own test/ has no labels."""
    tests = [folder / name for name in TEST_FOLDERS if (folder / name).is_dir()]
    folders = {path: {entry.name for entry in path.iterdir() if entry.is_dir()} for path in tests}
    ours = [path for path in tests if folders[path] & set(train)]
    some = [path for path in tests if folders[path]]
    # Where none has classes, it is not the first, test/, that should.
    return (ours or some or tests[1:] or tests)[0]


def _classes(split: Path) -> dict[str, list[Path]]:
    folders = sorted(path for path in split.iterdir() if path.is_dir() and not path.name.startswith("."))
    if not folders:
        loose = len(_images_in(split))
        raise _problem(
            split, f"{loose:,} images and no class folders" if loose else "no class folders",
            f"one folder of images per class, {split.name}/CLASS/* (ImageNet: {split.name}/SYNSET/*.JPEG)",
            "sort the images into folders, named alike in train and test",
        )
    found = {}
    for folder in folders:
        files = _images_in(folder) or _images_in(folder / "images")  # Tiny-ImageNet keeps them one level deeper
        if not files:
            raise _problem(folder, "no images", "files like *.png or *.jpg", "add some or remove it")
        found[folder.name] = files
    return found


def _images_in(folder: Path) -> list[Path]:
    if not folder.is_dir():
        return []
    with os.scandir(folder) as entries:  # it knows what is a file without asking for each of a million
        names = [entry.name for entry in entries
                 if entry.name.lower().endswith(IMAGE_SUFFIXES) and not entry.name.startswith(".") and entry.is_file()]
    return [folder / name for name in sorted(names)]


def _annotated(annotations: Path) -> dict[str, list[Path]]:
    """Return the images beside Tiny-ImageNet's list by class: its lines are FILE, CLASS and a box, between tabs."""
    images = {path.name: path for path in _images_in(annotations.parent / "images")}
    by_class: dict[str, list[Path]] = {}
    for number, line in enumerate(_text(annotations).splitlines(), 1):
        name, _, rest = line.partition("\t")
        label = rest.split("\t", 1)[0].strip()
        if not label or name not in images:
            raise _problem(
                annotations, f"line {number}: {line[:60]!r}", "an image in images/, each once, and its class",
                "replace this copy",
            )
        by_class.setdefault(label, []).append(images.pop(name))
    if images:
        raise _problem(annotations, f"no line for {min(images)}", "one for every image", "replace this copy")
    return {label: sorted(by_class[label]) for label in sorted(by_class)}


def _words(file: Path) -> dict[str, str]:
    """Return what ImageNet's classes are called, by synset: lines of SYNSET, a tab and words."""
    pairs = (line.split("\t", 1) for line in _text(file).splitlines() if "\t" in line)
    return {synset: words.strip() for synset, words in pairs if words.strip()}


def _text(file: Path) -> str:
    with file.open("rb") as stream:
        content = stream.read(_MOST_TEXT + 1)
    if len(content) > _MOST_TEXT:
        raise _problem(file, "too much text", f"at most {_MOST_TEXT:,} bytes", "replace it")
    return content.decode("utf-8", "replace")


def read_folders(folder: Path, image_size: int | None) -> Parts:
    """Read class folders; labels follow the alphabetical order of the folders' names.

    A few broken images are left out, with a note that names them.

    Args:
        folder: It holds `train` and `test` (or `val`, `validation`).
        image_size: The edge of the square images, in pixels: shorter side resized to it, centre cut out. Required.

    Raises:
        DataError: The folders disagree, too many images are broken, or the pixels do not fit into memory.

    """
    if image_size is None:
        raise _problem(
            folder, "no image size", "one, since images in folders may have any size",
            "give --image-size (in the file of a study image_sizes), or train with --recipe imagenet, which takes 224",
        )
    found = class_files(folder)
    *train, lost = _decoded(found.train, image_size, folder)
    *test, also_lost = _decoded(found.test, image_size, folder)
    return Parts(train[0], train[1], test[0], test[1], found.names, broken_note(lost + also_lost))


def labels_of(classes: dict[str, list[Path]]) -> Tensor:
    """Return the label of every file, int64 (N,), class after class."""
    counts = torch.tensor([len(files) for files in classes.values()])
    return torch.repeat_interleave(torch.arange(len(classes)), counts)


def _decoded(classes: dict[str, list[Path]], image_size: int, folder: Path) -> tuple[Tensor, Tensor, list[str]]:
    """Return the pixels and labels of the sound images of a split, and the paths of the others."""
    files = [file for of_class in classes.values() for file in of_class]
    labels = labels_of(classes)
    pixels = empty_pixels(len(files), image_size, str(folder), _CURE)
    errors: dict[int, DataError] = {}
    decode_into(pixels, files, lambda i: str(files[i]), crop=True, broken=errors)
    broken = {i: Broken(i, files[i].relative_to(folder).as_posix(), f"{error.found}") for i, error in errors.items()}
    refuse_too_many(broken, labels, tuple(classes), str(folder))
    kept = np.array([i for i in range(len(files)) if i not in broken])
    if broken:
        for start in range(0, len(kept), _BLOCK):  # moved up in place: a second copy might not fit into memory
            block = kept[start : start + _BLOCK]
            pixels[start : start + len(block)] = pixels[block]
    return torch.from_numpy(pixels[: len(kept)]), labels[torch.from_numpy(kept)], [b.path for b in broken.values()]


def _problem(what: Path, found: str, expected: str, cure: str) -> DataError:
    return DataError(str(what), found=found, expected=expected, cure=cure)
