"""Surgery on a user's own network: modules that are shared, pooling of every kind, and what cannot be done is said."""

from typing import NamedTuple

import pytest
import torch
from torch import nn
from torch.nn import functional
from torch.nn.utils import parametrizations, prune, spectral_norm, weight_norm
from torchvision.models import DenseNet

from networks import SMALL, Classifier, ConvBlock, Residual, StemLast, images, randomised, stem
from spaceless.errors import InputError, SurgeryError
from spaceless.models import GlobalAveragePool
from spaceless.surgery import remove_spatial
from spaceless.trial import Change


class SharedPool(nn.Module):
    """One pooling module, called behind every convolution."""

    def __init__(self):
        super().__init__()
        self.one, self.two = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 8, 3, padding=1)
        self.pool, self.head = nn.MaxPool2d(2), nn.Linear(8, 4)

    def forward(self, x):
        return self.head(self.pool(self.two(self.pool(self.one(x)))).mean((2, 3)))


def test_a_pooling_on_both_sides_of_the_cut_is_refused_not_lost():
    with pytest.raises(SurgeryError, match=r"gap_fc on pool: found calls before and behind .*; give every call"):
        remove_spatial(SharedPool(), "gap_fc", 1, image_size=16)
    both, _ = remove_spatial(SharedPool(), "gap_fc", 2, image_size=16)  # all calls lie behind the cut
    assert isinstance(both.pool, nn.Identity)


class SharedPointwise(nn.Module):
    """A strided 1x1 convolution that two branches of the head share; `early` calls it in front of the unit, too."""

    def __init__(self, early=False):
        super().__init__()
        self.conv, self.point, self.head = nn.Conv2d(3, 3, 3, padding=1), nn.Conv2d(3, 3, 1), nn.Linear(3, 4)
        self.early = early

    def forward(self, x):
        y = self.conv(self.point(x) if self.early else x)
        return self.head((self.point(y) + self.point(torch.relu(y))).mean((2, 3)))


def test_a_pointwise_convolution_that_is_called_twice_is_changed_once():
    model = SharedPointwise()
    small, changes = remove_spatial(model, "gap_fc", 1, image_size=8)
    assert [change.path for change in changes] == ["conv", "point", "conv"]  # the last: the pooling in front
    assert torch.equal(small.point.weight, model.point.weight[:, :, 0, 0])
    with pytest.raises(SurgeryError, match="gap_fc on point: found calls before and behind"):
        remove_spatial(SharedPointwise(early=True), "gap_fc", 1, image_size=8)


class SharedConv(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem, self.conv = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 8, 3)

    def forward(self, x):
        return self.conv(self.conv(self.stem(x))).mean((2, 3))


def test_a_spatial_convolution_that_is_called_twice_is_refused():
    with pytest.raises(SurgeryError, match="conv: found a convolution that runs 2 times, expected one that"):
        remove_spatial(SharedConv(), "conv1x1", 1, image_size=16)


class Pooled(nn.Module):
    """A way of pooling behind the last convolution, and a head for as many positions as it leaves."""

    def __init__(self, pool, positions):
        super().__init__()
        self.one, self.two = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 8, 3, padding=1)
        self.pool, self.head = pool, nn.Linear(8 * positions, 4)

    def forward(self, x):
        return self.head(torch.flatten(self.pool(self.two(self.one(x))), 1))


class Window(nn.Module):
    def forward(self, x):
        return functional.adaptive_avg_pool2d(functional.max_pool2d(x, 2), 1)


@pytest.mark.parametrize(
    ("pool", "positions", "message"),
    [
        (nn.AdaptiveAvgPool2d(1), 1, None), (nn.AvgPool2d(8), 1, None),
        (nn.Sequential(nn.LPPool2d(2, 2), nn.AdaptiveMaxPool2d(1)), 1, None),
        (nn.AdaptiveAvgPool2d(2), 4, None),  # its readers expect four positions: they get the vector four times
        (nn.MaxPool2d(2), 16, r"K = 1: found a head that reads a flattened map of 4x4 positions, .*; choose another"),
        (Window(), 1, None),  # by a function: the graph is rewritten
    ],
    ids=["adaptive", "average", "power and maximum", "adaptive to 2x2", "flattened map", "function"],
)
def test_pooling_behind_the_cut(pool, positions, message):
    model = Pooled(pool, positions)
    if message:
        with pytest.raises(SurgeryError, match=message):
            remove_spatial(model, "gap_fc", 1, image_size=8)
        return
    small, _ = remove_spatial(model, "gap_fc", 1, image_size=8)
    x = images(2, 8)
    pooled = model.one(x).mean((2, 3)) @ model.two.weight.sum((2, 3)).T + model.two.bias
    by_hand = model.head(pooled.repeat_interleave(positions, 1))
    assert torch.allclose(small(x), by_hand, atol=1e-5)


# Units: the stem, three layers, two layers. The maps that enter the last K of them have these channels: the transition
# halves 8 + 3 * 4, each layer adds 4, the pooled stem has 8.
@pytest.mark.parametrize(("k", "entering"), [(1, [10, 4]), (2, [10]), (3, [8, 4, 4]), (5, [8]), (6, [3])])
def test_every_map_of_a_dense_concatenation_is_pooled_once(k, entering):
    model = randomised(DenseNet(4, (3, 2), 8, num_classes=5)).eval()
    small, changes = remove_spatial(model, "gap_fc", k, image_size=32)
    assert {change.unit for change in changes} - {0} == set(range(7 - k, 7))
    pools = [module for module in small.modules() if isinstance(module, GlobalAveragePool)]
    entered = []
    for pool in pools:
        pool.register_forward_pre_hook(lambda _, inputs: entered.append(inputs[0].shape[1]))
        # What follows has no places: the positions of every map that enters are permuted, the answer stays.
        pool.register_forward_pre_hook(lambda _, inputs: (inputs[0].flatten(2).flip(2).view_as(inputs[0]),))
    x = images(2, 32)
    plain, _ = remove_spatial(model, "gap_fc", k, image_size=32)
    torch.testing.assert_close(small(x), plain(x))
    assert sorted(entered) == sorted(entering)
    small.train()(images(4, 32)).sum().backward()
    assert all(p.grad is not None for p in small.parameters())


class PoolBranch(nn.Module):
    """An Inception block: one branch begins with pooling by a function."""

    def __init__(self):
        super().__init__()
        self.stem, self.conv, self.after = nn.Conv2d(3, 4, 3), nn.Conv2d(4, 4, 3, padding=1), nn.Conv2d(4, 2, 1)

    def forward(self, x):
        x = self.stem(x)
        pooled = self.after(functional.avg_pool2d(x, 3, 1, 1))
        return torch.cat([self.conv(x), pooled], 1).mean((2, 3))


def test_a_branch_that_begins_with_pooling_by_a_function():
    model = randomised(PoolBranch())
    small, _ = remove_spatial(model, "gap_fc", 1, image_size=9)
    x = images(2, 9)
    mean = model.stem(x).mean((2, 3), keepdim=True)
    left = mean[..., 0, 0] @ model.conv.weight.sum((2, 3)).T + model.conv.bias
    # The branch is behind no changed convolution: what enters the block is pooled where the two meet.
    right = model.after(functional.avg_pool2d(model.stem(x), 3, 1, 1)).mean((2, 3))
    torch.testing.assert_close(small(x), torch.cat([left, right], 1))


class TrainingOnly(nn.Module):
    def __init__(self):
        super().__init__()
        self.one, self.two, self.head = nn.Conv2d(3, 4, 3), nn.Conv2d(4, 4, 3), nn.Linear(4, 2)

    def forward(self, x):
        x = functional.max_pool2d(self.two(self.one(x)), 2).mean((2, 3))
        if self.training:
            x = x + 0.1 * torch.randn_like(x)
        return self.head(x)


def test_a_graph_that_is_another_one_in_training_is_not_rewritten():
    with pytest.raises(SurgeryError, match="another one in training"):
        remove_spatial(TrainingOnly(), "gap_fc", 1, image_size=12)


def test_what_is_recorded():
    _, changes = remove_spatial(StemLast(), "conv1x1", 2, image_size=16)
    pooled = "Conv2d 8->16 1x1 + AvgPool2d"
    assert changes == [
        Change(unit=3, path="blocks.1.one", before="Conv2d 8->16 3x3 stride 2", after=pooled),
        Change(unit=3, path="blocks.1.two", before="Conv2d 16->16 3x3", after="Conv2d 16->16 1x1"),
        Change(unit=3, path="blocks.1.skip", before="Conv2d 8->16 1x1 stride 2", after=pooled),
        Change(unit=4, path="blocks.2.one", before="Conv2d 16->16 3x3", after="Conv2d 16->16 1x1"),
        Change(unit=4, path="blocks.2.two", before="Conv2d 16->16 3x3", after="Conv2d 16->16 1x1"),
    ]
    _, changes = remove_spatial(StemLast(), "gap_fc", 1, image_size=16)
    assert [(each.unit, each.path, each.after) for each in changes] == [
        (4, "blocks.2.one", "Linear 16->16"), (4, "blocks.2.two", "Linear 16->16"), (0, "pool", "nothing"),
        (4, "blocks.2", "GlobalAveragePool + Residual")]
    _, changes = remove_spatial(SMALL["plain"](), "shuffle", 1, image_size=16)
    assert [(each.path, each.after) for each in changes] == [("features.4.conv", "Shuffle + Conv2d 16->16 3x3")]
    _, changes = remove_spatial(SMALL["inverted"](), "conv1x1", 2, image_size=16, downsample="stride")
    assert [each.after for each in changes] == ["AvgPool2d", *["nothing"] * 5]


def test_a_strided_pointwise_convolution_is_left_alone_where_stride_asks_for_one():
    model = Classifier(stem(8), Residual(8, 8), Residual(8, 16, 2), channels=16)
    small, changes = remove_spatial(model, "conv1x1", 1, image_size=16, downsample="stride")
    assert "features.2.skip" not in [change.path for change in changes]
    assert small.features[2].one.stride == small.features[2].skip.stride == (2, 2)


class OneBranch(nn.Module):
    """Two convolutions side by side: what is pooled for the one does not reach the other."""

    def __init__(self):
        super().__init__()
        self.left, self.right = nn.Conv2d(3, 4, 3), nn.Conv2d(3, 4, 3)

    def forward(self, x):
        return (self.left(x) + self.right(x)).mean((2, 3))


def test_units_side_by_side_share_one_pooling():
    model = randomised(OneBranch())
    pooled, _ = remove_spatial(model, "gap_fc", 2, image_size=8)
    x = images(2, 8)
    summed = [layer.weight.sum((2, 3)) for layer in (model.left, model.right)]
    by_hand = x.mean((2, 3)) @ (summed[0] + summed[1]).T + model.left.bias + model.right.bias
    torch.testing.assert_close(pooled(x), by_hand)
    last, _ = remove_spatial(model, "gap_fc", 1, image_size=8)  # the other one's map is pooled where the two meet
    by_hand = x.mean((2, 3)) @ summed[1].T + model.right.bias + model.left(x).mean((2, 3))
    torch.testing.assert_close(last(x), by_hand)
    alone, _ = remove_spatial(model, "conv1x1", 2, image_size=8)
    # Convolutions without padding left one pixel less on every side: so do the 1x1 ones.
    assert [type(part).__name__ for part in alone.left] == ["ZeroPad2d", "Conv2d"]
    inner = x[:, :, 1:-1, 1:-1].mean((2, 3))
    torch.testing.assert_close(alone(x), inner @ (summed[0] + summed[1]).T + model.left.bias + model.right.bias)


@pytest.mark.parametrize("downsample", ["avg", "max", "stride"])
@pytest.mark.parametrize("size", [11, 12, 13, 14])
@pytest.mark.parametrize("conv", [
    (3, 1, 0), (3, 2, 0), (3, 2, 1), (5, 2, 1), (5, 3, 0), (2, 2, 0), (4, 4, 0), (7, 2, 3), (3, 1, 1), (2, 1, 0),
], ids=str)
def test_every_map_keeps_the_size_that_the_convolution_gave_it(conv, size, downsample):
    kernel, stride, padding = conv
    model = nn.Sequential(
        nn.Conv2d(3, 4, kernel, stride, padding), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 2))
    point, _ = remove_spatial(model, "conv1x1", 1, image_size=size, downsample=downsample)
    x = images(1, size)
    assert point[0](x).shape == model[0](x).shape
    assert all(m.kernel_size == (1, 1) for m in point.modules() if isinstance(m, nn.Conv2d))


# Weights that are computed from others: only what they are computed from can be learnt


COMPUTED = {
    "weight_norm": parametrizations.weight_norm, "spectral_norm": parametrizations.spectral_norm,
    "old spectral_norm": spectral_norm, "pruned": lambda conv: prune.l1_unstructured(conv, "weight", 0.5),
    "bias": lambda conv: torch.nn.utils.parametrize.register_parametrization(conv, "bias", nn.Identity()),
}


@pytest.mark.parametrize("method", ["conv1x1", "gap_fc"])
@pytest.mark.parametrize("kind", COMPUTED)
def test_weights_that_are_computed_are_refused_not_ignored(kind, method):
    model = Classifier(stem(8), nn.Conv2d(8, 8, 3, padding=1), channels=8)
    with torch.no_grad():  # what was computed with a graph behind it could not even be copied
        COMPUTED[kind](model.features[1])
    with pytest.raises(SurgeryError, match=r"features.1: found weights that are computed .*; call .*remove_param"):
        remove_spatial(model, method, 1, image_size=8)
    remove_spatial(model, "shuffle", 1, image_size=8)  # leaves the convolution alone


def test_a_head_with_computed_weights_is_not_fitted_to_another_width():
    model = Classifier(stem(4), Residual(4, 4), Residual(4, 8), channels=8)
    parametrizations.spectral_norm(model.head)
    with pytest.raises(SurgeryError, match="head: found weights that are computed"):
        remove_spatial(model, "strip", 1, image_size=8)


class Several(Classifier):
    def forward(self, x):
        return {"logits": super().forward(x)}


def test_a_network_that_gives_more_than_one_tensor_is_told_so():
    with pytest.raises(SurgeryError, match="Several: found an output that is a dict, expected one tensor"):
        remove_spatial(Several(stem(8), channels=8), "conv1x1", 1, image_size=8)


@pytest.mark.parametrize("method", ["conv1x1", "shuffle"])
def test_a_network_that_cannot_be_copied_is_refused(method):
    model = Classifier(stem(8), weight_norm(nn.Conv2d(8, 8, 3, padding=1)), channels=8)
    with pytest.raises(SurgeryError, match=r"copying Classifier: found RuntimeError: Only Tensors .*; where weights"):
        remove_spatial(model, method, 1, image_size=8)


class Stubborn(nn.Conv2d):
    """A convolution whose copies get a kernel of their own."""

    def __deepcopy__(self, memo):
        return Stubborn(self.in_channels, self.out_channels, 3, padding=1, device=self.weight.device)


def test_a_kernel_that_is_still_spatial_is_no_success():
    model = Classifier(stem(8), Stubborn(8, 8, 3, padding=1), channels=8)
    with pytest.raises(SurgeryError, match=r"conv1x1 on features.1: found a kernel that still sees several positions"):
        remove_spatial(model, "conv1x1", 1, image_size=8)


@pytest.mark.parametrize("method", ["conv1x1", "gap_fc", "strip"])
def test_what_is_frozen_stays_frozen(method):
    model = Classifier(stem(4), Residual(4, 8), ConvBlock(8, 12), channels=12).requires_grad_(requires_grad=False)
    small, _ = remove_spatial(model, method, 2, image_size=8)
    assert not any(parameter.requires_grad for parameter in small.parameters())
    model.head.bias.requires_grad_()
    small, _ = remove_spatial(model, method, 2, image_size=8)
    assert [name for name, parameter in small.named_parameters() if parameter.requires_grad] == ["head.bias"]


class Masked(nn.Conv2d):
    """A sparse convolution: its kernel is its weights times a mask that knows nothing of a smaller kernel."""

    def __init__(self, *args, **options):
        super().__init__(*args, **options)
        self.register_buffer("mask", torch.ones_like(self.weight))

    def forward(self, x):
        return self._conv_forward(x, self.weight * self.mask, self.bias)


@pytest.mark.parametrize("method", ["conv1x1", "gap_fc"])
def test_a_mask_of_the_kernels_size_is_refused(method):
    model = Classifier(ConvBlock(3, 8), Masked(8, 8, 3, padding=1), channels=8)
    with pytest.raises(SurgeryError, match="a mask"):
        remove_spatial(model, method, 1, image_size=16)


def test_an_answer_in_an_object_of_its_own_is_refused_by_name():
    class Answer(NamedTuple):
        logits: torch.Tensor

    class Wrapped(Classifier):
        def forward(self, x):
            return Answer(super().forward(x))

    with pytest.raises(SurgeryError, match="found an output that is a"):
        remove_spatial(Wrapped(ConvBlock(3, 8), ConvBlock(8, 8), channels=8), "shuffle", 1, image_size=16)


def test_layers_that_the_network_does_not_know_of_are_refused_by_name():
    class Listed(Classifier):
        def __init__(self):
            super().__init__(ConvBlock(3, 8), ConvBlock(8, 8), channels=8)
            self.more = [nn.Conv2d(8, 8, 3, padding=1)]

        def forward(self, x):
            x = self.features(x)
            return self.head((self.more[0](x) if float(x.detach().sum()) > -1e9 else x).mean((2, 3)))

    with pytest.raises(SurgeryError, match=r"neither parameter nor buffer .* nn\.ModuleList"):
        remove_spatial(Listed(), "shuffle", 1, image_size=16)


def test_the_graph_of_a_network_of_blocks_is_no_network_of_blocks():
    graph = torch.fx.symbolic_trace(Classifier(Residual(3, 8), Residual(8, 8), channels=8))
    with pytest.raises(InputError, match="pass the network itself, not its graph"):
        remove_spatial(graph, "shuffle", 1, image_size=16)


@pytest.mark.parametrize("known", [True, False])
def test_a_normalisation_over_positions_leaves_nothing_of_a_pooled_vector(known):
    model = Classifier(ConvBlock(3, 8), nn.Conv2d(8, 8, 3, padding=1), nn.InstanceNorm2d(8, track_running_stats=known),
                       channels=8)
    with pytest.raises(SurgeryError, match="a normalisation over the positions of an image"):
        remove_spatial(model, "gap_fc", 1, image_size=16)
    assert remove_spatial(model, "conv1x1", 1, image_size=16)[0](images(size=16)).shape == (2, 4)
