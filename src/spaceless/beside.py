"""Several networks side by side: accuracy lost over the share of modified units, one panel per network and data set."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from spaceless.charts import lines
from spaceless.findings import Panel, near_chance, panel_titles
from spaceless.looks import METHOD_LOOKS, Ink, Spec, arranged, chart, finish, layered
from spaceless.marks import Record, numbered, points
from spaceless.rows import Row
from spaceless.trial import ShuffleOptions

CELL, HEIGHT, COLUMNS = 295, 170, 2


def comparable(panels: Sequence[Panel], tolerance: float) -> list[Panel]:
    """Return the panels over K from whose loss something follows, all about one network and protocol as one.

    Its rows are those of the methods as the paper has them, where it has any; its variants are told of in the studies.
    Titles tell the panels apart.
    """
    rows: dict[str, dict[tuple[str, int | None], Row]] = {}
    for panel in panels:
        base = panel.baseline
        measured = base is not None and base.top1 is not None and base.units and _modified(panel)
        if base is not None and measured and panel.x == "k" and not near_chance(base, tolerance):
            known = rows.setdefault(base.trial.id, {})
            for row in panel.rows:
                key = row.trial.id, row.shuffle_last
                if key not in known or known[key].n < row.n:
                    known[key] = row
    found = [Panel("", "k", tuple(_usual(list(each.values())))) for each in rows.values()]
    titles = panel_titles([p.rows[0] for p in found])
    named = zip(found, titles, strict=True)
    return [replace(p, title=f"{t}, {p.rows[0].image_size} pixels" if titles.count(t) > 1 else t) for p, t in named]


def _usual(rows: Sequence[Row]) -> list[Row]:
    """Return those of `rows` whose method is the paper's own, or all where only variants of it were measured."""
    usual = [row for row in rows if row.trial.downsample == "avg" and row.trial.shuffle == ShuffleOptions()]
    return usual if any(row.trial.method != "baseline" and row.top1 is not None for row in usual) else list(rows)


def _modified(panel: Panel) -> list[Row]:
    return [r for r in panel.rows if r.trial.method != "baseline" and r.top1 is not None]


def _loss(panel: Panel) -> list[Record]:
    """Return the points of `panel` counted from its baseline."""
    base = panel.baseline
    zero = base.top1 if base is not None and base.top1 is not None else 0.0
    return [{**p, **{key: None if p[key] is None else p[key] - zero for key in ("y", "lo", "hi")}}
            for p in numbered(points(panel)) if p["share"] is not None]


def _title(panel: Panel) -> dict[str, Any]:
    name, _, traits = panel.title.partition(", ")
    return {"text": name, "subtitle": traits, "fontSize": 13, "limit": CELL, "subtitleFontSize": 11,
            "subtitleColor": "currentColor", "subtitlePadding": 3}


def beside_chart(panels: Sequence[Panel], tolerance: float) -> Spec | None:
    """Return the specification of `panels` (see `comparable`) side by side, or None where there are fewer than two.

    Each shows top-1 minus its own baseline in percentage points, on one vertical axis, over the share of its units.
    """
    import altair as alt

    if len(panels) < 2:
        return None
    looks: dict[str, int] = {}
    for panel in panels:
        for row in _modified(panel):
            looks.setdefault(panel.series(row), METHOD_LOOKS[row.trial.method])
    alike = len(set(looks.values())) < len(looks)  # options of one method: told apart by their order
    ink = Ink(list(looks), list(range(len(looks))) if alike else list(looks.values()))
    x = alt.X("share:Q", title="modified share of the units (%)", scale=alt.Scale(domain=[-3, 103], nice=False),
              axis=alt.Axis(values=[0, 25, 50, 75, 100], titlePadding=4))
    losses = [(p, _loss(p)) for p in panels]
    ends = [end for _, found in losses for p in found for end in (p["lo"], p["y"], p["hi"]) if end is not None]
    low, high = math.floor(min(ends)), math.ceil(max(ends))
    cells: list[Spec] = []
    for panel, found in losses:
        level = [{"y": 0.0, "y2": -tolerance}]
        cells.append(layered(
            chart(level, ()).mark_rect(color="currentColor", opacity=0.1).encode(y=alt.Y("y:Q"), y2=alt.Y2("y2:Q")),
            chart(level, ()).mark_rule(strokeDash=[5, 4], color="currentColor", opacity=0.7).encode(y=alt.Y("y:Q")),
            *lines(found, x, "top-1 minus baseline (points)", ink, (low, high)),
            width=CELL, height=HEIGHT, title=_title(panel),
        ))
    return finish(arranged("concat", cells, columns=COLUMNS, spacing=26), 80)
