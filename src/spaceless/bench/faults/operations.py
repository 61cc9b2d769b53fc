"""The file operations of this process, one by one, in the hands of whoever wants to do harm at one of them."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal

NAMES = ("open", "write", "fsync", "fchmod", "close", "replace", "unlink", "rmdir", "mkdir")
ENDED = 77  # the exit status of a process that was ended at its point

When = Literal["before", "within", "after", "power"]


@dataclass(frozen=True)
class Operation:
    """One call of a function of `os`: its number in this process, its name and arguments, and the call itself."""

    number: int
    name: str
    arguments: tuple[Any, ...]
    do: Callable[[], Any]


@contextmanager
def intercepted(meet: Callable[[Operation], Any]) -> Iterator[None]:
    """Call `meet` in place of every function of `os` that changes files; what it returns is what the caller gets.

    Writing by Python's own file objects passes by; what a save does goes through `os`.
    """
    usual = {name: getattr(os, name) for name in NAMES}
    count = 0

    def instead(name: str) -> Callable[..., Any]:
        def call(*arguments: Any, **options: Any) -> Any:
            nonlocal count
            count += 1
            return meet(Operation(count, name, arguments, lambda: usual[name](*arguments, **options)))

        return call

    for name in NAMES:
        setattr(os, name, instead(name))
    try:
        yield
    finally:
        for name, function in usual.items():
            setattr(os, name, function)


def listed(work: Callable[[], object]) -> list[Operation]:
    """Do `work` and return its file operations."""
    found: list[Operation] = []

    def meet(operation: Operation) -> Any:
        found.append(operation)
        return operation.do()

    with intercepted(meet):
        work()
    return found


def ended_at(number: int, when: When) -> Callable[[Operation], Any]:
    """Return a `meet` that ends the process at the operation of this number, with the status `ENDED`.

    `within` a write, half of it is done; in a cut of the `power` after an operation, half of what was written to each
    file and not flushed is lost, whatever the file is called by then.
    """
    unflushed: dict[int, int] = {}  # descriptors of our own, by those of the process
    closed: list[int] = []
    write, close = os.write, os.close

    def meet(operation: Operation) -> Any:
        name, arguments = operation.name, operation.arguments
        here = operation.number == number
        if here and when == "before":
            os._exit(ENDED)
        if here and when == "within" and name == "write":
            write(arguments[0], bytes(arguments[1])[:len(arguments[1]) // 2])
            os._exit(ENDED)
        if when == "power":
            if name == "write" and arguments[0] not in unflushed:
                unflushed[arguments[0]] = os.dup(arguments[0])
            elif name == "close" and arguments[0] in unflushed:
                closed.append(unflushed.pop(arguments[0]))
            elif name == "fsync" and arguments[0] in unflushed:
                close(unflushed.pop(arguments[0]))
        try:
            return operation.do()
        finally:  # also behind one that fails: a folder may be there already
            if here and when == "power":
                for descriptor in (*unflushed.values(), *closed):
                    os.truncate(descriptor, os.fstat(descriptor).st_size // 2)
            if here:
                os._exit(ENDED)

    return meet
