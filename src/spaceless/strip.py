"""Stripping: the last units are removed altogether and the head is fitted to the narrower map (section 4.4, Fig. 3)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from spaceless.errors import SurgeryError
from spaceless.plan import Plan, followers, learning_as
from spaceless.tracing import example_input, first_line
from spaceless.units import Unit


class _Mismatch(Exception):  # noqa: N818 (a message to ourselves)
    """A layer behind the stripped units was given `found` channels."""

    def __init__(self, path: str, found: int) -> None:
        super().__init__(path, found)
        self.path, self.found = path, found


def strip_units(plan: Plan, stripped: list[Unit], image_size: int) -> None:
    """Replace each unit in `stripped` by nothing, then let the layers of the head take what is left.

    A unit that is one convolution goes with its normalisation and activation. Pooling between units stays.

    Raises:
        SurgeryError: A layer in front of the head, or inside a unit that stays, no longer fits.

    """
    for unit in stripped:
        behind = followers(plan.traced, plan.traced.calls(unit.name)[0]) if unit.name in unit.convs else []
        plan.replace(unit.index, unit.name, nn.Identity())
        for path in behind:
            plan.replace(unit.index, path, nn.Identity())
    while stripped and (mismatch := _first_mismatch(plan.model, image_size)) is not None:
        if plan.unit_of(mismatch.path):
            raise SurgeryError(
                "strip", found=f"{mismatch.path} would get {mismatch.found} channels",
                expected="only the layers behind the last unit to change", cure="strip fewer units of this network",
            )
        plan.replace(0, mismatch.path, _fitted(plan.own(mismatch.path), mismatch.found))


def _channels(module: nn.Module) -> int | None:
    """Return how many channels `module` takes, or None when it takes any."""
    if isinstance(module, nn.Conv2d):
        return module.in_channels
    if isinstance(module, nn.Linear):
        return module.in_features
    return module.num_features if isinstance(module, nn.BatchNorm2d) else None


def _first_mismatch(model: nn.Module, image_size: int) -> _Mismatch | None:
    """Run `model` once and return the first layer that is given another number of channels than it takes."""
    handles = []
    for path, module in model.named_modules():
        wanted = _channels(module)
        if wanted is None:
            continue

        def look(module: nn.Module, inputs: tuple[Tensor, ...], path: str = path, wanted: int = wanted) -> None:
            found = inputs[0].shape[-1 if isinstance(module, nn.Linear) else 1]
            if found != wanted:
                raise _Mismatch(path, found)

        handles.append(module.register_forward_pre_hook(look))
    modes = {module: module.training for module in model.modules()}
    model.eval()
    try:
        with torch.no_grad():
            model(example_input(model, image_size))
    except _Mismatch as mismatch:
        return mismatch
    except Exception as error:  # the network's own code: two branches that no longer meet, say
        raise SurgeryError(
            "strip", found=first_line(error), expected="units that can be left out one after the other",
            cure="strip fewer units, or choose another method for this network",
        ) from error
    finally:
        for handle in handles:
            handle.remove()
        for module, mode in modes.items():
            module.training = mode
    return None


@torch.no_grad()
def _fitted(module: nn.Module, channels: int) -> nn.Module:
    """Return `module` for another number of input channels, its weights taken over column by column.

    Columns are repeated where more are needed: the spread of the initialisation stays what it was.
    """
    if isinstance(module, nn.BatchNorm2d):
        return learning_as(module, nn.BatchNorm2d(channels, module.eps, module.momentum).to(module.weight))
    columns = torch.arange(channels) % (_channels(module) or 1)
    assert isinstance(module.weight, Tensor)
    place = {"device": module.weight.device, "dtype": module.weight.dtype, "bias": module.bias is not None}
    new: nn.Conv2d | nn.Linear  # made without initialisation, which would use up random numbers for nothing
    if isinstance(module, nn.Linear):
        new = nn.utils.skip_init(nn.Linear, channels, module.out_features, **place)  # type: ignore[no-untyped-call]
    else:
        assert isinstance(module, nn.Conv2d)
        new = nn.utils.skip_init(  # type: ignore[no-untyped-call]
            nn.Conv2d, channels, module.out_channels, module.kernel_size, module.stride, module.padding,
            module.dilation, **place,
        )
    new.weight.copy_(module.weight[:, columns.to(module.weight.device)])
    if isinstance(module.bias, Tensor) and new.bias is not None:
        new.bias.copy_(module.bias)
    return learning_as(module, new)
