"""The table of costs: a row, what counts as failing, and the committed record."""

import json
from pathlib import Path

import pytest

from spaceless.bench import costs as bench
from spaceless.errors import InputError

ROOT = Path(__file__).parent.parent
ALEXNET = {
    "network": "alexnet", "weights": "IMAGENET1K_V1", "image_size": 224, "params": 61100840,
    "params_published": 61100840, "params_auxiliary": 0, "macs": 714188480, "macs_published": 714000000,
    "deviation": 0.000264, "activations": 494184, "not_counted": ["AdaptiveAvgPool2d", "MaxPool2d", "ReLU"],
}


def test_a_row():
    assert bench.row("alexnet", "IMAGENET1K_V1") == ALEXNET


@pytest.mark.parametrize("name", ["resnet50", "densenet121", "mobilenet_v3_small", "convnext_tiny", "mnasnet1_0"])
def test_rows_agree(name):
    assert bench.agrees(bench.row(name, "IMAGENET1K_V1"))


def test_the_auxiliary_head_is_in_the_published_count_only():
    row = bench.row("inception_v3", "IMAGENET1K_V1")
    assert row["params"] + row["params_auxiliary"] == row["params_published"]
    assert row["params_auxiliary"] == 3326696
    assert bench.agrees(row)


@pytest.mark.parametrize(("changed", "agrees"), [
    ({}, True), ({"params": 61100841}, False), ({"macs": 720000000}, True), ({"macs": 721200000}, False),
    ({"macs": 40476448, "macs_published": 40000000}, True), ({"macs": 40600000, "macs_published": 40000000}, False),
])
def test_what_agrees(changed, agrees):
    row = ALEXNET | changed
    assert bench.agrees(row) is agrees
    assert bench.summary([row])["failing"] == ([] if agrees else ["alexnet IMAGENET1K_V1"])


def test_a_name_that_torchvision_does_not_have():
    with pytest.raises(InputError, match=r"network: found 'alexnte', expected one of .*; did you mean 'alexnet'"):
        list(bench.rows(["torchvision:alexnte"], 1))


def test_the_committed_page_is_that_of_the_committed_record():
    record = json.loads((ROOT / "results/bench/costs.json").read_text(encoding="utf-8"))
    assert (ROOT / "docs/costs.md").read_text(encoding="utf-8") == bench.markdown(record)
    assert record["summary"] == bench.summary(record["rows"])
    assert record["summary"]["failing"] == []
    assert [(row["network"], row["weights"]) for row in record["rows"]] == bench.names()
