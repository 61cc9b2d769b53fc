"""Small hand-written networks that several test files take apart: a user's own classes, known to nobody."""

import copy

import torch
from torch import nn


class ConvBlock(nn.Module):
    """One layer in a class of its own: convolution, normalisation, activation."""

    def __init__(self, inputs, outputs, stride=1):
        super().__init__()
        self.conv = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.norm = nn.BatchNorm2d(outputs)

    def forward(self, x):
        return torch.relu(self.norm(self.conv(x)))


class DoubleConv(nn.Module):
    def __init__(self, inputs, outputs):
        super().__init__()
        self.first, self.second = ConvBlock(inputs, outputs), ConvBlock(outputs, outputs)

    def forward(self, x):
        return self.second(self.first(x))


class Residual(nn.Module):
    def __init__(self, inputs, outputs, stride=1):
        super().__init__()
        self.one = nn.Conv2d(inputs, outputs, 3, stride, 1)
        self.norm = nn.BatchNorm2d(outputs)
        self.two = nn.Conv2d(outputs, outputs, 3, 1, 1)
        self.skip = nn.Conv2d(inputs, outputs, 1, stride) if stride > 1 or inputs != outputs else nn.Identity()

    def forward(self, x):
        return torch.relu(self.two(torch.relu(self.norm(self.one(x)))) + self.skip(x))


class Fire(nn.Module):
    def __init__(self, inputs, squeezed, expanded):
        super().__init__()
        self.squeeze = nn.Conv2d(inputs, squeezed, 1)
        self.left, self.right = nn.Conv2d(squeezed, expanded, 1), nn.Conv2d(squeezed, expanded, 3, padding=1)

    def forward(self, x):
        x = torch.relu(self.squeeze(x))
        return torch.relu(torch.cat([self.left(x), self.right(x)], 1))


class Inverted(nn.Module):
    def __init__(self, inputs, outputs, stride=1):
        super().__init__()
        wide = 2 * inputs
        self.body = nn.Sequential(
            nn.Conv2d(inputs, wide, 1, bias=False), nn.BatchNorm2d(wide), nn.ReLU6(),
            nn.Conv2d(wide, wide, 3, stride, 1, groups=wide, bias=False), nn.BatchNorm2d(wide), nn.ReLU6(),
            nn.Conv2d(wide, outputs, 1, bias=False), nn.BatchNorm2d(outputs),
        )
        self.add = stride == 1 and inputs == outputs

    def forward(self, x):
        return x + self.body(x) if self.add else self.body(x)


class Gate(nn.Module):
    """Squeeze and excitation: every position times a number computed from the whole map."""

    def __init__(self, channels):
        super().__init__()
        self.linear = nn.Conv2d(channels, channels, 1)

    def forward(self, x):
        return x * torch.sigmoid(self.linear(x.mean((2, 3), keepdim=True)))


class Scaled(nn.Module):
    """A parameter of its own in the forward pass, as ConvNeXt's layer scale."""

    def __init__(self, channels):
        super().__init__()
        self.conv, self.scale = nn.Conv2d(channels, channels, 3, padding=1), nn.Parameter(torch.ones(channels, 1, 1))

    def forward(self, x):
        return x + self.scale * self.conv(x)


class Classifier(nn.Module):
    """Any features, global average pooling, one linear layer. The head is registered first on purpose."""

    def __init__(self, *features, channels, classes=4):
        super().__init__()
        self.head = nn.Linear(channels, classes)
        self.features = nn.Sequential(*features)

    def forward(self, x):
        return self.head(self.features(x).mean((2, 3)))


class Flat(nn.Module):
    """A head that reads each of the 16 positions of the last map by itself."""

    def __init__(self, classes, size):
        super().__init__()
        self.one, self.two = nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(4, 4, 3, padding=1)
        self.pool, self.head = nn.MaxPool2d(size // 4), nn.Linear(64, classes)

    def forward(self, x):
        return self.head(torch.relu(self.two(self.pool(torch.relu(self.one(x))))).flatten(1))


FLAT = ("The head reads each of 16 positions of the last map by itself: 1x1 convolutions in front of it cannot take "
        "that information away.")


class Tied(nn.Module):
    """A convolution under two names, and another one with the same weight."""

    def __init__(self, classes):
        super().__init__()
        self.stem, self.one, self.other = (nn.Conv2d(i, 8, 3, padding=1) for i in (3, 8, 8))
        self.again, self.other.weight = self.one, self.one.weight
        self.norm, self.head = nn.BatchNorm2d(8), nn.Linear(8, classes)

    def forward(self, x):
        x = torch.relu(self.norm(self.stem(x)))
        for layer in (self.one, self.again, self.other):
            x = torch.relu(layer(x))
        return self.head(x.mean((2, 3)))


class StemLast(nn.Module):
    """Residual blocks that are registered in front of the stem that is executed before them."""

    def __init__(self, image_channels=3):
        super().__init__()
        self.blocks = nn.ModuleList([Residual(8, 8), Residual(8, 16, 2), Residual(16, 16)])
        self.stem = nn.Conv2d(image_channels, 8, 3, padding=1)
        self.pool, self.head = nn.AdaptiveAvgPool2d(1), nn.Linear(16, 4)

    def forward(self, x):
        x = torch.relu(self.stem(x))
        for block in self.blocks:
            x = block(x)
        return self.head(torch.flatten(self.pool(x), 1))


def stem(outputs, stride=1):
    return nn.Conv2d(3, outputs, 3, stride, 1)


def plain():
    first, last = (ConvBlock(3, 8), ConvBlock(8, 8)), (ConvBlock(8, 16), ConvBlock(16, 16))
    return Classifier(*first, nn.MaxPool2d(2), *last, channels=16)


def double():
    return Classifier(DoubleConv(3, 8), nn.MaxPool2d(2), DoubleConv(8, 16), DoubleConv(16, 16), channels=16)


def residual():
    return Classifier(stem(8), nn.ReLU(), Residual(8, 8), Residual(8, 16, 2), Residual(16, 16), channels=16)


def fire():
    return Classifier(stem(8, 2), nn.ReLU(), nn.MaxPool2d(3, 2), Fire(8, 4, 8), Fire(16, 4, 8), channels=16)


def inverted():
    return Classifier(stem(8, 2), nn.ReLU(), Inverted(8, 8), Inverted(8, 16, 2), Inverted(16, 16), channels=16)


SMALL = {"plain": plain, "double": double, "residual": residual, "fire": fire, "inverted": inverted}


def randomised(model, seed=0):
    """`model` in evaluation mode with normalisations that have seen data: any layer that is left out is noticed."""
    source = torch.Generator().manual_seed(seed)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            for tensor, low in ((module.weight, 0.5), (module.bias, -0.5), (module.running_mean, -0.5),
                                (module.running_var, 0.5)):
                tensor.data.copy_(torch.rand(tensor.shape, generator=source) + low)
    return model.eval()


def renamed(model):
    """A copy whose own classes are called otherwise, in a module that is called otherwise."""
    model, names = copy.deepcopy(model), {}
    for module in model.modules():
        kind = type(module)
        if not kind.__module__.startswith("torch.nn."):
            names.setdefault(kind, type(f"Q{len(names)}", (kind,), {"__module__": "elsewhere"}))
            module.__class__ = names[kind]
    return model


def images(batch=2, size=32, channels=3, seed=0):
    return torch.randn(batch, channels, size, size, generator=torch.Generator().manual_seed(seed))
