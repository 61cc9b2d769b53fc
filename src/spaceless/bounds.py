"""The calibration drawn: measured accuracy over K above what geometry says of every method, one panel per data set."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from spaceless.charts import lines
from spaceless.findings import METHOD_NAMES
from spaceless.looks import Ink, Spec, arranged, chart, finish, layered, method_ink
from spaceless.marks import Record, numbered, record
from spaceless.rows import Row, Truth

CELL = 300  # of one panel; two stand side by side


def calibration_chart(rows: Sequence[Row], truth: Sequence[Truth]) -> Spec | None:
    """Return the specification of measured accuracy (percent) over K beside the truth, one panel per data set.

    Under each panel lies what geometry says of every method: a solid bar as far as K is learnable, a pale one from
    where accuracy is chance. A coloured rule in the panel marks the largest K that must be learnable.
    """
    ink = method_ink(t.method for t in truth)
    cells: list[Spec] = []
    for data in dict.fromkeys(t.data for t in truth):
        here = [r for r in rows if r.trial.data == data and r.shuffle_last is None and not r.trial.strip]
        claims = [t for t in truth if t.data == data]
        measured = [
            record(METHOD_NAMES.get(t.method, t.method), r.trial.k, r, 0.0)
            for t in claims for r in here if r.trial.method in ("baseline", t.method)
        ]
        if any(p["y"] is not None for p in measured):
            cells.append(_calibration_cell(data, numbered(measured), claims, ink))
    if not cells:
        return None
    return finish(arranged("concat", cells, columns=2, spacing=34), 110)


def _calibration_cell(
    data: str, measured: Sequence[Record], claims: Sequence[Truth], ink: Ink,
) -> Spec:
    import altair as alt

    last = max(p["x"] for p in measured)
    scale = alt.Scale(domain=[-0.3, last + 0.3], nice=False)
    x = alt.X("x:Q", title="K", scale=scale, axis=alt.Axis(values=list(range(last + 1)), format="d", titlePadding=2))
    bars: list[dict[str, Any]] = []
    rules: list[dict[str, Any]] = []
    for claim in claims:
        name, k, chance = METHOD_NAMES.get(claim.method, claim.method), claim.learnable_k, claim.chance_from_k
        end = min(k, last) + 0.3
        bars.append({"series": name, "says": f"learnable up to K = {k}", "x": -0.3, "x2": end, "o": 0.95})
        if chance is not None and chance <= last:
            bars.append({"series": name, "says": f"chance from K = {chance}", "x": chance - 0.3, "x2": last + 0.3,
                         "o": 0.35})
        if k < last:
            rules.append({"series": name, "x": k + 0.3, "of": [c.learnable_k for c in claims].count(k),
                          "nth": sum(r["x"] == k + 0.3 for r in rules)})
    level = [{"y": claims[0].chance, "text": "chance"}]
    top = layered(
        chart(level, ()).mark_rule(strokeDash=[5, 4], color="currentColor", opacity=0.7).encode(y=alt.Y("y:Q")),
        chart(level, ()).mark_text(align="left", baseline="top", dx=4, dy=4, fontSize=11, color="currentColor").encode(
            x=alt.value(0), y=alt.Y("y:Q"), text=alt.Text("text:N")),
        # methods that share a bound take turns along one rule
        *(chart([rule]).mark_rule(
            strokeWidth=2, opacity=0.9, strokeDash=[6, 6 * rule["of"] - 6], strokeDashOffset=-6 * rule["nth"],
        ).encode(x=x, stroke=ink.stroke) for rule in rules),
        *lines(measured, x, "top-1 accuracy (%)", ink, domain=(0, 100)),
        width=CELL, height=190, title=data,
    )
    truth = layered(chart(bars).mark_bar(height=9, strokeWidth=0).encode(
        x=alt.X("x:Q", title=None, scale=scale, axis=None), x2=alt.X2("x2:Q"), fill=ink.fill,
        y=alt.Y("series:N", title=None, sort=None, axis=alt.Axis(labelFontSize=11)),
        opacity=alt.Opacity("o:Q", legend=None, scale=None),
        tooltip=[alt.Tooltip("series:N", title="method"), alt.Tooltip("says:N", title="geometry says")],
    ), width=CELL, height=17 * len(claims))
    return arranged("vconcat", [top, truth], spacing=6)


