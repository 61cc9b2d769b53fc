"""Archives as no tool writes them: lying sizes, bombs, names that lead elsewhere; and parquet files of all kinds."""

from __future__ import annotations

import gzip
import io
import json
import struct
import tarfile
import zipfile
from collections.abc import Callable
from functools import lru_cache
from random import Random
from typing import Any

from spaceless.bench.faults.corruption import NUMBERS, WORDS

_NAMES = ("../x.npy", "/etc/x.npy", "x" * 60_000, "a\nb.npy", "", "x_train.npy\0.txt", "x_train", "<b>.npy", "..",
          "x_train.npy")
_BOMB = 3 << 30  # bytes that a bomb unpacks to


def crafted_zip(random: Random, content: bytes, changed: Callable[[str, bytes], bytes]) -> bytes:
    """Return a zip with a member that is `changed(name, inside)`, renamed, told twice or of another size than told."""
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        members = [(info.filename, archive.read(info)) for info in archive.infolist()]
    kind, i = random.randrange(7), random.randrange(len(members))
    name, inside = members[i]
    packing = random.choice((zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED))
    if kind == 0:
        name = random.choice(_NAMES)
    elif kind == 1 and inside[:6] == b"\x93NUMPY" and random.random() < 0.05:
        return _bomb(name)
    elif kind == 2:
        members.append((name, changed(name, inside)))
    elif kind == 3:
        packing = random.choice((zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA))
    elif kind != 4:
        inside = changed(name, inside)
    members[i] = name, inside
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", packing) as archive:
        for member, bytes_ in members:
            archive.writestr(zipfile.ZipInfo(member), bytes_, packing)
    made = bytearray(stream.getvalue())
    if kind in (4, 5):
        _lie(random, made)
    return bytes(made)


def _lie(random: Random, archive: bytearray) -> None:
    """Write another number into a field of the directory, of a local header or of the end record."""
    mark, offset, width = random.choice((
        (b"PK\x01\x02", 20, "I"), (b"PK\x01\x02", 24, "I"), (b"PK\x01\x02", 42, "I"), (b"PK\x01\x02", 8, "H"),
        (b"PK\x01\x02", 10, "H"), (b"PK\x01\x02", 16, "I"), (b"PK\x01\x02", 28, "H"), (b"PK\x01\x02", 30, "H"),
        (b"PK\x03\x04", 18, "I"), (b"PK\x03\x04", 22, "I"), (b"PK\x03\x04", 26, "H"), (b"PK\x03\x04", 8, "H"),
        (b"PK\x05\x06", 8, "H"), (b"PK\x05\x06", 12, "I"), (b"PK\x05\x06", 16, "I"), (b"PK\x05\x06", 20, "H"),
    ))
    starts = [i for i in range(len(archive) - 45) if archive[i:i + 4] == mark] or [max(0, len(archive) - 22)]
    place = random.choice(starts) + offset
    value = random.choice((*NUMBERS, 1, 8, 9, 12, 14, 99)) & ((1 << 8 * struct.calcsize(width)) - 1)
    if place + struct.calcsize(width) <= len(archive):
        struct.pack_into("<" + width, archive, place, value)


@lru_cache(maxsize=1)
def _zeros() -> bytes:
    """Return `_BOMB` zeros, deflated; a full flush after each part makes the parts alike, so they are repeated."""
    import zlib

    size = 1 << 26
    packer = zlib.compressobj(9, zlib.DEFLATED, -15)
    part = packer.compress(bytes(size)) + packer.flush(zlib.Z_FULL_FLUSH)
    return part * (_BOMB // size)


@lru_cache(maxsize=2)
def _bomb(name: str) -> bytes:
    """Return a zip of a few MB whose one array has `_BOMB` bytes, as its header and the directory say."""
    header = f"{{'descr': '|u1', 'fortran_order': False, 'shape': ({_BOMB // 3072}, 3, 32, 32), }}".ljust(117) + "\n"
    head = b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header)) + header.encode()
    packed = b"\x00" + struct.pack("<HH", len(head), len(head) ^ 0xFFFF) + head + _zeros() + b"\x03\x00"
    raw, size = name.encode(), len(head) + _BOMB
    others = io.BytesIO()
    with zipfile.ZipFile(others, "w") as archive:
        for each in ("x_train", "y_train", "x_test", "y_test"):
            if f"{each}.npy" != name:
                archive.writestr(f"{each}.npy", head)
    tail = others.getvalue()
    directory = struct.unpack("<I", tail[-6:-2])[0]
    fields = struct.pack("<HHHHHIIIHH", 20, 0, 8, 0, 33, 0, len(packed), size & 0xFFFFFFFF, len(raw), 0)
    local = b"PK\x03\x04" + fields + raw + packed
    # The new member comes last, so that the offsets of the others stay as they are.
    entry = b"PK\x01\x02\x14\x00" + fields + struct.pack("<HHHII", 0, 0, 0, 0, directory) + raw
    count = struct.unpack("<H", tail[-14:-12])[0] + 1
    listed = tail[directory:-22] + entry
    end = b"PK\x05\x06" + struct.pack("<HHHHIIH", 0, 0, count, count, len(listed), directory + len(local), 0)
    return tail[:directory] + local + listed + end


def crafted_gzip(random: Random, content: bytes, changed: Callable[[bytes], bytes]) -> bytes:
    """Return a .tar.gz with a member changed by `changed`, renamed, of another type, or of a size that is not so."""
    inner = bytearray(gzip.decompress(content))
    with tarfile.open(fileobj=io.BytesIO(bytes(inner))) as archive:
        members = archive.getmembers()
    member = random.choice(members)
    match random.randrange(6):
        case 0 | 1:
            inside = changed(bytes(inner[member.offset_data:member.offset_data + member.size]))
            end = member.offset_data + -(-member.size // 512) * 512
            inner[member.offset_data:end] = inside + bytes(-len(inside) % 512)
            _header(inner, member.offset, 124, f"{len(inside):011o}\0".encode())
        case 2:
            name = random.choice((*WORDS, b"cifar-100-python/../../x", b"/etc/cifar-100-python/train", b"./train"))
            _header(inner, member.offset, 0, name[:100].ljust(100, b"\0"))
        case 3:
            value = random.choice(NUMBERS)
            size = f"{value & 0o77777777777:011o}\0".encode() if random.random() < 0.5 else (
                b"\x80" + (value & ((1 << 88) - 1)).to_bytes(11, "big"))
            _header(inner, member.offset, 124, size)
        case 4:
            _header(inner, member.offset, 156, bytes([random.choice(b"0123456789xgLKSNVMA\0")]))
        case _:
            place = member.offset + random.randrange(512)
            inner[place] ^= 1 << random.randrange(8)
            if random.random() < 0.5:
                _header(inner, member.offset, 0, bytes(inner[member.offset:member.offset + 1]))
    packed = gzip.compress(bytes(inner), 1, mtime=0)
    if random.random() < 0.01:
        return _gzip_bomb() + packed
    return packed + random.choice((b"", b"", b"\0" * 100, b"rubbish", packed))


def _header(archive: bytearray, start: int, offset: int, value: bytes) -> None:
    """Write `value` into a tar header and its checksum again."""
    archive[start + offset:start + offset + len(value)] = value
    archive[start + 148:start + 156] = b" " * 8
    archive[start + 148:start + 156] = f"{sum(archive[start:start + 512]):06o}\0 ".encode()


@lru_cache(maxsize=1)
def _gzip_bomb() -> bytes:
    """Return a member of 900 MB in a .tar.gz of 1 MB, which is called as a batch is."""
    info = tarfile.TarInfo("cifar-100-python/train")
    info.size = 900 << 20
    part = gzip.compress(bytes(1 << 20), 9, mtime=0)
    return gzip.compress(info.tobuf(), 1, mtime=0) + part * 900


def crafted_parquet(random: Random, pickled: bytes) -> bytes:
    """Return one of the parquet files that hold something else than images and labels, or too much of it."""
    if random.random() < 0.1:
        return _extended(pickled)
    return random.choice(_parquets())


_IMAGES, _NUMBERS = [b"\x89PNG\r\n\x1a\n" + bytes(50)] * 4, list(range(4))


def _written(columns: dict[str, Any], *, metadata: dict[bytes, bytes] | None = None, **options: Any) -> bytes:
    import pyarrow as pa
    import pyarrow.parquet as pq

    stream = io.BytesIO()
    pq.write_table(pa.table(columns).replace_schema_metadata(metadata), stream, **options)
    return stream.getvalue()


def _extended(pickled: bytes) -> bytes:
    """Return a file with a pickle where arrow keeps what it knows of a type, or of the schema."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    metadata = {b"ARROW:extension:name": b"arrow.py_extension_type", b"ARROW:extension:metadata": pickled}
    schema = pa.schema([pa.field("image", pa.binary(), metadata=metadata), ("label", pa.int64())])
    stream = io.BytesIO()
    schema = schema.with_metadata({b"ARROW:schema": pickled})
    pq.write_table(pa.table({"image": _IMAGES, "label": _NUMBERS}, schema=schema), stream)
    return stream.getvalue()


@lru_cache(maxsize=1)
def _parquets() -> tuple[bytes, ...]:
    import pyarrow as pa

    images, numbers = _IMAGES, _NUMBERS
    repeated = pa.DictionaryArray.from_arrays(pa.array([0] * 3000, pa.int32()), [bytes(1 << 20)])
    deep = pa.binary()
    for _ in range(20):
        deep = pa.struct([("bytes", deep)])
    named = {"info": {"features": {"label": {"names": ["<script>", "../..", "\x1b[2J", "\n"]}}}}
    plain = {"image": images, "label": numbers}
    return (
        _written({"image": repeated, "label": [0] * 3000}, store_schema=False),  # 3 GB by way of a dictionary
        _written({"image": [bytes(70 << 20)], "label": [0]}, compression="zstd", use_dictionary=False),
        _written({"image": images[:0], "label": pa.array([], pa.int64())}),
        _written({"image": pa.array([], pa.binary()), "label": pa.array([], pa.int64())}),
        _written(plain | {"image": [None, *images[1:]]}), _written(plain | {"label": [0, None, 1, 1]}),
        _written(plain | {"label": pa.array([1 << 63] * 4, pa.uint64())}),
        _written(plain | {"label": pa.array([-1, -(1 << 63), 0, 1])}), _written(plain | {"image": ["text"] * 4}),
        _written(plain | {"image": pa.array([numbers] * 4)}),
        _written(plain | {"image": pa.array([{"bytes": image, "path": "../../x"} for image in images])}),
        _written(plain | {"image": pa.array([{"bytes": None}] * 4, pa.struct([("bytes", pa.binary())]))}),
        _written(plain | {"image": pa.array([None] * 4, deep)}),
        _written(plain | {"img": images, "fine_label": numbers}),
        _written({"\x1b[2J": images, "<script>": numbers}), _written({"a\nb": images, "../../label": numbers}),
        _written({"image.bytes": images, "label": numbers}), _written({"": images, "label": numbers}),
        _written({"image": pa.array(images, pa.large_binary()), "label": pa.array(numbers, pa.uint8())}),
        _written({"image": pa.array(images).dictionary_encode(), "label": pa.array(numbers).dictionary_encode()}),
        _written(plain | {"image": pa.array(images, pa.binary(len(images[0])))}),
        _written(plain, metadata={b"huggingface": json.dumps(named).encode()}),
        _written(plain, metadata={b"huggingface": b"[" * 100_000}),
        _written(plain, metadata={b"huggingface": b'{"info": 3}'}),
        _written({f"image{i}": images for i in range(200)} | {"label": numbers}),
    )
