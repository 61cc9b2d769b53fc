"""Two networks side by side: which module stands where another stood, what enters and leaves it, what follows it."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from spaceless.models import GlobalAveragePool

Normalisation = nn.modules.batchnorm._BatchNorm


def counterpart(model: nn.Module, original: nn.Module, path: str) -> nn.Module | None:
    """Return what stands in `model` in the place of the original's `path`, whatever was put in front; None if gone."""
    here, there = model, original
    for part in path.split("."):
        if isinstance(here, nn.Sequential) and len(here) == 2 and isinstance(here[0], GlobalAveragePool) and type(
                there) is not nn.Sequential:
            here = here[1]  # pooling in front of the first changed unit
        if part not in dict(here.named_children()):
            return None
        here, there = here.get_submodule(part), there.get_submodule(part)
    return here


class _ReachedError(Exception):
    """The layer that was waited for has been executed: the rest of the pass is not needed."""


def caught(model: nn.Module, module: nn.Module, images: Tensor, *, entering: bool) -> Tensor:
    """Return what enters or leaves `module` in a pass of `images` through `model`."""
    box: list[Tensor] = []

    def catch(_module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor | None = None) -> None:
        box.append((inputs[0] if output is None else output).clone())
        raise _ReachedError

    handle = module.register_forward_pre_hook(catch) if entering else module.register_forward_hook(catch)
    try:
        model(images)
    except _ReachedError:
        pass
    finally:
        handle.remove()
    return box[0]


def normalisations_behind(
    model: nn.Module, changed: Sequence[nn.Module], images: Tensor,
) -> list[Normalisation]:
    """Return the batch normalisations that are executed behind the first of the `changed` modules."""
    order: list[nn.Module] = []
    watched = [*changed, *(m for m in model.modules() if isinstance(m, Normalisation) and m.running_mean is not None)]
    handles = [m.register_forward_pre_hook(lambda m, _: order.append(m)) for m in watched]
    with torch.no_grad():
        model(images)
    for handle in handles:
        handle.remove()
    first = min((order.index(m) for m in changed), default=len(order))
    return [m for m in dict.fromkeys(order[first:]) if isinstance(m, Normalisation) and m not in order[:first]]


def estimate_again(model: nn.Module, normalisations: Sequence[Normalisation], batches: Sequence[Tensor]) -> None:
    """Make the running statistics of `normalisations` the means of those of `batches`."""
    momenta = [each.momentum for each in normalisations]
    for each in normalisations:
        each.reset_running_stats()
        each.momentum = None  # the plain mean over all batches
        each.train()
    for images in batches:
        model(images)
    for each, momentum in zip(normalisations, momenta, strict=True):
        each.momentum = momentum
        each.eval()
