"""Rows with known figures, as tests of what follows from them need them."""

from __future__ import annotations

from spaceless.rows import Row
from spaceless.trial import RECIPES, Trial


def row(top1: float, method: str = "baseline", k: int = 0, *, shuffle_last: int | None = None, seeds: int = 1,
        spread: float | None = None, params: int | None = 1000, field: int | None = None, augment: str = "crop_flip",
        **fields) -> Row:
    """A row of 100 classes and 10,000 test images a seed: an interval of a lone difference is about 1.3 points wide."""
    recipe = RECIPES["paper"].model_copy(update={"augment": augment})
    trial = Trial.model_validate({"model": "vgg16", "data": "cifar100", "method": method, "k": k, "recipe": recipe,
                                  **fields})
    return Row(trial, shuffle_last, seeds=tuple(range(seeds)), ids=("",) * seeds, top1=top1, spread=spread,
               params=params, images=10_000 * seeds, classes=100, image_size=32, receptive_field=field)


def curve(method: str, *values: float, **fields) -> list[Row]:
    return [row(value, method, k, **fields) for k, value in enumerate(values, 1)]


BASE = row(50.0)
