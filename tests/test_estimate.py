"""What a study would cost: the parts that can be worked out by hand, and what is put up with in a dry run only."""

from __future__ import annotations

import numpy as np
import pytest

from spaceless import estimate as room
from spaceless.errors import DataError, InputError
from spaceless.estimate import check, estimate
from spaceless.paper import PRESETS, Scale, experiment
from spaceless.rows import load
from spaceless.run import Place, _prepared, load_data
from spaceless.studies import plan_all
from spaceless.trial import RECIPES, Evaluation, Outcome
from tiny_studies import planned, trial


@pytest.fixture
def nothing_here(monkeypatch, tmp_path):
    monkeypatch.setenv("SPACELESS_DATA", str(tmp_path))
    monkeypatch.chdir(tmp_path)


def test_the_time_is_that_of_the_images_times_the_share_of_the_multiply_adds(monkeypatch, tmp_path):
    monkeypatch.setattr(room, "_images_per_second", lambda *_: 10.0)
    spatial, pointwise = 108 * 400 + 288 * 100 + 32, 12 * 400 + 32 * 100 + 32
    plan = planned(trial(), trial(method="conv1x1", k=2))
    found = estimate(plan.planned, Place(tmp_path))
    # 64 training images and a third of 40 test images of each, at 10 a second
    assert found.seconds == pytest.approx((64 + 40 / 3) / 10 * (1 + pointwise / spatial))
    assert found.probes == {"chain:4-M-8 x 1 at 20 pixels": 10.0}
    shuffled = estimate(planned(trial(method="shuffle", k=1)).planned, Place(tmp_path))  # two passes
    assert shuffled.seconds == pytest.approx((64 + 2 * 40 / 3) / 10)
    tested = estimate(planned(trial(), evaluations=(0, 1), repeats=5).planned, Place(tmp_path))
    assert tested.seconds == pytest.approx((64 + (1 + 1 + 5) * 40 / 3) / 10)


def test_a_probe_trains_the_network_that_is_asked_about(tmp_path):
    found = estimate(planned(trial(), trial(method="shuffle", k=2)).planned, Place(tmp_path))
    (speed,) = found.probes.values()
    assert speed > 0
    assert found.seconds == pytest.approx((2 * 64 + 3 * 40 / 3) / speed)
    assert check(planned(trial()).planned, Place(tmp_path)).seconds is None


def test_absent_data_of_the_paper_are_foreseen_by_their_published_size(nothing_here, monkeypatch, tmp_path):
    monkeypatch.setattr(room, "_images_per_second", lambda *_: 1000.0)
    plan = experiment("table4").trials(PRESETS["paper"])[:1]
    found = estimate(plan, Place(tmp_path / "runs"))
    assert found.absent == ("imagenet",)
    # ResNet-152 at 224 pixels: 11.51 GMAC (torchvision's figure), three times, for 1,281,167 images and 90 epochs
    assert found.macs == pytest.approx(3 * 11.514e9 * 1_281_167 * 90, rel=1e-3)
    with pytest.raises(DataError, match="imagenet"):
        check(plan, Place(tmp_path / "runs"))
    with pytest.raises(DataError, match="my-own"):
        estimate(experiment("table4").trials(Scale(data="my-own")), Place(tmp_path / "runs"))


def test_everything_at_once_runs_each_trial_once_and_stands_in_only_for_what_is_absent(nothing_here):
    whole, studies = plan_all("smoke")
    assert len(studies) == 17
    assert {p.trial.data for p in whole.planned} == {"texture"}
    ids = [p.trial.id for p in whole.planned]
    assert len(ids) == len(set(ids))
    assert set(ids) == {p.trial.id for study in studies for p in study.planned}
    # Figure 7 tests the baseline with 1 to 13 units shuffled, Table 2 left clean and with 3.
    vgg = next(p for p in whole.planned if p.trial.method == "baseline" and p.trial.train_images is None)
    assert vgg.evaluations == tuple(range(1, 14))
    assert {p.trial.data for p in plan_all("fast")[0].planned} == {"cifar100", "imagenet32", "imagenet"}
    assert studies[0].command == "spaceless study table1 --preset smoke --data texture"
    assert whole.name == "all-smoke"


def test_what_is_asked_wins_over_what_a_series_says_of_its_smoke_scale(nothing_here):
    whole, studies = plan_all("smoke", {"epochs": 4, "data": "mine.npz"})
    assert {p.trial.recipe.epochs for p in whole.planned} == {4}
    assert {p.trial.data for p in whole.planned} == {"mine.npz"}
    assert studies[-1].name == "fig10-channel-shuffle-smoke-epochs-4-data-mine.npz"


@pytest.mark.parametrize(("fields", "says"), [
    ({"method": "conv1x1", "k": 1}, "method shuffle alone"), ({}, "0 to 2, the units"),
])
def test_a_test_that_no_network_can_be_put_to_is_refused_before_training(fields, says, tmp_path):
    with pytest.raises(InputError, match=says):
        check(planned(trial(**fields), evaluations=(0, 3)).planned, Place(tmp_path))
    assert check(planned(trial(), evaluations=(0, 2)).planned, Place(tmp_path)).to_run == 1


def test_what_failed_or_lacks_a_test_is_still_to_run(monkeypatch, tmp_path):
    monkeypatch.setattr(room, "_images_per_second", lambda *_: 10.0)
    place, done, failed = Place(tmp_path), trial(), trial(seed=1)
    for each, status in ((done, "finished"), (failed, "failed")):
        place.store.begin(each)
        place.store.finish(Outcome(trial=each, status=status))
    found = estimate(planned(done, failed, evaluations=(0, 1), repeats=5).planned, place)
    assert found.to_run == 2
    # of the finished one only the tests, one of them five times
    assert found.seconds == pytest.approx((64 + (1 + 6 + 6) * 40 / 3) / 10)
    for last, repeats in ((0, 1), (1, 5)):
        place.store.add_evaluation(done, Evaluation(shuffle_last=last, images=40, top1=(50.0,) * repeats))
    assert estimate(planned(done, evaluations=(0, 1), repeats=5).planned, place).to_run == 0


def test_images_that_changed_under_their_name_are_not_mixed(tmp_path):
    """The folder of outcomes refuses a new trial, and of two folders it is told."""
    images = np.random.default_rng(0).integers(0, 256, (8, 8, 8, 3), np.uint8)
    labels = np.arange(8) % 2
    same = {"data": str(tmp_path / "mine.npz"), "recipe": RECIPES["smoke"], "train_images": None, "test_images": None}

    def arrange(pixels) -> None:
        np.savez(tmp_path / "mine.npz", train_images=pixels, train_labels=labels, test_images=pixels,
                 test_labels=labels)
        _prepared.cache_clear()

    def outcome_of(place: Place, **fields) -> None:
        made = trial(**same, **fields)
        place.store.begin(made)
        place.store.finish(Outcome(trial=made, status="finished", data=load_data(made).facts))

    arrange(images)
    outcome_of(Place(tmp_path / "runs"))
    plan = planned(trial(**same, method="shuffle", k=1)).planned
    assert check(plan, Place(tmp_path / "runs")).to_run == 1
    arrange(255 - images)
    with pytest.raises(InputError, match="other images than chain:4-M-8 baseline"):
        check(plan, Place(tmp_path / "runs"))
    outcome_of(Place(tmp_path / "other"), method="shuffle", k=1)
    (problem,) = load([tmp_path / "runs", tmp_path / "other"])[2]
    assert "do not compare" in problem.text


def test_a_network_that_refuses_the_image_is_told_as_by_inspect(tmp_path):
    with pytest.raises(InputError, match="on an image of 20 pixels"):
        check(planned(trial(model="torchvision:alexnet")).planned, Place(tmp_path))
