"""Findings as words: the answer of a panel in a sentence, how sure it is, and what to know with it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from spaceless.agreement import CHANCE_LIMIT, Verdict
from spaceless.certainty import certainty, interval, lone_run
from spaceless.findings import ARROW, METHOD_NAMES, FreeK, Panel, free_ks, near_chance, scheme_name, within
from spaceless.numerals import FIXED, listed, millions, number, points, signed, with_spread
from spaceless.paper import Experiment
from spaceless.rows import Row, whole_curve

_MISMATCHED = 3  # units that Table 2 left shuffles in the test
_COMPRESSING = ("gap_fc", "conv1x1", "strip")


@dataclass(frozen=True)
class Answer:
    """The finding of one panel in a sentence, how sure it is, and what else a careful reader should know with it."""

    text: str
    notes: tuple[str, ...] = ()
    certainty: str = ""

    @property
    def sentences(self) -> tuple[str, ...]:
        """All of it, a sentence each."""
        return (self.text, *((self.certainty,) if self.certainty else ()), *self.notes)


def answer(panel: Panel, tolerance: float, experiment: Experiment | None = None) -> Answer:
    """Return what `panel` says, computed from its numbers; `tolerance` is in percentage points of accuracy."""
    if panel.x == "receptive_field":
        return _receptive(panel, tolerance)
    if panel.x == "kept":
        return _kept(panel)
    base = panel.baseline
    if base is None or base.top1 is None:
        return Answer(f"{panel.title}: the baseline (K = 0) {_lacking(panel)}.")
    if near_chance(base, tolerance):
        return Answer(f"{panel.title}: the baseline itself reaches only {base.top1:.1f} %, too near to chance "
                      f"({panel.chance:.1f} %) for anything to follow within {points(tolerance)}.")
    kinds = {"k": _over_k, "only": _single, "shuffled": _mismatch}
    found = kinds[panel.x](panel, base, base.top1, tolerance)
    return Answer(found.text, (*found.notes, *_paper_notes(panel, experiment)), found.certainty)


def _lacking(panel: Panel) -> str:
    """Return what became of a baseline without an accuracy."""
    bases = [row for row in panel.rows if row.trial.method == "baseline"]
    for what in ("diverged", "failed"):
        seeds = sorted({seed for row in bases for seed in getattr(row, what)})
        if seeds and not any(row.missing for row in bases):
            return f"{what} (seed {listed(seeds)}), so nothing follows"
    return "is missing, so nothing follows yet"


def _over_k(panel: Panel, base: Row, top1: float, tolerance: float) -> Answer:
    free = [f for f in free_ks(panel, tolerance) if f.measured]
    if not free:
        return Answer(
            f"{panel.title}: only the baseline is measured, {with_spread(top1, base.spread)} %, n = {base.n}.")
    best = max(free, key=lambda f: (f.k, f.row.trial.method in _COMPRESSING, -(f.row.params or 0)))
    if best.k == 0:
        again = any(f.again for f in free)
        measured = listed({f.measured[0] for f in free} if again else {k for f in free for k in f.measured})
        which = f"already the first measured K ({measured}) does not stay" if again else (
            f"no measured K ({measured}) stays")
        text = (f"{panel.title}: {which} within {points(tolerance)} of the baseline's "
                f"{with_spread(top1, base.spread)} %, n = {base.n}.")
        first = [r for r in panel.rows if r.trial.k == min(f.measured[0] for f in free) and r.top1 is not None]
        best_one = certainty(max(first, key=lambda r: r.top1 or 0.0), base, tolerance) if first else ""
        return Answer(text, _by_series(free, base) if again else _diverged(free), best_one)
    saved = _saved(best.row, base)
    if saved:
        saved = f"{millions(best.row.params)} parameters instead of {millions(base.params)} ({saved}), "
    sure = interval(best.row, base)
    lone = "" if sure is None or not sure.lone else "in a single run each, " if best.row.n == base.n == 1 else (
        f"in {best.row.n} and {base.n} runs, ")
    likely = sure is not None and not sure.lone and sure.low < -tolerance
    text = (
        f"{panel.title}: {lone}{_freed(best, likely)} within {points(tolerance)} ({best.series}): {saved}accuracy "
        f"{with_spread(best.row.top1, best.row.spread)} against {with_spread(top1, base.spread)}, "
        f"{_runs(best.row, base)}."
    )
    return Answer(text, _by_series(free, base), certainty(best.row, base, tolerance))


def _saved(row: Row, base: Row) -> str:
    """Return how many percent fewer parameters `row` has, or nothing where it has as many."""
    if not row.params or not base.params or row.params == base.params:
        return ""
    return f"{signed(round(100 * (row.params / base.params - 1)), 0)}{FIXED}%"


# What K counts, by the beginning of a network's name.
_UNITS = {"vgg16": "convolution", "resnet": "bottleneck", "mobilenet_v2": "inverted residual",
          "squeezenet1_0": "fire module", "chain:": "convolution"}


def _freed(best: FreeK, likely: bool) -> str:
    unit = next((name for start, name in _UNITS.items() if best.row.trial.model.startswith(start)), "unit")
    of = f" of {best.row.units}" if best.row.units else ""
    one = best.k == 1
    who = f"the last{of} {unit}s" if one and of else f"the last {unit}" if one else f"the last {best.k}{of} {unit}s"
    return who + (" probably" if likely else "") + {
        "channel_shuffle": " bears" if one else " bear", "strip": " can",
    }.get(best.row.trial.method, " needs" if one else " need") + {
        "channel_shuffle": " a random order of channels", "strip": " be left out",
    }.get(best.row.trial.method, " no space")


def _runs(row: Row, base: Row) -> str:
    return f"n = {row.n}" if row.n == base.n else f"n = {row.n} against {base.n}"


def _by_series(free: Sequence[FreeK], base: Row) -> tuple[str, ...]:
    notes = []
    if len(free) > 1:
        each = [f"{f.series}: {f.k}{f' ({saved} parameters)' if (saved := _saved(f.row, base)) else ''}" for f in free]
        notes.append(f"Largest K by method: {'; '.join(each)}.")
    notes += _diverged(free)
    gaps = [f"{f.series} K = {listed(f.unmeasured)}" for f in free if f.unmeasured]
    if gaps:
        notes.append("Smaller K that were not measured: " + "; ".join(gaps) + ".")
    again = [f"{f.series} K = {listed(f.again)}" for f in free if f.again]
    if again:
        notes.append("Within the tolerance again although a smaller K is not: " + "; ".join(again) + ".")
    return tuple(notes)


def _diverged(free: Sequence[FreeK]) -> tuple[str, ...]:
    found = [f"{f.series} K = {listed(f.diverged)}" for f in free if f.diverged]
    return (f"A training diverged, which counts as a loss: {'; '.join(found)}.",) if found else ()


def _single(panel: Panel, base: Row, top1: float, tolerance: float) -> Answer:
    parts, lone, gone = [], base, []
    for name in dict.fromkeys(panel.series(r) for r in panel.rows if r.trial.only):
        line = {r.trial.only or 0: r for r in panel.rows if r.trial.only and panel.series(r) == name}
        drops = {unit: top1 - r.top1 for unit, r in line.items() if r.top1 is not None}
        if diverged := [unit for unit, r in line.items() if r.diverged]:
            gone.append(f"{name} in unit {listed(diverged)}")
        if drops:
            free = [unit for unit, r in line.items() if within(r, top1 - tolerance)]
            worst = max(drops, key=lambda unit: drops[unit])
            lone = line[worst]
            parts.append(
                f"{name} in one unit alone costs at most {points(tolerance)} in "
                + (f"unit {listed(free)}" if len(free) == 1 else f"units {listed(free)}" if free else "no unit")
                + f" and most in unit {worst} ({number(max(0.0, drops[worst]), 1)} points)"
            )
    text = "; ".join(parts) or "no modified unit is measured"
    return Answer(f"{panel.title}: {text}. Baseline {with_spread(top1, base.spread)} %, {_runs(lone, base)}.",
                  (f"A training diverged, which counts as a loss: {'; '.join(gone)}.",) if gone else (),
                  certainty=lone_run(lone, base))


def _kept(panel: Panel) -> Answer:
    line = {r.trial.k - r.trial.strip: r for r in panel.rows if r.trial.method != "baseline" and r.top1 is not None}
    if len(line) < 2:
        return Answer(f"{panel.title}: fewer than two depths are measured.")
    most, least = line[max(line)], line[min(line)]
    base = panel.baseline
    text = (f"{panel.title}: with {max(line)} modified units left, accuracy is {with_spread(most.top1, most.spread)}, "
            f"with {min(line) or 'none'} it is {with_spread(least.top1, least.spread)}, {_runs(most, least)}")
    if base is not None:
        text += f"; the baseline has {with_spread(base.top1, base.spread)}"
    return Answer(text + ".", certainty=lone_run(most, least))


def _mismatch(panel: Panel, base: Row, top1: float, tolerance: float) -> Answer:
    found = {(scheme_name(r), r.trial.k or r.shuffle_last): r for r in panel.rows if r.top1 is not None}
    schemes = tuple(ARROW.join(s) for s in (("shuffled", "shuffled"), ("shuffled", "clean"), ("clean", "shuffled")))
    ks = [k for scheme, k in found if scheme == schemes[2] and k]
    held = [k for k in ks if (r := found.get((schemes[0], k))) and r.top1 is not None and r.top1 >= top1 - tolerance]
    if not ks:
        return Answer(f"{panel.title}: the baseline was not tested under shuffling.")
    k = max(held, default=_MISMATCHED if _MISMATCHED in ks else min(ks))
    both, clean, only_test = (found.get((scheme, k)) for scheme in schemes)
    chance = "" if panel.chance is None else f" (chance {panel.chance:.1f})"
    last = "last unit" if k == 1 else f"last {k} units"
    text = (f"{panel.title}: with the {last} shuffled only in the test, accuracy goes from {top1:.1f} to "
            f"{number(only_test.top1 if only_test else None, 1)}{chance}")
    if max(ks) != k and (most := found.get((schemes[2], max(ks)))):
        text += f", with the last {max(ks)} to {number(most.top1, 1)}"
    if both or clean:
        text += (f"; trained with the shuffle it is {number(both.top1 if both else None, 1)} with and "
                 f"{number(clean.top1 if clean else None, 1)} without shuffling in the test")
    return Answer(f"{text}. {_runs(both or base, base)}.", certainty=lone_run(both or base, base))


def _receptive(panel: Panel, tolerance: float) -> Answer:
    parts, unknown, guessing, gone = [], [], [], []
    for size in sorted({r.image_size or 0 for r in panel.rows}):
        line = [r for r in panel.rows if (r.image_size or 0) == size and (r.top1 is not None or r.diverged)]
        base = next((r for r in line if r.trial.method == "baseline"), None)
        if base is None or base.top1 is None or any(r.receptive_field is None for r in line):
            unknown.append(f"{size}")
            continue
        if near_chance(base, tolerance):
            guessing.append(f"{size}")
            continue
        field = base.receptive_field
        for row in sorted(line, key=lambda r: -(r.receptive_field or 0)):
            if not within(row, base.top1 - tolerance):
                gone += [f"{row.receptive_field} pixels for images of {size}"] if row.diverged else []
                break
            field = row.receptive_field
        parts.append(f"{field} pixels for images of {size}")
    lacking = f"The baseline or a receptive field is missing for images of {', '.join(unknown)} pixels."
    chance = (f"For images of {', '.join(guessing)} pixels the baseline itself is too near to chance for anything to "
              f"follow within {points(tolerance)}.")
    notes = (*((lacking,) if unknown else ()), *((chance,) if guessing else ()),
             *((f"A training diverged, which counts as a loss: {', '.join(gone)}.",) if gone else ()))
    if not parts:
        yet = " yet" if any(row.missing for row in panel.rows) else ""
        return Answer(f"{panel.title}: nothing follows{yet}.", notes)
    runs = sorted({r.n for r in panel.rows if r.n})
    lone = lone_run(*(r for r in panel.rows if r.n)) if runs == [1] else ""
    return Answer(f"{panel.title}: the accuracy stays within {points(tolerance)} of the baseline down to a receptive "
                  f"field of {', of '.join(parts)}, n = {listed(runs)}.", notes, lone)


def _paper_notes(panel: Panel, experiment: Experiment | None) -> list[str]:
    largest: dict[str, list[str]] = {}
    notes = []
    for printed in experiment.printed_all if experiment else ():
        line = [r for r in panel.rows if r.top1 is not None and printed.matches(r.trial, r.shuffle_last)]
        if not line or not whole_curve(printed):
            continue
        name = panel.series(line[0])
        if printed.largest_k is not None:
            largest.setdefault(printed.source, []).append(f"{name}: {printed.largest_k}")
        elif printed.top1 is not None:
            best = max(line, key=lambda r: r.top1 or 0.0)
            notes.append(f"Best of all measured K with {name}: {with_spread(best.top1, best.spread)} at "
                         f"K = {best.trial.k}, n = {best.n}; the paper prints {printed.top1:.2f} ({printed.source}).")
    what = "Single last units that bear it" if panel.x == "only" else "Largest K"
    return [f"{what} in the paper ({source}): {'; '.join(parts)}." for source, parts in largest.items()] + notes


def calibration_answer(found: Sequence[Verdict]) -> Answer:
    """Return in a sentence whether measured and true largest K agree, and of each cell that differs how."""
    agree = sum(v.agrees is True for v in found)
    unknown = sum(v.agrees is None for v in found)
    early = sum(v.agrees is True and v.lacking > 0 for v in found)
    cells = [c for v in found for c in v.chance_cells]
    text = f"Measured and true largest K agree in {agree} of {len(found)} cells"
    text += f", in {early} of them so far: runs are missing" if early else ""
    text += f"; {unknown} not complete yet." if unknown else "."
    if cells:
        near = sum(abs(c.deviation) <= CHANCE_LIMIT for c in cells)
        most = max(abs(c.deviation) for c in cells)
        text += (f" Where geometry says chance, {near} of {len(cells)} accuracies lie within {CHANCE_LIMIT:g} "
                 f"standard errors of it (the farthest at {most:.1f}).")
    return Answer(text, tuple(
        f"{METHOD_NAMES.get(v.method, v.method)} on {v.data} differs: {v.note}." for v in found if v.agrees is False))
