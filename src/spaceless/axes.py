"""The other horizontal axes of a chart over K: the share of the units, parameters, multiply-adds, latency."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from spaceless.looks import Spec
from spaceless.marks import Record


@dataclass(frozen=True)
class Place:
    """A horizontal axis: the field of a record that it shows, its name on the page, and its title in the chart."""

    field: str
    name: str
    title: str


K_PLACE = Place("x", "K", "K: modified units, counted from the last one")
LATENCY_PLACE = Place("latency", "latency", "latency: median time of a forward pass (ms)")
PLACES = (
    Place("share", "share of the units", "modified share of the units, from the last one (%)"),
    Place("params", "parameters", "parameters (M)"),
    Place("macs", "multiply-adds", "multiply-adds per image (M)"),
    LATENCY_PLACE,
)


def places(measured: Sequence[Record]) -> tuple[Place, ...]:
    """Return the axes that `measured` can be drawn over besides K: those on which it has more than one place.

    Latency only where every drawn point has one: outcomes of earlier versions have none, and would go unnoticed.
    """
    drawn = [each for each in measured if each["y"] is not None]
    timed = all(each[LATENCY_PLACE.field] is not None for each in drawn)
    return tuple(place for place in PLACES if len({each[place.field] for each in drawn} - {None}) > 1
                 and (timed or place is not LATENCY_PLACE))


def at_place(spec: Spec, place: Place) -> Spec:
    """Return the chart `spec` over K as the same chart over `place`, without a panel below it.

    What has no number there is not drawn. Off K the lines may go back and up, so bands become bars.
    """
    main = spec["vconcat"][0] if "vconcat" in spec else spec
    shared: Spec = {key: spec[key] for key in ("config", "datasets", "params", "usermeta")}
    strokes = (layer.get("encoding", {}).get("stroke", {}) for layer in main["layer"])
    stroke: dict[str, Any] = next((each for each in strokes if "scale" in each), {})
    layers = [_moved(layer, place, stroke) for layer in main["layer"]]
    return {**{key: each for key, each in main.items() if key != "layer"}, **shared, "layer": layers}


def _moved(layer: dict[str, Any], place: Place, stroke: dict[str, Any]) -> dict[str, Any]:
    encoding = dict(layer.get("encoding", {}))
    x = encoding.get("x", {})
    if x.get("field") != K_PLACE.field:
        return layer
    scale = {"nice": False, "zero": False, "padding": 14}
    encoding["x"] = {"field": place.field, "type": "quantitative", "title": place.title, "scale": scale,
                     "axis": {"tickCount": 8, "grid": False}}
    moved = {**layer, "encoding": encoding,
             "transform": [{"filter": f"isValid(datum.{place.field})"}, *layer.get("transform", [])]}
    if layer["mark"]["type"] == "area":
        encoding.pop("detail", None)
        encoding.pop("fill")
        encoding["stroke"] = stroke
        moved["mark"] = {"type": "rule", "strokeWidth": 5, "opacity": 0.25}
    return moved
