"""Units: how many, which, in which order, how large, on the paper's networks, hand-written ones and two libraries'."""

import copy

import pytest
import torch
from torch import nn

from networks import SMALL, Classifier, ConvBlock, Fire, Gate, Residual, StemLast, renamed, stem
from spaceless.errors import InputError
from spaceless.models import stem_is_unit, untrained
from spaceless.units import Unit, find_units, is_spatial


def names(units):
    return [unit.name for unit in units]


PAPER = [  # network, image, units, kind, first, last, its convolutions, sizes in and out of first and last
    ("vgg16", 32, 13, "Conv2d", "features.0", "features.40", "features.40", (32, 32), (2, 2)),
    ("resnet50", 32, 16, "Bottleneck", "layer1.0", "layer4.2", "layer4.2.conv2", (32, 32), (4, 4)),
    ("resnet50", 224, 16, "Bottleneck", "layer1.0", "layer4.2", "layer4.2.conv2", (56, 56), (7, 7)),
    ("resnet152", 224, 50, "Bottleneck", "layer1.0", "layer4.2", "layer4.2.conv2", (56, 56), (7, 7)),
    ("mobilenet_v2", 224, 17, "InvertedResidual", "features.1", "features.17", "features.17.conv.1.0",
     (112, 112), (7, 7)),
    ("squeezenet1_0", 224, 8, "Fire", "features.3", "features.12", "features.12.expand3x3", (54, 54), (13, 13)),
]


@pytest.mark.parametrize(
    ("name", "size", "count", "kind", "first", "last", "conv", "entering", "leaving"), PAPER,
    ids=[f"{case[0]}-{case[1]}" for case in PAPER],
)
def test_the_papers_networks(name, size, count, kind, first, last, conv, entering, leaving):
    units = find_units(untrained(name, 10, size), size, stem=stem_is_unit(name))
    assert [unit.index for unit in units] == list(range(1, count + 1))
    assert {unit.kind for unit in units} == {kind}
    assert (units[0].name, units[-1].name, units[-1].convs) == (first, last, (conv,))
    assert (units[0].in_size, units[-1].out_size) == (entering, leaving)


@pytest.mark.parametrize("name", ["resnet50", "mobilenet_v2", "squeezenet1_0"])
def test_the_stem_counts_unless_the_paper_leaves_it_out(name):
    model = untrained(name, 10, 224)
    with_stem, without = find_units(model), find_units(model, stem=False)
    assert names(with_stem)[1:] == names(without)
    assert with_stem[0].convs == (with_stem[0].name,)


LIBRARIES = [
    # stem, and the 6 + 12 + 24 + 16 dense layers; a dense layer holds one 3x3, the block around it many
    ("torchvision:densenet121", ["features.conv0"], "features.denseblock{}.denselayer{}", [6, 12, 24, 16], 59),
    # conv1, conv3 (conv2 is 1x1) and nine inception blocks
    ("torchvision:googlenet", ["conv1.conv", "conv3.conv"], "", [], 11),
    # the 4x4 stem, three 2x2 convolutions between the stages, and 3 + 3 + 9 + 3 blocks
    ("torchvision:convnext_tiny", ["features.0.0", "features.1.0"], "", [], 22),
    ("timm:convnext_tiny", ["stem.0", "stages.0.blocks.0"], "", [], 22),
    # the stem, the one depth-wise separable block (once, so its convolution counts itself), 15 inverted residuals
    ("timm:efficientnet_b0", ["conv_stem", "blocks.0.0.conv_dw", "blocks.1.0"], "", [], 17),
    # the same network with the library's own subclasses of Conv2d and BatchNorm2d
    ("timm:tf_efficientnet_b0", ["conv_stem", "blocks.0.0.conv_dw", "blocks.1.0"], "", [], 17),
]


@pytest.mark.parametrize(("name", "head", "pattern", "stages", "count"), LIBRARIES, ids=[c[0] for c in LIBRARIES])
def test_networks_of_two_libraries(name, head, pattern, stages, count):
    found = names(find_units(untrained(name, 10, 224)))
    assert found[: len(head)] == head
    assert len(found) == count
    blocks = [pattern.format(i, j) for i, many in enumerate(stages, 1) for j in range(1, many + 1)]
    assert not blocks or found[1:] == blocks


HAND_WRITTEN = {
    # One convolution with its normalisation and activation is a layer, not a block: each convolution counts itself.
    "plain": ["features.0.conv", "features.1.conv", "features.3.conv", "features.4.conv"],
    "double": ["features.0", "features.2", "features.3"],
    "residual": ["features.0", "features.2", "features.3", "features.4"],
    "fire": ["features.0", "features.3", "features.4"],
    "inverted": ["features.0", "features.2", "features.3", "features.4"],
}


@pytest.mark.parametrize("which", SMALL)
def test_hand_written_networks(which):
    model = SMALL[which]()
    assert names(find_units(model, 32)) == HAND_WRITTEN[which]
    assert names(find_units(model, 32, stem=False)) == [n for n in HAND_WRITTEN[which] if n != "features.0"
                                                        or which in ("plain", "double")]


def test_every_field_of_a_unit():
    third = find_units(SMALL["residual"](), 32)[2]
    params = (9 * 8 * 16 + 16) + 2 * 16 + (9 * 16 * 16 + 16) + (8 * 16 + 16)  # one, norm, two, skip
    assert third == Unit(
        3, "features.3", "Residual", ("features.3.one", "features.3.two"), (32, 32), (16, 16), params,
    )


def test_execution_order_not_the_order_of_registration():
    found = find_units(StemLast(), 32)
    assert names(found) == ["stem", "blocks.0", "blocks.1", "blocks.2"]


@pytest.mark.parametrize("which", SMALL)
def test_class_names_do_not_matter(which):
    model = SMALL[which]()
    strange = renamed(model)
    assert {type(m).__module__ for m in strange.modules()} == {"elsewhere"} | {
        type(m).__module__ for m in model.modules() if type(m).__module__.startswith("torch")}
    assert names(find_units(strange, 32)) == HAND_WRITTEN[which]


@pytest.mark.parametrize("name", ["resnet50", "mobilenet_v2", "squeezenet1_0"])
def test_class_names_do_not_matter_in_the_papers_networks(name):
    model = untrained(name, 10, 224)
    found, strange = find_units(model, stem=False), find_units(renamed(model), stem=False)
    assert names(found) == names(strange)
    assert {unit.kind for unit in strange}.isdisjoint(unit.kind for unit in found)


def test_a_block_within_one_that_always_holds_one_of_it_is_named_by_the_outer():
    class Wrapped(nn.Module):
        def __init__(self, channels):
            super().__init__()
            self.body, self.gate = Residual(channels, channels), Gate(channels)

        def forward(self, x):
            return self.gate(self.body(x))

    model = Classifier(stem(8), Wrapped(8), Wrapped(8), channels=8)
    assert names(find_units(model, 16)) == ["features.0", "features.1", "features.2"]


def test_a_stage_of_blocks_is_no_block_even_if_it_occurs_twice():
    class Stage(nn.Module):
        def __init__(self, channels):
            super().__init__()
            self.left, self.right = Residual(channels, channels), Residual(channels, channels)

        def forward(self, x):
            return self.right(self.left(x))

    model = Classifier(stem(8), Stage(8), Stage(8), channels=8)
    assert names(find_units(model, 16))[1:] == [f"features.{i}.{side}" for i in (1, 2) for side in ("left", "right")]


def test_a_block_that_occurs_once_is_taken_apart():
    model = Classifier(stem(8), Fire(8, 4, 8), channels=16)
    assert names(find_units(model, 16)) == ["features.0", "features.1.right"]


def test_a_convolution_that_is_called_twice_is_one_unit_and_an_unused_one_none():
    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.unused, self.conv = nn.Conv2d(3, 3, 3), nn.Conv2d(3, 3, 3, padding=1)

        def forward(self, x):
            return self.conv(self.conv(x)).mean((2, 3))

    assert names(find_units(Twice(), 16)) == ["conv"]


@pytest.mark.parametrize(
    ("module", "spatial"),
    [(nn.Conv2d(3, 4, 3), True), (nn.Conv2d(3, 4, (1, 7)), True), (nn.Conv2d(3, 4, 1, 2), False),
     (nn.Conv2d(4, 4, 2, groups=4), True), (nn.MaxPool2d(3), False), (nn.Linear(3, 4), False), (None, False)],
    ids=["3x3", "1x7", "1x1", "2x2 depth-wise", "pooling", "linear", "none"],
)
def test_what_is_spatial(module, spatial):
    assert is_spatial(module) is spatial


def test_the_network_is_left_as_it_was():
    model = SMALL["residual"]().train()
    before = copy.deepcopy(model.state_dict())
    find_units(model, 32)
    assert model.training
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


class Undecided(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 3, 3)

    def forward(self, x):
        return self.conv(x) if x.sum() > 0 else x


@pytest.mark.parametrize(
    ("model", "size", "message"),
    [
        (Classifier(nn.Conv2d(3, 8, 1), channels=8), 16, "no spatial convolution, expected .*; choose a network with"),
        (nn.Sequential(nn.Flatten(), nn.Linear(3, 4)), 1, "no spatial convolution"),
        (Undecided(), 16, "Undecided: found no spatial convolution"),  # for zeros it takes the other way
        (Classifier(nn.Conv2d(3, 8, 5), channels=8), 4, "an image of 4 pixels: found Runtime.*, expected .*; choose"),
        (Classifier(ConvBlock(3, 8), ConvBlock(9, 8), channels=8), 16, "Classifier on an image of 16 pixels: found R"),
    ],
    ids=["1x1 only", "no convolution", "control flow", "image too small", "channels that do not fit"],
)
def test_what_cannot_be_counted_is_refused(model, size, message):
    with pytest.raises(InputError, match=message) as caught:
        find_units(model, size)
    assert caught.value.exit_status == 2
    assert "\n" not in str(caught.value)
