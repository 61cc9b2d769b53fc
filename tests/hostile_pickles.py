"""Pickles that would run something if anybody unpickled them: each creates the file that `MARKER` names.

Nothing here is worse than `touch`. The bytes are written by hand wherever Python's own pickler would not write them.
"""

from __future__ import annotations

import copyreg
import io
import os
import pickle
import struct
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

MARKER = "SPACELESS_HOSTILE_MARKER"  # the environment variable with the path of the file that must not appear
COMMAND = f'touch "${MARKER}"'
EXTENSIONS = {1: 0xF1, 2: 0xF1F2, 4: 0xF1F2F3}  # bytes of the opcode's argument -> registered code


def unpickle(content: bytes) -> None:
    """Do what no reader may: the pickles of a file one after the other, with persistent numbers looked up."""
    stream = io.BytesIO(content)
    while stream.tell() < len(content):
        _Trusting(stream).load()


class _Trusting(pickle.Unpickler):
    def persistent_load(self, identity: object) -> object:
        """Do as torch's unpickler does, which looks up whatever the number names; here, a command."""
        return os.system(identity) if isinstance(identity, str) else None


class extensions_registered:
    """The context in which the extension codes mean `os.system`."""

    def __enter__(self) -> None:
        # One name can have one code only: three names of the same function.
        for name, code in zip(("system", "_system_2", "_system_4"), EXTENSIONS.values(), strict=True):
            setattr(os, name, os.system)
            copyreg.add_extension("os", name, code)

    def __exit__(self, *_: object) -> None:
        for name, code in zip(("system", "_system_2", "_system_4"), EXTENSIONS.values(), strict=True):
            copyreg.remove_extension("os", name, code)
            if name != "system":
                delattr(os, name)


@dataclass(frozen=True)
class Hostile:
    """One file. `armed` ones run `COMMAND` when they are unpickled; the others cost time or memory without end."""

    name: str
    content: bytes
    armed: bool = True


class Calls:
    """Is pickled as a call of `function`."""

    def __init__(self, function: Callable[..., object], *arguments: object) -> None:
        self.function, self.arguments = function, arguments

    def __reduce__(self) -> tuple[object, ...]:
        return self.function, self.arguments


def touch(*_: object) -> None:
    Path(os.environ[MARKER]).touch()


class Builds:
    """Touches when it is given a state."""

    def __setstate__(self, state: object) -> None:
        touch()

    def __reduce_ex__(self, protocol: object) -> tuple[object, ...]:
        return object.__new__, (Builds,), {"a": 1}


class Keeps(dict[object, object]):
    """Touches when an item is set."""

    def __setitem__(self, key: object, value: object) -> None:
        touch()


class Finalizes(np.ndarray):
    """Touches when NumPy makes an array of it, as `_reconstruct` does."""

    def __array_finalize__(self, other: object) -> None:
        touch()


def text(value: str) -> bytes:
    """Return opcodes that push `value`."""
    raw = value.encode("utf-8", "surrogatepass")
    return b"X" + struct.pack("<I", len(raw)) + raw


def named(module: str, name: str) -> bytes:
    """Return opcodes that push a global by STACK_GLOBAL."""
    return text(module) + text(name) + b"\x93"


SYSTEM = b"cposix\nsystem\n"
CALL = SYSTEM + text(COMMAND) + b"\x85R"  # a value, of any protocol from 2 on
NAMESPACE = b"cargparse\nNamespace\n)\x81"
ZEROS = np.zeros((4, 3072), np.uint8)


def batch(**more: object) -> dict[str, object]:
    """Return a sound batch, for CIFAR-10, CIFAR-100 and ImageNet-32 alike (its labels begin with 1), and `more`."""
    return {"data": ZEROS, "labels": [1, 2, 1, 2], "fine_labels": [1, 2, 1, 2],
            "fine_label_names": ["a", "b", "c"], "label_names": ["a", "b", "c"]} | more


def _calls() -> Iterator[tuple[str, bytes]]:
    """Yield the ways to call something, without any data around."""
    for protocol in range(6):
        yield f"GLOBAL REDUCE, protocol {protocol}", pickle.dumps({"data": Calls(os.system, COMMAND)}, protocol)
    quoted = b"S'" + COMMAND.encode() + b"'\n"
    yield "STACK_GLOBAL", b"\x80\x04" + named("os", "system") + text(COMMAND) + b"\x85R."
    yield "STACK_GLOBAL out of the memo", (
        b"\x80\x04}" + text("os") + b"\x94" + text("system") + b"\x94sh\x00h\x01\x93" + text(COMMAND) + b"\x85R\x86.")
    yield "INST", b"(" + quoted + b"iposix\nsystem\n."
    yield "OBJ", b"(" + SYSTEM + quoted + b"o."
    mapped = b"cbuiltins\nmap\n" + SYSTEM + b"](" + text(COMMAND) + b"e\x86"
    yield "NEWOBJ", b"\x80\x02cbuiltins\nbytes\n" + mapped + b"\x81\x85\x81."
    yield "NEWOBJ_EX", b"\x80\x04cbuiltins\nbytes\n" + mapped + b"}\x92\x85}\x92."
    for (size, code), opcode in zip(EXTENSIONS.items(), (b"\x82", b"\x83", b"\x84"), strict=True):
        call = opcode + code.to_bytes(size, "little") + text(COMMAND) + b"\x85R"
        yield f"EXT{size}", b"\x80\x02" + call + b"."
    yield "dotted name", b"\x80\x04" + named("os", "path.os.system") + text(COMMAND) + b"\x85R."
    yield "dotted name in numpy", b"\x80\x04" + named("numpy.lib._format_impl", "os.system") + text(COMMAND) + b"\x85R."
    imported = b"cimportlib\nimport_module\n" + text("os") + b"\x85R"
    yield "getattr", b"\x80\x02cbuiltins\ngetattr\n" + imported + text("system") + b"\x86R" + text(COMMAND) + b"\x85R."
    yield "eval", b"\x80\x02cbuiltins\neval\n" + text(f"__import__('os').system({COMMAND!r})") + b"\x85R."
    yield "Popen", b"\x80\x02csubprocess\ncall\n](" + text("sh") + text("-c") + text(COMMAND) + b"e\x85R."
    yield "PERSID", b"P" + COMMAND.encode() + b"\n."
    yield "BINPERSID", b"\x80\x02" + text(COMMAND) + b"Q."
    yield "BINPERSID of a call", b"\x80\x02" + CALL + b"Q."
    yield "BINPERSID nested", b"\x80\x02}" + text("a") + b"](" + text(COMMAND) + b"QQes."
    yield "BUILD of __setstate__", (
        b"\x80\x02" + NAMESPACE + b"}" + text("__setstate__") + SYSTEM + b"sb" + text(COMMAND) + b"b.")
    yield "BUILD of our own class", pickle.dumps(Builds(), 2)
    for name, opcodes in (("extend", b"a"), ("append", b"(%be"), ("add", b"(%b\x90")):
        adding = b"%b" + opcodes if name == "extend" else opcodes
        attribute = text("append" if name == "extend" else name)
        yield {"extend": "APPEND", "append": "APPENDS", "add": "ADDITEMS"}[name], (
            b"\x80\x04" + NAMESPACE + b"}" + attribute + SYSTEM + b"sb" + adding % text(COMMAND) + b".")
    keeps = f"c{__name__}\nKeeps\n)\x81".encode("latin-1")
    yield "SETITEM", b"\x80\x02" + keeps + b"K\x01K\x02s."
    yield "SETITEMS", b"\x80\x02" + keeps + b"(K\x01K\x02u."
    yield "behind a memo", b"\x80\x02" + SYSTEM + b"q\x070}" + text("a") + b"h\x07" + text(COMMAND) + b"\x85Rs."
    yield "memo written over", b"\x80\x02]q\x01" + SYSTEM + b"q\x01" + b"0h\x01" + text(COMMAND) + b"\x85R\x86."
    yield "duplicated", b"\x80\x02" + SYSTEM + b"20" + text(COMMAND) + b"\x85R."
    reconstruct = b"cnumpy.core.multiarray\n_reconstruct\n"
    finalizes = f"c{__name__}\nFinalizes\n".encode()
    yield "_reconstruct of another class", b"\x80\x02" + reconstruct + finalizes + b"K\x00\x85C\x01b\x87R."
    yield "ndarray by NEWOBJ of another class", b"\x80\x02" + finalizes + b"K\x00\x85\x85\x81."
    for protocol in (2, 4):
        array = np.array([Calls(os.system, COMMAND)], object)
        yield f"array of objects, protocol {protocol}", pickle.dumps(array, protocol)
    yield "record of objects", pickle.dumps(np.array([(1, Calls(os.system, COMMAND))], [("a", "i4"), ("b", "O")]), 2)
    yield "arguments of a type", b"\x80\x02cnumpy\ndtype\n" + CALL + b"\x85R."
    encode = b"c_codecs\nencode\n"
    yield "arguments of an encoding", b"\x80\x02" + encode + text("a") + CALL + b"\x86R."
    yield "runstring of numpy", (
        b"\x80\x02cnumpy.testing\nrunstring\n" + text(f"import os; os.system({COMMAND!r})") + b"}\x86R.")
    yield "frame too short", b"\x80\x04\x95" + struct.pack("<Q", 1) + b"}0" + CALL + b"."
    framed = CALL + b"."
    yield "frame in a frame", (
        b"\x80\x04\x95" + struct.pack("<Q", 9 + len(framed)) + b"\x95" + struct.pack("<Q", len(framed)) + framed)
    yield "cut", b"\x80\x02" + CALL
    yield "protocol told twice", b"\x80\x02\x80\x05\x80\x00" + CALL + b"."
    yield "popped again", b"\x80\x02" + CALL + b"0}."
    yield "popped to the mark", b"\x80\x02(" + CALL + b"1}."


def _in_batches() -> Iterator[tuple[str, bytes]]:
    """Yield a call hidden in a batch that is sound otherwise."""
    call = Calls(os.system, COMMAND)
    for protocol in (0, 2, 4):
        yield f"one more key, protocol {protocol}", pickle.dumps(batch(more=call), protocol)
    yield "a label", pickle.dumps(batch(labels=[1, call, 1, 2], fine_labels=[1, call, 1, 2]), 2)
    yield "a class name", pickle.dumps(batch(label_names=["a", call], fine_label_names=["a", call]), 2)
    yield "deep below", pickle.dumps(batch(more=[({"a": [call]},)]), 2)
    yield "a key", pickle.dumps(batch() | {Calls(os.system, COMMAND): 1}, 2)
    yield "all of the data", pickle.dumps(batch(data=call), 2)
    sound = pickle.dumps(batch(), 2)
    # The last of the state's five parts are the bytes of the array; protocol 2 writes them as a call of `encode`.
    start = sound.index(b"c_codecs\nencode\n")
    stop = sound.index(b"R", sound.index(b"latin1", start)) + 1
    yield "the bytes of the array", sound[:start] + CALL + sound[stop:]
    yield "behind the end", sound + b"\x80\x02" + CALL + b"."
    yield "below the batch", b"\x80\x02" + CALL + sound[2:]
    yield "in front of the batch", b"\x80\x02" + CALL + b"0" + sound[2:]


def _doubled(times: int) -> bytes:
    """Return opcodes for nested pairs of one and the same tuple: 2 ** times leaves for whoever walks them."""
    return b")" + b"".join(b"q" + bytes([i]) + b"h" + bytes([i]) + b"\x86" for i in range(times))


def _bombs() -> Iterator[tuple[str, bytes]]:
    """Yield files that nobody can finish reading, and names that are nearly those of NumPy."""
    deep, many, prime = 5000, 40_000, 2**61 - 1  # all its multiples have the same hash
    yield "text of 2 ** 63 bytes", b"\x80\x04\x8d" + struct.pack("<Q", 1 << 63) + b"abc."
    yield "text of 2 ** 40 bytes", b"\x80\x04\x8d" + struct.pack("<Q", 1 << 40) + b"abc."
    yield "bytes of 2 ** 62 bytes", b"\x80\x04\x8e" + struct.pack("<Q", 1 << 62) + b"abc."
    yield "bytearray of 2 ** 40 bytes", b"\x80\x05\x96" + struct.pack("<Q", 1 << 40) + b"abc."
    yield "number of 2 ** 31 bytes", b"\x80\x02\x8b" + struct.pack("<I", (1 << 31) - 1) + b"abc."
    yield "number of -1 bytes", b"\x80\x02\x8b" + struct.pack("<i", -1) + b"abc."
    yield "number in a million digits", b"L" + b"7" * 1_000_000 + b"L\n."
    yield "frame of 2 ** 62 bytes", b"\x80\x04\x95" + struct.pack("<Q", 1 << 62) + b"}."
    yield "doubled for ever", b"\x80\x02}" + text("a") + b"]" + b"2\x86" * deep + b"s."
    yield "pairs of pairs as a key", b"\x80\x02}" + _doubled(100) + b"K\x01s."
    yield "pairs of pairs as a name", b"\x80\x04" + _doubled(100) + text("run") + b"\x93."
    yield "pairs of pairs as class names", b"\x80\x02}" + text("label_names") + _doubled(100) + b"s."
    yield "nested lists", b"\x80\x02" + b"]" * deep + b"a" * (deep - 1) + b"."
    yield "nested tuples", b"\x80\x02)" + b"\x85" * deep + b"."
    yield "marks", b"\x80\x02" + b"(" * many + b"."
    yield "a list in itself", b"\x80\x02]q\x01h\x01a."
    yield "numbers of one hash as keys", b"\x80\x02}(" + b"".join(
        b"\x8a\x0c" + (i * prime).to_bytes(12, "little") + b"N" for i in range(many)) + b"u."
    yield "numbers of one hash in the memo", b"}" + b"".join(b"p%d\n" % (i * prime) for i in range(many)) + b"."
    yield "a long number as key, again and again", (
        b"\x80\x02\x8b" + struct.pack("<I", 100_000) + b"\x7f" * 100_000 + b"q\x01}(" + b"h\x01N" * many + b"u.")
    long = text("a" * 100_000)
    yield "equal long keys, again and again", (
        b"\x80\x02" + long + b"q\x01" + long + b"q\x02}(" + b"h\x01Nh\x02N" * many + b"u.")
    yield "a shape that takes hours to multiply", b"\x80\x02}" + text("data") + (
        b"cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\x00\x85C\x01b\x87R(K\x01(\x8b"
        + struct.pack("<I", 1_000_000) + b"\x7f" * 1_000_000 + b"q\x01h\x01h\x01h\x01tcnumpy\ndtype\n" + text("u1")
        + b"K\x00K\x01\x87R\x89C\x01atbs.")
    yield "one text encoded again and again", b"\x80\x02](" + text("a" * 5000) + b"q\x00" + (
        b"c_codecs\nencode\nh\x00" + text("latin1") + b"\x86R") * 20 + b"e."
    for module, name in (
        ("numpy.core.multiarray", "scalar"), ("numpy", "load"), ("numpy", "fromfile"), ("numpy", "memmap"),
        ("numpy", "ndarray.tofile"), ("numpy.distutils.exec_command", "exec_command"), ("numpy.f2py", "compile"),
        ("numpy.core.multiarray ", "_reconstruct"), ("numpy.core.multiarray", "_reconstruct\0"), ("Numpy", "ndarray"),
        ("\uff4eumpy", "ndarray"), ("numpy\u200b", "dtype"), ("numpy", "\udcff"), ("numpy.ndarray", ""), ("", "dtype"),
        ("numpy", "\x1b]0;owned\x07"), ("_codecs", "decode"), ("codecs", "encode"), ("__main__", "ndarray"),
    ):
        yield f"name {module!a} {name!a}", b"\x80\x04}" + text("a") + named(module, name) + b"s."


CORPUS = tuple(
    [Hostile(name, content) for name, content in (*_calls(), *_in_batches())]
    + [Hostile(name, content, armed=False) for name, content in _bombs()]
)
