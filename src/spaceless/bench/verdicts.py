"""What a measurement of speed promises and what it found: ratios of interleaved times, targets, and their table."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Target:
    """What a median must reach: at least `least`, or at most `most`; the moonshot is what it would be proud of."""

    least: float | None = None
    most: float | None = None
    moonshot: float | None = None

    def met(self, median: float) -> bool:
        """Tell whether `median` keeps the bound."""
        return (self.least is None or median >= self.least) and (self.most is None or median <= self.most)

    def to_json(self) -> dict[str, float]:
        """Return the bounds that there are."""
        return {name: value for name, value in vars(self).items() if value is not None}


def figure(of: str, values: Sequence[float], target: Target | None = None, unit: str = "") -> dict[str, Any]:
    """Return median and quartiles of `values`, one for each round, beside the target of the median.

    Args:
        of: What the values are, such as `plain / ours`.
        values: At least one; of a lone one the quartiles are itself.
        target: None where nothing is promised.
        unit: What follows the number; a ratio has none.

    """
    several = statistics.quantiles(values, n=4, method="inclusive") if len(values) > 1 else [values[0]] * 3
    lower, median, upper = (_rounded(value) for value in several)
    return {
        "of": of, "median": median, "lower": lower, "upper": upper, "rounds": len(values), "unit": unit,
        "target": target and target.to_json(), "met": target and target.met(median),
    }


def ratio(
    times: Mapping[str, Sequence[float]], above: str, below: str, target: Target | None = None, scale: float = 1.0,
) -> dict[str, Any]:
    """Return the `figure` of `above` / `below`, round by round, times `scale`.

    What slows the machine down for a while slows both halves of a round down, and cancels.
    """
    pairs = zip(times[above], times[below], strict=True)
    return figure(f"{above} / {below}", [scale * first / second for first, second in pairs], target)


def measurement(
    case: str, times: Mapping[str, Sequence[float]], figures: Sequence[dict[str, Any]], **facts: Any,
) -> dict[str, Any]:
    """Return what a record holds of one case: its facts, every raw time, and the figures that follow from them."""
    raw = {name: [_rounded(value) for value in values] for name, values in times.items()}
    return {"case": case} | facts | {"times": raw, "figures": list(figures)}


def _rounded(value: float) -> float:
    return float(f"{value:.6g}")


def line(found: Mapping[str, Any]) -> str:
    """Return one measurement as a line for who waits."""
    told = []
    for each in found["figures"]:
        verdict = _verdict(each)
        told.append(f"{each['of']} {_number(each['median'])}{each['unit']}" + (f" ({verdict})" if verdict else ""))
    return f"{found['case']}: {'; '.join(told)}"


def table(measurements: Iterable[Mapping[str, Any]]) -> list[str]:
    """Return the lines of a Markdown table, one row for each figure, with the target and whether it is met."""
    rows = ["| case | of | median | quartiles | rounds | target | |", "|---|---|---|---|---|---|---|"]
    rows += [
        f"| {found['case']} | {each['of']} | {_number(each['median'])}{each['unit']} | {_number(each['lower'])} to "
        f"{_number(each['upper'])} | {each['rounds']} | {_target(each['target'])} | {_verdict(each)} |"
        for found in measurements for each in found["figures"]
    ]
    return rows


def page(record: Mapping[str, Any], title: str, head: str, *parts: Sequence[str]) -> str:
    """Return a Markdown page: title, how the record was made, what it means, then tables with empty lines between."""
    lines = [f"# {title}", "", head, "", record["what"]]
    for part in parts:
        lines += ["", *part]
    return "\n".join(lines) + "\n"


def _verdict(found: Mapping[str, Any]) -> str:
    return "" if found["met"] is None else "met" if found["met"] else "not met"


def _target(target: Mapping[str, float] | None) -> str:
    if target is None:
        return "–"
    bounds = [f"{word} {target[key]:g}" for key, word in (("least", "at least"), ("most", "at most")) if key in target]
    return " and ".join(bounds) + (f" [{target['moonshot']:g}]" if "moonshot" in target else "")


def _number(value: float) -> str:
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"
