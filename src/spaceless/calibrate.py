"""Calibration: does the instrument find the largest K that geometry dictates? Made data, known answers.

A K is learnable when some position of the last map that still has places sees both marks, wherever they lie, and
accuracy is exactly chance when no position sees more than one and their distance is a multiple of the stride (see
`spaceless.data.controls`). The true largest K lies from the last learnable one to the one before the first at chance;
for most cells that is a single number.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Literal

import torch

from spaceless.data.controls import PATTERN_SIZE, ROOM, TEXTURE_SIZE, distance_of
from spaceless.errors import unknown_name
from spaceless.models import build_model
from spaceless.paper import Planned
from spaceless.receptive import ReceptiveField, usable_field
from spaceless.studies import Plan
from spaceless.surgery import remove_spatial
from spaceless.trial import RECIPES, Recipe, Trial
from spaceless.units import find_units

NETWORK = "chain:16-M-24-24-M-32-32-32-32"  # strides 1, 2, 4: marks 4, 8, 16, ... apart have the residue of 0
CHANCE = 25.0  # percent: four classes, equally frequent
FAR = 20  # pixels: from here on a network needs twice the epochs until it has found what relates the marks
Regime = Literal["learnable", "open", "chance"]


@dataclass(frozen=True)
class CalibrationPreset:
    """Distances in pixels (besides `texture`), methods and seeds, and how long a training is up to `FAR` pixels."""

    distances: tuple[int, ...]
    methods: tuple[str, ...]
    seeds: tuple[int, ...]
    epochs: int = 6

    def recipe(self, data: str) -> Recipe:
        """Return the recipe of a training on made `data`: twice the epochs from `FAR` pixels on."""
        far = data != "texture" and distance_of(data) >= FAR
        return RECIPES["control"].model_copy(update={"epochs": self.epochs * (2 if far else 1)})


CALIBRATIONS: dict[str, CalibrationPreset] = {
    "smoke": CalibrationPreset((8,), ("shuffle", "conv1x1"), (0,), epochs=5),
    "fast": CalibrationPreset((4, 8, 16), ("shuffle", "gap_fc", "conv1x1"), (0, 1, 2)),
    "full": CalibrationPreset((2, 4, 8, 12, 16, 24), ("shuffle", "gap_fc", "conv1x1"), (0, 1, 2, 3, 4)),
}


def regime(data: str, field: ReceptiveField) -> Regime:
    """Return what geometry says of a network whose last map with places has receptive field `field`, on made `data`."""
    if data == "texture":
        if field.size >= PATTERN_SIZE + field.stride - 1:
            return "learnable"  # some position covers each copy, however it lies to the stride
        return "chance" if field.size == 1 else "open"  # single pixels are alike in all four patterns
    distance = distance_of(data)
    if field.size >= distance + 1 + field.stride - 1:
        return "learnable"
    alike = distance % field.stride == 0 and ROOM % field.stride == 0  # residues are the same in every class
    return "chance" if field.size <= distance and alike else "open"


def regimes(data: str, method: str) -> list[Regime]:
    """Return the regime for each K from 0 to the number of units of the calibration network."""
    return [regime(data, field) for field in _fields(method)]


@lru_cache
def _fields(method: str) -> tuple[ReceptiveField, ...]:
    """Return the last field whose position matters for each K; the size of the image has no influence on it."""
    size = TEXTURE_SIZE
    with torch.device("meta"):
        model = build_model(NETWORK, 4, size)
    units = len(find_units(model, size))
    return tuple(usable_field(remove_spatial(model, method, k, image_size=size)[0], size) for k in range(units + 1))


def truth(data: str, method: str) -> dict[str, object]:
    """Return the bounds on the largest K that costs no accuracy, as the report reads them.

    `learnable_k`: every K up to it is learnable; `chance_from_k`: every K from it on is at `chance` percent, or None.
    """
    found = regimes(data, method)
    learnable = next((k for k, kind in enumerate(found) if kind != "learnable"), len(found)) - 1
    at_chance = len(found) - next((i for i, kind in enumerate(reversed(found)) if kind != "chance"), len(found))
    return {
        "data": data, "method": method, "learnable_k": learnable,
        "chance_from_k": at_chance if at_chance < len(found) else None, "chance": CHANCE,
    }


def plan_calibration(preset: str, command: str) -> Plan:
    """Return the plan of a calibration: every K, method, distance and seed of `preset`, with the true answers.

    Raises:
        InputError: Unknown preset.

    """
    if preset not in CALIBRATIONS:
        raise unknown_name("preset", preset, CALIBRATIONS)
    scale = CALIBRATIONS[preset]
    sets = ["texture", *(f"arrangement-{d}" for d in scale.distances)]
    truths = tuple(truth(data, method) for data in sets for method in scale.methods)
    units = len(regimes("texture", "conv1x1")) - 1
    trials = [
        Trial.model_validate({
            "model": NETWORK, "data": data, "method": method, "k": k, "seed": seed,
            "recipe": scale.recipe(data), "repeats": 10,
        })
        for seed in scale.seeds for data in sets for k in range(units + 1) for method in scale.methods
    ]
    unique = {trial.id: Planned(trial=trial) for trial in trials}
    return Plan(
        name=f"calibration-{preset}", title="Calibration: measured against true largest K",
        asks="On data whose answer follows from geometry, does the largest K that we measure equal the true one?",
        command=command, planned=tuple(unique.values()), preset=preset, kind="calibration", truth=truths,
    )
