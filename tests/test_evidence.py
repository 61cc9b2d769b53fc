"""The paper's claims judged by rows with known figures, and by the outcomes that are committed."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import pytest

from commands import Commands, is_an_error
from made_rows import BASE, curve, row
from spaceless.errors import InputError
from spaceless.evidence import _key, evidence, evidence_page, telling
from spaceless.looks import svg
from spaceless.rows import Row
from spaceless.rules_of_ablations import (
    channel_shuffle,
    clean_collapses,
    early_layers,
    field_beyond_image,
    shuffled_do_not_care,
    stride_hurts,
    stripping,
)
from spaceless.rules_of_k import alike, last_layers, no_augmentation, one_by_one, parameters
from spaceless.setting import METHODS, Setting, largest_free, sides
from spaceless.theses import THESES
from spaceless.verdict import Judged, combined

ROOT = Path(__file__).parents[1]
_MARKS = r">([^<>]+)</text>|<path"  # what is written in a picture, and a place for each thing drawn


def judge(rule, *rows: Row) -> Judged:
    found = rule(Setting(rows))
    assert found is not None
    return found


FIVE = (52.0, 52.0, 52.0, 52.0, 52.0)


@pytest.mark.parametrize(("parts", "verdict"), [
    (["confirmed"] * 2, "confirmed"), (["not confirmed"] * 2, "not confirmed"), (["confirmed", "open"], "in part"),
    (["confirmed", "not confirmed"], "in part"), (["not confirmed", "open"], "open"), (["in part", "open"], "in part"),
])
def test_parts_of_a_claim_together(parts, verdict):
    assert combined(parts) == verdict


@pytest.mark.parametrize(("shuffled", "verdict", "largest"), [
    (FIVE, "confirmed", 5), ((46.0,), "in part", 0), ((50.1,), "in part", 1)])
def test_the_last_layers(shuffled, verdict, largest):
    two = *curve("shuffle", *shuffled), *curve("conv1x1", *FIVE)
    found = judge(last_layers, BASE, *two, *curve("gap_fc", *FIVE))
    assert found.verdict == verdict
    assert judge(last_layers, BASE, *two).verdict == "in part"  # nothing is known of the third method
    assert f"Shuffle Conv: no loss up to K = {largest}, in the paper 5" in found.text
    assert "1x1 Conv: no loss up to K = 5, in the paper 5" in found.text


def test_the_last_layers_of_a_network_that_loses_at_once_or_too_little_to_tell():
    lost = judge(last_layers, BASE, *curve("shuffle", 46.0))
    assert lost.verdict == "not confirmed"
    assert "K = 1: −4.0 points (−5.4 to −2.6)" in lost.text
    assert judge(last_layers, BASE, *curve("shuffle", 49.5)).verdict == "open"
    later = judge(last_layers, BASE, row(46.0, "shuffle", 3))
    assert later.verdict == "not confirmed"  # in the paper five cost nothing
    assert "not measured: K = 1, 2" in later.text
    assert judge(last_layers, BASE, row(46.0, "shuffle", 6)).verdict == "open"


def test_over_seeds_the_spread_decides():
    base, steady, varied = (row(value, method, k, seeds=3, spread=spread) for value, method, k, spread in (
        (50.0, "baseline", 0, 0.1), (49.5, "conv1x1", 1, 0.1), (49.5, "conv1x1", 1, 2.0)))
    assert judge(parameters, base, replace(steady, params=750)).verdict == "in part"  # it holds for one of two
    assert judge(parameters, base, replace(varied, params=750)).verdict == "open"


def test_the_papers_k_is_of_the_papers_training():
    for other in (row(50.0, augment="none"), row(50.0, image_size=64)):
        fields = {"augment": other.trial.recipe.augment, "image_size": other.trial.image_size}
        found = judge(last_layers, other, *(
            each for method in METHODS for each in curve(method, 52.0, 52.0, **fields)))
        assert (found.verdict, "in the paper" in found.text) == ("confirmed", False)


@pytest.mark.parametrize(("ours", "theirs", "verdict"), [
    ((52.0, 52.0, 52.0), (52.0, 40.0, 40.0), "confirmed"),
    ((52.0, 40.0, 40.0), (52.0, 52.0, 52.0), "not confirmed"),
    ((52.0, 52.0, 52.0), (52.0, 52.0, 52.0), "open"),
    ((52.0, 49.2), (52.0, 48.9), "open"),  # at K = 2 they are not told apart
    ((52.0, 49.2, 40.0), (52.0, 48.9, 30.0), "confirmed"),  # but at K = 3
    ((52.0, 46.0, 40.0), (52.0, 40.0, 30.0), "confirmed"),  # both bear the same, as in the paper
    ((54.0, 46.0), (52.0, 46.0), "open"),  # better, but where nothing is lost
    ((52.0, 46.0, 30.0), (52.0, 40.0, 40.0), "in part"),
    ((52.0,) * 5, (51.9,) * 9, "open"), ((54.0,) * 9, (52.0,) * 5, "open"),  # neither was seen to fail
])
def test_1x1_against_the_others(ours, theirs, verdict):
    both = [curve(method, *theirs) for method in ("gap_fc", "shuffle")]
    assert judge(one_by_one, BASE, *curve("conv1x1", *ours), *both[0], *both[1]).verdict == verdict
    alone = judge(one_by_one, BASE, *curve("conv1x1", *ours), *both[0]).verdict
    assert alone == ("in part" if verdict == "confirmed" else verdict)  # the claim is about both
    assert one_by_one(Setting((BASE, *curve("conv1x1", *ours)))) is None


@pytest.mark.parametrize(("shuffled", "verdict"), [
    ((50.2, 40.1), "confirmed"), ((46.0, 30.0), "not confirmed"), ((50.2, 30.0), "in part"), ((48.0, 38.0), "open")])
def test_shuffling_against_pooling(shuffled, verdict):
    rows = [replace(each, images=1_000_000) if verdict != "open" else each
            for each in (*curve("shuffle", *shuffled), *curve("gap_fc", 50.0, 40.0, 30.0))]
    found = judge(alike, BASE, *rows)
    assert found.verdict == verdict
    assert f"1: {shuffled[0] - 50:+.1f}, 2: {shuffled[1] - 40:+.1f}; " in found.text.replace("\u2212", "-")
    assert alike(Setting((BASE, *rows[:2]))) is None


@pytest.mark.parametrize(("shuffled", "verdict"), [(1.2, "confirmed"), (1.9, "open"), (25.0, "not confirmed")])
def test_a_clean_network_that_is_shuffled_in_the_test(shuffled, verdict):
    tested = [row(value, shuffle_last=k) for k, value in ((0, 50.0), (1, 45.0), (3, shuffled))]
    found = judge(clean_collapses, BASE, *tested)
    assert found.verdict == verdict
    assert "chance is 1.0 %" in found.text
    assert f"1: 45.0, 3: {shuffled:.1f}" in found.text
    assert clean_collapses(Setting((BASE, tested[0]))) is None
    assert judge(clean_collapses, BASE, row(1.1, shuffle_last=8)).verdict == "open"  # the claim is about three


@pytest.mark.parametrize(("trained", "clean", "verdict"), [
    (50.0, 50.9, "confirmed"), (50.0, 46.0, "not confirmed"), (50.0, 48.8, "open"), (30.0, 29.5, "confirmed")])
def test_a_shuffled_network_that_is_not_shuffled_in_the_test(trained, clean, verdict):
    rows = BASE, row(trained, "shuffle", 3), row(clean, "shuffle", 3, shuffle_last=0)
    found = judge(shuffled_do_not_care, *rows)
    assert (found.verdict, f"3: {trained} and {clean}" in found.text) == (verdict, True)
    later = row(45.0, "shuffle", 7), row(40.0, "shuffle", 7, shuffle_last=0)
    both = judge(shuffled_do_not_care, *rows, *later)
    assert (both.verdict, "7." in both.text.split("apart at K = ")[1]) == (verdict, True)
    assert judge(shuffled_do_not_care, BASE, *later).verdict == "open"  # Table 2 shuffles three
    assert shuffled_do_not_care(Setting(rows[:2])) is None
    assert shuffled_do_not_care(Setting((*rows[:2], replace(rows[2], seeds=(1,))))) is None  # another network


@pytest.mark.parametrize(("accuracy", "params", "verdict"), [
    (52.0, 750, "confirmed"), (49.8, 750, "open"), (48.9, 750, "open"), (40.0, 750, "not confirmed"),
    (55.0, 1200, "open"), (55.0, None, "open")])
def test_parameters_saved(accuracy, params, verdict):
    found = judge(parameters, BASE, row(accuracy, "gap_fc", 1, params=params))
    assert found.verdict == ("in part" if verdict == "confirmed" else verdict)  # the claim is about both methods
    assert ("saves 25 % of the parameters at K = 1" in found.text) == (accuracy > 49 and params == 750)
    with_other = judge(parameters, BASE, row(accuracy, "gap_fc", 1, params=params),
                       row(52.0, "conv1x1", 1, params=750))
    assert with_other.verdict == ("confirmed" if verdict == "confirmed" else "in part")


@pytest.mark.parametrize(("values", "usual", "verdict"), [
    ((55.0, 55.0, 40.0), (50.0, 51.0), "confirmed"), ((55.0, 55.0, 40.0), (50.0, 54.0), "open"),
    ((45.0, 50.0, 50.0), (50.0, 50.0), "open"), ((45.0, 45.0, 45.0), (50.0, 50.0), "not confirmed"),
    ((55.0, 52.0, 52.0), (59.0, 52.0), "not confirmed"), ((50.0, 50.0, 55.0), (50.0, 50.0), "open")])
def test_without_augmentation(values, usual, verdict):
    base = row(50.0, augment="none")
    one, other = (curve(method, *values, augment="none") for method in ("conv1x1", "gap_fc"))
    twin = Setting((BASE, *curve("conv1x1", *usual), *curve("gap_fc", *usual)))
    found = no_augmentation(Setting((base, *one, *other), twin))
    assert found.verdict == verdict
    best = f"with augmentation its best of K = 1, 2 is {max(usual) - 50:+.1f} points"
    assert best in found.text.replace("\u2212", "-")
    half = no_augmentation(Setting((base, *one), twin)).verdict
    assert half == ("in part" if verdict == "confirmed" else verdict)  # the claim is about both methods
    alone = judge(no_augmentation, base, *one, *other)
    gained = max(values) > 51
    assert alone.verdict == ("in part" if gained else verdict)  # as large a gain may come with augmentation
    assert "With augmentation nothing was measured" in alone.text
    assert no_augmentation(twin) is None


@pytest.mark.parametrize(("strided", "verdict"), [(45.0, "confirmed"), (50.0, "open"), (55.0, "not confirmed")])
def test_down_sampling(strided, verdict):
    rows = [BASE, *(row(value, "conv1x1", 7, downsample=how)
                    for how, value in (("avg", 50.0), ("max", 50.2), ("stride", strided)))]
    found = judge(stride_hurts, *rows)
    assert found.verdict == verdict
    assert "Against max pooling it is not to be told apart at K = 7." in found.text
    assert stride_hurts(Setting(tuple(rows[:3]))) is None


@pytest.mark.parametrize(("first", "last", "verdict"), [
    (30.0, 50.0, "confirmed"), (50.0, 30.0, "not confirmed"), (50.0, 50.0, "open")])
def test_single_layers(first, last, verdict):
    values = first, first, 45.0, 45.0, last, last
    alone = [row(value, "shuffle", 0, only=unit) for unit, value in enumerate(values, 1)]
    found = judge(early_layers, replace(BASE, units=6), *alone)
    assert found.verdict == verdict
    assert f"first 2 units measured, each alone, come to {first} %, the last 2 units to {last} %" in found.text
    assert judge(early_layers, replace(BASE, units=13), *alone).verdict == "open"  # the last ones are missing
    assert early_layers(Setting((BASE, *alone[:2]))) is None


@pytest.mark.parametrize(("channels", "positions", "verdict"), [
    (45.0, 51.0, "confirmed"), (45.0, 50.0, "in part"),  # a loss of a point is not ruled out
    (45.0, 45.0, "in part"), (40.0, 45.0, "in part"), (51.0, 50.0, "not confirmed"), (49.5, 50.0, "open")])
def test_channels(channels, positions, verdict):
    rows = BASE, *curve("channel_shuffle", channels), *curve("shuffle", positions)
    found = judge(channel_shuffle, *rows)
    assert found.verdict == verdict
    assert ("which costs accuracy as well" in found.text) is (positions < 50)
    later = row(5.0, "channel_shuffle", 13), row(8.0, "shuffle", 13)
    assert judge(channel_shuffle, BASE, *later).verdict == "open"  # at once means with the last unit alone


@pytest.mark.parametrize(("bare", "verdict"), [(45.0, "confirmed"), (50.2, "open"), (55.0, "not confirmed")])
def test_stripped_layers(bare, verdict):
    rows = [row(value, "conv1x1", 2, strip=strip) for strip, value in enumerate((51.0, 49.0, bare))]
    found = judge(stripping, BASE, *rows)
    assert found.verdict == verdict
    assert f"so many kept, in %: 0: {bare}, 1: 49.0, 2: 51.0; with 2 removed" in found.text
    assert stripping(Setting((BASE, rows[0]))) is None
    broken = [row(value, "conv1x1", 2, strip=strip) for strip, value in enumerate((20.0, 30.0))]
    assert judge(stripping, BASE, *broken).verdict == "open"  # changing it costs accuracy already


@pytest.mark.parametrize(("fields", "verdict"), [
    # K, the field at the final map and the accuracy; the paper's axis: K = 1 has 164 pixels, 6: 44, 7: 32, 8: 24, 9: 16
    (((1, 44, 52.0), (6, 36, 40.0)), "confirmed"), (((1, 60, 48.9), (6, 44, 40.0)), "confirmed"),
    (((8, 30, 52.0), (9, 10, 40.0)), "not confirmed"), (((8, 10, 52.0),), "not confirmed"),
    (((1, 44, 52.0), (8, 20, 40.0)), "open"), (((8, 30, 49.1),), "open"), (((1, 60, 46.0), (6, 44, 50.0)), "open"),
    (((1, 60, 52.0), (8, 44, 40.0)), "open"),  # by the paper's axis it sees less than the image
    (((8, 44, 52.0),), "open"),  # and here it sees less and loses nothing
    (((1, 60, 52.0), (12, 34, 40.0)), "open"),  # the paper's axis ends at K = 10
])
def test_the_field_that_is_needed(fields, verdict):
    rows = [row(top1, "conv1x1", k, field=field) for k, field, top1 in fields]
    found = judge(field_beyond_image, BASE, *rows)
    assert found.verdict == verdict
    k, field, top1 = fields[0]
    assert f"{k} ({field}, {[212, 164, 132, 100, 76, 60, 44, 32, 24, 16, 10][k]}): {top1 - 50:+.1f}".replace(
        "-", "\u2212") in found.text
    assert "The paper reads about 50 pixels, K = 5 to 6, off its figure." in found.text
    other = [replace(each, trial=each.trial.model_copy(update={"model": "resnet50"})) for each in (BASE, *rows)]
    assert field_beyond_image(Setting(tuple(other))) is None  # a field of branches is an upper bound


def test_every_claim_names_experiments_of_the_paper_and_a_rule_of_its_own():
    from spaceless.paper import experiments

    assert {name for thesis in THESES for name in thesis.experiments} <= experiments().keys()
    assert len({thesis.judge for thesis in THESES}) == len({thesis.says for thesis in THESES}) == 12


def test_made_data_holdouts_and_blind_guesses_say_nothing():
    with pytest.raises(InputError, match="no outcomes that the paper's claims could be judged by"):
        evidence_page([ROOT / "results" / "calibration-full", ROOT / "results" / "compress"])
    found = evidence([ROOT / "results" / "all-smoke"])
    assert all(setting.base.top1 > 5 for setting in found.settings.values())
    assert {setting.rows[0].trial.data for setting in found.settings.values()} == {"cifar100"}
    assert any(claim.judged for claim in found.claims)
    unknown = [replace(BASE, classes=None), *curve("conv1x1", *FIVE)]
    assert telling([Setting(tuple(unknown))]) == []
    assert telling([Setting((BASE, *unknown[1:]))]) != []


def test_the_page_ends_in_what_its_command_prints():
    page = (ROOT / "docs" / "evidence.md").read_text(encoding="utf-8")
    ((command, folder),) = re.findall(
        r"^spaceless report (.*) --claims --figures docs/(.*)$", page.replace("\\\n", ""), re.MULTILINE)
    told = evidence_page([ROOT / each for each in command.split()], folder)
    assert page.endswith(told.text + "\n")
    figures = {path.name: path.read_text(encoding="utf-8") for path in (ROOT / "docs" / folder).iterdir()}
    assert figures.keys() == told.figures.keys()
    assert all(f"({folder}/{name})" in page for name in figures)
    for name, spec in told.figures.items():
        assert re.findall(_MARKS, figures[name]) == re.findall(_MARKS, svg(spec))


def test_the_command_prints_the_page_and_writes_its_figures(tmp_path, monkeypatch, capsys):
    spaceless = Commands(tmp_path, monkeypatch, capsys)
    folder = ROOT / "results" / "table2-left-fast-quarter"
    status, plain, _ = spaceless("report", folder, "--claims")
    assert (status, "![" in plain, list(tmp_path.glob("**/*.svg"))) == (0, False, [])
    status, out, _ = spaceless("report", folder, "--claims", "--figures", "docs/pictures")
    assert status == 0
    (figure,) = re.findall(r"^!\[A network [^]]+: setting A\]\(pictures/(claim-04-a\.svg)\)$", out, re.MULTILINE)
    assert "clean \u2192 shuffled" in (tmp_path / "docs" / "pictures" / figure).read_text(encoding="utf-8")
    assert "Figure of setting A: with claim 4." in out.split("## 5.")[1].split("## 6.")[0]
    assert "`spaceless study table2-left --preset fast --width 0.25 --epochs 15 --seeds 0`" in plain
    for option in ("--html", "--csv"):
        is_an_error(*spaceless("report", folder, "--claims", option, "x"))
    is_an_error(*spaceless("report", folder, "--claims", "--live"))


def test_what_came_to_nothing_is_a_loss_and_is_named(tmp_path):
    """Of three trainings one diverged and one left a file that cannot be read."""
    from made_outcomes import outcome, store

    made = [outcome(), outcome("conv1x1", 1), outcome("conv1x1", 2, status="diverged"), outcome("conv1x1", 3)]
    store(tmp_path, *made)
    (tmp_path / made[3].trial.id / "outcome.json").write_text("{")
    text = evidence_page([tmp_path]).text
    assert "1x1 Conv: no loss up to K = 1" in text
    assert "a training diverged: K = 2" in text
    assert "without a result: vgg16 conv1x1 K=2 cifar100 seed 0: diverged" in text
    assert made[3].trial.id in text.split("## Without a result")[1]
    own = [each.model_copy(update={"trial": each.trial.model_copy(update={"model": "torchvision:vgg16"})})
           for each in made[:2]]
    store(tmp_path / "own", *own)
    assert "The paper has no such network on such data." in evidence_page([tmp_path / "own"]).text


def test_only_what_diverged_is_a_loss():
    """What a machine did not finish was not measured; one seed that diverged is a loss, whatever the others came to."""
    ended = [*curve("conv1x1", 50.0, 50.0), replace(row(0.0, "conv1x1", 3), top1=None, seeds=(), failed=(0,)),
             row(50.0, "conv1x1", 4), replace(row(50.0, "conv1x1", 5), diverged=(1,)), row(50.0, "conv1x1", 6)]
    setting = Setting((BASE, *ended))
    assert largest_free(setting, "conv1x1") == 4
    text = judge(last_layers, *setting.rows).text
    assert "K = 5" in text.split("a training diverged: ")[1]
    assert "not measured: K = 3" in text
    both = judge(one_by_one, *setting.rows, *curve("gap_fc", *(50.0,) * 6))
    assert "of the K measured of both no loss up to K = 4 against 6" in both.text


def test_of_many_comparisons_each_is_judged_more_carefully():
    """2.0 +- 1.3 points are a difference alone, and none among thirteen; alike is what is so at every K."""
    ours, theirs = row(52.0, "conv1x1", 1), row(50.0)
    assert sides(Setting((BASE,)), [(1, ours, theirs)])[0] == [1]
    assert sides(Setting((BASE,)), [(k, ours, theirs) for k in range(1, 14)])[0] == []
    steady = {"seeds": 5, "spread": 0.1}
    alike_at = [[*curve("shuffle", *accuracies, **steady), *curve("gap_fc", 50.0, 50.0, **steady)]
                for accuracies in ((50.0, 50.1), (50.0, 48.9))]
    assert [judge(alike, BASE, *rows).verdict for rows in alike_at] == ["confirmed", "in part"]


def test_images_of_their_own_size_are_of_that_size():
    given = row(52.0, "conv1x1", 1, image_size=32)
    assert _key(BASE.trial, BASE) == _key(given.trial, given)
    assert _key(BASE.trial, BASE) != _key(given.trial, replace(given, image_size=64))


@pytest.mark.parametrize(("name", "link"), [("my figures", "my%20figures"), (".", "folder"), ("a(b", "a%28b")])
def test_figures_are_linked_by_the_name_of_their_folder(name, link, tmp_path, monkeypatch, capsys):
    (tmp_path / "folder").mkdir()
    spaceless = Commands(tmp_path / "folder", monkeypatch, capsys)
    folder = ROOT / "results" / "table2-left-fast-quarter"
    status, out, _ = spaceless("report", folder, "--claims", "--figures", name)
    assert status == 0
    assert f"]({link}/claim-04-a.svg)" in out
    assert (tmp_path / "folder" / name / "claim-04-a.svg").is_file()
