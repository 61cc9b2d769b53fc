"""Imports that would load far more than is used: PyTorch's compiler, where nothing is compiled."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from types import ModuleType
from typing import Any

_COMPILER = "torch._dynamo.utils"
_WHOLE = "torch._dynamo"


class _Deferred(ModuleType):
    """Stands in for the compiler's module, which is imported when something in it is used."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):  # asked for by the import system, about whatever it finds
            raise AttributeError(name)
        return getattr(self._load(), name)

    def is_compile_supported(self, device: str) -> Any:
        """Answer as the real one does."""
        return self._load().is_compile_supported(device)

    def _load(self) -> Any:
        """Give way to the real module and return it."""
        if sys.modules.get(_COMPILER) is self:
            del sys.modules[_COMPILER]
        return import_module(_COMPILER)


def torchvision_models() -> Any:
    """Return `torchvision.models`.

    `torchvision.ops.roi_align`, which classifiers do not use, takes one function from the compiler at import, which
    costs a second or two. Here the compiler is imported when that function is called, or when PyTorch itself first
    wants it, as its optimisers do.
    """
    if _COMPILER in sys.modules or "torchvision" in sys.modules:
        return import_module("torchvision.models")
    stand_in = _Deferred(_COMPILER)
    sys.modules[_COMPILER] = stand_in
    try:
        return import_module("torchvision.models")
    finally:
        if sys.modules.get(_COMPILER) is stand_in:
            del sys.modules[_COMPILER]


@contextmanager
def without_compiler() -> Iterator[None]:
    """Keep PyTorch from importing its compiler within this context, for a process that compiles nothing and then ends.

    Several operations on the meta device are marked as not to be compiled when they are first used, and the mark alone
    imports the compiler, for a second. They stay unmarked; so this is nothing for a library's caller.
    """
    if _WHOLE in sys.modules:
        yield
        return
    stand_in = ModuleType(_WHOLE)
    stand_in.disable = lambda function, *_, **__: function  # type: ignore[attr-defined]
    sys.modules[_WHOLE] = stand_in
    try:
        yield
    finally:
        if sys.modules.get(_WHOLE) is stand_in:
            del sys.modules[_WHOLE]
