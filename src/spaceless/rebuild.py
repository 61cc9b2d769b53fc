"""`load_model`: a trained network out of `model.safetensors` and `surgery.json`, which says how to rebuild it.

Nothing in the two files is executed. The network is first put together without memory; only when every tensor in the
file fits it in name, shape and type do the weights take their places.
"""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import ConfigDict, Field, model_validator
from safetensors import SafetensorError
from safetensors.torch import load as load_weights
from torch import Tensor, nn

from spaceless.errors import InputError
from spaceless.models import build_model, stem_is_unit, untrained
from spaceless.spec import Spec, make, parse
from spaceless.store import OUTCOME, TRIAL, WEIGHTS, read_outcome, read_trial
from spaceless.surgery import remove_spatial
from spaceless.tracing import first_line
from spaceless.trial import Change, Downsample, Method, Outcome, ShuffleOptions, Trial

SURGERY = "surgery.json"
_LARGEST = 1 << 24  # bytes of surgery.json: 65,536 class names of 200 letters fit
_CURE = "export the trial again, or get the folder anew from where it came from"

_Deviation = Annotated[float, Field(gt=0)]
_Digest = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]


class _Strict(Spec):
    model_config = ConfigDict(strict=True)


class Base(_Strict):
    """The network that surgery begins with, see `build_model`; below 128 pixels ResNets have the small stem."""

    model: Annotated[str, Field(max_length=200)]
    classes: Annotated[int, Field(ge=2, le=1 << 16)]
    image_size: Annotated[int, Field(ge=1, le=1 << 14)]
    width: Annotated[float, Field(gt=0)]


class Operation(_Strict):
    """What is done to it, see `remove_spatial`."""

    method: Method
    k: Annotated[int, Field(ge=0)]
    only: Annotated[int, Field(ge=1)] | None
    strip: Annotated[int, Field(ge=0)]
    downsample: Downsample
    shuffle: ShuffleOptions
    seed: Annotated[int, Field(ge=0)]


class Surgery(_Strict):
    """What `surgery.json` holds: how a network is rebuilt around its weights, and what its numbers mean.

    `changes` lists what the operation does, module by module, for those who rebuild it with other means;
    `modules_sha256` is the digest of the paths and classes of all modules. `mean` and `std` are per channel, in units
    where 255 is 1.
    """

    format: Literal[1] = 1
    base: Base
    operation: Operation
    changes: tuple[Change, ...]
    modules_sha256: _Digest
    weights_sha256: _Digest
    mean: tuple[float, float, float]
    std: tuple[_Deviation, _Deviation, _Deviation]
    class_names: tuple[str, ...]
    versions: dict[str, str]

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if len(self.class_names) != self.base.classes:
            raise InputError(
                f"{SURGERY}: class_names", found=f"{len(self.class_names)} names",
                expected=f"{self.base.classes}, one for each output", cure=_CURE,
            )
        return self

    @property
    def trial(self) -> Trial:
        """The trial that makes this network; its data and recipe are of no account.

        Raises:
            InputError: Fields that cannot be combined.

        """
        return make(
            Trial, SURGERY, data="none", model=self.base.model, width=self.base.width,
            image_size=self.base.image_size, **self.operation.model_dump(),
        )


def surgery_of(outcome: Outcome, model: nn.Module, mean: tuple[float, ...], std: tuple[float, ...],
               class_names: tuple[str, ...]) -> Surgery:
    """Return what `surgery.json` has to hold for `model`, the network of a finished trial."""
    trial, facts = outcome.trial, outcome.data
    assert facts is not None
    fields = set(Operation.model_fields)
    return make(
        Surgery, SURGERY, mean=mean, std=std, class_names=class_names, versions=outcome.versions,
        base=Base(model=trial.model, classes=facts.classes, image_size=facts.image_size, width=trial.width),
        operation=Operation(**{name: getattr(trial, name) for name in fields}), changes=outcome.changes,
        modules_sha256=modules_sha256(model), weights_sha256=outcome.weights_sha256,
    )


def load_model(folder: str | os.PathLike[str]) -> nn.Module:
    """Rebuild a trained network from its files, without pickle, and return it on the CPU in evaluation mode.

    Args:
        folder: What `spaceless export` wrote (`model.safetensors` and `surgery.json`), or the folder of a finished
            trial. The first may come from anywhere: digest, names, shapes and types are checked before a weight is
            used.

    The network takes normalised images, float32 (N, 3, S, S), and gives logits, float32 (N, classes). `surgery.json`
    and the model card beside it name S, the mean and the standard deviation to normalise with, and the classes.

    Raises:
        InputError: The folder holds neither, or something in it is not what was exported.

    """
    folder = Path(folder)
    if (folder / SURGERY).is_file():
        surgery = read_surgery(folder / SURGERY)
        try:
            trial = surgery.trial
        except InputError as error:
            raise _named(folder / SURGERY, error) from error
        return _rebuilt(
            folder, SURGERY, trial, surgery.base.classes, surgery.base.image_size, surgery.weights_sha256,
            surgery.modules_sha256,
        )
    if not (folder / TRIAL).is_file():
        raise InputError(
            str(folder), found=f"neither {SURGERY} nor {TRIAL}", expected="an exported network or a finished trial",
            cure="name a folder that `spaceless export` or `spaceless train` printed",
        )
    trial = read_trial(folder)
    outcome = read_outcome(folder / OUTCOME) if (folder / OUTCOME).is_file() else None
    if outcome is None or outcome.trial != trial or outcome.status != "finished" or outcome.data is None:
        raise InputError(
            str(folder), found="a trial that is not finished" if outcome is None or outcome.trial == trial
            else f"the outcome of {outcome.trial.label}", expected=f"the finished trial {trial.label}",
            cure="run the trial again",
        )
    return _rebuilt(
        folder, OUTCOME, trial, outcome.data.classes, outcome.data.image_size, outcome.weights_sha256, None)


def read_surgery(path: Path) -> Surgery:
    """Return what the file at `path` holds, or raise InputError naming the file."""
    try:
        size = path.stat().st_size
        text = path.read_text(encoding="utf-8") if size <= _LARGEST else ""
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(
            str(path), found=f"{type(error).__name__}: {error}", expected="a readable JSON file", cure=_CURE,
        ) from error
    if size > _LARGEST:
        raise InputError(str(path), found=f"{size:,} bytes", expected=f"at most {_LARGEST:,}", cure=_CURE)
    return parse(Surgery, text, str(path))


def modules_sha256(model: nn.Module) -> str:
    """Return the SHA-256 over the paths and classes of all modules of `model`, in order."""
    lines = [f"{path} {type(module).__name__}" for path, module in model.named_modules()]
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()


def changed(model: nn.Module, trial: Trial, image_size: int) -> tuple[nn.Module, list[Change]]:
    """Return `model` changed as `trial` says, and what changed."""
    if trial.method == "baseline":
        return model, []
    return remove_spatial(
        model, trial.method, None if trial.only else trial.k, image_size=image_size, only=trial.only,
        strip=trial.strip, downsample=trial.downsample, shuffle=trial.shuffle, seed=trial.seed,
        stem=stem_is_unit(trial.model),
    )


def _rebuilt(
    folder: Path, source: str, trial: Trial, classes: int, image_size: int, digest: str | None, modules: str | None,
) -> nn.Module:
    """Return the network of `trial` with the weights in `folder`; `source` is the file that says what they are."""
    weights = read_weights(folder / WEIGHTS, digest, _CURE)
    model = _shape(folder / source, trial, classes, image_size)
    if modules is not None and modules_sha256(model) != modules:
        raise InputError(
            str(folder / source), found="modules of other names or kinds than this version builds",
            expected="those that were exported", cure="install the versions that the file names",
        )
    compare_weights(weights, model.state_dict(), folder / WEIGHTS, _CURE)
    model.load_state_dict(_tied(weights, model), assign=True)
    if any(tensor.device.type == "meta" for tensor in (*model.parameters(), *model.buffers())):
        # Not all that it computes with is among its weights: the library that it is from has to fill it.
        model, _ = changed(build_model(trial.model, classes, image_size, width=trial.width), trial, image_size)
        model.load_state_dict(weights)
    return model.eval()


def _tied(weights: dict[str, Tensor], model: nn.Module) -> dict[str, Tensor]:
    """Return copies of `weights` of which those are one tensor that are one in `model`."""
    found: dict[int, Tensor] = {}
    own = model.state_dict(keep_vars=True)
    for name, tensor in weights.items():
        place = own[name]
        parameter = isinstance(place, nn.Parameter)
        found[id(place)] = nn.Parameter(tensor.clone(), place.requires_grad) if parameter else tensor.clone()
    return {name: found[id(own[name])] for name in weights}


def read_weights(path: Path, digest: str | None, cure: str) -> dict[str, Tensor]:
    """Return the tensors in the file at `path`, whose SHA-256 has to be `digest`; InputError with `cure` if not."""
    try:
        content = path.read_bytes()
    except OSError as error:
        raise InputError(
            str(path), found=error.strerror or type(error).__name__, expected="the weights of the network", cure=cure,
        ) from error
    if hashlib.sha256(content).hexdigest() != digest:
        raise InputError(
            str(path), found="other content than was written", expected=f"SHA-256 {digest}", cure=cure)
    try:
        return load_weights(content)
    except (SafetensorError, ValueError, KeyError, RuntimeError, TypeError) as error:
        raise InputError(str(path), found=first_line(error), expected="safetensors", cure=cure) from error


def _shape(source: Path, trial: Trial, classes: int, image_size: int) -> nn.Module:
    """Return the network of `trial` as shapes without weights, or raise InputError naming `source`."""
    try:
        return changed(untrained(trial.model, classes, image_size, width=trial.width), trial, image_size)[0]
    except InputError as error:
        raise _named(source, error) from error
    except Exception as error:  # numbers out of every range end somewhere inside PyTorch
        raise InputError(
            f"{source}: {trial.label}", found=first_line(error), expected="a network that can be built", cure=_CURE,
        ) from error


def _named(source: Path, error: InputError) -> InputError:
    """Return `error` with the file that it comes from."""
    return InputError(f"{source}: {error.what}", found=error.found, expected=error.expected, cure=error.cure)


def compare_weights(found: dict[str, Tensor], wanted: dict[str, Tensor], path: Path, cure: str) -> None:
    """Raise InputError for the first tensor that `found` lacks, has too much, or has in another shape or type."""
    for name in (*wanted, *found):
        have, want = (_kind(tensors.get(name)) for tensors in (found, wanted))
        if have != want:
            raise InputError(f"{path}: {json.dumps(name)[:120]}", found=have, expected=want, cure=cure)


def _kind(tensor: Tensor | None) -> str:
    if tensor is None:
        return "no such tensor"
    return f"{str(tensor.dtype).removeprefix('torch.')} {tuple(tensor.shape)}"
