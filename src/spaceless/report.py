"""The report: everything that is known of some run folders on one page that opens offline, or as Markdown or CSV."""

from __future__ import annotations

import shlex
from collections import Counter
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import quote

from spaceless import captions
from spaceless.agreement import verdicts
from spaceless.axes import LATENCY_PLACE, places
from spaceless.commands import train_commands
from spaceless.errors import InputError, unknown_name
from spaceless.evidence import evidence_page
from spaceless.files import write, write_files
from spaceless.findings import Panel, free_ks, panels
from spaceless.looks import svg
from spaceless.marks import points as marked
from spaceless.numerals import listed
from spaceless.page import Figure, Page, Section, html_text
from spaceless.paper import Experiment, Printed, experiments
from spaceless.profiles import profile_sections
from spaceless.protocol import has_protocol, protocol, remarks
from spaceless.rows import Planned, Problem, Row, Study, load, natural, rows
from spaceless.setting import TOLERANCE
from spaceless.tables import csv_lines, markdown_table, panel_table, plain, printed_table, verdict_table
from spaceless.tradeoff import compression_answer, compression_charts, compression_panel, compression_table
from spaceless.trial import Outcome
from spaceless.wording import answer, calibration_answer

if TYPE_CHECKING:
    import altair as alt

CALIBRATION_TOLERANCE = 5.0  # percentage points; on the made data the accuracy falls by tens of points


def gather(
    dirs: Sequence[str | Path], study: str | Sequence[str] | None = None, *, pictures: bool = True,
    tolerance: float = TOLERANCE,
) -> Page:
    """Return what there is to say of the run folders `dirs`; tolerances are in percentage points of accuracy.

    With `study`, only the study (or studies) of that name are told of; without `pictures`, no figure is drawn. Raises
    InputError for a folder that does not exist, for one with neither outcomes nor studies, and for an unknown study.
    """
    outcomes, studies, problems = load(dirs)
    if not (outcomes or studies or problems):
        raise InputError(
            ", ".join(map(str, dirs)), found="no outcome.json and no *.study.json", expected="a folder of runs",
            cure="name the folder that was given to --out (default: runs)")
    if study is not None:
        names = (study,) if isinstance(study, str) else study
        for name in names:
            if name not in (s.name for s in studies):
                raise unknown_name("study", name, [s.name for s in studies], "run it first")
        studies = [s for s in studies if s.name in names]
        mine = {p.trial.id for s in studies for p in s.planned}
        outcomes = [o for o in outcomes if o.trial.id in mine]
    command = shlex.join(["spaceless", "report", *map(str, dirs)])
    tell = partial(_section, pictures=pictures, tolerance=tolerance, command=command)
    by_id = {o.trial.id: o for o in outcomes}
    known = list(experiments())
    sections = []
    for each in sorted(studies, key=lambda s: (known.index(s.experiment) if s.experiment in known else len(known),
                                               natural(s.name))):
        named = experiments().get(each.experiment or "")
        if each.experiment and named is None:
            problems.append(Problem(each.name, f"the paper has no experiment called {each.experiment!r}"))
        sections.append(tell(each, named, [by_id[p.trial.id] for p in each.planned if p.trial.id in by_id]))
    rest = [] if study else _unplanned(outcomes, studies)
    if rest:
        sections.append(tell(Study(name="", title="Further trials" if studies else "Trials"), None, rest))
    title = sections[0].title if len(sections) == 1 else f"{len(sections)} studies" if sections else "Nothing to show"
    shared = _side_by_side(sections, tolerance) if pictures else ()
    sections += profile_sections(dirs, outcomes, problems, pictures=pictures, tolerance=tolerance)
    return Page(title, tuple(sections), tuple(problems), captions.facts(outcomes), shared)


def answers(dirs: Sequence[str | Path], study: str | Sequence[str]) -> list[str]:
    """Return what the study (or studies) of this name say so far, a sentence a line: each answer, then its notes."""
    page = gather(dirs, study, pictures=False)
    several = len(page.sections) > 1
    return [
        f"{section.name}: {text}" if several else text
        for section in page.sections for each in section.answers for text in each.sentences
    ]


def disagreements(dirs: Sequence[str | Path], study: str) -> list[str]:
    """Return the cells of a calibration whose measured largest K is not shown to be the true one, and why."""
    outcomes, studies, _ = load(dirs)
    found = []
    for each in (s for s in studies if s.name == study):
        mine = {p.trial.id for p in each.planned}
        made = rows([o for o in outcomes if o.trial.id in mine], each.planned)
        found += [f"{v.method} on {v.data}{f' ({v.note})' if v.note else ''}"
                  for v in verdicts(made, each.truth, CALIBRATION_TOLERANCE) if v.agrees is not True]
    return found


def _unplanned(outcomes: Sequence[Outcome], studies: Sequence[Study]) -> list[Outcome]:
    schemes: dict[str, set[int | None]] = {}
    for plan in (p for s in studies for p in s.planned):
        schemes.setdefault(plan.trial.id, {None}).update(plan.schemes)
    return [
        o for o in outcomes
        if o.trial.id not in schemes or any(e.shuffle_last not in schemes[o.trial.id] for e in o.evaluations)
    ]


def _section(
    study: Study, experiment: Experiment | None, outcomes: list[Outcome], *, pictures: bool, tolerance: float,
    command: str,
) -> Section:
    found = rows(outcomes, study.planned, experiment)
    shown = panels(found, study.x, study.x_ticks)
    if study.kind == "calibration" and study.truth:
        order = [t.data for t in study.truth]
        shown.sort(key=lambda p: order.index(p.rows[0].trial.data) if p.rows[0].trial.data in order else len(order))
        verdict = verdicts(found, study.truth, CALIBRATION_TOLERANCE)
        said = [calibration_answer(verdict)]
        tables = [verdict_table(verdict, study.truth)]
    elif study.compression is not None:
        shown = [compression_panel(study.compression, found)]
        said = [compression_answer(study.compression)]
        tables = [compression_table(study.compression)]
    else:
        said = [answer(p, tolerance, experiment) for p in shown]
        tables = []
    tables += [panel_table(p) for p in shown]
    if experiment and (alone := _not_measured(experiment, found)):
        tables.append(printed_table(alone))
    compared = experiment is not None or any(r.printed or has_protocol(r.trial) for r in found)
    differences = protocol(outcomes, experiment) if compared else remarks(outcomes)
    grouped: dict[str, tuple[str, ...]] = {}
    for each in differences:
        grouped[each.topic] = (*grouped.get(each.topic, ()), each.text)
    ended = Counter(o.status for o in outcomes)
    missing = _missing(study.planned, outcomes)
    planned = f" of {len(study.planned)} planned" if study.planned else ""
    progress = f"{ended['finished']}{planned} trial{'s' * (max(ended['finished'], len(study.planned)) != 1)} finished"
    progress += "".join(f", {ended[s]} {s}" for s in ("diverged", "failed") if ended[s])
    return Section(
        title=study.title or (experiment.title if experiment else "") or study.name,
        asks=study.asks or (experiment.asks if experiment else ""),
        source=", ".join(filter(None, (experiment.source if experiment else "",
                                       f"preset {study.preset}" if study.preset else ""))),
        answers=tuple(said),
        figures=_figures(study, shown, found, tolerance) if pictures else (),
        tables=tuple(tables),
        differences=grouped,
        compared=compared,
        progress=progress,
        failed=tuple(f"{o.trial.label}: {o.status}{f', {o.error}' if o.error else ''}"[:300]
                     for o in outcomes if o.status != "finished"),
        missing=tuple(missing),
        commands=(*((study.command,) if study.command else ()), *([] if study.name else train_commands(
            [o.trial for o in outcomes])), command),
        name=study.name,
        rows=tuple(found),
        panels=tuple(shown) if study.kind == "study" else (),
    )


def _not_measured(experiment: Experiment, found: Sequence[Row]) -> list[Printed]:
    """Return what the paper prints beside which nothing measured stands: bounds on K stand beside their curve."""
    beside = {printed for row in found for printed in row.printed if row.n}
    curves = {(row.trial.model, row.trial.data, row.trial.method) for row in found if row.n}
    return [
        printed for printed in experiment.printed_all if printed not in beside
        and not (printed.largest_k is not None and (printed.model, printed.data, printed.method) in curves)
    ]


def _figures(
    study: Study, shown: Sequence[Panel], found: Sequence[Row], tolerance: float,
) -> tuple[Figure, ...]:
    from spaceless.bounds import calibration_chart
    from spaceless.charts import panel_chart
    from spaceless.drawing import drawing_chart

    name = study.name or "trials"
    if study.kind == "calibration" and study.truth:
        spec = calibration_chart(found, study.truth)
        caption = captions.calibration_caption(shown, CALIBRATION_TOLERANCE)
        return (Figure(f"{name} accuracy", caption, spec),) if spec else ()
    if study.compression is not None:
        return tuple(Figure(f"{name} {what}", caption, spec)
                     for what, caption, spec in compression_charts(study.compression, shown[0]))
    figures = []
    for panel in shown:
        if spec := panel_chart(panel, tolerance):
            over_k = panel.x == "k"
            ringed = over_k and any(f.k for f in free_ks(panel, tolerance))
            caption = captions.accuracy_caption(panel, tolerance, ringed)
            axes = places(marked(panel)) if over_k else ()
            if LATENCY_PLACE in axes:
                caption = f"{caption} {captions.latency_caption(panel)}"
            figures.append(Figure(f"{name} accuracy", caption, spec, axes, panel.title))
        if spec := drawing_chart(panel, tolerance):
            caption = captions.drawing_caption(panel, tolerance)
            figures.append(Figure(f"{name} network", caption, spec, title=panel.title))
    return tuple(figures)


def _side_by_side(sections: Sequence[Section], tolerance: float) -> tuple[Figure, ...]:
    from spaceless.beside import beside_chart, comparable

    shown = comparable([panel for section in sections for panel in section.panels], tolerance)
    spec = beside_chart(shown, tolerance)
    return (Figure("side by side", captions.beside_caption(shown, tolerance), spec),) if spec else ()


def _missing(planned: Sequence[Planned], outcomes: Sequence[Outcome]) -> list[str]:
    tested = {o.trial.id: {e.shuffle_last for e in o.evaluations} for o in outcomes}
    ended = {o.trial.id for o in outcomes if o.status != "finished"}
    missing = []
    for plan in planned:
        key = plan.trial.id
        if key not in tested:
            missing.append(plan.trial.label)
        elif key not in ended:
            lacking = [s for s in plan.schemes if s not in tested[key]]
            if shuffled := [s for s in lacking if s]:
                missing.append(f"{plan.trial.label}: tested with the last {listed(shuffled)} units shuffled")
            if 0 in lacking:
                missing.append(f"{plan.trial.label}: tested clean")
    return missing


def markdown_text(page: Page) -> str:
    """Return `page` in Markdown: the same answers and tables, without the figures."""
    parts = [f"# {plain(page.title)}"]
    for section in page.sections:
        parts.append(f"## {plain(section.title)}" if len(page.sections) > 1 else "")
        parts += [plain(text) for text in (section.asks, section.source) if text]
        for each in section.answers:
            parts.append(f"**{plain(each.text)}**")
            parts += [plain(text) for text in each.sentences[1:]]
        for table in section.tables:
            parts += [f"### {plain(table.title)}", markdown_table(table)]
        texts = [f"{topic}: {text}" for topic, group in section.differences.items() for text in group]
        for title, items in ((section.differences_title, texts), ("Not finished", section.failed),
                             ("Missing", section.missing)):
            if items:
                parts += [f"### {title}", "\n".join(f"- {plain(item)}" for item in items)]
        parts += [f"{plain(section.progress)}.", "\n".join(f"- {plain(command)}" for command in section.commands)]
    if page.problems:
        parts += ["## Without a result",
                  "\n".join(f"- {plain(p.where)}: {plain(p.text)}" for p in page.problems)]
    parts += ["## How it was measured", "\n".join(f"- {name}: {plain(text)}" for name, text in page.facts)]
    return "\n\n".join(part for part in parts if part) + "\n"


def csv_text(page: Page) -> str:
    """Return all rows of `page` as CSV: accuracies in percent, counts in units, an empty field for a missing number."""
    return csv_lines((section.name, row) for section in page.sections for row in section.rows)


def figures(dirs: str | Path | Sequence[str | Path], study: str | None = None) -> dict[str, alt.TopLevelMixin]:
    """Return the charts of the report of `dirs` as Altair objects, for a notebook.

    They are named as `write_files` names its files: number, study, what is shown, of which network where the study has
    several, and for a chart over K, which is there once for each of its axes, over what. Raises InputError as `gather`
    does.
    """
    import altair as alt

    page = gather([dirs] if isinstance(dirs, str | Path) else dirs, study)
    return {name: alt.Chart.from_dict(view) for name, view in page.views.items()}


def write_report(
    dirs: Sequence[str | Path], html: Path | None = None, csv: Path | None = None, markdown: bool = False, *,
    files: Path | None = None, study: str | Sequence[str] | None = None, tolerance: float = TOLERANCE,
) -> Path | str:
    """Write the report of `dirs` and return its path, or its text with `markdown`.

    Without any file or Markdown asked for, the page goes to `report.html` in the first folder; with `study` it tells
    of that study alone. `csv` gets all rows, the folder `files` every figure as SVG and PNG and every table as CSV.
    Tolerances are in percentage points. Raises InputError for folders without outcomes and for files that cannot be
    written.
    """
    if html is None and csv is None and files is None and not markdown:
        html = Path(dirs[0]) / "report.html"
    page = gather(dirs, study, pictures=bool(html or files), tolerance=tolerance)
    if csv is not None:
        write(csv, csv_text(page))
    if files is not None:
        write_files(page, files)
    if html is not None:
        write(html, html_text(page))
    return markdown_text(page) if markdown else html or files or csv or ""


def write_claims(dirs: Sequence[str | Path], folder: Path | None = None) -> str:
    """Return, as Markdown, what the outcomes in `dirs` say of the paper's claims, see `spaceless.evidence`.

    With `folder` the figures are written there as SVG, and the page looks for them in a folder of that name beside it.
    Raises InputError for folders whose outcomes say nothing and for files that cannot be written.
    """
    told = evidence_page(dirs, quote(folder.resolve().name) if folder else None)
    for name, spec in told.figures.items():
        assert folder is not None  # only then are they drawn
        write(folder / name, svg(spec))
    return told.text
