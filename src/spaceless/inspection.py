"""What `spaceless inspect` and `spaceless paper --check` find out: units, costs and counts of networks, untrained."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from spaceless.cost import Latency, compare_latency, cost, count_parameters, latency
from spaceless.errors import InputError
from spaceless.models import build_model, default_image_size, stem_is_unit, untrained
from spaceless.paper import Count, counts
from spaceless.receptive import head_note, unit_fields, unknown_operations
from spaceless.spec import make
from spaceless.surgery import remove_spatial
from spaceless.tracing import trace
from spaceless.trial import Change, ShuffleOptions, Trial
from spaceless.units import units_of


def inspect_model(
    name: str, *, classes: int = 1000, image_size: int | None = None, method: str = "baseline", k: int = 0,
    only: int | None = None, downsample: str = "avg", width: float = 1.0, batch: int | None = None,
) -> dict[str, Any]:
    """Return the units of a network and what it costs, before or after surgery.

    `units` holds a record per unit: index, name, kind, out_size (height, width), receptive_field, receptive_stride,
    receptive_offset and receptive_aligned (of its output, as in `ReceptiveField`; None where positions mean nothing or
    where an operation in front is one of `unknown_operations`), params and modified. All but `modified`, `params`,
    `macs`, `activations`, `not_counted`, `head` and `latency` describe the network as it was before. `head` is
    `head_note`'s sentence. With `batch`, `latency` holds the seconds for that many images on this machine's processor,
    before and after, passes taken in turn.

    Raises:
        InputError: Unknown name or method, K out of range, or an image size that the network does not accept.

    """
    # The trial's checks are the ones for names and for what can be combined.
    make(Trial, "inspect", model=name, data="none", method=method, k=k, only=only)
    size = default_image_size(name) if image_size is None else image_size
    for what, value in (("classes", classes), ("image size", size), ("batch", 1 if batch is None else batch)):
        if value < 1:
            raise InputError(what, found=value, expected="at least 1", cure="give a positive number")
    model = untrained(name, classes, size, width=width)
    traced = trace(model, size)
    units = units_of(traced, stem=stem_is_unit(name))
    fields = unit_fields(traced, [unit.name for unit in units])

    def change(network: nn.Module) -> tuple[nn.Module, list[Change]]:
        return remove_spatial(
            network, method, None if only else k, image_size=size, only=only, downsample=downsample,
            shuffle=ShuffleOptions(), stem=stem_is_unit(name),
        )

    small, changes = change(model) if k or only else (model, [])
    modified = {each.unit for each in changes}
    costs = cost(small, size)
    timed = {}
    if batch is not None:
        real = build_model(name, classes, size, width=width)
        timed = {"latency": _latency(real, change(real)[0] if changes else None, size, batch)}
    return {
        "model": name, "width": width, "classes": classes, "image_size": size,
        "method": method if modified else "baseline", "k": len(modified - {0}), "only": only,
        "downsample": downsample if modified and method == "conv1x1" else None,
        "params": costs.params, "macs": costs.macs,
        "activations": costs.activations, "not_counted": list(costs.not_counted),
        "unknown_operations": unknown_operations(traced),
        "head": head_note(traced if small is model else trace(small, size)),
        "units": [
            {
                "index": unit.index, "name": unit.name, "kind": unit.kind, "out_size": list(unit.out_size),
                "receptive_field": field and field.size, "receptive_stride": field and field.stride,
                "receptive_offset": field and field.offset, "receptive_aligned": field and field.aligned,
                "modified": unit.index in modified,
                "params": _params(small, unit.name),
            }
            for unit, field in zip(units, fields, strict=True)
        ],
    } | timed


def _latency(before: nn.Module, after: nn.Module | None, size: int, batch: int) -> dict[str, Any]:
    made: dict[str, Any] = {"batch": batch, "threads": torch.get_num_threads(), "device": "cpu"}
    if after is None:
        return made | {"before": _seconds(latency(before, size, batch=batch))}
    first, second, ratio = compare_latency(before, after, size, batch=batch)
    return made | {"before": _seconds(first), "after": _seconds(second), "ratio": _seconds(ratio)}


def _seconds(found: Latency) -> dict[str, float]:
    return {"median": found.median, "lower": found.lower, "upper": found.upper, "repeats": found.repeats}


def _params(model: nn.Module, path: str) -> int:
    return count_parameters(model.get_submodule(path))


def check_counts() -> list[tuple[Count, int, bool]]:
    """Build every network whose parameter count the paper prints; return each with our count and whether they agree."""
    found = []
    for count in counts():
        model = untrained(count.network, count.classes, count.image_size)
        if count.k:
            model, _ = remove_spatial(
                model, count.method, count.k, image_size=count.image_size, stem=stem_is_unit(count.network))
        params = count_parameters(model)
        exact = count.exact in (None, params)
        found.append((count, params, exact and count.agrees(params)))
    return found
