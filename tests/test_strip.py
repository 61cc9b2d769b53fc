"""Stripping: units go with their normalisation, the head takes what is left, and what cannot be fitted is refused."""

import copy

import pytest
import torch
from torch import nn

from networks import SMALL, Classifier, ConvBlock, images, randomised, stem
from spaceless.cost import count_parameters
from spaceless.errors import SurgeryError
from spaceless.models import untrained
from spaceless.plan import Plan
from spaceless.strip import strip_units
from spaceless.surgery import remove_spatial
from spaceless.tracing import trace
from spaceless.trial import Change
from spaceless.units import units_of


def stripped(model, k, **options):
    return remove_spatial(model, "strip", k, image_size=32, **options)


def sums(*layers):
    """Parameters of convolutions (inputs, outputs, taps), each with a bias."""
    return sum(inputs * outputs * taps + outputs for inputs, outputs, taps in layers)


def block(inputs, outputs):
    """Parameters of `networks.Residual`, with the skip branch of a block that changes the channels."""
    skip = sums((inputs, outputs, 1)) if inputs != outputs else 0
    return sums((inputs, outputs, 9), (outputs, outputs, 9)) + 2 * outputs + skip


HEADS = [  # units that are left, channels that the linear layer gets, parameters in front of it
    (0, 3, 0), (1, 8, sums((3, 8, 9))), (2, 8, sums((3, 8, 9)) + block(8, 8)),
    (3, 16, sums((3, 8, 9)) + block(8, 8) + block(8, 16)),
]


@pytest.mark.parametrize(("left", "channels", "params"), HEADS, ids=[f"{left} left" for left, _, _ in HEADS])
def test_the_head_takes_what_is_left(left, channels, params):
    model = randomised(SMALL["residual"]())
    small, changes = stripped(model, 4 - left)
    assert small.head.weight.shape == (4, channels)
    assert count_parameters(small) == params + 4 * channels + 4
    assert torch.equal(small.head.weight, model.head.weight[:, :channels])  # column by column
    assert torch.equal(small.head.bias, model.head.bias)
    assert [type(m) for m in small.features if isinstance(m, nn.Identity)] == [nn.Identity] * (4 - left + (left == 0))
    assert {change.unit for change in changes} == {*range(left + 1, 5)} | ({0} if channels < 16 else set())
    x = images()
    before = x
    for layer in model.features[: left + (left > 0)]:
        before = layer(before)
    by_hand = before.mean((2, 3)) @ model.head.weight[:, :channels].T + model.head.bias
    assert torch.allclose(small(x), by_hand, atol=1e-6)


def test_what_is_recorded():
    _, changes = stripped(SMALL["residual"](), 2)
    assert changes == [
        Change(unit=3, path="features.3", before="Residual", after="nothing"),
        Change(unit=4, path="features.4", before="Residual", after="nothing"),
        Change(unit=0, path="head", before="Linear 16->4", after="Linear 8->4"),
    ]


def test_columns_are_repeated_where_the_head_gets_more():
    model = Classifier(stem(6), ConvBlock(6, 4), channels=4)
    small, _ = stripped(model, 1)
    assert torch.equal(small.head.weight, model.head.weight[:, [0, 1, 2, 3, 0, 1]])


def test_a_unit_of_one_convolution_goes_with_normalisation_and_activation_but_pooling_stays():
    with torch.device("meta"):
        model = Classifier(
            *[nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.MaxPool2d(2)],
            *[nn.Conv2d(8, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.MaxPool2d(2)], channels=8,
        )
    kinds = [type(layer) for layer in stripped(model, 1)[0].features]
    assert kinds == [nn.Conv2d, nn.BatchNorm2d, nn.ReLU, nn.MaxPool2d, *[nn.Identity] * 3, nn.MaxPool2d]


def test_normalisation_and_convolution_of_the_head_are_fitted():
    last = [nn.BatchNorm2d(16), nn.Conv2d(16, 12, 1, bias=False)]
    model = randomised(Classifier(*SMALL["residual"]().features, *last, channels=12)).double()
    random = torch.get_rng_state()
    small, changes = stripped(model, 2)
    assert torch.equal(torch.get_rng_state(), random)
    assert [change.path for change in changes if not change.unit] == ["features.5", "features.6"]
    assert (small.features[5].num_features, small.features[6].in_channels) == (8, 8)
    assert small.features[6].bias is None
    assert torch.equal(small.features[6].weight, model.features[6].weight[:, :8])
    assert {t.dtype for t in small.state_dict().values() if t.is_floating_point()} == {torch.float64}
    assert small(images().double()).shape == (2, 4)


@pytest.mark.parametrize(("method", "layer"), [("shuffle", "ShuffleConv"), ("conv1x1", "Sequential"),
                                               ("gap_fc", "FullyConnected"), ("channel_shuffle", "ShuffleConv")])
def test_strip_takes_the_last_of_the_changed_units(method, layer):
    small, changes = remove_spatial(SMALL["residual"](), method, 2, strip=1, image_size=32)
    inner = small.features[3][1] if method == "gap_fc" else small.features[3]
    assert type(inner.one).__name__ == layer
    assert isinstance(small.features[4], nn.Identity)
    assert {change.unit for change in changes if change.unit} == {3, 4}
    assert small(images()).shape == (2, 4)


@pytest.mark.parametrize("method", ["conv1x1", "gap_fc"])
def test_everything_changed_may_be_stripped(method):
    model = SMALL["residual"]().eval()
    small, _ = remove_spatial(model, method, 2, strip=2, image_size=32)
    assert torch.allclose(small(images()), stripped(model, 2)[0](images()), atol=1e-6)


@pytest.mark.parametrize("k", range(1, 7))
def test_vgg16_loses_its_last_convolutions(k):
    small, _ = stripped(untrained("vgg16", 100, 32), k)
    gone = 5 * [512 * 512 * 9 + 512 + 2 * 512] + [256 * 512 * 9 + 512 + 2 * 512 + (512 - 256) * 4096]
    assert count_parameters(small) == 34015396 - sum(gone[:k])


def test_resnet50_without_its_last_stage():
    small, changes = stripped(untrained("resnet50", 100, 32), 3, stem=False)
    assert small.fc.in_features == 1024
    stage = 1024 * 512 + 2048 * 512 * 2 + 512 * 2048 * 3 + 9 * 512**2 * 3 + 1024 * 2048 + 2 * (6 * 512 + 4 * 2048)
    assert count_parameters(small) == 23705252 - stage - 1024 * 100
    assert [change.path for change in changes] == ["layer4.0", "layer4.1", "layer4.2", "fc"]


@pytest.mark.parametrize(("name", "k"), [("resnet50", 16), ("mobilenet_v2", 17), ("squeezenet1_0", 8), ("vgg16", 13)])
def test_all_units_may_go(name, k):
    small, _ = remove_spatial(untrained(name, 10, 64), "strip", k, image_size=64, stem=name == "vgg16")
    assert small.eval()(torch.empty(1, 3, 64, 64, device="meta")).shape == (1, 10)


@pytest.mark.parametrize(
    ("name", "k", "message"),
    [
        # a list of maps goes through each dense layer; a LayerNorm has no channels that could be fitted
        ("torchvision:densenet121", 1, r"strip: found TypeError.*; strip fewer units"),
        ("torchvision:convnext_tiny", 4, r"strip: found RuntimeError.*normalized_shape"),
    ],
    ids=["densenet121", "convnext_tiny"],
)
def test_networks_that_cannot_be_stripped_are_refused(name, k, message):
    with pytest.raises(SurgeryError, match=message) as caught:
        remove_spatial(untrained(name, 10, 64), "strip", k, image_size=64)
    assert caught.value.exit_status == 2


class Narrowing(nn.Module):
    """Three units in a row; without the second, the third would get other channels."""

    def __init__(self):
        super().__init__()
        self.stem, self.side, self.last = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 16, 3, padding=1), nn.Conv2d(16, 8, 3)

    def forward(self, x):
        return self.last(self.side(self.stem(x))).mean((2, 3))


def test_a_unit_that_stays_is_never_refitted():
    traced = trace(Narrowing(), 16)
    units = units_of(traced)
    plan = Plan(copy.deepcopy(Narrowing()), traced, units, units)
    with pytest.raises(SurgeryError, match="strip: found last would get 8 channels, expected only the layers behind"):
        strip_units(plan, [units[1]], 16)
