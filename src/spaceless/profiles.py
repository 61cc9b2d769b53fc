"""Spatial profiles in the report: each beside its outcome as a section with a sentence, a chart and a table."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from spaceless.charts import HEIGHT, WIDTH
from spaceless.looks import Ink, Spec, chart, finish, layered
from spaceless.marks import Record
from spaceless.numerals import PLUS_MINUS, number, points, with_spread
from spaceless.page import Figure, Section
from spaceless.rows import Problem, read_record
from spaceless.sensitivity import PROFILES, Curve, Sensitivity, Shuffled
from spaceless.tables import Column, Table
from spaceless.trial import Outcome
from spaceless.wording import Answer

if TYPE_CHECKING:
    import altair as alt

ALONE, LAST = "shuffled alone", "shuffled from here to the end"
_Y = "top-1 accuracy (%)"
_BESIDE = 76  # pixels left and right of the plot: the axis with its title


def profile_sections(
    dirs: Sequence[str | Path], outcomes: Sequence[Outcome], problems: list[Problem], *, pictures: bool,
    tolerance: float,
) -> list[Section]:
    """Return a section for every one of `outcomes` that has a profile under `dirs`; a broken one becomes a problem.

    Of several profiles of one network the one over the most images, then over the most passes, is shown. One that was
    measured on other weights than the outcome's is a problem too.
    """
    known = {outcome.trial.id: outcome for outcome in outcomes}
    found: dict[str, tuple[Path, Sensitivity]] = {}
    for folder in map(Path, dirs):
        for path in sorted([*folder.glob(f"{PROFILES}/*.json"), *folder.glob(f"*/{PROFILES}/*.json")]):
            outcome = known.get(path.resolve().parent.parent.name)
            if outcome is None or (each := read_record(Sensitivity, path, problems)) is None:
                continue
            if each.weights_sha256 != outcome.weights_sha256:
                problems.append(Problem(str(path), "a profile of other weights than those of this outcome"))
                continue
            best = found.get(outcome.trial.id)
            if best is None or (each.images, each.repeats) > (best[1].images, best[1].repeats):
                found[outcome.trial.id] = path.parent.parent, each
    return [_section(known[key], folder, each, pictures, tolerance) for key, (folder, each) in found.items()]


def _section(outcome: Outcome, folder: Path, found: Sensitivity, pictures: bool, tolerance: float) -> Section:
    trial = outcome.trial
    name = f"profile of {trial.label}"
    chance = 100 / outcome.data.classes if outcome.data else None
    caption = (f"{trial.label}: top-1 on {found.images:,} {trial.tested_on} with the input of each unit shuffled "
               "alone, and with this and all units behind it shuffled. No network was trained for this. ")
    caption += (f"Bands: mean {PLUS_MINUS} standard deviation over {found.repeats} passes with fresh permutations."
                if found.repeats > 1 else "No band: one pass each.")
    spec = profile_chart(found, chance) if pictures else None
    command = ["spaceless", "evaluate", str(folder), "--profile", "--repeats", str(found.repeats)]
    if outcome.data is not None and found.images < outcome.data.test_images:
        command += ["--test-images", str(found.images)]
    return Section(
        title=f"Where space matters in {trial.label}",
        asks="What does this trained network lose where its units are shuffled in the test only?",
        source="as Figures 6 and 7, without training", answers=(profile_answer(found, tolerance, chance),),
        figures=(Figure(name, caption, spec),) if spec else (), tables=(profile_table(found),), differences={},
        progress=f"{found.images:,} images, {found.repeats} passes", failed=(), missing=(),
        commands=(shlex.join(command),), name=name, rows=(),
    )


def profile_answer(found: Sensitivity, tolerance: float, chance: float | None = None) -> Answer:
    """Return how many last units bear a shuffle within `tolerance` percentage points of the clean accuracy.

    Of a network that is no more than twice the tolerance above `chance` (percent) nothing is said.
    """
    if chance is not None and found.clean <= chance + 2 * tolerance:
        return Answer(f"The network itself reaches only {number(found.clean)} %, too near to chance "
                      f"({number(chance)} %) for anything to follow within {points(tolerance)}.")
    free = 0
    for unit in reversed(found.units):
        if unit.last.mean < found.clean - tolerance:
            break
        free = unit.k
    weakest = min(found.units, key=lambda unit: unit.alone.mean)
    text = (f"The last {free} of {len(found.units)} units bear a shuffle" if free > 1
            else f"The last of {len(found.units)} units bears a shuffle" if free
            else f"Not even the last of {len(found.units)} units bears a shuffle")
    return Answer(
        f"{text} within {points(tolerance)} of the clean {number(found.clean)} %.",
        (f"Alone, unit {weakest.index} ({weakest.name}) matters most: "
         f"{with_spread(weakest.alone.mean, weakest.alone.spread)} % with its input shuffled.",
         "What a network uses is not what it needs: one that is trained with a shuffle may bear it better (Table 2 of "
         "the paper)."),
    )


def profile_table(found: Sensitivity) -> Table:
    """Return the numbers of a profile, from the input on."""
    over = "over passes"
    columns = (
        Column("unit"), Column("name", numeric=False), Column("map", "shuffled positions"),
        Column("alone", "top-1, percent"), Column(PLUS_MINUS, over), Column("K"),
        Column("last K", "top-1, percent"), Column(PLUS_MINUS, over),
    )
    return Table(f"Shuffled in the test only: clean {number(found.clean)} %", columns, tuple(
        (str(unit.index), unit.name, "x".join(map(str, unit.map)), number(unit.alone.mean), number(unit.alone.spread),
         str(unit.k), number(unit.last.mean), number(unit.last.spread))
        for unit in found.units
    ))


def profile_chart(found: Sensitivity, chance: float | None = None) -> Spec:
    """Return the Vega-Lite specification of a profile: top-1 in percent over the units, the input on the left.

    One line for each unit alone and one for all from there on, with mean +- standard deviation over the passes as
    their bands; the clean accuracy and `chance` (percent) are rules.
    """
    import altair as alt

    records = [_point(name, unit, curve) for unit in found.units
               for name, curve in ((ALONE, unit.alone), (LAST, unit.last))]
    ink = Ink([ALONE, LAST], [0, 1])
    count = len(found.units)
    ticks = alt.Axis(format="d", tickMinStep=1, values=list(range(1, count + 1)) if count <= 20 else alt.Undefined)
    x = alt.X("x:Q", title="unit, from the input to the output", axis=ticks,
              scale=alt.Scale(nice=False, zero=False, padding=14))
    y = alt.Y("y:Q", title=_Y, scale=alt.Scale(zero=True, nice=True), axis=alt.Axis(tickCount=7))
    tooltip = [alt.Tooltip(f"{field}:N", title=title) for field, title in
               (("series", "line"), ("unit", "unit"), ("k", "K, from here to the end"), ("accuracy", "top-1"))]
    layers = _rule(found.clean, f"clean {found.clean:.1f} %", "left")
    if chance is not None:
        layers += _rule(chance, "chance", "right")
    if found.repeats > 1:
        layers.append(chart(records).mark_area(opacity=0.18).encode(
            x=x, y=alt.Y("lo:Q", title=_Y), y2="hi:Q", fill=ink.fill))
    layers.append(chart(records).mark_line(strokeWidth=2).encode(x=x, y=y, stroke=ink.stroke))
    layers.append(chart(records).mark_point(size=48, strokeWidth=1, opacity=1).encode(
        x=x, y=y, fill=ink.fill, stroke=ink.stroke, shape=ink.shape, tooltip=tooltip))
    return finish(layered(*layers, width=WIDTH, height=HEIGHT), _BESIDE)


def _point(series: str, unit: Shuffled, curve: Curve) -> Record:
    spread = curve.spread or 0.0
    return {"series": series, "x": unit.index, "unit": f"{unit.index} ({unit.name})", "k": unit.k, "y": curve.mean,
            "lo": curve.mean - spread, "hi": curve.mean + spread,
            "accuracy": f"{with_spread(curve.mean, curve.spread)} %"}


def _rule(level: float, text: str, side: Literal["left", "right"]) -> list[alt.Chart]:
    import altair as alt

    drawn = chart([{"y": level, "text": text}], hide=())
    y = alt.Y("y:Q", title=_Y)
    return [
        drawn.mark_rule(strokeDash=[5, 4], color="currentColor", opacity=0.7).encode(y=y),
        drawn.mark_text(
            align=side, baseline="bottom", dx=4 if side == "left" else -4, dy=-4, fontSize=12, color="currentColor",
        ).encode(x=alt.value(0 if side == "left" else "width"), y=y, text="text:N"),
    ]
