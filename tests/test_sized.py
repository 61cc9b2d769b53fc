"""Tracing with known sizes: networks that choose by the size of their maps, for any batch of images of that size."""

import pytest
import torch
from torch import fx, nn
from torch.nn import functional

from networks import images
from spaceless.errors import InputError
from spaceless.surgery import remove_spatial
from spaceless.tracing import trace, trace_graph


class BySize(nn.Module):
    """Padding that is computed, a choice by size, a loop over parts: nothing that plain tracing can follow."""

    def __init__(self):
        super().__init__()
        self.convs = nn.ModuleList(nn.Conv2d(3 if i == 0 else 4, 4, 3, 2) for i in range(3))
        self.small, self.large = nn.Conv2d(4, 4, 1), nn.Conv2d(4, 4, 3, padding=1)
        self.head = nn.Linear(4, 5)

    def forward(self, x):
        batch, _, height, width = x.shape
        for conv in self.convs:
            missing = max(0, 3 - x.shape[-1] % 2 - 1)
            x = conv(functional.pad(x, (0, missing, 0, missing)))
        x = (self.small if height < 32 else self.large)(x)
        assert x.ndim == 4 and x.dim() == 4 and x.dtype == torch.float32 and len(x.shape) == 4
        x = torch.cat([part.relu() for part in x.chunk(2, 1)], 1)
        if width % 2 == 0:
            x = x.view(batch, 4, -1).mean(-1)
        return self.head(x)


@pytest.mark.parametrize("size", [16, 48])
@pytest.mark.parametrize("batch", [1, 3])
def test_the_graph_computes_what_the_network_does_for_any_batch(size, batch):
    model = BySize().eval()
    with pytest.raises(InputError, match=r"tracing BySize: found .*; move the data-dependent"):
        trace_graph(model)
    whole = fx.GraphModule(model, trace_graph(model, size))
    x = images(batch, size)
    assert torch.equal(whole(x), model(x))


@pytest.mark.parametrize(("size", "chosen"), [(16, "small"), (48, "large")])
def test_the_choice_is_the_one_of_the_size(size, chosen):
    called = [node.target for node in trace(BySize(), size).nodes if node.op == "call_module"]
    assert called == ["convs.0", "convs.1", "convs.2", chosen, "head"]


@pytest.mark.parametrize("method", ["shuffle", "conv1x1", "gap_fc"])
def test_surgery(method):
    model = BySize()
    small, changes = remove_spatial(model, method, 2, image_size=48)
    assert {change.unit for change in changes} == {3, 4}
    assert small(images(2, 48)).shape == (2, 5)


class Constant(BySize):
    def forward(self, x):
        return super().forward(x + torch.tensor(1.0))


def test_constants_of_the_forward_pass_are_not_traced_away():
    assert not [n for n in trace(Constant(), 16).nodes if "constant" in str(n.target)]  # recorded instead
    with pytest.raises(InputError, match="tracing Constant"):
        trace_graph(Constant(), 16)
