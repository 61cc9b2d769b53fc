"""The network drawn, one line per method with its modified units marked (as the paper's Figures 1 and 11)."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from typing import Any

from spaceless.charts import WIDTH, series_ink
from spaceless.findings import FreeK, Panel, free_ks
from spaceless.looks import Ink, Spec, chart, finish, layered
from spaceless.marks import Record
from spaceless.rows import Row

LINE = 46  # height of one network
_HALF = 0.4  # of a unit's box, in units
_FEW = 24  # units; the boxes of more are too narrow for a word
_WORDS = {"shuffle": "S", "gap_fc": "FC", "conv1x1": "1x1", "channel_shuffle": "CS", "strip": ""}
_KERNEL = re.compile(r"\b\d+x\d+\b")


def drawing_chart(panel: Panel, tolerance: float) -> Spec | None:
    """Return the specification of the drawing of `panel`, or None when it is not over K or no change is recorded.

    Each line runs from the input on the left to the output on the right, with the largest free K of its method filled.
    What a unit was is known only where some row of the panel modified it.
    """
    import altair as alt

    shown = free_ks(panel, tolerance) if panel.x == "k" else []
    count = next((r.units for r in panel.rows if r.units), None)
    if count is None or not any(r.changes for r in panel.rows) or not shown:
        return None
    ink = series_ink(panel, [f.series for f in shown], legend=False)
    was = _before(panel.rows)
    boxes = [box for free in shown for box in _boxes(free, count, was)]
    y: dict[str, Any] = {"y": alt.Y("label:N", title=None, sort=list(dict.fromkeys(b["label"] for b in boxes)),
                                    axis=alt.Axis(labelLimit=400, labelFontSize=12, labelPadding=10))}
    scale = alt.Scale(domain=[0.2, count + 0.8], nice=False)
    ticks = list(range(1, count + 1)) if count <= _FEW else [1, *range(10, count + 1, 10)]
    x = alt.X("from:Q", title="unit, from the input to the output", scale=scale,
              axis=alt.Axis(values=ticks, format="d", titlePadding=4, labelOverlap=True, labelSeparation=4))
    tips = [alt.Tooltip(f"{field}:N", title=title) for field, title in
            (("label", "network"), ("unit", "unit"), ("before", "it was"), ("after", "it is"))]
    wires = [{**box, "from": box["unit"] - 1 + (_HALF if box["unit"] > 1 else 0.2), "to": box["unit"] - _HALF}
             for box in boxes]
    wires += [{**box, "from": count + _HALF, "to": count + 0.8} for box in boxes if box["unit"] == count]
    layers: list[Any] = [chart(wires).mark_rule(color="currentColor", opacity=0.6).encode(x=x, x2=alt.X2("to:Q"), **y)]
    layers += _boxes_layers(boxes, x, y, ink, tips)
    pools = [{**box, "from": box["unit"] - 0.5} for box in boxes if box["pooled"]]
    if pools:
        bars = chart(pools).mark_tick(thickness=4, size=LINE - 8, opacity=1)
        layers.append(bars.encode(x=x, color=_colour(ink), **y))
    if count <= _FEW:
        words = [{**box, "from": box["unit"]} for box in boxes if box["word"]]
        texts = chart(words).mark_text(color="currentColor", fontSize=11).properties(name="words")  # see report.js
        layers.append(texts.encode(x=x, text=alt.Text("word:N"), **y))
    return finish(layered(*layers, width=WIDTH - 110, height=LINE * len(shown)),
                  40 + 7 * max(len(b["label"]) for b in boxes))


def _boxes_layers(boxes: Sequence[Record], x: Any, y: dict[str, Any], ink: Ink, tips: Sequence[Any]) -> list[Any]:
    import altair as alt

    end = alt.X2("to:Q")
    kinds: list[tuple[list[Record], dict[str, Any], dict[str, Any]]] = [
        ([b for b in boxes if not b["modified"]],
         {"fill": "transparent", "stroke": "currentColor", "strokeWidth": 1, "strokeOpacity": 0.7}, {}),
        ([b for b in boxes if b["modified"] and not b["gone"]], {"fillOpacity": 0.4, "strokeWidth": 2},
         {"fill": ink.fill, "stroke": ink.stroke}),
        ([b for b in boxes if b["gone"]], {"fill": "transparent", "strokeWidth": 1.5, "strokeDash": [3, 3]},
         {"stroke": ink.stroke}),
    ]
    place = {"x": x, "tooltip": tips, **y}
    return [chart(found).mark_bar(height=26, cornerRadius=3, **look).encode(x2=end, **place, **coloured)
            for found, look, coloured in kinds if found]


def _colour(ink: Ink) -> Any:
    import altair as alt

    scale = alt.Scale(domain=ink.names, range=[e.colour for e in ink.entries])
    return alt.Color("series:N", scale=scale, legend=None)


def _side(kernel: str) -> int:
    return int(kernel.split("x", maxsplit=1)[0])


def _before(rows: Iterable[Row]) -> dict[int, dict[str, str]]:
    """Return what every unit that some row modified consisted of: unit to path to module."""
    found: dict[int, dict[str, str]] = {}
    for row in rows:
        if row.trial.method in ("shuffle", "conv1x1", "channel_shuffle"):
            for change in row.changes:
                found.setdefault(change.unit, {}).setdefault(change.path, change.before)
    return found


def _boxes(free: FreeK, count: int, was: dict[int, dict[str, str]]) -> list[Record]:
    first, method = count - free.k + 1, free.row.trial.method
    found = []
    for unit in range(1, count + 1):
        changed = [c for c in free.row.changes if c.unit == unit]
        modified = unit >= first
        before = was.get(unit, {})
        kernel = max((size for text in before.values() for size in _KERNEL.findall(text)), key=_side, default="")
        found.append({
            "series": free.series, "label": f"{free.series}, K = {free.k}", "unit": unit,
            "from": unit - _HALF, "to": unit + _HALF, "modified": modified,
            "gone": modified and method == "strip",
            "pooled": method == "gap_fc" and unit == first,
            "word": _WORDS[method] if modified else kernel,
            "before": "; ".join([f"{c.path} {c.before}" for c in changed] or [f"{p} {b}" for p, b in before.items()]),
            "after": "; ".join(f"{c.path} {c.after}" for c in changed) if modified else "the same",
        })
    return found
