"""Pickles that would create a file if anybody unpickled them: the proof that nobody does is that the file is absent."""

from __future__ import annotations

import struct
from pathlib import Path


def text(value: str) -> bytes:
    """Return opcodes that push `value` (BINUNICODE)."""
    raw = value.encode()
    return b"X" + struct.pack("<I", len(raw)) + raw


def named(module: str, name: str) -> bytes:
    """Return opcodes that push a global by STACK_GLOBAL."""
    return text(module) + text(name) + b"\x93"


def fragments(canary: Path) -> tuple[bytes, ...]:
    """Return opcodes that push one value each, by a call that creates the file `canary`, in all ways to call."""
    command = f"touch '{canary}'"
    system = b"cposix\nsystem\n"
    called = b"](" + text(command) + b"e"
    mapped = b"cbuiltins\nmap\n" + system + called + b"\x86\x81"
    namespace = b"cargparse\nNamespace\n)\x81"
    imported = b"cimportlib\nimport_module\n" + text("os") + b"\x85R"
    return (
        system + text(command) + b"\x85R",
        named("os", "system") + text(command) + b"\x85R",
        b"cbuiltins\nexec\n" + text(f"open({str(canary)!r}, 'w').close()") + b"\x85R",
        named("builtins", "eval") + text(f"__import__('pathlib').Path({str(canary)!r}).touch()") + b"\x85R",
        b"(S" + repr(command).encode() + b"\niposix\nsystem\n",
        b"(" + system + text(command) + b"o",
        b"cbuiltins\nbytes\n" + mapped + b"\x85\x81",
        b"cbuiltins\ntuple\n" + mapped + b"\x85}\x92",
        namespace + b"}" + text("__setstate__") + system + b"sb" + text(command) + b"b",
        namespace + b"}" + text("append") + system + b"sb" + text(command) + b"a",
        b"cbuiltins\ngetattr\n" + imported + text("system") + b"\x86R" + text(command) + b"\x85R",
    )


def whole(fragment: bytes) -> bytes:
    """Return the pickle of what `fragment` pushes."""
    return b"\x80\x04" + fragment + b"."
