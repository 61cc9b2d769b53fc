"""What a study consists of: a published experiment, all of them, or the user's own file, at some scale."""

from __future__ import annotations

import re
import shlex
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from spaceless.data.controls import TEST_IMAGES, TRAIN_IMAGES
from spaceless.data.find import find
from spaceless.errors import DataError, unknown_name
from spaceless.paper import PRESETS, Planned, Scale, experiment, experiments, load_study
from spaceless.spec import make
from spaceless.trial import is_control

STAND_IN = "texture"  # made by code, so always here


@dataclass(frozen=True)
class Plan:
    """A study: its name and question, the command that runs it, and its trials; stored as `NAME.study.json`."""

    name: str
    title: str
    asks: str
    command: str
    planned: tuple[Planned, ...]
    preset: str | None = None
    experiment: str | None = None
    kind: Literal["study", "calibration", "compression"] = "study"
    truth: tuple[dict[str, Any], ...] = ()
    compression: dict[str, Any] | None = None
    x: str | None = None
    x_ticks: tuple[int, ...] = ()

    def manifest(self) -> dict[str, Any]:
        """Return what the report needs to know of this study, for JSON."""
        fields = {name: getattr(self, name) for name in self.__dataclass_fields__ if name != "planned"}
        planned = [p.model_dump(mode="json", exclude_defaults=True) for p in self.planned]
        return fields | {"planned": planned, "truth": list(self.truth)}


def plan_study(name: str, preset: str | None = None, asked: Mapping[str, Any] | None = None) -> Plan:
    """Return the plan of a published experiment or of the user's study in the file `name`.toml.

    Args:
        name: An experiment of `spaceless.paper`, or the path of a TOML file.
        preset: A key of `PRESETS`; None is the file's own scale, or the paper's.
        asked: Fields of `Scale` that replace the preset's.

    Raises:
        InputError: Unknown name or preset, a broken file, or a field that cannot be.

    """
    own = name.endswith(".toml")
    if not own and name not in experiments():
        raise unknown_name("study", name, (*experiments(), "all", "FILE.toml"))
    found = load_study(name) if own else experiment(name)
    if preset is not None and preset not in PRESETS:
        raise unknown_name("preset", preset, PRESETS)
    base = PRESETS[preset] if preset else found.scale or PRESETS["paper"]
    asked = dict(asked or {})
    scale = make(Scale, "study", **base.model_dump() | asked)
    series = tuple(
        each.model_copy(update={"smoke": {key: value for key, value in each.smoke.items() if key not in asked}})
        for each in found.series
    )
    planned = found.model_copy(update={"series": series}).trials(scale)
    if not own:
        planned = [_fitting(each, asked) for each in planned]
    return Plan(
        _name(found.name, None if own and not preset else scale.name, asked), found.title, found.asks,
        _command(name, preset, asked), tuple(planned), preset=scale.name,
        experiment=None if own else found.name, x=found.x, x_ticks=found.x_ticks,
    )


def _command(name: str, preset: str | None, asked: Mapping[str, Any]) -> str:
    options = ({"preset": preset} if preset else {}) | dict(asked)
    return shlex.join(["spaceless", "study", name, *(
        word for key, value in options.items() for word in (f"--{key.replace('_', '-')}", str(value)))])


def _fitting(planned: Planned, asked: Collection[str]) -> Planned:
    """Return the plan of a trial whose preset wants more images than its made data has, with all of them instead."""
    trial = planned.trial
    if not is_control(trial.data):
        return planned
    counts = {"train_images": TRAIN_IMAGES, "test_images": TEST_IMAGES}
    most = {name: None for name, count in counts.items()
            if name not in asked and (getattr(trial, name) or 0) >= count}
    return planned.model_copy(update={"trial": trial.model_copy(update=most)})


def _name(name: str, preset: str | None, asked: Mapping[str, Any]) -> str:
    """Return the name of a study at a scale: another scale is another study, its trials differ and so does its page."""
    parts = [re.sub(r"[^0-9A-Za-z.-]", "-", f"{key}-{value}") for key, value in asked.items()]
    return "-".join(part for part in (name, preset, *parts) if part)


def plan_all(
    preset: str | None = None, asked: Mapping[str, Any] | None = None, data_root: Path | None = None,
) -> tuple[Plan, list[Plan]]:
    """Return one plan of everything that the paper does, each trial once, and the plans of its experiments.

    In the preset `smoke` the made data `texture` stand in for a data set that is not here; otherwise as `plan_study`.
    """
    asked = dict(asked or {})
    plans = []
    for each in experiments().values():
        missing = preset == "smoke" and not all(_is_here(series.data, data_root) for series in each.series)
        stand_in = {"data": STAND_IN} if missing and "data" not in asked else {}
        plans.append(plan_study(each.name, preset, stand_in | asked))
    merged: dict[str, Planned] = {}
    for planned in (p for plan in plans for p in plan.planned):
        known = merged.setdefault(planned.trial.id, planned)
        schemes = sorted({*known.evaluations, *planned.evaluations})
        merged[planned.trial.id] = known.model_copy(update={"evaluations": tuple(schemes)})
    name = _name("all", plans[0].preset, asked)
    return Plan(name, "Everything in the paper", "", _command("all", preset, asked), tuple(merged.values()),
                preset=plans[0].preset), plans


def _is_here(data: str, data_root: Path | None) -> bool:
    try:
        find(data, data_root)
    except DataError:
        return False
    return True
