"""Pooling inside units that keeps the size of its map: gone with conv1x1, shuffled with shuffle, or refused."""

import copy
import pickle

import pytest
import torch
from torch import nn
from torch.nn import functional

from networks import Classifier, images, randomised, stem
from spaceless.errors import SurgeryError
from spaceless.profiling import cut_at_units
from spaceless.receptive import unit_fields, usable_field
from spaceless.shuffle import shuffles
from spaceless.surgery import remove_spatial, without_shuffle
from spaceless.tracing import trace
from spaceless.units import find_units


class Branches(nn.Module):
    """An Inception block: a convolution, pooling by a module, pooling by functions, and all of them joined."""

    def __init__(self, inputs, channels=4):
        super().__init__()
        self.conv = nn.Conv2d(inputs, channels, 3, padding=1)
        self.branch = nn.Sequential(nn.MaxPool2d(3, 1, 1, ceil_mode=True), nn.Conv2d(inputs, channels, 1))
        self.after, self.last = nn.Conv2d(inputs, channels, 1), nn.Conv2d(inputs, channels, 1)

    def forward(self, x):
        mean = functional.avg_pool2d(x, 3, stride=1, padding=1, count_include_pad=False)
        most = functional.max_pool2d(x, kernel_size=(1, 3), stride=1, padding=(0, 1))
        return torch.cat([self.conv(x), self.branch(x), self.after(mean), self.last(most)], 1)


def inception():
    torch.manual_seed(0)
    model = Classifier(stem(4), Branches(4), nn.MaxPool2d(2), Branches(16), nn.AvgPool2d(3, 1, 1), channels=16)
    return randomised(model)


WITHIN = ["branch.0", "pooling", "pooling1"]


@pytest.mark.parametrize("method", ["conv1x1", "shuffle", "channel_shuffle"])
def test_what_is_changed_and_what_is_left(method):
    _, changes = remove_spatial(inception(), method, 2, image_size=8)
    after = {"conv1x1": "nothing", "shuffle": "Shuffle + {}"}
    expected = [
        (unit, f"features.{place}.{path}", kind, after[method].format(kind))
        for unit, place in ((2, 1), (3, 3)) for path, kind in zip(
            WITHIN, ("MaxPool2d", "AvgPool2d", "MaxPool2d"), strict=True)
    ] if method in after else []  # the order of channels says nothing of places
    found = [(each.unit, each.path, each.before, each.after) for each in changes if "Pool2d" in each.before]
    assert found == expected


def test_1x1_convolutions_alone_are_left_in_a_changed_unit():
    model = inception()
    small, _ = remove_spatial(model, "conv1x1", 1, image_size=8)
    last = model.features[3]
    x = images(2, 4, 16)
    by_hand = torch.cat([functional.conv2d(x, last.conv.weight.sum((2, 3), keepdim=True), last.conv.bias),
                         *(layer(x) for layer in (last.branch[1], last.after, last.last))], 1)
    torch.testing.assert_close(small.features[3](x), by_hand)
    assert isinstance(small.features[4], nn.AvgPool2d)  # between units it stays
    torch.testing.assert_close(copy.deepcopy(small)(images(2, 8)), small(images(2, 8)))
    assert usable_field(small, 8).size == 3 + 2 + 1 + 2 * 2  # two layers of 3x3, pooling of 2x2, pooling at the end


def test_a_shuffle_stands_in_front_of_the_pooling_and_layers_keep_their_numbers():
    model = inception()

    def numbers(k):
        small, _ = remove_spatial(model, "shuffle", k, image_size=8)
        return {path: module.shuffle.layer for path, module in small.named_modules() if hasattr(module, "shuffle")}

    order = [f"features.{place}.{path}" for place in (1, 3) for path in (WITHIN[1], WITHIN[2], WITHIN[0])]
    assert numbers(2) == {"features.1.conv": 1, "features.3.conv": 2} | {path: 3 + i for i, path in enumerate(order)}
    assert numbers(1) == {path: number for path, number in numbers(2).items() if path.startswith("features.3")}
    small, _ = remove_spatial(model, "shuffle", 1, image_size=8)
    x = images(1, 4, 16)
    moved = (small.features[3](x) != small.features[3](x)).flatten(2).any(2)
    assert moved.all()  # every channel of every branch is another one in another pass
    (entering,) = unit_fields(trace(model, 8), ["features.2"])
    assert usable_field(small, 8) == entering


def test_without_its_shuffles_the_network_is_itself_again_and_can_be_changed_anew():
    model = inception()
    small, _ = remove_spatial(model, "shuffle", 3, image_size=8)
    plain = without_shuffle(small)
    assert not list(shuffles(plain))
    assert torch.equal(plain(images(2, 8)), model(images(2, 8)))
    assert find_units(plain, 8) == find_units(model, 8)
    again, _ = remove_spatial(plain, "shuffle", 3, image_size=8)
    assert torch.equal(again.eval()(images(2, 8)), small.eval()(images(2, 8)))
    cuts, behind = cut_at_units(small, find_units(model, 8), 8)
    crossing = (images(2, 8),)
    for cut in cuts:
        crossing = cut.front(*crossing)
    assert torch.equal(behind(*crossing), model(images(2, 8)))


class Trained(Branches):
    def forward(self, x):
        y = functional.avg_pool2d(x, 3, 1, 1)
        return torch.cat([self.conv(x), self.after(y + 1 if self.training else y)], 1)


class Frozen(Branches):
    def forward(self, x):
        with torch.no_grad():
            y = functional.avg_pool2d(x, 3, 1, 1)
        return torch.cat([self.conv(x), self.after(y)], 1)


class Wide(Branches):
    def forward(self, x):
        with torch.autocast("cpu", enabled=False):
            y = functional.avg_pool2d(x, 3, 1, 1)
        return torch.cat([self.conv(x), self.after(y)], 1)


class Shared(Branches):
    def __init__(self, inputs, pool):
        super().__init__(inputs)
        self.pool = [pool]  # not registered here

    def forward(self, x):
        return torch.cat([self.conv(x), self.after(self.pool[0](x))], 1)


class Sharing(Classifier):
    def __init__(self):
        pool = nn.MaxPool2d(3, 1, 1)
        super().__init__(stem(4), Shared(4, pool), Shared(8, pool), channels=8)
        self.pool = pool


def two(kind):
    return Classifier(stem(4), kind(4), kind(8), channels=8)


@pytest.mark.parametrize("method", ["conv1x1", "shuffle"])
@pytest.mark.parametrize(("model", "message"), [
    (two(Trained), r"features.2: found pooling by a function in a .*\(InputError: Trained: .*; use nn.MaxPool2d or"),
    (two(Frozen), r"features.2: found pooling by a function in a .*changes modes"),
    (two(Wide), r"features.2: found pooling by a function in a .*changes modes"),
    (Sharing(), "pool: found pooling in features.2 by a module from outside"),
], ids=["another one in training", "without gradients", "without autocast", "shared"])
def test_pooling_that_cannot_be_taken_out_is_refused(model, message, method):
    with pytest.raises(SurgeryError, match=message):
        remove_spatial(model, method, 1, image_size=8)


def test_a_pickle_that_would_pool_by_functions_again_cannot_be_loaded():
    small, _ = remove_spatial(inception(), "conv1x1", 1, image_size=8)
    with pytest.raises(AttributeError, match="forward_by_modules"):
        pickle.loads(pickle.dumps(small))
