"""What the measurements of speed are made on: networks by name and width, and images made by code."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn

from spaceless.data import Dataset
from spaceless.models import build_model, stem_is_unit
from spaceless.seeds import generator
from spaceless.surgery import remove_spatial
from spaceless.trial import RECIPES, Recipe

CLASSES, SIZE, BATCH = 100, 32, 128  # those of CIFAR-100 and of the paper's recipe
# No large steps on noise: a network that died would compute on other numbers than one that learns.
RECIPE = RECIPES["paper"].model_copy(update={"batch_size": BATCH, "learning_rate": 0.01})


class Network(NamedTuple):
    """A network of 100 classes by its name, its factor of channels and the side of its images in pixels."""

    model: str
    width: float = 1.0
    size: int = SIZE

    @property
    def label(self) -> str:
        """What tables call it."""
        return self.model + (f" x {self.width:g}" if self.width != 1 else "")

    def build(self, method: str = "shuffle", k: int = 0) -> nn.Module:
        """Return it with fresh weights and its last `k` units changed."""
        model = build_model(self.model, CLASSES, self.size, width=self.width)
        if not k:
            return model
        return remove_spatial(model, method, k, image_size=self.size, stem=stem_is_unit(self.model))[0]


VGG, QUARTER_VGG, RESNET = Network("vgg16"), Network("vgg16", 0.25), Network("resnet50")


def made_images(train: int, test: int = BATCH, *, size: int = SIZE, classes: int = CLASSES) -> Dataset:
    """Return images of noise around a colour that tells their class, so that a loss can fall on them."""
    colours = torch.randint(64, 192, (classes, 3, 1, 1), generator=generator(0, "bench colours"))

    def split(name: str, count: int) -> tuple[Tensor, Tensor]:
        source = generator(0, f"bench {name}")
        labels = torch.randint(0, classes, (count,), generator=source)
        noise = torch.randint(-64, 64, (count, 3, size, size), generator=source, dtype=torch.int16)
        return (noise + colours.to(torch.int16)[labels]).to(torch.uint8), labels

    names = tuple(map(str, range(classes)))
    return Dataset("made images", "made by code", "", *split("train", train), *split("test", test), names)


def for_steps(steps: int, recipe: Recipe = RECIPE, size: int = SIZE) -> tuple[Dataset, Recipe]:
    """Return made images and a recipe that come to `steps` whole steps."""
    return made_images(steps * recipe.batch_size, size=size), recipe.model_copy(update={"epochs": 1})
