"""How a K is judged and chosen, and what is said of it, on outcomes that are made up instead of trained."""

from __future__ import annotations

import pytest

from networks import FLAT, Flat
from spaceless import compress, compression, models
from spaceless.compress import Question, budget, search, tuning_recipe
from spaceless.errors import SpacelessError
from spaceless.paired import packed
from spaceless.run import Place
from spaceless.tradeoff import compression_answer
from spaceless.trial import RECIPES, DataFacts, Evaluation, Latency, Outcome, Start, Trial

NET, DATA = "chain:16-M-24-M-32-32", "arrangement-4"
IMAGES = 1000
FACTS = DataFacts(name=DATA, source="", classes=4, image_size=20, train_images=9000, test_images=IMAGES, digest="d")


def question(**changed) -> Question:
    base = Trial(model=changed.pop("model", NET), data=DATA, recipe=RECIPES["control"], holdout=0.1)
    seeds = changed.pop("seeds", (0,))
    return Question(tuple(base.model_copy(update={"seed": seed}) for seed in seeds), base.recipe, **changed)


def made_up(place: Place, accuracies: dict[int, float | None], milliseconds: dict[int, float] | None = None):
    """Return what runs a plan by writing outcomes with these accuracies by K; None diverges."""
    ran: list[int] = []

    def run(plan) -> None:
        for planned in plan.planned:
            trial = planned.trial
            if place.store.outcome(trial) is not None:
                continue
            ran.append(trial.k)
            top1 = accuracies[trial.k]
            right = [i < (top1 or 0) / 100 * IMAGES for i in range(IMAGES)]
            ms = (milliseconds or {}).get(trial.k)
            outcome = Outcome(
                trial=trial, status="diverged" if top1 is None else "finished", units=4, data=FACTS,
                params=1000 - 100 * trial.k, macs=5000 - 100 * trial.k, weights_sha256="0" * 64,
                evaluations=() if top1 is None else (
                    Evaluation(images=IMAGES, top1=(100 * sum(right) / IMAGES,), right=packed(right)),),
                latency=None if ms is None else Latency(median=ms / 1000, lower=ms / 1000, upper=ms / 1000, batch=1,
                                                        repeats=2))
            place.store.begin(trial)
            place.store.finish(outcome)

    return run, ran


@pytest.fixture
def untested(monkeypatch):
    monkeypatch.setattr(compress, "_test", lambda *_: None)


def found_by(tmp_path, accuracies, milliseconds=None, **changed):
    place, asked = Place(tmp_path), question(**changed)
    run, ran = made_up(place, accuracies, milliseconds)
    told: list[str] = []
    return search(asked, budget(asked, place), place, run, "spaceless compress", told.append), ran, told


def test_a_difference_that_is_not_known_well_enough_is_not_accepted(tmp_path, untested):
    accuracies = {0: 80, 1: 80, 2: 79.6, 3: 78, 4: 25}
    found, ran, told = found_by(tmp_path, accuracies, tolerance=1.0)  # 4 of 1,000 images lost: 0.4 + 1.64 x 0.22 points
    assert {each.k: each.verdict for each in found.tried} == {0: "baseline", 1: "within", 2: "within", 3: "beyond"}
    assert found.at(2).low == pytest.approx(-0.4 - 100 * 1.6464 * (5 / (1001 * 1002)) ** 0.5, abs=1e-3)
    assert found.largest == 2
    assert sorted(ran) == [0, 1, 2, 3]
    assert told[0].startswith("baseline: 80.00 % on 1,000 held-out images")
    wide, _, _ = found_by(tmp_path / "wide", accuracies | {2: 79.2}, tolerance=1.0)
    assert wide.at(2).verdict == "open"  # 0.8 points are no more than 1, but 0.8 + 1.64 x 0.3 are
    assert wide.largest == 1
    point, _, _ = found_by(tmp_path / "point", accuracies | {2: 79.2}, tolerance=1.0, confidence=0.5)
    assert point.largest == 2


def test_a_diverged_training_rules_its_k_out(tmp_path, untested):
    found, _, _ = found_by(tmp_path, {0: 80, 1: 80, 2: 80, 3: None, 4: None}, tolerance=1.0)
    assert found.largest == 2
    assert found.at(3).verdict == "diverged"
    assert found.at(3).difference is None


def test_latency_may_choose_a_smaller_k_than_the_largest(tmp_path, untested):
    accuracies, times = {0: 80, 1: 80, 2: 80, 3: 25, 4: 25}, {0: 5, 1: 1, 2: 2, 3: 3, 4: 1}
    found, _, _ = found_by(tmp_path / "a", accuracies, times, tolerance=1.0, objective="latency")
    assert (found.largest, found.chosen) == (2, 1)
    told = compression_answer(found)
    assert "with the least time for a forward pass of those tried and accepted" in told.text
    assert "K = 2 would be within the tolerance too" in told.text
    assert any("not side by side" in note for note in told.notes)
    for objective in ("params", "macs"):
        found, _, _ = found_by(tmp_path / objective, accuracies, times, tolerance=1.0, objective=objective)
        assert (found.largest, found.chosen) == (2, 2)
    with pytest.raises(SpacelessError, match="no latency of K"):
        found_by(tmp_path / "b", accuracies, None, tolerance=1.0, objective="latency")


def test_what_is_chosen_is_accepted_and_costs_less_than_the_baseline(tmp_path, untested):
    accuracies, times = {0: 80, 1: 80, 2: 80, 3: 80, 4: 25}, {0: 5, 1: 4, 2: 1, 3: 2, 4: 1}
    found, ran, _ = found_by(tmp_path / "a", accuracies, times, tolerance=1.0, objective="latency")
    assert (1 in ran, found.chosen) == (False, 3)  # K = 2 is the fastest, and may be a lucky one
    found, _, _ = found_by(tmp_path / "b", accuracies, times | {0: 0.5}, tolerance=1.0, objective="latency")
    assert (found.largest, found.chosen) == (3, 0)
    assert compression_answer(found).text == (
        f"{NET} on {DATA}: up to K = 3 of 4 units by 1x1 Conv stay within 1 point of the baseline, but none of those "
        "tried has less time for a forward pass than it.")


@pytest.mark.parametrize(("accuracies", "changed", "said"), [
    ({0: 80, 1: 79, 2: 25, 3: 25, 4: 25}, {}, "no K that was tried is shown to stay within 1 point of the baseline."),
    ({0: 80, 1: 79, 2: 80, 3: 25, 4: 25}, {}, "no K is accepted. K = 2 lies within 1 point of the baseline, but the K "
     "before it is not shown to, or was not tried."),
    ({0: 80, 1: 79.2, 2: 25, 3: 25, 4: 25}, {}, "Undecided, and so not accepted: K = 1. A larger holdout would narrow"),
    ({0: 80, 1: 79.2, 2: 25, 3: 25, 4: 25}, {"seeds": (0, 1)}, "A larger holdout or more seeds would narrow the "),
    ({0: 80, 1: 80, 2: 80, 3: 25, 4: 25}, {}, "which leaves out what another seed would give. These images chose K"),
    ({0: 80, 1: 80, 2: 80, 3: 25, 4: 25}, {"seeds": (0, 1)}, "% confidence. These images chose K"),
])
def test_what_an_answer_says_of_how_sure_it_is(tmp_path, untested, accuracies, changed, said):
    found, _, _ = found_by(tmp_path, accuracies, tolerance=1.0, **changed)
    assert said.replace("% conf", "\N{NO-BREAK SPACE}% conf") in " ".join(compression_answer(found).sentences)


@pytest.mark.parametrize(("difference", "confidence", "said"), [
    (-0.4, 0.95, "a difference of −0.40 points (at least −0.90 and at most +0.10, each at 95\N{NO-BREAK SPACE}% conf"),
    (-1.0, 0.95, "a difference of −1.00 points (at least"),
    (-1.1, 0.95, "a difference of −1.10 points, which is beyond the tolerance (at least"),
    (-0.4, 0.5, "a difference of −0.40 points."),
])
def test_what_is_said_of_the_test_images(tmp_path, monkeypatch, difference, confidence, said):
    told = compression.Tested(images=400, baseline=80.0, chosen=80.0 + difference, difference=difference,
                              low=difference - 0.5, high=difference + 0.5)
    monkeypatch.setattr(compress, "_test", lambda *_: told)
    found, _, _ = found_by(tmp_path, {0: 80, 1: 80, 2: 80, 3: 25, 4: 25}, tolerance=1.0, confidence=confidence)
    assert said in " ".join(compression_answer(found).notes)


def test_units_that_cannot_be_changed_are_counted_and_named(tmp_path, untested, monkeypatch):
    monkeypatch.setattr(compress, "_possible", lambda *_: (2, "K = 3 cannot be made: no"))
    found, ran, _ = found_by(tmp_path, dict.fromkeys(range(5), 80), tolerance=1.0)
    assert (found.units, found.possible, found.largest, max(ran)) == (4, 2, 2, 2)
    told = compression_answer(found)
    assert "K = 2 of 4 units" in told.text
    assert "K = 3 cannot be made: no." in told.notes
    assert any(note.startswith("2 of 2 K were tried") for note in told.notes)


def test_an_exact_tie_is_within_the_tolerance(tmp_path, untested):
    """7 of 1,000 images are 0.7 points, and in binary a little more."""
    found, _, _ = found_by(tmp_path, {0: 80, 1: 79.3, 2: 25, 3: 25, 4: 25}, tolerance=0.7, confidence=0.5)
    assert found.at(1).verdict == "within"


def test_a_baseline_that_has_not_learnt_ends_the_search(tmp_path, untested):
    ran: list[int] = []

    def run(plan) -> None:
        ran.extend(planned.trial.k for planned in plan.planned)
        made_up(place, dict.fromkeys(range(5), 26.0))[0](plan)

    asked = question(tolerance=1.0)
    for ahead in (False, True):
        place = Place(tmp_path / str(ahead))
        with pytest.raises(SpacelessError, match="clearly above chance"):
            search(asked, budget(asked, place), place, run, "spaceless compress", lambda _: None, ahead=ahead)
    assert ran == [0, 0, 2]  # nothing is trained in vain, unless a process is idle


@pytest.mark.parametrize("model", [NET, "torchvision:flat"])
def test_a_head_that_reads_positions_is_part_of_the_answer(tmp_path, untested, monkeypatch, model):
    build = models._construct
    monkeypatch.setattr(models, "_construct", lambda name, classes, size: (
        Flat(classes, size) if name == "torchvision:flat" else build(name, classes, size)))
    found, _, _ = found_by(tmp_path, dict.fromkeys(range(5), 80), model=model)
    assert found.head == (() if model == NET else (FLAT,))
    assert (FLAT in compression_answer(found).notes) is (model != NET)


def test_no_acceptable_k_is_an_answer_too(tmp_path):
    found, _, _ = found_by(tmp_path, {0: 80, 1: 50, 2: 40, 3: 30, 4: 25}, tolerance=1.0)
    assert (found.largest, found.chosen, found.test) == (0, 0, None)  # the test images are not read


def test_seeds_are_judged_together(tmp_path, untested):
    found, ran, _ = found_by(tmp_path, {0: 80, 1: 80, 2: 80, 3: 50, 4: 25}, tolerance=1.0, seeds=(0, 1, 2))
    assert found.largest == 2
    assert ran.count(2) == ran.count(0) == 3
    assert len(found.at(2).ids) == 3


def test_a_fine_tuning_is_shorter_and_gentler():
    recipe = tuning_recipe(RECIPES["paper"], None)
    assert (recipe.epochs, recipe.learning_rate, recipe.schedule) == (50, pytest.approx(0.01), "one_cycle")
    assert tuning_recipe(RECIPES["fast"], 3).epochs == 3
    assert tuning_recipe(RECIPES["control"].model_copy(update={"epochs": 1}), None).epochs == 1


def test_a_warm_question_names_the_weights_of_each_seed(tmp_path):
    place = Place(tmp_path)
    warm = Start(run="0" * 16, weights_sha256="0" * 64, reduction="mean")
    asked = question(seeds=(0, 1), warm=warm)
    run, _ = made_up(place, {0: 80})
    run(compress.plan(asked, asked.baselines, "spaceless compress"))
    trials = asked.trials(1, place)
    assert [t.start.run for t in trials] == [base.id for base in asked.baselines]
    assert {t.start.reduction for t in trials} == {"mean"}
