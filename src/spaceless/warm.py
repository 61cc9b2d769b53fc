"""Warm start: a network with 1x1 kernels begins from a trained one with spatial kernels, layer by layer."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from functools import partial

import torch
from safetensors import SafetensorError
from safetensors.torch import load as load_weights
from torch import Tensor, nn

from spaceless.counterparts import caught, counterpart, estimate_again, normalisations_behind
from spaceless.data import Images
from spaceless.data.augment import normalise
from spaceless.data.feed import training_batches
from spaceless.errors import InputError
from spaceless.models import build_model
from spaceless.reduction import NAMES, candidates, fit
from spaceless.store import WEIGHTS, Store
from spaceless.trial import Recipe, Start, Trial
from spaceless.units import is_spatial

_Pair = tuple[Tensor, Tensor]  # what enters a layer, and what the original puts out there
_Passes = Callable[[], Iterable[_Pair]]
_STATISTICS = 1024  # training images that the statistics of batch normalisation are estimated from again


def load_original(trial: Trial, store: Store, data: Images) -> nn.Module:
    """Return the trained network that `trial` starts from, in evaluation mode.

    Raises:
        InputError: `store` does not hold these weights, or they are not those of this network.

    """
    assert trial.start is not None
    path = store.root / trial.start.run / WEIGHTS
    cure = "train the network that this one starts from into the same --out, with its weights kept"
    if not path.is_file():
        raise InputError(str(path), found="no weights", expected=f"those that {trial.label} starts from", cure=cure)
    content = path.read_bytes()
    if (found := hashlib.sha256(content).hexdigest()) != trial.start.weights_sha256:
        raise InputError(str(path), found=f"SHA-256 {found}", expected=trial.start.weights_sha256, cure=cure)
    model = build_model(trial.model, data.classes, data.image_size, width=trial.width, seed=trial.seed)
    try:
        model.load_state_dict(load_weights(content))
    except (SafetensorError, RuntimeError, ValueError) as error:
        reason = f"{type(error).__name__}: {error}".splitlines()[0][:120]
        raise InputError(str(path), found=reason, expected=f"the weights of {trial.model}", cure=cure) from error
    return model.eval()


def warm_start(
    model: nn.Module, original: nn.Module, data: Images, recipe: Recipe, seed: int, start: Start,
) -> tuple[str, ...]:
    """Give the 1x1 kernels of `model` the values that reproduce `original` best, and return notes on what was done.

    Layer by layer in the order of execution, given the layers in front that have theirs already: the kernel is what
    `start.reduction` says, and a bias makes the means of its outputs those of the original layer's. Where the changed
    network has one position and the original many, the original's mean over positions is aimed at. Reductions are
    judged on images that the fit has not seen: on its own it can be exact and worthless. The error is the mean square
    of the difference of outputs, its mean per channel left out (a bias or the normalisation behind takes it away), as a
    share of the variance of the original's. After each layer the batch normalisations behind the first changed one take
    their statistics from the training images again.

    Args:
        model: `original` changed by `conv1x1` or `gap_fc`, with all other weights the original's; changed in place
            and left in evaluation mode.
        original: The trained network, in evaluation mode, on the same device.
        data: The images are the first that a training by `recipe` with `seed` would see.
        recipe: Of the training to come: its batches and augmentation.
        seed: Of the training to come.
        start: Which reduction, and on how many images.

    """
    device = next(iter(model.parameters())).device
    images = _first_images(data, recipe, seed, max(start.images, _STATISTICS), device)
    fitted, others = _split(images, start.images)
    model.eval()
    pairs = _changed(model, original, fitted[0])
    behind = normalisations_behind(model, [layer.place for layer in pairs], fitted[0])
    taken: Counter[str] = Counter()
    errors = []
    with torch.no_grad():
        for layer in pairs:
            passes = partial(_both, model, original, layer)
            name, error = layer.reduce(start, partial(passes, fitted), partial(passes, others))
            estimate_again(model, behind, images)
            taken[name] += 1
            errors.append(error)
    if not pairs:
        return ("Warm start: no spatial kernel had to be reduced.",)
    kinds = ", ".join(f"{NAMES[name]} in {count}" for name, count in taken.items())
    return (f"Warm start: of {len(pairs)} kernels {kinds}; error from {min(errors):.2f} to {max(errors):.2f} of the "
            f"variance of the original layers' outputs.",)


@dataclass(frozen=True)
class _Layer:
    """One reduced kernel: where it is, the module that has taken the original's place, and the original."""

    kernel: nn.Conv2d | nn.Linear
    place: nn.Module
    spatial: nn.Conv2d

    def reduce(self, start: Start, fitted: _Passes, others: _Passes) -> tuple[str, float]:
        """Choose and set the kernel and the bias; return the reduction's name and its error on the other images."""
        choices = candidates(self.spatial.weight, self.kernel.weight.shape)
        if start.reduction in ("best", "least_squares"):
            choices["least_squares"] = fit(self.kernel, self.place, fitted())
        if start.reduction != "best":
            choices = {start.reduction: choices[start.reduction]}
        sums = {name: _Sums() for name in choices}
        self._add(choices, sums, others())
        found = {name: each.result()[0] for name, each in sums.items()}
        best = min(found, key=lambda name: found[name])
        self._add({best: choices[best]}, sums, fitted())
        away = sums[best].result()[1]  # over all of the images
        if self.kernel.bias is not None:
            self.kernel.bias.sub_(away.to(self.kernel.bias.dtype))
        return best, found[best]

    def _add(self, choices: Mapping[str, Tensor], sums: Mapping[str, _Sums], pairs: Iterable[_Pair]) -> None:
        for x, target in pairs:
            for name, weight in choices.items():
                self.kernel.weight.copy_(weight)
                sums[name].add(self.place(x), target)


class _Sums:
    """The sums that the error of a layer's outputs follows from."""

    def __init__(self) -> None:
        self.parts: list[Tensor] = []

    def add(self, output: Tensor, target: Tensor) -> None:
        """Take in outputs and targets (N, C, H, W)."""
        away, target = (output - target).double(), target.double()
        self.parts.append(torch.stack([
            away.sum((0, 2, 3)), away.square().sum((0, 2, 3)), target.sum((0, 2, 3)), target.square().sum((0, 2, 3)),
            torch.full_like(away[0, :, 0, 0], len(away) * away[0, 0].numel()),
        ]))

    def result(self) -> tuple[float, Tensor]:
        """Return the error as a share of the targets' variance, and the mean of output minus target per channel."""
        away, away2, target, target2, count = torch.stack(self.parts).sum(0)
        left = (away2 - away**2 / count).sum()
        return float(left / (target2 - target**2 / count).sum().clamp(min=1e-30)), away / count


def _first_images(data: Images, recipe: Recipe, seed: int, wanted: int, device: torch.device) -> list[Tensor]:
    """Return batches of the first training images, normalised, `wanted` together or all there are in an epoch."""
    found: list[Tensor] = []
    one_epoch = recipe.model_copy(update={"epochs": 1})
    with closing(training_batches(data, one_epoch, seed, 0, device)) as batches:
        for images, _, _ in batches:
            found.append(normalise(images, data.mean, data.std))
            if sum(map(len, found)) >= wanted:
                break
    return found


def _split(batches: Sequence[Tensor], wanted: int) -> tuple[list[Tensor], list[Tensor]]:
    """Return the first `wanted` images, or all there are, in two parts: three quarters, and the rest."""
    wanted = min(wanted, sum(map(len, batches)))
    parts: tuple[list[Tensor], list[Tensor]] = [], []
    first = 0
    for batch in batches:
        cut = min(max(0, 3 * wanted // 4 - first), len(batch))
        for part, images in zip(parts, (batch[:cut], batch[cut:max(cut, wanted - first)]), strict=True):
            if len(images):
                part.append(images)
        first += len(batch)
    return parts


def _changed(model: nn.Module, original: nn.Module, images: Tensor) -> list[_Layer]:
    """Return the reduced kernels of `model` in the order in which the original executes them."""
    order: list[str] = []
    names = {module: path for path, module in original.named_modules()}
    spatial = [m for m in original.modules() if isinstance(m, nn.Conv2d) and is_spatial(m)]
    handles = [m.register_forward_pre_hook(lambda m, _: order.append(names[m])) for m in spatial]
    with torch.no_grad():
        original(images)
    for handle in handles:
        handle.remove()
    found = []
    for path in dict.fromkeys(order):
        was, place = original.get_submodule(path), counterpart(model, original, path)
        assert isinstance(was, nn.Conv2d)
        kernels = [m for m in place.modules() if isinstance(m, nn.Conv2d | nn.Linear)] if place is not None else []
        if len(kernels) == 1 and place is not None and not (
                isinstance(kernels[0], nn.Conv2d) and is_spatial(kernels[0])):
            found.append(_Layer(kernels[0], place, was))
    return found


def _both(
    model: nn.Module, original: nn.Module, layer: _Layer, batches: Sequence[Tensor],
) -> Iterator[_Pair]:
    """Yield what enters the changed layer (N, C, H, W), and what the original puts out there, for each batch."""
    for images in batches:
        x = caught(model, layer.place, images, entering=True)
        target = caught(original, layer.spatial, images, entering=False)
        with torch.no_grad():
            output = layer.place(x)
        yield x, target if target.shape == output.shape else target.mean((2, 3), keepdim=True)
