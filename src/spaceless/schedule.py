"""The learning rate as a function of progress: training at any length keeps the shape of its recipe."""

from __future__ import annotations

import math

from spaceless.trial import Recipe

_START, _END = 1 / 25, 1e-4  # one-cycle: where warm-up starts and annealing ends, as shares of the peak


def learning_rate(recipe: Recipe, progress: float) -> float:
    """Return the learning rate at `progress`, the share of the training that is done, from 0 to 1.

    `step`: multiplied by `factor` at each milestone. `one_cycle` (Smith & Topin 2017): cosine up from 1/25 of the
    peak during `warmup`, cosine down to 1e-4 of it for the rest.
    """
    if recipe.schedule == "step":
        if progress < recipe.warmup:
            return recipe.learning_rate * progress / recipe.warmup
        return recipe.learning_rate * recipe.factor ** sum(progress >= m for m in recipe.milestones)
    if progress < recipe.warmup:
        low, high, part = _START, 1.0, progress / recipe.warmup
    else:
        low, high, part = 1.0, _END, (progress - recipe.warmup) / (1 - recipe.warmup)
    return recipe.learning_rate * (low + (high - low) * (1 - math.cos(math.pi * part)) / 2)
