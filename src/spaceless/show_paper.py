"""What the verb `paper` prints: the experiments, their printed numbers, and the parameter counts beside ours."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence

from spaceless.console import number, table
from spaceless.paper import Count, Printed, experiment, experiments, findings
from spaceless.tables import printed_place, printed_scheme


def experiments_list(as_json: bool) -> None:
    """Show the names of the paper's experiments and the discrepancies found in it."""
    if as_json:
        _json({
            "experiments": [found.model_dump(mode="json") for found in experiments().values()],
            "findings": [finding.model_dump(mode="json") for finding in findings()],
        })
        return
    table("Experiments, and what the paper prints: top-1 in percent (parameters in millions)",
          ("name:", "source:", "asks:", "printed:"),
          [(found.name, found.source, found.asks, _printed(found.printed_all)) for found in experiments().values()])
    table("Discrepancies found in the paper", ("where:", "the paper says:", "we find:"), [
        (finding.where, finding.paper_says, finding.we_find) for finding in findings()])


def _printed(rows: Sequence[Printed]) -> str:
    """Return the printed numbers in a few lines, one per network, each number with what it is about."""
    lines: dict[str, list[str]] = {}
    for row in dict.fromkeys(rows):
        value = number(row.top1) if row.top1 is not None else ""
        value += "" if row.std is None else f" ± {row.std:.2f}"
        value += "" if row.params_m is None else f" ({row.params_m:.2f})"
        place = "" if row.method == "baseline" else f"unit {row.only}" if row.only else f"K {printed_place(row)}"
        place = re.sub(r"^K (?=\d)", "K=", place).replace("K best", "best K")
        about = (row.method, place, row.downsample if row.downsample != "avg" else "", printed_scheme(row), value)
        lines.setdefault(row.model, []).append(" ".join(filter(None, about)))
    return "\n".join(f"{model}: {', '.join(texts)}" for model, texts in lines.items()) or "a curve only"


def one_experiment(name: str, as_json: bool) -> None:
    """Show an experiment with the numbers that the paper prints."""
    found = experiment(name)
    if as_json:
        _json(found.model_dump(mode="json") | {"printed_all": [p.model_dump(mode="json") for p in found.printed_all]})
        return
    print(f"{found.name} ({found.source}, section {found.section}): {found.title}\n{found.asks}")
    table("", ("model:", "data:", "method:", "K", "test:", "top-1 %", "parameters, M", "source:"), [
        (p.model, p.data, p.method, printed_place(p), printed_scheme(p),
         number(p.top1) + ("" if p.std is None else f" ± {p.std:.2f}") + ("" if p.gain is None else f" (+{p.gain})"),
         number(p.params_m), p.source)
        for p in found.printed_all
    ])
    print(f"run it: spaceless study {found.name} --preset smoke")


def counts(found: list[tuple[Count, int, bool]], as_json: bool) -> None:
    """Show the paper's parameter counts beside ours, and why a count differs where that is known."""
    if as_json:
        _json([c.model_dump(mode="json") | {"params": n, "agrees": agrees} for c, n, agrees in found])
        return
    table("Parameter counts", (
        "network:", "classes", "pixels", "method:", "K", "paper, M", "ours", "verdict:", "source:",
    ), [
        (c.network, str(c.classes), str(c.image_size), c.method, str(c.k), number(c.millions), f"{n:,}",
         "agrees" if agrees else f"differs: {c.finding}" if c.finding else "differs", c.source)
        for c, n, agrees in found
    ])
    named = {c.finding for c, _, agrees in found if not agrees}
    for finding in findings():
        if finding.name in named:
            print(f"{finding.name}: the paper says {finding.paper_says.rstrip('.')}; we find {finding.we_find}")
    print("agrees: with the printed digits, which the paper rounds in some places and cuts off in others")


def _json(value: object) -> None:
    print(json.dumps(value, indent=1))
