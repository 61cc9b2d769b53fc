"""Does the measured largest K agree with the one that geometry dictates? The calibration's verdict, cell by cell."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from spaceless.findings import standard_error, within
from spaceless.rows import Row, Truth

CHANCE_LIMIT = 3.0  # standard errors; how many accuracies lie within it is told
# What is farther away is not chance. One fair accuracy in 147,000 is, one calibration of 53 such cells in 2,800; at 3
# standard errors it would be one in 8. Cells of one data set share their images, and deviate together.
REFUTED = 4.5


@dataclass(frozen=True)
class ChanceCell:
    """A cell whose accuracy geometry says is exactly chance; `deviation` is in standard errors of a blind guess."""

    k: int
    top1: float
    chance: float
    deviation: float


@dataclass(frozen=True)
class Verdict:
    """Measured against true largest K for one data set and method; `agrees` is None while the numbers do not tell.

    `n` is the least number of runs of any K, `lacking` counts planned runs that have no accuracy.
    """

    data: str
    method: str
    n: int
    measured: int | None
    lower: int
    upper: int
    chance_cells: tuple[ChanceCell, ...]
    agrees: bool | None
    note: str = ""
    lacking: int = 0


def verdicts(rows: Sequence[Row], truth: Sequence[Truth], tolerance: float) -> list[Verdict]:
    """Compare the measured largest K of every calibration cell with what geometry says.

    The measured largest K is the largest K such that for all planned K' <= K no training diverged and the mean accuracy
    is at least the baseline's minus `tolerance` (percentage points). It agrees when it lies between the largest K that
    must be learnable and the last K before chance, both cut to the K that were planned, and no accuracy that must be
    chance is refuted. The baseline must have learnt its data to within the tolerance. A learnable K that is lost says
    whether the training images were learnt: where they were not, the training was too short, or failed.
    """
    return [_verdict(rows, true, tolerance) for true in truth]


def _verdict(rows: Sequence[Row], true: Truth, tolerance: float) -> Verdict:
    line = {r.trial.k: r for r in sorted(rows, key=lambda r: r.trial.k)
            if r.trial.data == true.data and r.shuffle_last is None
            and r.trial.method in (true.method, "baseline") and r.trial.only is None and not r.trial.strip}
    lower = max((k for k in line if k <= true.learnable_k), default=0)
    upper = max((k for k in line if true.chance_from_k is None or k < true.chance_from_k), default=0)
    cells = tuple(
        ChanceCell(k, row.top1, true.chance, (row.top1 - true.chance) / standard_error(true.chance, row.images))
        for k, row in line.items()
        if row.top1 is not None and true.chance_from_k is not None and k >= true.chance_from_k
    )
    measured, agrees, notes = _judged(line, tolerance, lower, upper)
    off = [cell.k for cell in cells if abs(cell.deviation) > REFUTED]
    if off:
        agrees = False
        notes.append(f"not at chance for K = {', '.join(map(str, off))}")
    lacking = sum(len(row.missing) + len(row.failed) + len(row.diverged) for row in line.values())
    runs = min((row.n for row in line.values() if row.n), default=0)
    return Verdict(true.data, true.method, runs, measured, lower, upper, cells, agrees, "; ".join(notes), lacking)


def _judged(
    line: Mapping[int, Row], tolerance: float, lower: int, upper: int,
) -> tuple[int | None, bool | None, list[str]]:
    """Return the measured largest K, whether it lies between the bounds (None: unknown), and what is to be noted."""
    base = line.get(0)
    if base is None or base.top1 is None:
        gone = base is not None and bool(base.diverged)
        return None, False if gone else None, [f"the baseline {'diverged' if gone else 'is missing'}"]
    if base.top1 < 100 - tolerance:  # K = 0 is learnable
        return None, False, [f"the baseline did not learn: {base.top1:.1f} %"]
    measured: int | None = None
    for k, row in line.items():
        if row.top1 is None and not row.diverged:
            return measured, None, [f"K = {k} is missing"]
        if not within(row, base.top1 - tolerance):
            if k <= lower:
                return measured, False, [_how_lost(row, base.top1 - tolerance)]
            break
        measured = k
    if measured is None or measured > upper:
        return measured, False, [f"no K above {upper} can be learnt"]
    unknown = [f"K = {k} {'diverged' if row.diverged else 'is missing'}" for k, row in line.items()
               if row.top1 is None and (k > upper or not row.diverged)]  # a network that diverged is not at chance
    return measured, None if unknown else True, unknown


def _how_lost(row: Row, least: float) -> str:
    """Return why a learnable K ended below `least` percent, as far as its trainings tell."""
    learnable = f"K = {row.trial.k} is learnable"
    if row.diverged:
        return f"{learnable} and diverged"
    if row.trained_least is None:
        return f"{learnable} and was lost"
    known = f"{row.trained_least:.1f} % on the training images"
    if row.n > 1:
        known += f" in the worst of {row.n} runs"
    if row.trained_least < least:
        return f"{learnable} and was not learnt: {known}"
    return f"{learnable} and was learnt, {known}, but not the test images"
