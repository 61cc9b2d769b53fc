"""Derived against measured fields: networks of others, and that the comparison notices what is wrong."""

import pytest
import torch
from torch import nn

from networks import Classifier, Gate, Inverted, Residual, Scaled, stem
from spaceless import operations
from spaceless.models import stem_is_unit, untrained
from spaceless.reach import window
from spaceless.receptive_check import compare_fields
from spaceless.tracing import trace
from spaceless.units import units_of

NETWORKS = ["vgg16", "resnet50", "squeezenet1_0", "torchvision:shufflenet_v2_x1_0", "timm:resnetblur18",
            "timm:tf_mobilenetv3_small_minimal_100", "timm:resnest14d", "timm:darknet17", "timm:fasternet_t0",
            "timm:hrnet_w18_small"]


@pytest.mark.parametrize("name", NETWORKS)
def test_every_unit_of_real_networks_reads_what_is_derived(name):
    model = untrained(name, 10, 224)
    paths = [unit.name for unit in units_of(trace(model, 224), stem=stem_is_unit(name))]
    size, rows = compare_fields(model, paths)
    assert [row.name for row in rows] == paths
    assert [row for row in rows if not row.agrees] == []
    assert all(first > 0 and last < size - 1 for row in rows for first, last in row.measured)  # wider than the fields


def network():
    return Classifier(stem(8, 2), Residual(8, 8), Gate(8), Inverted(8, 8), Scaled(8), nn.MaxPool2d(3, 2), channels=8)


def test_intervals_by_hand():
    size, rows = compare_fields(network(), ["features.0", "features.5"], 64)
    assert size == 64
    stem_row, last = rows
    # the stem: position i reads 2i - 1 to 2i + 1; the middle of 32 positions is the 15th
    assert stem_row.measured == ((29, 31), (31, 33)) * 2
    # behind it four 3x3 kernels of stride 2, then a pooling of 3 with stride 2: 4i - 1 - 8, 23 wide
    assert last.position == (7, 7)
    assert last.measured == last.derived == ((19, 41), (23, 45)) * 2


def test_the_image_grows_until_the_field_fits():
    model = Classifier(stem(4, 2), *(nn.Conv2d(4, 4, 3, padding=8, dilation=8) for _ in range(4)), channels=4)
    size, (row,) = compare_fields(model, ["features.4"], 32)
    assert size == 160  # 3 + 4 * 2 * 8 * 2 = 131 pixels, and room
    assert row.agrees
    assert row.measured[0][1] - row.measured[0][0] + 1 == 131


def test_a_wrong_rule_is_noticed(monkeypatch):
    rule = operations.of_module

    def wrong(module, before, after):
        right = rule(module, before, after)
        return (window(3, 2, 1), right[1]) if isinstance(module, nn.MaxPool2d) else right

    monkeypatch.setattr(operations, "of_module", wrong)
    _, (fine, off) = compare_fields(network(), ["features.4", "features.5"], 64)
    assert fine.agrees
    assert not off.agrees
    assert off.derived[2:] == off.measured[2:]  # the columns are still right
    assert off.derived[0] == tuple(pixel - 2 for pixel in off.measured[0])


def test_what_is_unknown_or_no_map_does_not_agree():
    class Pair(nn.Module):
        def forward(self, x):
            return [x, x]

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.pair, self.last = nn.Conv2d(3, 2, 3), Pair(), nn.Conv2d(2, 2, 3)

        def forward(self, x):
            return self.last(torch.roll(self.pair(self.conv(x))[0], 1, 2))

    _, rows = compare_fields(Net(), ["conv", "last"], 32)
    assert [row.agrees for row in rows] == [True, False]
    assert rows[1].derived is None
    _, (row,) = compare_fields(Net(), ["pair"], 32)
    assert row.measured is None
    assert not row.agrees


def test_the_network_is_left_as_it_was():
    model = network().train()
    before = [parameter.clone() for parameter in model.parameters()]
    compare_fields(model, ["features.5"], 64)
    assert all(map(torch.equal, before, model.parameters()))
    assert all(module.training and not module._forward_hooks for module in model.modules())
