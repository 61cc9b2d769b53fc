"""Which image files class folders hold, `train/CLASS/**` and `test/CLASS/**` (or `val/`), and Tiny-ImageNet's lists."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from spaceless.data.find import TEST_FOLDERS, printable
from spaceless.data.images import image_suffixes
from spaceless.errors import DataError

_ANNOTATIONS, _WORDS, _BOXES = "val_annotations.txt", "words.txt", "_boxes.txt"  # of Tiny-ImageNet
_MOST_TEXT = 1 << 26  # bytes of such a file


class ClassFiles(NamedTuple):
    """The image files of each class of the training and of the test split, classes and files in alphabetical order.

    `names` are what the classes are called, in this order; `lists` are further files that all this was read from;
    `skipped` are the paths of files in class folders, and of images beside them, that are not read.
    """

    train: dict[str, list[Path]]
    test: dict[str, list[Path]]
    names: tuple[str, ...]
    lists: tuple[Path, ...]
    skipped: tuple[str, ...]

    @property
    def files(self) -> list[Path]:
        """All files that pixels and labels depend on."""
        return [file for split in self[:2] for of_class in split.values() for file in of_class] + list(self.lists)


def class_files(folder: Path) -> ClassFiles:
    """Return the files of class folders, or of Tiny-ImageNet's `train/CLASS/images/*` and annotated `val/images/*`.

    Folders within class folders belong to the class, as for torchvision's `ImageFolder`. Links that lead nowhere are
    images, broken ones, if their names are those of images.

    Raises:
        DataError: A split has no class folders, the two splits have different ones, or one has no images.

    """
    skipped: list[Path] = []
    train = _classes(folder / "train", skipped)
    lists = [folder / _WORDS] if (folder / _WORDS).is_file() else []
    annotations = folder / "val" / _ANNOTATIONS
    if annotations.is_file() and (annotations.parent / "images").is_dir():
        test_name, test = "val", _annotated(annotations)
        lists.append(annotations)
    else:
        chosen = _test_folder(folder, train)
        test_name, test = chosen.name, _classes(chosen, skipped)
    if set(train) != set(test):
        only = [f"{'train' if name in train else test_name}/{name}" for name in sorted(set(train) ^ set(test))]
        raise _problem(
            folder, f"{len(only)} classes in one split only: {', '.join(map(printable, only[:4]))}",
            "the same classes in both splits", "add or remove these folders",
        )
    words = _words(folder / _WORDS) if lists and lists[0].name == _WORDS else {}
    names = tuple(words.get(name, printable(name)) for name in train)
    return ClassFiles(train, test, names, tuple(lists), _within(folder, skipped))


def labels_of(classes: dict[str, list[Path]]) -> Tensor:
    """Return the label of every file, int64 (N,), class after class."""
    counts = torch.tensor([len(files) for files in classes.values()])
    return torch.repeat_interleave(torch.arange(len(classes)), counts)


def size_of(file: Path) -> int:
    """Return the size of a file in bytes; a link that leads nowhere has none."""
    try:
        return file.stat().st_size
    except OSError:
        return 0


def _within(folder: Path, paths: Iterable[Path]) -> tuple[str, ...]:
    return tuple(printable(path.relative_to(folder).as_posix()) for path in paths)


def _test_folder(folder: Path, train: dict[str, list[Path]]) -> Path:
    """Return the test split's folder: of several the one with classes, since ImageNet's own test/ has no labels."""
    tests = [folder / name for name in TEST_FOLDERS if (folder / name).is_dir()]
    folders = {path: {entry.name for entry in path.iterdir() if entry.is_dir()} for path in tests}
    ours = [path for path in tests if folders[path] & set(train)]
    some = [path for path in tests if folders[path]]
    # Where none has classes, it is not the first, test/, that should.
    return (ours or some or tests[1:] or tests)[0]


def _classes(split: Path, skipped: list[Path]) -> dict[str, list[Path]]:
    """Return the image files of each class folder of a split, and add what is not read to `skipped`."""
    folders: list[Path] = []
    loose: list[Path] = []
    try:
        entries = sorted(path for path in split.iterdir() if not path.name.startswith("."))
    except OSError as error:
        raise _unreadable(split, error) from error
    for path in entries:
        if _is(path, Path.is_dir):
            folders.append(path)
        elif path.name.lower().endswith(image_suffixes()):
            loose.append(path)
        elif _leads_nowhere(path):
            raise _problem(path, "a link that leads nowhere", "a class folder", "mend or remove it")
    if not folders:
        raise _problem(
            split, f"{len(loose):,} images and no class folders" if loose else "no class folders",
            f"one folder of images per class, {split.name}/CLASS/* (ImageNet: {split.name}/SYNSET/*.JPEG)",
            "sort the images into folders, named alike in train and test",
        )
    skipped += loose
    found = {}
    for folder in folders:
        files = _images_in(folder, skipped)
        if not files:
            raise _problem(folder, "no images", "files like *.png or *.jpg", "add some or remove it")
        found[folder.name] = files
    return found


def _images_in(top: Path, skipped: list[Path]) -> list[Path]:
    """Return the image files in a folder and the folders within it, each folder's own before those of the next."""
    images: list[tuple[str, str]] = []
    waiting: list[tuple[str, tuple[str, ...]]] = [(str(top), (os.path.realpath(top),))]
    while waiting:
        folder, within = waiting.pop()
        try:
            with os.scandir(folder) as entries:  # it knows what is a file without asking for each of a million
                visible = [entry for entry in entries if not entry.name.startswith(".")]
        except OSError as error:
            raise _unreadable(Path(folder), error) from error
        for entry in visible:
            if _is(entry, os.DirEntry.is_dir):
                real = os.path.realpath(entry.path) if entry.is_symlink() else None
                if real is None:
                    waiting.append((entry.path, within))
                elif any(Path(other).is_relative_to(real) for other in (os.path.realpath(folder), *within)):
                    skipped.append(Path(entry.path))  # a link back: what it leads to is there already
                else:
                    waiting.append((entry.path, (*within, real)))
            elif entry.name.lower().endswith(image_suffixes()) and (
                    _is(entry, os.DirEntry.is_file) or _leads_nowhere(Path(entry.path))):
                images.append((folder, entry.name))
            elif entry.name != f"{top.name}{_BOXES}":
                skipped.append(Path(entry.path))
    return [Path(folder, name) for folder, name in sorted(images)]


def _annotated(annotations: Path) -> dict[str, list[Path]]:
    """Return the images beside Tiny-ImageNet's list by class: its lines are FILE, CLASS and a box, between tabs."""
    images = {path.name: path for path in _images_in(annotations.parent / "images", [])}
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


def _is(entry: Any, kind: Callable[[Any], bool]) -> bool:
    """Return whether an entry of a folder is of a kind; links in a ring are of none."""
    try:
        return kind(entry)
    except OSError:
        return False


def _leads_nowhere(path: Path) -> bool:
    return path.is_symlink() and not _is(path, Path.exists)


def _unreadable(folder: Path, error: OSError) -> DataError:
    return _problem(folder, f"{error.strerror or error}", "a folder that can be read", "mend or remove it")


def _problem(what: Path, found: str, expected: str, cure: str) -> DataError:
    return DataError(printable(what), found=found, expected=expected, cure=cure)
