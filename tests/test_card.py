"""The model card says what its record says, and texts from elsewhere stay texts."""

from __future__ import annotations

import copy

import pytest
import yaml

from spaceless.card import card

TIMES = {"median": 0.002, "lower": 0.0015, "upper": 0.0035, "repeats": 50}
ROW = {"params": 1234567, "macs": 7654321, "top1": 56.7891, "held_out": None,
       "safetensors_bytes": 4_938_268, "onnx_bytes": 999,
       "latency": {"pytorch": TIMES, "onnxruntime": TIMES | {"median": 0.001}}}
RECORD = {
    "name": "vgg16-conv1x1-k5", "trial": "0123456789abcdef", "units": 13, "changed_modules": 5, "precision": "bf16",
    "network": {"model": "vgg16", "width": 0.25, "method": "conv1x1", "k": 5, "only": None, "strip": 0,
                "downsample": "avg", "start": None, "seed": 3, "classes": 100, "image_size": 32},
    "recipe": {"name": "fast", "epochs": 30, "batch_size": 128, "optimizer": "sgd", "learning_rate": 0.1,
               "momentum": 0.9, "nesterov": True, "weight_decay": 5e-4, "schedule": "one_cycle",
               "augment": "crop_flip"},
    "trained_on": "A processor", "data": {"name": "cifar100", "note": "", "train_images": 50000, "test_images": 10000},
    "mean": [0.5, 0.4, 0.3], "std": [0.25, 0.2, 0.2], "opset": 18, "threads": 2, "hardware": "Another processor",
    "versions": {"onnxruntime": "1.32.0"},
    "preprocessing": {"colours": "RGB", "shorter_side": 37, "centre": 32, "interpolation": "bilinear, antialiased"},
    "checks": {"images": 1000, "largest_difference": 1.9e-6, "same_class": 998, "correct_pytorch": 567,
               "correct_onnx": 566, "rounding": None, "allowed": 1e-4},
    "exported": ROW, "original": ROW | {"params": 7654321, "top1": 55.0},
    "times_as_fast": {"pytorch": TIMES | {"median": 1.5, "lower": 1.25, "upper": 1.75},
                      "onnxruntime": TIMES | {"median": 2.5, "lower": 2.25, "upper": 2.75}},
    "files": {"model.onnx": {"bytes": 999, "sha256": "ab" * 32}},
}


def changed(**places: object) -> dict:
    """Return the record with some fields replaced; `__` goes one level down."""
    record = copy.deepcopy(RECORD)
    for place, value in places.items():
        *outer, last = place.split("__")
        part = record
        for name in outer:
            part = part[name]
        part[last] = value
    return record


def parts(record: dict) -> tuple[dict, str]:
    _, head, body = card(record).split("---\n", 2)
    return yaml.safe_load(head), " ".join(body.split())


def test_every_figure_is_that_of_the_record():
    head, body = parts(RECORD)
    assert head["model-index"] == [{"name": "vgg16-conv1x1-k5", "results": [{
        "task": {"type": "image-classification"}, "dataset": {"name": "cifar100", "type": "cifar100", "split": "test"},
        "metrics": [{"type": "accuracy", "value": 0.567891}]}]}]
    for said in (
        "| top-1 accuracy on the test images | 55.00 % | 56.79 % |", "| parameters | 7,654,321 | 1,234,567 |",
        "| multiply-adds per image | 7,654,321 | 7,654,321 |", "| `model.safetensors` | 4.94 MB | 4.94 MB |",
        "| `model.onnx` | 1.0 kB | 1.0 kB |", "| one image in PyTorch | 2.00 ms (1.50 to 3.50) |",
        "| one image in onnxruntime | 1.00 ms (1.50 to 3.50) |", "2 threads of Another processor",
        "1.50 (1.25 to 1.75) times as fast in PyTorch and 2.50 (2.25 to 2.75) times in onnxruntime",
        "`vgg16` at 0.25 of its width", "method `conv1x1`, K = 5: the last 5 of its 13 units changed",
        "(down-sampling: avg)", "On `cifar100`, 50,000 images, with the recipe `fast`: epochs 30", "seed 3",
        "on 10,000 test images, in bf16 as in training", "On 1,000 test images",
        "by 1.9e-06 at most (0.0001 is allowed)", "998 get the same class, and 566 the correct one (PyTorch: 567)",
        "torch.tensor([0.5, 0.4, 0.3])", "operator set 18",
        "where the shorter side becomes 37 pixels",
    ):
        assert said in body, said


@pytest.mark.parametrize(("places", "says"), [
    ({"network__method": "gap_fc"}, "a global average pooling stands before the first of them"),
    ({"network__method": "strip"}, "units changed: they were removed altogether."),
    ({"network__method": "shuffle", "network__strip": 5}, "units changed: they were removed altogether."),
    ({"network__strip": 2}, "(down-sampling: avg), and the last 2 of them were removed."),
    ({"network__only": 4, "network__k": 1}, "K = 1: unit 4 of its 13 units changed"),
    ({"network__method": "baseline", "network__k": 0, "original": None, "times_as_fast": None},
     "It is `vgg16` at 0.25 of its width, unchanged. | | this network |"),
    ({"network__width": 1.0}, "It is `vgg16` without spatial information"),
    ({"original__top1": None}, "| – | 56.79 % |"),
    ({"exported__held_out": 58.0}, "| top-1 accuracy on the images held out | – | 58.00 % | | top-1 accuracy on the "
     "test images | 55.00 % | 56.79 % |"),
    ({"exported__held_out": 58.0}, "on 10,000 images held out, and that on the test images was taken once"),
    ({"exported__held_out": 58.0}, "On 1,000 held-out images the logits"),
    ({"exported__held_out": 58.0, "exported__top1": None}, "This network was not tested on the test images."),
    ({"network__start": {"run": "ab" * 8}}, "It began from the weights of trial `abababababababab`"),
    ({"original__top1": None}, "its accuracy is not known"),
    ({"threads": 1}, "fp32, 1 thread of"),
    ({"checks__rounding": 2.5e-4, "checks__allowed": 1e-3},
     "(0.001 is allowed, since PyTorch's own differ by 0.00025 from those it computes in float64)"),
])
def test_other_networks_are_told_as_what_they_are(places, says):
    assert says in parts(changed(**places))[1]


def test_an_accuracy_that_only_the_images_held_out_know_is_one_of_validation():
    head, _ = parts(changed(exported__held_out=58.0, exported__top1=None))
    result = head["model-index"][0]["results"][0]
    assert (result["dataset"]["split"], result["metrics"][0]["value"]) == ("validation", 0.58)


def test_a_caveat_of_the_data_stands_beside_every_accuracy():
    head, body = parts(changed(data__note="re-split: not the official one"))
    assert head["model-index"][0]["results"][0]["dataset"]["name"] == "cifar100, re-split: not the official one"
    assert "50,000 images (re-split: not the official one)" in body


def test_texts_from_elsewhere_are_neither_yaml_nor_markdown():
    name, note = 'a": [x]\n---\n# `b` | c', "<script>[x](y) | *z*\n\n# w"
    head, body = parts(changed(data__name=name, data__note=note, hardware="a | b", trained_on="<b>"))
    dataset = head["model-index"][0]["results"][0]["dataset"]
    assert dataset["type"] == name
    assert dataset["name"] == f"{name}, {note}"
    assert "\\<script\\>\\[x\\](y) \\| \\*z\\* # w" in body
    assert "`a\": [x] --- # 'b' / c`" in body
    assert "a \\| b" in body
    assert card(changed(data__note=note)).count("\n# ") == 1
