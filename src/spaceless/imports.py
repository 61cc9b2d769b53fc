"""Imports that would load far more than is used: torchvision without the compiler of PyTorch."""

from __future__ import annotations

import sys
from importlib import import_module
from types import ModuleType
from typing import Any

_COMPILER = "torch._dynamo.utils"


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
