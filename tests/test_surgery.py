"""Surgery: what changes, what does not, what the changed copy computes, and what is refused."""

import copy
import math

import pytest
import torch
from torch import nn

from networks import SMALL, Classifier, images, inverted, randomised, residual, stem
from spaceless.errors import InputError, SurgeryError
from spaceless.gap import FullyConnected
from spaceless.models import build_model
from spaceless.shuffle import Shuffle, ShuffleConv, seek, shuffles
from spaceless.surgery import remove_spatial, without_shuffle
from spaceless.trial import METHODS, ShuffleOptions

CHAIN = "chain:6-M-8-M-10"
CASES = [(which, method) for which in (*SMALL, CHAIN) for method in METHODS]
IDS = [f"{which}-{method}" for which, method in CASES]


def build(which):
    torch.manual_seed(0)
    return build_model(which, 4, 32) if which == CHAIN else SMALL[which]()


def change(model, method, k, **options):
    return remove_spatial(model, method, k, image_size=32, **options)[0]


def same(one, other):
    """Whether two state dicts are equal bit by bit."""
    return list(one) == list(other) and all(torch.equal(one[name], other[name]) for name in one)


# What stays


@pytest.mark.parametrize(("which", "method"), CASES, ids=IDS)
def test_the_original_is_untouched_and_what_need_not_change_is_carried_over(which, method):
    model = randomised(build(which)).train()
    state, kinds = copy.deepcopy(model.state_dict()), [type(m) for m in model.modules()]
    random = torch.get_rng_state()
    small, changes = remove_spatial(model, method, 2, image_size=32)
    assert torch.equal(torch.get_rng_state(), random)
    assert same(model.state_dict(), state)
    assert [type(m) for m in model.modules()] == kinds
    assert all(m.training for m in (*model.modules(), *small.modules()))
    assert all(p.grad is None for p in model.parameters())
    mine = {t.data_ptr() for t in model.state_dict().values()}
    assert mine.isdisjoint(t.data_ptr() for t in small.state_dict().values())
    changed = tuple(change.path for change in changes)
    for name, tensor in small.state_dict().items():
        if not name.startswith(changed):
            assert torch.equal(tensor, state[name]), name


@pytest.mark.parametrize("method", METHODS)
def test_parts_that_are_frozen_in_evaluation_mode_stay_so(method):
    model = build("residual").train()
    for name in ("features.0", "features.3.norm", "features.4.one", "head"):
        model.get_submodule(name).eval()
    small = change(model, method, 2)
    modes = {name: module.training for name, module in small.named_modules()}
    kept = ["features.0", "head"] if method == "strip" else [
        "features.0", "features.3.1.norm" if method == "gap_fc" else "features.3.norm", "features.4.one", "head"]
    assert {name for name, mode in modes.items() if not mode and not name.startswith("features.4.one.")} == set(kept)


@pytest.mark.parametrize(("which", "method"), CASES, ids=IDS)
def test_no_units_changed_is_a_plain_copy(which, method):
    model = build(which)
    small, changes = remove_spatial(model, method, 0, image_size=32)
    assert not changes
    assert small is not model
    assert same(small.state_dict(), model.state_dict())
    assert torch.equal(small.eval()(images()), model.eval()(images()))


@pytest.mark.parametrize(("which", "method"), CASES, ids=IDS)
def test_the_state_fits_a_copy_made_afresh(which, method):
    first = randomised(change(build(which), method, 2, seed=5))
    second = change(build(which), method, 2, seed=5).eval()
    second.load_state_dict(first.state_dict())
    for _ in range(2):  # shuffled passes agree, too
        assert torch.equal(second(images()), first(images()))


# What the copy does


@pytest.mark.parametrize(("which", "method"), CASES, ids=IDS)
def test_train_eval_single_images_autocast_and_channels_last(which, method):
    small = change(build(which), method, 2)
    small.train()
    small(images(4)).square().sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in small.parameters())
    small.eval()
    seek(small, 0, "eval")
    with torch.no_grad():
        expected = small(images(3))
        assert expected.shape == (3, 4)
        assert small(images(1)).shape == (1, 4)
        seek(small, 0, "eval")
        with torch.autocast("cpu", torch.bfloat16):
            low = small(images(3))
        assert low.dtype == torch.bfloat16
        assert torch.allclose(low.float(), expected, atol=0.05 * float(expected.abs().max()) + 0.05)
        seek(small, 0, "eval")
        last = small.to(memory_format=torch.channels_last)(images(3).to(memory_format=torch.channels_last))
        assert torch.allclose(last, expected, atol=1e-5)


@pytest.mark.parametrize("method", METHODS)
def test_under_compile(method):
    small = change(build(CHAIN), method, 2, seed=1).eval()
    compiled = torch.compile(copy.deepcopy(small), backend="aot_eager" if method == "shuffle" else "eager")
    with torch.no_grad():
        passes = [small(images()) for _ in range(3)]
        found = [compiled(images()) for _ in range(3)]
    assert all(torch.allclose(a, b, atol=1e-6) for a, b in zip(passes, found, strict=True))
    redrawn = method in ("shuffle", "channel_shuffle")
    assert torch.equal(found[1], found[2]) is not redrawn
    compiled.train()(images()).sum().backward()
    small.train()(images()).sum().backward()
    for one, other in zip(small.parameters(), compiled.parameters(), strict=True):
        assert torch.allclose(one.grad, other.grad, atol=1e-5)


@pytest.mark.parametrize("method", ["shuffle", "channel_shuffle"])
@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
def test_shuffled_networks_change_from_pass_to_pass(method, training):
    small = change(build("plain"), method, 1).train(training)
    assert not torch.allclose(small(images()), small(images()))


def test_a_network_without_its_shuffle_is_the_network_again():
    model = randomised(build("residual"))
    small = change(model, "shuffle", 3)
    plain = without_shuffle(small)
    assert not list(shuffles(plain))
    assert len(list(shuffles(small))) == 6
    assert same(plain.state_dict(), model.state_dict())
    assert torch.equal(plain(images()), model(images()))


def test_shuffle_modules_are_numbered_by_their_layer_whatever_k():
    def layers(**options):
        small, _ = remove_spatial(build("double"), "shuffle", image_size=32, seed=9, **options)
        assert {module.seed for module in shuffles(small)} == {9}
        return [module.layer for module in shuffles(small)]

    assert (layers(k=3), layers(k=1), layers(only=2)) == ([0, 1, 2, 3, 4, 5], [4, 5], [2, 3])


@pytest.mark.parametrize("options", [{"per_image": True}, {"shared": True}, {"fixed": True}, {"patch": 2}], ids=str)
def test_options_reach_every_shuffle(options):
    small = change(build("plain"), "shuffle", 3, shuffle=ShuffleOptions(**options))
    for module in shuffles(small):
        assert {name: getattr(module, name) for name in options} == options
        assert not module.channels


# The 1x1 kernel, in numbers


def counting(*shape, inputs=1, outputs=1, groups=1):
    """A convolution whose weights are 0, 1, 2, ... behind which the mean is taken."""
    conv = nn.Conv2d(inputs, outputs, *shape, groups=groups)
    conv.weight.data.copy_(torch.arange(float(conv.weight.numel())).view_as(conv.weight))
    conv.bias.data.fill_(0.5)

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = conv

        def forward(self, x):
            return self.conv(x).mean((2, 3))

    return Net()


@pytest.mark.parametrize("method", ["conv1x1", "gap_fc"])
def test_the_1x1_kernel_is_the_sum_over_the_taps(method):
    small, changes = remove_spatial(counting(3, 1, 1, inputs=2, outputs=2), method, 1, image_size=6)
    weight = small.state_dict()["conv.1.weight" if method == "gap_fc" else "conv.weight"]
    assert weight.flatten().tolist() == [36, 117, 198, 279]  # 0+...+8, 9+...+17, 18+...+26, 27+...+35
    assert changes[0].before == "Conv2d 2->2 3x3"
    assert changes[0].after == ("Linear 2->2" if method == "gap_fc" else "Conv2d 2->2 1x1")
    x = torch.stack([torch.full((6, 6), 1.0), torch.full((6, 6), 2.0)])[None]
    assert small(x).tolist() == [[36 + 2 * 117 + 0.5, 198 + 2 * 279 + 0.5]]


@pytest.mark.parametrize(
    ("shape", "sums"), [(((1, 7), 1, (0, 3)), [21]), ((5, 1, 2), [300]), ((2, 2), [6]), ((3, 1, 2, 2), [36])],
    ids=["1x7", "5x5", "2x2 strided", "dilated"],
)
def test_kernels_of_other_shapes(shape, sums):
    small, _ = remove_spatial(counting(*shape), "conv1x1", 1, image_size=8)
    weight, bias = small.parameters()
    assert weight.flatten().tolist() == sums
    assert bias.item() == 0.5


def test_groups_that_are_not_depthwise_stay_groups():
    model = counting(3, 1, 1, inputs=4, outputs=4, groups=2)
    small, _ = remove_spatial(model, "conv1x1", 1, image_size=6)
    assert small.conv.groups == 2
    assert small.conv.weight.shape == (4, 2, 1, 1)
    pooled, _ = remove_spatial(model, "gap_fc", 1, image_size=6)
    x = images(2, 6, 4)
    assert torch.allclose(pooled(x), small(x), rtol=1e-4)


def test_a_fresh_kernel_has_the_variance_that_kaiming_prescribes_for_the_smaller_fan():
    small = change(build_model("chain:64-64-128", 4, 32), "conv1x1", 2)
    for conv in [m for m in small.modules() if isinstance(m, nn.Conv2d)][1:]:
        assert conv.kernel_size == (1, 1)
        assert float(conv.weight.detach().var()) == pytest.approx(2 / conv.out_channels, rel=0.05)


def test_a_constant_map_gets_the_answer_of_the_spatial_kernel():
    conv = nn.Conv2d(3, 5, 3, padding=1, padding_mode="replicate")
    model = nn.Sequential(conv, nn.AdaptiveAvgPool2d(1), nn.Flatten())
    constant = images(2, 1).expand(-1, -1, 8, 8)
    for method in ("conv1x1", "gap_fc"):
        small, _ = remove_spatial(model, method, 1, image_size=8)
        assert torch.allclose(small(constant), model(constant), atol=1e-6)


def test_types_and_kinds_of_modules():
    small = change(build("residual").double(), "gap_fc", 2)
    assert {t.dtype for t in small.state_dict().values() if t.is_floating_point()} == {torch.float64}
    kinds = {name: type(m) for name, m in small.named_modules()}
    assert kinds["features.3.1.one"] is kinds["features.4.two"] is kinds["features.3.1.skip"] is FullyConnected
    assert kinds["features.2.one"] is nn.Conv2d
    shuffled = change(build("residual"), "shuffle", 1).features[4].two
    assert isinstance(shuffled, ShuffleConv)
    assert isinstance(shuffled.shuffle, Shuffle)


def test_depthwise_convolutions_go_with_their_normalisation_and_activation():
    small = change(inverted(), "conv1x1", 1)
    assert [type(layer).__name__ for layer in small.features[4].body] == [
        "Conv2d", "BatchNorm2d", "ReLU6", "Identity", "Identity", "Identity", "Conv2d", "BatchNorm2d"]
    assert [type(layer).__name__ for layer in change(residual(), "conv1x1", 1).features[4].children()] == [
        "Conv2d", "BatchNorm2d", "Conv2d", "Identity"]


@pytest.mark.parametrize("method", ["conv1x1", "gap_fc"])
def test_they_go_in_either_order(method):
    """ConvMixer has the activation first."""
    mixer = nn.Sequential(nn.Conv2d(8, 8, 5, padding=2, groups=8), nn.GELU(), nn.BatchNorm2d(8), nn.Conv2d(8, 8, 1))
    small, _ = remove_spatial(Classifier(stem(8), mixer, channels=8), method, 1, image_size=16)
    mixed = small.features[1]
    assert [type(layer).__name__ for layer in (*mixed[0].modules(), mixed[1], mixed[2])][-3:] == ["Identity"] * 3
    assert not any(isinstance(layer, nn.GELU | nn.BatchNorm2d) for layer in mixed.modules())


# What is refused


@pytest.mark.parametrize(
    ("method", "k", "options", "message"),
    [
        ("blur", 1, {}, "method: found 'blur', expected one of shuffle, gap_fc, conv1x1, channel_shuffle, strip; "),
        ("conv1x", 1, {}, "did you mean 'conv1x1'"),
        ("baseline", 0, {}, "method: found 'baseline'"),
        ("conv1x1", 5, {}, "k: found 5, expected 0 to 4, the number of units; see the units with inspect"),
        ("conv1x1", -1, {}, "k: found -1, expected 0 to 4"),
        ("shuffle", None, {}, "k: found k=None, only=None, expected one of them; give k or only"),
        ("shuffle", 2, {"only": 1}, "k: found k=2, only=1"),
        ("shuffle", None, {"only": 0}, "only: found 0, expected a unit from 1 to 4"),
        ("shuffle", None, {"only": 5}, "only: found 5"),
        ("gap_fc", None, {"only": 2}, "only: found method gap_fc, expected shuffle, conv1x1 or channel_shuffle; use k"),
        ("strip", None, {"only": 2}, "only: found method strip"),
        ("conv1x1", 1, {"downsample": "median"}, "downsample: found 'median', expected one of avg, max, stride; "),
        ("conv1x1", 2, {"strip": 3}, "strip: found 3, expected at most k = 2 units of .*; raise k or lower strip"),
        ("conv1x1", 2, {"strip": -1}, "strip: found -1"),
        ("strip", 2, {"strip": 1}, "strip: found 1"),
        ("shuffle", 1, {"shuffle": ShuffleOptions(patch=5)}, "patch: found 5 on a map of 16x16, expected a divisor"),
        ("shuffle", 1, {"shuffle": ShuffleOptions(patch=16)}, "patch: found 16 on a map of 16x16, which is one patch"),
        ("channel_shuffle", 1, {"shuffle": ShuffleOptions(patch=2)}, "shuffle: found .*patch=2.*, expected no option"),
    ],
    ids=lambda value: str(value)[:30],
)
def test_refused(method, k, options, message):
    model = build("residual")
    state = copy.deepcopy(model.state_dict())
    with pytest.raises(InputError, match=message) as caught:
        remove_spatial(model, method, k, image_size=32, **options)
    assert caught.value.exit_status == 2
    assert isinstance(caught.value, SurgeryError) or caught.value.what in ("method", "downsample")
    assert all((caught.value.what, str(caught.value.found), str(caught.value.expected), caught.value.cure))
    assert same(model.state_dict(), state)


def test_both_k_and_only_if_they_agree():
    small, changes = remove_spatial(build("residual"), "conv1x1", 1, only=2, image_size=32)
    assert {each.unit for each in changes} == {2}
    assert math.prod(small.features[2].one.kernel_size) == 1
