"""The interval of a difference of accuracies on the same images: by hand, against tables, and by simulation."""

from __future__ import annotations

import math
from statistics import NormalDist

import numpy as np
import pytest

from spaceless.errors import InputError
from spaceless.paired import packed, paired_interval, student, unpacked

# 97.5 % quantiles of Student's t for 1, 2, ... degrees of freedom, as tables have them.
_STUDENT = (
    12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228, 2.201, 2.179, 2.160, 2.145, 2.131,
    2.120, 2.110, 2.101, 2.093, 2.086, 2.080, 2.074, 2.069, 2.064, 2.060, 2.056, 2.052, 2.048, 2.045, 2.042,
)


@pytest.mark.parametrize("images", [1, 7, 8, 9, 1000])
def test_truths_survive_packing(images):
    right = np.random.default_rng(images).random(images) < 0.5
    text = packed(right)
    assert len(text) <= 4 * math.ceil(math.ceil(images / 8) / 3)
    assert (unpacked(text, images) == right).all()


@pytest.mark.parametrize(("text", "images"), [(packed([True] * 9), 17), (packed([True] * 9), 8), ("no base 64!", 8)])
def test_what_was_not_packed_is_refused(text, images):
    with pytest.raises(InputError, match=f"truths of {images} images"):
        unpacked(text, images)


def test_quantiles_of_student_are_those_of_the_table():
    for freedom, quantile in enumerate(_STUDENT, 1):
        assert student(0.975, freedom) == pytest.approx(quantile, rel=1e-3)
    assert student(0.95, 1e9) == pytest.approx(1.6449, abs=1e-4)
    assert student(0.99, 3) == pytest.approx(4.541, rel=1e-3)
    assert student(0.9, 2.5) == pytest.approx((student(0.9, 2) + student(0.9, 3)) / 2, rel=0.02)
    assert student(0.5, 4) == 0


@pytest.mark.parametrize("freedom", [1.05, 1.3, 2.5, 3.7])
def test_quantiles_of_student_between_whole_degrees_of_freedom(freedom):
    """By the midpoint rule: the chance to pass t is an integral of cos(a)^(n - 1) from atan(t / sqrt(n)) to pi / 2."""
    for confidence in (0.8, 0.95, 0.998):
        start = np.arctan(student(confidence, freedom) / np.sqrt(freedom))
        step = (np.pi / 2 - start) / 200_000
        angles = start + step * (np.arange(200_000) + 0.5)
        scale = math.gamma((freedom + 1) / 2) / math.gamma(freedom / 2) / math.sqrt(math.pi)
        passed = scale * step * (np.cos(angles) ** (freedom - 1)).sum()
        assert passed == pytest.approx(1 - confidence, rel=1e-3)


def truths(*counts: int) -> tuple[np.ndarray, np.ndarray]:
    """Return base and changed with so many images right in both, lost, gained, wrong in both."""
    both, lost, gained, neither = counts
    base = np.repeat([True, True, False, False], [both, lost, gained, neither])
    return base, np.repeat([True, False, True, False], [both, lost, gained, neither])


def test_a_single_pair_of_trainings_has_mcnemars_variance():
    base, changed = truths(500, 60, 40, 400)
    found = paired_interval([base], [changed], 0.95)
    lost, gained, n = 60, 40, 1000
    error = math.sqrt((lost + gained + 1 - (gained - lost) ** 2 / n) / ((n + 1) * (n + 2)))
    assert found.difference == pytest.approx(-2.0)
    assert found.low == pytest.approx(-2.0 - 100 * student(0.95, n + 1) * error, abs=1e-9)
    assert found.high == pytest.approx(-2.0 + 100 * student(0.95, n + 1) * error, abs=1e-9)


def test_pairing_is_what_narrows_the_interval():
    agreeing, crossing = truths(500, 20, 10, 470), truths(300, 220, 210, 270)
    halves = [i.high - i.low for i in (paired_interval([b], [c], 0.95) for b, c in (agreeing, crossing))]
    assert halves[0] < 0.3 * halves[1]


def test_networks_that_agree_on_every_image_are_not_known_to_be_equal():
    base, _ = truths(50, 0, 0, 50)
    found = paired_interval([base], [base], 0.95)
    assert found.difference == 0
    assert -2.5 < found.low < -0.5
    assert paired_interval([base], [base], 0.5).low == 0


def test_a_spread_over_seeds_widens_the_interval():
    base, changed = truths(500, 60, 40, 400)
    worse = truths(500, 100, 0, 400)[1]
    alike = paired_interval([base] * 3, [changed] * 3, 0.95)
    apart = paired_interval([base] * 3, [changed, changed, worse], 0.95)
    assert apart.high - apart.low > 2 * (alike.high - alike.low)


@pytest.mark.parametrize(("seeds", "images", "seed_effect"), [(1, 400, 0.0), (3, 400, 0.0), (3, 1000, 0.05),
                                                              (5, 1000, 0.02)])
def test_each_end_covers_the_truth_as_often_as_it_says(seeds, images, seed_effect):
    """Probit model: an effect of the image that both networks share, one of the training, and a rest."""
    random, normal = np.random.default_rng(seeds * images), NormalDist()
    limits = [normal.inv_cdf(0.6), normal.inv_cdf(0.59)]
    scale = math.sqrt(1 + seed_effect**2)
    truth = 100 * (normal.cdf(limits[1] / scale) - normal.cdf(limits[0] / scale))
    low = high = 0
    rounds = 500
    for _ in range(rounds):
        image = math.sqrt(0.6) * random.standard_normal(images)
        drawn = [[image + math.sqrt(0.4) * random.standard_normal(images) + seed_effect * random.standard_normal()
                  < limit for _ in range(seeds)] for limit in limits]
        found = paired_interval(drawn[0], drawn[1], 0.95)
        low, high = low + (found.low <= truth), high + (found.high >= truth)
    assert 0.92 <= low / rounds <= 0.985
    assert 0.92 <= high / rounds <= 0.985
