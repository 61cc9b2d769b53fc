"""Weights that use positions without being a Conv2d, and what only looks like it."""

import pytest
import torch
from torch import nn
from torch.nn import functional

from networks import Classifier, ConvBlock, Gate, Scaled, images
from spaceless.errors import SurgeryError
from spaceless.surgery import remove_spatial


class Function(nn.Module):
    """A convolution that is no module: its kernel is a parameter, or a filter that nobody trains."""

    def __init__(self, *, trained):
        super().__init__()
        kernel = torch.rand(8, 1, 3, 3)
        if trained:
            self.kernel = nn.Parameter(kernel)
        else:
            self.register_buffer("kernel", kernel / kernel.sum((2, 3), keepdim=True))

    def forward(self, x):
        return functional.conv2d(functional.pad(x, (1, 1, 1, 1), mode="reflect"), self.kernel * 1, groups=8)


class Place(nn.Module):
    """An absolute embedding of places, in either layout of a map."""

    def __init__(self, *, last):
        super().__init__()
        self.embedding, self.last = nn.Parameter(torch.rand((16, 1, 8) if last else (8, 16, 1))), last

    def forward(self, x):
        if self.last:
            return (x.permute(0, 2, 3, 1) + self.embedding).permute(0, 3, 1, 2)
        return x + self.embedding


class Relative(nn.Module):
    """Attention with a relative embedding of places."""

    def __init__(self):
        super().__init__()
        self.embedding = nn.Parameter(torch.rand(8, 256))

    def forward(self, x):
        rows = x.flatten(2)
        return (rows @ (rows.transpose(1, 2) @ self.embedding).softmax(1)).view_as(x)


class Unfolded(nn.Module):
    def forward(self, x):
        return functional.fold(functional.unfold(x, 3, padding=1), (16, 16), 3, padding=1)


class Counted(nn.Module):
    """An encoding of places that is computed: counted positions through a layer, added to the map or to its rows."""

    def __init__(self, *, rows):
        super().__init__()
        self.project, self.rows = nn.Conv2d(1, 8, 1), rows

    def forward(self, x):
        places = torch.arange(16.0, device=x.device).view(1, 1, 1, 16) * torch.ones(1, 1, 16, 1, device=x.device)
        places = self.project(places)
        if self.rows:
            return (x.flatten(2) + places.flatten(2)).view_as(x)
        return x + places


class Strips(nn.Module):
    """Coordinate attention: each row and each column by itself."""

    def forward(self, x):
        return x * torch.sigmoid(x.mean(2, keepdim=True)) * torch.sigmoid(functional.adaptive_avg_pool2d(x, (None, 1)))


class Parts(nn.Module):
    """Parts of a map, each on its way, as in InceptionNeXt: what comes out of a split depends on the image."""

    def forward(self, x):
        one, other = torch.split(x, (4, 4), dim=1)
        return torch.cat([one.relu(), other], 1) + x


class Zeros(nn.Module):
    """The parameter-free shortcut of small ResNets: channels of zeros, and their sum with the map."""

    def forward(self, x):
        zeros = torch.zeros(1, 8, 16, 16, device=x.device)
        return (torch.cat([x, x + zeros], 1))[:, :8]


class ChannelAttention(nn.Module):
    """Efficient channel attention (Wang et al. 2020): a kernel over the channels of the pooled vector."""

    def __init__(self, *, vector):
        super().__init__()
        self.conv, self.vector = nn.Conv1d(1, 1, 3, padding=1), vector

    def forward(self, x):
        pooled = x.mean((2, 3)) if self.vector else x.mean((2, 3), keepdim=True)
        return x * torch.sigmoid(self.conv(pooled.view(x.shape[0], 1, -1))).view(x.size(0), -1, 1, 1)


class Rows(nn.Module):
    """A kernel over positions, one after the other."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv1d(8, 8, 3, padding=1)

    def forward(self, x):
        return self.conv(x.flatten(2)).view_as(x)


class LastScale(nn.Module):
    """A layer scale on a map (N, H, W, C)."""

    def __init__(self):
        super().__init__()
        self.scale = nn.Parameter(torch.ones(1, 1, 1, 8))

    def forward(self, x):
        return (x.permute(0, 2, 3, 1) * self.scale).permute(0, 3, 1, 2)


SIDES = "rows or columns pooled by themselves"
KERNEL, PLACES = "spatial weights that are no Conv2d", "weights that tell positions apart"
HIDDEN = {
    "function": (lambda: Function(trained=True), KERNEL), "unfold": (Unfolded, KERNEL),
    "rows": (Rows, KERNEL),
    "transposed": (lambda: nn.ConvTranspose2d(8, 8, 3, padding=1), KERNEL),
    "embedding": (lambda: Place(last=False), PLACES), "embedding, channels last": (lambda: Place(last=True), PLACES),
    "relative": (Relative, PLACES), "counted": (lambda: Counted(rows=False), PLACES),
    "counted, in rows": (lambda: Counted(rows=True), PLACES), "strips": (Strips, SIDES),
}


@pytest.mark.parametrize("method", ["shuffle", "gap_fc", "conv1x1"])
@pytest.mark.parametrize("which", HIDDEN)
def test_refused_by_name_behind_the_change_and_left_alone_in_front_of_it(which, method):
    make, found = HIDDEN[which]
    model = Classifier(ConvBlock(3, 8), ConvBlock(8, 8), make(), channels=8)
    with pytest.raises(SurgeryError, match=rf"features\.2(\.conv)?: found {found} \(.*\), expected .*; ") as caught:
        remove_spatial(model, method, 1, image_size=16)
    assert "change only units behind it" in str(caught.value)
    front = Classifier(ConvBlock(3, 8), make(), ConvBlock(8, 8), channels=8)
    small, changes = remove_spatial(front, method, 1, image_size=16)
    assert {change.unit for change in changes} == {2}
    assert small(images(2, 16)).shape == (2, 4)
    with pytest.raises(SurgeryError, match=rf"features\.1(\.conv)?: found {found}"):
        remove_spatial(front, method, 2, image_size=16)


@pytest.mark.parametrize("method", ["shuffle", "gap_fc", "conv1x1"])
@pytest.mark.parametrize("harmless", [
    lambda: Gate(8), lambda: Function(trained=False), LastScale, lambda: nn.PReLU(8), Parts,
    lambda: ChannelAttention(vector=True), lambda: ChannelAttention(vector=False)],
    ids=["gate", "filter", "layer scale", "PReLU", "parts", "channel attention of a vector", "of a pooled map"])
def test_what_treats_all_positions_alike_is_not_refused(harmless, method):
    model = Classifier(ConvBlock(3, 8), ConvBlock(8, 8), harmless(), channels=8)
    small, _ = remove_spatial(model, method, 1, image_size=16)
    assert small(images(2, 16)).shape == (2, 4)


@pytest.mark.parametrize("method", ["shuffle", "conv1x1"])
def test_zeros_tell_no_positions_apart(method):
    model = Classifier(ConvBlock(3, 8), ConvBlock(8, 8), Zeros(), channels=8)
    assert len(remove_spatial(model, method, 2, image_size=16)[1]) == 2


def test_a_layer_scale_within_the_unit():
    model = Classifier(ConvBlock(3, 8), Scaled(8), Scaled(8), channels=8)
    assert len({change.unit for change in remove_spatial(model, "conv1x1", 2, image_size=16)[1]}) == 2


@pytest.mark.parametrize("which", HIDDEN)
@pytest.mark.parametrize(("method", "options"), [
    ("strip", {"k": 1}), ("channel_shuffle", {"k": 1}), ("shuffle", {"only": 2}), ("conv1x1", {"only": 2})], ids=str)
def test_what_leaves_positions_behind_the_change_alone_is_not_refused(method, options, which):
    model = Classifier(ConvBlock(3, 8), ConvBlock(8, 8), HIDDEN[which][0](), channels=8)
    small, changes = remove_spatial(model, method, image_size=16, **options)
    assert {change.unit for change in changes} - {0} == {2}
    assert small(images(2, 16)).shape == (2, 4)


class Norm(nn.Module):
    """The layer normalisation of PyTorch's own example for images: a weight for every position."""

    def __init__(self, shape):
        super().__init__()
        self.norm = nn.LayerNorm(shape)

    def forward(self, x):
        return self.norm(x)


class Columns(nn.Module):
    """A linear layer over the columns of a map, or over all positions of a flattened one."""

    def __init__(self, *, flat):
        super().__init__()
        self.flat, self.linear = flat, nn.Linear(256 if flat else 16, 256 if flat else 16)

    def forward(self, x):
        return self.linear(x.flatten(2)).view_as(x) if self.flat else self.linear(x)


class Recurrent(nn.Module):
    def __init__(self):
        super().__init__()
        self.lstm = nn.LSTM(8, 8, batch_first=True)

    def forward(self, x):
        return self.lstm(x.flatten(2).transpose(1, 2))[0].transpose(1, 2).reshape(x.shape)


class Space(nn.Module):
    def __init__(self):
        super().__init__()
        self.fold, self.conv, self.back = nn.PixelUnshuffle(2), nn.Conv2d(32, 32, 1), nn.PixelShuffle(2)

    def forward(self, x):
        return self.back(self.conv(self.fold(x)))


class Rolled(nn.Module):
    def forward(self, x):
        return x + torch.roll(x, 1, 2)


@pytest.mark.parametrize("method", ["shuffle", "gap_fc", "conv1x1"])
@pytest.mark.parametrize("part", [Norm([8, 16, 16]), Columns(flat=False), Columns(flat=True), Recurrent(), Space(),
                                  Rolled()], ids=lambda part: type(part).__name__)
def test_modules_that_tell_positions_apart_are_refused_by_name(part, method):
    model = Classifier(ConvBlock(3, 8), ConvBlock(8, 8), part, channels=8)
    with pytest.raises(SurgeryError, match=r"weights that tell positions apart|spatial weights that are no Conv2d"):
        remove_spatial(model, method, 1, image_size=16)


@pytest.mark.parametrize("method", ["shuffle", "conv1x1"])
def test_a_linear_layer_over_channels_tells_no_position(method):
    class Last(nn.Module):
        def __init__(self):
            super().__init__()
            self.norm, self.linear = nn.LayerNorm(8), nn.Linear(8, 8)

        def forward(self, x):
            return x + self.linear(self.norm(x.permute(0, 2, 3, 1))).permute(0, 3, 1, 2)

    model = Classifier(ConvBlock(3, 8), ConvBlock(8, 8), Last(), channels=8)
    assert remove_spatial(model, method, 1, image_size=16)[0](images(size=16)).shape == (2, 4)
