"""The recorded graph of one pass: it is the symbolic one where there is one, and it is there where there is none."""

import operator

import pytest
import torch
from torch import nn
from torch.nn import functional

from networks import SMALL, Gate, images
from spaceless.receptive import receptive_fields
from spaceless.recording import record
from spaceless.surgery import remove_spatial
from spaceless.tracing import Trace, _Tracer, trace
from spaceless.units import find_units, units_of


def recorded(model, size):
    model = model.eval()
    graph, shapes = record(model, torch.zeros(1, 3, size, size), _Tracer().is_leaf_module)
    return Trace(model, tuple(graph.nodes), shapes)


@pytest.mark.parametrize("which", SMALL)
def test_a_recorded_network_is_the_traced_one(which):
    model = SMALL[which]()
    one, other = trace(model, 32), recorded(model, 32)
    calls = [[(n.target, one_of.shapes[n]) for n in one_of.nodes if n.op == "call_module"] for one_of in (one, other)]
    assert calls[0] == calls[1]
    assert units_of(one) == units_of(other)
    fields = [[receptive_fields(each)[n] for n in each.nodes if n.op == "call_module"] for each in (one, other)]
    assert fields[0] == fields[1]


class Between(nn.Module):
    """Functions, methods, parts of tuples, changes in place and parameters between the layers."""

    def __init__(self):
        super().__init__()
        self.conv, self.gate, self.scale = nn.Conv2d(3, 4, 3), Gate(4), nn.Parameter(torch.ones(4, 1, 1))

    def forward(self, x):
        x = self.gate(self.conv(x)) * self.scale
        left, right = x.chunk(2, 1)
        left += functional.relu(right)
        right[:, 0] = left[:, 1]
        return torch.cat([left, right], 1).flatten(1)


def test_what_is_computed_between_modules():
    traced = recorded(Between(), 8)
    names = [n.target if isinstance(n.target, str) else n.target.__name__ for n in traced.nodes]
    assert names == [
        "x", "conv", "mean", "gate.linear", "sigmoid", "mul", "scale", "mul", "chunk", "getitem", "getitem", "relu",
        "add_", "getitem", "setitem", "cat", "flatten", "output"]
    nodes = dict(zip(names, traced.nodes, strict=True))
    assert nodes["cat"].args[0] == (nodes["add_"], nodes["setitem"])  # what was changed in place is what is read
    assert nodes["setitem"].target is operator.setitem
    assert traced.shapes[nodes["cat"]] == (1, 4, 6, 6)
    assert [n.target for n in traced.inside("gate") if n.op == "call_module"] == ["gate.linear"]
    assert len(traced.inside("gate")) == 4


class ByValue(nn.Module):
    def __init__(self):
        super().__init__()
        self.one, self.two = nn.Conv2d(3, 3, 3, padding=1), nn.Conv2d(3, 4, 3, padding=1)

    def forward(self, x):
        x = self.one(x)
        if x.abs().sum() >= 0:  # no tracer can know
            x = self.two(x)
        return x.mean((2, 3))


@pytest.mark.parametrize("method", ["shuffle", "conv1x1", "gap_fc"])
def test_a_network_that_chooses_by_values(method):
    model = ByValue()
    assert [unit.name for unit in find_units(model, 8)] == ["one", "two"]
    small, changes = remove_spatial(model, method, 1, image_size=8)
    assert {change.unit for change in changes} == {2}
    assert small(images(2, 8)).shape == (2, 4)


def test_the_hooks_are_gone_afterwards_even_after_an_error():
    model = SMALL["plain"]()
    recorded(model, 32)
    with pytest.raises(RuntimeError):
        record(model, torch.zeros(1, 5, 32, 32), _Tracer().is_leaf_module)
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())
