"""Structured channel pruning by Torch-Pruning, down to a number of parameters: what `compress` is compared with."""

from __future__ import annotations

import copy
import hashlib
from collections.abc import Callable
from importlib import import_module

import torch
from torch import nn

from spaceless import checkpoint, records
from spaceless.atomic import make_folder
from spaceless.cost import count_parameters
from spaceless.errors import InputError
from spaceless.evaluation import evaluate
from spaceless.retest import open_trial
from spaceless.run import Place, choose_device, choose_precision, load_data
from spaceless.spec import Spec
from spaceless.tracing import example_input
from spaceless.training import States, train
from spaceless.trial import Evaluation, Outcome, Recipe

PACKAGE = "torch_pruning"
KINDS = {"uniform": "the same share of the channels in every layer", "global": "the least channels of all layers"}
_HALVINGS = 12  # of the interval in which the share of pruned channels is looked for


class Pruned(Spec):
    """What came of a pruned and fine-tuned network: its accuracy on the images held out and on the test images."""

    kind: str
    params: int
    epochs: int
    held_out: Evaluation
    test: Evaluation


def require_package() -> None:
    """Raise InputError unless Torch-Pruning can be imported."""
    try:
        import_module(PACKAGE)
    except ImportError as error:
        raise InputError(
            "bench compress", found="no package torch-pruning", expected="the network it compares with",
            cure="install it with: pip install torch-pruning") from error


def prune(model: nn.Module, image_size: int, params: int, kind: str) -> nn.Module:
    """Return a copy of `model` without the channels of least magnitude, with at most `params` parameters.

    Groups of channels that hang together are judged by the mean L2 norm of their weights (Fang et al., "DepGraph:
    Towards Any Structural Pruning", CVPR 2023), `kind` is one of `KINDS`. The share that is pruned is the smallest that
    keeps to `params`, found by halving an interval; the layer that gives the logits keeps its outputs.

    Raises:
        InputError: Not even one channel per layer is few enough.

    """
    low, high = 0.0, 1.0
    best = None
    for _ in range(_HALVINGS):
        share = (low + high) / 2
        found = _without(model, image_size, share, kind)
        if count_parameters(found) <= params:
            best, high = found, share
        else:
            low = share
    if best is None:
        raise InputError("params", found=f"{params:,}", expected="more than one channel per layer has",
                         cure="ask for more")
    return best


def _without(model: nn.Module, image_size: int, share: float, kind: str) -> nn.Module:
    tools = import_module(PACKAGE)
    found = copy.deepcopy(model).cpu().eval()
    last = [layer for layer in found.modules() if isinstance(layer, nn.Linear | nn.Conv2d)][-1]
    tools.pruner.BasePruner(
        found, example_input(found, image_size), importance=tools.importance.GroupMagnitudeImportance(p=2),
        global_pruning=kind == "global", pruning_ratio=share, ignored_layers=[last],
    ).step()
    return found


def tuned(
    base: Outcome, kind: str, params: int, recipe: Recipe, place: Place, stop: Callable[[], int | None],
) -> tuple[nn.Module, Pruned]:
    """Return the trained network of `base` pruned to `params`, and what it came to when it was trained by `recipe`.

    What it came to is stored; only then is the network returned without its training, for what it costs. The same call
    goes on after an interruption.

    Raises:
        InputError: The weights of `base` are not in `place`.
        Interrupted: `stop` asked for it.

    """
    trained = open_trial(place.store.folder(base.trial), place)
    data = trained.data
    model = prune(trained.model, data.image_size, params, kind)
    key = f"{base.weights_sha256} {kind} {params} {recipe.model_dump_json()} on {data.digest}"
    folder = place.out / "pruned" / hashlib.sha256(key.encode()).hexdigest()[:16]
    if (folder / "outcome.json").exists():
        return model, records.read(Pruned, folder / "outcome.json")
    make_folder(folder)
    device = choose_device(place.device)
    precision = choose_precision(recipe.precision, device)
    model.to(device)
    train(model, data, recipe, base.trial.seed, precision=precision, stop=stop,
          states=States(folder / "states", key, place.save_seconds))
    tests = [evaluate(model, each, precision=precision, each=True, stop=stop)
             for each in (data, load_data(base.trial, place.data_root, test=True))]
    found = Pruned(kind=kind, params=count_parameters(model), epochs=recipe.epochs, held_out=tests[0], test=tests[1])
    records.write(folder / "outcome.json", found.model_dump(mode="json"))
    checkpoint.discard(folder / "states")
    return model.cpu().to(memory_format=torch.contiguous_format), found
