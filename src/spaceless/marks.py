"""What is drawn where: rows as records of series, x and y, with every missing number breaking its line."""

from __future__ import annotations

from typing import Any

from spaceless.findings import Panel, scheme_name
from spaceless.rows import Row

Record = dict[str, Any]


def points(panel: Panel) -> list[Record]:
    """Return one record per drawn point: series, x, y, lo and hi (None for fewer than two runs), and what it stands on.

    The baseline begins every line that counts K. A row without an accuracy keeps its place with y None.
    """
    if panel.x == "shuffled":
        placed = [(scheme_name(r), r.trial.k or r.shuffle_last or 0, r) for r in panel.rows if r is not panel.baseline]
        starts = {name: 0 for name, _, _ in placed}
    elif panel.x == "receptive_field":
        return _relative(panel)
    else:
        placed = [(panel.series(r), _place(panel, r), r) for r in panel.rows if r.trial.method != "baseline"]
        starts = {name: 0 for name, _, _ in placed} if panel.x == "k" else {}
    base = panel.baseline
    first = [(name, x, base) for name, x in starts.items() if base]
    return [record(name, x, r, 0.0) for name, x, r in (*first, *placed)]


def _place(panel: Panel, row: Row) -> int:
    if panel.x == "only":
        return row.trial.only or 0
    return row.trial.k - row.trial.strip if panel.x == "kept" else row.trial.k


def _relative(panel: Panel) -> list[Record]:
    found = []
    for size in sorted({r.image_size or 0 for r in panel.rows}):
        rows = [r for r in panel.rows if (r.image_size or 0) == size and r.receptive_field is not None]
        base = next((r for r in rows if r.trial.method == "baseline" and r.top1 is not None), None)
        if base is not None and base.top1 is not None:
            found += [record(size_name(size), r.receptive_field or 0, r, base.top1) for r in rows]
    return found


def size_name(pixels: int | None) -> str:
    """Return the name of the line of images of so many pixels."""
    return f"{pixels or 0} pixels"


def record(name: str, x: int, row: Row, zero: float) -> Record:
    """Return the drawn point of `row` at `x` on the line `name`; its accuracy is counted from `zero` (percent).

    `share` (percent of the units), `params` and `macs` (millions) and `latency` (milliseconds) are the other places
    it can be drawn at.
    """
    y = None if row.top1 is None else row.top1 - zero
    spread = row.spread if y is not None else None
    folders = ", ".join(row.ids[:3]) + (f" and {len(row.ids) - 3} more" if len(row.ids) > 3 else "")
    return {
        "series": name, "x": x, "y": y, "n": row.n,
        "lo": None if y is None or spread is None else y - spread,
        "hi": None if y is None or spread is None else y + spread,
        "share": share(x, row),
        "params": None if row.params is None else row.params / 1e6,
        "macs": None if row.macs is None else row.macs / 1e6,
        "latency": row.latency,
        "trial": row.trial.label.removesuffix(f" seed {row.trial.seed}"),
        "runs": f"n = {row.n}" + (f", seed {', '.join(map(str, row.seeds))}" if row.seeds else "") + "".join(
            f"; {what}: seed {', '.join(map(str, seeds))}"
            for what, seeds in (("diverged", row.diverged), ("failed", row.failed)) if seeds),
        "diverged": bool(row.diverged),
        "folders": folders,
        "accuracy": "missing" if row.top1 is None else f"{row.top1:.2f} %"
        + ("" if row.spread is None else f" \N{PLUS-MINUS SIGN} {row.spread:.2f}"),
        "size": "" if row.params is None else f"{row.params / 1e6:.3f} M",
        "work": "" if row.macs is None else f"{row.macs / 1e6:,.1f} M",
        "time": "" if row.latency is None else f"{row.latency:,.3f} ms",
        "printed": "" if row.paper_top1 is None else f"{row.paper_top1:.2f} %",
    }


def share(k: int, row: Row) -> float | None:
    """Return which percentage of the units of `row`'s network `k` of them are; None where their number is not known."""
    return 100 * k / row.units if row.units else None


def numbered(records: list[Record]) -> list[Record]:
    """Number the unbroken stretches of each line (a missing number breaks it) and of each band (a lone run does)."""
    found = []
    for name in dict.fromkeys(r["series"] for r in records):
        line = band = 0
        for each in sorted((r for r in records if r["series"] == name), key=lambda r: r["x"]):
            line += each["y"] is None
            band += each["lo"] is None
            found.append({**each, "line": f"{name} {line}", "band": f"{name} {band}"})
    return found


def printed_points(panel: Panel) -> list[Record]:
    """Return one record per accuracy that the paper prints for a row of `panel`."""
    found = []
    for row in panel.rows:
        base = row is panel.baseline
        if base and panel.x not in ("k", "shuffled"):
            continue
        mismatch = panel.x == "shuffled"
        x = 0 if base else (row.trial.k or row.shuffle_last or 0) if mismatch else _place(panel, row)
        name = "baseline" if base else scheme_name(row) if mismatch else panel.series(row)
        # the paper's own size, which says nothing beside a network of another width
        found += [{
            "series": name, "x": x, "y": p.top1, "share": share(x, row), "macs": None, "latency": None,
            "params": p.params_m if row.trial.width == 1 else None,
            "accuracy": f"{p.top1:.2f} %", "source": p.source, "base": base,
        } for p in row.printed if p.top1 is not None]
    return found
