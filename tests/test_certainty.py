"""How sure a difference is: intervals worked by hand."""

import math

import pytest

from made_outcomes import outcome
from spaceless.certainty import certainty, interval, lone_run
from spaceless.rows import rows


def _rows(base, changed, images=10_000):
    made = [outcome(seed=s, top1=t, images=images) for s, t in enumerate(base)]
    made += [outcome("gap_fc", 1, seed=s, top1=t, images=images) for s, t in enumerate(changed)]
    found = rows(made)
    return found[1], found[0]


def test_several_runs_give_students_interval_with_the_spreads_pooled():
    # spreads 1 and 1, so 1 pooled; 2.776 is the 97.5 % quantile of 3 + 3 - 2 degrees of freedom
    found = interval(*_rows((74.0, 75.0, 76.0), (73.0, 74.0, 75.0)))
    assert (found.difference, found.lone) == (-1.0, False)
    assert found.half == pytest.approx(2.776 * math.sqrt(2 / 3), rel=1e-3)


def test_unequal_numbers_of_runs_are_weighed():
    # variances 2 (two runs) and 1 (three): (1 * 2 + 2 * 1) / 3 = 4/3 with 3 degrees of freedom
    found = interval(*_rows((74.0, 75.0, 76.0), (74.0, 76.0)))
    assert found.half == pytest.approx(3.182 * math.sqrt(4 / 3 * (1 / 2 + 1 / 3)), rel=1e-3)


def test_many_runs_come_near_the_normal_quantile():
    found = interval(*_rows((74.0, 76.0) * 10, (74.0, 76.0) * 10))
    variance = 20 / 19  # of 20 values at a distance of 1 from their mean
    assert found.half == pytest.approx(2.024 * math.sqrt(variance * 2 / 20), rel=1e-3)  # 38 degrees of freedom


def test_one_of_many_comparisons_is_wider():
    """99.5 % of Student's t with 4 degrees of freedom are below 4.604; 99.75 % of the normal below 2.807."""
    pair = _rows((74.0, 75.0, 76.0), (73.0, 74.0, 75.0))
    assert interval(*pair, comparisons=5).half == pytest.approx(4.604 * math.sqrt(2 / 3), rel=1e-3)
    lone = _rows((75.0,), (75.0,))
    assert interval(*lone, comparisons=10).half / interval(*lone).half == pytest.approx(2.807 / 1.960, rel=1e-3)


def test_a_lone_run_has_only_its_test_images():
    found = interval(*_rows((75.0,), (75.0,)))
    assert found.lone
    assert found.half == pytest.approx(1.96 * math.sqrt(2) * 100 * math.sqrt(0.75 * 0.25 / 10_000), rel=1e-3)


def test_several_runs_see_no_more_images_than_one():
    one, several = interval(*_rows((75.0,), (75.0,))), interval(*_rows((75.0, 74.0, 76.0), (75.0,)))
    assert several.lone
    assert several.half == one.half


def test_not_even_a_perfect_lone_run_is_certain():
    # 2,049 right of 2,050: a standard error of 100 sqrt(2049 / 2050^3) points each
    found = interval(*_rows((100.0,), (100.0,), images=2048))
    assert found.half == pytest.approx(1.96 * math.sqrt(2) * 100 * math.sqrt(2049 / 2050**3), rel=1e-3)


def test_a_missing_number_has_no_interval():
    row, base = _rows((75.0,), (75.0,))
    (missing,) = rows([outcome("gap_fc", 2, status="failed")])
    assert interval(missing, base) is None
    assert certainty(missing, base, 1.0) == ""
    assert interval(row, base) is not None


@pytest.mark.parametrize(("base", "changed", "how", "where"), [
    ((74.0, 74.1, 74.2), (74.0, 74.1, 74.2), "firm", "lies within the tolerance"),
    ((74.0, 74.1, 74.2), (70.0, 70.1, 70.2), "firm", "lies beyond it"),
    ((74.0, 75.0, 76.0), (74.0, 75.0, 76.0), "likely", "reaches across the tolerance"),
    ((74.0, 75.0, 76.0), (72.0, 73.0, 74.0), "open", "reaches across the tolerance"),
    ((74.0,), (74.0,), "open", "reaches across the tolerance"),
    ((74.0,), (76.0,), "a hint", "lies within the tolerance"),
    ((74.0,), (60.0,), "a hint", "lies beyond it"),
])
def test_the_words_follow_from_where_the_interval_lies(base, changed, how, where):
    text = certainty(*_rows(base, changed), 1.0)
    assert text.startswith(f"How sure: {how}. ")
    assert text.endswith(f", which {where}.")
    assert ("a lone run" in text) == (len(base) == 1)


def test_a_lone_run_beside_several_is_said():
    text = certainty(*_rows((74.0, 75.0, 76.0), (75.0,)), 1.0)
    assert "It stands on 1 and 3 runs" in text
    assert "without a spread over seeds" in text


def test_what_no_tolerance_judges_still_says_that_it_is_a_lone_run():
    row, base = _rows((75.0,), (75.0,))
    assert "standard error of 0.4 points" in lone_run(row, base)
    several, also = _rows((75.0, 76.0), (75.0, 74.0))
    assert lone_run(several, also) == ""


def test_a_few_runs_that_agree_to_the_image_are_not_certain_of_all_others():
    """Their spread is none; what is left is what the test images tell."""
    alike, lone = interval(*_rows((75.0, 75.0), (73.0, 73.0), 200)), interval(*_rows((75.0,), (73.0,), 200))
    assert (alike.lone, alike.half) == (True, lone.half)
    row, base = _rows((75.0, 75.0), (73.0, 73.0), 200)
    assert "open. It stands on 2 and 2 runs, without a spread over seeds" in certainty(row, base, 1.0)
