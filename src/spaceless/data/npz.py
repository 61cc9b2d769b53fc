"""`.npz` files of images and labels (Keras, MedMNIST, our cache): every header is checked before anything is read."""

from __future__ import annotations

import io
import zipfile
from math import prod
from pathlib import Path
from typing import IO, Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from spaceless.data.dataset import Parts, numbered_classes
from spaceless.data.images import memory
from spaceless.errors import DataError

KEYS = (
    ("x_train", "y_train", "x_test", "y_test"),
    ("train_images", "train_labels", "test_images", "test_labels"),
)
NAMES_KEY = "class_names"
NOTE_KEY, REASONS_KEY = "spaceless_note", "spaceless_reasons"  # written by our own cache of decoded images
MOST_BYTES = 8 << 30  # of all arrays together, unpacked

_Array = npt.NDArray[Any]
_CHANNELS = (1, 3)
_PIECE = 1 << 20
_LONGEST_HEADER = 1 << 14  # bytes; NumPy itself refuses headers of more than 10,000 characters, but reads them first
_LARGEST_RATIO = 200  # of bytes unpacked to bytes of the file: images are far below it, zeros reach 1,032
_ALWAYS = 1 << 26  # bytes that may be unpacked whatever the ratio
_PACKINGS = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)  # NumPy's two; of the others LZMA takes memory as it likes


def read_npz(path: Path) -> Parts:
    """Read images, uint8 (N, H, W), (N, H, W, C) or (N, C, H, W), and integer labels (N,) or (N, 1).

    The arrays are named as in one of `KEYS`; text in `class_names` is optional; further arrays are not looked at.

    Raises:
        DataError: The file is damaged, its headers do not agree with each other, or its arrays are not images.

    """
    try:
        with zipfile.ZipFile(path) as archive:
            members = {info.filename.removesuffix(".npy"): info for info in archive.infolist()}
            keys = next((keys for keys in KEYS if set(keys) <= set(members)), None)
            if keys is None:
                expected = " or ".join(", ".join(keys) for keys in KEYS)
                found = ", ".join(sorted(members)[:8])[:200]
                raise _problem(path, f"arrays {found or 'none'}", expected, "rename them")
            wanted = [*keys, *(key for key in (NAMES_KEY, NOTE_KEY, REASONS_KEY) if key in members)]
            declared = sum(members[key].file_size for key in wanted)
            limit = min(MOST_BYTES, memory(), max(_ALWAYS, _LARGEST_RATIO * path.stat().st_size))
            if declared > limit:
                raise _problem(path, f"{declared:,} bytes unpacked", f"at most {limit:,}", "keep fewer images")
            arrays = {key: _array(archive, members[key], f"{path}: {key}") for key in wanted}
    except DataError:
        raise
    except Exception as error:  # broken bytes raise whatever zipfile and NumPy stumble over
        raise _problem(path, f"a damaged file ({str(error)[:120]})", "an .npz", "replace it") from error
    images = [_images(arrays[key], f"{path}: {key}") for key in keys[::2]]
    labels = [_labels(arrays[key], f"{path}: {key}") for key in keys[1::2]]
    note, reasons = (_texts(arrays[key], f"{path}: {key}") if key in arrays else () for key in (NOTE_KEY, REASONS_KEY))
    return Parts(
        images[0], labels[0], images[1], labels[1], _names(arrays.get(NAMES_KEY), labels, path), "".join(note),
        tuple(filter(None, reasons)))


def _array(archive: zipfile.ZipFile, member: zipfile.ZipInfo, what: str) -> _Array:
    """Read one array whose header must account for every byte the member declares; its checksum is checked."""
    if member.compress_type not in _PACKINGS:
        raise _problem(what, f"compression method {member.compress_type}", "none or deflate", "use np.savez")
    with archive.open(member) as stream:
        head = io.BytesIO(stream.read(_LONGEST_HEADER))
        shape, by_columns, dtype = _header(head)
        if dtype.hasobject:
            raise _problem(what, "Python objects", "plain numbers", "store it as uint8 or int64")
        size = prod(shape) * dtype.itemsize
        if any(n < 0 for n in shape) or size + head.tell() != member.file_size:
            found = f"{member.file_size:,} bytes for shape {shape} of {dtype}"
            raise _problem(what, found, f"{size + head.tell():,}", "replace the file")
        # Piece by piece into its final place: twice as fast as `read`, which joins pieces into a copy.
        content = np.empty(size, np.uint8)
        begun = head.read()
        content[: len(begun)] = np.frombuffer(begun, np.uint8)
        for start in range(len(begun), size, _PIECE):
            piece = stream.read(min(_PIECE, size - start))
            if len(piece) != min(_PIECE, size - start):
                raise _problem(what, "an early end", f"{size:,} bytes", "replace the file")
            content[start : start + len(piece)] = np.frombuffer(piece, np.uint8)
    return content.view(dtype).reshape(shape, order="F" if by_columns else "C")


def _header(stream: IO[bytes]) -> tuple[tuple[int, ...], bool, np.dtype[Any]]:
    from numpy.lib import format as npy

    try:
        version = npy.read_magic(stream)
        if version == (1, 0):
            return npy.read_array_header_1_0(stream)
        if version == (2, 0):
            return npy.read_array_header_2_0(stream)
    except Exception as error:  # the header is a Python literal: parsing a broken one can raise nearly anything
        raise ValueError(f"{type(error).__name__} in an array's header") from error
    raise ValueError(f"an array of npy version {version}")


def _images(images: _Array, what: str) -> Tensor:
    """Return uint8 (N, C, H, W); where both orders of the axes are possible, the channels are the last."""
    if images.dtype.kind == "f":
        cure = "store (255 * images).round().astype('uint8')"
        raise _problem(what, f"{images.dtype} pixels", "uint8 in 0..255", cure)
    if images.dtype != np.uint8:
        raise _problem(what, f"{images.dtype} pixels", "uint8 in 0..255", "store them as uint8")
    if images.ndim == 3:
        images = images[:, None]
    elif images.ndim == 4 and images.shape[3] in _CHANNELS and images.shape[1] == images.shape[2]:
        images = images.transpose(0, 3, 1, 2)
    elif images.ndim != 4 or images.shape[1] not in _CHANNELS:
        expected = "(N, H, W), (N, H, W, C) or (N, C, H, W) with C = 1 or 3"
        raise _problem(what, f"shape {images.shape}", expected, "reshape it")
    return torch.from_numpy(np.ascontiguousarray(images))


def _labels(labels: _Array, what: str) -> Tensor:
    if labels.dtype.kind not in "iu":
        raise _problem(what, f"{labels.dtype} labels", "whole numbers from 0", "store them as int64")
    if labels.ndim == 2 and labels.shape[1] == 1:
        labels = labels[:, 0]
    if labels.ndim != 1:
        raise _problem(what, f"shape {labels.shape}", "one label per image, (N,) or (N, 1)", "choose one of them")
    return torch.from_numpy(labels.astype(np.int64))


def _names(names: _Array | None, labels: list[Tensor], path: Path) -> tuple[str, ...]:
    if names is not None:
        return _texts(names, f"{path}: {NAMES_KEY}")
    return numbered_classes(*labels)


def _texts(texts: _Array, what: str) -> tuple[str, ...]:
    if texts.dtype.kind != "U" or texts.ndim != 1:
        raise _problem(what, f"{texts.dtype} {texts.shape}", "a list of texts", "store text")
    return tuple(str(text) for text in texts)


def _problem(what: object, found: str, expected: str, cure: str) -> DataError:
    return DataError(str(what), found=found, expected=expected, cure=cure)
