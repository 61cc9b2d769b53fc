"""Forms of what a training leaves or begins with: weights, training states, outcomes and other records, studies."""

from __future__ import annotations

import hashlib
import json
import tempfile
import warnings
from collections.abc import Mapping
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

from spaceless.bench.faults.form import SIDE, Form, MalformedError, RefusedError, Sound, in_form


@lru_cache(maxsize=1)
def _network() -> Any:
    from spaceless.models import build_model

    return build_model("chain:4-M-8", 3, SIDE)


def _weights() -> Sound:
    from safetensors.torch import save

    files = {"model.safetensors": save(dict(_network().state_dict()))}
    return Sound(files, tuple(files.items()), "model.safetensors")


def _read_weights(path: Path) -> None:
    from spaceless.retest import load_weights

    network = _network()
    wanted = {name: (tensor.shape, tensor.dtype) for name, tensor in network.state_dict().items()}
    load_weights(network, path, hashlib.sha256(path.read_bytes()).hexdigest())
    if {name: (tensor.shape, tensor.dtype) for name, tensor in network.state_dict().items()} != wanted:
        raise MalformedError("a network of other shapes or types")


@lru_cache(maxsize=1)
def _exported() -> Sound:
    from safetensors.torch import save

    from spaceless.rebuild import surgery_of
    from spaceless.trial import DataFacts, Outcome, Trial

    weights = save(dict(_network().state_dict()))
    facts = DataFacts(
        name="cifar10", source="cifar10", classes=3, image_size=SIDE, train_images=50, test_images=10, digest="0")
    outcome = Outcome(
        trial=Trial(model="chain:4-M-8", data="cifar10"), status="finished", data=facts, versions={"torch": "2"},
        weights_sha256=hashlib.sha256(weights).hexdigest(),
    )
    surgery = surgery_of(outcome, _network(), (0.5, 0.5, 0.5), (0.2, 0.2, 0.2), ("a", "b", "c"))
    files = {"export/model.safetensors": weights, "export/surgery.json": surgery.model_dump_json().encode()}
    return Sound(files, tuple(files.items()), "export")


def _read_exported(path: Path) -> None:
    from spaceless.rebuild import load_model

    network = load_model(path)
    if any(tensor.is_meta for tensor in network.state_dict().values()):
        raise MalformedError("a network without weights")


@lru_cache(maxsize=2)
def _state(step: int) -> dict[str, Any]:
    import torch

    weights = {name: tensor.clone() for name, tensor in _network().state_dict().items()}
    momentum = {i: {"momentum_buffer": tensor * 0.5} for i, tensor in enumerate(weights.values()) if tensor.ndim}
    groups = [{"lr": 0.1, "momentum": 0.9, "nesterov": True, "foreach": None, "params": [0, 1, 2, 3]}]
    epoch = {"epoch": 1, "loss": 1.5, "top1": 12.5, "learning_rate": 0.1, "seconds": 2.0, "images_per_second": 99.5}
    return {
        "model": weights, "optimizer": {"state": momentum, "param_groups": groups}, "step": step, "spent": 1.25,
        "sums": step + torch.arange(3, dtype=torch.float64), "history": [epoch], "broken": [(3, "a/1.png", "cut")],
    }


_TRIAL = "0123456789abcdef on 0123"


def _states() -> Sound:
    from spaceless import checkpoint

    with tempfile.TemporaryDirectory() as folder:
        found: dict[str, bytes] = {}
        for step in (1, 2):
            checkpoint.save(Path(folder), _state(step), step, _TRIAL)
            files = {f"states/{path.name}": path.read_bytes() for path in sorted(Path(folder).iterdir())}
            newest = [(name, content) for name, content in files.items() if name not in found]
            found = files
    return Sound(found, tuple(newest), "states")


def _read_state(path: Path, *, exact: bool) -> None:
    """Read the newest of two states; if it is not `exact` the one that was saved, it must at least be plain data."""
    from spaceless import checkpoint

    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        state = checkpoint.load_latest(path, _TRIAL, dict)
    for warning in told:
        if not in_form(str(warning.message)):
            raise MalformedError(f"a warning that does not say what is wrong: {str(warning.message)[:100]}")
    if state is not None and not _plain(state):
        raise MalformedError("a state with something else than tensors and plain values in it")
    if state is None:
        raise RefusedError("no state at all") if told else MalformedError("neither a state nor a warning")
    if exact and not any(_equal(state, _state(step)) for step in (1, 2)):
        raise MalformedError("a state that nobody saved")
    if told or state.get("step") != 2:
        raise RefusedError("the state before it")


def _plain(value: Any) -> bool:
    import torch

    if isinstance(value, Mapping):
        return all(isinstance(key, str | int) and _plain(inner) for key, inner in value.items())
    if isinstance(value, list | tuple):
        return all(map(_plain, value))
    return value is None or type(value) in (str, int, float, bool, torch.Tensor)


def _equal(a: Any, b: Any) -> bool:
    import torch

    if isinstance(a, Mapping) and isinstance(b, Mapping):
        return a.keys() == b.keys() and all(_equal(a[key], b[key]) for key in a)
    if isinstance(a, list | tuple) and isinstance(b, list | tuple):
        return len(a) == len(b) and all(map(_equal, a, b))
    if isinstance(a, torch.Tensor) and isinstance(b, torch.Tensor):
        return a.dtype == b.dtype and a.shape == b.shape and torch.equal(a, b)
    return type(a) is type(b) and bool(a == b)


@lru_cache(maxsize=1)
def _records() -> Sound:
    from spaceless.sensitivity import Curve, Sensitivity, Shuffled
    from spaceless.trial import RECIPES, DataFacts, Epoch, Evaluation, Latency, Outcome, Trial

    trial = Trial(model="chain:4-M-8", data="cifar100", method="shuffle", k=1, recipe=RECIPES["fast"], repeats=2)
    facts = DataFacts(
        name="cifar100", source="cifar100", classes=100, image_size=32, train_images=50, test_images=10, digest="0")
    again = Evaluation(shuffle_last=2, images=10, top1=(1.0, 2.0))
    outcome = Outcome(
        trial=trial, status="finished", units=2, params=1234, macs=56789, receptive_field=10, receptive_stride=2,
        evaluations=(Evaluation(images=10, top1=(50.0, 40.0), top5=80.0),), data=facts, precision="fp32", threads=1,
        history=(Epoch(epoch=1, loss=1.5, top1=40.0, learning_rate=0.1, seconds=1.0, images_per_second=50.0),),
        latency=Latency(median=0.001, lower=0.0009, upper=0.0011, batch=1, repeats=20), weights_sha256="0" * 64,
        notes=("a note",), versions={"torch": "2"}, hardware="2 cores", started="2026-01-01T00:00:00+00:00",
        seconds=9.5,
    )
    unit = Shuffled(index=1, k=1, name="a", map=(4, 4), alone=Curve(top1=(1.0, 2.0)), last=Curve(top1=(1.0, 2.0)))
    profile = Sensitivity(clean=50.0, images=10, repeats=2, units=(unit,), weights_sha256="0" * 64)
    study = {
        "name": "s", "preset": "smoke", "title": "S", "asks": "?", "command": "spaceless study s", "kind": "study",
        "x": "k",
        "planned": [{"trial": trial.model_dump(mode="json"), "evaluations": [2]}],
        "truth": [{"data": "a", "method": "shuffle", "learnable_k": 1, "chance_from_k": 2, "chance": 25.0}],
    }
    here = f"runs/{trial.id}"
    texts = {f"{here}/outcome.json": outcome.model_dump_json(), f"{here}/trial.json": trial.model_dump_json(),
             f"{here}/evaluations/shuffle-last-2-repeats-2.json": again.model_dump_json(),
             f"{here}/profiles/images-10-repeats-2.json": profile.model_dump_json(),
             "runs/s.study.json": json.dumps(study)}
    files = {name: text.encode() for name, text in texts.items()}
    return Sound(files, (*files.items(), (f"{here}/outcome.json", files[f"{here}/outcome.json"])), "runs")


def _read_records(path: Path) -> None:
    """Read a run folder as a report does, and the records in it that other commands read."""
    from spaceless import rows
    from spaceless.sensitivity import PROFILES, Sensitivity
    from spaceless.store import read_trial

    outcomes, studies, problems = rows.load([path])
    for folder in (each for each in path.iterdir() if each.is_dir()):
        read_trial(folder)
        for file in (folder / PROFILES).iterdir():
            found = rows.read_record(Sensitivity, file, problems)
            if found is not None and found.units[0].alone.mean != found.units[0].alone.mean:
                raise MalformedError("a profile whose accuracy is no number")
    rows.rows(outcomes, [planned for study in studies for planned in study.planned])
    for problem in problems:
        if not in_form(f"file: {problem.text}"):
            raise MalformedError(f"a problem that is not told: {problem.text[:100]}")
    if problems:
        raise RefusedError("a problem of the report")


_STUDY = """\
title = "T"
asks = "?"
x = "k"
[scale]
epochs = 1
seeds = [0, 1]
train_images = 64
[[series]]
model = "chain:4-M-8"
data = "arrangement-4"
methods = ["shuffle", "conv1x1"]
ks = "0-2"
recipe = "control"
shuffle_last = [1]
overrides = { batch_size = 16 }
[[printed]]
source = "me"
model = "chain:4-M-8"
data = "arrangement-4"
top1 = 50.0
"""


def _study() -> Sound:
    files = {"study.toml": _STUDY.encode()}
    return Sound(files, tuple(files.items()), "study.toml")


def _read_study(path: Path) -> None:
    from spaceless.studies import plan_study

    plan = plan_study(str(path))
    json.dumps(plan.manifest())
    if not plan.planned or not all(planned.trial.id for planned in plan.planned):
        raise MalformedError("a study without trials")


TRAINING = (
    Form("weights", 6, _weights, _read_weights),
    Form("exported networks", 4, _exported, _read_exported, vouched=True),
    Form("training states", 4, _states, partial(_read_state, exact=True), anew=True),
    Form("training states vouched for", 4, _states, partial(_read_state, exact=False), vouched=True, anew=True),
    Form("outcomes and other records", 4, _records, _read_records),
    Form("study files", 3, _study, _read_study),
)
