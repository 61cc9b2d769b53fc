"""The traced graph: shapes, where a node is executed, layers that stay whole, and the image a network expects."""

import pytest
import torch
from torch import nn

from networks import SMALL, Classifier, Fire, StemLast, images
from spaceless.models import untrained
from spaceless.surgery import remove_spatial
from spaceless.tracing import ShapesOnly, example_input, trace
from spaceless.trial import METHODS
from spaceless.units import find_units


def test_shapes_calls_and_places_of_nodes():
    traced = trace(SMALL["residual"](), 16)
    (conv,) = traced.calls("features.3.one")
    assert traced.shapes[conv] == (1, 16, 8, 8)
    assert isinstance(traced.module_of(conv), nn.Conv2d)
    inside = traced.inside("features.3")
    assert inside[0] is conv
    assert [str(node.target) for node in inside if node.op == "call_module"] == [
        f"features.3.{name}" for name in ("one", "norm", "two", "skip")]
    assert traced.shapes[inside[-1]] == (1, 16, 8, 8)
    assert traced.inside("features.0") == traced.calls("features.0") != []
    assert not traced.inside("features")[-1].name.startswith("mean")  # the pooling lies outside
    assert traced.module_of(traced.nodes[0]) is None


def test_the_network_is_not_touched():
    model = SMALL["residual"]().train()
    traced = trace(model, 16)
    assert next(traced.model.parameters()).device.type == "meta"
    assert next(model.parameters()).device.type == "cpu"
    assert all(module.training for module in model.modules())


class OwnConv(nn.Conv2d):
    def forward(self, x):
        if x.shape[2] < 4:  # control flow that a tracer cannot follow
            return x
        return super().forward(x)


class OwnNorm(nn.BatchNorm2d):
    """Normalisation and activation in one, as timm's."""

    def forward(self, x):
        return torch.relu(super().forward(x))


def test_a_subclass_of_a_layer_is_one_layer():
    model = Classifier(
        OwnConv(3, 8, 3, padding=1), OwnNorm(8), OwnConv(8, 8, 3, padding=1, groups=8), OwnNorm(8), channels=8)
    traced = trace(model, 16)
    calls = [str(node.target) for node in traced.nodes if node.op == "call_module"]
    assert calls == [*(f"features.{i}" for i in range(4)), "head"]
    small, changes = remove_spatial(model, "conv1x1", 1, image_size=16)
    assert [change.path for change in changes] == ["features.2", "features.3"]
    assert small(images(2, 16)).shape == (2, 4)


@pytest.mark.parametrize("channels", [1, 3])
def test_the_image_of_a_network_whose_stem_is_registered_last(channels):
    assert example_input(StemLast(channels), 8).shape == (1, channels, 8, 8)


@pytest.mark.parametrize("channels", [1, 2, 3, 4, 5])
def test_the_image_is_what_the_first_convolution_takes(channels):
    model = nn.Sequential(nn.Conv2d(channels, 6, 3), nn.Conv2d(6, 7, 3)).double()
    found = example_input(model, 8)
    assert found.shape == (1, channels, 8, 8)
    assert found.dtype == torch.float64
    assert example_input(model.to("meta"), 8).device.type == "meta"


@pytest.mark.parametrize("channels", [1, 3, 5])
@pytest.mark.parametrize("method", METHODS)
def test_the_image_stays_the_same_when_every_unit_is_changed(method, channels):
    if channels == 5:
        model = Classifier(nn.Conv2d(5, 8, 3), *[Fire(8, 4, 4) for _ in range(3)], channels=8)
    else:
        model = StemLast(channels)
    count = len(find_units(model, 16)) - (method == "strip")  # without any layer nothing tells the channels
    small, _ = remove_spatial(model, method, count, image_size=16)
    assert small.eval()(example_input(small, 16)).shape == (1, 4)
    assert example_input(small, 16).shape == (1, channels, 16, 16)


@pytest.mark.parametrize("name", ["torchvision:resnext50_32x4d", "torchvision:regnet_y_400mf"])
def test_the_image_stays_the_same_when_only_grouped_convolutions_are_left(name):
    small, _ = remove_spatial(untrained(name, 10, 64), "gap_fc", 17, image_size=64)
    assert small.eval()(example_input(small, 64)).shape == (1, 10)


def test_with_no_convolution_left_an_image_has_three_channels():
    small, _ = remove_spatial(untrained("vgg16", 10, 32), "strip", 13, image_size=32)
    assert small.classifier[0].in_features == 3
    assert example_input(small, 32).shape == (1, 3, 32, 32)


def test_a_normalisation_that_costs_no_time_still_refuses_another_number_of_channels():
    x = torch.zeros(1, 4, 5, 5, device="meta")
    with ShapesOnly():
        assert nn.BatchNorm2d(4, device="meta").eval()(x) is x
        with pytest.raises(RuntimeError, match="running_mean"):
            nn.BatchNorm2d(3, device="meta").eval()(x)
        real = torch.arange(4.0).view(1, 4, 1, 1)
        norm = nn.BatchNorm2d(4, eps=0.0).eval()
        norm.running_mean.fill_(1.0)
        assert norm(real).flatten().tolist() == [-1.0, 0.0, 1.0, 2.0]
