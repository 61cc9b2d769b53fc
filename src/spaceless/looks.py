"""How charts look: colours and shapes that all can tell apart, one ink for light and dark, and as files."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from spaceless.findings import METHOD_NAMES
from spaceless.marks import Record

if TYPE_CHECKING:
    import altair as alt

Spec = dict[str, Any]

# Okabe & Ito 2008, "Color universal design": told apart with every kind of colour vision. Black and yellow are left
# out, since one of them vanishes on dark and the other on light ground; the last two are darkened to stand out from
# light ground by 3:1 (WCAG 2.2, 1.4.11).
PALETTE = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#BF7F00", "#3391C9")
SHAPES = ("circle", "square", "triangle-up", "triangle-down", "triangle-right", "triangle-left")
METHOD_LOOKS = {"shuffle": 0, "gap_fc": 1, "conv1x1": 2, "channel_shuffle": 3, "strip": 4}
PAPER_MARK = "printed in the paper"
HIDDEN = "hidden"  # the parameter of every chart that lists the names whose marks are left out
# Characters that no XML may hold (section 2.2): a name with one of them would not be drawn but end the process.
_UNDRAWABLE = re.compile("[^\t\n\r -\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")
_PAPER, _INK = "#fdfdfc", "#1d1f22"  # ground and ink of a picture that stands in a file of its own


@dataclass(frozen=True)
class Entry:
    """One name of a legend and its mark."""

    name: str
    colour: str
    shape: str
    hollow: bool = False


class Ink:
    """How series are told apart: fill, stroke and shape, in one legend."""

    def __init__(
        self, names: Sequence[str], indices: Sequence[int], printed: bool = False, *, legend: bool = True,
    ) -> None:
        import altair as alt

        count = len(PALETTE)  # the next so many have the colours again, and other shapes
        self.entries = [Entry(name, PALETTE[i % count], SHAPES[(i + i // count) % len(SHAPES)])
                        for name, i in zip(names, indices, strict=True)]
        if printed:
            self.entries.append(Entry(PAPER_MARK, "currentColor", "diamond", hollow=True))
        self.names = list(names)
        shown: dict[str, Any] = {} if legend else {"legend": None}
        self.fill = alt.Fill("series:N", title=None, scale=self._scale("fill"), **shown)
        self.stroke = alt.Stroke("series:N", title=None, scale=self._scale("stroke"), **shown)
        self.shape = alt.Shape("series:N", title=None, scale=self._scale("shape"), **shown)

    def _scale(self, channel: str) -> alt.Scale:
        import altair as alt

        values = {"fill": ["transparent" if e.hollow else e.colour for e in self.entries],
                  "stroke": [e.colour for e in self.entries], "shape": [e.shape for e in self.entries]}
        return alt.Scale(domain=[e.name for e in self.entries], range=values[channel])


def method_ink(methods: Iterable[str]) -> Ink:
    """Return the ink of whole methods, each looking as it does in every chart."""
    found = list(dict.fromkeys(methods))
    return Ink([METHOD_NAMES.get(m, m) for m in found], [METHOD_LOOKS.get(m, 5) for m in found])


def chart(values: Iterable[Record], hide: Sequence[str] = ("datum.series",)) -> alt.Chart:
    """Return a chart of `values` without those whose name (one of the expressions in `hide`) is hidden."""
    import altair as alt

    made = alt.Chart(alt.InlineData(values=json.dumps(list(values))))  # text is not copied at every step, see `finish`
    for name in hide:
        made = made.transform_filter(f"indexof({HIDDEN}, {name}) < 0")
    return made


def layered(*charts: alt.Chart, **fields: Any) -> Spec:
    """Return charts drawn over each other, with further `fields` of the specification such as its width.

    Altair would copy every chart for every chart that it becomes a part of; that is what made pages slow.
    """
    parts = [each.to_dict(validate=False) for each in charts]
    datasets = {name: values for part in parts for name, values in part.pop("datasets", {}).items()}
    for part in parts:
        part.pop("config", None)
        part.pop("$schema", None)
    return {"layer": parts, "datasets": datasets, **fields}


def arranged(kind: Literal["vconcat", "concat"], parts: Sequence[Spec], **fields: Any) -> Spec:
    """Return `parts` beside each other (or one below the other), with one legend for all of them."""
    datasets = {name: values for part in parts for name, values in part["datasets"].items()}
    inside = [{key: value for key, value in part.items() if key != "datasets"} for part in parts]
    scales = dict.fromkeys(("fill", "stroke", "shape"), "shared")
    return {kind: inside, "datasets": datasets, "resolve": {"scale": scales}, **fields}


_LABELS = {"labelColor": "currentColor", "titleColor": "currentColor"}
_CONFIG: Spec = {
    "background": "transparent", "padding": 8, "font": "system-ui, sans-serif", "view": {"stroke": None},
    "axis": {**_LABELS, "labelFontSize": 12, "titleFontSize": 12.5, "titleFontWeight": 500, "titlePadding": 10,
             "gridColor": "currentColor", "gridOpacity": 0.12, "domain": False, "ticks": False, "labelPadding": 6},
    "axisX": {"grid": False, "domain": True, "domainColor": "currentColor", "domainOpacity": 0.4},
    "legend": {**_LABELS, "orient": "top", "direction": "horizontal", "labelFontSize": 13, "symbolSize": 90,
               "offset": 14, "symbolStrokeWidth": 1.8, "symbolOpacity": 1, "columnPadding": 28, "labelLimit": 300},
    "title": {"color": "currentColor", "fontSize": 14, "fontWeight": 600, "anchor": "start", "offset": 10},
}


def finish(made: Spec, beside: int) -> Spec:
    """Return the specification in the page's own ink (`currentColor`), so that one picture fits light and dark.

    `beside` is what stands left and right of each plot in pixels: the page narrows the plots to what is left of it.
    """
    spec = {**made, "config": _CONFIG, "params": [{"name": HIDDEN, "value": []}], "usermeta": {"beside": beside},
            "datasets": {name: json.loads(values) for name, values in made["datasets"].items()}}
    cleaned: Spec = _changed(spec, lambda text: _UNDRAWABLE.sub("\N{REPLACEMENT CHARACTER}", text))
    return cleaned


def entries(spec: Spec) -> list[Entry]:
    """Return the legend of a chart: what its scales of fill, stroke and shape say, unless it has none."""
    found: dict[str, dict[str, Any]] = {}

    def look(part: Any) -> None:
        if isinstance(part, dict):
            for channel, each in part.get("encoding", {}).items():
                if channel in ("fill", "stroke", "shape") and "scale" in each and each.get("legend", True):
                    found.setdefault(channel, each["scale"])
            for key in ("layer", "vconcat", "concat"):
                for each in part.get(key, ()):
                    look(each)

    look(spec)
    if not {"fill", "stroke", "shape"} <= found.keys():
        return []
    columns = zip(found["stroke"]["domain"], found["stroke"]["range"], found["shape"]["range"], found["fill"]["range"],
                  strict=True)
    return [Entry(name, colour, shape, fill == "transparent") for name, colour, shape, fill in columns]


def svg(spec: Spec) -> str:
    """Return the picture of `spec` as one SVG element that refers to nothing outside itself.

    Its marks are not told one by one to those who cannot see them: the page has the same numbers as a table.
    """
    import vl_convert

    quiet = {**spec, "config": {**spec["config"], "aria": False}}
    return str(vl_convert.vegalite_to_svg(quiet, allowed_base_urls=[]))


def png(spec: Spec, scale: float = 2.0) -> bytes:
    """Return the picture of `spec`, which has ground and ink of its own, as PNG with `scale` pixels for each unit."""
    import vl_convert

    return bytes(vl_convert.vegalite_to_png(spec, scale=scale, allowed_base_urls=[]))


def on_paper(spec: Spec) -> Spec:
    """Return `spec` with dark ink on light ground in place of the page's, for a file that stands alone."""
    inked = _changed(spec, lambda text: _INK if text == "currentColor" else text)
    return {**inked, "config": {**inked.get("config", {}), "background": _PAPER}}


def _changed(value: Any, change: Callable[[str], str]) -> Any:
    """Return `value` with every text in it changed."""
    if isinstance(value, dict):
        return {key: _changed(each, change) for key, each in value.items()}
    if isinstance(value, list):
        return [_changed(each, change) for each in value]
    return change(value) if isinstance(value, str) else value
