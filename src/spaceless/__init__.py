"""How much space does your CNN need? Spatial information removed from a network's last units, and what that costs."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from spaceless.frame import frame as load
    from spaceless.rebuild import load_model
    from spaceless.report import figures
    from spaceless.surgery import remove_spatial
    from spaceless.units import find_units

__version__ = "0.1.0"
__all__ = ["figures", "find_units", "load", "load_model", "remove_spatial"]

_PLACES = {
    "figures": ("spaceless.report", "figures"),
    "find_units": ("spaceless.units", "find_units"),
    "load": ("spaceless.frame", "frame"),
    "load_model": ("spaceless.rebuild", "load_model"),
    "remove_spatial": ("spaceless.surgery", "remove_spatial"),
}


def __dir__() -> list[str]:
    """Name what can be asked for, so that a shell can complete it."""
    return sorted({*globals(), *__all__})


def __getattr__(name: str) -> Any:
    """Import what is asked for when it is asked for: `spaceless --help` needs no torch."""
    if name not in _PLACES:
        raise AttributeError(f"module 'spaceless' has no attribute {name!r}")
    module, attribute = _PLACES[name]
    return getattr(import_module(module), attribute)
