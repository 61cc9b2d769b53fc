"""One setting: networks that were trained alike but for how their units were changed, and what compares them.

Differences count when their 95 % interval (`spaceless.certainty`) lies on one side; no loss is a loss of at most
`TOLERANCE`, as in the paper's Table 1.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from spaceless.certainty import interval
from spaceless.numerals import listed
from spaceless.paper import experiments
from spaceless.rows import Row
from spaceless.trial import Downsample, Method, ShuffleOptions

TOLERANCE = 1.0  # percentage points
METHODS: tuple[Method, ...] = ("shuffle", "gap_fc", "conv1x1")  # section 3.1's


@dataclass(frozen=True)
class Setting:
    """Rows of one network and data set by one recipe; they differ in how units are changed and what a test shuffles."""

    rows: tuple[Row, ...]

    @property
    def base(self) -> Row | None:
        """The unchanged network, tested as it was trained."""
        return next((row for row in self._usable("baseline") if row.shuffle_last is None), None)

    def curve(self, method: Method, *, downsample: Downsample = "avg") -> dict[int, Row]:
        """Return the rows of `method` by K, from 1 on, as trained and tested alike, nothing stripped."""
        return {row.trial.k: row for row in self._usable(method)
                if row.trial.k and row.trial.only is None and not row.trial.strip and row.shuffle_last is None
                and row.trial.downsample == downsample and row.trial.shuffle == ShuffleOptions()}

    def alone(self, method: Method) -> dict[int, Row]:
        """Return the rows in which a single unit is changed, by its number."""
        return {row.trial.only: row for row in self._usable(method)
                if row.trial.only is not None and row.shuffle_last is None}

    def stripped(self) -> dict[int, dict[int, Row]]:
        """Return the rows of `conv1x1` by K and by how many of the K changed units are removed."""
        found: dict[int, dict[int, Row]] = {}
        for row in self._usable("conv1x1"):
            if row.trial.only is None and row.shuffle_last is None and row.trial.downsample == "avg":
                found.setdefault(row.trial.k, {})[row.trial.strip] = row
        return {k: rows for k, rows in found.items() if len(rows) > 1 and 0 in rows}

    def tested(self, method: Method, k: int = 0) -> dict[int, Row]:
        """Return the rows of a network that was tested in another way than trained, by the last units shuffled."""
        return {row.shuffle_last: row for row in self._usable(method)
                if row.trial.k == k and row.trial.only is None and row.shuffle_last is not None}

    def _usable(self, method: Method) -> list[Row]:
        return [row for row in self.rows if row.trial.method == method and row.top1 is not None and row.n]


def largest_free(setting: Setting, method: Method, *, downsample: Downsample = "avg", sure: bool = False) -> int | None:
    """Return the largest measured K up to which no K loses more than the tolerance; None without any K to judge.

    With `sure` it is judged by the lower end of the interval, else by the difference alone.
    """
    base, curve = setting.base, setting.curve(method, downsample=downsample)
    if base is None or not curve:
        return None
    largest = 0
    for k, row in sorted(curve.items()):
        found = interval(row, base)
        if found is None or (found.low if sure else found.difference) < -TOLERANCE:
            break
        largest = k
    return largest


def paper_k(setting: Setting, method: Method) -> int | None:
    """Return the largest K that the paper calls free for this network, data set and method."""
    trial = setting.rows[0].trial
    found = [p.largest_k for each in experiments().values() for p in each.printed_all
             if p.largest_k is not None and (p.model, p.data, p.method) == (trial.model, trial.data, method)
             and p.downsample == "avg" and each.x != "only"]
    return max(found, default=None)


def sides(pairs: Iterable[tuple[int, Row, Row]]) -> tuple[list[int], list[int], list[int]]:
    """Return the numbers at which the first row is surely better than the second, surely worse, and neither."""
    better: list[int] = []
    worse: list[int] = []
    neither: list[int] = []
    for k, row, other in pairs:
        found = interval(row, other)
        if found is not None:
            (better if found.low > 0 else worse if found.high < 0 else neither).append(k)
    return better, worse, neither


def where(better: Sequence[int], worse: Sequence[int], neither: Sequence[int]) -> str:
    """Return what `sides` found as words."""
    parts = [f"{word} at K = {listed(ks)}" for word, ks in (
        ("better", better), ("worse", worse), ("not to be told apart", neither)) if ks]
    return ", ".join(parts)
