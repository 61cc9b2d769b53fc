"""One setting: networks that were trained alike but for how their units were changed, and what compares them.

Differences count when their 95 % interval (`spaceless.certainty`) lies on one side; no loss is a loss of at most
`TOLERANCE`, as in the paper's Table 1.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass

from spaceless.certainty import Interval, Spread, interval, pooled
from spaceless.findings import near_chance
from spaceless.numerals import listed
from spaceless.paper import experiments
from spaceless.rows import Row
from spaceless.trial import Downsample, Method, ShuffleOptions

TOLERANCE = 1.0  # percentage points below the baseline that count as no loss: the paper's (Table 1)
_LEAST_FREEDOM = 4  # of the spread over seeds: two networks with three seeds, or four with two
METHODS: tuple[Method, ...] = ("shuffle", "gap_fc", "conv1x1")  # section 3.1's


@dataclass(frozen=True)
class Setting:
    """Rows of one network and data set by one recipe; they differ in how units are changed and what a test shuffles.

    `augmented`: the same with augmentation, where this one has none and that one is known.
    """

    rows: tuple[Row, ...]
    augmented: Setting | None = None

    @property
    def base(self) -> Row | None:
        """The unchanged network, tested as it was trained."""
        return _by(self._usable("baseline", None), lambda row: row.trial.k).get(0)

    @property
    def spread(self) -> Spread | None:
        """The spread over seeds of all networks that are no blind guess, as one for all; None where few runs show it.

        Too few say little of a spread: with less freedom Student's quantile is wider than what it is taken for.
        """
        found = pooled(row for row in self.rows if row.shuffle_last is None and not near_chance(row, TOLERANCE))
        return found if found is not None and found.freedom >= _LEAST_FREEDOM else None

    def interval(self, row: Row, other: Row, comparisons: int = 1) -> Interval | None:
        """Return that of `spaceless.certainty`, with the spread over seeds of the whole setting.

        In a test that shuffles otherwise than the training, networks of one accuracy fall apart: those have their own.
        """
        usual = row.shuffle_last is None and other.shuffle_last is None
        return interval(row, other, comparisons, self.spread if usual else None)

    def curve(self, method: Method, *, downsample: Downsample = "avg") -> dict[int, Row]:
        """Return the rows of `method` by K, from 1 on, as trained and tested alike, nothing stripped."""
        return _by((row for row in self._usable(method, None) if row.trial.k and row.trial.only is None
                    and row.trial.downsample == downsample), lambda row: row.trial.k)

    def alone(self, method: Method) -> dict[int, Row]:
        """Return the rows in which a single unit is changed, by its number."""
        return _by((row for row in self._usable(method, None) if row.trial.only is not None),
                   lambda row: row.trial.only or 0)

    def stripped(self) -> dict[int, dict[int, Row]]:
        """Return the rows of `conv1x1` by K and by how many of the K changed units are removed, where some are."""
        found: dict[int, dict[int, Row]] = {}
        for strip in sorted({row.trial.strip for row in self.rows}):
            usable = (row for row in self._usable("conv1x1", None, strip)
                      if row.trial.only is None and row.trial.downsample == "avg")
            for k, row in _by(usable, lambda row: row.trial.k).items():
                found.setdefault(k, {})[strip] = row
        return {k: rows for k, rows in found.items() if len(rows) > 1 and 0 in rows}

    def tested(self, method: Method, k: int = 0) -> dict[int, Row]:
        """Return the rows of a network that was tested in another way than trained, by the last units shuffled."""
        schemes = sorted({row.shuffle_last for row in self.rows if row.shuffle_last is not None})
        return {scheme: found[k] for scheme in schemes if k in (found := _by(
            (row for row in self._usable(method, scheme) if row.trial.only is None), lambda row: row.trial.k))}

    def diverged(self, method: Method, *, downsample: Downsample = "avg") -> set[int]:
        """Return the K at which a training of `method` diverged, whatever its other seeds came to."""
        return {row.trial.k for row in self.rows if row.trial.method == method and row.diverged
                and row.trial.only is None and not row.trial.strip and row.trial.downsample == downsample
                and row.trial.shuffle == ShuffleOptions()}

    def _usable(self, method: Method, scheme: int | None, strip: int = 0) -> list[Row]:
        """Return the rows of `method` with an accuracy, of the paper's own shuffle, under one scheme of test."""
        return [row for row in self.rows if row.trial.method == method and row.top1 is not None and row.n
                and row.shuffle_last == scheme and row.trial.strip == strip and row.trial.shuffle == ShuffleOptions()]


def _by(rows: Iterable[Row], key: Callable[[Row], int]) -> dict[int, Row]:
    """Return the rows by `key`; of several the one with the most seeds, then with the most passes."""
    return {key(row): row for row in sorted(rows, key=lambda row: (row.n, row.passes))}


def largest_free(
    setting: Setting, method: Method, *, downsample: Downsample = "avg", sure: bool = False,
    among: Collection[int] | None = None,
) -> int | None:
    """Return the largest measured K up to which no K loses more than the tolerance; None without any K to judge.

    With `sure` it is judged by the lower end of the interval, else by the difference alone; one K after another up to
    the first that fails, which needs no wider intervals. Of all K only those in `among` are looked at. A training that
    diverged is a loss; one that a machine did not finish is none, its K was not measured.
    """
    base, curve = setting.base, setting.curve(method, downsample=downsample)
    diverged = setting.diverged(method, downsample=downsample)
    if base is None or not curve:
        return None
    largest = 0
    for k in sorted(k for k in curve.keys() | diverged if among is None or k in among):
        found = setting.interval(curve[k], base) if k in curve and k not in diverged else None
        if found is None or (found.low if sure else found.difference) < -TOLERANCE:
            break
        largest = k
    return largest


def paper_k(setting: Setting, method: Method) -> int | None:
    """Return the largest K that the paper calls free for this network, data set and method, trained as it was there."""
    trial = setting.rows[0].trial
    if trial.recipe.augment == "none" or all(row.trial.image_size is not None for row in setting.rows):
        return None
    found = [p.largest_k for each in experiments().values() for p in each.printed_all
             if p.largest_k is not None and (p.model, p.data, p.method) == (trial.model, trial.data, method)
             and p.downsample == "avg" and each.x != "only"]
    return max(found, default=None)


def sides(setting: Setting, pairs: Iterable[tuple[int, Row, Row]]) -> tuple[list[int], list[int], list[int]]:
    """Return the numbers at which the first row is better than the second, worse, and not to be told apart.

    The intervals are as much wider as is due to so many comparisons (Bonferroni).
    """
    listed_pairs = list(pairs)
    found = {k: compared for k, row, other in listed_pairs
             if (compared := setting.interval(row, other, len(listed_pairs))) is not None}
    better = [k for k, each in found.items() if each.low > 0]
    worse = [k for k, each in found.items() if each.high < 0]
    return better, worse, [k for k in found if k not in (*better, *worse)]


def where(better: Sequence[int], worse: Sequence[int], neither: Sequence[int]) -> str:
    """Return what `sides` found as words."""
    parts = [f"{word} at K = {listed(ks)}" for word, ks in (
        ("better", better), ("worse", worse), ("not to be told apart", neither)) if ks]
    return ", ".join(parts)
