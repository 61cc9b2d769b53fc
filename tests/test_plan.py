"""What a plan is made of: 1x1 kernels from spatial ones, and what belongs to a convolution."""

import pytest
import torch
from torch import nn
from torch.nn import functional

from networks import Classifier, images, stem
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
