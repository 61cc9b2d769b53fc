"""How sure a difference of two accuracies is: an interval over runs where there are several, else over test images."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from statistics import NormalDist

from spaceless.findings import standard_error
from spaceless.numerals import signed
from spaceless.paired import student
from spaceless.rows import Row

_SURE = 0.95


@dataclass(frozen=True)
class Spread:
    """How accuracies differ from seed to seed: a standard deviation in percentage points, with degrees of freedom.

    `least` and `most` are the standard deviations of single networks that it is pooled from.
    """

    deviation: float
    freedom: int
    least: float
    most: float


def pooled(rows: Iterable[Row]) -> Spread | None:
    """Return the spread over seeds within each of `rows`, taken as one for all; None where no run differs from another.

    It is the root of the mean square within groups of an analysis of variance. Rows of a single run do not count.
    """
    several = [(row.n - 1, row.spread) for row in rows if row.spread is not None]
    freedom = sum(free for free, _ in several)
    squares = sum(free * spread**2 for free, spread in several)
    each = [spread for _, spread in several]
    return Spread(math.sqrt(squares / freedom), freedom, min(each), max(each)) if squares else None


@dataclass(frozen=True)
class Interval:
    """The 95 % interval of a difference of accuracies in percentage points.

    With a spread over seeds it is Student's: of what other seeds would give on the same test images. Otherwise `lone`
    is true and it is the binomial one of the test images taken as two draws: what another seed would give is not in it.
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


def interval(row: Row, base: Row, comparisons: int = 1, spread: Spread | None = None) -> Interval | None:
    """Return the 95 % interval of the accuracy of `row` minus that of `base`, or None where either is missing.

    As one of so many `comparisons` it is wider, so that all of them together hold with 95 % (Bonferroni). The `spread`
    over seeds is that of more networks than these two, if given; else their own, where both have several runs.
    """
    if row.top1 is None or base.top1 is None or not (row.n and base.n):
        return None
    difference = row.top1 - base.top1
    end = 1 - (1 - _SURE) / (2 * comparisons)
    if spread is None and row.spread is not None and base.spread is not None:
        spread = pooled((row, base))  # a few runs that all came to one accuracy do not show that every other would
    if spread is not None:
        half = student(end, spread.freedom) * spread.deviation * math.sqrt(1 / row.n + 1 / base.n)
        return Interval(difference, half, lone=False)
    return Interval(difference, NormalDist().inv_cdf(end) * math.hypot(_error(row), _error(base)), lone=True)


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
        return (f"How sure: {how}. It stands on {runs}, without a spread over seeds; the {row.images // row.n:,} "
                f"{row.trial.tested_on} alone leave a difference of {from_to} points (95 %), which {where}.")
    how = "firm" if inside or outside else "likely" if found.difference >= -tolerance else "open"
    return (f"How sure: {how}. Over {_counts(row, base)} on these {row.images // row.n:,} {row.trial.tested_on} the "
            f"difference is {from_to} points (95 %), which {where}.")


def _counts(row: Row, base: Row) -> str:
    return f"{row.n} runs each" if row.n == base.n else f"{row.n} and {base.n} runs"


def lone_run(*rows: Row) -> str:
    """Return what a result that no tolerance judges lacks if one of its `rows` is a lone run."""
    lone = [r for r in rows if r.n == 1 and r.top1 is not None]
    if not lone:
        return ""
    each = min(r.images for r in lone)
    error = max(standard_error(r.top1 or 0.0, r.images) for r in lone)
    return (f"How sure: a hint. A lone run has no spread over seeds; its {each:,} "
            f"{lone[0].trial.tested_on} alone leave a standard error of {error:.1f} points.")
