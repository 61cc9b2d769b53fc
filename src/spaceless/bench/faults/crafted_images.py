"""Images whose headers lie: absurd sizes, chunks left out or repeated, scans without end, pixels without bytes."""

from __future__ import annotations

import io
import re
import struct
import zlib
from collections.abc import Iterator
from functools import lru_cache
from random import Random

from PIL import Image

from spaceless.bench.faults.corruption import NUMBERS, WORDS

_PNG = b"\x89PNG\r\n\x1a\n"
_SIDES = (0, 1, 7, 9, 255, 4096, 8192, 8193, 16383, 16384, 32768, 65535, 65536, 1 << 26, (1 << 31) - 1, 1 << 31,
          (1 << 32) - 1)
_LARGE = 8192  # pixels of a side: as many as readers take


def is_image(content: bytes) -> bool:
    """Tell whether this is a file of one of the formats that are damaged here."""
    return content.startswith((_PNG, b"\xff\xd8", b"RIFF", b"GIF8", b"BM", b"P5", b"P6", b"II*\0", b"MM\0*"))


def crafted_image(random: Random, content: bytes) -> bytes:
    """Return an image whose size, chunks or tags are not what they were, or one of the largest that there are."""
    if random.random() < 0.01:
        return random.choice(_large_ones())
    if content.startswith(_PNG):
        return _crafted_png(random, content)
    if content.startswith(b"\xff\xd8"):
        return _crafted_jpeg(random, content)
    if content.startswith((b"II*\0", b"MM\0*")):
        return _crafted_tiff(random, content)
    if content.startswith((b"P5", b"P6")):
        width, height, most = (random.choice((*_SIDES, "8", "-8", "8e8", "9" * 5000)) for _ in range(3))
        return re.sub(rb"\d+\s+\d+\s+\d+", f"{width} {height} {most}".encode(), content, count=1)
    return _sized(random, content)


def _sized(random: Random, content: bytes) -> bytes:
    """Write another width or height where a format without checksums keeps them."""
    places = {b"GIF8": ((6, "<H"), (8, "<H")),
              b"BM": ((18, "<i"), (22, "<i"), (28, "<H"), (30, "<I"), (10, "<I"), (46, "<I")),
              b"RIFF": ((24, "<I"), (27, "<I"), (26, "<H"), (28, "<H"), (21, "<I"), (4, "<I"), (16, "<I"))}
    found = next(places[start] for start in places if content.startswith(start))
    changed = bytearray(content)
    for place, form in random.sample(found, random.choice((1, 2))):
        value = random.choice((*_SIDES, *NUMBERS)) & ((1 << 8 * struct.calcsize(form)) - 1)
        if place + struct.calcsize(form) <= len(changed):
            struct.pack_into(form.upper(), changed, place, value)
    return bytes(changed)


def _chunks(content: bytes) -> Iterator[tuple[bytes, bytes]]:
    place = len(_PNG)
    while place + 8 <= len(content):
        size = int.from_bytes(content[place:place + 4], "big")
        yield content[place + 4:place + 8], content[place + 8:place + 8 + size]
        place += 12 + size


def _png(chunks: list[tuple[bytes, bytes]]) -> bytes:
    """Return a PNG of these chunks, with right checksums."""
    return _PNG + b"".join(struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))
                           for name, data in chunks)


def _crafted_png(random: Random, content: bytes) -> bytes:
    chunks = list(_chunks(content))
    i = random.randrange(len(chunks))
    match random.randrange(6):
        case 0 | 1:
            fields = list(struct.unpack(">IIBBBBB", chunks[0][1]))
            for _ in range(random.choice((1, 2))):
                field = random.randrange(7)
                fields[field] = random.choice(_SIDES) if field < 2 else random.choice((0, 1, 2, 3, 4, 6, 8, 16, 255))
            chunks[0] = b"IHDR", struct.pack(">IIBBBBB", *fields)
        case 2:
            del chunks[i]
        case 3:
            chunks.insert(random.randrange(len(chunks) + 1), chunks[i])
        case 4:
            chunks.insert(random.randrange(1, len(chunks) + 1), random.choice(_extra_chunks()))
        case _:
            name, data = chunks[i]
            size = struct.pack(">I", random.choice(NUMBERS) & 0xFFFFFFFF)
            lying = size + name + data + struct.pack(">I", zlib.crc32(name + data))
            return _png(chunks[:i]) + lying + _png(chunks[i + 1:])[len(_PNG):]
    return _png(chunks)


@lru_cache(maxsize=1)
def _extra_chunks() -> tuple[tuple[bytes, bytes], ...]:
    """Return chunks that unpack to far more than they are, or that say what nobody expects."""
    bomb = zlib.compress(bytes(100 << 20), 9)
    return (
        (b"zTXt", b"a\0\0" + bomb), (b"iCCP", b"a\0\0" + bomb), (b"iTXt", b"a\0\1\0\0\0" + bomb), (b"IDAT", bomb),
        (b"PLTE", bytes(3 * 256)), (b"PLTE", b"ab"), (b"PLTE", b""), (b"tRNS", b""), (b"tRNS", bytes(1000)),
        (b"acTL", struct.pack(">II", 0xFFFFFFFF, 0)), (b"acTL", b""), (b"fcTL", bytes(26)), (b"fdAT", bytes(4)),
        (b"fcTL", struct.pack(">IIIIIHHBB", 0, 0xFFFFFF, 0xFFFFFF, 0, 0, 1, 0, 9, 9)), (b"gAMA", b""), (b"cHRM", b"a"),
        (b"sRGB", b""), (b"pHYs", b""), (b"tEXt", b"a" * 100_000), (b"tEXt", b"<script>\0../../\x1b[2J"),
        (b"eXIf", b"II*\0"),
        (b"eXIf", b"Exif\0\0MM\0*\xff\xff\xff\xff"), (b"IEND", b""), (b"CgBI", bytes(4)), (b"\0\0\0\0", b""),
    )


def _segments(content: bytes) -> tuple[list[bytes], bytes]:
    """Return the segments of a JPEG up to the first scan, and the rest."""
    place, found = 2, []
    while content[place:place + 2] != b"\xff\xda" and place + 4 <= len(content):
        end = place + 2 + int.from_bytes(content[place + 2:place + 4], "big")
        found.append(content[place:end])
        place = end
    return found, content[place:]


def _crafted_jpeg(random: Random, content: bytes) -> bytes:
    segments, rest = _segments(content)
    i = random.randrange(len(segments))
    match random.randrange(7):
        case 0 | 1:
            for number, segment in enumerate(segments):
                if 0xC0 <= segment[1] <= 0xC2:
                    frame = bytearray(segment)
                    struct.pack_into(">H", frame, random.choice((5, 7)), random.choice(_SIDES) & 0xFFFF)
                    if random.random() < 0.3:
                        frame[random.choice((4, 9, 10, 11, 12))] = random.choice((0, 1, 4, 12, 0x11, 0x44, 255))
                    segments[number] = bytes(frame)
        case 2:
            del segments[i]
        case 3:
            segments.insert(random.randrange(len(segments) + 1), segments[i])
        case 4:
            lying = bytearray(segments[i])
            struct.pack_into(">H", lying, 2, random.choice(NUMBERS) & 0xFFFF)
            segments[i] = bytes(lying)
        case 5:
            kind = random.choice((0xE0, 0xE1, 0xE2, 0xEE, 0xED, 0xFE, 0xDD, 0xC4, 0xDB, 0xCC))
            inside = random.choice((
                *WORDS, b"Exif\0\0II*\0\xff\xff\xff\xff", b"Adobe\0d\0\0\0\0\7", b"ICC_PROFILE\0\xff\0", b""))
            segments.insert(i, b"\xff" + bytes([kind]) + struct.pack(">H", len(inside[:60_000]) + 2) + inside[:60_000])
        case _:  # the same scan again and again
            end = rest.rfind(b"\xff\xd9")
            scan = rest[:end] if 0 < end < 3000 else rest[:3000]
            rest = scan * random.choice((2, 20, 200)) + b"\xff\xd9"
    return b"\xff\xd8" + b"".join(segments) + rest


_TAGS = (254, 256, 257, 258, 259, 262, 266, 273, 274, 277, 278, 279, 284, 317, 320, 322, 323, 324, 325, 330, 338, 339,
         347, 34665, 34675)


def _crafted_tiff(random: Random, content: bytes) -> bytes:
    """Return a TIFF one of whose tags has another number, type, count or value."""
    order = "<" if content.startswith(b"II") else ">"
    start = struct.unpack(order + "I", content[4:8])[0]
    count = struct.unpack(order + "H", content[start:start + 2])[0]
    changed = bytearray(content)
    for _ in range(random.choice((1, 1, 3))):
        place = start + 2 + 12 * random.randrange(max(1, count))
        match random.randrange(5):
            case 0:
                struct.pack_into(order + "H", changed, place, random.choice(_TAGS))
            case 1:
                struct.pack_into(order + "H", changed, place + 2, random.randrange(20))
            case 2:
                struct.pack_into(order + "I", changed, place + 4, random.choice(NUMBERS) & 0xFFFFFFFF)
            case 3:
                struct.pack_into(order + "I", changed, place + 8, random.choice((*_SIDES, *NUMBERS)) & 0xFFFFFFFF)
            case _:
                compression = (1, 2, 3, 4, 5, 6, 7, 8, 32773, 32946, 34712, 34925, 50000, 50001)
                struct.pack_into(order + "H", changed, place + 8, random.choice((*compression, 16, 32, 64)))
    return bytes(changed)


@lru_cache(maxsize=1)
def _large_ones() -> tuple[bytes, ...]:
    """Return small files of the largest images: squares, thin strips, and scans of them without end."""

    def saved(mode: str, size: tuple[int, int], form: str, **options: object) -> bytes:
        stream = io.BytesIO()
        Image.new(mode, size).save(stream, form, **options)
        return stream.getvalue()

    square, strip = (_LARGE, _LARGE), (65_500, 1000)
    jpeg = saved("L", (4096, 4096), "JPEG", progressive=True)
    scan = jpeg.rindex(b"\xff\xda")
    return (
        saved("1", square, "PNG"), saved("P", square, "PNG"), saved("L", strip, "PNG"), saved("1", (1 << 26, 1), "PNG"),
        saved("P", square, "GIF"), saved("1", square, "TIFF", compression="group4"),
        saved("L", square, "TIFF", compression="tiff_adobe_deflate"),
        saved("L", (1 << 15, 1 << 11), "TIFF", compression="tiff_lzw"), saved("L", (8191, 8191), "JPEG"),
        *(jpeg[:scan] + jpeg[scan:-2] * scans + b"\xff\xd9" for scans in (1, 100, 2000)),
        *(_run_length_encoded(side) for side in (2048, _LARGE)),
    )


def _run_length_encoded(side: int) -> bytes:
    """Return a BMP whose rows are one pixel each, and zeros that nobody wrote."""
    header = struct.pack("<IHHIIiiHHIIIIII", 2000, 0, 0, 1078, 40, side, side, 1, 8, 1, 0, 0, 0, 256, 0)
    return b"BM" + header + bytes(1024) + b"\x01\x00\x00\x00" * side
