"""Accuracy drawn: one Vega-Lite specification per panel, readable on light and dark ground."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from spaceless.axes import K_PLACE
from spaceless.findings import Panel, free_ks
from spaceless.looks import METHOD_LOOKS, PAPER_MARK, Ink, Spec, arranged, chart, finish, layered
from spaceless.marks import Record, numbered, points, printed_points, record, size_name

if TYPE_CHECKING:
    import altair as alt

_BESIDE = 140  # left and right of the plot: the axis and the baseline's name
WIDTH, HEIGHT = 620, 330  # of the plot itself; with the axis and the baseline's name the picture is about 760 wide

_X_TITLES = {
    "k": K_PLACE.title,
    "only": "the one modified unit (the last one on the left)",
    "kept": "modified units that are left",
    "receptive_field": "receptive field of the last map (pixels)",
    "shuffled": "K: shuffled units, counted from the last one",
}
_CROSS = "M-1,-1L1,1M-1,1L1,-1"
# A click on the paper's own name in the legend hides its marks, one on a method hides that method's with it.
_PRINTED_NAMES = ("datum.series", f"'{PAPER_MARK}'")


def panel_chart(panel: Panel, tolerance: float | None = None) -> Spec | None:
    """Return the Vega-Lite specification of a panel, or None when no accuracy in it was measured.

    Shows the accuracy in percent (over the receptive field: its difference to the baseline in percentage points, and
    where the field is as large as the image), a band of mean +- standard deviation over runs only where there are
    several, the baseline as a rule with `tolerance` percentage points below it, a ring around the largest free K of
    each line, the paper's printed values as hollow diamonds; over K also the parameters.
    """
    measured = numbered(points(panel))
    if not any(p["y"] is not None for p in measured):
        return None
    names = list(dict.fromkeys(p["series"] for p in measured))
    relative = panel.x == "receptive_field"
    y_title = "top-1 minus baseline (points)" if relative else "top-1 accuracy (%)"
    printed = [] if relative else printed_points(panel)
    ink = series_ink(panel, names, bool(printed))
    sized = [p for p in measured if p["params"] is not None]
    with_sizes = panel.x == "k" and len({p["params"] for p in sized}) > 1
    x = _x_axis(panel, measured, titled=not with_sizes)
    layers = [*_reference(panel, tolerance), *_image_sizes(panel, names, x, ink), *lines(measured, x, y_title, ink),
              *_rings(panel, tolerance, x, ink), *_printed_marks(printed, x, y_title, ink)]
    main = layered(*layers, width=WIDTH, height=HEIGHT)
    if not with_sizes:
        return finish(main, _BESIDE)
    sizes = _sizes(sized, _x_axis(panel, measured), ink)
    return finish(arranged("vconcat", [main, sizes], spacing=14), _BESIDE)


def _x_axis(panel: Panel, measured: Sequence[Record], titled: bool = True) -> alt.X:
    import altair as alt

    values = sorted({p["x"] for p in measured}) if panel.x != "receptive_field" else []
    axis = alt.Axis(format="d", tickMinStep=1, values=values if 0 < len(values) <= 20 else alt.Undefined)
    scale = alt.Scale(nice=False, zero=False, reverse=panel.x == "only", padding=14)
    return alt.X("x:Q", title=_X_TITLES[panel.x] if titled else None, axis=axis, scale=scale)


def series_ink(panel: Panel, names: Sequence[str], printed: bool = False, legend: bool = True) -> Ink:
    """Return the ink of the lines `names` of `panel`: a method looks alike everywhere, where each has one line only."""
    methods = {panel.series(r): r.trial.method for r in panel.rows}
    by_method = all(n in methods for n in names) and len({methods[n] for n in names}) == len(names)
    return Ink(names, [METHOD_LOOKS[methods[n]] for n in names] if by_method else list(range(len(names))), printed,
               legend=legend)


_TOOLTIP = (("trial", "trial"), ("accuracy", "top-1"), ("runs", "runs"), ("printed", "paper"),
            ("size", "parameters"), ("work", "multiply-adds"), ("time", "latency"),
            ("folders", "folder"))


def tooltip() -> list[alt.Tooltip]:
    """Return what pointing at a measured mark shows: the trial and its numbers, those that there are (report.js)."""
    import altair as alt

    return [alt.Tooltip(f"{field}:N", title=title) for field, title in _TOOLTIP]


def lines(
    measured: Sequence[Record], x: alt.X, y_title: str, ink: Ink, domain: tuple[float, float] | None = None,
) -> list[alt.Chart]:
    """Return the layers of bands, lines and marks of numbered records; `domain` fixes the vertical axis."""
    import altair as alt

    y_scale = alt.Scale(domain=list(domain)) if domain else alt.Scale(zero=False, nice=True)
    y = alt.Y("y:Q", title=y_title, scale=y_scale, axis=alt.Axis(tickCount=7))
    low = alt.Y("lo:Q", title=y_title, scale=y_scale)
    drawn = _rimmed([p for p in measured if p["y"] is not None], "y", 48)
    banded = [p for p in measured if p["lo"] is not None]
    lone = [p for p in banded if sum(q["band"] == p["band"] for q in banded) == 1]
    area = alt.Size("area:Q", scale=None, legend=None)
    layers = []
    if banded:
        layers.append(chart(banded).mark_area(opacity=0.18).encode(
            x=x, y=low, y2=alt.Y2("hi:Q"), fill=ink.fill, detail=alt.Detail("band:N")))
    if lone:
        layers.append(chart(lone).mark_rule(strokeWidth=5, opacity=0.25).encode(
            x=x, y=low, y2=alt.Y2("hi:Q"), stroke=ink.stroke))
    layers.append(chart(drawn).mark_line(strokeWidth=2).encode(
        x=x, y=y, stroke=ink.stroke, detail=alt.Detail("line:N"), order=alt.Order("x:Q")))
    layers.append(chart(drawn).mark_point(strokeWidth=1, opacity=1).encode(
        x=x, y=y, fill=ink.fill, stroke=ink.stroke, shape=ink.shape, size=area, tooltip=tooltip()))
    if crossed := [p for p in drawn if p["diverged"]]:
        layers.append(chart(crossed).mark_point(shape=_CROSS, size=150, strokeWidth=2, opacity=1).encode(
            x=x, y=y, stroke=ink.stroke, tooltip=tooltip()))
    return layers


def _rimmed(drawn: Sequence[Record], field: str, least: int) -> list[Record]:
    """Return records with the area of their marks: larger by `least` for each mark of another line that covers it."""
    ends = [p[field] for p in drawn]
    near = (max(ends) - min(ends)) / 60 if ends else 0
    return [{**p, "area": least * (1 + len({q["series"] for q in drawn[i + 1:] if q["series"] != p["series"]
                                            and q["x"] == p["x"] and abs(q[field] - p[field]) <= near}))}
            for i, p in enumerate(drawn)]


def _reference(panel: Panel, tolerance: float | None) -> list[alt.Chart]:
    import altair as alt

    base = panel.baseline
    if panel.x == "receptive_field":  # whose points are differences, each to the baseline of its own size
        level = [{"y": 0.0, "y2": -(tolerance or 0), "text": ["baseline"]}]
    elif base is None or base.top1 is None:
        return []
    else:
        level = [{"y": base.top1, "y2": base.top1 - (tolerance or 0), "text": ["baseline", f"{base.top1:.1f} %"]}]
    y = alt.Y("y:Q")
    layers = []
    if tolerance:
        layers.append(chart(level, ()).mark_rect(color="currentColor", opacity=0.1).encode(y=y, y2=alt.Y2("y2:Q")))
    layers.append(chart(level, ()).mark_rule(strokeDash=[5, 4], color="currentColor", opacity=0.7).encode(y=y))
    layers.append(chart(level, ()).mark_text(
        align="left", baseline="middle", dx=6, fontSize=12, color="currentColor",
    ).encode(x=alt.value("width"), y=y, text=alt.Text("text:N")))
    return layers


def _image_sizes(panel: Panel, names: Sequence[str], x: alt.X, ink: Ink) -> list[alt.Chart]:
    """Return an upright rule on each line over the receptive field, where the field is as large as the image."""
    import altair as alt

    if panel.x != "receptive_field":
        return []
    sizes = {size_name(row.image_size): row.image_size for row in panel.rows if row.image_size}
    found = [{"series": name, "x": sizes[name], "says": "the field is as large as the image"}
             for name in names if name in sizes]
    tips = [alt.Tooltip("series:N", title="images"), alt.Tooltip("says:N", title="rule")]
    marks = chart(found).mark_rule(strokeDash=[2, 3], strokeWidth=1.5)
    return [marks.encode(x=x, stroke=ink.stroke, tooltip=tips)] if found else []


def _rings(panel: Panel, tolerance: float | None, x: alt.X, ink: Ink) -> list[alt.Chart]:
    """Ring the largest free K of each line that has one."""
    import altair as alt

    if tolerance is None or panel.x != "k":
        return []
    ringed = [{**record(f.series, f.k, f.row, 0.0), "says": f"largest K within {tolerance:g} of the baseline"}
              for f in free_ks(panel, tolerance) if f.k and f.row.top1 is not None]
    if not ringed:
        return []
    tips = [alt.Tooltip("says:N", title="ring"), *tooltip()]
    marks = chart(ringed).mark_point(shape="circle", size=260, strokeWidth=2, fill="transparent", opacity=1)
    return [marks.encode(x=x, y=alt.Y("y:Q"), stroke=ink.stroke, tooltip=tips)]


def _printed_marks(printed: Sequence[Record], x: alt.X, y_title: str, ink: Ink) -> list[alt.Chart]:
    import altair as alt

    tips = [alt.Tooltip(f"{field}:N", title=title) for field, title in
            (("series", "line"), ("accuracy", "paper's top-1"), ("source", "printed in"))]
    layers = []
    for base in (True, False):
        if found := [p for p in printed if p["base"] is base]:
            stroke = {"stroke": alt.value("currentColor")} if base else {"stroke": ink.stroke}
            marks = chart(found, _PRINTED_NAMES).mark_point(
                shape="diamond", fill="transparent", size=150, strokeWidth=1.8, opacity=1)
            layers.append(marks.encode(x=x, y=alt.Y("y:Q", title=y_title), tooltip=tips, **stroke))
    return layers


def _sizes(sized: Sequence[Record], x: alt.X, ink: Ink) -> Spec:
    import altair as alt

    y = alt.Y("params:Q", title="parameters (M)", scale=alt.Scale(zero=True), axis=alt.Axis(tickCount=4))
    area = alt.Size("area:Q", scale=None, legend=None)
    line = chart(sized).mark_line(strokeWidth=1.5).encode(x=x, y=y, stroke=ink.stroke)
    dots = chart(_rimmed(sized, "params", 28)).mark_point(strokeWidth=1, opacity=1).encode(
        x=x, y=y, fill=ink.fill, stroke=ink.stroke, shape=ink.shape, size=area, tooltip=tooltip())
    return layered(line, dots, width=WIDTH, height=120)
