"""The pages under docs/ that a measurement makes are those of the records under results/."""

import json
from pathlib import Path

import pytest

from spaceless.bench import costs, evaluate, faults, floor, networks, receptive_fields, shuffle, study, train

ROOT = Path(__file__).parents[1]
PAGES = {
    "networks": networks, "costs": costs, "receptive-fields": receptive_fields, "evaluate": evaluate,
    "faults": faults, "floor": floor, "shuffle": shuffle, "study": study, "train": train,
}


def record_of(name):
    place = ROOT / "results" / ("" if name == "faults" else "bench") / f"{name}.json"
    return json.loads(place.read_text(encoding="utf-8"))


@pytest.mark.parametrize("name", PAGES)
def test_a_page_is_what_its_record_says(name):
    record = record_of(name)
    assert record["bench"] == name
    assert record["command"] == f"spaceless bench {name}"
    assert (ROOT / "docs" / f"{name}.md").read_text(encoding="utf-8") == PAGES[name].markdown(record)


def test_the_readme_says_what_the_table_of_networks_says():
    told = record_of("networks")["summary"]
    text = " ".join((ROOT / "README.md").read_text(encoding="utf-8").split())
    count = f"{told['fully_supported']} of {told['networks']} tried"
    assert count in text
    assert f"{told['networks']} CNNs of torchvision and timm from {told['families']} families" in text
    assert f"For {told['fully_supported']} of them everything checked holds" in text
    assert told["networks"] >= 80
    assert told["families"] >= 25
    assert told["share"] >= 0.9
    assert not told["failing"]


def test_the_readme_says_what_broke_under_faults():
    told = record_of("faults")
    counts = {each["name"]: each["counts"] for each in told["faults"]}
    assert told["summary"]["failing"] == []
    text = " ".join((ROOT / "README.md").read_text(encoding="utf-8").split())
    for said in (
        f"{counts['kills']['of these while the study ran']} kills",
        f"an end at {counts['saves']['exits within saves'] + counts['saves']['exits within trainings']} points",
        f"{counts['damage']['truncations']} truncations and {counts['damage']['bit flips']} flipped bits",
        f"{counts['claims']['run exactly once']:,} trials",
        f"{counts['interruptions']['signals']} signals",
        f"{counts['full_disk']['points']} full disks",
        f"{counts['mutations']['mutations']:,} damaged files",
    ):
        assert said in text, said
    assert counts["kills"]["lost"] == counts["kills"]["repeated"] == counts["mutations"]["code executed"] == 0
    assert counts["claims"]["run exactly once"] == counts["claims"]["trials"]
    assert counts["machines"]["equal to those of one process"] == counts["machines"]["trials"] == 24
