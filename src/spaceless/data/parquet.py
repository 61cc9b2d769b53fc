"""Folders of parquet files, as Hugging Face keeps data sets: one column of encoded images and one of labels."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from spaceless.data.columns import agreed_columns, columns_of, opened, problem
from spaceless.data.dataset import Parts, numbered_classes
from spaceless.data.find import TEST_FOLDERS, parquet_files, printable, set_folder, split_of
from spaceless.data.images import decode_into, empty_pixels, image_size_of
from spaceless.data.pages import pages

RESPLIT_NOTE = "re-split: the train/test membership is not the official one"

_RESPLIT = re.compile(
    r"(?<!\bnot )(?<!\bno )(?<!\bnever )\bre-split\b|\b(split|membership) (is|was) not the official\b"
    r"|\bnot the official (train/test )?(split|membership)\b"
)
_ROWS = 4096  # decoded at a time
_MOST_BYTES = 4 << 30  # of one row group, unpacked
_LARGEST_RATIO = 200  # of bytes unpacked to bytes packed in a page: encoded images hardly shrink
_ALWAYS = 1 << 26  # bytes that a page may unpack to whatever the ratio


def parquet_note(folder: Path) -> str:
    """Return the note that belongs to every figure on this copy: its README may own up to another split."""
    for file in (folder / "README.md", *(set_folder(path) / "README.md" for path in parquet_files(folder)[:1])):
        if file.is_file():
            with file.open("rb") as stream:
                text = stream.read(1 << 16).decode("utf-8", "replace").lower()
            if _RESPLIT.search(" ".join(re.sub(r"[*_`]", "", text).split())):
                return RESPLIT_NOTE
    return ""


def split_files(folder: Path) -> tuple[list[Path], list[list[Path]]]:
    """Return the parquet files of the training split, and those of each split that is there to test on.

    The latter in the order of `TEST_FOLDERS`. A file is `SPLIT-*.parquet` or `SPLIT/*.parquet`.

    Raises:
        DataError: A split is missing, or there are several sets.

    """
    files = parquet_files(folder)
    sets = sorted({set_folder(file) for file in files})
    if len(sets) > 1:
        raise problem(folder, f"several data sets: {', '.join(printable(path.name) for path in sets[:8])}", "one",
                      "give the path of one of them")
    splits = {split: [file for file in files if split_of(file) == split] for split in ("train", *TEST_FOLDERS)}
    tests = [splits[split] for split in TEST_FOLDERS if splits[split]]
    if not splits["train"] or not tests:
        listed = ", ".join(printable(file.name) for file in files[:4])
        raise problem(folder, listed, "train-*.parquet and test-*.parquet (or validation-*)", "add the missing split")
    return splits["train"], tests


def _refuse_missing_parts(folder: Path, files: list[Path]) -> None:
    """Raise DataError if the names of a split's files (`-00001-of-00002`, `0001`) tell of others."""
    counted = re.search(r"-(\d+)-of-(\d+)", files[0].name)
    numbers = [int(file.stem) if re.fullmatch("[0-9]+", file.stem) else -1 for file in files]
    expected = int(counted[2]) if counted else 1 + max(numbers) if min(numbers) >= 0 else len(files)
    if len(files) != expected:
        found = f"{len(files)} parts like {printable(files[0].name)}"
        raise problem(folder, found, str(expected), "add the others")


def read_parquet(folder: Path, image_size: int | None) -> Parts:
    """Read a folder of parquet files.

    Labels are whole numbers, or texts: these are numbered in alphabetical order. Of several splits to test on it is the
    first with labels.

    Args:
        folder: It holds `train-*.parquet` and `test-*.parquet`.
        image_size: None takes the images as they are: all of one square size. Otherwise they are resized and cropped.

    Raises:
        DataError: A file or an image is broken, the columns do not tell images and labels, or not the same in all
            files.
        DifferentSizeError: The images are not of one square size, and `image_size` is None.

    """
    train, tests = split_files(folder)
    label = columns_of(train[0]).label
    test = tests[0] if len(tests) == 1 else next((files for files in tests if _labelled(files, label)), tests[0])
    for files in (train, test):
        _refuse_missing_parts(folder, files)
    columns = agreed_columns([*train, *test])
    names = columns.class_names
    if columns.texts:
        names = tuple(sorted({text for file in train for column in _labels(file, label) for text in column.to_pylist()
                              if text is not None}))
    codes = {name: number for number, name in enumerate(names)} if columns.texts else None
    splits = [_read_split(files, image_size, codes) for files in (train, test)]
    numbers = numbered_classes(*(labels for _, labels in splits))
    if not names and len(numbers) == 100 and label == "fine_label":
        names = CIFAR100_FINE
    return Parts(*splits[0], *splits[1], names or numbers, columns.note)


def _labelled(files: list[Path], label: str) -> bool:
    """Return whether a split has labels: those of an open competition are all -1 in it, or missing."""
    for file in files:
        if label in opened(file).schema_arrow.names:
            for column in _labels(file, label):
                if any(value is not None and value != -1 for value in column.to_pylist()):
                    return True
    return False


def _labels(file: Path, label: str) -> Iterator[Any]:
    """Yield the column of labels alone, as arrow's arrays of some rows each."""
    with _readable(file):
        table = opened(file)
        _refuse_bombs(file, table.metadata, (label,))
        for batch in _row_group_batches(table, [label]):
            batch.validate(full=True)
            yield batch.column(0)


def _read_split(
    files: list[Path], image_size: int | None, codes: dict[str, int] | None,
) -> tuple[Tensor, Tensor]:
    count = sum(opened(file).metadata.num_rows for file in files)  # believed only as far as there is memory for it
    pixels: npt.NDArray[np.uint8] | None = None
    labels = []
    start = 0
    for file in files:
        for first, images, numbers in _batches(file, codes):
            def name_of(i: int, file: Path = file, first: int = first) -> str:
                return f"{file}: row {first + i}"

            stop = start + len(images)
            if stop > count:
                raise problem(file, f"over {count:,} rows", f"the {count:,} of its metadata", "replace it")
            if pixels is None:
                pixels = empty_pixels(count, image_size or image_size_of(images[0], name_of(0))[0], str(file))
            decode_into(pixels[start:stop], images, name_of, crop=image_size is not None)
            labels.append(numbers)
            start = stop
    if pixels is None:
        raise problem(files[0], "no rows", "at least one", "replace it")
    if start != count:  # the rest of the pixels would be whatever was in memory
        raise problem(files[-1], f"{start:,} rows", f"the {count:,} of its metadata", "replace it")
    return torch.from_numpy(pixels), torch.from_numpy(np.concatenate(labels))


def _batches(
    file: Path, codes: dict[str, int] | None,
) -> Iterator[tuple[int, list[bytes], npt.NDArray[np.int64]]]:
    """Yield (number of the first row, encoded images, labels) for some rows at a time; `codes` are those of texts."""
    import pyarrow as pa

    image, label = columns_of(file)[:2]
    first = 0
    with _readable(file):
        leaves = map(opened(file).schema.column, range(opened(file).metadata.num_columns))
        # As a dictionary an image that a few bytes repeat a million times is in memory once.
        table = opened(file, [leaf.path for leaf in leaves if leaf.path in (image, f"{image}.bytes")])
        _refuse_bombs(file, table.metadata, (image, label))
        for batch in _row_group_batches(table, [image, label]):
            batch.validate(full=True)  # arrow believes a damaged page which values of a dictionary it means
            column = batch.column(0)
            if isinstance(column, pa.StructArray):
                column = column.field("bytes")
            numbers = batch.column(1)
            if column.null_count or numbers.null_count:
                raise problem(file, "rows without image or label", "none", "remove these rows")
            if codes is None:
                yield first, _values(column), numbers.cast(pa.int64()).to_numpy(zero_copy_only=False)
            else:
                yield first, _values(column), _coded(file, numbers.to_pylist(), codes)
            first += len(numbers)


def _coded(file: Path, texts: list[str], codes: dict[str, int]) -> npt.NDArray[np.int64]:
    unknown = next((text for text in texts if text not in codes), None)
    if unknown is not None:
        raise problem(file, f"the label {unknown[:60]!r}", "one that occurs in the training split",
                      "correct it, or add training images of this class")
    return np.array([codes[text] for text in texts], np.int64)


@contextmanager
def _readable(file: Path) -> Iterator[None]:
    """Turn what arrow makes of damaged bytes into DataError."""
    import pyarrow as pa

    try:
        yield
    except (pa.ArrowException, OSError, ValueError) as error:
        raise problem(file, f"a damaged file ({str(error)[:120]})", "parquet", "replace it") from error


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
                raise problem(file, "a row group that is too large", f"at most {_MOST_BYTES:,} bytes", "split it")
            for chunk in map(group.column, range(group.num_columns)):
                if chunk.num_values < 1 or not f"{chunk.path_in_schema}.".startswith(tuple(f"{n}." for n in columns)):
                    continue  # arrow looks for no page where there are no values
                start, dictionary = chunk.data_page_offset, chunk.dictionary_page_offset
                start = dictionary if dictionary is not None and 0 < dictionary < start else start  # as arrow does
                for page in pages(stream, start, chunk.total_compressed_size):
                    limit = max(_ALWAYS, _LARGEST_RATIO * page.packed)
                    if page.unpacked > limit:
                        found, expected = f"a page of {page.unpacked:,} bytes unpacked", f"at most {limit:,}"
                        raise problem(file, found, expected, "replace it")


def _values(column: Any) -> list[bytes]:
    """Return a column of bytes as a list in which equal values of its dictionary are one and the same object."""
    import pyarrow as pa

    if not isinstance(column, pa.DictionaryArray):
        return list(column.to_pylist())
    numbers = column.indices.to_pylist()
    values = {number: column.dictionary[number].as_py() for number in set(numbers)}
    return [values[number] for number in numbers]


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
