"""The fast ways of PyTorch's layers: the same numbers, the same distribution, and nothing left behind."""

import copy
import math

import pytest
import torch
from torch import nn
from torch.nn.utils import prune

from networks import images
from spaceless.fast_layers import _FastDropout, _FastReLU, fast_layers
from spaceless.models import build_model
from spaceless.products import ProductConv2d


def both_ways(layer, x, grad, *, bf16=(False, False)):
    """What `layer` returns and its gradients, as PyTorch computes them and in the fast way, each in fp32 or in bf16."""
    found = []
    for fast, half in zip((False, True), bf16, strict=True):
        model, ours = nn.Sequential(copy.deepcopy(layer)), x.detach().requires_grad_()
        with torch.autocast("cpu", torch.bfloat16, enabled=half):
            if fast:
                with fast_layers(model):
                    y = model(ours)
            else:
                y = model(ours)
        y.backward(grad.to(y.dtype))
        found.append([y.detach(), ours.grad, *(p.grad for p in model.parameters())])
    return found


# Convolutions as products


CONVOLUTIONS = {
    "3x3": {"kernel_size": 3, "padding": 1}, "1x1": {"kernel_size": 1}, "1x1 stride 2": {"kernel_size": 1, "stride": 2},
    "3x3 stride 2": {"kernel_size": 3, "stride": 2, "padding": 1}, "3x3 unpadded": {"kernel_size": 3},
    "3x1": {"kernel_size": (3, 1), "padding": (1, 0)}, "3x3 strides 1, 2": {
        "kernel_size": 3, "stride": (1, 2), "padding": (0, 1)},
    "5x5": {"kernel_size": 5, "padding": 2}, "1x1 padded": {"kernel_size": 1, "padding": 1},
    "3x3 padded by 3": {"kernel_size": 3, "padding": (1, 3)},
}


@pytest.mark.parametrize("channels", [(6, 8), (130, 6)], ids=["narrow", "wide"])
@pytest.mark.parametrize("bf16", [False, True], ids=["fp32", "bf16"])
@pytest.mark.parametrize("sides", [(1, 1), (2, 2), (3, 4), (4, 4), (5, 5), (8, 8)], ids=str)
@pytest.mark.parametrize("kind", CONVOLUTIONS)
@pytest.mark.parametrize("bias", [True, False], ids=["bias", "no bias"])
def test_values_and_gradients_are_those_of_the_convolution(kind, bias, sides, bf16, channels):
    conv = nn.Conv2d(*channels, bias=bias, **CONVOLUTIONS[kind])
    if any(side + 2 * pad < kernel for side, pad, kernel in zip(sides, conv.padding, conv.kernel_size, strict=True)):
        return  # the kernel does not fit, with or without us
    # Sums of products of small whole numbers are exact, also in bf16.
    conv.weight.data.copy_(torch.randint(-1, 2, conv.weight.shape))
    if bias:
        conv.bias.data.copy_(torch.arange(float(channels[1])))
    x = torch.randint(-1, 2, (2, channels[0], *sides)).float().to(memory_format=torch.channels_last)
    grad = torch.randint(-1, 2, conv(x).shape).float()
    # Not against PyTorch in bf16: with oneDNN its gradient of a strided kernel on a map of one position is wrong.
    one, other = both_ways(conv, x, grad, bf16=(False, bf16))
    assert other[0].dtype == (torch.bfloat16 if bf16 else torch.float32)
    for a, b in zip(one, other, strict=True):
        assert torch.equal(a, b.float())


def test_images_and_gradients_in_the_contiguous_layout_are_read_as_they_are():
    conv = nn.Conv2d(4, 6, 3, padding=1)
    x, grad = images(2, 4, 4), torch.ones(2, 6, 4, 4)
    one, other = both_ways(conv, x, grad, bf16=(True, True))
    assert all(torch.allclose(a, b, atol=0.1) for a, b in zip(one, other, strict=True))


@pytest.mark.parametrize("channels", [8, 130])
def test_no_gradient_is_computed_that_nobody_asks_for(channels):
    conv = nn.Conv2d(channels, 4, 3, padding=1).requires_grad_(requires_grad=False)
    x = images(2, 4, channels).requires_grad_()
    with fast_layers(model := nn.Sequential(conv)), torch.autocast("cpu", torch.bfloat16):
        model(x).float().sum().backward()
    assert x.grad is not None
    assert conv.weight.grad is conv.bias.grad is None


@pytest.mark.parametrize("bf16", [False, True], ids=["fp32", "bf16"])
@pytest.mark.parametrize("kind", CONVOLUTIONS)
def test_no_image_at_all_is_a_batch_too(kind, bf16):
    """A process that shares a last batch may have none of it."""
    layer = nn.Conv2d(6, 8, **CONVOLUTIONS[kind])
    x = torch.zeros(0, 6, 2, 2)
    if kind in ("3x3 unpadded", "3x3 strides 1, 2"):
        x = torch.zeros(0, 6, 4, 4)
    theirs, ours = both_ways(layer, x, torch.zeros_like(layer(x)), bf16=(bf16, bf16))
    assert [part.shape for part in ours] == [part.shape for part in theirs]
    assert not any(part.any() for part in ours)


def test_one_image_without_a_batch_is_left_to_pytorch():
    layer, x = nn.Sequential(nn.Conv2d(6, 8, 3, padding=1)), torch.randn(6, 2, 2)
    with fast_layers(layer):
        fast = layer(x)
    assert torch.equal(fast, layer(x))


def test_a_kernel_that_does_not_fit_is_pytorchs_error():
    model = nn.Sequential(nn.Conv2d(4, 4, 3))
    with fast_layers(model), pytest.raises(RuntimeError, match=r"[Kk]ernel size"):
        model(images(2, 2, 4))


def test_the_matrix_is_kept_while_nothing_is_trained_and_made_anew_when_the_weights_change():
    model = nn.Sequential(nn.Conv2d(4, 4, 3, padding=1))
    x = images(2, 2, 4)
    with fast_layers(model), torch.autocast("cpu", torch.bfloat16):
        with torch.inference_mode():
            first = model(x)
            kept = model[0].kept[1]
            assert torch.equal(model(x), first)
            assert model[0].kept[1] is kept
        with torch.no_grad():
            model[0].weight.mul_(2)
            assert torch.allclose(model(x) - model[0].bias.view(4, 1, 1), 2 * (first - model[0].bias.view(4, 1, 1)),
                                  atol=0.1)
            assert model[0].kept[1] is not kept
        with torch.autocast("cpu", enabled=False), torch.no_grad():
            assert model(x).dtype == torch.float32  # not the matrix in bf16


def test_weights_that_are_computed_in_each_pass_are_never_those_of_an_earlier_one():
    model, x = nn.Sequential(nn.Conv2d(4, 4, 3, padding=1, bias=False)), images(2, 2, 4)
    prune.l1_unstructured(model[0], "weight", 0.5)
    with fast_layers(model), torch.no_grad():
        first = model(x)
        model[0].weight_orig.mul_(2)
        assert torch.equal(model(x), 2 * first)


# ReLU by the bits


@pytest.mark.parametrize("inplace", [False, True])
def test_relu_does_to_every_number_of_16_bits_what_pytorch_does(inplace):
    x = torch.arange(-(1 << 15), 1 << 15, dtype=torch.int32).to(torch.int16).view(torch.bfloat16)
    expected = torch.relu(x)
    model = nn.Sequential(nn.ReLU(inplace))
    with fast_layers(model), torch.no_grad():
        given = x.clone()
        found = model(given)
    assert (found is given) == inplace
    assert torch.equal(found.isnan(), x.isnan())
    assert torch.equal(found[~x.isnan()].view(torch.int16), (expected + 0.0)[~x.isnan()].view(torch.int16))


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last], ids=["NCHW", "NHWC"])
@pytest.mark.parametrize("inplace", [False, True])
def test_the_gradient_of_relu(inplace, layout):
    class Behind(nn.Module):
        def __init__(self):
            super().__init__()
            self.relu = nn.ReLU(inplace)

        def forward(self, x):
            return self.relu(x * 1)  # a leaf cannot be changed in place

    x = torch.randn(2, 3, 4, 4).bfloat16().to(memory_format=layout)
    x[0, 0, 0, 0] = 0.0
    for found, expected in zip(*both_ways(Behind(), x, torch.randn(2, 3, 4, 4)), strict=True):
        assert torch.equal(found, expected)
        assert found.is_contiguous(memory_format=layout)


def test_relu_of_other_types_is_pytorchs():
    model = nn.Sequential(nn.ReLU())
    with fast_layers(model):
        assert torch.equal(model(torch.tensor([-1.0, 2.0])), torch.tensor([0.0, 2.0]))
        assert torch.equal(model(torch.tensor([-1, 2])), torch.tensor([0, 2]))


# Dropout


@pytest.mark.parametrize("p", [0.5, 0.25])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_dropout_keeps_the_right_share_scaled_and_its_gradient_is_its_mask(p, dtype):
    count = 100_003  # no multiple of the four masks that one draw holds
    model = nn.Sequential(nn.Dropout(p))
    x = torch.ones(count, dtype=dtype).requires_grad_()
    torch.manual_seed(3)
    with fast_layers(model):
        y = model(x)
        again = model(x)
        torch.manual_seed(3)
        assert torch.equal(model(x), y)
    y.sum().backward()
    assert y.dtype == dtype
    assert set(y.tolist()) == {0.0, float(torch.tensor(1 / (1 - p), dtype=dtype))}
    share = float((y > 0).double().mean())
    assert abs(share - (1 - p)) < 5 * math.sqrt(p * (1 - p) / count)
    assert torch.equal(x.grad, y)
    both = float(((y > 0) & (again > 0)).double().mean())  # two passes are independent
    assert abs(both - (1 - p) ** 2) < 5 * math.sqrt(p * (1 - p) / count)
    pairs = float(((y[:-1] > 0) & (y[1:] > 0)).double().mean())  # and so are neighbours
    assert abs(pairs - (1 - p) ** 2) < 0.02


@pytest.mark.parametrize("p", [0.0, 0.1, 1.0])
def test_other_probabilities_are_left_to_pytorch(p):
    model, x = nn.Sequential(nn.Dropout(p)), torch.ones(1000)
    torch.manual_seed(5)
    expected = model(x)
    torch.manual_seed(5)
    with fast_layers(model):
        assert torch.equal(model(x), expected)


def test_dropout_in_place_drops_in_place():
    layer, x = nn.Sequential(nn.Dropout(0.5, inplace=True)), torch.ones(1000)
    with fast_layers(layer):
        layer(x)
    assert set(x.tolist()) == {0.0, 2.0}


def test_nothing_is_dropped_in_evaluation():
    model, x = nn.Sequential(nn.Dropout(0.5)).eval(), torch.ones(100)
    with fast_layers(model):
        assert torch.equal(model(x), x)


# All together


def test_which_layers_are_concerned_and_that_nothing_is_left_behind():
    class Own(nn.Conv2d):
        pass

    concerned = [nn.Conv2d(4, 4, 1), nn.Conv2d(4, 4, 3, padding=1), nn.Conv2d(4, 4, 3, 2), nn.ReLU(), nn.Dropout()]
    others = [
        nn.Conv2d(4, 4, 3, padding=1, groups=4), nn.Conv2d(4, 4, 3, padding=1, padding_mode="circular"),
        nn.Conv2d(4, 4, 3, padding="same"), nn.Conv2d(4, 4, 3, padding=2, dilation=2), Own(4, 4, 1), nn.ReLU6(),
    ]
    model = nn.Sequential(*concerned, *others)
    before, names = [type(m) for m in model], list(model.state_dict())
    with pytest.raises(ZeroDivisionError), fast_layers(model):
        fast = [ProductConv2d, ProductConv2d, ProductConv2d, _FastReLU, _FastDropout]
        assert [type(m) for m in model] == [*fast, *(type(m) for m in others)]
        assert list(model.state_dict()) == names
        raise ZeroDivisionError
    assert [type(m) for m in model] == before
    assert not any("kept" in vars(m) for m in model)
    with fast_layers(model, eager=True):
        assert [type(m) for m in model] == before
    meta = nn.Conv2d(4, 4, 1, device="meta")
    with fast_layers(meta):
        assert type(meta) is nn.Conv2d


@pytest.mark.parametrize("name", ["vgg16", "resnet50"])
def test_a_network_gives_the_same_logits_up_to_rounding(name):
    model = build_model(name, 10, 32, width=0.125).eval()
    x = images(4, 32)
    with torch.no_grad():
        plain = model(x)
        with fast_layers(model):
            assert torch.allclose(model(x), plain, atol=1e-4 * float(plain.abs().max()))
