"""Damage that knows nothing of a file's form: flipped bits, cuts, insertions, edited numbers, halves of two files."""

from __future__ import annotations

import re
import struct
from collections.abc import Callable
from random import Random

NUMBERS = (
    0, 1, -1, 2, 127, 128, 255, 256, 32767, 65535, 65536, 1 << 24, (1 << 31) - 1, 1 << 31, (1 << 32) - 1, 1 << 32,
    1 << 40, (1 << 53) + 1, (1 << 62), (1 << 63) - 1, -(1 << 31), -(1 << 63),
)
WORDS = tuple(word.encode("utf-8", "surrogatepass") for word in (
    "../", "../../../../etc/passwd", "/etc/passwd", "C:\\", "~/x", "'", '"', "'; import os; os.system('true') #",
    "$(touch x)", "<script>alert(1)</script>", "</script><img src=x onerror=alert(1)>", "{{7*7}}", "%s%n", "\0", "\n",
    "\r\n", "\t", "\x1b]0;owned\x07", "\u202e", "\ud800", "[bold]", "nan", "-0", "1e999", "NULL", "é" * 40, "a" * 5000,
)) + (b"\xff", b"\xc0\x80", b"\x80" * 16)


def damaged(random: Random, content: bytes, other: bytes) -> tuple[str, bytes]:
    """Return what was done to `content`, and the result; `other` is a sound file that parts may be taken from."""
    name, harm = random.choice(_HARMS)
    return name, harm(random, content, other)


def _place(random: Random, content: bytes) -> int:
    """Return an offset: anywhere, or near one of the ends, where headers and directories are."""
    size, near = len(content), min(len(content), 300)
    return random.choice((random.randrange(size + 1), random.randrange(near + 1), size - random.randrange(near + 1)))


def _span(random: Random, content: bytes) -> tuple[int, int]:
    first = _place(random, content)
    return first, min(len(content), first + int(2 ** random.uniform(0, 12)))


def _flip_bits(random: Random, content: bytes, _: bytes) -> bytes:
    changed = bytearray(content)
    for _i in range(random.choice((1, 1, 2, 4, 8, 64))):
        if changed:
            changed[min(_place(random, content), len(changed) - 1)] ^= 1 << random.randrange(8)
    return bytes(changed)


def _change_bytes(random: Random, content: bytes, _: bytes) -> bytes:
    first, last = _span(random, content)
    last = min(last, first + random.choice((1, 2, 4, 16)))
    return content[:first] + random.choice((random.randbytes(last - first), b"\0" * (last - first),
                                            b"\xff" * (last - first))) + content[last:]


def _cut(random: Random, content: bytes, _: bytes) -> bytes:
    return content[:_place(random, content)]


def _cut_front(random: Random, content: bytes, _: bytes) -> bytes:
    return content[_place(random, content):]


def _extend(random: Random, content: bytes, other: bytes) -> bytes:
    size = random.randrange(1, 2000)
    return content + random.choice((b"\0" * size, random.randbytes(size), other))


def _insert(random: Random, content: bytes, other: bytes) -> bytes:
    first, last = _span(random, other)
    place = _place(random, content)
    return content[:place] + random.choice((other[first:last], random.randbytes(last - first))) + content[place:]


def _delete(random: Random, content: bytes, _: bytes) -> bytes:
    first, last = _span(random, content)
    return content[:first] + content[last:]


def _repeat(random: Random, content: bytes, _: bytes) -> bytes:
    first, last = _span(random, content)
    return content[:last] + content[first:last] * random.choice((1, 1, 2, 20)) + content[last:]


def _exchange(random: Random, content: bytes, _: bytes) -> bytes:
    a, b, c, d = sorted(_place(random, content) for _i in range(4))
    return content[:a] + content[c:d] + content[b:c] + content[a:b] + content[d:]


def _splice(random: Random, content: bytes, other: bytes) -> bytes:
    return content[:_place(random, content)] + other[_place(random, other):]


def _edit_number(random: Random, content: bytes, _: bytes) -> bytes:
    """Write a number over the bytes at some place, as a length field might hold it."""
    place, width = _place(random, content), random.choice("BHIQ")
    value = random.choice(NUMBERS) & ((1 << 8 * struct.calcsize(width)) - 1)
    packed = struct.pack(random.choice("<>") + width, value)
    return content[:place] + packed + content[place + len(packed):]


def _edit_varint(random: Random, content: bytes, _: bytes) -> bytes:
    """Put a long number of seven bits a byte in place of one byte, as Thrift and protocol buffers write them."""
    place, value = _place(random, content), random.choice(NUMBERS) & ((1 << 64) - 1)
    packed = bytearray()
    while value > 127:
        packed.append(value & 127 | 128)
        value >>= 7
    return content[:place] + bytes((*packed, value)) + content[place + 1:]


def _edit_digits(random: Random, content: bytes, other: bytes) -> bytes:
    """Write another number over one that is written in digits."""
    found = list(re.finditer(rb"-?\d+(\.\d+)?", content[:20_000]))
    if not found:
        return _edit_number(random, content, other)
    where = random.choice(found)
    value = random.choice((
        str(random.choice(NUMBERS)), "1e308", "-1e308", "1e-320", "NaN", "-Infinity", "9" * 5000, "0.5"))
    return content[:where.start()] + value.encode() + content[where.end():]


def _insert_word(random: Random, content: bytes, _: bytes) -> bytes:
    place = _place(random, content)
    return content[:place] + random.choice(WORDS) + content[place + random.choice((0, 0, 1, 4)):]


_HARMS: tuple[tuple[str, Callable[[Random, bytes, bytes], bytes]], ...] = tuple(
    (harm.__name__.strip("_").replace("_", " "), harm) for harm in (
        _flip_bits, _flip_bits, _change_bytes, _cut, _cut_front, _extend, _insert, _delete, _repeat, _exchange, _splice,
        _edit_number, _edit_number, _edit_varint, _edit_digits, _insert_word,
    )
)
