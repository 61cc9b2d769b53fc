"""JSON records that are used only if they are what was written: the last member of each is a checksum of the rest.

The checksum is the SHA-256 of the file as it would be without that member, to the last byte. Files of versions that
wrote none are read as they are.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

from spaceless.atomic import atomic_write
from spaceless.errors import DamagedError, InputError
from spaceless.spec import Spec, parse

_S = TypeVar("_S", bound=Spec)

LARGEST_FILE = 64 * 2**20  # bytes; an outcome of 1,000 epochs is below 1 MB, so more than this is not one of ours
_END = b"\n}\n"
_MEMBER = ',\n "checksum": "sha256:{}"'
_LAST = re.compile(re.escape(_MEMBER).replace(r"\{\}", "([0-9a-f]{64})").encode())
_LENGTH = len(_MEMBER.format("0" * 64))
_TRACE = re.compile(rb'"checksum"\s*:|(?<!\\)"sha256:[0-9a-f]')  # one of them is left wherever a bit is flipped


def write(path: Path, value: Mapping[str, Any]) -> None:
    """Write `value`, not empty, to `path` as JSON with its checksum: the old or the new file, whole.

    Raises:
        CheckpointError: As `atomic_write`.

    """
    atomic_write(path, sealed(value))


def read(kind: type[_S], path: Path) -> _S:
    """Return the record of `kind` in `path`; nothing is changed.

    Raises:
        DamagedError: The file is not what was written: cut short, changed, or no such record at all.
        InputError: It cannot be read; or it is sound, but another version wrote what this one does not know.

    """
    content = _content(path)
    body = unsealed(content, str(path))
    try:
        return parse(kind, body.decode(), str(path))
    except UnicodeDecodeError as error:
        raise _damaged(str(path), f"{type(error).__name__}: {error}", "UTF-8 text") from None
    except InputError as error:
        if body is content:
            raise _damaged(error.what, error.found, error.expected) from None
        raise InputError(
            error.what, found=error.found, expected=error.expected,
            cure="another version of spaceless wrote this file: read it with that one",
        ) from None


def read_edited(kind: type[_S], path: Path) -> _S | None:
    """Return what the record in `path` says, whether or not its checksum agrees; None if it says nothing sensible."""
    try:
        fields = json.loads(_content(path))
        fields.pop("checksum", None)
        return parse(kind, json.dumps(fields), str(path))
    except (ValueError, AttributeError, TypeError, RecursionError, InputError):
        return None


def sealed(value: Mapping[str, Any]) -> bytes:
    """Return `value`, not empty, as JSON with its checksum."""
    body = (json.dumps(value, indent=1) + "\n").encode()
    assert body.endswith(_END), "an empty record"
    digest = hashlib.sha256(body).hexdigest()
    return body.removesuffix(_END) + _MEMBER.format(digest).encode() + _END


def unsealed(content: bytes, what: str, *, required: bool = False) -> bytes:
    """Return the JSON that was sealed, without its checksum; `content` itself if it has none, unless it is `required`.

    Raises:
        DamagedError: The checksum, or what it is of, is not what was written. It names `what`.

    """
    last = _LAST.fullmatch(content[:-len(_END)][-_LENGTH:]) if content.endswith(_END) else None
    if last is None:
        if required or _TRACE.search(content):
            raise _damaged(what, "no whole checksum at its end", "one, as its last line")
        return content
    body = content[:-len(_END) - _LENGTH] + _END
    if hashlib.sha256(body).hexdigest() != last[1].decode():
        raise _damaged(what, "other content than its checksum says", "what was written")
    return body


def _content(path: Path) -> bytes:
    try:
        size = path.stat().st_size
        if size > LARGEST_FILE:
            raise InputError(
                str(path), found=f"a file of {size:,} bytes", expected=f"at most {LARGEST_FILE:,}", cure="move it away")
        return path.read_bytes()
    except OSError as error:
        raise InputError(
            str(path), found=f"{type(error).__name__}: {error}", expected="a readable JSON file",
            cure="let it be read, or move it away",
        ) from error


def _damaged(what: str, found: object, expected: object) -> DamagedError:
    return DamagedError(
        what, found=found, expected=expected, cure="restore it from a copy, or run the same study again")
