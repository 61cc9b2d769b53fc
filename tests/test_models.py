"""Networks by name: the paper's variants, seeds, widths, chains, and every name that is refused."""

import itertools
import math
import sys

import pytest
import torch
from torch import nn

from networks import images
from spaceless.errors import InputError
from spaceless.models import GlobalAveragePool, build_model, default_image_size, stem_is_unit
from spaceless.trial import PAPER_MODELS

CHAIN = "chain:16-M-24-24-M-32"


def shapes(model):
    return {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}


def on_meta(name, classes=10, size=32, **options):
    with torch.device("meta"):  # shapes only
        return build_model(name, classes, size, **options)


# The paper's variants


def test_what_is_done_to_a_network_does_not_come_back_with_the_next():
    first = build_model("chain:4-M-8", 4, 20, seed=3)
    weights = {name: value.clone() for name, value in first.state_dict().items()}
    with torch.no_grad():
        for value in first.parameters():
            value.zero_()
    again, other = build_model("chain:4-M-8", 4, 20, seed=3), build_model("chain:4-M-8", 4, 20, seed=4)
    assert all(torch.equal(weights[name], value) for name, value in again.state_dict().items())
    assert not torch.equal(next(again.parameters()), next(other.parameters()))
    with torch.device("meta"):
        assert next(build_model("chain:4-M-8", 4, 20, seed=3).parameters()).is_meta
    assert not next(build_model("chain:4-M-8", 4, 20, seed=3).parameters()).is_meta


def test_vgg16_has_batch_normalisation_and_the_head_of_section_3_2():
    model = on_meta("vgg16", 100)
    kinds = [type(layer) for layer in model.features]
    assert kinds.count(nn.Conv2d) == kinds.count(nn.BatchNorm2d) == 13
    assert kinds.count(nn.MaxPool2d) == 5
    linear = [(m.in_features, m.out_features) for m in model.classifier if isinstance(m, nn.Linear)]
    assert linear == [(512, 4096), (4096, 4096), (4096, 100)]
    assert isinstance(model.avgpool, GlobalAveragePool)


@pytest.fixture(scope="module")
def vgg16():
    """The largest of them, built once; nothing may change it."""
    return build_model("vgg16", 50, 32)


def test_the_head_of_vgg16_is_initialised_like_torchvisions(vgg16):
    for layer in vgg16.classifier[0], vgg16.classifier[3]:
        assert float(layer.weight.detach().std()) == pytest.approx(0.01, rel=0.01)
        assert not layer.bias.any()


@pytest.mark.parametrize("name", ["resnet50", "resnet152"])
@pytest.mark.parametrize(("size", "small"), [(32, True), (127, True), (128, False), (224, False)])
def test_small_images_get_a_3x3_stem_without_pooling(name, size, small):
    model = on_meta(name, size=size)
    stem = model.conv1
    assert (stem.kernel_size, stem.stride, stem.padding) == (((3, 3), (1, 1), (1, 1)) if small
                                                             else ((7, 7), (2, 2), (3, 3)))
    assert isinstance(model.maxpool, nn.Identity if small else nn.MaxPool2d)


def test_small_images_leave_a_final_map_of_4x4():
    with torch.device("meta"):
        model = build_model("resnet50", 10, 32).eval()
        model.avgpool = nn.Identity()
        model.fc = nn.Identity()
        assert model(torch.empty(1, 3, 32, 32)).shape == (1, 2048 * 4 * 4)


def test_the_3x3_stem_is_initialised_by_kaiming():
    stem = build_model("resnet50", 10, 32).conv1
    assert float(stem.weight.detach().std()) == pytest.approx(math.sqrt(2 / (64 * 9)), rel=0.05)


@pytest.mark.parametrize("name", [
    *PAPER_MODELS, CHAIN, "torchvision:resnet18", "torchvision:googlenet", "timm:resnet18"])
@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
def test_every_kind_of_name_gives_one_tensor_of_logits(name, training):
    size = 64 if name in ("squeezenet1_0", "torchvision:googlenet") else 32
    with torch.device("meta"):
        model = build_model(name, 7, size).train(training)
        assert model(torch.empty(2, 3, size, size)).shape == (2, 7)


def test_global_average_pool_is_the_mean():
    x = torch.arange(24.0).view(1, 2, 3, 4)
    assert torch.equal(GlobalAveragePool()(x), torch.tensor([5.5, 17.5]).view(1, 2, 1, 1))


@pytest.mark.parametrize(("name", "size"), [("vgg16", 224), ("timm:resnet18", 224), (CHAIN, 48)])
def test_default_image_sizes(name, size):
    assert default_image_size(name) == size


def test_where_the_stem_is_a_unit():
    assert [name for name in (*PAPER_MODELS, CHAIN, "torchvision:resnet50") if stem_is_unit(name)] == [
        "vgg16", CHAIN, "torchvision:resnet50"]


# Seeds


@pytest.mark.parametrize(
    ("name", "width"), [(CHAIN, 1.0), (CHAIN, 0.5), ("mobilenet_v2", 0.25), ("timm:resnet10t", 1.0)])
def test_weights_depend_on_the_seed_alone(name, width):
    torch.manual_seed(1)
    state = torch.get_rng_state()
    first = build_model(name, 10, 32, width=width, seed=3).state_dict()
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(2)
    again = build_model(name, 10, 32, width=width, seed=3).state_dict()
    other = build_model(name, 10, 32, width=width, seed=4).state_dict()
    assert all(torch.equal(tensor, again[key]) for key, tensor in first.items())
    kernels = [key for key, tensor in first.items() if tensor.dim() == 4]
    assert kernels
    assert not any(torch.equal(first[key], other[key]) for key in kernels if first[key].std() > 0)


# Widths


@pytest.mark.parametrize(("name", "width"), [
    *itertools.product((*PAPER_MODELS, CHAIN), (2.0, 0.5, 0.25, 0.125)),
    ("torchvision:densenet121", 0.5), ("torchvision:shufflenet_v2_x1_0", 0.5)])
def test_a_width_scales_every_layer_but_image_and_classes(name, width):
    full, scaled = shapes(on_meta(name)), shapes(on_meta(name, width=width))
    assert list(full) == list(scaled)
    last = [key for key in full if key.endswith("weight") and len(full[key]) > 1][-1]
    head = {last, last.replace("weight", "bias")}
    depthwise = {key for key, shape in full.items() if len(shape) == 4 and shape[1] == 1}
    for key, shape in full.items():
        if not shape:
            continue  # num_batches_tracked
        wanted = list(shape)
        wanted[0] = shape[0] if key in head else round(shape[0] * width)
        if len(shape) > 1 and shape[1] != 3 and key not in depthwise:
            wanted[1] = round(shape[1] * width)
        assert list(scaled[key]) == wanted, key


@pytest.mark.parametrize("name", [
    "resnet50", "mobilenet_v2", "squeezenet1_0", CHAIN, "torchvision:shufflenet_v2_x1_0"])
def test_a_network_of_half_the_width_runs_and_trains(name):
    model = build_model(name, 5, 64, width=0.5).train()
    model(images(2, 64)).square().sum().backward()
    assert all(p.grad is not None for p in model.parameters())


@pytest.mark.parametrize("name", ["vgg16", "mobilenet_v2"])
def test_each_answer_keeps_the_variance_of_full_width(name, vgg16):
    full = vgg16 if name == "vgg16" else build_model(name, 50, 32)
    scaled = build_model(name, 50, 32, width=0.25)
    for before, after in zip(full.modules(), scaled.modules(), strict=True):
        if isinstance(before, nn.Conv2d | nn.Linear) and after.weight.numel() > 4000:
            variance = [float(m.weight.detach().var()) * m.weight[0].numel() for m in (before, after)]
            assert variance[1] == pytest.approx(variance[0], rel=0.1)
            assert float(after.weight.detach().mean()) == pytest.approx(0, abs=0.01)


def test_a_width_keeps_the_weights_tied_to_options():
    full, scaled = on_meta("mobilenet_v2", 10), on_meta("mobilenet_v2", 10, width=0.5)
    for before, after in zip(full.modules(), scaled.modules(), strict=True):
        assert type(before) is type(after)
        if isinstance(before, nn.Conv2d):
            same = ("kernel_size", "stride", "padding", "dilation", "padding_mode")
            assert [getattr(before, o) for o in same] == [getattr(after, o) for o in same]
            assert (before.groups == before.in_channels) is (after.groups == after.in_channels)
            assert (before.bias is None) is (after.bias is None)
        if isinstance(before, nn.BatchNorm2d):
            assert (before.eps, before.momentum) == (after.eps, after.momentum)


# Chains


def test_a_chain_is_what_it_says():
    model = build_model("chain:4-M-6-M", 3, 8)
    assert [type(layer).__name__ for layer in model.features] == [
        "Conv2d", "BatchNorm2d", "ReLU", "MaxPool2d", "Conv2d", "BatchNorm2d", "ReLU", "MaxPool2d"]
    assert shapes(model)["features.4.weight"] == (6, 4, 3, 3)
    assert (model.classifier.in_features, model.classifier.out_features) == (6, 3)
    x = images(2, 8)
    model.eval()
    assert torch.equal(model(x), model.classifier(model.features(x).mean((2, 3))))


def test_a_chain_never_fills_a_large_head(monkeypatch):
    drawn = []
    monkeypatch.setattr(nn.Linear, "reset_parameters", lambda self: drawn.append(self.weight))
    build_model("chain:4", 3, 8)
    assert sum(weight.numel() for weight in drawn if weight.device.type != "meta") == 12


# What is refused


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("resnet5", {}, r"model: found 'resnet5', expected one of vgg16, resnet50, .*, timm:NAME, chain:16-M-24; did "
                        r"you mean 'resnet50'\?"),
        ("", {}, "expected one of vgg16, "),
        ("torchvision:resnet1o", {}, r"expected one of resnet1.*; did you mean 'resnet1.*'\?"),
        ("torchvision:zzz", {}, r"; see torchvision.models.list_models\(\)"),
        ("torchvision:segmentation", {}, "expected one of"),
        ("timm:resnet5o", {}, r"expected one of resnet.*; did you mean 'resnet50"),
        ("timm:zzz", {}, r"; see timm.list_models\(\)"),
        *((f"chain:{bad}", {}, r"joined by -; write for example chain:16-M-24-24-M-32-32")
          for bad in ("", "M", "16-", "16-0", "16-x", "16-m", "16--8", "16,8", "-16", "16.5", "²")),
        (CHAIN, {"width": 0.3}, r"width: found 0.3 \(16 channels of features.0 would become 4.8\)"),
        (CHAIN, {"width": 0.01}, "width: found 0.01"),
        (CHAIN, {"width": -1.0}, "width: found -1.0"),
        (CHAIN, {"width": math.nan}, "width: found nan"),
        ("torchvision:resnext50_32x4d", {"width": 0.125}, "16 channels in the 32 groups of layer1.0.conv2"),
        # a norm with another base, weights in no layer, an activation inside of the norm that would get lost
        ("torchvision:convnext_tiny", {"width": 0.5}, r"0.5 with a LayerNorm2d \(features.0.1\), .*; leave width out"),
        ("torchvision:vit_b_16", {"width": 0.5}, r"0.5 with a VisionTransformer \(the network itself\)"),
        ("timm:efficientnet_b0", {"width": 0.5}, r"0.5 with a BatchNormAct2d \(bn1\)"),
    ],
    ids=str,
)
def test_refused(name, options, message):
    with pytest.raises(InputError, match=message) as caught:
        on_meta(name, **options)
    assert caught.value.exit_status == 2
    assert len(str(caught.value)) < 300


def test_without_timm_the_cure_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(InputError, match=r"found no package timm, expected .*; install it with: pip install"):
        build_model("timm:resnet18", 10, 32)
