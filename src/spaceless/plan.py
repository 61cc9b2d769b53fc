"""The plan of a surgery: the copy under the knife, which units change, and what has changed so far."""

from __future__ import annotations

import copy
import itertools
import math
from collections.abc import Iterable
from dataclasses import dataclass, field

import torch
from torch import Tensor, fx, nn

from spaceless.errors import SurgeryError
from spaceless.shuffle import ShuffleConv
from spaceless.tracing import Trace, put
from spaceless.trial import Change
from spaceless.units import Unit, is_spatial


@dataclass
class Plan:
    """The copy under the knife: the network, its trace and units, which units change, and what has changed so far.

    `made` are the modules that were put into units and did not stand there before, `weights` the weights that were
    replaced, by their identity, and what stands for them.
    """

    model: nn.Module
    traced: Trace
    units: list[Unit]
    targets: list[Unit]
    changes: list[Change] = field(default_factory=list)
    made: set[nn.Module] = field(default_factory=set)
    weights: dict[int, tuple[nn.Parameter, nn.Parameter]] = field(default_factory=dict)

    def replace(self, unit: int, path: str, new: nn.Module) -> None:
        """Put `new` in the place of the module at `path` and record it; unit 0 means behind the last unit."""
        old = self.model.get_submodule(path)
        kept = set(old.modules())  # a part may be frozen in evaluation mode
        for module in new.modules():
            module.training = module.training if module in kept else old.training
        self.made |= set(new.modules()) - kept if unit else set()
        self.changes.append(Change(unit=unit, path=path, before=describe(old), after=describe(new)))
        put(self.model, path, new)

    def own(self, path: str) -> nn.Module:
        """Return the layer at `path`, whose weights are to be replaced; SurgeryError where they are no parameters."""
        layer = self.model.get_submodule(path)
        if any(layer._parameters.get(name) is not getattr(layer, name) for name in ("weight", "bias")):
            raise SurgeryError(
                path, found="weights that are computed from others", expected="weights that are parameters",
                cure="call torch.nn.utils.parametrize.remove_parametrizations, prune.remove or remove_spectral_norm",
            )
        if isinstance(layer, nn.Conv2d) and is_spatial(layer) and any(
                tensor.shape[-2:] == layer.kernel_size for name, tensor in itertools.chain(
                    layer.named_parameters(), layer.named_buffers()) if name != "weight"):
            raise SurgeryError(
                path, found="a mask, or another tensor of the kernel's size", expected="weights that are the kernel",
                cure="multiply it into the weights of a plain nn.Conv2d",
            )
        return layer

    def tied(self, old: nn.Module, new: nn.Module) -> nn.Module:
        """Return `new`, which stands for `old`, with the weights of what stands for a layer with the same weights."""
        for name in ("weight", "bias"):
            weight, other = getattr(old, name), getattr(new, name)
            if isinstance(weight, nn.Parameter) and isinstance(other, nn.Parameter):
                known = self.weights.setdefault(id(weight), (weight, other))[1]
                if known.shape == other.shape:
                    setattr(new, name, known)
        return new

    def unit_of(self, path: str) -> int:
        """Return the index of the unit that holds the module at `path`, or 0."""
        return next((u.index for u in self.units if path == u.name or path.startswith(u.name + ".")), 0)


def describe(module: nn.Module) -> str:
    """Return a short name for a module in a list of changes, such as `Conv2d 512->512 3x3 stride 2`."""
    if isinstance(module, ShuffleConv):
        return f"Shuffle + {describe(module.conv)}"
    if isinstance(module, nn.Sequential) and len(module) <= 3:
        return " + ".join(describe(m) for m in module) or "nothing"
    if isinstance(module, nn.Conv2d):
        stride = "" if max(module.stride) == 1 else f" stride {max(module.stride)}"
        groups = "" if module.groups == 1 else f" groups {module.groups}"
        size = "x".join(str(side) for side in module.kernel_size)
        return f"Conv2d {module.in_channels}->{module.out_channels} {size}{stride}{groups}"
    if isinstance(module, nn.Linear):
        return f"Linear {module.in_features}->{module.out_features}"
    return "nothing" if isinstance(module, nn.Identity) else type(module).__name__


def followers(traced: Trace, node: fx.Node) -> list[str]:
    """Return the paths of the normalisation and the activation that belong to the convolution called by `node`."""
    found: list[str] = []
    kinds = [_is_normalisation, _is_activation]  # in either order
    while kinds:
        users = list(node.users)
        module = traced.module_of(users[0]) if len(users) == 1 else None
        kind = next((each for each in kinds if module is not None and each(module)), None)
        if kind is None or len(traced.calls(str(users[0].target))) != 1:
            break
        kinds.remove(kind)
        found.append(str(users[0].target))
        node = users[0]
    return found


def _is_normalisation(module: nn.Module) -> bool:
    return isinstance(module, nn.modules.batchnorm._NormBase | nn.GroupNorm | nn.LayerNorm)


def _is_activation(module: nn.Module) -> bool:
    """Tell whether `module` may go with its convolution; what squashes is a gate, without which a product explodes."""
    own = type(module).__module__ == "torch.nn.modules.activation" and not list(module.parameters())
    return own and not isinstance(module, nn.Sigmoid | nn.Hardsigmoid | nn.Tanh | nn.Softmax | nn.Softmax2d)


def once(nodes: Iterable[fx.Node]) -> list[fx.Node]:
    """Return the first call of each module in `nodes`: one that is called twice is replaced once."""
    first: dict[str, fx.Node] = {}
    for node in nodes:
        if node.op == "call_module":
            first.setdefault(str(node.target), node)
    return list(first.values())


def is_depthwise(conv: nn.Conv2d) -> bool:
    """Tell whether `conv` looks at several positions of each channel by itself."""
    return is_spatial(conv) and conv.groups == conv.in_channels == conv.out_channels > 1


@torch.no_grad()
def pointwise(conv: nn.Conv2d, stride: tuple[int, ...]) -> nn.Conv2d:
    """Return the 1x1 convolution whose kernel is the sum of `conv`'s over its positions.

    A library's own kind of convolution stays of its kind: one that standardises its weights goes on doing so.
    """
    kernel = nn.Parameter(conv.weight.sum((2, 3), keepdim=True), conv.weight.requires_grad)
    new = copy.deepcopy(conv, {id(conv.weight): kernel})
    new.kernel_size, new.stride, new.padding, new.dilation = (1, 1), (stride[0], stride[-1]), (0, 0), (1, 1)
    new.padding_mode, new._reversed_padding_repeated_twice = "zeros", [0, 0, 0, 0]
    scale: object = getattr(new, "scale", None)
    if isinstance(scale, float) and isinstance(getattr(new, "gain", None), Tensor):
        # Brock et al. 2021 ("Characterizing signal propagation", in timm): the scale holds 1 / sqrt(fan-in).
        new.__dict__["scale"] = scale * math.sqrt(conv.weight[0].numel() / kernel[0].numel())
    return new


def learning_as(old: nn.Module, new: nn.Module) -> nn.Module:
    """Return `new` with those of its parameters frozen that are frozen in `old`."""
    for name, parameter in new.named_parameters():
        parameter.requires_grad_(old.get_parameter(name).requires_grad)
    return new


def added(model: nn.Module, name: str, module: nn.Module) -> str:
    """Add `module` to `model` under the first name like `name` that is free, and return that."""
    free = next(f"{name}{i or ''}" for i in itertools.count() if not hasattr(model, f"{name}{i or ''}"))
    model.add_module(free, module)
    return free
