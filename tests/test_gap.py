"""GAP+FC by rewriting the graph: filters, resizing and dropout by functions, heads that expect several positions."""

import copy
from contextlib import nullcontext
from functools import partial

import pytest
import torch
from torch import nn
from torch.nn import functional

from networks import Classifier, ConvBlock, Residual, images, randomised, stem
from spaceless.errors import SurgeryError
from spaceless.gap import ByMode, FullyConnected
from spaceless.surgery import remove_spatial


class Blur(nn.Module):
    """Anti-aliased down-sampling (Zhang 2019): a fixed filter behind a border of mirrored pixels."""

    def __init__(self, channels):
        super().__init__()
        self.channels = channels
        line = torch.tensor([1.0, 2.0, 1.0]) / 4
        self.register_buffer("kernel", (line[:, None] * line).expand(channels, 1, 3, 3).clone())

    def forward(self, x):
        x = functional.pad(x, (1,) * 4, mode="reflect")
        return functional.conv2d(x, self.kernel, stride=2, groups=self.channels)


class Dense(nn.Module):
    """Two layers whose maps are joined, dropout by function, and a side branch."""

    def __init__(self, rate=0.5):
        super().__init__()
        self.stem, self.one, self.two = ConvBlock(3, 8), ConvBlock(8, 8), ConvBlock(16, 8)
        self.blur, self.head, self.rate = Blur(8), nn.Linear(16, 4), rate

    def forward(self, x):
        x = self.stem(x)
        y = self.blur(self.one(x))
        z = functional.interpolate(y, size=x.shape[-2:])
        z = self.two(torch.cat([x, z], 1))
        x = torch.cat([x, z], 1).mean((2, 3))
        return self.head(functional.dropout(x, self.rate, training=self.training))


def test_what_pools_and_resizes_by_functions_has_nothing_to_do_on_a_vector():
    model = randomised(Dense())
    small, changes = remove_spatial(model, "gap_fc", 2, image_size=16)
    x = images(2, 16)
    pooled = model.stem(x).mean((2, 3))

    def layer(block, vector):
        kernel = block.conv.weight.sum((2, 3))
        return torch.relu(block.norm((vector @ kernel.T)[..., None, None]))[..., 0, 0]

    one = layer(model.one, pooled)
    two = layer(model.two, torch.cat([pooled, one], 1))
    by_hand = model.head(torch.cat([pooled, two], 1))
    assert torch.allclose(small(x), by_hand, atol=1e-5)
    assert {change.unit for change in changes} == {2, 3}


def test_dropout_by_a_function_keeps_dropping_out_in_training_only():
    model = Dense(rate=0.9)
    small, _ = remove_spatial(model, "gap_fc", 1, image_size=16)
    (switch,) = [m for m in small.modules() if isinstance(m, ByMode)]
    ones = torch.ones(1, 2000)
    for each in (switch, copy.deepcopy(switch)):
        each.train()
        assert float((each(ones) == 0).float().mean()) == pytest.approx(0.9, abs=0.05)
        each.eval()
        assert torch.equal(each(ones), ones)
    small.eval()
    assert not switch.training
    assert torch.equal(small(images(2, 16)), small(images(2, 16)))


class Adaptive(nn.Module):
    """Adaptive pooling by a function to 2x2 positions, then what is given."""

    def __init__(self, behind):
        super().__init__()
        self.features, self.behind = nn.Sequential(ConvBlock(3, 8), ConvBlock(8, 8)), behind

    def forward(self, x):
        return self.behind(functional.adaptive_avg_pool2d(self.features(x), (2, 2))).flatten(1)


def test_a_linear_head_gets_the_vector_in_every_position_and_a_convolution_gets_it_once():
    linear = Adaptive(nn.Sequential(nn.Flatten(), nn.Linear(32, 4)))
    small, _ = remove_spatial(linear, "gap_fc", 1, image_size=16)
    seen = []
    small.behind[1].register_forward_pre_hook(lambda _module, inputs: seen.append(inputs[0]))
    small.eval()(images(2, 16))
    assert torch.equal(seen[0].view(2, 8, 4), seen[0].view(2, 8, 4)[..., :1].expand(2, 8, 4))
    convolution = Adaptive(nn.Conv2d(8, 4, 2))
    small, _ = remove_spatial(convolution, "gap_fc", 2, image_size=16)
    (head,) = [m for m in small.behind.modules() if isinstance(m, FullyConnected)]
    assert head.in_features == 8
    assert small.eval()(images(2, 16)).shape == (2, 4)


def test_padding_modules_and_upsampling_behind_the_pooling():
    model = Classifier(stem(8), Residual(8, 8), nn.ReflectionPad2d(2), nn.Upsample(scale_factor=2), nn.ZeroPad2d(1),
                       Residual(8, 8), channels=8)
    small, _ = remove_spatial(model, "gap_fc", 2, image_size=8)
    last = []
    small.features[5].register_forward_hook(lambda _module, _inputs, output: last.append(output))
    small.eval()(images(2, 8))
    assert last[0].shape == (2, 8, 1, 1)


class Modes(nn.Module):
    """A part of the pass in a mode of its own, in front of two layers whose maps are joined."""

    def __init__(self, mode):
        super().__init__()
        self.one, self.two, self.three = (nn.Conv2d(i, 8, 3, padding=1) for i in (3, 8, 16))
        self.head, self.mode = nn.Linear(8, 4), mode

    def forward(self, x):
        with self.mode():
            x = torch.relu(self.one(x))
        return self.head(torch.relu(self.three(torch.cat([x, self.two(x)], 1))).mean((2, 3)))


@pytest.mark.parametrize("mode", [
    torch.no_grad, partial(torch.autocast, "cpu", enabled=False), partial(torch.autocast, "cpu", torch.bfloat16),
], ids=["no gradients", "no autocast", "its own autocast"])
def test_a_graph_that_would_lose_a_mode_is_not_rewritten(mode):
    with pytest.raises(SurgeryError, match=r"gap_fc on Modes: found a part of the forward pass without gradients or"):
        remove_spatial(Modes(mode), "gap_fc", 2, image_size=8)
    with torch.no_grad():  # which is the caller's, and so the same for all of it
        remove_spatial(Modes(nullcontext), "gap_fc", 2, image_size=8)
    whole, _ = remove_spatial(Modes(mode), "gap_fc", 1, image_size=8)  # by modules: nothing is rewritten
    assert type(whole) is Modes
