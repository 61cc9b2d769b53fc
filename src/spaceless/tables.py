"""Rows as tables: the same cells for the page, for Markdown and (unrounded) for CSV."""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from spaceless.agreement import Verdict
from spaceless.findings import ARROW, DASH, DOWNSAMPLE_NAMES, METHOD_NAMES, MINUS, Panel, scheme_name
from spaceless.numerals import listed, number, signed
from spaceless.paper import Printed
from spaceless.rows import Row, Truth
from spaceless.trial import Start


@dataclass(frozen=True)
class Column:
    """A heading, what it means in a few words, and whether its cells are numbers (set right, in tabular figures)."""

    name: str
    about: str = ""
    numeric: bool = True


@dataclass(frozen=True)
class Table:
    """Cells as text under their headings; a missing number is an en dash. `tones` mark lines: good, bad or neither."""

    title: str
    columns: tuple[Column, ...]
    lines: tuple[tuple[str, ...], ...]
    tones: tuple[str, ...] = ()


_Cell = Callable[[Row], str]


def panel_table(panel: Panel) -> Table:
    """Return the table of a panel, without the columns in which no row has anything to say."""
    rows = panel.rows
    scale, unit = (1e6, "M") if max((r.params or 0 for r in rows), default=0) >= 1e6 else (1e3, "k")
    macs, mac_unit = (1e9, "G") if max((r.macs or 0 for r in rows), default=0) >= 1e9 else (1e6, "M")
    shuffled, field = any(r.shuffle_spread is not None for r in rows), any(r.receptive_field is not None for r in rows)
    printed, sized = any(r.paper_top1 is not None for r in rows), any(r.paper_params is not None for r in rows)
    deviated = any(p.std is not None for r in rows for p in r.printed)
    sizes = len({r.image_size for r in rows} - {None}) > 1
    # which position or channel is shuffled changes no size
    alike = panel.x in ("only", "shuffled") and len({(r.params, r.macs) for r in rows}) == 1
    columns: list[tuple[Column, _Cell, bool]] = [
        (Column("method", numeric=False), panel.series, True),
        (Column("image", "pixels"), lambda r: number(r.image_size, 0), sizes),
        (Column(*_PLACE[panel.x]), lambda r: _place(panel, r), True),
        (Column("tested", numeric=False), lambda r: scheme_name(r).split(ARROW)[1], panel.x == "shuffled"),
        (Column("top-1", "percent"), lambda r: number(r.top1), True),
        (Column("\N{PLUS-MINUS SIGN}", "over runs"), lambda r: number(r.spread), True),
        (Column("\N{PLUS-MINUS SIGN}", "over shuffles"), lambda r: number(r.shuffle_spread), shuffled),
        (Column("n", "runs"), lambda r: str(r.n), True),
        (Column("paper", "top-1"), lambda r: number(r.paper_top1), printed),
        (Column("\N{PLUS-MINUS SIGN}", "paper"), lambda r: number(_paper_std(r)), deviated),
        (Column("differs", "points"), lambda r: signed(r.difference), printed),
        (Column("parameters", unit), lambda r: number(None if r.params is None else r.params / scale), not alike),
        (Column("paper", "M"), lambda r: number(r.paper_params), sized and not alike),
        (Column("multiply-adds", mac_unit), lambda r: number(None if r.macs is None else r.macs / macs), not alike),
        (Column("latency", "ms"), lambda r: number(r.latency, 3), any(r.latency is not None for r in rows)),
        (Column("receptive field", "pixels"), lambda r: number(r.receptive_field, 0), field),
        (Column("paper's axis", "pixels"), lambda r: _tick(panel, r), bool(panel.ticks)),
        (Column("not counted", numeric=False), _remark, any(_remark(r) for r in rows)),
    ]
    shown = [(column, cell) for column, cell, used in columns if used]
    lines = tuple(tuple(cell(row) for _, cell in shown) for row in rows)
    return Table(panel.title, tuple(c for c, _ in shown), lines)


_PLACE = {
    "k": ("K", "units"), "only": ("unit", "alone"), "kept": ("left", "units"), "shuffled": ("K", "units"),
    "receptive_field": ("K", "units"),
}


def _place(panel: Panel, row: Row) -> str:
    trial = row.trial
    if trial.method == "baseline" and not row.shuffle_last:
        return "0" if panel.x in ("k", "shuffled", "receptive_field") else DASH
    if panel.x == "only":
        return str(trial.only)
    if panel.x == "shuffled":
        return str(trial.k or row.shuffle_last or 0)
    return str(trial.k - trial.strip) if panel.x == "kept" else str(trial.k)


def _tick(panel: Panel, row: Row) -> str:
    return str(panel.ticks[row.trial.k]) if row.trial.k < len(panel.ticks) else DASH


def _paper_std(row: Row) -> float | None:
    return next((p.std for p in row.printed if p.std is not None), None)


def _remark(row: Row) -> str:
    ended = {"failed": row.failed, "diverged": row.diverged, "missing": row.missing}
    return "; ".join(f"seed {listed(seeds)} {how}" for how, seeds in ended.items() if seeds)


def verdict_table(found: Sequence[Verdict], truth: Sequence[Truth]) -> Table:
    """Return the calibration's verdict, one line per data set and method."""
    claims: dict[tuple[str, str], Truth] = {(t.data, t.method): t for t in truth}
    lines, tones = [], []
    for v in found:
        claim = claims[v.data, v.method]
        cells = "; ".join(f"K = {c.k}: {c.top1:.1f} ({signed(c.deviation, 1)} s.e.)" for c in v.chance_cells)
        words = {True: "agrees", False: "differs", None: "incomplete"}[v.agrees]
        lines.append((
            v.data, METHOD_NAMES.get(v.method, v.method), str(claim.learnable_k),
            DASH if claim.chance_from_k is None else str(claim.chance_from_k),
            DASH if v.measured is None else str(v.measured), f"{words}: {v.note}" if v.note else words,
            str(v.n), cells or DASH,
        ))
        tones.append({True: "good", False: "bad", None: ""}[v.agrees])
    columns = (
        Column("data set", numeric=False), Column("method", numeric=False), Column("learnable", "up to K"),
        Column("chance", "from K"), Column("measured", "largest K"), Column("verdict", numeric=False),
        Column("n", "runs"), Column("where geometry says chance", "accuracy, distance in standard errors", False),
    )
    return Table("Measured against true largest K", columns, tuple(lines), tuple(tones))


def markdown_table(table: Table) -> str:
    """Return `table` in Markdown (pipes), with everything that Markdown or HTML would interpret escaped."""
    heads = [" ".join(filter(None, (c.name, f"({c.about})" if c.about else ""))) for c in table.columns]
    rule = ["---:" if c.numeric else ":---" for c in table.columns]
    lines = [heads, rule, *([plain(cell) for cell in line] for line in table.lines)]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def table_csv(table: Table) -> str:
    """Return `table` as CSV: numbers as a program reads them, an empty field for a missing one."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow([" ".join(filter(None, (c.name, c.about))) for c in table.columns])
    for line in table.lines:
        writer.writerow([
            "" if cell == DASH else cell.replace(MINUS, "-").replace(",", "") if column.numeric else cell
            for column, cell in zip(table.columns, line, strict=True)
        ])
    return text.getvalue()


def plain(text: str) -> str:
    """Return `text` so that Markdown shows it as it is."""
    escaped = "".join("\\" + c if c in r"\`*_[]|#" else c for c in " ".join(text.split()))
    return escaped.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")


_CSV = (
    "study", "model", "data", "method", "k", "only", "strip", "downsample", "shuffle_options", "image_size", "width",
    "holdout", "original", "reduction", "distillation", "augment", "recipe", "epochs", "batch_size", "learning_rate",
    "train_images", "test_images", "shuffle_last", "n", "seeds", "top1",
    "spread", "shuffle_spread", "top5", "params", "macs", "latency_ms", "receptive_field", "paper_top1", "paper_std",
    "paper_params_m", "paper_source", "difference", "failed", "diverged", "missing",
)


def csv_lines(rows: Iterable[tuple[str, Row]]) -> str:
    """Return CSV of (study, row) pairs: accuracies in percent, counts in units, an empty field for a missing number."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(_CSV)
    for study, row in rows:
        trial, recipe, start = row.trial, row.trial.recipe, row.trial.start
        first = row.printed[0] if row.printed else None
        seeds = [" ".join(map(str, s)) for s in (row.seeds, row.failed, row.diverged, row.missing)]
        writer.writerow((
            study, trial.model, trial.data, trial.method, trial.k, trial.only, trial.strip,
            trial.downsample if trial.method == "conv1x1" else None, ", ".join(trial.shuffle.words), row.image_size,
            trial.width, trial.holdout, start.run if start else None, start.reduction if start else None,
            _distillation(start), recipe.augment, recipe.name,
            recipe.epochs, recipe.batch_size, recipe.learning_rate, trial.train_images, trial.test_images,
            row.shuffle_last, row.n, seeds[0], row.top1, row.spread, row.shuffle_spread, row.top5, row.params, row.macs,
            row.latency, row.receptive_field, row.paper_top1, _paper_std(row), row.paper_params,
            first.source if first else None, row.difference, *seeds[1:],
        ))
    return text.getvalue()


def _distillation(start: Start | None) -> str | None:
    teacher = start.distillation if start else None
    return None if teacher is None else f"temperature {teacher.temperature:g}, weight {teacher.weight:g}"


def printed_place(printed: Printed) -> str:
    """Return which units a printed row is about: a K, a single unit, a bound, or the best of a curve."""
    if printed.only is not None:
        return f"unit {printed.only}"
    if printed.largest_k is not None:
        return f"up to {printed.largest_k}"
    if printed.k is None and printed.method != "baseline":
        return "best"
    return str(printed.k or 0) + (f" strip {printed.strip}" if printed.strip else "")


def printed_scheme(printed: Printed) -> str:
    """Return how the network of a printed row was tested or trained, where that is not the usual way."""
    if printed.shuffle_last is None:
        return "no augmentation" if printed.augment == "none" else ""
    return f"last {printed.shuffle_last} shuffled" if printed.shuffle_last else "clean"


def _downsampled(printed: Printed) -> str:
    return "" if printed.downsample == "avg" else f", {DOWNSAMPLE_NAMES[printed.downsample]}"


def printed_table(rows: Sequence[Printed]) -> Table:
    """Return the table of numbers that the paper prints and that nothing measured stands beside."""
    columns = (
        Column("network", numeric=False), Column("data", numeric=False), Column("method", numeric=False),
        Column("K", "units"), Column("tested", numeric=False), Column("top-1", "percent"),
        Column("\N{PLUS-MINUS SIGN}", "paper"), Column("parameters", "M"), Column("in", numeric=False),
    )
    lines = tuple(
        (row.model, row.data, METHOD_NAMES[row.method] + _downsampled(row), printed_place(row), printed_scheme(row),
         number(row.top1), number(row.std), number(row.params_m), row.source) for row in dict.fromkeys(rows)
    )
    return Table("Printed in the paper, not measured here", columns, lines)
