"""How much the pages of a parquet file unpack to: from their own headers, which a file's directory may belie.

Each page is preceded by a Thrift struct in the compact protocol; arrow believes it and makes room for what it says.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import BinaryIO, NamedTuple

_WINDOW = 1 << 16  # bytes; a page's header has some thirty, and the smallest and largest value of the page
_DEEPEST = 8  # structs in structs
_UNPACKED, _PACKED = 2, 3  # numbers of the two fields that count, both of type i32
_FALSE, _TRUE, _BYTE, _I16, _I32, _I64, _DOUBLE, _BINARY, _LIST, _SET, _MAP, _STRUCT = range(2 - 1, 13)


class Page(NamedTuple):
    """The size of one page in bytes, unpacked and as it is in the file."""

    unpacked: int
    packed: int


def pages(file: BinaryIO, start: int, size: int) -> Iterator[Page]:
    """Yield the pages in the `size` bytes of a column chunk that begins at `start`.

    Raises:
        ValueError: The headers are damaged.

    """
    end = start + size
    while start < end:
        file.seek(start)
        header = _Header(file.read(min(_WINDOW, end - start)))
        page = header.page()
        yield page
        start += header.place + page.packed


class _Header:
    """The bytes of a header, read from the front."""

    def __init__(self, content: bytes) -> None:
        self.content, self.place = content, 0

    def page(self) -> Page:
        """Read the struct to its end and return its two sizes."""
        found: dict[int, int] = {}
        for number, kind in self.fields():
            if kind == _I32 and number in (_UNPACKED, _PACKED):
                found[number] = self.zigzag()
            else:
                self.skip(kind, 0)
        if not all(found.get(number, -1) >= 0 for number in (_UNPACKED, _PACKED)):
            raise ValueError("a page without a size")
        return Page(found[_UNPACKED], found[_PACKED])

    def fields(self) -> Iterator[tuple[int, int]]:
        """Yield number and type of each field of a struct; its value must be taken before the next."""
        number = 0
        while byte := self.byte():
            step, kind = byte >> 4, byte & 15
            number = number + step if step else self.zigzag()
            yield number, kind

    def skip(self, kind: int, depth: int) -> None:
        """Pass over a value."""
        if depth > _DEEPEST:
            raise ValueError("a page's header that is too deep")
        if kind in (_I16, _I32, _I64):
            self.varint()
        elif kind in (_BYTE, _DOUBLE):
            self.passed(8 if kind == _DOUBLE else 1)
        elif kind == _BINARY:
            self.passed(self.varint())
        elif kind == _STRUCT:
            for _, inner in self.fields():
                self.skip(inner, depth + 1)
        elif kind not in (_TRUE, _FALSE):  # these two are their own values; a page has no lists and no maps
            raise ValueError(f"a page's header with a field of type {kind}")

    def byte(self) -> int:
        self.passed(1)
        return self.content[self.place - 1]

    def passed(self, count: int) -> None:
        self.place += count
        if self.place > len(self.content):
            raise ValueError("a page's header that has no end")

    def varint(self) -> int:
        value = shift = 0
        while shift < 70:
            byte = self.byte()
            value |= (byte & 127) << shift
            if byte < 128:
                return value
            shift += 7
        raise ValueError("a number without an end in a page's header")

    def zigzag(self) -> int:
        value = self.varint()
        return value >> 1 ^ -(value & 1)
