"""The true answers of the calibration: by hand, and again by enumerating every image and every window."""

from __future__ import annotations

import json

import pytest
import torch

from made_arrangements import always_seen, leaks_at
from spaceless.calibrate import CALIBRATIONS, NETWORK, plan_calibration, regime, regimes, truth
from spaceless.data.controls import control_size
from spaceless.errors import InputError
from spaceless.models import build_model
from spaceless.receptive import ReceptiveField, usable_field
from spaceless.surgery import remove_spatial

# Worked out on paper for 16 | 24 24 | 32 32 32 32 with 3x3 convolutions and 2x2 pooling at the bars.
# Receptive field and stride behind conv1..conv7: 3/1, 8/2, 12/2, 22/4, 30/4, 38/4, 46/4; behind the pools: 4/2, 14/4.
UP_TO_FIRST_CHANGED = [(46, 4), (38, 4), (30, 4), (22, 4), (14, 4), (8, 2), (4, 2), (1, 1)]  # for K = 0..7
# With 1x1 convolutions the pools that are left still widen it: 8/2 -> 10/4, 4/2 -> 6/4, 1/1 -> 2/2 -> 4/4.
FINAL_MAP = [(46, 4), (38, 4), (30, 4), (22, 4), (14, 4), (10, 4), (6, 4), (4, 4)]
FIELDS = {"shuffle": UP_TO_FIRST_CHANGED, "gap_fc": UP_TO_FIRST_CHANGED, "conv1x1": FINAL_MAP}

# Learnable (L): field >= D + stride. Chance (C): field <= D, and D a multiple of the stride. Between the two: open (o).
REGIMES = {
    ("arrangement-2", "shuffle"): "LLLLLLLC", ("arrangement-2", "conv1x1"): "LLLLLLLo",
    ("arrangement-4", "shuffle"): "LLLLLLCC", ("arrangement-4", "conv1x1"): "LLLLLLoC",
    ("arrangement-8", "shuffle"): "LLLLLCCC", ("arrangement-8", "conv1x1"): "LLLLLoCC",
    ("arrangement-12", "shuffle"): "LLLLoCCC", ("arrangement-12", "conv1x1"): "LLLLoCCC",
    ("arrangement-16", "shuffle"): "LLLLCCCC", ("arrangement-16", "conv1x1"): "LLLLCCCC",
    ("arrangement-24", "shuffle"): "LLLCCCCC", ("arrangement-24", "conv1x1"): "LLLCCCCC",
    ("arrangement-32", "shuffle"): "LLCCCCCC", ("arrangement-32", "conv1x1"): "LLCCCCCC",
    ("arrangement-6", "shuffle"): "LLLLLLCC", ("arrangement-6", "conv1x1"): "LLLLLLoo",  # 6 is no multiple of 4
    ("texture", "shuffle"): "LLLLLLLC", ("texture", "conv1x1"): "LLLLLLLo",
}
WORDS = {"L": "learnable", "C": "chance", "o": "open"}


@pytest.mark.parametrize("method", FIELDS)
def test_receptive_fields_of_the_calibration_network_by_hand(method):
    with torch.device("meta"):
        model = build_model(NETWORK, 4, 32)
    found = [usable_field(remove_spatial(model, method, k, image_size=32)[0], 32) for k in range(8)]
    assert [(f.size, f.stride) for f in found] == FIELDS[method]


@pytest.mark.parametrize(("data", "method"), [*REGIMES, *((d, "gap_fc") for d, m in REGIMES if m == "shuffle")])
def test_regimes_by_hand(data, method):
    expected = REGIMES[data, "shuffle" if method == "gap_fc" else method]
    assert regimes(data, method) == [WORDS[letter] for letter in expected]


@pytest.mark.parametrize("distance", [2, 4, 8])
@pytest.mark.parametrize("method", ["shuffle", "conv1x1"])
def test_regimes_hold_for_every_image_that_can_be_drawn(distance, method):
    """Brute force: learnable means that some window always sees both marks, chance that no multiset tells the class."""
    size = control_size(f"arrangement-{distance}")
    for (side, stride), kind in zip(FIELDS[method], regimes(f"arrangement-{distance}", method), strict=True):
        if kind == "learnable":
            assert always_seen(distance, size, side, stride)
        else:
            assert not always_seen(distance, size, side, stride)
            assert leaks_at(distance, size, side, stride) == (kind == "open")


def test_the_border_between_regimes():
    kinds = [regime("arrangement-8", ReceptiveField(size, 4)) for size in (8, 9, 11, 12)]
    assert kinds == ["chance", "open", "open", "learnable"]
    assert regime("arrangement-6", ReceptiveField(6, 4)) == "open"  # the residues of the marks differ
    assert regime("arrangement-6", ReceptiveField(6, 2)) == "chance"
    assert [regime("texture", ReceptiveField(size, 4)) for size in (1, 2, 5, 6)] == [
        "chance", "open", "open", "learnable"]


def test_the_truth_that_the_report_reads():
    rest = {"method": "shuffle", "chance": 25.0}
    assert truth("arrangement-8", "shuffle") == rest | {"data": "arrangement-8", "learnable_k": 4, "chance_from_k": 5}
    assert truth("arrangement-12", "shuffle") == rest | {"data": "arrangement-12", "learnable_k": 3, "chance_from_k": 5}
    assert truth("texture", "shuffle") == rest | {"data": "texture", "learnable_k": 6, "chance_from_k": 7}
    rest["method"] = "conv1x1"
    assert truth("arrangement-8", "conv1x1") == rest | {"data": "arrangement-8", "learnable_k": 4, "chance_from_k": 6}
    assert truth("texture", "conv1x1") == rest | {"data": "texture", "learnable_k": 6, "chance_from_k": None}


@pytest.mark.parametrize(("preset", "sets", "methods", "seeds"), [
    ("smoke", {"texture", "arrangement-8"}, 2, 1),
    ("fast", {"texture", "arrangement-4", "arrangement-8", "arrangement-16"}, 3, 3),
])
def test_the_plan_holds_every_cell_once_and_one_baseline_per_set_and_seed(preset, sets, methods, seeds):
    plan = plan_calibration(preset, "spaceless calibrate")
    trials = [planned.trial for planned in plan.planned]
    assert len({t.id for t in trials}) == len(trials) == len(sets) * seeds * (1 + 7 * methods)
    assert {t.data for t in trials} == sets
    assert {t.seed for t in trials} == set(range(seeds))
    assert all(t.recipe.augment == "none" for t in trials)  # a flip would change the class
    assert len(plan.truth) == len(sets) * methods
    assert plan.kind == "calibration"
    json.dumps(plan.manifest())


def test_every_preset_measures_a_fall_for_every_arrangement():
    """A distance whose curve never leaves 100 or begins at chance would calibrate nothing."""
    for preset, scale in CALIBRATIONS.items():
        for row in plan_calibration(preset, "").truth:
            if row["data"] != "texture":
                assert 0 < row["learnable_k"] < 7
                if (row["data"], row["method"]) != ("arrangement-2", "conv1x1"):  # 4/4 at K = 7, 2 pixels apart: open
                    assert row["learnable_k"] < row["chance_from_k"] <= 7
        assert scale.seeds == tuple(range(len(scale.seeds)))


def test_a_training_far_apart_is_twice_as_long():
    scale = CALIBRATIONS["full"]
    assert len(scale.distances) == 6
    epochs = {t.trial.data: t.trial.recipe.epochs for t in plan_calibration("full", "").planned}
    assert epochs == {"texture": 6, **{f"arrangement-{d}": 6 for d in (2, 4, 8, 12, 16)}, "arrangement-24": 12}


def test_an_unknown_preset_names_the_known_ones():
    with pytest.raises(InputError, match="smoke, fast, full"):
        plan_calibration("quick", "")
