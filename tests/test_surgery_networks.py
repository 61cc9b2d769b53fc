"""Surgery on the paper's five networks, whole: parameter counts by formula, every K, down-sampling, what is ignored."""

import pytest
import torch
from torch import nn

from networks import SMALL, images, randomised
from spaceless.cost import count_parameters
from spaceless.gap import FullyConnected
from spaceless.models import build_model, stem_is_unit, untrained
from spaceless.surgery import remove_spatial
from spaceless.trial import METHODS

# The counting formulas, a sum over layers: `taps` is 9 for a 3x3 convolution and 1 for what takes its place.


def vgg16(classes, size, k):
    widths = [3, 64, 64, 128, 128, 256, 256, 256, *[512] * 6]
    convs = sum(
        (9 if i < 13 - k else 1) * widths[i] * widths[i + 1] + widths[i + 1] + 2 * widths[i + 1] for i in range(13))
    return convs + (512 * 4096 + 4096) + (4096 * 4096 + 4096) + (4096 * classes + classes)


def resnet(stages):
    def count(classes, size, k):
        total = (9 if size < 128 else 49) * 3 * 64 + 2 * 64
        left, inputs = sum(stages) - k, 64
        for stage, many in enumerate(stages):
            inner = 64 * 2**stage
            for block in range(many):
                taps, left = (9 if left > 0 else 1), left - 1
                total += inputs * inner + 2 * inner + taps * inner**2 + 2 * inner + inner * 4 * inner + 8 * inner
                total += inputs * 4 * inner + 8 * inner if block == 0 else 0  # the skip branch of a stage's first block
                inputs = 4 * inner
        return total + 2048 * classes + classes

    return count


def mobilenet_v2(classes, size, k):
    total, inputs, left = 27 * 32 + 2 * 32, 32, 17 - k
    for expand, outputs, many in ((1, 16, 1), (6, 24, 2), (6, 32, 3), (6, 64, 4), (6, 96, 3), (6, 160, 3), (6, 320, 1)):
        for _ in range(many):
            wide = expand * inputs
            total += inputs * wide + 2 * wide if expand > 1 else 0
            total += 9 * wide + 2 * wide if left > 0 else 0  # the depth-wise convolution goes with its normalisation
            total += wide * outputs + 2 * outputs
            inputs, left = outputs, left - 1
    return total + 320 * 1280 + 2 * 1280 + 1280 * classes + classes


FIRES = [(96, 16, 64), (128, 16, 64), (128, 32, 128), (256, 32, 128), (256, 48, 192), (384, 48, 192), (384, 64, 256),
         (512, 64, 256)]


def squeezenet(classes, changed):
    total = 49 * 3 * 96 + 96 + 512 * classes + classes
    for i, (inputs, squeezed, out) in enumerate(FIRES):
        taps = 1 if i in changed else 9
        total += inputs * squeezed + squeezed + squeezed * out + out + taps * squeezed * out + out
    return total


FORMULAS = {
    "vgg16": vgg16, "resnet50": resnet((3, 4, 6, 3)), "resnet152": resnet((3, 8, 36, 3)), "mobilenet_v2": mobilenet_v2,
    "squeezenet1_0": lambda classes, size, k: squeezenet(classes, range(8 - k, 8)),
}
UNITS = {"vgg16": 13, "resnet50": 16, "resnet152": 50, "mobilenet_v2": 17, "squeezenet1_0": 8}
TABLE = [  # DESIGN section 1: millions to as many digits as are printed there, exact counts as whole numbers
    ("vgg16", 100, 32, 0, "34.02"), ("vgg16", 100, 32, 2, "29.82"), ("vgg16", 100, 32, 5, 23529636),
    ("resnet50", 100, 32, 0, "23.71"), ("resnet50", 100, 32, 2, "19.51"), ("resnet50", 100, 32, 5, "16.37"),
    ("resnet50", 100, 32, 9, 14268068),
    ("vgg16", 1000, 32, 0, "37.70"), ("vgg16", 1000, 224, 0, "37.70"), ("vgg16", 1000, 32, 1, "35.606"),
    ("vgg16", 1000, 32, 4, "29.31"), ("vgg16", 1000, 32, 7, "25.64"), ("vgg16", 1000, 32, 2, "33.508"),
    ("resnet50", 1000, 32, 0, "25.55"), ("resnet50", 1000, 32, 1, "23.45"), ("resnet50", 1000, 32, 3, "19.26"),
    ("resnet50", 1000, 32, 6, "17.685"), ("resnet50", 1000, 224, 0, 25557032), ("resnet50", 1000, 224, 5, "18.22"),
    ("resnet152", 1000, 224, 0, "60.19"), ("resnet152", 1000, 224, 19, 45512744),
    ("mobilenet_v2", 1000, 224, 0, "3.50"), ("mobilenet_v2", 1000, 224, 2, "3.48"),
    ("squeezenet1_0", 1000, 224, 0, "1.25"), ("squeezenet1_0", 1000, 224, 2, "0.986"),
]


@pytest.fixture
def shapes_only(monkeypatch):
    """On the meta device normalisation takes half of the time, and never changes a shape."""
    monkeypatch.setattr(nn.functional, "batch_norm", lambda x, *_, **__: x)


@pytest.mark.usefixtures("shapes_only")
@pytest.mark.parametrize(("name", "classes", "size", "k", "printed"), TABLE, ids=[
    f"{name}-{classes}-{size}-K{k}" for name, classes, size, k, _ in TABLE])
def test_parameter_counts_of_the_paper(name, classes, size, k, printed):
    by_formula = FORMULAS[name](classes, size, k)
    model = untrained(name, classes, size)
    for method in ("conv1x1", "gap_fc"):
        small, _ = remove_spatial(model, method, k, image_size=size, stem=stem_is_unit(name))
        assert count_parameters(small) == by_formula
    digits = len(printed.split(".")[1]) if isinstance(printed, str) else 0
    assert (f"{by_formula / 1e6:.{digits}f}" if digits else by_formula) == printed


def test_the_papers_squeezenet_count_is_that_of_the_first_two_fire_modules():
    assert squeezenet(1000, {0, 1}) == 1232040
    assert squeezenet(1000, {6, 7}) == 986280


def _ks(name: str, many: int) -> list[int]:
    """Every K of the chains; of the networks of blocks, which are slow, those around the bounds of their stages."""
    if name in ("vgg16", "squeezenet1_0"):
        return list(range(many + 1))
    return [7, 40] if many == 50 else sorted({0, 3, 7, 13, many})


EVERY_K = [(name, k) for name, many in UNITS.items() for k in _ks(name, many)]


@pytest.fixture(scope="module")
def network():
    """Each network once, on the meta device: surgery leaves the original as it was."""
    built = {}
    return lambda name: built.setdefault(name, untrained(name, 10, 64))


@pytest.mark.usefixtures("shapes_only")
@pytest.mark.parametrize(("name", "k"), EVERY_K, ids=[f"{name}-K{k}" for name, k in EVERY_K])
def test_exactly_k_units_change_with_every_method(name, k, network):
    counts = {}
    every = name in ("vgg16", "squeezenet1_0") or (k == 7 and name != "resnet152")  # else those that are counted
    for method in METHODS if every else ("gap_fc", "conv1x1"):
        small, changes = remove_spatial(network(name), method, k, image_size=64, stem=stem_is_unit(name))
        assert {change.unit for change in changes if change.unit} == set(range(UNITS[name] - k + 1, UNITS[name] + 1))
        counts[method] = count_parameters(small)
    assert counts["gap_fc"] == counts["conv1x1"] == FORMULAS[name](10, 64, k)
    spatial = [m for m in small.modules() if isinstance(m, nn.Conv2d) and m.kernel_size != (1, 1)]
    assert len(spatial) == UNITS[name] - k + (not stem_is_unit(name))
    if every:
        assert counts["shuffle"] == counts["channel_shuffle"] == FORMULAS[name](10, 64, 0)


@pytest.mark.parametrize("only", [1, 6, 13])
@pytest.mark.parametrize("method", ["shuffle", "conv1x1", "channel_shuffle"])
def test_one_unit_alone(method, only, network):
    small, changes = remove_spatial(network("vgg16"), method, only=only, image_size=64)
    assert [change.unit for change in changes] == [only]
    others = [m for m in small.features if isinstance(m, nn.Conv2d) and m.kernel_size == (3, 3)]
    assert len(others) == 12


def shapes_behind(model, modules, size=64):
    found = {}
    hooks = [
        model.get_submodule(name).register_forward_hook(
            lambda _module, _inputs, output, name=name: found.update({name: tuple(output.shape[2:])}))
        for name in modules
    ]
    model.eval()(torch.empty(1, 3, size, size, device="meta"))
    for hook in hooks:
        hook.remove()
    return found


STAGES = {
    "resnet50": [f"layer{i}.0" for i in (2, 3, 4)], "mobilenet_v2": [f"features.{i}" for i in (2, 4, 7, 14)],
    "squeezenet1_0": ["features.3", "features.7", "features.12"], "vgg16": ["features.33", "features.43"],
}


@pytest.mark.parametrize("name", STAGES)
@pytest.mark.parametrize("size", [64, 75], ids=["even", "odd"])
@pytest.mark.parametrize("downsample", ["avg", "max", "stride"])
def test_maps_keep_their_sizes_whatever_takes_the_place_of_a_stride(name, size, downsample, network):
    model = network(name)
    small, _ = remove_spatial(
        model, "conv1x1", UNITS[name], image_size=size, downsample=downsample, stem=stem_is_unit(name))
    assert shapes_behind(small, STAGES[name], size) == shapes_behind(model, STAGES[name], size)


@pytest.mark.parametrize("downsample", ["avg", "max", "stride"])
def test_downsampling_by_hand_in_the_main_and_in_the_skip_branch(downsample):
    model = randomised(SMALL["residual"]())
    small, _ = remove_spatial(model, "conv1x1", 2, image_size=16, downsample=downsample)
    block, x = model.features[3], images(2, 16, 8)

    def reduced(x, kernel, bias):
        x = torch.einsum("oi,nihw->nohw", kernel, x) + bias[:, None, None]
        windows = x.unfold(2, 2, 2).unfold(3, 2, 2).flatten(4)  # (N, C, H/2, W/2, 4)
        return {"avg": windows.mean(4), "max": windows.amax(4), "stride": windows[..., 0]}[downsample]

    main = torch.relu(block.norm(reduced(x, block.one.weight.sum((2, 3)), block.one.bias)))
    main = torch.einsum("oi,nihw->nohw", block.two.weight.sum((2, 3)), main) + block.two.bias[:, None, None]
    by_hand = torch.relu(main + reduced(x, block.skip.weight[:, :, 0, 0], block.skip.bias))
    assert torch.allclose(small.features[3](x), by_hand, atol=1e-5)


@pytest.mark.parametrize("downsample", ["avg", "max", "stride"])
@pytest.mark.parametrize("groups", [1, 3], ids=["full", "depth-wise"])
def test_strides_that_differ_between_height_and_width(downsample, groups):
    model = nn.Sequential(nn.Conv2d(3, 3, 3, (1, 2), 1, groups=groups), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    small, _ = remove_spatial(model, "conv1x1", 1, image_size=8, downsample=downsample)
    assert small[0](torch.ones(1, 3, 8, 8)).shape == (1, 3, 8, 4)


def permuted(x, shared):
    """Maps with their positions permuted, all channels alike or each on its own."""
    source = torch.Generator().manual_seed(1)
    rows = x.shape[1] if not shared else 1
    order = torch.stack([torch.randperm(x[0, 0].numel(), generator=source) for _ in range(rows)])
    return x.flatten(2).gather(2, order.expand(len(x), x.shape[1], -1)).view_as(x)


REDUCED = {  # K, the first of the modified units, behind the last spatial pooling, and an image size
    "chain:16-M-24-24": (2, "features.4", 16), "resnet50": (2, "layer4.1", 32), "mobilenet_v2": (3, "features.15", 64),
    "squeezenet1_0": (1, "features.12", 64),
}


@pytest.mark.parametrize("name", REDUCED)
@pytest.mark.parametrize("method", ["baseline", "gap_fc", "conv1x1"])
def test_where_positions_stop_to_matter(method, name):
    k, path, size = REDUCED[name]
    model = randomised(build_model(name, 4, size, width=0.125))
    small = model if method == "baseline" else remove_spatial(
        model, method, k, image_size=size, stem=stem_is_unit(name))[0]
    moving = []
    small.get_submodule(path).register_forward_pre_hook(
        lambda _module, inputs: (permuted(inputs[0], shared=method == "conv1x1"),) if moving else None)
    with torch.no_grad():
        before = small(images(2, size))
        moving.append(True)
        after = small(images(2, size))
    assert torch.allclose(before, after, atol=1e-4 * float(before.abs().max())) is (method != "baseline")


def test_mobilenet_loses_depthwise_convolutions_with_normalisation_and_activation(network):
    small, _ = remove_spatial(network("mobilenet_v2"), "conv1x1", 1, image_size=64, stem=False)
    layers = [type(m) for m in small.features[17].conv.modules() if not list(m.children())]
    assert layers == [nn.Conv2d, nn.BatchNorm2d, nn.ReLU6, *[nn.Identity] * 3, nn.Conv2d, nn.BatchNorm2d]


def test_gap_fc_leaves_no_convolution_and_no_spatial_pooling_behind(network):
    small, _ = remove_spatial(network("resnet50"), "gap_fc", 7, image_size=64, stem=False)
    behind = [*small.layer3[2].modules(), *[m for i in (3, 4, 5) for m in small.layer3[i].modules()],
              *small.layer4.modules(), small.avgpool]
    assert not any(isinstance(m, nn.Conv2d | nn.AdaptiveAvgPool2d | nn.MaxPool2d) for m in behind)
    assert sum(isinstance(m, FullyConnected) for m in behind) == 22  # seven blocks of three, and one skip branch
    assert shapes_behind(small, ["layer3.1", "layer3.2", "layer4.0"]) == {
        "layer3.1": (16, 16), "layer3.2": (1, 1), "layer4.0": (1, 1)}


def test_the_librarys_own_normalisation_goes_with_the_depthwise_convolution():
    ours, theirs = (remove_spatial(untrained(name, 1000, 64), "conv1x1", 2, image_size=64)[0]
                    for name in ("mobilenet_v2", "timm:mobilenetv2_100"))
    assert count_parameters(ours) == count_parameters(theirs) == mobilenet_v2(1000, 224, 2)
