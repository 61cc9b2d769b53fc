"""Pickled dictionaries of arrays (CIFAR, ImageNet-32) read without unpickling: nothing named in the file is called.

The opcodes are walked by `pickletools.genops`, which only splits bytes, and interpreted here on a list as the stack.
Names of functions are inert text; only the four that a pickled NumPy array needs have a meaning, given to them below.
"""

from __future__ import annotations

import pickletools
import re
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from spaceless.errors import DataError

LARGEST_FILE = 2 << 30  # bytes: a batch of ImageNet-64 has 1.6e9
MOST_OPCODES = 5_000_000  # CIFAR-100 has 0.3 million; each may cost a hundred bytes and a microsecond
LARGEST_NUMBER = 1 << 40  # in a place where a huge one costs: a length, a number in the memo
LONGEST_KEY = 200  # characters

_MEANINGS = {
    ("numpy.core.multiarray", "_reconstruct"): "reconstruct",
    ("numpy._core.multiarray", "_reconstruct"): "reconstruct",
    ("numpy", "ndarray"): "ndarray",
    ("numpy", "dtype"): "dtype",
    ("_codecs", "encode"): "encode",
}
_CONSTANTS = {
    "INT", "BININT", "BININT1", "BININT2", "LONG", "LONG1", "LONG4", "FLOAT", "BINFLOAT", "STRING", "BINSTRING",
    "SHORT_BINSTRING", "UNICODE", "SHORT_BINUNICODE", "BINUNICODE", "BINUNICODE8", "SHORT_BINBYTES", "BINBYTES",
    "BINBYTES8",
}
_LITERALS = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False, "EMPTY_TUPLE": ()}


class _DamagedError(ValueError):
    """The opcodes do not fit together."""


@dataclass(eq=False)
class _Name:
    """A global of the file, as text: never imported, never called."""

    meaning: str


@dataclass(eq=False)
class _Type:
    """A NumPy type of plain numbers."""

    dtype: np.dtype[Any]


@dataclass(eq=False)
class _Array:
    """An array that is announced (`_reconstruct`) before it is filled (`BUILD`)."""

    value: npt.NDArray[Any] | None = None


class _Mark:
    """Where on the stack a list, dictionary or tuple begins."""


def read_pickle(data: bytes, file: str | Path) -> dict[str, Any]:
    """Return the pickled dictionary in `data`: plain values and, at its top level, NumPy arrays of plain numbers.

    Args:
        data: The whole file; strings of Python 2 are read as Latin-1.
        file: Named in errors.

    Raises:
        DataError: The file is damaged, too large, or holds anything but plain values and arrays.

    """
    if len(data) > LARGEST_FILE:
        raise _refused(file, f"{len(data):,} bytes", f"at most {LARGEST_FILE:,}")
    try:
        value = _Reader(data, file).run()
        if not isinstance(value, dict):
            raise _DamagedError(f"a {type(value).__name__}, not a dictionary")
        keys = [key.decode("latin-1") if isinstance(key, bytes) else key for key in value]
        items = [item.value if isinstance(item, _Array) else item for item in value.values()]
        return dict(zip(keys, items, strict=True))
    except DataError:
        raise
    except Exception as error:  # genops promises no set of errors for broken bytes
        detail = f"{type(error).__name__}: {error}"[:120]
        raise _refused(file, f"a damaged pickle ({detail})", "a pickled dictionary") from error


def _refused(file: str | Path, found: str, expected: str) -> DataError:
    return DataError(str(file), found=found, expected=expected, cure="replace it with the official file")


class _Reader:
    """The stack machine for one file."""

    def __init__(self, data: bytes, file: str | Path) -> None:
        self.data, self.file = data, file
        self.stack: list[Any] = []
        self.memo: dict[int, Any] = {}
        # A memoised string may be encoded again and again: together no more than the file could hold.
        self.budget = len(data)

    def run(self) -> Any:
        for count, (opcode, argument, place) in enumerate(pickletools.genops(self.data)):
            if count >= MOST_OPCODES:
                raise _refused(self.file, f"over {MOST_OPCODES:,} pickle opcodes", "fewer")
            if opcode.name == "STOP":
                if len(self.stack) != 1 or place is None or place + 1 != len(self.data):
                    raise _DamagedError("more than one value")  # another reader might load the next pickle as well
                return self.top()
            self.step(opcode.name, argument)
        raise _DamagedError("no STOP")

    def step(self, opcode: str, argument: Any) -> None:
        """Interpret one opcode; whatever is not named here is refused."""
        stack = self.stack
        match opcode:
            case _ if opcode in _CONSTANTS:
                stack.append(argument)
            case _ if opcode in _LITERALS:
                stack.append(_LITERALS[opcode])
            case "BINPUT" | "LONG_BINPUT" | "PUT" if 0 <= argument < LARGEST_NUMBER:  # huge ones can share a hash
                self.memo[argument] = self.top()
            case "MEMOIZE":
                self.memo[len(self.memo)] = self.top()
            case "BINGET" | "LONG_BINGET" | "GET":
                stack.append(self.memo[argument])
            case "MARK":
                stack.append(_Mark)
            case "EMPTY_LIST":
                stack.append([])
            case "EMPTY_DICT":
                stack.append({})
            case "LIST":
                stack.append(self.marked())
            case "DICT":
                items = self.marked()
                stack.append({})
                self.set_items(items)
            case "TUPLE":
                stack.append(tuple(self.marked()))
            case "TUPLE1" | "TUPLE2" | "TUPLE3":
                stack.append(tuple(self.popped(int(opcode[-1]))))
            case "APPEND":
                self.append(self.popped(1))
            case "APPENDS":
                self.append(self.marked())
            case "SETITEM":
                self.set_items(self.popped(2))
            case "SETITEMS":
                self.set_items(self.marked())
            case "GLOBAL":
                module, _, name = argument.partition(" ")
                stack.append(self.name(module, name))
            case "STACK_GLOBAL":
                stack.append(self.name(*self.popped(2)))
            case "REDUCE":
                stack.append(self.reduce(*self.popped(2)))
            case "BUILD":
                self.build(*self.popped(1))
            case "PROTO" if argument <= 5:
                pass
            case "FRAME" if argument <= len(self.data):
                pass
            case _:
                what = f" {argument[:60]!r}" if isinstance(argument, str) else ""
                raise _refused(self.file, f"the pickle opcode {opcode}{what}", "plain data only")

    def top(self) -> Any:
        """Return the last value on the stack, which stays there."""
        if not self.stack or self.stack[-1] is _Mark:
            raise _DamagedError("an empty stack")
        return self.stack[-1]

    def popped(self, count: int) -> list[Any]:
        """Take the last `count` values off the stack."""
        values = self.stack[-count:]
        if len(values) < count or any(value is _Mark for value in values):
            raise _DamagedError("an empty stack")
        del self.stack[-count:]
        return values

    def marked(self) -> list[Any]:
        """Take all values down to the last mark off the stack, and the mark."""
        for place in range(len(self.stack) - 1, -1, -1):
            if self.stack[place] is _Mark:
                values = self.stack[place + 1 :]
                del self.stack[place:]
                return values
        raise _DamagedError("no mark")

    def append(self, values: list[Any]) -> None:
        target = self.top()
        if not isinstance(target, list):
            raise _DamagedError("values for a list, and no list")
        target.extend(values)

    def set_items(self, items: list[Any]) -> None:
        target = self.top()
        if not isinstance(target, dict) or len(items) % 2:
            raise _DamagedError("items for a dictionary, and no dictionary")
        for key, value in zip(items[::2], items[1::2], strict=True):
            # Numbers can be chosen to share a hash, and long texts take long to compare: both without end.
            if not isinstance(key, str | bytes) or len(key) > LONGEST_KEY:
                raise _DamagedError(f"a {'long ' if isinstance(key, str | bytes) else ''}{type(key).__name__} as key")
            target[key] = value

    def name(self, module: Any, name: Any) -> _Name:
        # Values are looked at as text only if they are text: printing or hashing nested tuples can take for ever.
        if not isinstance(module, str) or not isinstance(name, str):
            raise _DamagedError("a name that is no text")
        if (module, name) not in _MEANINGS:
            raise _refused(
                self.file, f"a pickle that names {f'{module[:80]}.{name[:80]}'[:80]}", "arrays and plain data only")
        return _Name(_MEANINGS[module, name])

    def reduce(self, function: Any, arguments: Any) -> Any:
        """Give the three functions that may be `called` their meaning here."""
        if not isinstance(function, _Name) or not isinstance(arguments, tuple):
            raise _DamagedError("a call of something that is no array")
        match function.meaning, arguments:
            case "reconstruct", (_Name("ndarray"), (0,), "b" | b"b"):
                return _Array()
            case "dtype", (str(code), 0, 1) if re.fullmatch(r"[<>|=]?[biuf][1248]", code):
                return _Type(np.dtype(code))
            case "encode", (str(text), "latin1" | "latin-1"):
                return self.raw(text)
        raise _DamagedError("a call of something that is no array of plain numbers")

    def build(self, state: Any) -> None:
        """Fill the array on top of the stack, or set the byte order of the type there."""
        match self.top(), state:
            case _Type() as target, (3, "<" | ">" | "|" | "=" as order, None, None, None, -1, -1, 0):
                target.dtype = target.dtype.newbyteorder(order)
            case _Array(None) as array, (1, tuple(shape), _Type(dtype), int(by_columns), str() | bytes() as content):
                raw = self.raw(content)
                if len(shape) > 4 or not all(type(n) is int and 0 <= n < LARGEST_NUMBER for n in shape):
                    raise _DamagedError("an array without a shape")
                if prod(shape) * dtype.itemsize != len(raw):
                    raise _DamagedError(f"{len(raw)} bytes for an array of shape {shape} and type {dtype}")
                array.value = np.frombuffer(raw, dtype).reshape(shape, order="F" if by_columns else "C")
            case _:
                raise _DamagedError("a state for something that is no array of plain numbers")

    def raw(self, content: str | bytes) -> bytes:
        """Return bytes as they are, and the text that Python 2 kept bytes in as bytes."""
        if isinstance(content, bytes):
            return content
        self.budget -= len(content)
        if self.budget < 0:
            raise _refused(self.file, "the same text encoded again and again", "each once")
        return content.encode("latin-1")
