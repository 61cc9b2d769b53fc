"""Receptive fields: published sizes, sizes by hand, and the gradient's support for positive weights."""

import copy

import pytest
import torch
from torch import nn
from torch.nn import functional

from networks import Classifier, Fire, Gate, Inverted, Residual, Scaled, StemLast, images, stem
from spaceless.errors import InputError
from spaceless.inspection import untrained
from spaceless.models import build_model, stem_is_unit
from spaceless.receptive import ReceptiveField, receptive_fields, unit_fields, usable_field
from spaceless.surgery import remove_spatial
from spaceless.tracing import trace
from spaceless.units import is_spatial, units_of

# The paper's and published values


def behind_the_last_spatial_convolution(model, size):
    """The field behind the last spatial convolution, and behind the pooling that follows it, if one does."""
    traced = trace(model, size)
    fields = receptive_fields(traced)
    calls = [node for node in traced.nodes if node.op == "call_module"]
    node = [node for node in calls if is_spatial(traced.module_of(node))][-1]
    for following in calls[calls.index(node) + 1:]:
        kind = traced.module_of(following)
        if isinstance(kind, nn.Conv2d | nn.AdaptiveAvgPool2d | nn.Linear) or "avgpool" in str(following.target):
            break
        node = following
    return fields[node].size


PAPER = [212, 164, 132, 100, 76, 60, 44, 32, 24, 16, 10]


@pytest.mark.parametrize(("k", "size"), list(enumerate(PAPER)), ids=[f"K{k}" for k in range(len(PAPER))])
@pytest.mark.parametrize("side", [32, 96])
def test_vgg16_as_in_figure_3(k, size, side):
    small, _ = remove_spatial(untrained("vgg16", 100, side), "conv1x1", k, image_size=side)
    assert behind_the_last_spatial_convolution(small, side) == size


@pytest.mark.parametrize(
    ("name", "ours", "original"),
    [("resnet50", 427, 483), ("resnet152", 1451, 1507)],  # Araujo et al. 2019, table 1, for the original networks
)
def test_resnets_with_the_stride_where_torchvision_has_it_and_where_he_et_al_had_it(name, ours, original):
    model = untrained(name, 10, 224)
    assert usable_field(model, 224) == ReceptiveField(ours, 32)
    for block in model.modules():
        if hasattr(block, "conv3"):  # the stride moves from the 3x3 to the 1x1 convolution in front of it
            block.conv1.stride, block.conv2.stride = block.conv2.stride, block.conv1.stride
    assert usable_field(model, 224) == ReceptiveField(original, 32)


PUBLISHED = [  # Araujo et al. 2019; the networks without a row there by hand in the same way
    ("mobilenet_v2", 224, 491), ("torchvision:densenet121", 224, 2071), ("torchvision:inception_v3", 299, 1311),
    ("timm:efficientnet_b0", 224, 851),  # gated; with normalisations of timm's own
    ("timm:resnetv2_50", 224, 427), ("torchvision:shufflenet_v2_x1_0", 224, 527),  # with chunks of channels
    ("torchvision:convnext_tiny", 224, 4 + 3 * 24 + 4 + 3 * 48 + 8 + 9 * 96 + 16 + 3 * 192),  # with layer scale
]


@pytest.mark.parametrize(("name", "side", "size"), PUBLISHED, ids=[case[0] for case in PUBLISHED])
def test_published_networks(name, side, size):
    assert usable_field(untrained(name, 10, side), side) == ReceptiveField(size, 32)


# By hand, and against gradients


class Branches(nn.Module):
    """An inception block: the widest branch decides."""

    def __init__(self, channels):
        super().__init__()
        self.convs = nn.ModuleList(nn.Conv2d(channels, 2, k, padding=k // 2) for k in (1, 3, 5))
        self.pool = nn.MaxPool2d(3, 1, 1)

    def forward(self, x):
        return torch.cat([*(conv(x) for conv in self.convs), self.pool(x)], 1)


class Functional(nn.Module):
    """Pooling as functions, with and without a stride of its own."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3, padding=1)

    def forward(self, x):
        x = functional.max_pool2d(self.conv(x), 2)
        return functional.avg_pool2d(functional.avg_pool2d(x, kernel_size=3, stride=1, padding=1), 3, 2)


def conv(inputs, outputs, *shape, **options):
    return nn.Conv2d(inputs, outputs, *shape, **options)


SMALL = {  # features, size as height and width, stride: worked out by hand
    "chain": ([stem(4), conv(4, 4, 3, padding=1), nn.MaxPool2d(2), conv(4, 4, 3, padding=1)], (10, 10), 2),
    "residual": ([stem(4), Residual(4, 4), Residual(4, 6, 2)], (13, 13), 2),
    "fire": ([stem(8, 2), nn.MaxPool2d(3, 2), Fire(8, 4, 4)], (15, 15), 4),
    "inverted": ([stem(8, 2), Inverted(8, 8), Inverted(8, 8, 2)], (11, 11), 4),
    "dilation": ([stem(4), conv(4, 4, 3, padding=2, dilation=2), conv(4, 4, 3, padding=4, dilation=4)], (15, 15), 1),
    "5x5": ([conv(3, 4, 5, stride=2, padding=2), conv(4, 4, 3, padding=1)], (9, 9), 2),
    "rectangular": (
        [conv(3, 4, (1, 7), padding=(0, 3)), conv(4, 4, (3, 1), padding=(1, 0)), conv(4, 4, (1, 7), padding=(0, 3))],
        (3, 13), 1),
    "branches": ([stem(4), Branches(4)], (7, 7), 1),
    "even": ([conv(3, 4, 4, stride=4), conv(4, 4, 2, stride=2)], (8, 8), 8),
    "average": ([stem(4), nn.AvgPool2d(3, 2, 1), nn.LPPool2d(1, 2), conv(4, 4, 3, padding=1)], (15, 15), 4),
    "functional": ([Functional(), conv(4, 4, 1)], (12, 12), 4),
    "layer scale": ([stem(4), Scaled(4)], (5, 5), 1),
    "adaptive": ([stem(4), nn.AdaptiveAvgPool2d(16)], (6, 6), 4),
}


def support(features, size, at):
    """Height and width of the input gradient's support for position `at` of the map, and where it begins."""
    x = (images(1, size).abs() + 1).requires_grad_()
    y = features(x)
    (gradient,) = torch.autograd.grad(y[0, :, at, at].sum(), x)
    rows, columns = (gradient.abs().sum((0, 1, axis)).nonzero().flatten() for axis in (3, 2))
    assert 0 < rows[0] <= rows[-1] < size - 1, "the image must be wider than the field"
    return (int(rows[-1] - rows[0]) + 1, int(columns[-1] - columns[0]) + 1), int(rows[0])


def all_positive(features):
    """A copy with positive weights, averages instead of maxima, and no saturation: every input has a say."""
    features = copy.deepcopy(features).eval()
    for name, module in list(features.named_modules()):
        for parameter in module.parameters(recurse=False):
            small = isinstance(module, nn.Conv2d)
            parameter.data = parameter.data.abs() * 0.1 + 0.01 if small else parameter.data.abs()
        if isinstance(module, nn.MaxPool2d):
            features.set_submodule(name, nn.AvgPool2d(module.kernel_size, module.stride, module.padding))
        if isinstance(module, nn.ReLU6):
            features.set_submodule(name, nn.Identity())
    return features


@pytest.mark.parametrize("which", SMALL)
def test_by_hand_and_by_the_support_of_gradients(which, monkeypatch):
    layers, size, stride = SMALL[which]
    traced = trace(nn.Sequential(*layers), 64)
    assert receptive_fields(traced)[traced.nodes[-2]] == ReceptiveField(max(size), stride)
    monkeypatch.setattr(functional, "max_pool2d", functional.avg_pool2d)
    features = all_positive(nn.Sequential(*layers)).double()
    features.register_forward_pre_hook(lambda _module, inputs: (inputs[0].double(),))
    at = 64 // stride // 2
    found, first = support(features, 64, at)
    _, second = support(features, 64, at + 1)
    assert (found, second - first) == (size, stride)


# The last map whose positions mean something


CHAIN = "chain:16-M-24-24-M-32"  # fields: 3, 4, 8, 12, 14, 22 behind each layer, strides 1, 2, 2, 2, 4, 4
USABLE = {
    "shuffle": [(22, 4), (14, 4), (8, 2), (4, 2), (1, 1)], "gap_fc": [(22, 4), (14, 4), (8, 2), (4, 2), (1, 1)],
    "conv1x1": [(22, 4), (14, 4), (10, 4), (6, 4), (4, 4)], "channel_shuffle": [(22, 4)] * 5,
    "strip": [(22, 4), (14, 4), (10, 4), (6, 4), (4, 4)],
}


@pytest.mark.parametrize(("method", "k"), [(method, k) for method in USABLE for k in range(5)])
def test_the_usable_field_of_a_chain(method, k):
    small, _ = remove_spatial(untrained(CHAIN, 4, 48), method, k, image_size=48)
    assert usable_field(small, 48) == ReceptiveField(*USABLE[method][k])


@pytest.mark.parametrize("method", ["shuffle", "gap_fc"])
@pytest.mark.parametrize("k", [1, 2, 4, 5])
def test_the_usable_field_is_that_of_the_input_of_the_first_changed_unit(method, k):
    model = untrained("resnet50", 10, 64)
    traced = trace(model, 64)
    units = units_of(traced, stem=stem_is_unit("resnet50"))
    (before,) = unit_fields(traced, [units[-k - 1].name])
    small, _ = remove_spatial(model, method, k, image_size=64, stem=False)
    assert usable_field(small, 64) == before


def test_a_shuffle_of_one_unit_is_no_end_where_a_skip_connection_leads_around_it():
    model = untrained("resnet50", 10, 64)
    small, _ = remove_spatial(model, "shuffle", only=14, image_size=64, stem=False)
    traced = trace(model, 64)
    entering = unit_fields(traced, ["layer3.5"])[0]
    found = usable_field(small, 64)
    assert found.size == entering.size + 2 * (3 - 1) * 2 * entering.stride  # the 3x3 convolutions of units 15 and 16
    chain, _ = remove_spatial(untrained(CHAIN, 4, 48), "shuffle", only=2, image_size=48)
    assert usable_field(chain, 48) == ReceptiveField(4, 2)  # nothing leads around it


def test_a_gate_gives_nothing_to_the_field():
    gated = Classifier(stem(8), Gate(8), nn.Conv2d(8, 8, 3), Gate(8), channels=8)
    assert usable_field(gated, 16) == ReceptiveField(5, 1)


def test_a_map_of_one_position_counts_as_pooled():
    assert usable_field(build_model("chain:4-M-M-4", 4, 4), 4) == ReceptiveField(14, 4)
    assert usable_field(StemLast(), 2).stride == 2


class Head(nn.Module):
    """Features of 8x8 positions, and a head that sees each of them."""

    def __init__(self, flatten):
        super().__init__()
        self.conv, self.linear, self.flatten = nn.Conv2d(3, 2, 3, 2, 1), nn.Linear(128, 4), flatten

    def forward(self, x):
        return self.linear(self.flatten(self.conv(x)))


class View(nn.Module):
    def forward(self, x):
        return x.view(x.size(0), -1)


class Function(nn.Module):
    def forward(self, x):
        return torch.flatten(x, 1)


@pytest.mark.parametrize("flatten", [nn.Flatten(), View(), Function()], ids=["module", "view", "function"])
def test_a_head_that_sees_every_position_has_no_usable_field(flatten):
    model = Head(flatten)
    with pytest.raises(InputError, match=r"Head: found no global pooling .*; ask for") as caught:
        usable_field(model, 16)
    assert caught.value.exit_status == 2
    traced = trace(model, 16)
    assert receptive_fields(traced)[traced.nodes[-2]] == ReceptiveField(3 + 7 * 2, 2)  # as a kernel of 8x8 would
    with pytest.raises(InputError):
        usable_field(untrained("torchvision:alexnet", 10, 224), 224)


def test_unit_fields_and_what_has_none():
    traced = trace(untrained("resnet50", 10, 224), 224)
    fields = receptive_fields(traced)
    sizes = [field.size for field in unit_fields(traced, ["conv1", "layer1.0", "layer1.2", "layer2.0"])]
    assert sizes == [7, 19, 35, 43]
    assert fields[traced.nodes[-2]] is None  # the logits
    assert set(fields) <= set(traced.shapes)
