"""The table of receptive fields: a row, what counts as failing, the page, and the committed record."""

import json
from pathlib import Path

import pytest

from spaceless.bench import receptive_fields as bench
from spaceless.bench.record import headed

ROOT = Path(__file__).parent.parent


def test_a_row_of_a_published_network():
    row = bench.row("VGG", "vgg16/features")
    assert row["derived"] == {"size": 212, "stride": 32, "offset": -90, "aligned": True}
    assert row["measured"] == {"size": 212, "stride": 32, "offset": -90}
    assert (row["maps"], row["agree"], row["published"], row["explanation"]) == (14, 14, 212, None)


def test_the_strides_of_the_published_resnet():
    row = bench.row("ResNet", "as-published:resnet50")
    assert (row["derived"]["size"], row["agree"], row["maps"]) == (483, 17, 17)
    here = bench.row("ResNet", "resnet50")
    assert (here["derived"]["size"], here["published"]) == (427, 483)
    assert here["explanation"].startswith("torchvision has the stride")


def made(**changed):
    row = {
        "family": "VGG", "network": "vgg16", "image_size": 224, "final_map": "features",
        "derived": {"size": 212, "stride": 32, "offset": -90, "aligned": True}, "checked_on": 352,
        "measured": {"size": 212, "stride": 32, "offset": -90}, "maps": 14, "agree": 14, "disagreeing": [],
        "published": 212, "source": bench.SOURCE, "explanation": None, "seconds": 1.0,
    }
    return row | changed


@pytest.mark.parametrize(("changed", "failing"), [
    ({}, False), ({"agree": 13}, True), ({"published": 213}, True), ({"published": 213, "explanation": "why"}, False),
    ({"derived": None}, True), ({"published": None}, False),
])
def test_what_fails(changed, failing):
    row = made(**changed)
    assert bench.summary([row])["failing"] == (["vgg16"] if failing else [])
    page = bench.markdown(headed("receptive-fields", "x", {"summary": bench.summary([row]), "rows": [row]}))
    assert f"{row['agree']}/14" in page
    assert ("(1) why: vgg16." in page) == (row["explanation"] is not None)


def test_the_committed_page_is_that_of_the_committed_record():
    record = json.loads((ROOT / "results/bench/receptive-fields.json").read_text(encoding="utf-8"))
    assert (ROOT / "docs/receptive-fields.md").read_text(encoding="utf-8") == bench.markdown(record)
    assert record["summary"] == bench.summary(record["rows"])
    assert record["summary"]["failing"] == []
    assert record["summary"]["networks"] >= 20
    assert record["summary"]["families"] >= 15
    assert [row["network"] for row in record["rows"]] == [
        entry.partition("/")[0].partition("@")[0] for _, entry in bench.names()]
