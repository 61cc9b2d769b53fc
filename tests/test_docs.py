"""The pages under docs/ that a measurement makes are those of the records under results/bench/."""

import json
from pathlib import Path

import pytest

from spaceless.bench import costs, evaluate, floor, networks, receptive_fields, shuffle, train

ROOT = Path(__file__).parents[1]
PAGES = {
    "networks": networks, "costs": costs, "receptive-fields": receptive_fields, "evaluate": evaluate,
    "floor": floor, "shuffle": shuffle, "train": train,
}


@pytest.mark.parametrize("name", PAGES)
def test_a_page_is_what_its_record_says(name):
    record = json.loads((ROOT / "results" / "bench" / f"{name}.json").read_text(encoding="utf-8"))
    assert record["bench"] == name
    assert record["command"] == f"spaceless bench {name}"
    assert (ROOT / "docs" / f"{name}.md").read_text(encoding="utf-8") == PAGES[name].markdown(record)


def test_the_readme_says_what_the_table_of_networks_says():
    told = json.loads((ROOT / "results" / "bench" / "networks.json").read_text(encoding="utf-8"))["summary"]
    text = " ".join((ROOT / "README.md").read_text(encoding="utf-8").split())
    count = f"{told['fully_supported']} of {told['networks']} tried"
    assert count in text
    assert f"{told['networks']} CNNs of torchvision and timm from {told['families']} families" in text
    assert f"For {told['fully_supported']} of them everything checked holds" in text
    assert told["networks"] >= 80
    assert told["families"] >= 25
    assert told["share"] >= 0.9
    assert not told["failing"]
