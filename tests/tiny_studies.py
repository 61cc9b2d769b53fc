"""Studies of a network with two convolutions on 64 made images: each trial takes a fraction of a second."""

from __future__ import annotations

from pathlib import Path

from spaceless.paper import Planned
from spaceless.run import Place
from spaceless.studies import Plan
from spaceless.study import run_study
from spaceless.trial import RECIPES, Outcome, Trial

RECIPE = RECIPES["control"].model_copy(update={"epochs": 1, "batch_size": 16, "precision": "fp32"})
BASE = {"model": "chain:4-M-8", "data": "arrangement-4", "train_images": 64, "test_images": 40, "recipe": RECIPE,
        "repeats": 2}


def trial(**fields) -> Trial:
    return Trial.model_validate(BASE | fields)


def planned(*trials: Trial, **fields) -> Plan:
    return Plan("tiny", "Tiny", "?", "spaceless study tiny.toml", tuple(Planned(trial=t, **fields) for t in trials))


FOUR = (trial(), trial(method="shuffle", k=1), trial(method="conv1x1", k=2), trial(method="gap_fc", k=1))


def finished(out: Path) -> dict[str, int]:
    return {p.parent.name: p.stat().st_mtime_ns for p in out.glob("*/outcome.json")}


def weights(outcomes: list[Outcome]) -> dict[str, str]:
    return {o.trial.id: o.weights_sha256 for o in outcomes}


def run_serially(out: Path) -> tuple[Path, dict[str, str]]:
    """Run the four trials one after the other, and return their folder and the digests of their weights."""
    tally = run_study(planned(*FOUR), Place(out))
    assert [len(part) for part in (tally.ran, tally.known, tally.failed)] == [4, 0, 0]
    return out, weights(tally.ran)
