"""Maps (N, H, W, C): which nodes give them, how large they are, and what is pooled in front of changed units."""

import pytest
import torch
from torch import nn

from networks import images, randomised
from spaceless.surgery import remove_spatial
from spaceless.tracing import trace
from spaceless.units import find_units


class Last(nn.Module):
    """A block on maps (N, H, W, C), as MambaOut's and ConvNeXt's: a depth-wise convolution between linear layers."""

    def __init__(self, channels):
        super().__init__()
        self.norm, self.linear = nn.LayerNorm(channels), nn.Linear(channels, channels)
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x):
        y = self.norm(x).permute(0, 3, 1, 2)
        y = self.conv(y).permute((0, 2, 3, 1))
        return x + self.linear(y)


class LastNetwork(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem, self.head = nn.Conv2d(3, 8, 3, 2, 1), nn.Linear(8, 4)
        self.blocks = nn.ModuleList(Last(8) for _ in range(3))

    def forward(self, x):
        x = torch.permute(self.stem(x), (0, -2, -1, 1))
        for block in self.blocks:
            x = block(x)
        return self.head(x.mean((1, 2)))


def test_which_nodes_give_maps_with_their_channels_last():
    traced = trace(LastNetwork(), 24)
    inside = [(node.name, node in traced.channels_last) for node in traced.inside("blocks.0")]
    assert inside == [("blocks_0_norm", True), ("permute_1", False), ("blocks_0_conv", False), ("permute_2", True),
                      ("blocks_0_linear", True), ("add", True)]
    assert [unit.out_size for unit in find_units(LastNetwork(), 24)] == [(12, 12)] * 4
    assert not trace(nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU()), 8).channels_last


@pytest.mark.parametrize("k", [1, 2, 3, 4])
def test_gap_fc_pools_height_and_width_wherever_they_stand(k):
    model = randomised(LastNetwork())
    small, _ = remove_spatial(model, "gap_fc", k, image_size=12)
    x = images(2, 12)

    def layer(conv, x):
        return x @ conv.weight.sum((2, 3)).T + conv.bias

    if k == 4:
        x = layer(model.stem, x.mean((2, 3)))
    else:
        x = model.stem(x).permute(0, 2, 3, 1)
        for block in model.blocks[: 3 - k]:
            x = block(x)
        x = x.mean((1, 2))
    for block in model.blocks[max(0, 3 - k):]:
        x = x + block.linear(layer(block.conv, block.norm(x)))
    torch.testing.assert_close(small(images(2, 12)), model.head(x))
