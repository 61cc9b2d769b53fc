"""`spaceless bench costs`: parameters and multiply-adds against those that torchvision publishes with its weights."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from typing import Any

from spaceless.bench.record import made_by

# As torchvision's model cards call them; its transformers are not what this tool is about.
_NO_CNNS = ("maxvit", "swin", "vit_")
TOLERANCE = 0.01  # of the published multiply-adds
_DIGIT = 0.0005e9  # they are printed in billions, with three decimals


def names() -> list[tuple[str, str]]:
    """Return name and weights of every CNN for classification in torchvision."""
    from torchvision import models

    return [(name, weights.name) for name in models.list_models(module=models) if not name.startswith(_NO_CNNS)
            for weights in models.get_model_weights(name)]


def row(name: str, weights_name: str) -> dict[str, Any]:
    """Return counted and published figures of one network, at the image size that the weights are evaluated at."""
    from torchvision import models

    from spaceless.cost import cost
    from spaceless.models import untrained

    warnings.filterwarnings("ignore")
    weights = models.get_model_weights(name)[weights_name]
    size, classes = weights.transforms.keywords["crop_size"], len(weights.meta["categories"] or range(1000))
    found = cost(untrained(f"torchvision:{name}", classes, size), size)
    published = round(weights.meta["_ops"] * 1e9)
    params = weights.meta["num_params"]
    extra = _auxiliary(name, classes) if params != found.params else 0
    return {
        "network": name, "weights": weights_name, "image_size": size, "params": found.params,
        "params_published": params, "params_auxiliary": extra, "macs": found.macs, "macs_published": published,
        "deviation": round(found.macs / published - 1, 6), "activations": found.activations,
        "not_counted": list(found.not_counted),
    }


def _auxiliary(name: str, classes: int) -> int:
    """Return the parameters of the auxiliary heads, which are there in training only."""
    import torch
    from torchvision import models

    from spaceless.cost import count_parameters

    with torch.device("meta"):
        parts = models.get_model(name, num_classes=classes, init_weights=False).named_children()
        return sum(count_parameters(part) for path, part in parts if path.lower().startswith("aux"))


def rows(chosen: Sequence[str], jobs: int) -> Iterator[dict[str, Any]]:
    """Yield the rows of the networks `chosen`, by torchvision's names, or of all; `jobs` at a time.

    Raises:
        InputError: A name that no CNN of torchvision has.

    """
    from spaceless.bench.record import in_processes
    from spaceless.errors import unknown_name

    known = dict.fromkeys(name for name, _ in names())
    plain = [entry.removeprefix("torchvision:") for entry in chosen]
    for entry in plain:
        if entry not in known:
            raise unknown_name("network", entry, known)
    yield from in_processes(row, [pair for pair in names() if not plain or pair[0] in plain], jobs)


def line(found: dict[str, Any]) -> str:
    """Return one row as a line for who waits."""
    return (f"{found['network']} {found['weights']}: {found['macs']:,} multiply-adds, {found['deviation']:+.2%}; "
            f"{found['params']:,} parameters, {found['params'] - found['params_published']:+,}")


def agrees(found: dict[str, Any]) -> bool:
    """Tell whether the parameters are the published ones, and the multiply-adds within 1 % or to the printed digits."""
    off = abs(found["macs"] - found["macs_published"])
    same = found["params"] + found["params_auxiliary"] == found["params_published"]
    return bool(same and off <= max(TOLERANCE * found["macs_published"], _DIGIT))


def summary(rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Return how many rows there are, and how many are within 1 %, as printed, and exact in their parameters."""
    return {
        "rows": len(rows), "networks": len({each["network"] for each in rows}),
        "within_one_percent": sum(abs(each["deviation"]) <= TOLERANCE for each in rows),
        "to_the_printed_digits": sum(abs(each["macs"] - each["macs_published"]) <= _DIGIT for each in rows),
        "exact_params": sum(each["params"] == each["params_published"] for each in rows),
        "failing": [f"{each['network']} {each['weights']}" for each in rows if not agrees(each)],
    }


def markdown(record: dict[str, Any]) -> str:
    """Return the page of a record."""
    told = record["summary"]
    lines = [
        "# Parameters and multiply-adds, counted and published", "", made_by(record), "",
        f"{told['rows']} weights that torchvision publishes for {told['networks']} CNNs, each at the image size that "
        f"it is evaluated at. Multiply-adds are within 1 % of the published ones for {told['within_one_percent']}, and "
        f"equal to the printed digits for {told['to_the_printed_digits']}; parameters are equal for "
        f"{told['exact_params']}.", "", _WHAT, "",
        "| network | weights | pixels | parameters | published | multiply-adds | published | deviation | activations |",
        "|---|---|--:|--:|--:|--:|--:|--:|--:|",
    ]
    lines += [
        f"| `{each['network']}` | {each['weights'].removeprefix('IMAGENET1K_')} | {each['image_size']} | "
        f"{each['params']:,} | {_other(each['params_published'], each['params'])} | {each['macs']:,} | "
        f"{each['macs_published'] / 1e9:.3f} G | {each['deviation']:+.2%} | {each['activations']:,} |"
        for each in record["rows"]
    ]
    rounded = [f"{each['network']} ({each['macs'] / 1e9:.4f} G, printed {each['macs_published'] / 1e9:.3f})"
               for each in record["rows"] if abs(each["deviation"]) > TOLERANCE and agrees(each)]
    heads = {f"{each['network']} ({each['params_auxiliary']:,})" for each in record["rows"] if each["params_auxiliary"]}
    if rounded:
        lines += ["", f"Off by more than 1 % only because three decimals are printed: {', '.join(rounded)}."]
    if heads:
        lines += ["", "The published count includes the auxiliary head, which is there in training only: "
                  f"{', '.join(sorted(heads))}; with it the counts are equal."]
    kinds = sorted({kind for each in record["rows"] for kind in each["not_counted"]})
    lines += ["", f"Not counted, in one network or another: {', '.join(kinds)}."]
    return "\n".join(lines) + "\n"


def _other(published: int, counted: int) -> str:
    return "equal" if published == counted else f"{published:,}"


_WHAT = """\
One multiply-add is one operation, as in torchvision's figures (`_ops` of its weights, which its model cards call
GFLOPS): convolutions and matrix products for one image, without biases. Activations are the entries of what these put
out. Nothing is downloaded: the networks have shapes and no weights."""
