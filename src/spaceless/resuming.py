"""What a training goes on from: a stored state, compared with its network and optimiser before either is touched."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from spaceless.data.broken import Broken
from spaceless.trial import Epoch

_SCALAR = torch.empty(())  # what AdamW counts its steps in


@dataclass(frozen=True)
class Resumed:
    """A training after `step` steps; every tensor is of the shape and type that its network and optimiser have.

    `moments` are the optimiser's tensors by the number of their parameter, `sums` are loss, correct answers and images
    of the epoch so far (float64), `spent` the seconds that it took.
    """

    model: Mapping[str, Tensor]
    moments: Mapping[int, Mapping[str, Tensor]]
    step: int
    spent: float
    sums: Tensor
    history: tuple[Epoch, ...]
    broken: tuple[Broken, ...]

    def put_into(self, model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
        """Give `model` and `optimizer`, those that the state was compared with, its values."""
        model.load_state_dict(dict(self.model))
        parameters = _parameters(optimizer)
        state = {
            number: {
                # Laid out in memory as the parameter is: a fused step goes through both from the first to the last.
                name: tensor if name == "step" else torch.empty_like(parameters[number]).copy_(tensor)
                for name, tensor in moments.items()
            }
            for number, moments in self.moments.items()
        }
        optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})


def resumed(
    state: Mapping[str, Any], model: nn.Module, optimizer: torch.optim.Optimizer, last: int,
) -> Resumed:
    """Return a stored `state` of the training of `model` by `optimizer` over `last` steps; both are left as they are.

    Raises:
        LookupError, TypeError, ValueError: It is not one: a name, shape, type or number is not what it has to be.

    """
    _same("model", state["model"], model.state_dict())
    saved, own = state["optimizer"], optimizer.state_dict()
    for before, now in zip(saved["param_groups"], own["param_groups"], strict=True):
        # The rate is set anew before every step; a step that can be recorded for a GPU computes the same.
        for name in sorted((before.keys() & now.keys()) - {"lr", "capturable"}):
            wanted = list(now[name]) if isinstance(now[name], tuple) else now[name]
            if before[name] != wanted:
                raise ValueError(f"found {name} {before[name]} in the optimizer, expected {wanted}")
    parameters = _parameters(optimizer)
    moments = {}
    for number, stored in saved["state"].items():
        if number not in range(len(parameters)):
            raise ValueError(f"found parameter {number} in the optimizer, expected 0 to {len(parameters) - 1}")
        moments[number] = {name: value for name, value in stored.items() if value is not None}
        wanted = {name: _SCALAR if name == "step" else parameters[number] for name in _moments(optimizer)}
        _same(f"optimizer of parameter {number}", moments[number], wanted)
    _same("state", {"sums": state["sums"]}, {"sums": torch.empty(3, dtype=torch.float64)})
    step, spent = int(state["step"]), float(state["spent"])
    if not (0 < step <= last and math.isfinite(spent)):
        raise ValueError(f"found step {step} after {spent} seconds, expected 1 to {last}")
    return Resumed(
        state["model"], moments, step, spent, state["sums"], tuple(Epoch(**epoch) for epoch in state["history"]),
        tuple(Broken(int(number), str(path), str(reason)) for number, path, reason in state["broken"]),
    )


def _same(what: str, found: Mapping[str, Tensor], wanted: Mapping[str, Tensor]) -> None:
    """Raise ValueError unless both have the same names, and tensors of the same shapes and types."""
    if odd := sorted(found.keys() ^ wanted.keys()):
        missing = odd[0] in wanted
        raise ValueError(f"found {'no' if missing else 'an unknown'} {odd[0]} in the {what}, expected its own tensors")
    for name, tensor in found.items():
        if (tensor.shape, tensor.dtype) != (wanted[name].shape, wanted[name].dtype):
            raise ValueError(f"found {name} of {_form(tensor)} in the {what}, expected {_form(wanted[name])}")


def _form(tensor: Tensor) -> str:
    return f"{tuple(tensor.shape)} {tensor.dtype}"


def _parameters(optimizer: torch.optim.Optimizer) -> list[Tensor]:
    return [parameter for group in optimizer.param_groups for parameter in group["params"]]


def _moments(optimizer: torch.optim.Optimizer) -> tuple[str, ...]:
    """Return the names of what the optimiser keeps of each parameter."""
    if isinstance(optimizer, torch.optim.AdamW):
        return "step", "exp_avg", "exp_avg_sq"
    return ("momentum_buffer",) if optimizer.defaults["momentum"] else ()
