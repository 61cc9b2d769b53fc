"""`bench compress`: the sweep, the search, the warm starts and the pruned networks, each told as what it is."""

from __future__ import annotations

import copy
import json

import pytest
import torch
from torch import nn

from spaceless import work
from spaceless.bench import compress, compress_page, pruning
from spaceless.bench.record import headed
from spaceless.compression import Tried
from spaceless.cost import count_parameters
from spaceless.errors import DataError, InputError
from spaceless.models import build_model
from spaceless.run import Place
from spaceless.store import read_outcome
from spaceless.trial import RECIPES

torch.set_num_threads(1)

RECIPE = RECIPES["control"].model_copy(update={"epochs": 4, "precision": "fp32"})
CASE = compress.Case(
    model="chain:16-M-24-M-32-32", width=1.0, method="gap_fc", data=("nothing-of-this-name", "arrangement-4"),
    train_images=2048, test_images=400, recipe=RECIPE, holdout=0.25, tolerance=5, warm_k=2, kinds=("uniform",),
)


@pytest.fixture(scope="module")
def measured(tmp_path_factory):
    place = Place(tmp_path_factory.mktemp("compress"))
    plans: list[int] = []

    def train(plan):
        tally = work.run(plan, place, work.Workers(), ())
        plans.append(len(tally.ran))

    found = compress.run(place, train, lambda _: None, CASE)
    return place, found, plans


def test_search_and_sweep_stand_side_by_side(measured):
    _, found, _ = measured
    assert [each["k"] for each in found["sweep"]] == [1, 2, 3, 4]
    assert found["search"]["largest"] == 2  # the one of geometry, see tests/test_compress.py
    assert found["trainings"] == {"sweep": 5, "search": 1 + len(found["search"]["tried"]) - 1}
    assert found["promises"][compress._NEAR]
    assert found["promises"][compress._HALF] == (2 * found["trainings"]["search"] <= 5)
    tried = {each["k"]: each for each in found["search"]["tried"]}
    assert all(tried[each["k"]] == each for each in found["sweep"] if each["k"] in tried)


def test_the_warm_start_is_compared_with_the_training_from_scratch(measured):
    place, found, _ = measured
    scratch, short, warm, distilled = found["warm"]
    assert [row["epochs"] for row in found["warm"]] == [4, 1, 1, 1]
    assert (scratch["difference"], scratch["top1"]) == (0, found["sweep"][1]["top1"])
    for row in (short, warm, distilled):
        outcome = read_outcome(place.out / row["ids"][0] / "outcome.json")
        assert outcome.trial.k == 2
        assert (outcome.trial.start is None) == (row["start"] == "scratch")
        assert row["top1"] == outcome.top1
        assert row["difference"] == pytest.approx(row["top1"] - scratch["top1"])
        assert row["low"] < row["difference"] < row["high"]
    assert distilled["ids"] != warm["ids"]
    reached = max(warm["difference"], distilled["difference"]) >= 0
    assert found["promises"][compress._WARM.format(2)] == reached


def test_networks_of_as_many_parameters_are_compared(measured):
    _, found, _ = measured
    original, ours, warm, whole, pruned, pruned_whole = found["networks"]
    assert [row["epochs"] for row in found["networks"]] == [0, 4, 1, 4, 1, 4]
    assert (original["difference"], original["params"]) == (0, count_parameters(build_model(CASE.model, 4, 20)))
    assert found["search"]["test"]["baseline"] == original["test"]
    assert found["search"]["test"]["chosen"] == ours["test"]
    assert ours["params"] == warm["params"] == whole["params"] < original["params"]
    assert 0.9 * ours["params"] < pruned["params"] <= ours["params"]
    assert pruned["macs"] < original["macs"]
    assert pruned["params"] == pruned_whole["params"]
    for row in found["networks"]:
        for times in row["latency"].values():
            assert 0 < times["seconds"]["lower"] <= times["seconds"]["median"] <= times["seconds"]["upper"]
    assert original["latency"]["1"]["times_as_fast"]["median"] == 1


def test_the_same_command_trains_nothing_again(measured):
    place, found, plans = measured
    assert sum(plans) == 5 + 3 + 1
    before = {path: path.stat().st_mtime_ns for path in place.out.rglob("*.json")}
    assert len([path for path in before if path.parent.parent.name == "pruned"]) == 2
    again = compress.run(place, lambda plan: plans.append(len(work.run(plan, place, work.Workers(), ()).ran)),
                         lambda _: None, CASE)
    assert sum(plans) == 9
    assert {path: path.stat().st_mtime_ns for path in place.out.rglob("*.json")} == before
    for row, other in zip(found["networks"], again["networks"], strict=True):
        assert {**row, "latency": 0} == {**other, "latency": 0}


def test_the_page_says_what_the_record_says(measured):
    found = json.loads(json.dumps(headed("compress", compress.COMMAND, measured[1], also=("torch-pruning",))))
    text = compress_page.markdown(found)
    assert found["versions"]["torch-pruning"] != "not installed"
    assert f"The sweep accepts K = 2 with 5 trainings, the search K = 2 with {found['trainings']['search']}." in text
    for number, row in enumerate(found["networks"]):
        gap = f"{row['difference']:+.2f}" if number else "–"  # the first is what the others are compared with
        assert f"| {row['params']:,} | {row['macs']:,} | {row['test']:.2f} | {gap} |" in text
    for number, row in enumerate(found["warm"]):
        gap = f"{row['difference']:+.2f}" if number else "–"
        assert f"| {row['epochs']} | {row['top1']:.2f} | {gap} |" in text
    broken = copy.deepcopy(found)
    broken["promises"][compress._NEAR] = False
    assert text.count("**not met**") + 1 == compress_page.markdown(broken).count("**not met**")


def test_a_lone_k_is_not_accepted_in_a_sweep_either():
    def sweep(good):
        return [Tried(k=k, verdict="within" if k in good else "beyond") for k in range(1, 8)]

    assert compress.accepted(sweep({1, 2, 3, 5})) == 3
    assert compress.accepted(sweep({2, 4, 5})) == 5
    assert compress.accepted(sweep({3})) == 0
    assert compress.accepted(sweep(set())) == 0


@pytest.mark.parametrize("kind", pruning.KINDS)
def test_pruning_takes_the_least_channels_and_keeps_the_rest(kind):
    model = build_model("chain:8-M-12-12", 4, 20)
    first = next(m for m in model.modules() if isinstance(m, nn.Conv2d))
    with torch.no_grad():
        first.weight[::2] *= 1e-6
        first.weight[1::2] *= 10
    weights = copy.deepcopy(model.state_dict())
    found = pruning.prune(model, 20, int(0.7 * count_parameters(model)), kind)
    assert count_parameters(found) <= 0.7 * count_parameters(model)
    assert all(torch.equal(weights[name], value) for name, value in model.state_dict().items())
    kept = next(m for m in found.modules() if isinstance(m, nn.Conv2d)).weight
    which = {i for i, row in enumerate(first.weight) if any(torch.equal(row, other) for other in kept)}
    assert len(which) == len(kept) < 8
    assert which <= {1, 3, 5, 7} or which >= {1, 3, 5, 7}
    assert found(torch.zeros(2, 3, 20, 20)).shape == (2, 4)


def test_what_cannot_be_compared_is_refused(tmp_path, monkeypatch):
    with pytest.raises(InputError, match="more than one channel per layer"):
        pruning.prune(build_model("chain:8-M-12", 4, 20), 20, 3, "uniform")
    with pytest.raises(DataError):
        compress.question(compress.Case(data=("nothing-of-this-name",)), Place(tmp_path))
    monkeypatch.setattr(pruning, "PACKAGE", "no_such_package")
    with pytest.raises(InputError, match="pip install torch-pruning"):
        compress.run(Place(tmp_path / "runs"), lambda plan: None, lambda _: None, CASE)
    assert not (tmp_path / "runs").exists()


