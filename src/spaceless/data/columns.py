"""Which columns of parquet files are the images and the labels, and that all files of a set agree on them."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from spaceless.data.find import printable
from spaceless.errors import DataError

_IMAGE_NAMES = ("img", "image")
_LABEL_NAMES = ("fine_label", "label")
# Columns that number rows, or things that are no classes: a grid is none.
_NUMBERING = re.compile(r"(^|_|-)(?i:id)$|[a-z]I[dD]$|(?i:index|idx$)")


class Columns(NamedTuple):
    """The names of the two columns of a file, and what is known of the labels.

    `texts` tells that they are texts, `guessed` that the column has none of the names of labels; `class_names` are what
    Hugging Face writes into the schema, or none.
    """

    image: str
    label: str
    texts: bool
    guessed: bool
    class_names: tuple[str, ...]

    @property
    def note(self) -> str:
        """The caveat about a column that only its type tells."""
        return f"labels are the column {self.label}, the only one of whole numbers" if self.guessed else ""


def agreed_columns(files: Sequence[Path]) -> Columns:
    """Return the columns of the first of the files, with the class names that any of them has.

    Raises:
        DataError: A file is damaged, its columns do not tell, or it gives the labels another meaning than the first.

    """
    found = [columns_of(file) for file in files]
    named = next((i for i, columns in enumerate(found) if columns.class_names), 0)
    for file, columns in zip(files, found, strict=True):
        if columns.label != found[0].label or columns.texts != found[0].texts:
            raise problem(file, f"labels in {_described(columns)}", f"{_described(found[0])}, as in {files[0].name}",
                          "name and store the labels of all splits alike")
        if columns.class_names and columns.class_names != found[named].class_names:
            ours, theirs = _difference(columns.class_names, found[named].class_names)
            raise problem(file, ours, f"{theirs}, as in {files[named].name}", "number the classes of all splits alike")
    return found[0]._replace(class_names=found[named].class_names)


def _described(columns: Columns) -> str:
    return f"column {columns.label}, {'texts' if columns.texts else 'whole numbers'}"


def _difference(ours: tuple[str, ...], theirs: tuple[str, ...]) -> tuple[str, str]:
    if len(ours) != len(theirs):
        return f"{len(ours):,} class names", f"{len(theirs):,}"
    number = next(i for i, (one, other) in enumerate(zip(ours, theirs, strict=True)) if one != other)
    return f"class {number} called {ours[number]!r}", repr(theirs[number])


def columns_of(file: Path) -> Columns:
    """Return the image and the label column: by name, and by type where only one column has it.

    Raises:
        DataError: The file is damaged, or its columns do not tell.

    """
    from pyarrow import types

    def encoded(kind: Any) -> bool:
        return bool(types.is_binary(kind) or types.is_large_binary(kind))

    def encoded_within(kind: Any) -> bool:
        return bool(types.is_struct(kind) and any(field.name == "bytes" and encoded(field.type) for field in kind))

    schema = opened(file).schema_arrow
    kinds = {field.name: field.type for field in schema}
    images = [name for name, kind in kinds.items() if encoded(kind) or encoded_within(kind)]
    image = next((name for name in _IMAGE_NAMES if name in images), None)
    if image is None:
        image = _only(file, "image", images, "encoded images (bytes)", _IMAGE_NAMES)
    label = next((name for name in _LABEL_NAMES if name in kinds), None)
    if label is None:
        numbers = [name for name, kind in kinds.items() if types.is_integer(kind) and not _NUMBERING.search(name)]
        label = _only(file, "label", numbers, "whole numbers that may be labels", _LABEL_NAMES)
        return Columns(image, label, False, True, _class_names(schema, label))
    texts = _is_text(kinds[label])
    if not texts and not types.is_integer(kinds[label]):
        raise problem(file, f"a column {label} of {kinds[label]}", "whole numbers or texts",
                      "store the labels so, or rename this column")
    return Columns(image, label, texts, False, () if texts else _class_names(schema, label))


def _is_text(kind: Any) -> bool:
    from pyarrow import types

    if types.is_dictionary(kind):
        return _is_text(kind.value_type)
    return bool(types.is_string(kind) or types.is_large_string(kind) or types.is_string_view(kind))


def _only(file: Path, what: str, columns: list[str], kind: str, preferred: tuple[str, ...]) -> str:
    if len(columns) == 1:
        return columns[0]
    raise problem(
        file, f"{len(columns)} columns of {kind}{': ' if columns else ''}{', '.join(columns[:8])}",
        f"one, or one named {' or '.join(preferred)}", f"rename the {what} column",
    )


def _class_names(schema: Any, label: str) -> tuple[str, ...]:
    """Return the class names that Hugging Face writes into the schema, or none."""
    try:
        names = json.loads((schema.metadata or {})[b"huggingface"])["info"]["features"][label]["names"]
    except (KeyError, TypeError, ValueError, RecursionError):
        return ()
    return tuple(names) if isinstance(names, list) and all(isinstance(name, str) for name in names) else ()


def opened(file: Path, as_dictionary: list[str] | None = None) -> Any:
    """Return a parquet file with its metadata read; the columns `as_dictionary` keep equal values once."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        table = pq.ParquetFile(file, read_dictionary=as_dictionary)
        _ = table.schema_arrow  # made when it is asked for, and broken metadata break it
        return table
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:  # the last: damaged names of columns
        raise problem(file, f"a damaged file ({str(error)[:120]})", "parquet", "replace it") from error


def problem(file: Path, found: str, expected: str, cure: str) -> DataError:
    """Return the error for a parquet file, or a folder of them."""
    return DataError(printable(file), found=found, expected=expected, cure=cure)
