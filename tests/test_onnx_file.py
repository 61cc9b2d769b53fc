"""Networks as ONNX files give PyTorch's logits; what differs is counted as it was worked out by hand."""

from __future__ import annotations

import importlib
import json
import math
from functools import partial

import numpy as np
import onnx
import pytest
import torch
from torch import nn

from spaceless import onnx_file
from spaceless.data import Dataset
from spaceless.data.augment import normalise
from spaceless.data.feed import Batch
from spaceless.data.feed import test_batches as batches_of
from spaceless.errors import InputError, SpacelessError
from spaceless.onnx_file import OPSET, TOLERANCE, Parity, compare, open_session, session_latencies, to_onnx
from spaceless.run import build
from spaceless.trial import Trial

torch.set_num_threads(1)
CLASSES, SIZE = 10, 32
MEAN, STD = (0.5, 0.4, 0.3), (0.25, 0.2, 0.2)
NAMES = tuple(f"class {i}" for i in range(CLASSES))
CPU = torch.device("cpu")

NETWORKS = {
    "vgg16 conv1x1": {"model": "vgg16", "width": 0.125, "method": "conv1x1", "k": 5},
    "vgg16 gap_fc": {"model": "vgg16", "width": 0.125, "method": "gap_fc", "k": 5},
    "resnet50 gap_fc": {"model": "resnet50", "width": 0.125, "method": "gap_fc", "k": 5},
    "mobilenet_v2 conv1x1": {"model": "mobilenet_v2", "method": "conv1x1", "k": 5},
}


def network(**fields: object) -> nn.Module:
    """A network whose moments are those of its images, so that its logits are of the size of trained ones."""
    model, _ = build(Trial.model_validate({"data": "texture", **fields}), CLASSES, SIZE)
    source = torch.Generator().manual_seed(1)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = 1.0
        if isinstance(module, nn.Dropout):
            module.p = 0.0
    images = torch.randint(0, 256, (64, 3, SIZE, SIZE), dtype=torch.uint8, generator=source)
    with torch.no_grad():
        model.train()(normalise(images, MEAN, STD))
    return model.eval()


def made_data(images: int = 1000) -> Dataset:
    source = torch.Generator().manual_seed(2)
    parts = [torch.randint(0, 256, (images, 3, SIZE, SIZE), dtype=torch.uint8, generator=source),
             torch.arange(images) % CLASSES]
    return Dataset("made", "test", "", *parts, *parts, NAMES)


@pytest.mark.parametrize("name", NETWORKS)
def test_the_logits_of_many_images_are_pytorchs(name):
    count = 200  # export looks at 1,000
    model, data = network(**NETWORKS[name]), made_data(count)
    content = to_onnx(model, SIZE, MEAN, STD, NAMES)
    batches = partial(batches_of, data, 75, CPU)
    found, answers = compare(model, open_session(content), batches, MEAN, STD)
    found.check()
    assert (found.images, found.same_class) == (count, count)
    assert found.correct_pytorch == found.correct_onnx
    assert found.correct_onnx == int((torch.cat(answers).argmax(1) == data.test_labels).sum())
    assert found.largest_difference < (TOLERANCE if name != "resnet50 gap_fc" else 1e-3)  # that one rounds roughly
    assert float(torch.cat(answers).std(0).max()) > 100 * TOLERANCE  # the answers do depend on the image
    with torch.inference_mode():
        assert torch.equal(answers[0], model(normalise(next(batches()).images, MEAN, STD)))


@pytest.fixture(scope="module")
def chain() -> tuple[nn.Module, bytes]:
    model = network(model="chain:8-M-16", method="conv1x1", k=1)
    return model, to_onnx(model, SIZE, MEAN, STD, NAMES)


def test_the_file_says_what_it_takes_and_gives(chain):
    made = onnx.load_from_string(chain[1])
    assert [(each.domain, each.version) for each in made.opset_import if not each.domain] == [("", OPSET)]
    (taken,), (given,) = made.graph.input, made.graph.output
    assert (taken.name, taken.type.tensor_type.elem_type) == ("images", onnx.TensorProto.UINT8)
    assert [dim.dim_value or dim.dim_param for dim in taken.type.tensor_type.shape.dim] == ["batch", 3, SIZE, SIZE]
    assert (given.name, given.type.tensor_type.elem_type) == ("logits", onnx.TensorProto.FLOAT)
    assert [dim.dim_value or dim.dim_param for dim in given.type.tensor_type.shape.dim] == ["batch", CLASSES]
    assert json.loads(next(each.value for each in made.metadata_props if each.key == "class_names")) == list(NAMES)
    assert all(each.data_location == onnx.TensorProto.DEFAULT for each in made.graph.initializer)


def test_no_source_and_no_path_of_this_machine_is_in_the_file(chain):
    assert b".py" not in chain[1]
    assert b"stack_trace" not in chain[1]
    weights = sum(p.numel() * 4 for p in chain[0].state_dict().values())
    assert len(chain[1]) < weights + 20_000


def test_translating_leaves_the_network_as_it_was_and_says_nothing(capsys, recwarn):
    model = network(model="chain:8-M-16", method="gap_fc", k=1)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    to_onnx(model, SIZE, MEAN, STD, NAMES)
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())
    assert not model.training
    assert capsys.readouterr() == ("", "")
    assert not recwarn.list


@pytest.mark.parametrize("count", [1, 2, 7])
def test_batches_of_any_size(chain, count):
    model, content = chain
    images = made_data(count * 2).test_images[:count]
    (found,) = open_session(content).run(None, {"images": images.numpy()})
    with torch.inference_mode():
        np.testing.assert_allclose(found, model(normalise(images, MEAN, STD)).numpy(), atol=TOLERANCE)


def test_what_onnx_cannot_express_is_an_error_of_three_parts():
    class Odd(nn.Module):
        def forward(self, x):
            return x.flatten(1)[:, :CLASSES] if float(x.sum()) > 0 else torch.linalg.eigvals(x[:, 0]).real

    says = r"ONNX: found .* in Odd, expected a network that PyTorch can translate; "
    with pytest.raises(SpacelessError, match=says) as caught:
        to_onnx(Odd(), SIZE, MEAN, STD, NAMES)
    assert caught.value.exit_status == 1


@pytest.mark.parametrize("missing", onnx_file.PACKAGES)
def test_a_missing_package_is_named(missing, monkeypatch):
    real = importlib.import_module

    def without(name):
        if name == missing:
            raise ImportError(name)
        return real(name)

    onnx_file.require_packages()
    monkeypatch.setattr(onnx_file, "import_module", without)
    with pytest.raises(InputError, match=rf"found no package {missing}, .*pip install onnx onnxscript onnxruntime"):
        onnx_file.require_packages()


# --- what is counted, by hand ----------------------------------------------------------------------------------------


class Answers(nn.Module):
    """Three logits of each image: its three channels' first pixels, as they were before the normalisation."""

    def forward(self, x):
        return x[:, :, 0, 0]


class Session:
    """Gives the logits that it was made with, batch by batch."""

    def __init__(self, *batches) -> None:
        self.batches = [np.asarray(batch, np.float32) for batch in batches]

    def run(self, names, inputs):
        assert names == ["logits"]
        assert inputs["images"].dtype == np.uint8
        return [self.batches.pop(0)]


def batch(pixels, labels) -> Batch:
    return Batch(torch.tensor(pixels, dtype=torch.uint8)[:, :, None, None], torch.tensor(labels))


def test_differences_and_classes_are_counted():
    nothing = Batch(torch.zeros(0, 3, 1, 1, dtype=torch.uint8), torch.zeros(0))
    batches = [batch([[255, 0, 0], [0, 255, 0]], [0, 2]), nothing, batch([[0, 0, 255]], [2])]
    session = Session([[1, 0, 0.25], [0, 1, 0]], [[0.5, 0, 0]])
    found, answers = compare(Answers(), session, lambda: batches, (0, 0, 0), (1, 1, 1))
    assert found == Parity(
        images=3, largest_difference=1.0, same_class=2, correct_pytorch=2, correct_onnx=1, rounding=0.0)
    assert torch.equal(torch.cat(answers), torch.eye(3))
    with pytest.raises(SpacelessError, match=r"differ by 1 from PyTorch's on 3 images \(1 other classes\)"):
        found.check()


@pytest.mark.parametrize("wrong", [2 * TOLERANCE, math.nan, math.inf])
@pytest.mark.parametrize("place", [0, 1])
def test_one_wrong_logit_is_noticed_wherever_it_is(wrong, place):
    rows = [[[1, 0, 0]], [[1, 0, 0]]]
    rows[place] = [[1, 0, wrong]]
    found, _ = compare(Answers(), Session(*rows), lambda: [batch([[255, 0, 0]], [0])] * 2, (0, 0, 0), (1, 1, 1))
    with pytest.raises(SpacelessError, match="logits that differ by"):
        found.check()


class Rough(nn.Module):
    """Rounds a third to 0.33300781 in float32, for beside 10,000 it has steps of 2^-10; in float64 it does not."""

    def forward(self, x):
        return (x[:, :, 0, 0] + 1e4) - 1e4


@pytest.mark.parametrize(("apart", "fits"), [(0.0012, True), (-0.0012, True), (0.0014, False), (-0.0014, False)])
def test_no_more_is_asked_for_than_pytorch_itself_gives(apart, fits):
    third = 341 / 1024  # what PyTorch says: 3.255e-4 below a third, so that 1.302e-3 are allowed
    session = Session([[third + apart, third, third]])
    found, _ = compare(Rough(), session, lambda: [batch([[85, 85, 85]], [0])], (0, 0, 0), (1, 1, 1))
    assert found.rounding == pytest.approx(1 / 3 - third, rel=1e-3)
    assert found.allowed == 4 * found.rounding
    if fits:
        found.check()
    else:
        with pytest.raises(SpacelessError, match=r"expected at most 0\.0013; "):
            found.check()


def test_a_network_that_has_no_float64_gets_no_allowance():
    class Single(nn.Module):
        def forward(self, x):
            return torch.nn.functional.linear(x[:, :, 0, 0], torch.eye(3))

    found, _ = compare(Single(), Session([[1, 0, 0.001]]), lambda: [batch([[255, 0, 0]], [0])], (0, 0, 0), (1, 1, 1))
    assert (found.rounding, found.allowed) == (None, TOLERANCE)


def test_sessions_are_timed_in_turn(monkeypatch):
    order, ticks = [], iter(range(1000))

    class Timed:
        def __init__(self, name, slow) -> None:
            self.name, self.slow = name, slow

        def run(self, names, inputs):
            order.append((self.name, inputs["images"].shape, inputs["images"].dtype))
            for _ in range(self.slow):
                next(ticks)

    monkeypatch.setattr("spaceless.cost.time.perf_counter", lambda: float(next(ticks)))
    (before, after), ratio = session_latencies([Timed("one", 2), Timed("two", 0)], 8, 4)
    assert [name for name, *_ in order] == ["one", "two"] * 7
    assert set(order) == {(name, (1, 3, 8, 8), np.dtype(np.uint8)) for name in ("one", "two")}
    assert (before.median, after.median, ratio.median, ratio.repeats) == (3, 1, 3, 4)
    assert session_latencies([Timed("one", 0)], 8, 4)[1] is None
