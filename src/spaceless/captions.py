"""What stands below the figures and at the foot of a report: how to read them, and what they were measured with."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from datetime import UTC, datetime

from spaceless.findings import DASH, Panel, free_ks
from spaceless.numerals import PLUS_MINUS, duration, points
from spaceless.rows import Row
from spaceless.trial import Outcome


def accuracy_caption(panel: Panel, tolerance: float, ringed: bool) -> str:
    """Return how to read the chart of `panel`; `ringed` tells whether the largest free K are marked."""
    parts = [f"{panel.title}.", bands(panel.rows)]
    if panel.x == "receptive_field" or panel.baseline is not None:
        parts.append(f"The shaded strip lies within {points(tolerance)} of the baseline.")
    if panel.x == "receptive_field":
        parts.append("Dotted: where the receptive field is as large as the image.")
    if any(row.diverged for row in panel.rows):
        parts.append("Crossed: a training diverged, and the mark is the mean of the others.")
    if ringed:
        parts.append("Rings: the largest K of each method up to which none falls below the strip, and no training "
                     "diverged.")
    return " ".join(parts)


_LATENCY = ("the median time of a forward pass of one image in fp32, measured after training {where}; where several "
            "trials ran at a time it is noisy")


def latency_caption(panel: Panel) -> str:
    """Return where the latencies of `panel` come from, and how far they can be trusted."""
    machines = sorted({machine for row in panel.rows for machine in row.timed_on})
    where = f"on the machine that trained ({machines[0]})" if len(machines) == 1 else (
        f"on the machines that trained, whose times do not compare ({'; '.join(machines)})")
    return f"Latency: {_LATENCY.format(where=where)}."


def drawing_caption(panel: Panel, tolerance: float) -> str:
    """Return how to read the drawing of `panel`."""
    words = {"shuffle": "S: Shuffle Conv", "gap_fc": "FC: fully connected, behind a global pooling (the thick bar)",
             "conv1x1": "1x1: 1x1 Conv", "channel_shuffle": "CS: channel shuffle", "strip": "dashed: left out"}
    drawn = dict.fromkeys(f.row.trial.method for f in free_ks(panel, tolerance) if f.k)
    parts = [f"{panel.title}: each method at its largest K within {points(tolerance)}, from the input on the left to "
             "the output on the right; modified units are filled. The kernel of a unit that stays is told where some "
             "network here changed it."]
    if drawn:
        parts.append(f"{'; '.join(words[m] for m in drawn if m in words)}.")
    return " ".join(parts)


def beside_caption(shown: Sequence[Panel], tolerance: float) -> str:
    """Return how to read several networks side by side."""
    return (f"{len(shown)} networks and data sets side by side: what modifying the last units costs, each against its "
            f"own baseline; the strip lies within {points(tolerance)} of it. "
            + bands([r for p in shown for r in p.rows]))


def calibration_caption(shown: Sequence[Panel], tolerance: float) -> str:
    """Return how to read the calibration's chart."""
    return (
        "Bars: what geometry says, solid as far as K must be learnable, pale from where only chance is left; the rules "
        f"repeat the end of the solid bars. The measured largest K is the last before the accuracy falls more than "
        f"{points(tolerance)} below the baseline. {bands([r for p in shown for r in p.rows])}"
    )


def bands(shown: Sequence[Row]) -> str:
    """Return what a band means here, and how many runs stand behind a mark."""
    runs = sorted({r.n for r in shown if r.n})
    if max(runs, default=0) < 2:
        return "No band: one run each (n = 1)." if runs else "Nothing is measured yet (n = 0)."
    n = f"n = {runs[0]}" if len(runs) == 1 else f"n = {runs[0]} to {runs[-1]}"
    return f"Bands: mean {PLUS_MINUS} standard deviation over runs ({n})."


def facts(outcomes: Sequence[Outcome]) -> tuple[tuple[str, str], ...]:
    """Return what `outcomes` were measured with, when, and what they cost."""
    def counted(values: list[str]) -> str:
        found = Counter(v for v in values if v)
        lone = len(found) == 1
        return "; ".join(v if lone else f"{v} ({n} trials)" for v, n in found.most_common())

    started = sorted(o.started for o in outcomes if o.started)
    names = sorted({name for o in outcomes for name in o.versions})
    versions = [f"{name} {' / '.join(sorted({o.versions[name] for o in outcomes if name in o.versions}))}"
                for name in names]
    found = (
        ("Hardware", counted([o.hardware for o in outcomes])),
        ("Threads", counted([str(o.threads) for o in outcomes if o.threads is not None])),
        ("Precision", counted([o.precision or "" for o in outcomes])),
        ("Data", "; ".join(dict.fromkeys(f"{o.data.name} from {o.data.source}" for o in outcomes if o.data))),
        ("Versions", ", ".join(versions)),
        ("Trained", " to ".join(dict.fromkeys(_moment(s) for s in (started[0], started[-1]))) if started else ""),
        ("Cost", _cost(outcomes)),
        ("Latency", _LATENCY.format(where="on the same hardware") if any(o.latency for o in outcomes) else ""),
    )
    return tuple((name, text) for name, text in found if text)


def _moment(text: str) -> str:
    """Return a time such as 2026-11-22T23:20:20+00:00 as one reads it, or as it is if it is none."""
    try:
        return f"{datetime.fromisoformat(text).astimezone(UTC):%Y-%m-%d %H:%M} UTC"
    except (ValueError, OverflowError):
        return text


def _cost(outcomes: Sequence[Outcome]) -> str:
    seconds = [o.seconds for o in outcomes if o.seconds is not None]
    if not seconds:
        return ""
    each = [duration(s) for s in (min(seconds), max(seconds))]
    trials = "1 trial" if len(seconds) == 1 else f"{len(seconds)} trials, {f' {DASH} '.join(dict.fromkeys(each))} each"
    return f"{duration(sum(seconds))} of training and testing together: {trials}"
