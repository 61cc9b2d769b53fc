"""Agreement: measured against true largest K, worked by hand; what is not known is not called agreement."""

import math

import pytest

from made_outcomes import calibration
from spaceless.agreement import REFUTED, verdicts
from spaceless.findings import standard_error
from spaceless.report import disagreements
from spaceless.rows import load, rows
from spaceless.trial import RECIPES, Epoch, Trial
from spaceless.wording import calibration_answer


def _verdict(tmp_path, curves, learnable, chance_from, tolerance=5.0):
    calibration(tmp_path, curves, learnable, chance_from)
    outcomes, (study,), _ = load([tmp_path])
    (found,) = verdicts(rows(outcomes, study.planned), study.truth, tolerance)
    return found


def test_a_calibration_cell_worked_by_hand(tmp_path):
    curves = {0: (100.0, 100.0), 1: (100.0, 99.0), 2: (98.0, 96.0), 3: (80.0, 82.0), 4: (26.0, 27.0)}
    found = _verdict(tmp_path, curves, learnable=2, chance_from=4)
    assert (found.measured, found.lower, found.upper, found.agrees, found.n) == (2, 2, 3, True, 2)
    (cell,) = found.chance_cells
    assert (cell.k, cell.top1) == (4, 26.5)
    assert cell.deviation == pytest.approx(1.5 / (100 * math.sqrt(0.25 * 0.75 / 2000)))


@pytest.mark.parametrize(("curves", "learnable", "chance_from", "measured", "agrees"), [
    ({0: (99.0,), 1: (99.0,), 2: (60.0,)}, 2, None, 1, False),  # lost where it must be learnable
    ({0: (99.0,), 1: (99.0,), 2: (99.0,)}, 0, 2, 2, False),  # kept where only chance is left
    ({0: (99.0,), 1: (90.0,), 2: (99.0,)}, 2, None, 0, False),  # a later K does not make up for an earlier one
    ({0: (99.0,), 1: (99.0,), 2: (26.0,)}, 0, 2, 1, True),  # between the bounds nothing is claimed
    ({0: (99.0,), 1: (99.0,), 2: (50.0,)}, 0, 2, 1, False),  # the largest K is right, but chance is not chance
    ({0: (99.0,), 1: (99.0,)}, 7, None, 1, True),  # the truth is cut to the K that were planned
    ({0: (26.0,), 1: (25.0,)}, 1, None, None, False),  # a baseline that learnt nothing agrees with nothing
    ({0: (94.0,), 1: (93.0,), 2: (25.0,)}, 1, 2, None, False),  # nor one that is 5 points from what it must learn
])
def test_calibration_verdicts(tmp_path, curves, learnable, chance_from, measured, agrees):
    found = _verdict(tmp_path, curves, learnable, chance_from)
    assert (found.measured, found.agrees) == (measured, agrees)
    assert (disagreements([tmp_path], "calibration-smoke") == []) is agrees


@pytest.mark.parametrize(("trained", "status", "note"), [
    ((None, None), "finished", "K = 2 is learnable and was lost"),
    ((50.0, 55.0), "finished",
     "K = 2 is learnable and was not learnt: 50.0 % on the training images in the worst of 2 runs"),
    ((100.0, 93.0), "finished",
     "K = 2 is learnable and was not learnt: 93.0 % on the training images in the worst of 2 runs"),
    ((99.0, 100.0), "finished",
     "K = 2 is learnable and was learnt, 99.0 % on the training images in the worst of 2 runs, but not the test "
     "images"),
    ((99.0, 30.0), "diverged", "K = 2 is learnable and diverged"),
])
def test_a_cell_that_lost_what_is_learnable_says_how(tmp_path, trained, status, note):
    calibration(tmp_path, {0: (99.0, 99.0), 1: (99.0, 99.0), 2: (60.0, 50.0)}, 2, None)
    outcomes, (study,), _ = load([tmp_path])
    for i, each in enumerate(outcomes):
        if each.trial.k == 2 and (known := trained[each.trial.seed]) is not None:
            same = {"loss": 1.0, "learning_rate": 0.1, "seconds": 1.0, "images_per_second": 1.0}
            epochs = tuple(Epoch(epoch=nth, top1=top1, **same) for nth, top1 in ((1, 25.0), (2, known)))
            tests = each.evaluations if status == "finished" else ()
            outcomes[i] = each.model_copy(update={"history": epochs, "status": status, "evaluations": tests})
    (found,) = verdicts(rows(outcomes, study.planned), study.truth, 5.0)
    assert (found.measured, found.agrees, found.note) == (1, False, note)


@pytest.mark.parametrize(("curves", "gone", "agrees", "note"), [
    ({0: (99.0,), 1: (25.0,), 2: (25.0,)}, (1, "missing"), None, "K = 1 is missing"),
    ({0: (99.0,), 1: (25.0,), 2: (25.0,)}, (2, "missing"), None, "K = 2 is missing"),  # behind the fall too
    ({0: (99.0,), 1: (25.0,), 2: (25.0,)}, (2, "diverged"), None, "K = 2 diverged"),  # which is not chance
    ({0: (99.0,), 1: (25.0,)}, (0, "missing"), None, "the baseline is missing"),
    ({0: (99.0,), 1: (25.0,)}, (0, "diverged"), False, "the baseline diverged"),
])
def test_a_cell_of_which_a_number_is_missing_does_not_agree(tmp_path, curves, gone, agrees, note):
    k, how = gone
    calibration(tmp_path, curves, 0, 1)
    outcomes, (study,), _ = load([tmp_path])
    kept = [each.model_copy(update={"status": "diverged", "evaluations": ()}) if each.trial.k == k else each
            for each in outcomes if each.trial.k != k or how == "diverged"]
    (found,) = verdicts(rows(kept, study.planned), study.truth, 5.0)
    assert (found.agrees, found.note) == (agrees, note)


def test_what_lacks_runs_agrees_so_far_and_what_lacks_a_k_is_not_shown_to_agree(tmp_path):
    calibration(tmp_path, {0: (99.0, 99.0), 1: (99.0, 99.0), 2: (25.0, 25.0)}, 1, 2)
    _remove(tmp_path, 1, 1)
    outcomes, (study,), _ = load([tmp_path])
    found = verdicts(rows(outcomes, study.planned), study.truth, 5.0)
    assert (found[0].agrees, found[0].n, found[0].lacking) == (True, 1, 1)
    assert calibration_answer(found).text.startswith(
        "Measured and true largest K agree in 1 of 1 cells, in 1 of them so far: runs are missing.")
    assert disagreements([tmp_path], "calibration-smoke") == []
    _remove(tmp_path, 1, 0)
    assert disagreements([tmp_path], "calibration-smoke") == ["shuffle on arrangement-5 (K = 1 is missing)"]


def _remove(root, k, seed):
    gone = Trial(model="chain:8-8", data="arrangement-5", method="shuffle", k=k, seed=seed, repeats=1,
                 recipe=RECIPES["control"])
    (root / gone.id / "outcome.json").unlink()


def test_a_cell_that_differs_is_named_with_its_reason(tmp_path):
    calibration(tmp_path, {0: (99.0,), 1: (60.0,), 2: (25.0,)}, 1, 2)
    assert disagreements([tmp_path], "calibration-smoke") == [
        "shuffle on arrangement-5 (K = 1 is learnable and was lost)"]
    outcomes, (study,), _ = load([tmp_path])
    assert calibration_answer(verdicts(rows(outcomes, study.planned), study.truth, 5.0)).notes == (
        "Shuffle Conv on arrangement-5 differs: K = 1 is learnable and was lost.",)


@pytest.mark.parametrize("sign", [-1, 1])
def test_how_far_from_chance_refutes_it(tmp_path, sign):
    """Four standard errors happen among dozens of cells on shared images; five do not."""
    step = sign * standard_error(25.0, 1000)
    for errors, agrees in ((REFUTED - 0.1, True), (REFUTED + 0.1, False)):
        found = _verdict(tmp_path / str(agrees), {0: (99.0,), 1: (25.0 + errors * step,)}, 0, 1)
        assert (found.agrees, found.note) == (agrees, "" if agrees else "not at chance for K = 1")
