"""A search for the largest K as it is shown: the answer in sentences, the trade-off as a table and as charts."""

from __future__ import annotations

from collections.abc import Sequence

from spaceless.axes import LATENCY_PLACE, PLACES, at_place, places
from spaceless.charts import panel_chart
from spaceless.compression import Compression, Tried
from spaceless.findings import DASH, METHOD_NAMES, Panel, at_least
from spaceless.looks import Spec
from spaceless.marks import points as marked
from spaceless.numerals import FIXED, listed, number, points, signed
from spaceless.rows import Row
from spaceless.tables import Column, Table
from spaceless.wording import Answer

_COSTS = {"params": "parameters", "macs": "multiply-adds", "latency": "time for a forward pass"}
_EVEN = 0.5  # the confidence that goes by the measured difference alone
_VERDICTS = {"baseline": "baseline", "within": "within", "beyond": "beyond", "open": "undecided",
             "diverged": "diverged"}


def compression_panel(search: Compression, rows: Sequence[Row]) -> Panel:
    """Return the panel of everything that a search has trained, the baseline among it whatever its recipe."""
    ids = {each for tried in search.tried for each in tried.ids}
    return Panel(f"{search.model} on {search.data}, held-out training images", "k",
                 tuple(row for row in rows if ids.intersection(row.ids)))


def compression_answer(search: Compression) -> Answer:
    """Return what a search has found, how sure that is, and what else a careful reader should know with it."""
    what = f"{search.model} on {search.data}"
    sure = f"{100 * search.confidence:g}{FIXED}%"
    if search.largest == 0:
        text = f"{what}: no K that was tried is shown to stay within {points(search.tolerance)} of the baseline."
        if search.alone:
            text = (f"{what}: no K is accepted. K = {listed(search.alone)} lies within {points(search.tolerance)} of "
                    "the baseline, but the K before it is not shown to, or was not tried.")
    elif search.chosen == 0:
        text = (f"{what}: up to K = {search.largest} of {search.units} units by {METHOD_NAMES[search.method]} stay "
                f"within {points(search.tolerance)} of the baseline, but none of those tried has fewer "
                f"{_COSTS[search.objective]} than it.").replace("fewer time", "less time")
    else:
        base, found = search.at(0), search.at(search.chosen)
        # Times that were measured hours apart do not compare well enough to be part of an answer that has not asked.
        asked = [cost for cost in _COSTS if cost != "latency" or search.objective == "latency"]
        saved = [f"{_saved(found, base, cost)} {_COSTS[cost]}" for cost in asked if _saved(found, base, cost)]
        other = "" if search.chosen == search.largest else f" (K = {search.largest} would be within the tolerance too)"
        text = (f"{what}: K = {search.chosen} of {search.units} units by {METHOD_NAMES[search.method]} stays within "
                f"{points(search.tolerance)} of the baseline with the fewest {_COSTS[search.objective]} of those tried "
                f"and accepted{other}: {', '.join(saved)}.").replace("fewest time", "least time")
    return Answer(text, tuple(_notes(search, sure)), "" if search.chosen == 0 else _certainty(search, sure))


def _certainty(search: Compression, sure: str) -> str:
    found = search.at(search.chosen)
    runs = "one training each" if len(search.seeds) == 1 else f"{len(search.seeds)} trainings each"
    text = (f"How sure: on {search.images:,} held-out training images, {runs}, the difference is "
            f"{signed(found.difference)} points, and at least {signed(found.low)} at {sure} confidence")
    text += ", which leaves out what another seed would give" if len(search.seeds) == 1 else ""
    return f"{text}. These images chose K, so that it looks a little better on them than it is."


def _notes(search: Compression, sure: str) -> list[str]:
    notes = []
    if search.test is not None:
        test = search.test
        beyond = "" if at_least(test.difference, -search.tolerance) else ", which is beyond the tolerance"
        ends = "" if search.confidence == _EVEN else (
            f" (at least {signed(test.low)} and at most {signed(test.high)}, each at {sure} confidence)")
        notes.append(f"On the {test.images:,} test images, read once: {number(test.chosen)}{FIXED}% against "
                     f"{number(test.baseline)}{FIXED}%, a difference of {signed(test.difference)} points"
                     f"{beyond}{ends}.")
    tried = [each.k for each in search.tried if each.k]
    if search.refused:
        notes.append(f"{search.refused}.")
    notes.append(f"{len(tried)} of {search.possible or search.units} K were tried (at most {search.budget}), each with "
                 f"{len(search.seeds)} seed{'s' if len(search.seeds) > 1 else ''}: {listed(tried)}.")
    if open_ks := [each.k for each in search.tried if each.verdict == "open"]:
        more = "A larger holdout" if len(search.seeds) == 1 else "A larger holdout or more seeds"
        notes.append(f"Undecided, and so not accepted: K = {listed(open_ks)}. {more} would narrow the interval.")
    if search.alone and search.largest:
        notes.append(f"Within the tolerance, but not accepted since the K before is not or was not tried: "
                     f"K = {listed(search.alone)}.")
    if search.objective == "latency":
        notes.append("Each time was measured after its own training, not side by side: what else the machine did is in "
                     "it.")
    if search.spent:
        notes.append("The search ended because no more K were to be tried; a larger budget may find a larger K.")
    if search.warm:
        notes.append(search.warm)
    return [*notes, *search.head]


def _saved(found: Tried, base: Tried, cost: str) -> str:
    ours, theirs = getattr(found, cost), getattr(base, cost)
    return "" if not ours or not theirs else f"{signed(100 * (ours / theirs - 1), 0)}{FIXED}%"


def compression_table(search: Compression) -> Table:
    """Return everything that was tried, by K: sizes, accuracy, its difference to the baseline, and the verdict."""
    columns = (
        Column("K", "units"), Column("top-1", "%, held out"), Column("differs", "points"),
        Column("at least", f"{100 * search.confidence:g} % sure"), Column("parameters", "M"),
        Column("multiply-adds", "M"), Column("latency", "ms"), Column("verdict", numeric=False),
    )
    lines, tones = [], []
    for each in sorted(search.tried, key=lambda tried: tried.k):
        chosen = ", chosen" if each.k == search.chosen and each.k else ""
        lines.append((
            str(each.k), number(each.top1), signed(each.difference) if each.k else DASH,
            signed(each.low) if each.k else DASH, number(each.params and each.params / 1e6, 3),
            number(each.macs and each.macs / 1e6, 1), number(each.latency, 3), _VERDICTS[each.verdict] + chosen,
        ))
        tones.append({"within": "good", "beyond": "bad", "diverged": "bad"}.get(each.verdict, ""))
    return Table(f"What was tried, and whether it is within {points(search.tolerance)}", columns, tuple(lines),
                 tuple(tones))


def compression_charts(search: Compression, panel: Panel) -> list[tuple[str, str, Spec]]:
    """Return name, caption and specification of the charts: accuracy against the objective, and against K."""
    spec = panel_chart(panel)
    if spec is None:
        return []
    how = ("Accuracy on held-out training images; what was not tried is not drawn. The dashed rule is the baseline's.")
    charts = [("accuracy", f"{panel.title}, every K that was tried. {how}", spec)]
    field = LATENCY_PLACE.field if search.objective == "latency" else search.objective
    place = next(each for each in PLACES if each.field == field)
    if place in places(marked(panel)):
        charts.insert(0, (f"accuracy over {place.name}", f"The trade-off: accuracy against {place.name}. {how}",
                          at_place(spec, place)))
    return charts
