"""Pickles with calls, exchanged opcodes and bombs in them, and NumPy arrays whose headers lie."""

from __future__ import annotations

import pickletools
import re
import struct
from collections.abc import Sequence
from random import Random

from spaceless.bench.faults.corruption import NUMBERS
from spaceless.bench.faults.payloads import whole


def crafted_pickle(random: Random, calls: Sequence[bytes], content: bytes) -> bytes:
    """Return a pickle with a call in it, or with its opcodes exchanged, left out or repeated."""
    call = random.choice(calls)
    try:
        places = [place or 0 for _, _, place in pickletools.genops(content)]
    except Exception:  # not a pickle at all
        return whole(call)
    i = random.randrange(len(places))
    at, end = places[i], places[i + 1] if i + 1 < len(places) else len(content)
    match random.randrange(10):
        case 0:
            return content[:at] + call + content[at:]
        case 1:
            return content[:at] + call + b"0" + content[at:]
        case 2:  # in place of a value
            return content[:at] + call + content[end:]
        case 3:
            return whole(call) if random.random() < 0.5 else content + whole(call)
        case 4:
            return content[:at] + bytes([random.choice(_OPCODES)]) + content[at + 1:]
        case 5:
            return content[:at] + content[end:]
        case 6:
            return content[:end] + content[at:end] * random.choice((1, 2, 300)) + content[end:]
        case 7:
            old, new = random.choice((
                (b"numpy", b"posix"), (b"_reconstruct", b"system"), (b"ndarray", b"memmap "), (b"dtype", b"load"),
                (b"multiarray", b"os"), (b"_codecs", b"os"), (b"encode", b"system"), (b"latin1", b"rot13"),
                (b"u1", b"O8"),
            ))
            return content.replace(old, new, random.choice((1, -1)))
        case 8:
            bomb = random.choice((b"]", b"(", b")\x85", b"}", b"2", b"N", b"\x85", b"]\x94", b"(l", b"(t"))
            return content[:at] + bomb * random.choice((2, 100, 20_000)) + content[at:]
        case _:
            length = struct.pack("<Q", random.choice(NUMBERS) & ((1 << 64) - 1))
            long = random.choice((b"\x8d", b"\x8e", b"\x95", b"\x96")) + length
            short = random.choice((b"X", b"B", b"T", b"\x8b", b"r", b"j")) + length[:4]
            return content[:at] + random.choice((long, short, b"L" + b"7" * 6000 + b"L\n", b"I-1\n")) + content[at:]


_OPCODES = b"".join(opcode.code.encode("latin-1") for opcode in pickletools.opcodes)


def crafted_npy(random: Random, calls: Sequence[bytes], content: bytes) -> bytes:
    """Return an .npy whose header announces another type, another shape or another length."""
    size = struct.unpack("<H", content[8:10])[0]
    header, values = content[10:10 + size].decode("latin-1"), content[10 + size:]
    version, length = b"\x01\x00", "<H"
    match random.randrange(6):
        case 0:
            header = re.sub(r"'descr': '[^']*'", lambda _: f"'descr': {random.choice(_DESCRIPTIONS)}", header)
        case 1:
            header = re.sub(r"\([^)]*\)", lambda _: random.choice(_SHAPES), header)
        case 2:
            header, values = re.sub(r"'descr': '[^']*'", "'descr': '|O'", header), whole(random.choice(calls))
        case 3:
            header = random.choice((
                "__import__('os').system('true')", "{" * 3000, "(" * 200, "-" * 2000 + "1", "{'descr': 1}", "[]", "\0",
                header.replace("False", "'yes'"), header.replace("'shape'", "'form'"), header + "#" * 11_000,
            ))
        case 4:
            version, length = random.choice(((b"\x02\x00", "<I"), (b"\x03\x00", "<I"), (b"\x09\x09", "<H")))
        case _:
            lying = struct.pack("<I", random.choice(NUMBERS) & 0xFFFFFFFF)
            return b"\x93NUMPY\x02\x00" + lying + header.encode("latin-1") + values
    raw = header.encode("latin-1")
    return b"\x93NUMPY" + version + struct.pack(length, len(raw)) + raw + values


_DESCRIPTIONS = (
    "'|O'", "'|V99999999999'", "'<U1000000000'", "'<f8'", "'|u1'", "'<i8'", "'>i4'", "'<c16'", "'<M8[s]'", "'|S0'",
    "'<U0'", "[('a', '|O')]", "[('a', '|u1', (1000000000,))]", "[('a', '|u1'), ('a', '|u1')]", "'|b1'", "'<f2'", "1",
    "None", "''", "[]", "('|u1', (2, 2))", "'zzz'",
)
_SHAPES = (
    "()", "(0,)", "(-1,)", "(-1, 3, 32, 32)", f"({1 << 62},)", f"(0, {1 << 62})", f"({1 << 32}, {1 << 32})", "(True,)",
    "(1.5,)", f"({'1, ' * 100})", f"({10 ** 40},)", "(0, 3, 32, 32)", "(4, 3, 0, 0)", "(2147483647, 3, 32, 32)",
    "('a',)",
)
