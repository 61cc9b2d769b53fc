"""The drawn network: exactly the units of the largest free K are marked."""

from dataclasses import replace

from made_outcomes import outcome
from spaceless.charts import panel_chart
from spaceless.drawing import drawing_chart
from spaceless.findings import panels
from spaceless.looks import svg
from spaceless.rows import rows
from spaceless.trial import Change


def _panel(*runs, units=6):
    made = [outcome(top1=74.0, units=units)]
    for method, k, top1 in runs:
        after = {"gap_fc": "Linear 8->8", "conv1x1": "Conv2d 8->8 1x1"}.get(method, "Shuffle + Conv2d 8->8 3x3")
        changes = tuple(Change(unit=u, path=f"features.{u}", before="Conv2d 8->8 3x3", after=after)
                        for u in range(units - k + 1, units + 1))
        made.append(outcome(method, k, top1=top1, units=units).model_copy(update={"changes": changes}))
    (panel,) = panels(rows(made))
    return panel


def _boxes(spec):
    """Return every unit of every line once: (label, unit, modified, word)."""
    found = {}
    for values in spec["datasets"].values():
        for each in values:
            found[each["label"], each["unit"]] = (each["modified"], each["word"])
    return found


def test_the_last_free_units_are_marked_in_each_method():
    runs = ("conv1x1", 1, 74.0), ("conv1x1", 2, 73.5), ("conv1x1", 3, 60.0), ("gap_fc", 1, 74.0)
    boxes = _boxes(drawing_chart(_panel(*runs), 1.0))
    assert {unit for (label, unit), (modified, _) in boxes.items() if label == "1x1 Conv, K = 2" and modified} == {5, 6}
    assert {unit for (label, unit), (modified, _) in boxes.items() if label == "GAP+FC, K = 1" and modified} == {6}
    assert boxes["1x1 Conv, K = 2", 5] == (True, "1x1")
    assert boxes["1x1 Conv, K = 2", 4] == (False, "3x3")  # known from K = 3, which changed it
    assert boxes["1x1 Conv, K = 2", 1] == (False, "")  # no run tells what it is
    assert len(boxes) == 12


def test_the_pooling_stands_before_the_first_modified_unit():
    spec = drawing_chart(_panel(("gap_fc", 2, 74.0)), 1.0)
    (bar,) = [layer for layer in spec["layer"] if layer["mark"]["type"] == "tick"]
    assert [each["from"] for each in spec["datasets"][bar["data"]["name"]]] == [4.5]
    assert not [layer for layer in drawing_chart(_panel(("conv1x1", 2, 74.0)), 1.0)["layer"]
                if layer["mark"]["type"] == "tick"]


def test_a_method_without_a_free_k_is_drawn_as_it_was():
    boxes = _boxes(drawing_chart(_panel(("shuffle", 1, 50.0), ("conv1x1", 1, 74.0)), 1.0))
    assert not any(modified for (label, _), (modified, _) in boxes.items() if label == "Shuffle Conv, K = 0")


def test_many_units_are_drawn_without_words():
    few, many = (drawing_chart(_panel(("conv1x1", 2, 74.0), units=u), 1.0) for u in (13, 50))
    assert [any(layer.get("name") == "words" for layer in spec["layer"]) for spec in (few, many)] == [True, False]
    assert "1x1" in svg(few)


def test_the_word_of_a_unit_is_its_largest_kernel():
    (panel,) = panels(rows([outcome(top1=74.0, units=1), outcome("shuffle", 1, top1=50.0, units=1).model_copy(update={
        "changes": tuple(Change(unit=1, path=path, before=f"Conv2d 64->64 {before}", after="x") for path, before in
                         (("skip", "1x1 stride 2"), ("main", "3x3 stride 2")))})]))
    assert _boxes(drawing_chart(panel, 1.0)) == {("Shuffle Conv, K = 0", 1): (False, "3x3")}


def test_at_chance_every_k_would_seem_free_so_none_is_drawn_or_ringed():
    guessing = _panel(("conv1x1", 2, 1.0))
    guessing = type(guessing)(guessing.title, "k", tuple(replace(r, top1=1.0) for r in guessing.rows))
    assert drawing_chart(guessing, 1.0) is None
    assert not [layer for layer in panel_chart(guessing, 1.0)["layer"] if layer["mark"].get("size") == 260]


def test_nothing_is_drawn_without_a_baseline_or_recorded_changes():
    (panel,) = panels(rows([outcome(), outcome("conv1x1", 1)]))
    assert drawing_chart(panel, 1.0) is None
    whole = _panel(("conv1x1", 1, 74.0))
    alone = type(whole)(whole.title, "k", tuple(r for r in whole.rows if r.trial.k))
    assert drawing_chart(alone, 1.0) is None
