"""The search for the largest K within a tolerance: bisection with a neighbour check, whatever the curve looks like."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class Found:
    """What a search came to.

    `largest` is the largest accepted K; `tried` tells for each K that was tried, in that order, whether it is within
    the tolerance; `spent` whether there was something left to try when the trials were used up.
    """

    largest: int
    tried: Mapping[int, bool]
    spent: bool

    @property
    def accepted(self) -> tuple[int, ...]:
        """The K's that are within the tolerance together with the K before them, 0 among them."""
        return tuple(sorted(_accepted(self.tried)))

    @property
    def alone(self) -> tuple[int, ...]:
        """The K's above the largest that are within the tolerance, and not accepted since the K before them is not."""
        return tuple(sorted(k for k, within in self.tried.items() if within and k > self.largest))


def usual_budget(units: int) -> int:
    """Return how many K's a search tries at most unless told otherwise: the steps of a bisection, and two neighbours.

    For 13 units that is 6, less than half of all.
    """
    return min(units, units.bit_length() + 2)  # 0..units are units + 1 answers


class _SpentError(Exception):
    """There is something left to try, and nothing to try it with."""


def largest_k(units: int, within: Callable[[int], bool], budget: int | None = None) -> Found:
    """Return the largest accepted K from 0 to `units`, where 0 is the unchanged network.

    K is accepted if it is within the tolerance and K - 1 is so too (K = 0 always is): one lucky training alone decides
    nothing. The search:

    1. Bisect between the largest K known to be within the tolerance and the smallest K ruled out. It ends at a K
       within the tolerance whose next is not.
    2. Try K - 1. If it is within the tolerance too, K is accepted. If not, K was a lucky one: everything from K - 1 on
       is ruled out; go on at 1.
    3. The K + 1 that ended the bisection may be an unlucky one: where there is room for a pair above it, try K + 2. If
       that is within the tolerance, go on at 1 between K + 2 and the smallest K above it that is known not to be. A
       single K + 1 does not stand against a pair above it.

    No K is asked for twice. The last trial goes to a K that it can make an accepted one: the K before the largest found
    so far, or where that is accepted already the K after it. With no trials left, the answer is the largest K among
    those tried that is accepted. On a curve that falls once and stays there the answer is exact if the trials last;
    otherwise it is a K that is accepted, not always the largest such one.

    Args:
        units: The largest K.
        within: Whether K (1 or more) is within the tolerance; this is what costs a training.
        budget: How often it is asked at most; None is `usual_budget`.

    """
    most = usual_budget(units) if budget is None else budget
    tried: dict[int, bool] = {0: True}

    def left() -> int:
        return most - (len(tried) - 1)

    def ask(k: int) -> bool:
        if k not in tried:
            if not left():
                raise _SpentError
            tried[k] = within(k)
        return tried[k]

    spent = False
    try:
        _climb(units, ask, tried, left)
    except _SpentError:
        spent = True
    answers = {k: good for k, good in tried.items() if k}
    return Found(max(_accepted(answers)), answers, spent)


def _accepted(tried: Mapping[int, bool]) -> list[int]:
    return [0, *(k for k, good in tried.items() if good and (k == 1 or tried.get(k - 1)))]


def first_k(units: int, budget: int) -> int:
    """Return the K that `largest_k` asks for first."""
    return (units + 1) // 2 if budget > 1 else 1


def _climb(units: int, ask: Callable[[int], bool], tried: Mapping[int, bool], left: Callable[[], int]) -> None:
    """Ask until nothing more is to be asked; what is accepted follows from the answers."""
    floor, high = 0, units + 1  # where the part that is searched begins, and the smallest K ruled out
    while True:
        low = max(k for k, good in tried.items() if good and floor <= k < high)
        k = _edge(low, high, ask, left)
        if k and not ask(k - 1):
            if k == floor:  # the K + 2 that step 3 began from has no pair
                return
            high = k - 1
            continue
        above = min((j for j, good in tried.items() if j > k + 1 and not good), default=units + 1)
        if k + 3 >= above or not ask(k + 2):  # no room for a pair, or no reason to look for one
            return
        floor, high = k + 2, above


def _edge(low: int, high: int, ask: Callable[[int], bool], left: Callable[[], int]) -> int:
    """Return a K from `low` on that is within the tolerance (or `low` itself) and whose next is not, or is `high`."""
    while high - low > 1:
        middle = (low + high) // 2
        if left() == 1:
            if low and not ask(low - 1) and not left():
                raise _SpentError  # else it was known before, and the last trial is still there
            middle = low + 1
        if ask(middle):
            low = middle
        else:
            high = middle
    return low
