"""What `inspect` and `paper --check` find out: counts, units before and after surgery, what is refused."""

import json

import pytest

from networks import FLAT, Flat
from spaceless.errors import InputError
from spaceless.inspection import inspect_model
from spaceless.models import build_model, untrained
from spaceless.show import inspection

EXACT = [  # issue 2, "must show"
    ("vgg16", 100, 32, 5, 23529636), ("resnet50", 100, 32, 9, 14268068), ("resnet152", 1000, 224, 19, 45512744),
]


@pytest.mark.parametrize(("name", "classes", "size", "k", "params"), EXACT, ids=[case[0] for case in EXACT])
def test_the_counts_that_users_are_promised(name, classes, size, k, params):
    found = inspect_model(name, classes=classes, image_size=size, method="conv1x1", k=k)
    assert found["params"] == params
    assert [unit["index"] for unit in found["units"] if unit["modified"]] == [
        unit["index"] for unit in found["units"]][-k:]


def test_every_field_before_and_after_surgery():
    before = inspect_model("chain:4-M-8-8", classes=3, image_size=16)
    macs = 16 * 16 * 4 * 27 + 8 * 8 * 8 * (4 * 9 + 8 * 9) + 8 * 3
    head = {"model": "chain:4-M-8-8", "width": 1.0, "classes": 3, "image_size": 16, "only": None, "downsample": None}
    left_out = ["BatchNorm2d", "GlobalAveragePool", "MaxPool2d", "ReLU"]
    assert {key: before[key] for key in before if key != "units"} == head | {
        "method": "baseline", "k": 0, "params": (27 * 4 + 4 + 8) + (36 * 8 + 8 + 16) + (72 * 8 + 8 + 16) + 27,
        "macs": macs, "activations": 4 * 16 * 16 + 8 * 8 * 8 + 8 * 8 * 8 + 3, "not_counted": left_out,
        "unknown_operations": [], "head": None}
    assert before["units"] == [
        {"index": 1, "name": "features.0", "kind": "Conv2d", "out_size": [16, 16], "receptive_field": 3,
         "receptive_stride": 1, "receptive_offset": -1, "receptive_aligned": True,
         "params": 27 * 4 + 4, "modified": False},
        {"index": 2, "name": "features.4", "kind": "Conv2d", "out_size": [8, 8], "receptive_field": 8,
         "receptive_stride": 2, "receptive_offset": -3, "receptive_aligned": True,
         "params": 36 * 8 + 8, "modified": False},
        {"index": 3, "name": "features.7", "kind": "Conv2d", "out_size": [8, 8], "receptive_field": 12,
         "receptive_stride": 2, "receptive_offset": -5, "receptive_aligned": True,
         "params": 72 * 8 + 8, "modified": False},
    ]
    after = inspect_model("chain:4-M-8-8", classes=3, image_size=16, method="conv1x1", k=1)
    assert (after["method"], after["k"]) == ("conv1x1", 1)
    assert after["params"] == before["params"] - 64 * 8
    assert after["macs"] == macs - 8 * 8 * 8 * 64
    assert after["units"][:2] == before["units"][:2]
    assert after["units"][2] == before["units"][2] | {"params": 72, "modified": True}  # 8 * 8 weights and 8 biases
    assert json.loads(json.dumps(after)) == after


def test_latency_before_and_after():
    found = inspect_model("chain:4-M-8-8", classes=3, image_size=16, method="conv1x1", k=1, batch=2)["latency"]
    assert (found["batch"], found["device"], found["before"]["repeats"]) == (2, "cpu", 20)
    for name in ("before", "after", "ratio"):
        assert 0 < found[name]["lower"] <= found[name]["median"] <= found[name]["upper"]
    alone = inspect_model("chain:4-M-8-8", classes=3, image_size=16, batch=1)["latency"]
    assert set(alone) == {"batch", "threads", "device", "before"}
    assert "latency" not in inspect_model("chain:4", classes=3)


def test_what_is_behind_an_unknown_operation_has_no_field():
    found = inspect_model("timm:edgenext_xx_small")
    assert found["unknown_operations"] == ["matmul in stages.1.blocks.1.xca"]
    fields = [unit["receptive_field"] for unit in found["units"]]
    assert fields[0] == 4
    assert fields[-1] is None
    assert {unit["receptive_stride"] for unit in found["units"] if unit["receptive_field"] is None} == {None}


def test_a_head_that_reads_positions_by_itself_is_told_until_they_mean_nothing(monkeypatch, capsys):
    monkeypatch.setattr("spaceless.models._construct", lambda _name, classes, size: Flat(classes, size))
    for method, k, told in (("baseline", 0, FLAT), ("conv1x1", 2, FLAT), ("shuffle", 1, None)):
        found = inspect_model("torchvision:flat", classes=3, image_size=16, method=method, k=k)
        assert found["head"] == told
        inspection(found, as_json=False)
        assert (FLAT in capsys.readouterr().out) is (told is not None)


def test_one_unit_alone():
    found = inspect_model("chain:4-M-8-8", classes=3, image_size=16, method="conv1x1", only=2)
    assert [unit["modified"] for unit in found["units"]] == [False, True, False]
    assert (found["k"], found["only"], found["downsample"]) == (1, 2, "avg")


def test_the_title_says_what_was_inspected(capsys):
    for fields, said in (({"k": 1}, "chain:4-8, 3 classes, 16 pixels, conv1x1, K = 1"),
                         ({"only": 2, "downsample": "max"},
                          "chain:4-8, 3 classes, 16 pixels, conv1x1, unit 2 alone, down-sampling max")):
        inspection(inspect_model("chain:4-8", classes=3, image_size=16, method="conv1x1", **fields), False)
        assert said == capsys.readouterr().out.splitlines()[0].strip()
    inspection(inspect_model("vgg16", classes=3, image_size=32, width=0.25), False)
    assert "vgg16 x 0.25, 3 classes" in capsys.readouterr().out


@pytest.mark.parametrize("downsample", ["avg", "stride"])
def test_downsampling_changes_the_cost(downsample):
    found = inspect_model("resnet50", classes=10, image_size=32, method="conv1x1", k=3, downsample=downsample)
    ungrown = inspect_model("resnet50", classes=10, image_size=32, method="conv1x1", k=3, downsample="stride")
    assert (found["macs"] > ungrown["macs"]) is (downsample == "avg")
    assert found["params"] == ungrown["params"]


def test_a_stripped_unit_has_no_parameters_left():
    found = inspect_model("chain:4-M-8-8", classes=3, image_size=16, method="strip", k=1)
    assert [unit["params"] for unit in found["units"]] == [112, 296, 0]


def test_the_default_image_is_the_networks_own():
    assert inspect_model("chain:4-M-8", classes=3)["image_size"] == 48
    assert inspect_model("squeezenet1_0", classes=3)["units"][0]["out_size"] == [54, 54]


def test_a_width_reaches_the_network():
    assert inspect_model("chain:4-8", classes=3, width=0.5)["params"] == (27 * 2 + 2 + 4) + (18 * 4 + 4 + 8) + 15


def test_the_stem_of_the_papers_block_networks_is_no_unit():
    assert len(inspect_model("resnet50", classes=10, image_size=32)["units"]) == 16
    assert len(inspect_model("torchvision:resnet50", classes=10)["units"]) == 17


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"name": "vgg17"}, "model: found 'vgg17', expected one of vgg16, .*; did you mean 'vgg16'"),
        ({"method": "blur", "k": 1}, "method: found 'blur', expected .*shuffle"),
        ({"method": "blur"}, "method: found 'blur'"),  # K = 0 hides no nonsense
        ({"k": 3}, "method: found 'baseline', expected one of shuffle"),
        ({"method": "shuffle", "k": 14}, "k: found 14, expected 0 to 13"),
        ({"method": "shuffle", "k": -1}, "k: found -1, expected greater than or equal to 0"),
        ({"method": "shuffle", "only": 14}, "only: found 14, expected a unit from 1 to 13"),
        ({"method": "shuffle", "only": 0}, "only: found 0"),
        ({"method": "gap_fc", "only": 2}, "only: found method gap_fc"),
        ({"method": "conv1x1", "k": 1, "downsample": "median"}, "downsample: found 'median'"),
        ({"classes": 0}, "classes: found 0, expected at least 1"),
        ({"image_size": 0}, "image size: found 0, expected at least 1"),
        ({"image_size": 8}, "an image of 8 pixels: found RuntimeError: .*, expected a forward pass; choose"),
        ({"width": 0.3}, "width: found 0.3"),
        ({"batch": 0}, "batch: found 0, expected at least 1"),
    ],
    ids=str,
)
def test_refused(fields, message):
    with pytest.raises(InputError, match=message) as caught:
        inspect_model(**{"name": "vgg16", "image_size": 32, "classes": 10} | fields)
    assert caught.value.exit_status == 2


def test_untrained_networks_cost_no_memory_unless_their_constructor_computes():
    assert {p.device.type for p in untrained("vgg16", 10, 32).parameters()} == {"meta"}
    name = "torchvision:regnet_y_400mf"  # its constructor measures what it has drawn
    drawn, built = untrained(name, 10, 64), build_model(name, 10, 64)
    assert [p.shape for p in drawn.parameters()] == [p.shape for p in built.parameters()]
    drawn, built = untrained(name, 10, 64, width=2.0), build_model(name, 10, 64, width=2.0)
    assert {p.device.type for p in (*drawn.parameters(), *drawn.buffers())} == {"meta"}
    assert [p.shape for p in drawn.parameters()] == [p.shape for p in built.parameters()]
