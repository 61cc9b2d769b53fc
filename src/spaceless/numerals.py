"""How numbers are written: with their decimals, signs and spreads, and a dash for what is missing."""

from __future__ import annotations

from collections.abc import Iterable

from spaceless.findings import DASH, MINUS

PLUS_MINUS = "\N{PLUS-MINUS SIGN}"
FIXED = "\N{NO-BREAK SPACE}"


def number(value: float | None, digits: int = 2) -> str:
    """Return a number with `digits` decimals, or an en dash for a missing one."""
    return DASH if value is None else f"{value:,.{digits}f}".replace("-", MINUS)


def signed(value: float | None, digits: int = 2) -> str:
    """Return a difference with its sign, or an en dash for a missing one."""
    return DASH if value is None else f"{round(value, digits) + 0.0:+.{digits}f}".replace("-", MINUS)  # never -0.0


def with_spread(value: float | None, spread: float | None, digits: int = 2) -> str:
    """Return `73.91 +- 0.21`, without the spread where there is none."""
    text = number(value, digits)
    return text if value is None or spread is None else f"{text}{FIXED}{PLUS_MINUS}{FIXED}{number(spread, digits)}"


def millions(count: int | None) -> str:
    """Return a count such as 23.5 M or 53.2 k."""
    if count is None:
        return DASH
    return f"{count / 1e6:,.1f}{FIXED}M" if count >= 1e6 else f"{count / 1e3:,.1f}{FIXED}k"


def typed(value: float) -> str:
    """Return the shortest text that is read as this very number, without a fraction of nought."""
    short = f"{value:g}"
    return short if float(short) == value else repr(value)


def listed(values: Iterable[int]) -> str:
    """Return whole numbers as short ranges: 1, 3-5."""
    runs: list[list[int]] = []
    for value in sorted(values):
        if runs and value == runs[-1][-1] + 1:
            runs[-1].append(value)
        else:
            runs.append([value])
    return ", ".join(str(r[0]) if len(r) == 1 else f"{r[0]}{DASH if len(r) > 2 else ', '}{r[-1]}" for r in runs)


def points(value: float) -> str:
    """Return `1 point`, `2.5 points`."""
    return f"{value:g} point" if value == 1 else f"{value:g} points"


def duration(seconds: float) -> str:
    """Return seconds as 3 h 12 min, 4 min 5 s or 12.3 s."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"
