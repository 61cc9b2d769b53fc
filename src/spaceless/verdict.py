"""What a setting may say of a claim, and the words and thresholds that the rules of all claims share."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Literal, NamedTuple

from spaceless.certainty import Interval
from spaceless.numerals import signed
from spaceless.rows import Row
from spaceless.setting import TOLERANCE, Setting

Verdict = Literal["confirmed", "in part", "not confirmed", "open"]


class Judged(NamedTuple):
    """What one setting says of a claim: the verdict, the figures behind it, and the rows that they are of."""

    verdict: Verdict
    text: str
    rows: tuple[Row, ...]


def combined(verdicts: Iterable[Verdict]) -> Verdict:
    """Return the verdict of parts: what holds for some of them holds in part, and open parts leave all open."""
    found = set(verdicts)
    if len(found) == 1:
        return found.pop()
    return "in part" if found & {"confirmed", "in part"} else "open"


def of_all(verdicts: Sequence[Verdict], named: int) -> Verdict:
    """Return the verdict of a claim that names so many methods: confirmed only where each of them was measured."""
    verdict = combined(verdicts)
    return "in part" if verdict == "confirmed" and len(verdicts) < named else verdict


def weighed(speaks_for: Sequence[int], against: Sequence[int]) -> Verdict:
    """Return the verdict where so many K speak for a claim, and so many against it."""
    if speaks_for:
        return "in part" if against else "confirmed"
    return "not confirmed" if against else "open"


def loses(setting: Setting, row: Row | None, comparisons: int = 1) -> bool:
    """Tell whether `row` loses more than the tolerance against the unchanged network, whole interval and all."""
    base = setting.base
    found = None if row is None or base is None else setting.interval(row, base, comparisons)
    return found is not None and found.high < -TOLERANCE


def cost_from(setting: Setting, curve: Mapping[int, Row], what: str) -> str:
    """Return, of a method that is known to be free at no K, whether it costs accuracy at its first K, in words."""
    first = min(curve)
    base = setting.base
    found = None if base is None else setting.interval(curve[first], base)
    if found is not None and found.high < 0:
        return f"{what} costs accuracy from K = {first} on, the first measured"
    return f"whether {what} costs accuracy at K = {first}, the first measured, is open"


def in_points(found: Interval) -> str:
    """Return a difference with its interval, in words."""
    return f"{signed(found.difference, 1)} points ({signed(found.low, 1)} to {signed(found.high, 1)})"
