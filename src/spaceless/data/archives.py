"""The official archives: CIFAR-10 and CIFAR-100 in their Python and binary forms, unpacked or not, and ImageNet-32."""

from __future__ import annotations

import gzip
import tarfile
import zlib
from collections.abc import Iterator
from math import isqrt
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from spaceless.data.dataset import Parts
from spaceless.data.find import ARCHIVE_FILES, Location, archive_file
from spaceless.data.pickles import LARGEST_FILE, read_pickle
from spaceless.errors import DataError

_Array = npt.NDArray[Any]
_LABEL_BYTES = {"cifar-100-binary": 2, "cifar-10-batches-bin": 1}  # before the pixels of each image; the last counts
_FINE_LABELS = ("fine_labels", "labels")
_FINE_NAMES = ("fine_label_names", "label_names")
_CIFAR_PIXELS = 3 * 32 * 32
_MOST_UNPACKED = 1 << 28  # bytes of a .tar.gz; those of CIFAR unpack to 0.19e9
_MOST_MEMBERS = 1000  # they have ten
_BLOCK = tarfile.BLOCKSIZE
_WITHOUT_CONTENT = (
    tarfile.LNKTYPE, tarfile.SYMTYPE, tarfile.DIRTYPE, tarfile.FIFOTYPE, tarfile.CHRTYPE, tarfile.BLKTYPE)


def read_archive(place: Location) -> Parts:
    """Read an official archive; CIFAR-100 with its 100 fine classes, ImageNet-32 with its labels counted from 0.

    Raises:
        DataError: A file is missing, damaged or not what it should be; the message names it.

    """
    files = ARCHIVE_FILES[place.kind]
    train = [name for name in files if name.startswith(("train", "data_batch"))]
    test = files[len(train)]
    splits: dict[str, list[tuple[_Array, _Array]]] = {"train": [], "test": []}
    names: tuple[str, ...] = ()
    for name, content in _contents(place, files):
        label = f"{place.path}/{name}"
        if name in train or name == test:
            read = _read_binary if place.kind in _LABEL_BYTES else _read_pickled
            splits["test" if name == test else "train"].append(read(content, label, place.kind))
        elif place.kind in _LABEL_BYTES:
            names = tuple(content.decode("ascii", "replace").split())
        else:
            names = _class_names(read_pickle(content, label), label)
    if place.kind == "imagenet32":
        names = tuple(str(number) for number in range(1, 1001))  # the archive has numbers only, from 1
    return Parts(*_joined(splits["train"], place.path), *_joined(splits["test"], place.path), names)


def _contents(place: Location, names: tuple[str, ...]) -> Iterator[tuple[str, bytes]]:
    """Yield the named files of a folder, in order, or of a .tar.gz, in the order the archive has them."""
    if place.path.is_dir():
        for name in names:
            path = archive_file(place.path, name)
            if not path.is_file():
                raise _problem(path, "no such file", "the complete official archive")
            _bounded(path, path.stat().st_size)
            yield name, path.read_bytes()
        return
    missing = set(names)
    batches: dict[str, bytes] = {}
    try:
        with gzip.open(place.path) as stream:
            for member in _members(stream, place.path):
                name = member.name.removeprefix("./").removeprefix(f"{place.kind}/")
                wanted = name in missing and member.isreg()
                content = _content(stream, member, keep=wanted)
                if wanted:
                    batches[name] = content
                    missing.remove(name)
                if not missing:
                    break
    except (tarfile.TarError, EOFError, OSError, zlib.error) as error:
        raise _problem(place.path, f"a damaged archive ({error})", "the official .tar.gz") from error
    if missing:
        raise _problem(place.path, f"no {', '.join(sorted(missing))} in it", "the complete official archive")
    for name in names:  # the members come in any order, the images must not
        yield name, batches.pop(name)


def _members(stream: gzip.GzipFile, path: Path) -> Iterator[tarfile.TarInfo]:
    """Yield the headers of an archive; the content of each must be taken off `stream` before the next.

    `tarfile.open` would be shorter, but extended headers of a hostile file cost it any memory and quadratic time. No
    official archive has them; they are passed over here like any other member.
    """
    unpacked = 0
    for _ in range(_MOST_MEMBERS):
        block = stream.read(_BLOCK)
        if not block.strip(b"\0"):  # the end
            return
        member = tarfile.TarInfo.frombuf(block, "utf-8", "surrogateescape")
        if member.size < 0 or member.type == tarfile.GNUTYPE_SPARSE:
            raise tarfile.ReadError("a member of no official archive")
        unpacked += _BLOCK + member.size
        if unpacked > _MOST_UNPACKED:
            raise _problem(path, f"over {_MOST_UNPACKED:,} bytes unpacked", "the official .tar.gz")
        yield member
    raise _problem(path, f"over {_MOST_MEMBERS:,} members", "the official .tar.gz")


def _content(stream: gzip.GzipFile, member: tarfile.TarInfo, *, keep: bool) -> bytes:
    """Take the content of `member` off the stream, and return it if it is to be kept."""
    size = 0 if member.type in _WITHOUT_CONTENT else member.size
    padding = -size % _BLOCK
    if keep:
        content = stream.read(size)
        if len(content) != size or len(stream.read(padding)) != padding:
            raise EOFError("an early end")
        return content
    left = size + padding
    while left:
        passed = len(stream.read(min(left, 1 << 20)))
        if not passed:
            raise EOFError("an early end")
        left -= passed
    return b""


def _bounded(path: Path, size: int) -> None:
    if size > LARGEST_FILE:
        raise _problem(path, f"{size:,} bytes", f"at most {LARGEST_FILE:,}")


def _read_binary(content: bytes, label: str, kind: str) -> tuple[_Array, _Array]:
    """Return images (N, 3, 32, 32) and labels (N,) of records: the label bytes, then the red, green and blue plane."""
    skip = _LABEL_BYTES[kind]
    if not content or len(content) % (skip + _CIFAR_PIXELS):
        raise _problem(label, f"{len(content):,} bytes", f"a multiple of {skip + _CIFAR_PIXELS:,}")
    records = np.frombuffer(content, np.uint8).reshape(-1, skip + _CIFAR_PIXELS)
    return records[:, skip:].reshape(-1, 3, 32, 32), records[:, skip - 1]


def _read_pickled(content: bytes, label: str, kind: str) -> tuple[_Array, _Array]:
    """Return images (N, 3, S, S) and labels (N,) of a batch: `data` (N, 3 * S * S) and a list of labels."""
    batch = read_pickle(content, label)
    images = batch.get("data")
    if not isinstance(images, np.ndarray) or images.dtype != np.uint8 or images.ndim != 2:
        found = f"{images.dtype} {images.shape}" if isinstance(images, np.ndarray) else type(images).__name__
        raise _problem(label, f"data of type {found}", "a uint8 array (N, 3 * S * S)")
    side = isqrt(images.shape[1] // 3)
    if side == 0 or 3 * side * side != images.shape[1]:
        raise _problem(label, f"{images.shape[1]} values per image", "3 * S * S")
    labels = next((batch[key] for key in _FINE_LABELS if key in batch), None)
    if isinstance(labels, list) and all(type(item) is int and 0 <= item < 1 << 31 for item in labels):
        labels = np.array(labels, np.int64)
    if not isinstance(labels, np.ndarray) or labels.dtype.kind not in "iu" or labels.shape != (len(images),):
        raise _problem(label, f"labels that are not {len(images)} whole numbers", f"a list {' or '.join(_FINE_LABELS)}")
    first = 1 if kind == "imagenet32" else 0
    return images.reshape(-1, 3, side, side), labels.astype(np.int64) - first


def _class_names(meta: dict[str, Any], label: str) -> tuple[str, ...]:
    names = next((meta[key] for key in _FINE_NAMES if key in meta), None)
    if not isinstance(names, list) or not names or not all(isinstance(name, str | bytes) for name in names):
        raise _problem(label, "no class names", f"a list {' or '.join(_FINE_NAMES)}")
    return tuple(name.decode("latin-1") if isinstance(name, bytes) else name for name in names)


def _joined(batches: list[tuple[_Array, _Array]], path: Path) -> tuple[Tensor, Tensor]:
    """Return the batches as two tensors, letting go of each one once it is copied (ImageNet-32 is 4 GB)."""
    shapes = {images.shape[1:] for images, _ in batches}
    if len(shapes) != 1:  # the data set's own check would not see it
        raise _problem(path, f"batches of shapes {sorted(shapes)}", "one shape")
    count = sum(len(labels) for _, labels in batches)
    images = np.empty((count, *shapes.pop()), np.uint8)
    labels = np.empty(count, np.int64)
    start = 0
    while batches:
        some, theirs = batches.pop(0)
        images[start : start + len(some)], labels[start : start + len(some)] = some, theirs
        start += len(some)
    return torch.from_numpy(images), torch.from_numpy(labels)


def _problem(file: str | Path, found: str, expected: str) -> DataError:
    return DataError(str(file), found=found, expected=expected, cure="replace it with the official file")
