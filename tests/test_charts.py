"""Charts: what is drawn is what was measured, no more."""

import json
import re
import xml.etree.ElementTree as ElementTree

import pytest

from made_outcomes import calibration, outcome
from spaceless.bounds import calibration_chart
from spaceless.charts import panel_chart
from spaceless.findings import panels
from spaceless.looks import PALETTE, PAPER_MARK, Ink, svg
from spaceless.marks import numbered, points
from spaceless.paper import experiment
from spaceless.rows import Planned, load, rows
from spaceless.trial import RECIPES


def _panel(made, plan=(), name=None):
    (panel,) = panels(rows(made, plan, experiment(name) if name else None))
    return panel


def _layers(spec):
    for part in spec.get("vconcat", spec.get("concat", [spec])):
        if "concat" in part or "vconcat" in part:
            yield from _layers(part)
        else:
            yield from part.get("layer", [part])


def _kind(layer):
    return layer["mark"] if isinstance(layer["mark"], str) else layer["mark"]["type"]


def _values(spec, layer):
    data = layer.get("data", spec.get("data"))
    return spec["datasets"][data["name"]] if "name" in data else data["values"]


def _drawn(spec, kind):
    return [_values(spec, layer) for layer in _layers(spec) if _kind(layer) == kind]


def test_the_baseline_begins_every_line():
    found = points(_panel([outcome(top1=74.0), outcome("shuffle", 1, top1=73.0), outcome("conv1x1", 2, top1=72.0)]))
    assert [(p["series"], p["x"], p["y"]) for p in found] == [
        ("Shuffle Conv", 0, 74.0), ("1x1 Conv", 0, 74.0), ("Shuffle Conv", 1, 73.0), ("1x1 Conv", 2, 72.0)]


def test_a_lone_run_has_no_band():
    spec = panel_chart(_panel([outcome(), outcome("shuffle", 1)]))
    assert not _drawn(spec, "area")
    assert not [v for values in _drawn(spec, "rule") for v in values if "lo" in v]


def test_a_band_is_the_mean_plus_and_minus_the_spread_where_there_are_several_runs():
    runs = {0: (74.0, 75.0, 76.0), 1: (72.0, 73.0, 74.0), 2: (70.0,), 3: (60.0, 62.0)}
    made = [outcome("shuffle" if k else "baseline", k, seed=s, top1=t)
            for k, ts in runs.items() for s, t in enumerate(ts)]
    spec = panel_chart(_panel(made))
    (band,) = _drawn(spec, "area")
    assert [(p["x"], p["lo"], p["hi"]) for p in band[:2]] == [(0, 74.0, 76.0), (1, 72.0, 74.0)]
    assert 2 not in {p["x"] for p in band}
    # the lone run between them breaks the band, so that nothing is painted over it
    assert band[1]["band"] != next(p for p in band if p["x"] == 3)["band"]
    assert [[v["x"] for v in values] for values in _drawn(spec, "rule") if "lo" in values[0]] == [[3]]


def test_a_missing_number_breaks_the_line_and_draws_no_mark():
    made = [outcome(), outcome("shuffle", 1), outcome("shuffle", 3)]
    plan = [Planned(trial=o.trial) for o in (*made, outcome("shuffle", 2))]
    panel = _panel(made, plan)
    line = {p["x"]: p["line"] for p in numbered(points(panel)) if p["y"] is not None}
    assert line[0] == line[1] != line[3]
    for values in (*_drawn(panel_chart(panel), "line"), *_drawn(panel_chart(panel), "point")):
        assert 2 not in {v["x"] for v in values}
        assert all(v["y"] is not None for v in values)


def test_the_papers_values_are_hollow_marks_named_in_the_legend():
    spec = panel_chart(_panel([outcome(), outcome("gap_fc", 5), outcome("gap_fc", 4)], name="fig2-vgg16"))
    hollow = [layer for layer in _layers(spec) if _kind(layer) == "point" and layer["mark"].get("shape") == "diamond"]
    assert all(layer["mark"]["fill"] == "transparent" for layer in hollow)
    assert sorted((v["x"], v["y"]) for layer in hollow for v in _values(spec, layer)) == [(0, 74.12), (5, 73.21)]
    assert PAPER_MARK in json.dumps(spec)
    assert PAPER_MARK not in json.dumps(panel_chart(_panel([outcome(data="set"), outcome("shuffle", 4, data="set")])))


def test_parameters_are_drawn_below_where_they_vary():
    same = panel_chart(_panel([outcome(), outcome("shuffle", 1)]))
    assert "vconcat" not in same
    smaller = panel_chart(_panel([outcome(), outcome("gap_fc", 1, params=30_000_000)]))
    assert [v["params"] for v in _values(smaller, smaller["vconcat"][1]["layer"][0])] == [34.0, 30.0]


def test_pointing_at_a_mark_tells_its_latency():
    spec = panel_chart(_panel([outcome(latency=0.002), outcome("shuffle", 1)]))
    marks = next(layer for layer in _layers(spec) if _kind(layer) == "point")
    assert {"field": "time", "title": "latency", "type": "nominal"} in marks["encoding"]["tooltip"]
    assert [v["time"] for v in _values(spec, marks)] == ["2.000 ms", ""]


def test_nothing_measured_gives_no_picture():
    assert panel_chart(_panel([], [Planned(trial=outcome("gap_fc", 2).trial)])) is None


@pytest.mark.parametrize(("made", "x", "expected"), [
    ([outcome(), outcome("shuffle", only=13, top1=73.0), outcome("shuffle", only=1, top1=30.0)], "only",
     {("Shuffle Conv", 13, 73.0), ("Shuffle Conv", 1, 30.0)}),
    ([outcome("conv1x1", 6, strip=s, top1=60.0 - s) for s in range(3)], "kept",
     {("1x1 Conv", 6, 60.0), ("1x1 Conv", 5, 59.0), ("1x1 Conv", 4, 58.0)}),
    ([outcome(top1=74.0, field=212, image_size=s) for s in (32, 64)]
     + [outcome("conv1x1", 2, top1=t, field=132, image_size=s) for s, t in ((32, 73.0), (64, 60.0))], "receptive_field",
     {("32 pixels", 212, 0.0), ("32 pixels", 132, -1.0), ("64 pixels", 212, 0.0), ("64 pixels", 132, -14.0)}),
    ([outcome(top1=74.0, extra={3: (1.0, 1.0)}), outcome("shuffle", 3, top1=(73.0, 73.0), extra={0: (72.0,)})],
     "shuffled",
     {("clean → shuffled", 0, 74.0), ("clean → shuffled", 3, 1.0), ("shuffled → shuffled", 0, 74.0),
      ("shuffled → shuffled", 3, 73.0), ("shuffled → clean", 0, 74.0), ("shuffled → clean", 3, 72.0)}),
    ([outcome()] + [outcome("conv1x1", 3, downsample=d, top1=70.0) for d in ("avg", "stride")], "k",
     {("1x1 Conv, average pooling", 0, 74.0), ("1x1 Conv, average pooling", 3, 70.0),
      ("1x1 Conv, stride 2", 0, 74.0), ("1x1 Conv, stride 2", 3, 70.0)}),
], ids=["only", "kept", "receptive_field", "shuffled", "downsample"])
def test_every_kind_of_figure_follows_from_the_data(made, x, expected):
    panel = _panel(made)
    assert panel.x == x
    assert {(p["series"], p["x"], p["y"]) for p in points(panel)} == expected
    assert panel_chart(panel, 1.0)


def test_over_the_receptive_field_stands_where_it_is_the_image():
    made = [outcome(method, k, top1=top1, field=field, image_size=size) for size in (32, 64)
            for method, k, top1, field in (("baseline", 0, 74.0, 212), ("conv1x1", 2, 60.0, 40))]
    spec = panel_chart(_panel(made), 1.0)
    rules = [v for values in _drawn(spec, "rule") for v in values]
    assert [(r["series"], r["x"]) for r in rules if "x" in r] == [("32 pixels", 32), ("64 pixels", 64)]
    assert [r["y"] for r in rules if "y" in r] == [0.0]  # each line is against its own baseline


def test_the_calibration_marks_the_truth(tmp_path):
    calibration(tmp_path, {0: (99.0,), 1: (99.0,), 2: (70.0,), 3: (25.0,)}, learnable=1, chance_from=3)
    outcomes, (study,), _ = load([tmp_path])
    spec = calibration_chart(rows(outcomes, study.planned), study.truth)
    bars = [v for values in _drawn(spec, "bar") for v in values]
    assert [(b["says"], b["x"], b["x2"]) for b in bars] == [
        ("learnable up to K = 1", -0.3, 1.3), ("chance from K = 3", 2.7, 3.3)]
    rules = [v for values in _drawn(spec, "rule") for v in values]
    assert {r["y"] for r in rules if "y" in r} == {25.0}
    assert {r["x"] for r in rules if "nth" in r} == {1.3}


def test_the_svg_stands_alone_and_escapes():
    bad = "</svg><script>alert(1)</script>&\"'"
    spec = panel_chart(_panel([outcome(data=bad, recipe=RECIPES["control"]), outcome("shuffle", 1, data=bad,
                                                                                   recipe=RECIPES["control"])]), 1.0)
    picture = svg(spec)
    root = ElementTree.fromstring(picture)
    assert not [e for e in root.iter() if e.tag.endswith("script") or e.tag.endswith("image")]
    assert set(re.findall(r"https?://[^\"' )]+", picture)) <= {"http://www.w3.org/2000/svg", "http://www.w3.org/1999/xlink"}
    assert "currentColor" in picture  # the ink of the page, in light and in dark


def test_the_palette_leaves_out_black_and_yellow_and_stands_out_from_light_and_dark():
    assert len(set(PALETTE)) == 6
    assert not {"#000000", "#F0E442"} & set(PALETTE)

    def luminance(colour):  # WCAG 2.2, relative luminance and contrast ratio
        parts = (int(colour[i:i + 2], 16) / 255 for i in (1, 3, 5))
        linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
        return sum(weight * part for weight, part in zip((0.2126, 0.7152, 0.0722), linear, strict=True))

    for light, dark in ((luminance("#fdfdfc"), luminance(colour)) for colour in PALETTE):
        assert (light + 0.05) / (dark + 0.05) >= 3
    for colour in PALETTE:
        assert (luminance(colour) + 0.05) / (luminance("#141618") + 0.05) >= 3


def test_more_lines_than_colours_are_told_apart_by_their_shapes():
    looks = {(each.colour, each.shape) for each in Ink([str(i) for i in range(36)], list(range(36))).entries}
    assert len(looks) == 36


def test_a_mark_behind_others_shows_as_a_rim():
    made = [outcome(), outcome("shuffle", 1), outcome("conv1x1", 1), outcome("gap_fc", 1, top1=60.0)]
    (drawn,) = (each for each in _drawn(panel_chart(_panel(made)), "point") if len(each) == 6)
    assert {(p["series"], p["x"]): p["area"] / 48 - 1 for p in drawn} == {
        ("Shuffle Conv", 0): 2, ("GAP+FC", 0): 1, ("1x1 Conv", 0): 0,
        ("Shuffle Conv", 1): 1, ("GAP+FC", 1): 0, ("1x1 Conv", 1): 0}


def test_the_axis_of_fields_is_labelled_evenly():
    made = [outcome(field=212, image_size=32), *(outcome("conv1x1", k, field=field, image_size=32)
                                                 for k, field in ((1, 210), (2, 64)))]
    (panel,) = panels(rows(made), "receptive_field")
    (axis,) = {json.dumps(layer["encoding"]["x"]["axis"], sort_keys=True) for layer in _layers(panel_chart(panel))
               if "axis" in layer.get("encoding", {}).get("x", {})}
    assert "values" not in json.loads(axis)
