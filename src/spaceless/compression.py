"""`Compression`: what a search for the largest K was asked, what it tried, what it chose; frozen, validated, JSON."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from spaceless.spec import Spec

Objective = Literal["params", "latency", "macs"]


class Tried(Spec):
    """One K that was trained: its accuracy on the images held out, and how that compares with the baseline's.

    `top1` is the mean over seeds in percent; `difference` (percentage points, this minus the baseline) has the interval
    `low` to `high`, each end by itself at the confidence of the search; None for trainings that diverged. `verdict`:
    `within` if `low` is no lower than minus the tolerance, `beyond` if `high` is, else `open`. `params` and `macs` are
    counts, `latency` the median over seeds in milliseconds. `ids` name the trials, seed by seed.
    """

    k: Annotated[int, Field(ge=0)]
    verdict: Literal["baseline", "within", "beyond", "open", "diverged"]
    top1: float | None = None
    difference: float | None = None
    low: float | None = None
    high: float | None = None
    params: int | None = None
    macs: int | None = None
    latency: float | None = None
    ids: tuple[str, ...] = ()


class Tested(Spec):
    """The one look at the test set: accuracies in percent of the baseline and of the chosen network, and the interval.

    The difference (percentage points, chosen minus baseline) has the interval `low` to `high`, as in `Tried`.
    """

    images: Annotated[int, Field(ge=1)]
    baseline: float
    chosen: float
    difference: float
    low: float
    high: float


class Compression(Spec):
    """A search for the largest K within `tolerance` percentage points of the baseline, and what came of it.

    `holdout` is the share of the training images that it was judged on, `images` their number. `units` is the
    number of units, `possible` the largest K that can be made (None: all of them) and `refused` why not a larger one,
    `budget` how many K's were to be tried at most, `spent` whether it ended the search early;
    `tried` is in the order of trying, the baseline first. `largest` is the largest accepted K, `chosen` the one with
    the smallest `objective` among the accepted ones and the unchanged network, 0; `alone` are larger ones within the
    tolerance that were not accepted. `warm` tells how networks with a warm start were trained, None from scratch;
    `head` are sentences on what the head of the networks still reads of positions, see `receptive.head_note`.
    """

    model: str
    data: str
    method: Literal["conv1x1", "gap_fc"]
    objective: Objective
    tolerance: Annotated[float, Field(ge=0)]
    confidence: Annotated[float, Field(ge=0.5, lt=1)]
    holdout: float
    images: int
    seeds: tuple[int, ...]
    units: int
    possible: int | None = None
    refused: str = ""
    budget: int
    spent: bool
    tried: tuple[Tried, ...]
    largest: int
    chosen: int
    alone: tuple[int, ...] = ()
    warm: str | None = None
    head: tuple[str, ...] = ()
    test: Tested | None = None

    def at(self, k: int) -> Tried:
        """Return what was found at `k`, which was tried."""
        return next(each for each in self.tried if each.k == k)
