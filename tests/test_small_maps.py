"""Matrix products in the place of convolutions on small maps: the same numbers, and nothing left behind."""

import copy

import pytest
import torch
from torch import nn

from networks import images
from spaceless.models import build_model
from spaceless.small_maps import _PaddedConv2d, _PointwiseConv2d, small_maps


@pytest.mark.parametrize("bf16", [False, True], ids=["fp32", "bf16"])
@pytest.mark.parametrize("side", [1, 2, 3, 4, 5])
@pytest.mark.parametrize(("kernel", "bias"), [(1, True), (1, False), (3, True), (3, False)])
def test_values_and_gradients_are_those_of_the_convolution(kernel, bias, side, bf16):
    conv = nn.Conv2d(6, 8, kernel, padding=kernel // 2, bias=bias)
    whole = torch.randint(-4, 5, conv.weight.shape).float()  # products of small whole numbers are exact in bf16
    conv.weight.data.copy_(whole)
    if bias:
        conv.bias.data.copy_(torch.arange(8.0))
    x = torch.randint(-2, 3, (3, 6, side, side)).float().to(memory_format=torch.channels_last).requires_grad_()
    grad = torch.randint(-2, 3, (3, 8, side, side)).float()
    found = []
    for quick in (False, True):
        model = nn.Sequential(copy.deepcopy(conv))
        x.grad = None
        with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
            if quick:
                with small_maps(model):
                    y = model(x)
            else:
                y = model(x)
        y.backward(grad.to(y.dtype))
        found.append([y.float(), x.grad, *(p.grad for p in model.parameters())])
        assert y.shape == grad.shape
    for one, other in zip(*found, strict=True):
        assert torch.equal(one, other)


def test_the_matrix_is_kept_while_nothing_is_trained_and_made_anew_when_the_weights_change():
    model = nn.Sequential(nn.Conv2d(4, 4, 3, padding=1))
    x = images(2, 2, 4)
    with small_maps(model), torch.autocast("cpu", torch.bfloat16):
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
        model(x).sum().backward()
        assert model[0].kept is None
    assert model[0].weight.grad is not None


def test_which_convolutions_are_concerned_and_that_nothing_is_left_behind():
    class Own(nn.Conv2d):
        pass

    model = nn.Sequential(
        nn.Conv2d(4, 4, 1), nn.Conv2d(4, 4, 3, padding=1), nn.Conv2d(4, 4, 3, 2, 1), nn.Conv2d(4, 4, 3),
        nn.Conv2d(4, 4, 3, padding=1, groups=4), nn.Conv2d(4, 4, 3, padding=1, padding_mode="circular"),
        nn.Conv2d(4, 4, 1, 2), nn.Conv2d(4, 4, 3, padding=2, dilation=2), Own(4, 4, 1))
    names = list(model.state_dict())
    with pytest.raises(ZeroDivisionError), small_maps(model):
        kinds = [type(m) for m in model]
        assert kinds == [_PointwiseConv2d, _PaddedConv2d, *[nn.Conv2d] * 6, Own]
        assert list(model.state_dict()) == names
        raise ZeroDivisionError
    assert [type(m) for m in model] == [*[nn.Conv2d] * 8, Own]
    assert not any("kept" in vars(m) for m in model)
    meta = nn.Conv2d(4, 4, 1, device="meta")
    with small_maps(meta):
        assert type(meta) is nn.Conv2d


@pytest.mark.parametrize("name", ["vgg16", "resnet50"])
def test_a_network_gives_the_same_logits_up_to_rounding(name):
    model = build_model(name, 10, 32, width=0.125).eval()
    x = images(4, 32)
    with torch.no_grad():
        plain = model(x)
        with small_maps(model):
            assert torch.allclose(model(x), plain, atol=1e-4 * float(plain.abs().max()))
