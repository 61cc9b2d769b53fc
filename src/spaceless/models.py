"""Networks by name: the paper's variants over torchvision's constructors, and any torchvision or timm classifier.

Nothing here rewrites an architecture: the variants replace single modules, and a reduced width scales every layer.
"""

from __future__ import annotations

import copy
import math
import re
from contextlib import nullcontext
from difflib import get_close_matches
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from spaceless.errors import InputError, unknown_name
from spaceless.imports import torchvision_models
from spaceless.trial import PAPER_MODELS, unknown_model

SMALL_IMAGE = 128  # below this side ResNets get the 3x3 stem without max-pooling (section 3.2: 32x32 sets)
_STEM_IS_NO_UNIT = ("resnet50", "resnet152", "mobilenet_v2", "squeezenet1_0")  # K counts blocks only (section 3.2)


class GlobalAveragePool(nn.Module):
    """The mean over all positions: (N, C, H, W) to (N, C, 1, 1). `mean` is deterministic on CUDA.

    Args:
        dims: Where height and width are: (1, 2) for maps (N, H, W, C), which become (N, 1, 1, C).

    """

    def __init__(self, dims: tuple[int, int] = (2, 3)) -> None:
        """Remember the dimensions."""
        super().__init__()
        self.dims = dims

    def forward(self, x: Tensor) -> Tensor:
        """Return the mean over height and width."""
        return x.mean(self.dims, keepdim=True)


def default_image_size(name: str) -> int:
    """Return the side in pixels that a network is meant for when no data set decides: 224, and 48 for a chain."""
    return 48 if name.startswith("chain:") else 224


def stem_is_unit(name: str) -> bool:
    """Tell whether a spatial convolution outside any block counts as a unit: not in the paper's block networks."""
    return name not in _STEM_IS_NO_UNIT


def build_model(name: str, classes: int, image_size: int, *, width: float = 1.0, seed: int = 0) -> nn.Module:
    """Build a network for images of (3, image_size, image_size), initialised from `seed` alone.

    Args:
        name: `vgg16`, `resnet50`, `resnet152`, `mobilenet_v2` or `squeezenet1_0` in the paper's variant (section 3.2),
            `torchvision:NAME`, `timm:NAME`, or `chain:16-M-24-24-M-32`: 3x3 convolutions of these widths with batch
            normalisation, `M` for 2x2 max-pooling, then global average pooling and one linear layer.
        classes: The number of outputs.
        image_size: The side in pixels; below 128 the paper's ResNets get a 3x3 stem with stride 1 and no max-pooling.
        width: The factor for all channel counts but the image's and the classes'.
        seed: Weights depend on this and on nothing else; the global generator is left as it was.

    Raises:
        InputError: Unknown name, or a width that does not leave whole channels.

    """
    made = (name, classes, image_size, width, seed)
    try:
        return copy.deepcopy(_kept(*made, str(torch.get_default_device()), torch.get_default_dtype()))
    except (RuntimeError, TypeError, NotImplementedError):  # one that cannot be copied
        return _built(*made)


@lru_cache(maxsize=2)  # the trials of a study begin from the same weights; one of shapes only, and one with weights
def _kept(
    name: str, classes: int, image_size: int, width: float, seed: int, _device: str, _dtype: torch.dtype,
) -> nn.Module:
    return _built(name, classes, image_size, width, seed)


def _built(name: str, classes: int, image_size: int, width: float, seed: int) -> nn.Module:
    devices = [torch.cuda.current_device()] if torch.cuda.is_available() else []
    shapes_only = torch.get_default_device().type == "meta"
    with torch.random.fork_rng(devices=devices), _NoNumbers() if shapes_only else nullcontext():
        torch.manual_seed(seed)
        model = _construct(name, classes, image_size)
        return model if width == 1.0 else _scale_width(model, classes, width)


class _NoNumbers(TorchFunctionMode):
    """Draws nothing into tensors of shapes only, for which PyTorch would import its compiler and take half a second."""

    def __torch_function__(
        self, function: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None,
    ) -> Any:
        kwargs = kwargs or {}
        if function in (Tensor.normal_, Tensor.uniform_) or getattr(function, "__module__", "") == "torch.nn.init":
            filled = args[0] if args else kwargs["tensor"]
            if filled.is_meta:
                return filled
        return function(*args, **kwargs)


def untrained(name: str, classes: int, image_size: int, *, width: float = 1.0) -> nn.Module:
    """Return a network of shapes only, which costs no memory; with weights where its constructor needs them.

    A `width` other than 1 costs no memory whatever the constructor needs.
    """
    try:
        with torch.device("meta"):
            return build_model(name, classes, image_size, width=width)
    except NotImplementedError:  # it looks at its own weights
        model = build_model(name, classes, image_size)
        with torch.device("meta"):
            return model if width == 1.0 else _scale_width(model, classes, width)


def _construct(name: str, classes: int, image_size: int) -> nn.Module:
    models = torchvision_models()
    if name == "vgg16":
        return _vgg16(classes)
    if name in ("resnet50", "resnet152"):
        return _small_stem(models.get_model(name, num_classes=classes), image_size)
    if name in PAPER_MODELS:
        return models.get_model(name, num_classes=classes)  # type: ignore[no-any-return]
    prefix, _, rest = name.partition(":")
    if prefix == "torchvision":
        known = models.list_models(module=models)
        if rest not in known:
            raise unknown_name("model", rest, _near(rest, known), "see torchvision.models.list_models()")
        return models.get_model(rest, num_classes=classes, **_without_auxiliary(rest))  # type: ignore[no-any-return]
    if prefix == "timm":
        timm = _timm()
        known = timm.list_models()
        if rest not in known:
            raise unknown_name("model", rest, _near(rest, known), "see timm.list_models()")
        return timm.create_model(rest, num_classes=classes)  # type: ignore[no-any-return]
    if prefix == "chain":
        return _chain(rest, classes)
    raise unknown_model(name)


def _timm() -> Any:
    try:
        import timm
    except ImportError as error:
        raise InputError(
            "model", found="no package timm", expected="the package that timm:NAME needs",
            cure="install it with: pip install timm",
        ) from error
    return timm


def _near(name: str, known: list[str]) -> list[str]:
    """Return a few names to show out of hundreds: the nearest, those that begin alike, or the first ones."""
    stem = re.split(r"[\d_]", name)[0]
    return get_close_matches(name, known, n=6) or ([k for k in known if stem and k.startswith(stem)] or known)[:6]


def _without_auxiliary(name: str) -> dict[str, object]:
    """Auxiliary heads return several outputs in training; a trial trains the one classifier."""
    return {"aux_logits": False, "init_weights": True} if name in ("inception_v3", "googlenet") else {}


def _vgg16(classes: int) -> nn.Module:
    """VGG-16 with batch normalisation and a 512-4096-4096-classes head after global pooling (34.02 M, 37.70 M)."""
    model = torchvision_models().vgg16_bn(num_classes=classes)
    model.avgpool = GlobalAveragePool()
    first = nn.Linear(512, 4096)
    nn.init.normal_(first.weight, 0, 0.01)  # as torchvision initialises the layer that this one replaces
    nn.init.zeros_(first.bias)
    model.classifier[0] = first
    return model  # type: ignore[no-any-return]


def _small_stem(model: nn.Module, image_size: int) -> nn.Module:
    if image_size < SMALL_IMAGE:
        stem = nn.Conv2d(3, 64, kernel_size=3, stride=1, padding=1, bias=False)
        nn.init.kaiming_normal_(stem.weight, mode="fan_out", nonlinearity="relu")
        model.conv1, model.maxpool = stem, nn.Identity()
    return model


def _chain(text: str, classes: int) -> nn.Module:
    vgg = torchvision_models().vgg
    layers: list[str | int] = [int(t) if t.isdecimal() else t for t in text.split("-")]
    widths = [t for t in layers if isinstance(t, int)]
    if not widths or min(widths) < 1 or any(isinstance(t, str) and t != "M" for t in layers):
        raise InputError(
            "model", found=f"'chain:{text}'", expected="channel counts and M for pooling, joined by -",
            cure="write for example chain:16-M-24-24-M-32-32",
        )
    features = vgg.make_layers(layers, batch_norm=True)
    with torch.device("meta"):  # torchvision's own head of 120 million weights is never filled: it is replaced below
        model = vgg.VGG(features, num_classes=1, init_weights=False)
    model.avgpool, model.classifier = GlobalAveragePool(), nn.Linear(widths[-1], classes)
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
            nn.init.zeros_(module.bias)  # type: ignore[arg-type]
    return model  # type: ignore[no-any-return]


def _scale_width(model: nn.Module, classes: int, width: float) -> nn.Module:
    """Replace every layer by one with `width` times the channels, initialised like the layer it replaces."""
    layers = [(path, m) for path, m in model.named_modules() if [*m.parameters(False), *m.buffers(False)]]
    for path, module in layers:
        if type(module) not in (nn.Conv2d, nn.Linear, nn.BatchNorm2d):  # a subclass may do more than its base
            raise InputError(
                "width", found=f"{width} with a {type(module).__name__} ({path or 'the network itself'})",
                expected="a network whose weights are all in Conv2d, Linear and BatchNorm2d", cure="leave width out",
            )
    last = [path for path, m in layers if not isinstance(m, nn.BatchNorm2d)][-1]
    for path, module in layers:

        def scaled(channels: int, path: str = path) -> int:
            exact = channels * width
            if not exact.is_integer() or exact < 1:
                raise InputError(
                    "width", found=f"{width} ({channels} channels of {path} would become {exact:g})",
                    expected="a factor that leaves whole channels", cure="use 0.5, 0.25 or 0.125",
                )
            return int(exact)

        if isinstance(module, nn.BatchNorm2d):
            new: nn.Module = nn.BatchNorm2d(scaled(module.num_features), module.eps, module.momentum)
        elif isinstance(module, nn.Linear):
            outputs = classes if path == last else scaled(module.out_features)
            new = nn.Linear(scaled(module.in_features), outputs, module.bias is not None)
        else:
            inputs = module.in_channels if module.in_channels == 3 else scaled(module.in_channels)
            outputs = classes if path == last else scaled(module.out_channels)
            groups = module.groups if module.groups < module.in_channels else inputs
            if inputs % groups or outputs % groups:
                raise InputError(
                    "width", found=f"{width} ({inputs} channels in the {groups} groups of {path})",
                    expected="a factor that leaves whole groups", cure="choose a larger width",
                )
            new = nn.Conv2d(
                inputs, outputs, module.kernel_size, module.stride,
                module.padding, module.dilation, groups, module.bias is not None,
            )
        if not isinstance(module, nn.BatchNorm2d):
            _initialise_like(new, module)
        model.set_submodule(path, new)
    return model


def _initialise_like(new: nn.Module, old: nn.Module) -> None:
    """Draw the weights of `new` with the spread of `old`'s, widened as the fan-in shrinks.

    Each layer's answer keeps the variance that it has at full width, whatever rule initialised it: with torchvision's
    fixed 0.01 the linear layers of a VGG at an eighth of the width would pass on a hundredth of the signal.
    """
    before, after = old.weight, new.weight
    assert isinstance(before, Tensor) and isinstance(after, Tensor)
    if before.device.type != "meta":  # on the meta device there are shapes only
        nn.init.normal_(after, 0, float(before.detach().std()) * math.sqrt(before[0].numel() / after[0].numel()))
    if isinstance(new.bias, Tensor):
        nn.init.zeros_(new.bias)
