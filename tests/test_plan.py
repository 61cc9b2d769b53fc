"""What a plan is made of: 1x1 kernels from spatial ones, what belongs to a convolution, weights hidden in functions."""

import pytest
import torch
from torch import nn
from torch.nn import functional

from networks import Classifier, ConvBlock, Gate, images, stem
from spaceless.errors import SurgeryError
from spaceless.plan import pointwise
from spaceless.surgery import remove_spatial


@pytest.mark.parametrize("options", [{}, {"padding": 1}, {"padding": 2, "dilation": 2, "padding_mode": "circular"},
                                     {"groups": 2, "padding": "same"}, {"bias": False, "stride": 2}], ids=str)
def test_a_1x1_kernel_answers_a_constant_map_as_the_whole_kernel_does(options):
    conv = nn.Conv2d(4, 6, 3, **options)
    point = pointwise(conv, (1, 1))
    x = torch.arange(4.0).view(1, 4, 1, 1).expand(1, 4, 9, 9)
    assert torch.allclose(point(x)[..., 4, 4], conv(x)[..., 2, 2], atol=1e-5)
    assert (point.kernel_size, point.stride, point.padding) == ((1, 1), (1, 1), (0, 0))
    assert point(images(1, 5, 4)).shape == (1, 6, 5, 5)
    assert conv.kernel_size == (3, 3)
    assert conv.weight.shape[2:] == (3, 3)


class Standardised(nn.Conv2d):
    """Weight standardisation scaled by the fan-in, as timm's ScaledStdConv2d: gain and scale are its attributes."""

    def __init__(self, inputs, outputs, side):
        super().__init__(inputs, outputs, side, padding=side // 2)
        self.gain, self.scale = nn.Parameter(torch.ones(outputs, 1, 1, 1)), self.weight[0].numel() ** -0.5

    def forward(self, x):
        centred = self.weight - self.weight.mean((1, 2, 3), keepdim=True)
        kernel = centred / centred.square().mean((1, 2, 3), keepdim=True).sqrt() * self.gain * self.scale
        return functional.conv2d(x, kernel, self.bias, padding=self.padding)


@pytest.mark.parametrize("method", ["conv1x1", "gap_fc"])
def test_weights_that_are_standardised_stay_so_with_the_variance_of_the_smaller_fan(method):
    torch.manual_seed(0)
    model = Classifier(Standardised(3, 64, 3), Standardised(64, 64, 3), channels=64)
    small, _ = remove_spatial(model, method, 1, image_size=8)
    (conv,) = [m for m in small.features[1].modules() if isinstance(m, nn.Conv2d)]
    assert type(conv) is Standardised
    assert conv.scale == pytest.approx(64**-0.5)
    conv.bias.data.zero_()
    x = torch.randn(500, 64, 1, 1)
    assert float(conv(x).var().detach()) == pytest.approx(1.0, abs=0.1)  # unit variance in, unit variance out


class Gated(nn.Module):
    """A gate from a depth-wise convolution with its normalisation, as in GhostNetV2, beside a layer with a ReLU."""

    def __init__(self, channels):
        super().__init__()
        self.gate = nn.Sequential(
            nn.Conv2d(channels, channels, 3, padding=1, groups=channels), nn.BatchNorm2d(channels), nn.Sigmoid())
        self.body = nn.Sequential(
            nn.Conv2d(channels, channels, 3, padding=1, groups=channels), nn.BatchNorm2d(channels), nn.ReLU())

    def forward(self, x):
        return self.body(x) * self.gate(x)


@pytest.mark.parametrize("method", ["conv1x1", "gap_fc"])
def test_a_gate_stays_where_its_convolution_goes(method):
    model = Classifier(stem(8), Gated(8), Gated(8), channels=8)
    small, changes = remove_spatial(model, method, 1, image_size=16)
    gone = {change.path.split(".", 2)[2] for change in changes if change.after == "nothing"}
    assert gone == {"gate.0", "gate.1", "body.0", "body.1", "body.2"}
    assert any(isinstance(m, nn.Sigmoid) for m in small.features[2].modules())


@pytest.mark.parametrize("groups", [1, 8], ids=["full", "depth-wise"])
def test_a_convolution_of_the_whole_map_becomes_a_global_average(groups):
    model = nn.Sequential(stem(8), nn.ReLU(), nn.Conv2d(8, 8, 8, groups=groups), nn.Flatten())
    small, _ = remove_spatial(model, "conv1x1", 1, image_size=8)
    x = images(2, 8)
    front = torch.relu(model[0](x)).mean((2, 3))
    kernel, bias = model[2].weight.sum((2, 3)), model[2].bias
    assert torch.allclose(small(x), front if groups > 1 else front @ kernel.T + bias, atol=1e-5)


class Function(nn.Module):
    """A convolution that is no module: its kernel is a parameter, or a filter that nobody trains."""

    def __init__(self, trained):
        super().__init__()
        kernel = torch.rand(8, 1, 3, 3)
        if trained:
            self.kernel = nn.Parameter(kernel)
        else:
            self.register_buffer("kernel", kernel / kernel.sum((2, 3), keepdim=True))

    def forward(self, x):
        return functional.conv2d(functional.pad(x, (1, 1, 1, 1), mode="reflect"), self.kernel * 1, groups=8)


@pytest.mark.parametrize("method", ["shuffle", "gap_fc", "conv1x1"])
@pytest.mark.parametrize(("hidden", "name"), [
    (Function(True), "features.2"), (nn.ConvTranspose2d(8, 8, 3, padding=1), "features.2"),
    (Gate(8), None), (Function(False), None)], ids=["function", "transposed", "gate", "filter"])
def test_trained_kernels_that_are_no_convolution_of_ours_are_refused_by_name(method, hidden, name):
    model = Classifier(ConvBlock(3, 8), ConvBlock(8, 8), hidden, channels=8)
    if name is None:
        small, changes = remove_spatial(model, method, 1, image_size=16)
        assert {change.unit for change in changes} - {0} == {2}  # 0 is what lies behind the last unit
        assert small(images(2, 16)).shape == (2, 4)
        return
    with pytest.raises(SurgeryError, match=rf"{name}: found spatial weights that are no Conv2d .*; use nn.Conv2d"):
        remove_spatial(model, method, 1, image_size=16)
    front = Classifier(hidden if hidden is None else nn.Identity(), ConvBlock(3, 8), ConvBlock(8, 8), channels=8)
    assert remove_spatial(front, method, 2, image_size=16)
