"""Which pixels a position of a map reads, along one side of the image: intervals that repeat with a period.

Position i of a map reads the pixels from `first` to `last`, both moving on by the stride from one position to the next
(Araujo, Norris and Sim, "Computing receptive fields of convolutional neural networks", Distill 2019). Behind an
up-sampling neighbours share what they read, so the law holds from period to period, and within a period by a table.
Positions outside the map, which padding adds, follow the same law: what is read there counts as if it were image.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from fractions import Fraction


@dataclass(frozen=True)
class Reading:
    """What one operation reads: position o of its output reads the positions `of(o)` of its input.

    The law repeats: `of(o + period)` is `of(o)`, each moved on by `advance`.
    """

    of: Callable[[int], Iterable[int]]
    period: int = 1
    advance: int = 1


@dataclass(frozen=True)
class Reach:
    """The pixels that each position reads: position i, of the first period, from `first[i]` to `last[i]`.

    Attributes:
        first: The first pixel, for each position of a period; negative in the padding.
        last: The last pixel, for each position of a period.
        advance: How many pixels a period is long.
        aligned: False where branches of differing strides meet. Their positions drift apart, so that no law holds:
            the table then is right for the positions of the map at the traced image size, and for them only.

    """

    first: tuple[int, ...] = (0,)
    last: tuple[int, ...] = (0,)
    advance: int = 1
    aligned: bool = True

    @property
    def size(self) -> int:
        """The largest number of pixels from the first to the last that one position reads."""
        return max(b - a + 1 for a, b in zip(self.first, self.last, strict=True))

    @property
    def stride(self) -> Fraction:
        """The pixels between neighbours, in the mean over a period."""
        return Fraction(self.advance, len(self.first))

    def at(self, position: int) -> tuple[int, int]:
        """Return the first and the last pixel that `position` reads."""
        turns, phase = divmod(position, len(self.first))
        return self.first[phase] + turns * self.advance, self.last[phase] + turns * self.advance

    def through(self, reading: Reading) -> Reach:
        """Return the reach of an operation's output whose input has this reach."""
        repeats = len(self.first) // math.gcd(len(self.first), reading.advance) if reading.advance else 1
        intervals = [_hull(self.at(i) for i in reading.of(o)) for o in range(reading.period * repeats)]
        return _reduced(intervals, int(self.stride * reading.advance * repeats), aligned=self.aligned)


def union(reaches: Sequence[Reach], positions: int) -> Reach:
    """Return what the positions of several maps, each of `positions`, read together: the hull of their intervals."""
    if len({reach.stride for reach in reaches}) == 1:
        period, aligned = math.lcm(*(len(reach.first) for reach in reaches)), all(r.aligned for r in reaches)
        advance = int(reaches[0].stride * period)
    else:
        period, aligned = positions, False
        advance = math.ceil(max(reach.stride for reach in reaches) * period)
    intervals = [_hull(reach.at(i) for reach in reaches) for i in range(period)]
    return _reduced(intervals, advance, aligned=aligned)


def _hull(intervals: Iterable[tuple[int, int]]) -> tuple[int, int]:
    firsts, lasts = zip(*intervals, strict=True)
    return min(firsts), max(lasts)


def _reduced(intervals: list[tuple[int, int]], advance: int, *, aligned: bool) -> Reach:
    """Return the reach with the shortest period that says the same."""
    n = len(intervals)
    for period in (p for p in range(1, n + 1) if n % p == 0 and advance % (n // p) == 0):
        step = advance // (n // period)
        repeated = [(a + step, b + step) for a, b in intervals[:n - period]]
        if repeated == intervals[period:]:
            firsts, lasts = zip(*intervals[:period], strict=True)
            return Reach(firsts, lasts, step, aligned)
    raise AssertionError("the whole is a period of itself")


def window(kernel: int, stride: int = 1, padding: int = 0, dilation: int = 1) -> Reading:
    """Return what a convolution or pooling reads; `padding` is that in front of the first position."""
    taps = range(0, dilation * (kernel - 1) + 1, dilation)
    return Reading(lambda o: (o * stride - padding + tap for tap in taps), 1, stride)


def pieces(before: int, after: int) -> Reading:
    """Return what adaptive pooling of `before` positions to `after` reads."""
    shared = math.gcd(before, after)
    return Reading(
        lambda o: range(o * before // after, -(-(o + 1) * before // after)), after // shared, before // shared)


def transposed(kernel: int, stride: int, padding: int, dilation: int) -> Reading | None:
    """Return what a transposed convolution reads; None where some of its positions read nothing."""
    taps = range(0, dilation * (kernel - 1) + 1, dilation)

    def of(o: int) -> list[int]:
        return [(o + padding - tap) // stride for tap in taps if (o + padding - tap) % stride == 0]

    return Reading(of, stride, 1) if all(of(o) for o in range(stride)) else None


def nearest(scale: Fraction, *, exact: bool = False) -> Reading:
    """Return what nearest-neighbour resizing reads; `scale` is input positions per output position."""
    half = Fraction(1, 2) if exact else Fraction(0)
    return Reading(lambda o: [math.floor((o + half) * scale)], scale.denominator, scale.numerator)


def interpolated(scale: Fraction, *, corners: bool = False, taps: int = 2) -> Reading:
    """Return what linear (2 taps) or cubic (4 taps) resizing reads.

    With `corners` the outermost positions coincide, else the outermost edges. At the border, where PyTorch reads the
    outermost position instead of one outside, the law goes on as if there were one.
    """
    def of(o: int) -> range | list[int]:
        place = o * scale if corners else (o + Fraction(1, 2)) * scale - Fraction(1, 2)
        low = math.floor(place)
        return [low] if place == low else range(low - taps // 2 + 1, low + taps // 2 + 1)

    return Reading(of, scale.denominator, scale.numerator)
