"""The same chart over other axes: every mark at its place there, and what has none is not drawn."""

from made_outcomes import outcome
from spaceless.axes import PLACES, at_place, places
from spaceless.charts import panel_chart
from spaceless.findings import panels
from spaceless.looks import entries, svg
from spaceless.marks import points, printed_points
from spaceless.paper import experiment
from spaceless.rows import rows

BY_FIELD = {place.field: place for place in PLACES}


def _panel(made, name=None):
    (panel,) = panels(rows(made, experiment=experiment(name) if name else None))
    return panel


def _saving(seeds=1):
    return [outcome("gap_fc" if k else "baseline", k, seed=s, top1=74.0 - k + s, params=34_000_000 - 2_000_000 * k)
            for k in range(4) for s in range(seeds)]


def test_only_axes_with_several_places_are_offered():
    assert [p.field for p in places(points(_panel(_saving())))] == ["share", "params"]  # all cost as many multiply-adds
    shuffled = [outcome(), outcome("shuffle", 1), outcome("shuffle", 2)]
    assert [p.field for p in places(points(_panel(shuffled)))] == ["share"]
    assert places(points(_panel([outcome(units=None), outcome("shuffle", 1, units=None)]))) == ()


def _timed(*latencies):
    return [outcome("shuffle" if k else "baseline", k, latency=t) for k, t in enumerate(latencies)]


def test_latency_is_offered_only_where_every_drawn_point_has_one():
    assert [p.field for p in places(points(_panel(_timed(0.002, 0.003, 0.004))))] == ["share", "latency"]
    assert [p.field for p in places(points(_panel(_timed(0.002, 0.003, None))))] == ["share"]
    failed = outcome("shuffle", 3, status="failed")  # draws no point
    assert [p.field for p in places(points(_panel([*_timed(0.002, 0.003), failed])))] == ["share", "latency"]


def test_a_chart_over_latency_has_its_points_at_their_milliseconds():
    panel = _panel(_timed(0.002, 0.0035))
    assert {p["x"]: (p["latency"], p["time"]) for p in points(panel)} == {0: (2.0, "2.000 ms"), 1: (3.5, "3.500 ms")}
    assert {p["latency"] for p in printed_points(_panel(_timed(0.002, 0.0035), "fig2-vgg16"))} == {None}
    picture = svg(at_place(panel_chart(panel, 1.0), BY_FIELD["latency"]))
    assert "forward pass (ms)" in picture


def test_points_know_their_share_and_size():
    found = {p["x"]: (p["share"], p["params"], p["macs"]) for p in points(_panel(_saving()))}
    assert found[0] == (0.0, 34.0, 314.0)
    assert found[3] == (100 * 3 / 13, 28.0, 314.0)


def test_every_layer_over_k_moves_and_the_lower_panel_goes():
    spec = panel_chart(_panel(_saving(seeds=2), "fig2-vgg16"), 1.0)
    assert "vconcat" in spec
    moved = at_place(spec, BY_FIELD["params"])
    fields = [layer["encoding"]["x"]["field"] for layer in moved["layer"] if "field" in layer["encoding"].get("x", {})]
    assert set(fields) == {"params"}
    assert "vconcat" not in moved
    kinds = [layer["mark"]["type"] for layer in moved["layer"]]
    assert "area" not in kinds  # lines may go back and up there
    bars = [layer for layer in moved["layer"] if layer["mark"].get("strokeWidth") == 5]
    assert [layer["encoding"]["stroke"]["scale"]["domain"][0] for layer in bars] == ["GAP+FC"]
    assert "parameters (M)" in svg(moved)
    assert entries(moved) == entries(spec)


def test_the_paper_stands_at_its_own_size_and_nowhere_for_another_width():
    (panel,) = panels(rows([outcome(), outcome("gap_fc", 5)], experiment=experiment("fig2-vgg16")))
    assert {p["params"] for p in printed_points(panel)} == {34.02, 23.53}
    narrow = [outcome(width=0.25), outcome("gap_fc", 5, width=0.25)]
    (panel,) = panels(rows(narrow, experiment=experiment("fig2-vgg16")))
    assert {p["params"] for p in printed_points(panel)} == {None}
    assert {p["share"] for p in printed_points(panel)} == {0.0, 100 * 5 / 13}
