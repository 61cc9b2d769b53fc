"""`load`: from a name or a path to a `Dataset`, whatever the form it is kept in."""

from __future__ import annotations

import os
import warnings
from pathlib import Path

from spaceless.data.archives import read_archive
from spaceless.data.broken import skipped_note
from spaceless.data.cache import cached
from spaceless.data.classes import class_files
from spaceless.data.dataset import Dataset, Parts
from spaceless.data.find import Location, find, parquet_files, printable
from spaceless.data.folders import decoded_folders, no_image_size
from spaceless.data.images import DifferentSizeError
from spaceless.data.npz import read_npz
from spaceless.data.parquet import parquet_note, read_parquet
from spaceless.data.stream import Stream, open_stream
from spaceless.distributed import share
from spaceless.errors import InputError

Images = Dataset | Stream


def open_images(
    name_or_path: str | os.PathLike[str], *, data_root: Path | None = None, image_size: int | None = None,
    train: int | None = None, test: int | None = None, streamed: bool = False,
) -> Images:
    """Return a data set ready to train on: in memory, but for class folders that are to be `streamed`.

    Args:
        name_or_path: As for `load`.
        data_root: As for `load`.
        image_size: As for `load`; streamed images are 224 x 224 pixels unless asked otherwise.
        train: As for `load`.
        test: As for `load`.
        streamed: Leave the images of class folders where they are and decode them anew in every epoch.

    Raises:
        DataError: The set is missing, damaged, or not what it says it is; the message names the file.

    """
    if streamed and (place := find(name_or_path, data_root)).kind == "folders":
        return open_stream(place, image_size).subset(train, test)
    return load(name_or_path, data_root=data_root, image_size=image_size, train=train, test=test)


def load(
    name_or_path: str | os.PathLike[str], *, data_root: Path | None = None, image_size: int | None = None,
    train: int | None = None, test: int | None = None,
) -> Dataset:
    """Read a data set into memory. A few broken images of class folders are left out, with a warning and a note.

    Args:
        name_or_path: A name that `find` knows how to look for, or the path of a set.
        data_root: The folder that names are looked for in; default `$SPACELESS_DATA`, else the user cache folder.
        image_size: The edge of the images in pixels. Sets of one square size are resized (bilinear, antialiased) if it
            differs; images of other shapes are resized by their shorter side and cropped, and need it.
        train: Keep only a balanced draw of this many training images (`Dataset.subset`), before they are resized.
        test: The same for the test images.

    Raises:
        DataError: The set is missing, damaged, or not what it says it is; the message names the file.

    """
    if image_size is not None and image_size < 1:
        raise InputError("image size", found=image_size, expected="at least 1 pixel", cure="choose a larger size")
    place = find(name_or_path, data_root)
    note = parquet_note(place.path) if place.kind == "parquet" else ""
    parts = _parts(place, image_size)
    if parts.note and share().rank == 0:
        more = f" ({'; '.join(parts.reasons)})" if parts.reasons else ""
        warnings.warn(f"{printable(place.path)}: {parts.note}{more}", stacklevel=2)
    notes = "; ".join(filter(None, (note, parts.note)))
    data = Dataset(place.name, str(place.path), notes, *parts[:5]).subset(train, test)
    return data if image_size is None else data.resized(image_size)


def _parts(place: Location, image_size: int | None) -> Parts:
    path = place.path
    if place.kind == "npz":
        return read_npz(path)
    if place.kind == "parquet":
        files = parquet_files(path)
        try:
            return cached(files, "parquet", lambda: read_parquet(path, None))
        except DifferentSizeError:
            if image_size is None:
                raise
            return cached(files, f"parquet {image_size}", lambda: read_parquet(path, image_size))
    if place.kind == "folders":
        if image_size is None:
            raise no_image_size(path)
        found = class_files(path)
        parts = cached(found.files, f"folders {image_size}", lambda: decoded_folders(path, image_size, found),
                       found.names)
        # What else lies there is none of what the cache depends on.
        return parts._replace(note="; ".join(filter(None, (parts.note, skipped_note(found.skipped)))))
    return read_archive(place)
