"""The paper's claims judged by rows with known figures, and by the outcomes that are committed."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import pytest

from spaceless import theses
from spaceless.errors import InputError
from spaceless.evidence import evidence, evidence_text
from spaceless.rows import Row
from spaceless.setting import Setting, largest_free, sides
from spaceless.trial import RECIPES, Trial

ROOT = Path(__file__).parents[1]


def row(top1: float, method: str = "baseline", k: int = 0, *, shuffle_last: int | None = None, seeds: int = 1,
        spread: float | None = None, params: int = 1000, field: int | None = None, augment: str = "crop_flip",
        **fields) -> Row:
    """A row of 100 classes and 10,000 test images a seed: an interval of a lone difference is about 1.3 points wide."""
    recipe = RECIPES["paper"].model_copy(update={"augment": augment})
    trial = Trial.model_validate({"model": "vgg16", "data": "cifar100", "method": method, "k": k, "recipe": recipe,
                                  **fields})
    return Row(trial, shuffle_last, seeds=tuple(range(seeds)), ids=("",) * seeds, top1=top1, spread=spread,
               params=params, images=10_000 * seeds, classes=100, image_size=32, receptive_field=field)


def curve(method: str, *values: float, **fields) -> list[Row]:
    return [row(value, method, k, **fields) for k, value in enumerate(values, 1)]


def judge(rule, *rows: Row) -> theses.Judged:
    found = rule(Setting(rows))
    assert found is not None
    return found


BASE = row(50.0)
FIVE = (52.0, 52.0, 52.0, 52.0, 52.0)


def test_a_loss_counts_from_a_point_on_and_up_to_the_first_k_that_loses():
    setting = Setting((BASE, *curve("conv1x1", 52.0, 49.2, 48.8, 52.0)))
    assert largest_free(setting, "conv1x1") == 2
    assert largest_free(setting, "conv1x1", sure=True) == 1
    assert largest_free(setting, "gap_fc") is None
    assert largest_free(Setting(setting.rows[1:]), "conv1x1") is None  # nothing to compare with


def test_better_and_worse_need_an_interval_on_one_side():
    compared = [(1, row(55.0), BASE), (2, row(45.0), BASE), (3, row(50.5), BASE), (4, row(0.0, seeds=0), BASE)]
    assert sides(compared) == ([1], [2], [3])


@pytest.mark.parametrize(("shuffled", "verdict"), [(FIVE, "confirmed"), ((46.0,), "in part"), ((50.1,), "in part")])
def test_the_last_layers(shuffled, verdict):
    found = judge(theses.last_layers, BASE, *curve("shuffle", *shuffled), *curve("conv1x1", *FIVE))
    assert found.verdict == verdict
    largest = 5 if shuffled == FIVE else int(shuffled[0] > 49)
    assert f"Shuffle Conv: no loss up to K = {largest}, in the paper 5" in found.text
    assert "1x1 Conv: no loss up to K = 5, in the paper 5" in found.text


def test_the_last_layers_of_a_network_that_loses_at_once_or_too_little_to_tell():
    lost = judge(theses.last_layers, BASE, *curve("shuffle", 46.0))
    assert lost.verdict == "not confirmed"
    assert "K = 1: −4.0 points (−5.4 to −2.6)" in lost.text
    assert judge(theses.last_layers, BASE, *curve("shuffle", 49.5)).verdict == "open"


@pytest.mark.parametrize(("ours", "theirs", "verdict"), [
    ((52.0, 52.0, 52.0), (52.0, 40.0, 40.0), "confirmed"),
    ((52.0, 40.0, 40.0), (52.0, 52.0, 52.0), "not confirmed"),
    ((52.0, 52.0, 52.0), (52.0, 52.0, 52.0), "open"),
])
def test_1x1_against_the_others(ours, theirs, verdict):
    rows = (BASE, *curve("conv1x1", *ours), *curve("gap_fc", *theirs))
    assert judge(theses.one_by_one, *rows).verdict == verdict
    assert theses.one_by_one(Setting((BASE, *curve("conv1x1", *ours)))) is None


@pytest.mark.parametrize(("shuffled", "verdict"), [(1.2, "confirmed"), (25.0, "in part"), (49.9, "not confirmed")])
def test_a_clean_network_that_is_shuffled_in_the_test(shuffled, verdict):
    tested = [row(value, shuffle_last=k) for k, value in ((0, 50.0), (1, 45.0), (3, shuffled))]
    found = judge(theses.clean_collapses, BASE, *tested)
    assert found.verdict == verdict
    assert "chance 1.0 %" in found.text
    assert f"1: 45.0, 3: {shuffled:.1f}" in found.text
    assert theses.clean_collapses(Setting((BASE, tested[0]))) is None


@pytest.mark.parametrize(("clean", "verdict"), [(50.9, "confirmed"), (46.0, "not confirmed")])
def test_a_shuffled_network_that_is_not_shuffled_in_the_test(clean, verdict):
    trained = row(50.0, "shuffle", 3)
    found = judge(theses.shuffled_do_not_care, BASE, trained, row(clean, "shuffle", 3, shuffle_last=0))
    assert (found.verdict, f"3: 50.0 and {clean}" in found.text) == (verdict, True)
    assert theses.shuffled_do_not_care(Setting((BASE, trained))) is None


@pytest.mark.parametrize(("accuracy", "verdict"), [(52.0, "confirmed"), (49.8, "open"), (40.0, "not confirmed")])
def test_parameters_saved(accuracy, verdict):
    found = judge(theses.parameters, BASE, row(accuracy, "gap_fc", 1, params=750))
    assert found.verdict == verdict
    assert ("25 % of the parameters at K = 1" in found.text) == (accuracy > 49)


@pytest.mark.parametrize(("values", "verdict"), [
    ((55.0, 55.0, 50.0), "confirmed"), ((55.0, 50.0, 50.0), "in part"), ((45.0, 50.0, 50.0), "not confirmed"),
    ((50.1, 50.0, 50.0), "open"),
])
def test_without_augmentation(values, verdict):
    plain = [replace(BASE, trial=row(1.0, augment="none").trial), *curve("conv1x1", *values, augment="none")]
    assert judge(theses.no_augmentation, *plain).verdict == verdict
    assert theses.no_augmentation(Setting((BASE, *curve("conv1x1", *values)))) is None


@pytest.mark.parametrize(("strided", "verdict"), [(45.0, "confirmed"), (50.0, "open"), (55.0, "not confirmed")])
def test_down_sampling(strided, verdict):
    rows = [BASE, *(row(value, "conv1x1", 7, downsample=how)
                    for how, value in (("avg", 50.0), ("max", 50.2), ("stride", strided)))]
    found = judge(theses.stride_hurts, *rows)
    assert found.verdict == verdict
    assert "Against max pooling: not to be told apart at K = 7." in found.text
    assert theses.stride_hurts(Setting(tuple(rows[:3]))) is None


@pytest.mark.parametrize(("first", "last", "verdict"), [
    (30.0, 50.0, "confirmed"), (50.0, 30.0, "not confirmed"), (50.0, 50.0, "open")])
def test_single_layers(first, last, verdict):
    values = first, first, 45.0, 45.0, last, last
    alone = [row(value, "shuffle", 0, only=unit) for unit, value in enumerate(values, 1)]
    found = judge(theses.early_layers, BASE, *alone)
    assert found.verdict == verdict
    assert f"the first 2 units alone come to {first} %, the last 2 to {last} %" in found.text
    assert theses.early_layers(Setting((BASE, *alone[:2]))) is None


@pytest.mark.parametrize(("channels", "positions", "verdict"), [
    (45.0, 50.0, "confirmed"), (45.0, 45.0, "in part"), (51.0, 50.0, "not confirmed"), (49.5, 50.0, "open")])
def test_channels(channels, positions, verdict):
    rows = BASE, *curve("channel_shuffle", channels), *curve("shuffle", positions)
    assert judge(theses.channel_shuffle, *rows).verdict == verdict


@pytest.mark.parametrize(("bare", "verdict"), [(45.0, "confirmed"), (50.2, "open"), (55.0, "not confirmed")])
def test_stripped_layers(bare, verdict):
    rows = [row(value, "conv1x1", 2, strip=strip) for strip, value in enumerate((50.0, 49.0, bare))]
    found = judge(theses.stripping, *rows)
    assert found.verdict == verdict
    assert f"so many kept, in %: 0: {bare}, 1: 49.0, 2: 50.0; with 2 removed" in found.text
    assert theses.stripping(Setting(tuple(rows[:1]))) is None


@pytest.mark.parametrize(("fields", "verdict"), [
    ((44, 36), "confirmed"), ((30, 10), "not confirmed"), ((44, 20), "open")])
def test_the_field_that_is_needed(fields, verdict):
    enough, little = fields
    changed = row(52.0, "conv1x1", 1, field=enough), row(40.0, "conv1x1", 2, field=little)
    rows = replace(BASE, receptive_field=60), *changed
    found = judge(theses.field_beyond_image, *rows)
    assert found.verdict == verdict
    assert f"no loss down to a field of {enough} pixels (K = 1); with {little} pixels (K = 2)" in found.text
    assert judge(theses.field_beyond_image, *rows[:2]).verdict == "open"  # nothing lost anywhere


def test_every_claim_names_experiments_of_the_paper_and_a_rule_of_its_own():
    from spaceless.paper import experiments

    assert {name for thesis in theses.THESES for name in thesis.experiments} <= experiments().keys()
    assert len({thesis.judge for thesis in theses.THESES}) == len({thesis.says for thesis in theses.THESES}) == 11


def test_made_data_holdouts_and_blind_guesses_say_nothing():
    with pytest.raises(InputError, match="no outcomes that the paper's claims could be judged by"):
        evidence_text([ROOT / "results" / "calibration-fast", ROOT / "results" / "compress"])
    settings, claims = evidence([ROOT / "results" / "all-smoke"])
    assert all(setting.base.top1 > 5 for setting in settings.values())
    assert {setting.rows[0].trial.data for setting in settings.values()} == {"cifar100"}
    assert all(claim.judged.keys() <= settings.keys() for claim in claims)


def test_the_page_ends_in_what_its_command_prints():
    page = (ROOT / "docs" / "evidence.md").read_text(encoding="utf-8")
    (command,) = re.findall(r"^spaceless report (.*) --claims$", page.replace("\\\n", ""), re.MULTILINE)
    assert page.endswith(evidence_text([ROOT / each for each in command.split()]) + "\n")
