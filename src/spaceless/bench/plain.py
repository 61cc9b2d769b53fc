"""The training loop that a user would write, as the tutorials have it: what ours is measured against.

Eager fp32, images from PIL through torchvision's transforms in two DataLoader workers, the default SGD, a look at the
loss in every step. Only the learning rate is the recipe's, so that both loops compute the same training.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from PIL import Image
from torch import Tensor, nn
from torch.utils.data import DataLoader
from torch.utils.data import Dataset as TorchDataset
from torchvision import transforms

from spaceless.data import Dataset
from spaceless.schedule import learning_rate
from spaceless.trial import Recipe

WORKERS = 2


class PlainImages(TorchDataset[tuple[Tensor, int]]):
    """Images kept as torchvision's CIFAR classes keep them, (N, H, W, 3) uint8, transformed one at a time."""

    def __init__(self, images: Tensor, labels: Tensor, transform: Callable[[Image.Image], Tensor]) -> None:
        """Take images (N, 3, H, W) uint8 and labels (N,)."""
        self.images, self.labels = images.permute(0, 2, 3, 1).contiguous().numpy(), labels.tolist()
        self.transform = transform

    def __len__(self) -> int:
        """Return the number of images."""
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        """Return image `index` as float32 (3, H, W), normalised, and its label."""
        return self.transform(Image.fromarray(self.images[index])), self.labels[index]


def training_images(data: Dataset, augment: bool = True) -> PlainImages:
    """Return the training images of `data`, each cropped and flipped at random if asked, then normalised."""
    crop_and_flip = [transforms.RandomCrop(data.image_size, padding=4), transforms.RandomHorizontalFlip()]
    return PlainImages(data.train_images, data.train_labels, _pipeline(data, crop_and_flip if augment else []))


def _pipeline(data: Dataset, augment: list[Any]) -> Any:
    return transforms.Compose([*augment, transforms.ToTensor(), transforms.Normalize(data.mean, data.std)])


def train_plainly(
    model: nn.Module, data: Dataset, recipe: Recipe, *, workers: int = WORKERS,
    enough: Callable[[int], bool] = lambda _: False,
) -> list[float]:
    """Train `model` in place and return the loss of every step; order and crops come from the global generator.

    Args:
        model: On the device to train on.
        data: In memory.
        recipe: SGD, with the augmentation `crop_flip` or `none`.
        workers: Processes that prepare images.
        enough: Asked after every step, with the number of steps done: whether to end here.

    """
    device = next(model.parameters()).device
    loader = DataLoader(
        training_images(data, recipe.augment == "crop_flip"), batch_size=recipe.batch_size, shuffle=True,
        num_workers=workers, pin_memory=device.type == "cuda",
    )
    criterion = nn.CrossEntropyLoss()
    optimizer = torch.optim.SGD(
        model.parameters(), lr=recipe.learning_rate, momentum=recipe.momentum, nesterov=recipe.nesterov,
        weight_decay=recipe.weight_decay,
    )
    losses: list[float] = []
    model.train()
    for _ in range(recipe.epochs):
        for images, labels in loader:
            for group in optimizer.param_groups:
                group["lr"] = learning_rate(recipe, len(losses) / (len(loader) * recipe.epochs))
            optimizer.zero_grad()
            loss = criterion(model(images.to(device)), labels.to(device))
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
            if enough(len(losses)):
                return losses
    return losses


def plain_accuracy(model: nn.Module, data: Dataset, batch_size: int = 256) -> float:
    """Return the top-1 accuracy of `model` on the test images of `data`, in percent, in fp32."""
    device = next(model.parameters()).device
    images = PlainImages(data.test_images, data.test_labels, _pipeline(data, []))
    correct = 0
    model.eval()
    with torch.no_grad():
        for batch, labels in DataLoader(images, batch_size=batch_size):
            correct += (model(batch.to(device)).argmax(1) == labels.to(device)).sum().item()
    return 100 * correct / len(images)
