"""What compares the networks of a setting, by rows with known figures."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest

from made_outcomes import outcome, store
from made_rows import BASE, curve, row
from spaceless.certainty import Spread, interval
from spaceless.evidence import evidence_page
from spaceless.setting import Setting, largest_free, sides


def test_a_loss_counts_from_a_point_on_and_up_to_the_first_k_that_loses():
    setting = Setting((BASE, *curve("conv1x1", 52.0, 49.2, 48.8, 52.0)))
    assert largest_free(setting, "conv1x1") == 2
    assert largest_free(setting, "conv1x1", sure=True) == 1
    assert largest_free(setting, "gap_fc") is None
    assert largest_free(Setting(setting.rows[1:]), "conv1x1") is None  # nothing to compare with


def test_better_and_worse_need_an_interval_on_one_side():
    compared = [(1, row(55.0), BASE), (2, row(45.0), BASE), (3, row(50.5), BASE), (4, row(0.0, seeds=0), BASE)]
    assert sides(Setting((BASE,)), compared) == ([1], [2], [3])


def test_a_training_that_came_to_nothing_ends_what_is_free():
    diverged = replace(row(0.0, "conv1x1", 2), top1=None, seeds=(), diverged=(0,))
    setting = Setting((BASE, row(52.0, "conv1x1", 1), diverged, row(52.0, "conv1x1", 3)))
    assert largest_free(setting, "conv1x1") == 1


def test_other_shuffles_are_another_method_and_of_two_rows_the_one_of_more_passes_counts():
    fixed = row(10.0, "shuffle", 1, shuffle={"fixed": True})
    few, many = (row(value, "shuffle", 1, repeats=repeats) for value, repeats in ((46.0, 20), (52.0, 200)))
    few, many = replace(few, passes=20), replace(many, passes=200)
    for rows in ((fixed, few, many), (many, few, fixed)):
        assert Setting((BASE, *rows)).curve("shuffle") == {1: many}
    assert Setting((BASE, row(10.0, "shuffle", only=2, shuffle={"fixed": True}))).alone("shuffle") == {}
    assert Setting((BASE, row(10.0, "conv1x1", 3, strip=1))).curve("conv1x1") == {}


def test_one_difference_among_many_has_to_be_larger():
    pairs = [(k, row(48.5 if k == 1 else 50.0, "conv1x1", k), BASE) for k in range(1, 17)]
    assert sides(Setting((BASE,)), pairs[:1])[1] == [1]
    assert sides(Setting((BASE,)), pairs)[1] == []


def test_the_spread_over_seeds_is_pooled_over_the_networks_of_a_setting():
    # (2 * 0.5^2 + 2 * 0.7^2) / 4 = 0.37 with 4 degrees of freedom; the lone runs and the mismatched test do not count
    mismatched = row(30.0, shuffle_last=3, seeds=3, spread=9.0)
    setting = Setting((several(50.0, 0.5), several(49.0, 0.7, "conv1x1", 2), row(45.0, "conv1x1", 5), mismatched))
    assert setting.spread == Spread(pytest.approx(math.sqrt(0.37)), 4, 0.5, 0.7)


def test_a_lone_run_is_judged_by_the_spread_of_the_others():
    base = several(50.0, 0.5)
    setting = Setting((base, several(49.0, 0.5, "conv1x1", 2)))
    found = setting.interval(row(45.0, "conv1x1", 5), base)
    assert (found.difference, found.lone) == (-5.0, False)
    assert found.half == pytest.approx(2.776 * 0.5 * math.sqrt(1 / 1 + 1 / 3), rel=1e-3)  # 97.5 % of Student's t
    many = setting.interval(row(45.0, "conv1x1", 5), base, comparisons=5)
    assert many.half == pytest.approx(4.604 * 0.5 * math.sqrt(4 / 3), rel=1e-3)  # and 99.5 %


def test_too_few_runs_say_nothing_of_a_spread():
    few = (several(50.0, 0.5), row(49.0, "conv1x1", 2), row(48.0, "gap_fc", 2))
    assert Setting(few).spread is None
    assert Setting(few).interval(few[1], few[0]).lone
    blind = replace(several(1.0, 0.05, "shuffle", 13), images=30_000)
    assert Setting((*few, blind)).spread is None  # of a blind guess it is smaller than of what has learnt
    assert Setting((*few, several(40.0, 0.0, "gap_fc", 5), several(41.0, 0.0, "gap_fc", 6))).spread.freedom == 6


def test_a_mismatched_test_has_the_spread_of_its_own():
    base, shuffled = several(50.0, 0.5), row(30.0, shuffle_last=3, seeds=3, spread=9.0)
    setting = Setting((base, several(49.0, 0.5, "conv1x1", 2), shuffled))
    assert setting.interval(shuffled, base) == interval(shuffled, base)
    assert setting.interval(shuffled, base).half > 10


def test_the_page_tells_the_spread(tmp_path):
    made = [outcome("conv1x1" if k else "baseline", k, seed=seed, top1=50.0 + seed * (1 + k))
            for k in (0, 2) for seed in (0, 1, 2)]
    text = evidence_page([store(tmp_path, *made)]).text
    assert ("From seed to seed an accuracy varies by 2.24 points (standard deviation, 4 degrees of freedom; network by "
            "network 1.00 to 3.00).") in text  # (1 + 9) / 2 = 5
    assert "(3 seeds, 10,000 test images)" in text


def test_the_spread_decides_what_is_free():
    """A loss of 0.8 points by a lone run: by the test images it may be more than one, by a small spread not."""
    lone = row(49.2, "conv1x1", 1)
    wide, narrow = ((several(50.0, spread), several(50.0, spread, "gap_fc", 1)) for spread in (1.0, 0.05))
    assert [largest_free(Setting((*each, lone)), "conv1x1", sure=True) for each in (wide, narrow)] == [0, 1]
    assert largest_free(Setting((BASE, lone)), "conv1x1", sure=True) == 0


def several(top1: float, spread: float, method: str = "baseline", k: int = 0):
    return row(top1, method, k, seeds=3, spread=spread)
