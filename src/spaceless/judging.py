"""How a K is judged: its outcomes against the baseline's on the same images, and the choice among those that pass."""

from __future__ import annotations

import statistics
from collections.abc import Sequence

from spaceless.compression import Objective, Tried
from spaceless.errors import SpacelessError
from spaceless.findings import at_least, least_top1
from spaceless.paired import Paired, Right, paired_interval, unpacked
from spaceless.trial import Evaluation, Outcome, Trial


def held_out_images(outcome: Outcome) -> int:
    """Return on how many held-out images the network of `outcome` was evaluated."""
    return outcome.data.test_images if outcome.data is not None else 0


def baseline(outcomes: Sequence[Outcome], tolerance: float) -> Tried:
    """Return what was found at K = 0.

    Raises:
        SpacelessError: One of the baselines is so near to chance that within `tolerance` points every K is as good.

    """
    for outcome in outcomes:
        limit = least_top1(outcome.data.classes if outcome.data is not None else 2, held_out_images(outcome), tolerance)
        if outcome.top1 is None or outcome.top1 <= limit:
            reached = outcome.status if outcome.top1 is None else f"{outcome.top1:.1f} % on the images held out"
            raise SpacelessError(
                f"baseline {outcome.trial.label}", found=reached,
                expected=f"more than {limit:.1f} %, clearly above chance: else every K is as good",
                cure="train it longer, with another recipe or on more images")
    return _tried(0, "baseline", outcomes)


def _tried(k: int, verdict: str, outcomes: Sequence[Outcome], interval: Paired | None = None) -> Tried:
    accuracies = [outcome.top1 for outcome in outcomes if outcome.top1 is not None]
    times = [outcome.latency.median for outcome in outcomes if outcome.latency is not None]
    return Tried(
        k=k, verdict=verdict, top1=statistics.fmean(accuracies) if accuracies else None,  # type: ignore[arg-type]
        difference=None if interval is None else interval.difference,
        low=None if interval is None else interval.low, high=None if interval is None else interval.high,
        params=outcomes[0].params, macs=outcomes[0].macs,
        latency=1000 * statistics.median(times) if times else None, ids=tuple(o.trial.id for o in outcomes),
    )


def judged(
    k: int, outcomes: Sequence[Outcome], base: Sequence[Outcome], tolerance: float, confidence: float,
) -> Tried:
    """Return what was found at K: `outcomes` against those of the baseline, seed by seed, see `Tried`."""
    if any(outcome.status == "diverged" for outcome in outcomes):
        return _tried(k, "diverged", outcomes)
    interval = paired_interval([right_images(o.evaluations[0], o.trial) for o in base],
                               [right_images(o.evaluations[0], o.trial) for o in outcomes], confidence)
    verdict = "within" if at_least(interval.low, -tolerance) else (
        "open" if at_least(interval.high, -tolerance) else "beyond")
    return _tried(k, verdict, outcomes, interval)


def right_images(evaluation: Evaluation, trial: Trial) -> Right:
    """Return for each image whether the network of `trial` was right, or raise SpacelessError where that is unknown."""
    if evaluation.right is None:
        raise SpacelessError(
            trial.label, found="an outcome without the answers to single images", expected="one with them",
            cure="remove this trial's folder and run the same command again")
    return unpacked(evaluation.right, evaluation.images + len(evaluation.left_out))


def best(accepted: Sequence[Tried], objective: Objective) -> int:
    """Return the K with the smallest objective, the unchanged network's 0 among them; of equal ones the largest K."""
    if len(accepted) == 1:
        return accepted[0].k
    costs = {each.k: getattr(each, objective) for each in accepted}
    if missing := [k for k, cost in costs.items() if cost is None]:
        raise SpacelessError(
            f"--objective {objective}", found=f"no {objective} of K = {', '.join(map(str, missing))}",
            expected="one of each network that is accepted", cure="choose --objective params or macs")
    return min(costs, key=lambda k: (costs[k], -k))
