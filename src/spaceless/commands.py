"""The command that runs a trial again: every field of it that is not as `spaceless train` would have it anyway."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from typing import Any

from spaceless.numerals import typed
from spaceless.trial import RANDOM_METHODS, RECIPES, Recipe, ShuffleOptions, Trial

_CHANGEABLE = ("epochs", "batch_size", "augment", "precision")  # what `train` takes in place of the recipe's own
_MOST = 40  # commands on a page


def train_command(trial: Trial) -> str | None:
    """Return the `spaceless train` that runs `trial`, or None where its recipe or its start cannot be named there."""
    recipe = _recipe_options(trial.recipe)
    if recipe is None or trial.start is not None:
        return None
    usual = Trial(model=trial.model, data=trial.data)
    options: dict[str, Any] = {"model": trial.model, "data": trial.data}
    names = ("method", "only", "strip", "downsample", "width", "image_size", "train_images", "test_images", "holdout")
    options |= {name: getattr(trial, name) for name in names if getattr(trial, name) != getattr(usual, name)}
    if trial.only is None and trial.k:
        options["k"] = trial.k
    if trial.method in RANDOM_METHODS and trial.repeats != Trial.model_fields["repeats"].default:
        options["repeats"] = trial.repeats
    options |= recipe
    if trial.seed:
        options["seed"] = trial.seed
    words = ["spaceless", "train"]
    for name, value in options.items():
        words += [f"--{name.replace('_', '-')}", typed(value) if isinstance(value, float) else str(value)]
    for name in ShuffleOptions.model_fields:
        value = getattr(trial.shuffle, name)
        if value is True:
            words.append(f"--{name.replace('_', '-')}")
        elif value is not False and value != 1:
            words += [f"--{name}", str(value)]
    return shlex.join(words)


def _recipe_options(recipe: Recipe) -> dict[str, Any] | None:
    own = RECIPES.get(recipe.name)
    if own is None:
        return None
    changed = [name for name in Recipe.model_fields if getattr(recipe, name) != getattr(own, name)]
    if not set(changed) <= set(_CHANGEABLE):
        return None
    named = {} if recipe.name == "paper" else {"recipe": recipe.name}
    return named | {name: getattr(recipe, name) for name in changed}


def train_commands(trials: Sequence[Trial]) -> tuple[str, ...]:
    """Return the commands of trials that no study ran, and for how many there is none on the page."""
    found = [command for trial in trials if (command := train_command(trial))]
    left = len(trials) - len(found[:_MOST])
    return (*found[:_MOST], *((f"# and {left} more, of recipes of their own or too many to list",) if left else ()))
