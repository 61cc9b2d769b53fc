"""How sure a difference of two accuracies is: an interval over runs where there are several, else over test images."""

from __future__ import annotations

import math
from dataclasses import dataclass

from spaceless.findings import standard_error
from spaceless.numerals import signed
from spaceless.rows import Row

# 97.5 % quantiles of Student's t for 1, 2, ... degrees of freedom; beyond, the normal's is near enough (2.04 at 30).
_STUDENT = (
    12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228, 2.201, 2.179, 2.160, 2.145, 2.131,
    2.120, 2.110, 2.101, 2.093, 2.086, 2.080, 2.074, 2.069, 2.064, 2.060, 2.056, 2.052, 2.048, 2.045, 2.042,
)
_NORMAL = 1.960


@dataclass(frozen=True)
class Interval:
    """The 95 % interval of a difference of accuracies in percentage points.

    Over several runs of both it is Student's, with the spreads pooled. Otherwise `lone` is true and it is the binomial
    one of the test images taken as two draws: what another seed would give is not in it.
    """

    difference: float
    half: float
    lone: bool

    @property
    def low(self) -> float:
        """Its lower end."""
        return self.difference - self.half

    @property
    def high(self) -> float:
        """Its upper end."""
        return self.difference + self.half


def interval(row: Row, base: Row) -> Interval | None:
    """Return the 95 % interval of the accuracy of `row` minus that of `base`, or None where either is missing."""
    if row.top1 is None or base.top1 is None or not (row.n and base.n):
        return None
    difference = row.top1 - base.top1
    if row.spread is not None and base.spread is not None:
        freedom = row.n + base.n - 2
        pooled = ((row.n - 1) * row.spread**2 + (base.n - 1) * base.spread**2) / freedom
        quantile = _STUDENT[freedom - 1] if freedom <= len(_STUDENT) else _NORMAL
        return Interval(difference, quantile * math.sqrt(pooled * (1 / row.n + 1 / base.n)), lone=False)
    return Interval(difference, _NORMAL * math.hypot(_error(row), _error(base)), lone=True)


def _error(row: Row) -> float:
    """Return the standard error of an accuracy with one more image right and one more wrong: it is never zero.

    The images count once, however many runs saw them: those that mislead one run may mislead the next.
    Agresti & Caffo 2000, "Simple and effective confidence intervals for proportions and differences of proportions".
    """
    images = row.images // row.n
    right = (row.top1 or 0.0) / 100 * images + 1
    return standard_error(100 * right / (images + 2), images + 2)


def certainty(row: Row, base: Row, tolerance: float) -> str:
    """Return how sure it is on which side of the tolerance (percentage points) `row` lies, or nothing if unknown."""
    found = interval(row, base)
    if found is None:
        return ""
    from_to = f"{signed(found.low, 1)} to {signed(found.high, 1)}"
    inside, outside = found.low >= -tolerance, found.high < -tolerance
    where = "lies within the tolerance" if inside else "lies beyond it" if outside else "reaches across the tolerance"
    if found.lone:
        runs = "a lone run" if row.n == base.n == 1 else f"{row.n} and {base.n} runs"
        how = "a hint" if inside or outside else "open"
        return (f"How sure: {how}. It stands on {runs}, without a spread over seeds; the {row.images // row.n:,} test "
                f"images alone leave a difference of {from_to} points (95 %), which {where}.")
    how = "firm" if inside or outside else "likely" if found.difference >= -tolerance else "open"
    return (f"How sure: {how}. Over {_counts(row, base)} the difference is {from_to} points (95 %), "
            f"which {where}.")


def _counts(row: Row, base: Row) -> str:
    return f"{row.n} runs each" if row.n == base.n else f"{row.n} and {base.n} runs"


def lone_run(*rows: Row) -> str:
    """Return what a result that no tolerance judges lacks if one of its `rows` is a lone run."""
    lone = [r for r in rows if r.n == 1 and r.top1 is not None]
    if not lone:
        return ""
    each = min(r.images for r in lone)
    error = max(standard_error(r.top1 or 0.0, r.images) for r in lone)
    return (f"How sure: a hint. A lone run has no spread over seeds; its {each:,} test images alone leave a standard "
            f"error of {error:.1f} points.")
