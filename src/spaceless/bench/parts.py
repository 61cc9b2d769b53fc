"""Where the time of a training step goes, by kinds of operations, as PyTorch's profiler counts it."""

from __future__ import annotations

from torch import nn
from torch.profiler import ProfilerActivity, profile

from spaceless.bench.subjects import RECIPE, SIZE, for_steps
from spaceless.bench.timing import device
from spaceless.training import train
from spaceless.trial import Recipe

STEPS = 6
_KINDS = {  # by what the name of an operation contains; the first that fits
    "matrix products and convolutions": ("conv", "aten::mm", "aten::addmm", "aten::bmm", "_Product", "_Narrow"),
    "normalisation": ("batch_norm",),
    "activation and pooling": ("relu", "threshold", "clamp", "pool"),
    "optimiser": ("_fused", "Optimizer"),
    "copies and conversions": ("copy_", "fill_", "aten::cat"),
}
OTHER = "everything else"


def parts(model: nn.Module, precision: str, *, recipe: Recipe = RECIPE, size: int = SIZE) -> dict[str, float]:
    """Return the share of each kind of operations in the time of training steps of `model`; they add up to 1.

    On a CPU only: of a GPU it would be the time of starting operations.
    """
    model.to(device())
    data, recipe = for_steps(STEPS, recipe, size)
    with profile(activities=[ProfilerActivity.CPU]) as profiled:
        train(model, data, recipe, 0, precision=precision)
    times = dict.fromkeys((*_KINDS, OTHER), 0.0)
    for event in profiled.key_averages():
        times[_kind(event.key)] += event.self_cpu_time_total
    whole = sum(times.values())
    return {kind: round(time / whole, 4) for kind, time in times.items()}


def table(measurements: list[dict[str, object]]) -> list[str]:
    """Return the rows of a table of the shares, for measurements that have them under `parts`."""
    rows = [f"| case | {' | '.join((*_KINDS, OTHER))} |", f"|---{'|---:' * (len(_KINDS) + 1)}|"]
    for found in measurements:
        shares = found.get("parts", {})
        assert isinstance(shares, dict)
        rows += [f"| {found['case']}, {name} | {' | '.join(f'{share:.0%}' for share in of.values())} |"
                 for name, of in shares.items()]
    return rows


def _kind(name: str) -> str:
    return next((kind for kind, words in _KINDS.items() if any(word in name for word in words)), OTHER)
