"""One module under several names: a change reaches it under all of them, or is refused."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from networks import Classifier, ConvBlock, images, stem
from spaceless import profiling
from spaceless.errors import SurgeryError
from spaceless.surgery import remove_spatial, without_shuffle
from spaceless.units import find_units

SIZE = 16


class Body(nn.Module):
    """Layers that have names of their own, and are called through a sequence."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two = nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(4, 8, 3, padding=1)
        self.body = nn.Sequential(self.one, nn.ReLU(), self.two, nn.ReLU())
        self.head = nn.Linear(8, 4)

    def forward(self, x):
        return self.head(self.body(x).mean((2, 3)))


class Target(Body):
    """A second name beside the path by which a layer is called, as class activation maps want one."""

    def __init__(self) -> None:
        super().__init__()
        self.two = nn.Identity()
        self.target = self.body[2]


class Skipping(ConvBlock):
    def __init__(self, skip) -> None:
        super().__init__(8, 8, 2)
        self.skip = skip

    def forward(self, x):
        return super().forward(x) + self.skip(x)


@pytest.mark.parametrize("kind", [Body, Target])
@pytest.mark.parametrize("method", ["shuffle", "gap_fc", "conv1x1", "channel_shuffle"])
def test_a_change_reaches_a_module_under_all_its_names(kind, method):
    torch.manual_seed(0)
    model = kind().eval()
    changed, _ = remove_spatial(model, method, 1, image_size=SIZE)
    x = images(size=SIZE)
    with torch.no_grad():
        assert not torch.allclose(changed.eval()(x), model(x), atol=1e-4)
    if method in ("gap_fc", "conv1x1"):  # 3 x 4 x 9 + 4, 4 x 8 + 8, 8 x 4 + 4
        assert sum(p.numel() for p in changed.parameters()) == 112 + 40 + 36
        assert [m.kernel_size for m in changed.modules() if isinstance(m, nn.Conv2d)][:1] == [(3, 3)]
    if method == "shuffle":
        with torch.no_grad():
            assert torch.equal(without_shuffle(changed)(x), model(x))


def test_a_network_that_cannot_be_cut_is_repeated_with_the_shuffles_under_all_names():
    class Choosing(Body):
        def forward(self, x):
            assert float(x.detach().sum()) < 1e9
            return super().forward(x)

    torch.manual_seed(0)
    model = Choosing().eval()
    shuffled, _ = remove_spatial(model, "shuffle", 2, image_size=SIZE)
    cuts, whole = profiling._uncut(shuffled.eval(), find_units(model, SIZE))
    x = images(size=SIZE)
    with torch.no_grad():
        assert torch.equal(whole(x), model(x))
        assert not torch.allclose(cuts[1].alone(x), model(x), atol=1e-4)


def test_a_convolution_that_an_unchanged_unit_uses_too_is_refused():
    skip = nn.Conv2d(8, 8, 1, 2)
    model = Classifier(stem(8), Skipping(skip), Skipping(skip), channels=8)
    with pytest.raises(SurgeryError, match="layers in front of the changed units use too"):
        remove_spatial(model, "conv1x1", 1, image_size=SIZE)
    changed, _ = remove_spatial(model, "conv1x1", 2, image_size=SIZE)
    assert changed(images(size=SIZE)).shape == (2, 4)


@pytest.mark.parametrize("method", ["gap_fc", "conv1x1"])
def test_weights_that_two_changed_layers_share_stay_one(method):
    torch.manual_seed(0)
    model = Classifier(nn.Conv2d(3, 8, 3), *(nn.Conv2d(8, 8, 3, padding=1) for _ in range(2)), channels=8)
    model.features[2].weight, model.features[2].bias = model.features[1].weight, model.features[1].bias
    both, _ = remove_spatial(model, method, 2, image_size=SIZE)
    assert sum(p.numel() for p in model.parameters()) - sum(p.numel() for p in both.parameters()) == 64 * 8
    one, _ = remove_spatial(model, method, 1, image_size=SIZE)  # a kernel of 3x3 and one of 1x1 cannot be one
    assert sum(p.numel() for p in one.parameters()) - sum(p.numel() for p in model.parameters()) == 64 + 8
    with torch.no_grad():
        x = images(size=SIZE)
        apart = copy.deepcopy(model)
        apart.features[2] = copy.deepcopy(model.features[2])
        expected, _ = remove_spatial(apart, method, 2, image_size=SIZE)
        assert torch.equal(both(x), expected(x))
