"""Networks out of their files answer as the trained ones do, bit for bit; what is not what was exported is refused."""

from __future__ import annotations

import hashlib
import json
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load as load_weights
from safetensors.torch import save as save_weights
from torch import nn

import spaceless
from spaceless.errors import InputError
from spaceless.rebuild import SURGERY, modules_sha256, surgery_of
from spaceless.run import build
from spaceless.shuffle import shuffles
from spaceless.trial import DataFacts, Outcome, Trial

torch.set_num_threads(1)
CLASSES = 10
MEAN, STD = (0.5, 0.4, 0.3), (0.25, 0.2, 0.2)

NETWORKS = {
    "chain baseline": {"model": "chain:8-M-16-16"},
    "chain conv1x1": {"model": "chain:8-M-16-16", "method": "conv1x1", "k": 2},
    "chain, one unit": {"model": "chain:8-M-16-16", "method": "conv1x1", "only": 2},
    "chain, all shuffled": {"model": "chain:8-M-16-16", "method": "shuffle", "k": 3, "seed": 5},
    "chain, shuffled and stripped": {"model": "chain:8-M-16-16", "method": "shuffle", "k": 2, "strip": 1},
    "vgg16 conv1x1": {"model": "vgg16", "width": 0.125, "method": "conv1x1", "k": 5},
    "vgg16 gap_fc": {"model": "vgg16", "width": 0.125, "method": "gap_fc", "k": 5},
    "vgg16 strip": {"model": "vgg16", "width": 0.125, "method": "strip", "k": 3},
    "vgg16 shuffle": {"model": "vgg16", "width": 0.125, "method": "shuffle", "k": 3, "seed": 2},
    "vgg16 channel_shuffle": {"model": "vgg16", "width": 0.125, "method": "channel_shuffle", "k": 1},
    "resnet50 conv1x1": {"model": "resnet50", "width": 0.125, "method": "conv1x1", "k": 5},
    "resnet50 conv1x1 max": {"model": "resnet50", "width": 0.125, "method": "conv1x1", "k": 5, "downsample": "max"},
    "resnet50 gap_fc": {"model": "resnet50", "width": 0.125, "method": "gap_fc", "k": 5},
    "mobilenet_v2 conv1x1": {"model": "mobilenet_v2", "method": "conv1x1", "k": 5},
    "mobilenet_v2 gap_fc": {"model": "mobilenet_v2", "method": "gap_fc", "k": 5},
    "densenet121 gap_fc": {"model": "torchvision:densenet121", "method": "gap_fc", "k": 3},  # its graph is rewritten
    "regnet conv1x1": {"model": "torchvision:regnet_y_400mf", "method": "conv1x1", "k": 2},  # reads its own weights
    "resnetblur18 conv1x1": {"model": "timm:resnetblur18", "method": "conv1x1", "k": 2},  # buffers that are not kept
}


def made(folder: Path, **fields: object) -> tuple[nn.Module, Outcome]:
    """Write the two files of a network with weights and moments of its own, and return the network."""
    trial = Trial.model_validate({"data": "texture", **fields})
    size = 32
    model, changes = build(trial, CLASSES, size)
    source = torch.Generator().manual_seed(1)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_(0, 0.1, generator=source)
            module.running_var.uniform_(0.5, 1.5, generator=source)
    content = save_weights({name: tensor.contiguous() for name, tensor in model.state_dict().items()})
    facts = DataFacts(name="texture", source="made", classes=CLASSES, image_size=size, train_images=1, test_images=1,
                      digest="0")
    outcome = Outcome(trial=trial, status="finished", changes=tuple(changes), data=facts,
                      weights_sha256=hashlib.sha256(content).hexdigest(), versions={"spaceless": "0"})
    surgery = surgery_of(outcome, model, MEAN, STD, tuple(map(str, range(CLASSES))))
    folder.mkdir(exist_ok=True)
    (folder / "model.safetensors").write_bytes(content)
    (folder / SURGERY).write_text(surgery.model_dump_json(indent=1))
    return model.eval(), outcome


def logits(model: nn.Module, count: int = 1000) -> torch.Tensor:
    source = torch.Generator().manual_seed(0)
    with torch.inference_mode():
        return torch.cat([model(torch.randn(min(250, count), 3, 32, 32, generator=source))
                          for _ in range(0, count, 250)])


@pytest.mark.parametrize("name", NETWORKS)
def test_the_logits_are_bit_for_bit_those_of_the_trained_network(name, tmp_path):
    model, _ = made(tmp_path, **NETWORKS[name])
    count = 1000 if name.startswith(("chain", "vgg16")) else 50  # the others are large
    rebuilt = spaceless.load_model(tmp_path)
    assert not rebuilt.training
    assert {p.device.type for p in (*rebuilt.parameters(), *rebuilt.buffers())} == {"cpu"}
    expected = logits(model, count)
    assert expected.isfinite().all()
    assert len(expected.unique(dim=0)) > 1
    assert torch.equal(logits(rebuilt, count), expected)
    assert len(list(shuffles(rebuilt))) == len(list(shuffles(model)))
    assert modules_sha256(rebuilt) == modules_sha256(model)


@pytest.mark.parametrize("name", ["chain, all shuffled", "vgg16 conv1x1"])
def test_the_folder_of_a_finished_trial_serves_as_well(name, tmp_path):
    model, outcome = made(tmp_path, **NETWORKS[name])
    (tmp_path / SURGERY).unlink()
    (tmp_path / "trial.json").write_text(outcome.trial.model_dump_json())
    with pytest.raises(InputError, match="found a trial that is not finished"):
        spaceless.load_model(tmp_path)
    (tmp_path / "outcome.json").write_text(outcome.model_dump_json())
    assert torch.equal(logits(spaceless.load_model(str(tmp_path)), 250), logits(model, 250))
    (tmp_path / "outcome.json").write_text(outcome.model_copy(update={"status": "diverged"}).model_dump_json())
    with pytest.raises(InputError, match="expected the finished trial"):
        spaceless.load_model(tmp_path)
    other = outcome.model_copy(update={"trial": Trial(model="vgg16", data="texture")})
    (tmp_path / "outcome.json").write_text(other.model_dump_json())
    with pytest.raises(InputError, match="found the outcome of vgg16"):
        spaceless.load_model(tmp_path)


def test_nothing_is_drawn_and_nothing_moves_in_the_global_generator(tmp_path):
    made(tmp_path, **NETWORKS["vgg16 conv1x1"])
    torch.manual_seed(3)
    expected = torch.randn(2)
    torch.manual_seed(3)
    spaceless.load_model(tmp_path)
    assert torch.equal(torch.randn(2), expected)


@pytest.mark.parametrize("what", ["empty", "missing", "a file"])
def test_what_is_neither_is_named(what, tmp_path):
    place = tmp_path / "x"
    if what == "empty":
        place.mkdir()
    elif what == "a file":
        place.write_text("x")
    with pytest.raises(InputError, match=r"x: found neither surgery\.json nor trial\.json"):
        spaceless.load_model(place)


# --- surgery.json from anywhere --------------------------------------------------------------------------------------

HOSTILE = {
    "no JSON": "vgg16", "empty": "", "a list": "[]", "a pickle": "\x80\x04N.", "deep": "[" * 100_000, "null": "null",
    "no field": {"base": None}, "another field": {"pickle": "x"}, "another format": {"format": 2},
    "unknown network": {"base.model": "vgg61"}, "a path": {"base.model": "../vgg16"},
    "a path for timm": {"base.model": "timm:../../etc/passwd"}, "a hub": {"base.model": "timm:hf-hub:some/where"},
    "a name for torchvision": {"base.model": "torchvision:__import__"}, "no chain": {"base.model": "chain:x"},
    "a wide chain": {"base.model": "chain:999999999-M-999999999"},
    "a very wide chain": {"base.model": "chain:" + "9" * 99},
    "a long name": {"base.model": "chain:" + "8-" * 1000 + "8"}, "a number for a name": {"base.model": 3},
    "width": {"base.width": 1e6}, "absurd width": {"base.width": 1e300}, "no width": {"base.width": 0},
    "half a channel": {"base.width": 0.3}, "text for a width": {"base.width": "1.0"},
    "a billion classes": {"base.classes": 10**9}, "one class": {"base.classes": 1},
    "more classes": {"base.classes": 11}, "half a class": {"base.classes": 10.5},
    "absurd size": {"base.image_size": 10**12}, "small size": {"base.image_size": 1},
    "unknown method": {"operation.method": "eval"}, "K": {"operation.k": 99}, "negative K": {"operation.k": -1},
    "fewer units": {"operation.k": 4}, "text for K": {"operation.k": "5"}, "both": {"operation.only": 3},
    "strip": {"operation.strip": 9}, "other pooling": {"operation.downsample": "median"},
    "shuffle": {"operation.shuffle": {"patch": 0}}, "another method": {"operation.method": "gap_fc"},
    "names": {"class_names": ["a"]}, "names of numbers": {"class_names": list(range(10))},
    "mean": {"mean": [0.5]}, "std": {"std": [0.0, 1.0, 1.0]}, "no digest": {"weights_sha256": "0"},
    "another digest": {"weights_sha256": "0" * 64}, "other modules": {"modules_sha256": "0" * 64},
    "changes": {"changes": "none"}, "versions": {"versions": ["x"]},
}


@pytest.fixture(scope="module")
def vgg(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("vgg")
    made(folder, model="vgg16", width=0.125, method="conv1x1", k=5)
    return folder


def copied(folder: Path, place: Path) -> Path:
    for path in folder.iterdir():
        (place / path.name).write_bytes(path.read_bytes())
    return place


@pytest.mark.parametrize("what", HOSTILE)
def test_a_hostile_recipe_is_refused_in_no_time_and_in_one_line(what, vgg, tmp_path):
    folder, wrong = copied(vgg, tmp_path), HOSTILE[what]
    if isinstance(wrong, dict):
        record = json.loads((folder / SURGERY).read_text())
        for place, value in wrong.items():
            *outer, last = place.split(".")
            part = record
            for name in outer:
                part = part[name]
            part[last] = value
        wrong = json.dumps(record)
    (folder / SURGERY).write_text(wrong)
    begun = time.process_time()
    with pytest.raises(InputError, match=r"surgery\.json|model\.safetensors") as caught:
        spaceless.load_model(folder)
    assert time.process_time() - begun < 5
    assert (caught.value.exit_status, len(str(caught.value).splitlines())) == (2, 1)
    assert len(str(caught.value)) < 1000


def test_a_file_without_end_is_not_read(vgg, tmp_path):
    folder = copied(vgg, tmp_path)
    with (folder / SURGERY).open("r+b") as file:
        file.truncate(1 << 30)
    with pytest.raises(InputError, match=r"surgery\.json: found 1,073,741,824 bytes"):
        spaceless.load_model(folder)


def test_bytes_that_are_no_text(vgg, tmp_path):
    folder = copied(vgg, tmp_path)
    (folder / SURGERY).write_bytes(b"\xff\xfe{}")
    with pytest.raises(InputError, match=r"surgery\.json: found UnicodeDecodeError"):
        spaceless.load_model(folder)


# --- weights that are not those ones ---------------------------------------------------------------------------------


def without(name: str):
    return lambda weights: {key: value for key, value in weights.items() if key != name}


FIRST = "features.0.weight"
OTHER = {
    "one missing": (without(FIRST), "no such tensor"),
    "one more": (lambda weights: weights | {"x" * 500: torch.zeros(1)}, "expected no such tensor"),
    "a shape": (lambda weights: weights | {FIRST: weights[FIRST].flatten()}, r"found float32 \(216,\)"),
    "a type": (lambda weights: weights | {FIRST: weights[FIRST].bfloat16()}, "found bfloat16"),
    "no safetensors": (lambda _: b"PK\x03\x04" * 50, "expected safetensors"),
    "empty": (lambda _: b"", "expected safetensors"),
}


@pytest.mark.parametrize("what", OTHER)
def test_other_weights_are_refused_even_if_the_recipe_vouches_for_them(what, vgg, tmp_path):
    folder, (change, says) = copied(vgg, tmp_path), OTHER[what]
    content = change(load_weights((folder / "model.safetensors").read_bytes()))
    content = content if isinstance(content, bytes) else save_weights(content)
    record = json.loads((folder / SURGERY).read_text())
    record["weights_sha256"] = hashlib.sha256(content).hexdigest()
    (folder / SURGERY).write_text(json.dumps(record))
    (folder / "model.safetensors").write_bytes(content)
    with pytest.raises(InputError, match=says) as caught:
        spaceless.load_model(folder)
    assert "model.safetensors" in str(caught.value)
    assert len(str(caught.value)) < 500


@pytest.mark.parametrize("damage", [
    lambda content: content[:-1] + bytes([content[-1] ^ 1]), lambda content: content[:-100], lambda _: b"",
], ids=["one bit", "cut", "empty"])
def test_damaged_weights_are_noticed(damage, vgg, tmp_path):
    path = copied(vgg, tmp_path) / "model.safetensors"
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(InputError, match=r"model\.safetensors: found other content than was written"):
        spaceless.load_model(tmp_path)


def test_weights_that_are_missing_are_named(vgg, tmp_path):
    folder = copied(vgg, tmp_path)
    (folder / "model.safetensors").unlink()
    with pytest.raises(InputError, match=r"model\.safetensors: found No such file"):
        spaceless.load_model(folder)
