"""Receptive fields: published sizes, sizes by hand, and the gradient's support for positive weights."""

import copy

import pytest
import torch
from torch import nn
from torch.nn import functional

from networks import Classifier, Fire, Gate, Inverted, Residual, Scaled, StemLast, images, stem
from spaceless.errors import InputError
from spaceless.models import build_model, stem_is_unit, untrained
from spaceless.receptive import (
    ReceptiveField,
    head_note,
    receptive_fields,
    unit_fields,
    unknown_operations,
    usable_field,
)
from spaceless.surgery import remove_spatial
from spaceless.tracing import trace
from spaceless.trial import ShuffleOptions
from spaceless.units import is_spatial, units_of

# The paper's and published values


def law(field):
    return field.size, field.stride


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
    assert law(usable_field(model, 224)) == (ours, 32)
    for block in model.modules():
        if hasattr(block, "conv3"):  # the stride moves from the 3x3 to the 1x1 convolution in front of it
            block.conv1.stride, block.conv2.stride = block.conv2.stride, block.conv1.stride
    assert law(usable_field(model, 224)) == (original, 32)


PUBLISHED = [  # Araujo et al. 2019 (Inception, MobileNet v1); the networks without a row there by hand in the same way
    ("mobilenet_v2", 224, 491), ("torchvision:densenet121", 224, 2071), ("torchvision:inception_v3", 299, 1311),
    ("timm:mobilenetv1_100", 224, 315), ("timm:inception_v4", 299, 2071),
    ("timm:efficientnet_b0", 224, 851),  # gated; with normalisations of timm's own
    ("timm:resnetv2_50", 224, 427), ("torchvision:shufflenet_v2_x1_0", 224, 527),  # with chunks of channels
    ("torchvision:convnext_tiny", 224, 4 + 3 * 24 + 4 + 3 * 48 + 8 + 9 * 96 + 16 + 3 * 192),  # with layer scale
]


@pytest.mark.parametrize(("name", "side", "size"), PUBLISHED, ids=[case[0] for case in PUBLISHED])
def test_published_networks(name, side, size):
    assert law(usable_field(untrained(name, 10, side), side)) == (size, 32)


@pytest.mark.parametrize(("name", "size", "padding"), [("vgg16", 212, 90), ("torchvision:inception_v3", 1311, 618)])
def test_the_offset_is_minus_the_published_effective_padding(name, size, padding):
    # the two networks of the table of Araujo et al. whose padding is the same here and does not depend on the image
    found = usable_field(untrained(name, 10, 299), 299)
    assert (found.size, found.offset, found.aligned) == (size, -padding, True)


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


class Space(nn.Module):
    """Space to depth by hand, as TResNet's."""

    def forward(self, x):
        n, c, h, w = x.shape
        x = x.view(n, c, h // 4, 4, w // 4, 4).permute(0, 3, 5, 1, 2, 4)
        return x.reshape(n, c * 16, h // 4, w // 4)


class Last(nn.Module):
    """Channels last and back, with a linear layer between, as ConvNeXt."""

    def __init__(self, channels):
        super().__init__()
        self.linear = nn.Linear(channels, channels)

    def forward(self, x):
        return self.linear(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


class Unlike(nn.Module):
    """Two branches with other centres, sliced, with an even kernel and padding on one side only."""

    def __init__(self):
        super().__init__()
        self.left, self.right = nn.Conv2d(3, 2, 3, padding=1), nn.Conv2d(3, 2, 2)

    def forward(self, x):
        left, right = self.left(x), self.right(functional.pad(x, (1, 0, 3, -2)))
        return torch.cat([left[:, :, 1::2, ::2], right[:, :, ::2, ::2]], 1)


class Blur(nn.Module):
    """A fixed kernel for each channel as a function, behind reflected padding, as BlurPool."""

    def forward(self, x):
        kernel = torch.ones(x.shape[1], 1, 3, 3, dtype=x.dtype)
        return functional.conv2d(functional.pad(x, (1, 1, 1, 1), mode="reflect"), kernel, stride=2, groups=x.shape[1])


class UpAndDown(nn.Module):
    """Two resolutions that are joined, as HRNet."""

    def __init__(self):
        super().__init__()
        self.fine, self.coarse = nn.Conv2d(3, 3, 3, padding=1), nn.Conv2d(3, 3, 3, 2, 1)

    def forward(self, x):
        return self.fine(x) + functional.interpolate(self.coarse(self.coarse(x)), scale_factor=4, mode="nearest")


SMALL = {  # features, size as height and width, stride, offset as height and width: worked out by hand
    "chain": ([stem(4), conv(4, 4, 3, padding=1), nn.MaxPool2d(2), conv(4, 4, 3, padding=1)], (10, 10), 2, (-4, -4)),
    "residual": ([stem(4), Residual(4, 4), Residual(4, 6, 2)], (13, 13), 2, (-6, -6)),
    "fire": ([stem(8, 2), nn.MaxPool2d(3, 2), Fire(8, 4, 4)], (15, 15), 4, (-5, -5)),
    "inverted": ([stem(8, 2), Inverted(8, 8), Inverted(8, 8, 2)], (11, 11), 4, (-5, -5)),
    "dilation": (
        [stem(4), conv(4, 4, 3, padding=2, dilation=2), conv(4, 4, 3, padding=4, dilation=4)], (15, 15), 1, (-7, -7)),
    "5x5": ([conv(3, 4, 5, stride=2, padding=2), conv(4, 4, 3, padding=1)], (9, 9), 2, (-4, -4)),
    "rectangular": (
        [conv(3, 4, (1, 7), padding=(0, 3)), conv(4, 4, (3, 1), padding=(1, 0)), conv(4, 4, (1, 7), padding=(0, 3))],
        (3, 13), 1, (-1, -6)),
    "branches": ([stem(4), Branches(4)], (7, 7), 1, (-3, -3)),
    "even": ([conv(3, 4, 4, stride=4), conv(4, 4, 2, stride=2)], (8, 8), 8, (0, 0)),
    "average": ([stem(4), nn.AvgPool2d(3, 2, 1), nn.LPPool2d(1, 2), conv(4, 4, 3, padding=1)], (15, 15), 4, (-6, -6)),
    "functional": ([Functional(), conv(4, 4, 1)], (12, 12), 4, (-3, -3)),
    "layer scale": ([stem(4), Scaled(4)], (5, 5), 1, (-2, -2)),
    "adaptive": ([stem(4), nn.AdaptiveAvgPool2d(16)], (6, 6), 4, (-1, -1)),
    "space to depth": ([Space(), conv(48, 4, 3, padding=1)], (12, 12), 4, (-4, -4)),
    "pixel unshuffle": ([nn.PixelUnshuffle(2), conv(12, 4, 3)], (6, 6), 2, (0, 0)),
    "pixel shuffle": ([conv(3, 8, 4, stride=4), nn.PixelShuffle(2), nn.AvgPool2d(2)], (4, 4), 4, (0, 0)),
    "channels last": ([stem(4), Last(4), conv(4, 4, 3)], (5, 5), 1, (-1, -1)),
    "other centres": ([Unlike()], (6, 3), 2, (-3, -1)),
    "blur": ([stem(4), Blur(), conv(4, 4, 3, padding=1)], (9, 9), 2, (-4, -4)),
    "same": ([conv(3, 4, 4, padding="same"), conv(4, 4, 3, padding="same", dilation=2)], (8, 8), 1, (-3, -3)),
    "ceil": ([nn.MaxPool2d(3, 2, ceil_mode=True), nn.AvgPool2d(3, 2, 1, ceil_mode=True)], (7, 7), 4, (-2, -2)),
    "zero pad": ([nn.ZeroPad2d((0, 1, 2, 3)), conv(3, 4, 3)], (3, 3), 1, (-2, 0)),
    "two resolutions": ([UpAndDown(), nn.AvgPool2d(4)], (8, 8), 4, (-3, -3)),
    "transposed": ([conv(3, 4, 2, stride=2), nn.ConvTranspose2d(4, 4, 4, 2, 1), nn.AvgPool2d(2)], (6, 6), 2, (-2, -2)),
    "linear resizing": ([nn.Upsample(scale_factor=2, mode="bilinear"), nn.AvgPool2d(2)], (3, 3), 1, (-1, -1)),
}


def support(features, size, at):
    """Height and width of the input gradient's support for position `at` of the map, and where they begin."""
    x = (images(1, size).abs() + 1).requires_grad_()
    y = features(x)
    (gradient,) = torch.autograd.grad(y[0, :, at, at].sum(), x)
    rows, columns = (gradient.abs().sum((0, 1, axis)).nonzero().flatten() for axis in (3, 2))
    assert 0 < rows[0] <= rows[-1] < size - 1, "the image must be wider than the field"
    return (int(rows[-1] - rows[0]) + 1, int(columns[-1] - columns[0]) + 1), (int(rows[0]), int(columns[0]))


def all_positive(features):
    """A copy with positive weights, averages instead of maxima, and no saturation: every input has a say."""
    features = copy.deepcopy(features).eval()
    for name, module in list(features.named_modules()):
        for parameter in module.parameters(recurse=False):
            small = isinstance(module, nn.Conv2d | nn.ConvTranspose2d | nn.Linear)
            parameter.data = parameter.data.abs() * 0.1 + 0.01 if small else parameter.data.abs()
        if isinstance(module, nn.MaxPool2d):
            shape = module.kernel_size, module.stride, module.padding
            features.set_submodule(name, nn.AvgPool2d(*shape, ceil_mode=module.ceil_mode))
        if isinstance(module, nn.ReLU6):
            features.set_submodule(name, nn.Identity())
    return features


@pytest.mark.parametrize("which", SMALL)
def test_by_hand_and_by_the_support_of_gradients(which, monkeypatch):
    layers, size, stride, offset = SMALL[which]
    traced = trace(nn.Sequential(*layers), 64)
    assert unknown_operations(traced) == []
    side = size[1] > size[0]
    assert receptive_fields(traced)[traced.nodes[-2]] == ReceptiveField(max(size), stride, offset[side])
    monkeypatch.setattr(functional, "max_pool2d", functional.avg_pool2d)
    features = all_positive(nn.Sequential(*layers)).double()
    features.register_forward_pre_hook(lambda _module, inputs: (inputs[0].double(),))
    at = 64 // stride // 2
    found, first = support(features, 64, at)
    _, second = support(features, 64, at + 1)
    assert found == size
    assert [b - a for a, b in zip(first, second, strict=True)] == [stride, stride]
    assert tuple(a - at * stride for a in first) == offset


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
    assert law(usable_field(small, 48)) == USABLE[method][k]


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
    assert law(usable_field(chain, 48)) == (4, 2)  # nothing leads around it


@pytest.mark.parametrize("options", [{"fixed": True}, {"patch": 2}, {"shared": True}, {"per_image": True}], ids=str)
def test_a_fixed_order_and_whole_patches_leave_positions_some_meaning(options):
    small, _ = remove_spatial(
        untrained(CHAIN, 4, 48), "shuffle", 2, image_size=48, shuffle=ShuffleOptions(**options))
    if "fixed" in options or "patch" in options:
        with pytest.raises(InputError, match=r"found ShuffleConv features.\d+, expected operations whose reading is"):
            usable_field(small, 48)
        assert unknown_operations(trace(small, 48)) == ["ShuffleConv features.7"]
    else:
        assert law(usable_field(small, 48)) == USABLE["shuffle"][2]


def test_a_gate_gives_nothing_to_the_field():
    gated = Classifier(stem(8), Gate(8), nn.Conv2d(8, 8, 3), Gate(8), channels=8)
    assert usable_field(gated, 16) == ReceptiveField(5, 1, -1)


def test_a_map_of_one_position_counts_as_pooled():
    assert law(usable_field(build_model("chain:4-M-M-4", 4, 4), 4)) == (14, 4)
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
    assert receptive_fields(traced)[traced.nodes[-2]] == ReceptiveField(3 + 7 * 2, 2, -1)  # as a kernel of 8x8 would
    with pytest.raises(InputError):
        usable_field(untrained("torchvision:alexnet", 10, 224), 224)


@pytest.mark.parametrize(("pool", "positions"), [
    (nn.Identity(), 16), (nn.AdaptiveAvgPool2d(7), 16), (nn.AdaptiveAvgPool2d(2), 4), (nn.AvgPool2d(4), None),
    (nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.AdaptiveAvgPool2d(7)), None),
], ids=["the map", "a larger map", "a smaller map", "pooled", "one position repeated"])
def test_how_many_positions_a_flattened_head_tells_apart(pool, positions):
    model = nn.Sequential(nn.Conv2d(3, 2, 4, 4), pool, nn.Flatten(), nn.Dropout(), nn.LazyLinear(5), nn.Linear(5, 4))
    model.eval()(images(1, 16))
    told = head_note(trace(model, 16))
    assert told is None if positions is None else f"each of {positions} positions of the last map" in told


def test_unit_fields_and_what_has_none():
    traced = trace(untrained("resnet50", 10, 224), 224)
    fields = receptive_fields(traced)
    sizes = [field.size for field in unit_fields(traced, ["conv1", "layer1.0", "layer1.2", "layer2.0"])]
    assert sizes == [7, 19, 35, 43]
    assert fields[traced.nodes[-2]] is None  # the logits
    assert set(fields) <= set(traced.shapes)


# What no rule knows


class Rolled(nn.Module):
    def forward(self, x):
        return torch.roll(x, 3, 2)


class Attention(nn.Module):
    def forward(self, x):
        tokens = x.flatten(2)
        weights = (tokens.transpose(1, 2) @ tokens).softmax(-1)
        return (tokens @ weights).view_as(x)


class Half(nn.Module):
    def forward(self, x):
        return x.mean(3, keepdim=True) + x


class Flipped(nn.Module):
    def forward(self, x):
        return torch.cat([x, x.flip(3)], 1)


class Stacked(nn.Module):
    def forward(self, x):
        return torch.cat([x, x], 2)


@pytest.mark.parametrize(("module", "operation"), [
    (Rolled(), "roll in 2"), (Attention(), "matmul in 2"), (Half(), "mean in 2"), (Flipped(), "flip in 2"),
    (Stacked(), "cat in 2"), (nn.Fold(16, 1), "Fold 2"), (nn.Upsample(8, mode="trilinear"), "Upsample 2"),
], ids=lambda value: value if isinstance(value, str) else "")
def test_an_operation_that_no_rule_knows_ends_what_is_known(module, operation):
    if isinstance(module, nn.Fold | nn.Upsample):
        before, behind = (nn.Flatten(2), nn.Identity()) if isinstance(module, nn.Fold) else (
            nn.Unflatten(1, (4, 1)), nn.Flatten(1, 2))
    else:
        before = behind = nn.Identity()
    model = Classifier(stem(4), before, module, behind, nn.LazyConv2d(4, 3), channels=4)
    model(images(1, 16))
    traced = trace(model, 16)
    assert unknown_operations(traced) == [_at(operation)]
    first, last = unit_fields(traced, ["features.0", "features.4"])
    assert (first, last) == (ReceptiveField(3, 1, -1), None)
    with pytest.raises(InputError, match=rf"Classifier: found {_at(operation)}, expected operations whose reading"):
        usable_field(model, 16)


def _at(operation):
    what, *within = operation.split()
    return f"{what} in features.2" if "in" in within else f"{what} features.2"


def test_positions_that_are_summed_over_in_a_product_are_pooled():
    class Context(nn.Module):
        """The gate of a global context network: a mean over positions with weights of its own."""

        def forward(self, x):
            weights = x.mean(1, keepdim=True).flatten(2).softmax(-1)
            return x + torch.matmul(x.flatten(2), weights.transpose(1, 2)).unsqueeze(-1)

    model = Classifier(stem(4), Context(), conv(4, 4, 3), channels=4)
    assert unknown_operations(trace(model, 16)) == []
    assert usable_field(model, 16) == ReceptiveField(5, 1, -1)


@pytest.mark.parametrize(("side", "offset"), [(64, 0), (65, -1)])
def test_padding_as_the_input_needs_it_depends_on_its_size(side, offset):
    from timm.layers import Conv2dSame

    traced = trace(nn.Sequential(Conv2dSame(3, 4, 3, stride=2)), side)
    assert receptive_fields(traced)[traced.nodes[-2]] == ReceptiveField(3, 2, offset)


def test_branches_out_of_step_are_told():
    class Uneven(nn.Module):
        def forward(self, x):
            return x + functional.interpolate(functional.avg_pool2d(x, 2), size=x.shape[-2:])

    traced = trace(nn.Sequential(Uneven()), 15)  # 15 positions from 7: a stride of 14/15, not 1
    found = receptive_fields(traced)[traced.nodes[-2]]
    assert not found.aligned
    assert found.size == max(max(i, 2 * (i * 7 // 15) + 1) - min(i, 2 * (i * 7 // 15)) + 1 for i in range(15))


def test_a_stride_that_is_not_whole():
    traced = trace(nn.Sequential(conv(3, 4, 3, 2, 1), nn.Upsample(scale_factor=4)), 16)
    found = receptive_fields(traced)[traced.nodes[-2]]
    assert (found.size, found.stride, found.offset) == (3, 0.5, -1)


@pytest.mark.parametrize("two", [torch.min, lambda x, p: torch.max(x, other=p), torch.minimum],
                         ids=["positional", "named", "minimum"])
def test_the_smaller_of_two_tensors_is_no_reduction(two):
    class Capped(nn.Module):
        def __init__(self):
            super().__init__()
            self.cap = nn.Parameter(torch.tensor(6.0))

        def forward(self, x):
            return two(x, self.cap)

    assert usable_field(Classifier(stem(4), Capped(), conv(4, 4, 3), channels=4), 16) == ReceptiveField(5, 1, -1)
