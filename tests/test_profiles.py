"""Profiles in the report: the best one of each network, drawn as it was measured; what is broken is named."""

import json

import pytest

from made_outcomes import outcome, store
from spaceless.errors import InputError
from spaceless.looks import svg
from spaceless.page import html_text
from spaceless.profiles import ALONE, LAST, profile_answer, profile_chart
from spaceless.report import gather, markdown_text
from spaceless.sensitivity import PROFILES, Curve, Sensitivity, Shuffled

WEIGHTS = "0" * 64


def profile(last=((2.0, 4.0), (40.0, 44.0), (49.5, 49.5)), clean=50.0, images=10_000, **fields):
    """A profile from the last K units shuffled, from the input on; alone, a unit loses half as much."""
    count = len(last)
    alone = [tuple((value + clean) / 2 for value in passes) for passes in last]
    units = tuple(
        Shuffled(index=i + 1, k=count - i, name=f"features.{i}", map=(4, 4), alone=Curve(top1=alone[i]),
                 last=Curve(top1=last[i]))
        for i in range(count))
    return Sensitivity(clean=clean, images=images, repeats=len(last[0]), units=units,
                       **{"weights_sha256": WEIGHTS, **fields})


def stored(root, *profiles):
    made = outcome(top1=50.0).model_copy(update={"weights_sha256": WEIGHTS})
    store(root, made)
    folder = root / made.trial.id / PROFILES
    folder.mkdir()
    for each in profiles:
        (folder / f"images-{each.images}-repeats-{each.repeats}.json").write_text(each.model_dump_json())
    return folder


def test_mean_and_spread_are_those_of_the_passes():
    curve = Curve(top1=(1.0, 2.0, 6.0))
    assert (curve.mean, curve.spread) == (3.0, pytest.approx(7**0.5))
    assert Curve(top1=(1.0,)).spread is None


@pytest.mark.parametrize("wrong", ["index", "k", "passes", "no units"])
def test_a_record_that_contradicts_itself_is_refused(wrong):
    fields = json.loads(profile().model_dump_json())
    if wrong == "passes":
        fields["units"][1]["alone"]["top1"] = [1.0]
    elif wrong == "no units":
        fields["units"] = []
    else:
        fields["units"][1][wrong] = 7
    with pytest.raises((InputError, ValueError)):
        Sensitivity.model_validate(fields)


@pytest.mark.parametrize(("last", "says"), [
    ((10.0, 49.0, 49.5), "The last 2 of 3 units bear a shuffle within 1 point of the clean 50.00 %."),
    ((10.0, 48.9, 49.5), "The last of 3 units bears a shuffle within"),
    ((50.0, 50.0, 40.0), "Not even the last of 3 units bears a shuffle within"),  # a fall that heals is no freedom
    ((50.0, 50.0, 51.0), "The last 3 of 3 units bear a shuffle within"),
])
def test_the_answer_counts_from_the_last_unit_to_the_first_that_costs_more(last, says):
    assert profile_answer(profile(tuple((value,) for value in last)), 1.0).text.startswith(says)


def test_a_network_that_guesses_bears_nothing():
    guessing = profile(((1.0,), (1.2,)), clean=2.9)
    assert "too near to chance" in profile_answer(guessing, 1.0, chance=1.0).text
    assert "The last of 2 units bears" in profile_answer(profile(((1.0,), (2.9,)), clean=3.1), 1.0, chance=1.0).text


def test_the_answer_names_the_unit_that_matters_most_alone():
    assert "unit 1 (features.0) matters most: 26.50" in profile_answer(profile(), 1.0).notes[0]


def values(spec, kind):
    return [spec["datasets"][layer["data"]["name"]] for layer in spec["layer"] if layer["mark"]["type"] == kind]


def test_two_lines_with_their_bands_between_the_clean_accuracy_and_chance():
    spec = profile_chart(profile(), 1.0)
    (line,) = values(spec, "line")
    assert [(p["x"], p["k"], p["y"]) for p in line if p["series"] == LAST] == [(1, 3, 3.0), (2, 2, 42.0), (3, 1, 49.5)]
    assert [p["y"] for p in line if p["series"] == ALONE] == [26.5, 46.0, 49.75]
    (band,) = values(spec, "area")
    assert (band[1]["lo"], band[1]["hi"]) == pytest.approx((3 - 2**0.5, 3 + 2**0.5))
    assert [rule["y"] for (rule,) in values(spec, "rule")] == [50.0, 1.0]
    assert "clean 50.0 %" in svg(spec)


def test_a_single_pass_has_no_band():
    assert values(profile_chart(profile(((1.0,), (2.0,)))), "area") == []


def test_the_page_shows_a_profile_as_a_section_of_its_own(tmp_path):
    stored(tmp_path, profile())
    page = gather([tmp_path])
    trials, mine = page.sections
    assert trials.title == "Trials" == page.title
    assert mine.title == "Where space matters in vgg16 baseline cifar100 seed 0"
    assert mine.tables[0].lines[1] == ("2", "features.1", "4x4", "46.00", "1.41", "2", "42.00", "2.83")
    assert "<figure" in html_text(page).split("Where space matters", 1)[1]
    assert "The last of 3 units bears a shuffle" in markdown_text(page)
    assert gather([tmp_path], pictures=False).sections[1].figures == ()
    (command,) = mine.commands
    (folder,) = (path.parent for path in tmp_path.glob("*/outcome.json"))
    assert command.startswith(f"spaceless evaluate {folder} --profile --repeats ")


def test_the_profile_that_rests_on_most_is_shown(tmp_path):
    few = profile(images=500, last=((1.0, 2.0, 3.0), (1.0, 2.0, 3.0)))
    stored(tmp_path, few, profile(images=10_000, last=((9.0,), (9.0,))), profile(images=10_000))
    assert gather([tmp_path], pictures=False).sections[1].progress == "10,000 images, 2 passes"


def test_a_broken_profile_and_one_of_other_weights_are_problems_and_not_shown(tmp_path):
    folder = stored(tmp_path, profile(weights_sha256="1" * 64))
    (folder / "broken.json").write_text('{"clean": "high"}')
    page = gather([tmp_path], pictures=False)
    assert len(page.sections) == 1
    assert sorted(p.text.split()[0] for p in page.problems) == ["a", "clean:"]


def test_a_network_without_a_profile_has_no_section(tmp_path):
    store(tmp_path, outcome())
    assert len(gather([tmp_path], pictures=False).sections) == 1
