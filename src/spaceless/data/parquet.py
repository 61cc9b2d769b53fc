"""Folders of parquet files, as Hugging Face keeps data sets: one column of encoded images and one of labels."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from spaceless.data.dataset import Parts, numbered_classes
from spaceless.data.find import TEST_FOLDERS, parquet_files
from spaceless.data.images import decode_into, empty_pixels, image_size_of
from spaceless.data.pages import pages
from spaceless.errors import DataError

RESPLIT_NOTE = "re-split: the train/test membership is not the official one"

_IMAGE_NAMES = ("img", "image")
_LABEL_NAMES = ("fine_label", "label")
_ROWS = 4096  # decoded at a time
_MOST_BYTES = 4 << 30  # of one row group, unpacked
_LARGEST_RATIO = 200  # of bytes unpacked to bytes packed in a page: encoded images hardly shrink
_ALWAYS = 1 << 26  # bytes that a page may unpack to whatever the ratio


def parquet_note(folder: Path) -> str:
    """Return the note that belongs to every figure on this copy: its README may own up to another split."""
    for file in (folder / "README.md", *(path.parent / "README.md" for path in parquet_files(folder)[:1])):
        if file.is_file():
            with file.open("rb") as stream:
                text = stream.read(1 << 16).decode("utf-8", "replace").lower()
            if "re-split" in text or "not the official" in text:
                return RESPLIT_NOTE
    return ""


def split_files(folder: Path) -> tuple[list[Path], list[Path]]:
    """Return the parquet files of the training and of the test split (`test-*`, else `validation-*`).

    Raises:
        DataError: A split, or a part of one (`-00001-of-00002`), is missing, or there are several sets.

    """
    files = parquet_files(folder)
    if len({file.parent for file in files}) > 1:
        parents = ", ".join(sorted({file.parent.name for file in files})[:8])
        raise _problem(folder, f"several data sets: {parents}", "one", "give the path of one of them")
    splits = {split: [file for file in files if re.match(rf"{split}\b", file.name)]
              for split in ("train", *TEST_FOLDERS)}
    test = next((splits[split] for split in TEST_FOLDERS if splits[split]), [])
    if not splits["train"] or not test:
        listed = ", ".join(file.name for file in files[:4])
        raise _problem(folder, listed, "train-*.parquet and test-*.parquet (or validation-*)", "add the missing split")
    for part in (splits["train"], test):
        counted = re.search(r"-(\d+)-of-(\d+)", part[0].name)
        if counted and len(part) != int(counted[2]):
            raise _problem(folder, f"{len(part)} parts like {part[0].name}", str(int(counted[2])), "add the others")
    return splits["train"], test


def read_parquet(folder: Path, image_size: int | None) -> Parts:
    """Read a folder of parquet files.

    Args:
        folder: It holds `train-*.parquet` and `test-*.parquet`.
        image_size: None takes the images as they are: all of one square size. Otherwise they are resized and cropped.

    Raises:
        DataError: A file or an image is broken, or the columns do not tell images and labels.
        DifferentSizeError: The images are not of one square size, and `image_size` is None.

    """
    train, test = split_files(folder)
    names = _class_names(train[0])
    splits = [_read_split(files, image_size) for files in (train, test)]
    numbers = numbered_classes(*(labels for _, labels in splits))
    if not names and len(numbers) == 100 and _columns(train[0])[1] == "fine_label":
        names = CIFAR100_FINE
    return Parts(*splits[0], *splits[1], names or numbers)


def _read_split(files: list[Path], image_size: int | None) -> tuple[Tensor, Tensor]:
    count = sum(_opened(file).metadata.num_rows for file in files)  # believed only as far as there is memory for it
    pixels: npt.NDArray[np.uint8] | None = None
    labels = []
    start = 0
    for file in files:
        for first, images, numbers in _batches(file):
            def name_of(i: int, file: Path = file, first: int = first) -> str:
                return f"{file}: row {first + i}"

            stop = start + len(images)
            if stop > count:
                raise _problem(file, f"over {count:,} rows", f"the {count:,} of its metadata", "replace it")
            if pixels is None:
                pixels = empty_pixels(count, image_size or image_size_of(images[0], name_of(0))[0], str(file))
            decode_into(pixels[start:stop], images, name_of, crop=image_size is not None)
            labels.append(numbers)
            start = stop
    if pixels is None:
        raise _problem(files[0], "no rows", "at least one", "replace it")
    if start != count:  # the rest of the pixels would be whatever was in memory
        raise _problem(files[-1], f"{start:,} rows", f"the {count:,} of its metadata", "replace it")
    return torch.from_numpy(pixels), torch.from_numpy(np.concatenate(labels))


def _batches(file: Path) -> Iterator[tuple[int, list[bytes], npt.NDArray[np.int64]]]:
    """Yield (number of the first row, encoded images, labels) for some rows at a time."""
    import pyarrow as pa

    image, label = _columns(file)
    first = 0
    try:
        leaves = map(_opened(file).schema.column, range(_opened(file).metadata.num_columns))
        # As a dictionary an image that a few bytes repeat a million times is in memory once.
        table = _opened(file, [leaf.path for leaf in leaves if leaf.path in (image, f"{image}.bytes")])
        _refuse_bombs(file, table.metadata, (image, label))
        for batch in _row_group_batches(table, [image, label]):
            batch.validate(full=True)  # arrow believes a damaged page which values of a dictionary it means
            column = batch.column(0)
            if isinstance(column, pa.StructArray):
                column = column.field("bytes")
            numbers = batch.column(1)
            if column.null_count or numbers.null_count:
                raise _problem(file, "rows without image or label", "none", "remove these rows")
            yield first, _values(column), numbers.cast(pa.int64()).to_numpy(zero_copy_only=False)
            first += len(numbers)
    except (pa.ArrowException, OSError, ValueError) as error:
        raise _problem(file, f"a damaged file ({str(error)[:120]})", "parquet", "replace it") from error


def _row_group_batches(table: Any, columns: list[str]) -> Iterator[Any]:
    """Yield batches of rows that lie in one row group: each has its own dictionary, and a struct holds but one."""
    for group in range(table.num_row_groups):
        yield from table.iter_batches(batch_size=_ROWS, row_groups=[group], columns=columns)


def _refuse_bombs(file: Path, metadata: Any, columns: tuple[str, ...]) -> None:
    """Raise DataError if a page of `columns` unpacks to far more than images do, ValueError if one is damaged."""
    with file.open("rb") as stream:
        for number in range(metadata.num_row_groups):
            group = metadata.row_group(number)
            if group.total_byte_size > _MOST_BYTES:
                raise _problem(file, "a row group that is too large", f"at most {_MOST_BYTES:,} bytes", "split it")
            for chunk in map(group.column, range(group.num_columns)):
                if chunk.num_values < 1 or not f"{chunk.path_in_schema}.".startswith(tuple(f"{n}." for n in columns)):
                    continue  # arrow looks for no page where there are no values
                start, dictionary = chunk.data_page_offset, chunk.dictionary_page_offset
                start = dictionary if dictionary is not None and 0 < dictionary < start else start  # as arrow does
                for page in pages(stream, start, chunk.total_compressed_size):
                    limit = max(_ALWAYS, _LARGEST_RATIO * page.packed)
                    if page.unpacked > limit:
                        found, expected = f"a page of {page.unpacked:,} bytes unpacked", f"at most {limit:,}"
                        raise _problem(file, found, expected, "replace it")


def _values(column: Any) -> list[bytes]:
    """Return a column of bytes as a list in which equal values of its dictionary are one and the same object."""
    import pyarrow as pa

    if not isinstance(column, pa.DictionaryArray):
        return list(column.to_pylist())
    numbers = column.indices.to_pylist()
    values = {number: column.dictionary[number].as_py() for number in set(numbers)}
    return [values[number] for number in numbers]


def _opened(file: Path, as_dictionary: list[str] | None = None) -> Any:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        table = pq.ParquetFile(file, read_dictionary=as_dictionary)
        _ = table.schema_arrow  # made when it is asked for, and broken metadata break it
        return table
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:  # the last: damaged names of columns
        raise _problem(file, f"a damaged file ({str(error)[:120]})", "parquet", "replace it") from error


def _columns(file: Path) -> tuple[str, str]:
    """Return the names of the image and of the label column: by type, and by name where several have the type."""
    from pyarrow import types

    def encoded(kind: Any) -> bool:
        return bool(types.is_binary(kind) or types.is_large_binary(kind))

    def encoded_within(kind: Any) -> bool:
        return bool(types.is_struct(kind) and any(field.name == "bytes" and encoded(field.type) for field in kind))

    schema = _opened(file).schema_arrow
    image = [field.name for field in schema if encoded(field.type) or encoded_within(field.type)]
    label = [field.name for field in schema if types.is_integer(field.type)]
    return _one_of(file, "image", image, _IMAGE_NAMES), _one_of(file, "label", label, _LABEL_NAMES)


def _one_of(file: Path, what: str, columns: list[str], preferred: tuple[str, ...]) -> str:
    for name in preferred:
        if name in columns:
            return name
    if len(columns) == 1:
        return columns[0]
    kind = "encoded images (bytes)" if what == "image" else "whole numbers"
    raise _problem(
        file, f"{len(columns)} columns of {kind}{': ' if columns else ''}{', '.join(columns[:8])}",
        f"one, or one named {' or '.join(preferred)}", f"rename the {what} column",
    )


def _class_names(file: Path) -> tuple[str, ...]:
    """Return the class names that Hugging Face writes into the schema, or none."""
    metadata = _opened(file).schema_arrow.metadata or {}
    try:
        names = json.loads(metadata[b"huggingface"])["info"]["features"][_columns(file)[1]]["names"]
    except (KeyError, TypeError, ValueError, RecursionError):
        return ()
    return tuple(names) if isinstance(names, list) and all(isinstance(name, str) for name in names) else ()


def _problem(file: Path, found: str, expected: str, cure: str) -> DataError:
    return DataError(str(file), found=found, expected=expected, cure=cure)


# Copies of CIFAR-100 without names number the fine classes in this, the official, alphabetical order.
_FINE = (
    "apple aquarium_fish baby bear beaver bed bee beetle bicycle bottle bowl boy bridge bus butterfly camel can "
    "castle caterpillar cattle chair chimpanzee clock cloud cockroach couch crab crocodile cup dinosaur dolphin "
    "elephant flatfish forest fox girl hamster house kangaroo keyboard lamp lawn_mower leopard lion lizard lobster "
    "man maple_tree motorcycle mountain mouse mushroom oak_tree orange orchid otter palm_tree pear pickup_truck "
    "pine_tree plain plate poppy porcupine possum rabbit raccoon ray road rocket rose sea seal shark shrew skunk "
    "skyscraper snail snake spider squirrel streetcar sunflower sweet_pepper table tank telephone television tiger "
    "tractor train trout tulip turtle wardrobe whale willow_tree wolf woman worm"
)
CIFAR100_FINE = tuple(_FINE.split())
