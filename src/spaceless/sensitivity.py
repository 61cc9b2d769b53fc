"""`Sensitivity`: what a trained network loses where its units are shuffled in the test; frozen, validated, JSON."""

from __future__ import annotations

import statistics
from typing import Annotated, Self

from pydantic import Field, model_validator

from spaceless.errors import InputError
from spaceless.spec import Spec
from spaceless.trial import Percent

PROFILES = "profiles"  # the folder of these records within the folder of their trial
Passes = Annotated[tuple[Percent, ...], Field(min_length=1)]


class Curve(Spec):
    """Top-1 accuracy in percent, one value per pass over the same images with fresh permutations."""

    top1: Passes

    @property
    def mean(self) -> float:
        """The mean over the passes, in percent."""
        return statistics.fmean(self.top1)

    @property
    def spread(self) -> float | None:
        """The standard deviation over the passes, in percentage points; None for a single pass."""
        return statistics.stdev(self.top1) if len(self.top1) > 1 else None


class Shuffled(Spec):
    """One unit, and the accuracy with it shuffled alone and with it and all units behind it shuffled.

    `index` counts from 1 at the input; `k` counts the same unit from the last one on. `map` is height and width, in
    positions, of the map that is shuffled: the one that enters the unit's first spatial convolution.
    """

    index: Annotated[int, Field(ge=1)]
    k: Annotated[int, Field(ge=1)]
    name: str
    map: tuple[int, int]
    alone: Curve
    last: Curve


class Sensitivity(Spec):
    """The spatial sensitivity of a trained network, unit by unit from the input on (Figures 6 and 7, without training).

    `clean` is the top-1 accuracy in percent with nothing shuffled, on the same `images`; `left_out` are the paths of
    broken ones, which were not seen. Everything below them says of what and where it was measured.
    """

    clean: Percent
    images: Annotated[int, Field(ge=1)]
    repeats: Annotated[int, Field(ge=1)]
    units: Annotated[tuple[Shuffled, ...], Field(min_length=1)]
    left_out: tuple[str, ...] = ()
    weights_sha256: str | None = None
    precision: str | None = None
    versions: dict[str, str] = Field(default_factory=dict)
    hardware: str = ""
    threads: int | None = None
    processes: int = 1
    started: str = ""
    seconds: float | None = None

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        count = len(self.units)
        if [(u.index, u.k) for u in self.units] != [(i, count - i + 1) for i in range(1, count + 1)]:
            raise InputError(
                "units", found=", ".join(f"{u.index} (K={u.k})" for u in self.units),
                expected=f"1 to {count} from the input on, K = {count} to 1", cure="measure the profile again",
            )
        lengths = {len(curve.top1) for unit in self.units for curve in (unit.alone, unit.last)}
        if lengths != {self.repeats}:
            raise InputError(
                "passes", found=", ".join(map(str, sorted(lengths))), expected=f"{self.repeats} of every scheme",
                cure="measure the profile again",
            )
        return self
