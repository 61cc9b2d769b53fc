"""Learning rates worked out by hand."""

from __future__ import annotations

import pytest

from spaceless.schedule import learning_rate
from spaceless.trial import RECIPES, Recipe


@pytest.mark.parametrize("batches", [1, 3, 7, 390, 391, 782])
def test_the_papers_recipe_divides_by_5_at_epochs_60_120_160_to_the_step(batches):
    total = 200 * batches
    rates = [learning_rate(RECIPES["paper"], step / total) for step in range(total)]
    assert rates == pytest.approx(
        [0.1] * 60 * batches + [0.02] * 60 * batches + [0.004] * 40 * batches + [0.0008] * 40 * batches)


@pytest.mark.parametrize("batches", [1, 7, 5004, 5005])
def test_imagenet_divides_by_10_every_30_epochs_to_the_step(batches):
    total = 90 * batches
    for epoch, before, after in ((30, 0.1, 0.01), (60, 0.01, 0.001)):
        assert learning_rate(RECIPES["imagenet"], (epoch * batches - 1) / total) == pytest.approx(before)
        assert learning_rate(RECIPES["imagenet"], epoch * batches / total) == pytest.approx(after)
    assert learning_rate(RECIPES["imagenet"], (total - 1) / total) == pytest.approx(0.001)


def test_linear_warm_up_in_front_of_steps():
    recipe = Recipe(name="x", epochs=1, learning_rate=0.8, warmup=0.5, milestones=(0.75,), factor=0.5)
    assert [learning_rate(recipe, p) for p in (0.0, 0.25, 0.5, 0.7, 0.75, 1.0)] == [0.0, 0.4, 0.8, 0.8, 0.4, 0.4]


def test_one_cycle_by_hand():
    recipe = Recipe(name="x", epochs=1, learning_rate=1.0, schedule="one_cycle", warmup=0.2)
    expected = {0.0: 1 / 25, 0.1: (1 / 25 + 1) / 2, 0.2: 1.0, 0.6: (1 + 1e-4) / 2, 1.0: 1e-4}
    assert {p: learning_rate(recipe, p) for p in expected} == pytest.approx(expected)


def test_one_cycle_rises_until_the_end_of_warm_up_and_then_falls():
    recipe = RECIPES["control"]
    rates = [learning_rate(recipe, step / 100) for step in range(101)]
    top = rates.index(max(rates))
    assert (top, rates[top]) == (30, recipe.learning_rate)
    assert rates[:top + 1] == sorted(rates[:top + 1])
    assert rates[top:] == sorted(rates[top:], reverse=True)


def test_one_cycle_without_warm_up_starts_at_the_peak():
    recipe = Recipe(name="x", epochs=1, learning_rate=1.0, schedule="one_cycle")
    assert learning_rate(recipe, 0.0) == 1.0
