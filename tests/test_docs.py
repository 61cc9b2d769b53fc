"""The pages under docs/ that a measurement makes are those of the records under results/."""

import json
from pathlib import Path

import pytest

from spaceless.bench import (
    accuracy,
    compress,
    compress_page,
    costs,
    evaluate,
    faults,
    floor,
    networks,
    receptive_fields,
    shuffle,
    study,
    train,
)
from spaceless.compression import Tried

ROOT = Path(__file__).parents[1]
PAGES = {
    "accuracy": accuracy, "compress": compress_page, "networks": networks, "costs": costs,
    "receptive-fields": receptive_fields, "evaluate": evaluate, "faults": faults, "floor": floor, "shuffle": shuffle,
    "study": study, "train": train,
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


def test_the_readme_says_what_compress_found():
    told = record_of("compress")
    assert all(met for promise, met in told["promises"].items() if "warm" not in promise)
    ours = told["networks"][1]
    pruned = {each["network"]: each for each in told["networks"] if each["epochs"] == ours["epochs"]}
    first = told["networks"][0]
    warm = {(each["start"], each["epochs"]): each["top1"] for each in told["warm"] if not each["distilled"]}
    last = next(each for each in told["sweep"] if each["k"] == told["k"])
    text = " ".join((ROOT / "README.md").read_text(encoding="utf-8").split())
    for said in (
        f"{told['trainings']['search']} trainings and finds K = {told['search']['largest']}, a full sweep takes "
        f"{told['trainings']['sweep']} and finds K = {compress.accepted(map(Tried.model_validate, told['sweep']))}",
        f"{100 - 100 * ours['params'] / first['params']:.0f} % fewer parameters and "
        f"{100 - 100 * ours['macs'] / first['macs']:.0f} % fewer multiply-adds",
        f"answers {ours['latency']['1']['times_as_fast']['median']:.2f} times as fast on one image",
        f"{-last['difference']:.2f} points behind on the images held out and {-ours['difference']:.2f} on the test",
        f"reaches {warm['warm', 3]:.1f} % in a quarter of the epochs, not the {warm['scratch', 12]:.1f} % from scratch "
        f"(which reaches {warm['scratch', 3]:.1f} % in as many)",
        f"({pruned['pruned, uniform']['test']:.1f} % and {pruned['pruned, global']['test']:.1f} % against "
        f"{ours['test']:.1f} % on the test images)",
        f"({pruned['pruned, uniform']['latency']['1']['times_as_fast']['median']:.2f} and "
        f"{pruned['pruned, global']['latency']['1']['times_as_fast']['median']:.2f} times as fast as the original)",
    ):
        assert said in text, said
