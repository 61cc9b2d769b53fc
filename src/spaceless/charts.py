"""Rows drawn: one Vega-Lite specification per panel, readable on light and dark ground, and the same as SVG."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

from spaceless.findings import METHOD_NAMES, Panel
from spaceless.marks import Record, numbered, points, printed_points, record
from spaceless.rows import Row, Truth

if TYPE_CHECKING:
    import altair as alt

Spec = dict[str, Any]

# Okabe & Ito 2008, "Color universal design": told apart with every kind of colour vision. Black and yellow are left
# out, since one of them vanishes on dark and the other on light ground.
PALETTE = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
SHAPES = ("circle", "square", "triangle-up", "triangle-down", "triangle-right", "triangle-left")
_METHOD_LOOKS = {"shuffle": 0, "gap_fc": 1, "conv1x1": 2, "channel_shuffle": 3, "strip": 4}
WIDTH, HEIGHT = 690, 330  # of the plot itself; with the axis the picture is about 760 wide
CELL = 300  # of one calibration panel; two stand side by side
PAPER_MARK = "printed in the paper"

_X_TITLES = {
    "k": "K: modified units, counted from the last one",
    "only": "the one modified unit (the last one on the left)",
    "kept": "modified units that are left",
    "receptive_field": "receptive field of the last map (pixels)",
    "shuffled": "K: shuffled units, counted from the last one",
}


def panel_chart(panel: Panel, tolerance: float | None = None) -> Spec | None:
    """Return the Vega-Lite specification of a panel, or None when no accuracy in it was measured.

    Shows the accuracy in percent (over the receptive field: its difference to the baseline in percentage points),
    a band of mean +- standard deviation over runs only where there are several, the baseline as a rule with
    `tolerance` percentage points below it, the paper's printed values as hollow diamonds; over K also the parameters.
    """
    import altair as alt

    measured = numbered(points(panel))
    if not any(p["y"] is not None for p in measured):
        return None
    names = list(dict.fromkeys(p["series"] for p in measured))
    relative = panel.x == "receptive_field"
    y_title = "top-1 minus baseline (points)" if relative else "top-1 accuracy (%)"
    printed = [] if relative else printed_points(panel)
    ink = _Ink(names, _indices(panel, names), bool(printed))
    sized = [p for p in measured if p["params"] is not None]
    with_sizes = panel.x == "k" and len({p["params"] for p in sized}) > 1
    x = _x_axis(panel, measured, titled=not with_sizes)
    lines = _lines(measured, x, y_title, ink)
    lines[-1] = lines[-1].add_params(ink.shown)
    layers = [*_reference(panel, tolerance), *lines, *_printed_marks(printed, x, y_title, ink)]
    main = alt.layer(*layers).properties(width=WIDTH, height=HEIGHT)
    if not with_sizes:
        return _finish(main)
    sizes = _sizes(sized, _x_axis(panel, measured), ink)
    return _finish(alt.vconcat(main, sizes, spacing=14).resolve_scale(fill="shared", stroke="shared", shape="shared"))


class _Ink:
    """How series are told apart: fill, stroke and shape, in one legend that shows a single line when clicked."""

    def __init__(self, names: Sequence[str], indices: Sequence[int], printed: bool) -> None:
        import altair as alt

        colours = [PALETTE[i % len(PALETTE)] for i in indices]
        mark = [PAPER_MARK] if printed else []
        domain = [*names, *mark]
        self.names = list(names)
        shapes = [*(SHAPES[i % len(SHAPES)] for i in indices), *("diamond" for _ in mark)]
        fills, strokes = [*colours, *("transparent" for _ in mark)], [*colours, *("currentColor" for _ in mark)]
        self.fill = alt.Fill("series:N", title=None, scale=alt.Scale(domain=domain, range=fills))
        self.stroke = alt.Stroke("series:N", title=None, scale=alt.Scale(domain=domain, range=strokes))
        self.shape = alt.Shape("series:N", title=None, scale=alt.Scale(domain=domain, range=shapes))
        self.shown = alt.selection_point(name="shown", fields=["series"], bind="legend")

    def opacity(self, value: float) -> Any:
        """Return `value` for the lines that the legend shows, next to nothing for the others."""
        import altair as alt

        return alt.condition(self.shown, alt.value(value), alt.value(0.05))


def _x_axis(panel: Panel, measured: Sequence[Record], titled: bool = True) -> alt.X:
    import altair as alt

    values = sorted({p["x"] for p in measured})
    axis = alt.Axis(format="d", tickMinStep=1, values=values if len(values) <= 20 else alt.Undefined)
    scale = alt.Scale(nice=False, zero=False, reverse=panel.x == "only", padding=14)
    return alt.X("x:Q", title=_X_TITLES[panel.x] if titled else None, axis=axis, scale=scale)


def _indices(panel: Panel, names: Sequence[str]) -> list[int]:
    methods = {panel.series(r): r.trial.method for r in panel.rows}
    by_method = all(n in methods for n in names) and len({methods[n] for n in names}) == len(names)
    return [_METHOD_LOOKS[methods[n]] for n in names] if by_method else list(range(len(names)))


_TOOLTIP = (("series", "line"), ("x", "x"), ("accuracy", "top-1"), ("n", "runs (n)"), ("printed", "paper"),
            ("size", "parameters"), ("macs", "multiply-adds"))


def _lines(
    measured: Sequence[Record], x: alt.X, y_title: str, ink: _Ink, domain: tuple[float, float] | None = None,
) -> list[alt.Chart]:
    import altair as alt

    y_scale = alt.Scale(domain=list(domain)) if domain else alt.Scale(zero=False, nice=True)
    y = alt.Y("y:Q", title=y_title, scale=y_scale, axis=alt.Axis(tickCount=7))
    low = alt.Y("lo:Q", title=y_title, scale=y_scale)
    drawn = [p for p in measured if p["y"] is not None]
    banded = [p for p in measured if p["lo"] is not None]
    lone = [p for p in banded if sum(q["band"] == p["band"] for q in banded) == 1]
    tooltip = [alt.Tooltip(f"{field}:N", title=title) for field, title in _TOOLTIP]
    layers = []
    if banded:
        layers.append(_chart(banded).mark_area().encode(
            x=x, y=low, y2="hi:Q", fill=ink.fill, detail="band:N", opacity=ink.opacity(0.18)))
    if lone:
        layers.append(_chart(lone).mark_rule(strokeWidth=5).encode(
            x=x, y=low, y2="hi:Q", stroke=ink.stroke, opacity=ink.opacity(0.25)))
    layers.append(_chart(drawn).mark_line(strokeWidth=2).encode(
        x=x, y=y, stroke=ink.stroke, detail="line:N", opacity=ink.opacity(1)))
    layers.append(_chart(drawn).mark_point(size=48, strokeWidth=1).encode(
        x=x, y=y, fill=ink.fill, stroke=ink.stroke, shape=ink.shape, opacity=ink.opacity(1), tooltip=tooltip))
    return layers


def _reference(panel: Panel, tolerance: float | None) -> list[alt.Chart]:
    import altair as alt

    base = panel.baseline
    if base is None or base.top1 is None or panel.x == "receptive_field":
        return []
    level = [{"y": base.top1, "y2": base.top1 - (tolerance or 0), "text": f"baseline {base.top1:.1f} %"}]
    y = alt.Y("y:Q")
    layers = []
    if tolerance:
        layers.append(_chart(level).mark_rect(color="currentColor", opacity=0.07).encode(y=y, y2="y2:Q"))
    layers.append(_chart(level).mark_rule(strokeDash=[5, 4], color="currentColor", opacity=0.7).encode(y=y))
    layers.append(_chart(level).mark_text(
        align="right", baseline="bottom", dx=-4, dy=-4, fontSize=12, color="currentColor",
    ).encode(x=alt.value("width"), y=y, text="text:N"))
    return layers


def _printed_marks(printed: Sequence[Record], x: alt.X, y_title: str, ink: _Ink) -> list[alt.Chart]:
    import altair as alt

    tooltip = [alt.Tooltip(f"{field}:N", title=title) for field, title in
               (("series", "line"), ("accuracy", "paper's top-1"), ("source", "printed in"))]
    layers = []
    for base in (True, False):
        if found := [p for p in printed if p["base"] is base]:
            stroke = {"stroke": alt.value("currentColor")} if base else {"stroke": ink.stroke}
            marks = _chart(found).mark_point(shape="diamond", fill="transparent", size=150, strokeWidth=1.8, opacity=1)
            layers.append(marks.encode(x=x, y=alt.Y("y:Q", title=y_title), tooltip=tooltip, **stroke))
    return layers


def _sizes(sized: Sequence[Record], x: alt.X, ink: _Ink) -> Any:
    import altair as alt

    y = alt.Y("params:Q", title="parameters (M)", scale=alt.Scale(zero=True), axis=alt.Axis(tickCount=4))
    tooltip = [alt.Tooltip(f"{field}:N", title=title) for field, title in _TOOLTIP]
    line = _chart(sized).mark_line(strokeWidth=1.5).encode(x=x, y=y, stroke=ink.stroke, opacity=ink.opacity(1))
    dots = _chart(sized).mark_point(size=28, strokeWidth=1).encode(
        x=x, y=y, fill=ink.fill, stroke=ink.stroke, shape=ink.shape, opacity=ink.opacity(1), tooltip=tooltip)
    return alt.layer(line, dots).properties(width=WIDTH, height=120)


def _chart(values: Iterable[Record]) -> alt.Chart:
    import altair as alt

    return alt.Chart(alt.InlineData(values=json.dumps(list(values))))  # text is not copied at every step, see _finish


def _finish(chart: Any) -> Spec:
    """Return the specification in the page's own ink (`currentColor`), so that one picture fits light and dark."""
    ink = {"labelColor": "currentColor", "titleColor": "currentColor"}
    styled = (
        chart.configure(background="transparent", padding=8, font="system-ui, sans-serif")
        .configure_view(stroke=None)
        .configure_axis(**ink, labelFontSize=12, titleFontSize=12.5, titleFontWeight=500, titlePadding=10,
                        gridColor="currentColor", gridOpacity=0.12, domain=False, ticks=False, labelPadding=6)
        .configure_axisX(grid=False, domain=True, domainColor="currentColor", domainOpacity=0.4)
        .configure_legend(**ink, orient="top", direction="horizontal", labelFontSize=13, symbolSize=90, offset=14,
                          symbolStrokeWidth=1.8, symbolOpacity=1, columnPadding=18, labelLimit=300)
        .configure_title(color="currentColor", fontSize=14, fontWeight=600, anchor="start", offset=10)
    )
    spec: Spec = styled.to_dict(validate=False)
    spec.pop("$schema", None)
    spec["datasets"] = {name: json.loads(values) for name, values in spec["datasets"].items()}
    return spec


def calibration_chart(rows: Sequence[Row], truth: Sequence[Truth]) -> Spec | None:
    """Return the specification of measured accuracy (percent) over K beside the truth, one panel per data set.

    Under each panel lies what geometry says of every method: a solid bar as far as K is learnable, a pale one from
    where accuracy is chance. A coloured rule in the panel marks the largest K that must be learnable.
    """
    import altair as alt

    methods = list(dict.fromkeys(t.method for t in truth))
    names = [METHOD_NAMES.get(m, m) for m in methods]
    ink = _Ink(names, [_METHOD_LOOKS.get(m, 5) for m in methods], printed=False)
    cells: list[Any] = []
    for data in dict.fromkeys(t.data for t in truth):
        here = [r for r in rows if r.trial.data == data and r.shuffle_last is None and not r.trial.strip]
        claims = [t for t in truth if t.data == data]
        measured = [
            record(METHOD_NAMES.get(t.method, t.method), r.trial.k, r, 0.0)
            for t in claims for r in here if r.trial.method in ("baseline", t.method)
        ]
        if any(p["y"] is not None for p in measured):
            cells.append(_calibration_cell(data, numbered(measured), claims, ink, first=not cells))
    if not cells:
        return None
    chart = alt.concat(*cells, columns=2, spacing=34)
    return _finish(chart.resolve_scale(fill="shared", stroke="shared", shape="shared"))


def _calibration_cell(
    data: str, measured: Sequence[Record], claims: Sequence[Truth], ink: _Ink, first: bool,
) -> Any:
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
    lines = _lines(measured, x, "top-1 accuracy (%)", ink, domain=(0, 100))
    if first:
        lines[-1] = lines[-1].add_params(ink.shown)
    top = alt.layer(
        _chart(level).mark_rule(strokeDash=[5, 4], color="currentColor", opacity=0.7).encode(y="y:Q"),
        _chart(level).mark_text(align="left", baseline="top", dx=4, dy=4, fontSize=11, color="currentColor").encode(
            x=alt.value(0), y="y:Q", text="text:N"),
        # methods that share a bound take turns along one rule
        *(_chart([rule]).mark_rule(strokeWidth=2, strokeDash=[6, 6 * rule["of"] - 6], strokeDashOffset=-6 * rule["nth"])
          .encode(x=x, stroke=ink.stroke, opacity=ink.opacity(0.9)) for rule in rules),
        *lines,
    ).properties(width=CELL, height=190, title=data)
    truth = _chart(bars).mark_bar(height=9, strokeWidth=0).encode(
        x=alt.X("x:Q", title=None, scale=scale, axis=None), x2="x2:Q", fill=ink.fill,
        y=alt.Y("series:N", title=None, sort=ink.names, axis=alt.Axis(labelFontSize=11)),
        opacity=alt.Opacity("o:Q", legend=None, scale=None),
        tooltip=[alt.Tooltip("series:N", title="method"), alt.Tooltip("says:N", title="geometry says")],
    ).properties(width=CELL, height=17 * len(claims))
    return alt.vconcat(top, truth, spacing=6)


def svg(spec: Spec) -> str:
    """Return the picture of `spec` as one SVG element that refers to nothing outside itself."""
    import vl_convert

    return str(vl_convert.vegalite_to_svg(spec, allowed_base_urls=[]))
