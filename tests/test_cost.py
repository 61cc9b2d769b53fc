"""Costs: multiply-adds by formula, what is not counted, and quartiles of measured times."""

import itertools
import statistics

import pytest
import torch
from torch import nn
from torch.nn import functional

from networks import SMALL, Gate, images
from spaceless.cost import Cost, compare_latency, cost, count_parameters, latency
from spaceless.errors import InputError
from spaceless.models import untrained
from spaceless.surgery import remove_spatial


def alone(*layers):
    return nn.Sequential(*layers)


LAYERS = [  # layer, side of the image, multiply-adds as a formula: outputs x what each of them sums over
    ("3x3", alone(nn.Conv2d(3, 8, 3, padding=1)), 10, (8 * 10 * 10) * (3 * 9)),
    ("3x3 valid", alone(nn.Conv2d(3, 8, 3)), 10, (8 * 8 * 8) * (3 * 9)),
    ("strided", alone(nn.Conv2d(3, 8, 3, 2, 1)), 10, (8 * 5 * 5) * (3 * 9)),
    ("no bias", alone(nn.Conv2d(3, 8, 3, 2, 1, bias=False)), 10, (8 * 5 * 5) * (3 * 9)),
    ("1x7", alone(nn.Conv2d(3, 8, (1, 7), padding=(0, 3))), 10, (8 * 10 * 10) * (3 * 7)),
    ("dilated", alone(nn.Conv2d(3, 8, 3, padding=2, dilation=2)), 10, (8 * 10 * 10) * (3 * 9)),
    ("groups", alone(nn.Conv2d(4, 8, 3, padding=1, groups=2)), 10, (8 * 10 * 10) * (2 * 9)),
    ("depth-wise", alone(nn.Conv2d(4, 4, 3, padding=1, groups=4)), 10, (4 * 10 * 10) * 9),
    ("linear", alone(nn.Conv2d(3, 2, 1), nn.Flatten(), nn.Linear(200, 7)), 10, (2 * 10 * 10) * 3 + 7 * 200),
    ("many vectors", alone(nn.Conv2d(3, 2, 1), nn.Flatten(2), nn.Linear(100, 7)), 10, (2 * 10 * 10) * 3 + 2 * 7 * 100),
]


@pytest.mark.parametrize(("model", "size", "macs"), [case[1:] for case in LAYERS], ids=[case[0] for case in LAYERS])
def test_multiply_adds_by_formula(model, size, macs):
    assert cost(model, size).macs == macs


def test_vgg16_by_formula():
    widths, sides = [3, 64, 64, 128, 128, 256, 256, 256, *[512] * 6], [32, 32, 16, 16, 8, 8, 8, 4, 4, 4, 2, 2, 2]
    convs = sum(9 * i * o * side**2 for (i, o), side in zip(itertools.pairwise(widths), sides, strict=True))
    head = 512 * 4096 + 4096 * 4096 + 4096 * 100
    assert cost(untrained("vgg16", 100, 32), 32).macs == convs + head
    small, _ = remove_spatial(untrained("vgg16", 100, 32), "conv1x1", 2, image_size=32)
    assert cost(small, 32).macs == convs + head - 2 * 8 * 512 * 512 * 2**2
    pooled, _ = remove_spatial(untrained("vgg16", 100, 32), "gap_fc", 2, image_size=32)
    assert cost(pooled, 32).macs == convs + head - 2 * 9 * 512 * 512 * 2**2 + 2 * 512 * 512


@pytest.mark.parametrize(
    ("name", "giga"), [("torchvision:resnet50", 4.089), ("mobilenet_v2", 0.301), ("torchvision:vgg16", 15.470)],
)  # "GFLOPS" of torchvision's model cards, which count multiply-adds
def test_published_multiply_adds(name, giga):
    assert cost(untrained(name, 1000, 224), 224).macs / 1e9 == pytest.approx(giga, rel=5e-3)


def test_what_is_not_counted_is_named_and_only_that():
    small, _ = remove_spatial(SMALL["residual"](), "shuffle", 1, image_size=32)
    model = nn.Sequential(small, nn.Dropout(), nn.Identity(), nn.Unflatten(1, (4, 1, 1)), nn.Upsample(scale_factor=2),
                          nn.MaxPool2d(2), nn.GELU(), Gate(4))
    layers = ("BatchNorm2d", "GELU", "MaxPool2d", "ReLU", "Shuffle", "Unflatten", "Upsample")
    between = ("add", "mean", "mul", "relu", "sigmoid")
    assert cost(model, 32).not_counted == layers + between
    assert cost(alone(nn.Conv2d(3, 2, 1), nn.Flatten(), nn.Dropout(), nn.Sequential()), 8).not_counted == ()
    pooled, _ = remove_spatial(SMALL["fire"](), "gap_fc", 1, image_size=32)
    # FullyConnected is a Linear
    assert cost(pooled, 32).not_counted == ("GlobalAveragePool", "MaxPool2d", "ReLU", "mean", "relu")


class Rows(nn.Module):
    """Positions in a row, through a layer of the kind that is given."""

    def __init__(self, layer):
        super().__init__()
        self.conv, self.layer = nn.Conv2d(3, 8, 1), layer

    def forward(self, x):
        x = self.conv(x).flatten(2)
        return self.layer(x) if isinstance(self.layer, nn.Conv1d) else self.layer(x.transpose(1, 2))[0]


@pytest.mark.parametrize(("model", "macs"), [
    (alone(nn.Conv2d(3, 8, 1), nn.ConvTranspose2d(8, 4, 2, 2)), 8 * 4 * (2 * 2) * 16),
    (Rows(nn.Conv1d(8, 4, 3)), 4 * 8 * 3 * 14), (Rows(nn.LSTM(8, 4, batch_first=True)), 4 * 4 * (8 + 4) * 16),
], ids=["transposed", "1d", "recurrent"])
def test_a_layer_in_which_operations_are_counted_is_not_listed(model, macs):
    assert cost(model, 4) == Cost(count_parameters(model), 16 * 8 * 3 + macs, cost(model, 4).activations, ())


class Between(nn.Module):
    """Arithmetic by functions, and what is none."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 1)

    def forward(self, x):
        x = functional.pad(self.conv(x), (1, 1, 1, 1)).transpose(2, 3).contiguous().flatten(2)  # (N, 4, 100)
        x = torch.cat([x, x], 1)  # (N, 8, 100)
        x = functional.scaled_dot_product_attention(x, x, x)[:, :, None]
        return functional.interpolate(functional.max_pool2d(x, (1, 2)), scale_factor=2)


def test_functions_between_layers():
    found = cost(Between(), 8)
    attention = 2 * 8 * 8 * 100
    assert found.macs == 4 * 64 * 3 + attention
    assert set(found.not_counted) == {"max_pool2d", "mul", "safe_softmax", "upsample_nearest2d"}


def test_activations_are_what_convolutions_and_matrix_products_put_out():
    model = alone(nn.Conv2d(3, 8, 3, 2, 1), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(32, 7))
    assert cost(model, 8).activations == 8 * 4 * 4 + 7
    assert cost(Between(), 8).activations == 4 * 64 + 8 * 8 + 8 * 100


@pytest.mark.parametrize(
    ("name", "millions"), [("x_800mf", 5.1), ("x_1_6gf", 7.9), ("x_3_2gf", 11.4), ("y_400mf", 3.9), ("y_1_6gf", 8.0)],
)  # "acts" of pycls' model zoo, the figures of Radosavovic et al. 2020
def test_published_activations(name, millions):
    found = cost(untrained(f"torchvision:regnet_{name}", 1000, 224), 224)
    assert round(found.activations / 1e6, 1) == millions


def test_shared_parameters_count_once():
    linear = nn.Linear(3, 3)
    model = nn.Sequential(nn.Conv2d(3, 3, 3), linear, linear)
    assert count_parameters(model) == 3 * 3 * 9 + 3 + 3 * 3 + 3
    model.requires_grad_(False)
    assert count_parameters(model) == 96


def test_the_model_is_left_as_it_was():
    model, _ = remove_spatial(SMALL["residual"](), "shuffle", 1, image_size=32)
    model.train()
    found = cost(model, 32)
    assert found == Cost(count_parameters(model), found.macs, found.activations, found.not_counted)
    assert all(m.training for m in model.modules())
    assert model.features[4].one.shuffle.passes == {"train": 0, "eval": 0}
    assert next(model.parameters()).device.type == "cpu"


@pytest.mark.parametrize("repeats", [2, 7])
def test_latency_gives_ordered_quartiles_of_the_timed_passes(repeats, monkeypatch):
    ticks = [float(i * i) for i in range(2 * repeats + 3)]
    monkeypatch.setattr("spaceless.cost.time.perf_counter", iter(ticks).__next__)
    seen = []
    model = SMALL["plain"]()
    model.register_forward_pre_hook(lambda module, inputs: seen.append((tuple(inputs[0].shape), module.training)))
    found = latency(model, 16, batch=3, repeats=repeats)
    assert seen == [((3, 3, 16, 16), False)] * (repeats + 3)
    timed = [ticks[i + 1] - ticks[i] for i in range(3, len(ticks), 2)]  # three passes of warming up read it once
    assert found.repeats == len(timed) == repeats
    assert found.median == statistics.median(timed)
    assert min(timed) <= found.lower < found.median < found.upper <= max(timed)


def test_latency_measures_and_restores_every_mode():
    model = SMALL["plain"]().train()
    model.features[0].eval()  # frozen by its owner
    modes = [m.training for m in model.modules()]
    found = latency(model, 16, repeats=3)
    assert 0 < found.lower <= found.median <= found.upper < 5
    assert [m.training for m in model.modules()] == modes
    assert torch.is_grad_enabled()
    assert model(images(2, 16)).requires_grad


def test_one_pass_has_no_quartiles():
    with pytest.raises(InputError, match="repeats: found 1, expected 2 or more; "):
        latency(SMALL["plain"](), 16, repeats=1)


def test_two_networks_are_timed_in_turn(monkeypatch):
    ticks = iter(range(1000))
    order = []
    first, second = SMALL["plain"](), SMALL["plain"]()
    first.register_forward_pre_hook(lambda *_: order.append("first"))
    def slowly(*_):
        order.append("second")
        next(ticks)  # twice as slow

    second.register_forward_pre_hook(slowly)
    monkeypatch.setattr("spaceless.cost.time.perf_counter", lambda: float(next(ticks)))
    before, after, ratio = compare_latency(first, second, 16, repeats=4)
    assert order == ["first", "second"] * 7  # three passes warm up
    assert (before.median, after.median, ratio.median, ratio.repeats) == (1, 2, 0.5, 4)
    assert first.training
    assert second.training
