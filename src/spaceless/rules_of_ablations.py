"""The rules for the claims that an ablation tests: mismatched tests, single units, down-sampling, depth, field."""

from __future__ import annotations

import math
from collections.abc import Mapping

from spaceless.certainty import Interval
from spaceless.findings import DASH, standard_error
from spaceless.numerals import listed, number, signed
from spaceless.paper import experiments
from spaceless.rows import Row
from spaceless.setting import TOLERANCE, Setting, largest_free, sides, where
from spaceless.verdict import Judged, Verdict, combined, cost_from, in_points, weighed

_CHANCE_ERRORS = 3  # standard errors from a blind guess that still count as one
_MISMATCHED = 3  # last units that Table 2 left shuffles


def clean_collapses(setting: Setting) -> Judged | None:
    """A network that was trained as usual falls to chance when its last three units are shuffled in the test."""
    base, tested = setting.base, setting.tested("baseline")
    shuffled = {k: row for k, row in sorted(tested.items()) if k}
    if base is None or not shuffled or not base.classes:
        return None
    chance, row = 100 / base.classes, shuffled.get(_MISMATCHED)
    verdict: Verdict = "open"
    text = f"{number(base.top1, 1)} % clean; chance is {number(chance, 1)} %. "
    if row is not None and row.top1 is not None:
        error = standard_error(chance, max(1, row.images // row.n))
        above = row.top1 - chance - _CHANCE_ERRORS * error
        verdict = "confirmed" if above <= 0 else "not confirmed" if above > TOLERANCE else "open"
    curve = ", ".join(f"{k}: {number(r.top1, 1)}" for k, r in shuffled.items())
    return Judged(verdict, f"{text}By how many of the last are shuffled, in %: {curve}.", (base, *shuffled.values()))


def shuffled_do_not_care(setting: Setting) -> Judged | None:
    """A network that was trained with shuffling is as good without it in the test: up to the K of Table 2 left.

    Both tests are of the same networks on the same images: the difference itself counts for it.
    """
    base = setting.base
    pairs = {k: (row, clean) for k, row in sorted(setting.curve("shuffle").items())
             if (clean := setting.tested("shuffle", k).get(0)) is not None and clean.seeds == row.seeds}
    if not pairs or base is None:
        return None
    held: list[Verdict] = []
    apart: list[int] = []
    for k, (row, clean) in pairs.items():
        found = setting.interval(clean, row)
        assert found is not None  # both have an accuracy
        close = abs(found.difference) <= TOLERANCE
        if not close:
            apart.append(k)
        if k <= _MISMATCHED:
            held.append("confirmed" if close else
                        "not confirmed" if found.high < -TOLERANCE or found.low > TOLERANCE else "open")
    told = ", ".join(f"{k}: {number(row.top1, 1)} and {number(clean.top1, 1)}" for k, (row, clean) in pairs.items())
    free = largest_free(setting, "shuffle") or 0
    what = "shuffling in training"
    cost = f"{what} costs nothing up to K = {free}" if free else cost_from(setting, setting.curve("shuffle"), what)
    text = (f"By K, in %, shuffled and clean test of the same network: {told} (unchanged: {number(base.top1, 1)}). "
            + (f"More than a point apart at K = {listed(apart)}. " if apart else "") +
            f"Judged up to K = {_MISMATCHED}; {cost}.")
    return Judged(combined(held) if held else "open", text, (base, *(row for pair in pairs.values() for row in pair)))


def stride_hurts(setting: Setting) -> Judged | None:
    """Down-sampling 1x1 convolutions by a stride loses more than by pooling; the two poolings are alike."""
    average, strided, largest = (setting.curve("conv1x1", downsample=how) for how in ("avg", "stride", "max"))
    both = sorted(average.keys() & strided)
    if not both:
        return None
    better, worse, neither = sides(setting, ((k, average[k], strided[k]) for k in both))
    verdict = weighed(better, worse)
    gap = max(both, key=lambda k: (average[k].top1 or 0.0) - (strided[k].top1 or 0.0))
    text = (f"Average pooling against stride 2 is {where(better, worse, neither)}; most at K = {gap}, "
            f"{number(average[gap].top1, 1)} against {number(strided[gap].top1, 1)} %.")
    pooled = sorted(average.keys() & largest)
    if pooled:
        text += f" Against max pooling it is {where(*sides(setting, ((k, average[k], largest[k]) for k in pooled)))}."
    beside = (setting.base,) if setting.base is not None else ()
    return Judged(verdict, text, (*beside, *average.values(), *strided.values(), *largest.values()))


def early_layers(setting: Setting) -> Judged | None:
    """Shuffling one unit alone harms more in the first third of the units than in the last third."""
    base, alone = setting.base, setting.alone("shuffle")
    third = len(alone) // 3
    if base is None or not third:
        return None
    order = [alone[unit] for unit in sorted(alone)]
    first, last = (sum(row.top1 or 0.0 for row in part) / third for part in (order[:third], order[-third:]))
    error = math.hypot(*(_error(setting, row) / third for row in (*order[:third], *order[-third:])))
    verdict: Verdict = "open"
    if third > 1 and min(alone) == 1 and max(alone) == base.units:
        verdict = "confirmed" if last - first > 2 * error else "not confirmed" if first - last > 2 * error else "open"
    free = [unit for unit, row in alone.items()
            if (found := setting.interval(row, base)) is not None and found.difference >= -TOLERANCE]
    told = ", ".join(f"{unit}: {number(alone[unit].top1, 1)}" for unit in sorted(alone))
    spared = f"No loss by unit {listed(free)}" if free else "Each costs more than a point"
    firsts, lasts = (f"{word} unit" if third == 1 else f"{word} {third} units" for word in ("first", "last"))
    text = (f"Unchanged {number(base.top1, 1)} %; the {firsts} measured, each alone, come{'s' * (third == 1)} to "
            f"{number(first, 1)} %, the {lasts} to {number(last, 1)} %. {spared}. "
            f"By unit, in %: {told}.")
    return Judged(verdict, text, (base, *order))


def _error(setting: Setting, row: Row) -> float:
    """Return the standard error of an accuracy: over seeds where the setting has several, else of the test images."""
    spread = setting.spread
    return standard_error(row.top1 or 0.0, row.images) if spread is None else spread.deviation / math.sqrt(row.n)


def channel_shuffle(setting: Setting) -> Judged | None:
    """Shuffling the channels of the last unit alone costs accuracy; shuffling its positions less, if any."""
    base, channels, positions = setting.base, setting.curve("channel_shuffle"), setting.curve("shuffle")
    if base is None or not channels:
        return None
    found = setting.interval(channels[1], base) if 1 in channels else None
    against = setting.interval(channels[1], positions[1]) if 1 in channels and 1 in positions else None
    lost = found is not None and found.high < -TOLERANCE
    spared = setting.interval(positions[1], base) if 1 in positions else None
    unlike = against is not None and against.high < 0 and spared is not None and spared.low >= -TOLERANCE
    verdict: Verdict = ("confirmed" if lost and unlike else "in part" if lost else
                        "not confirmed" if found is not None and found.low >= -TOLERANCE else "open")
    told = ", ".join(f"{k}: {number(row.top1, 1)}" for k, row in sorted(channels.items()))
    text = f"Unchanged {number(base.top1, 1)} %; channels shuffled, by K, in %: {told}."
    if 1 in positions:
        text += f" Positions shuffled at K = 1: {number(positions[1].top1, 1)} %"
        text += ", which costs accuracy as well." if spared is not None and spared.high < 0 else "."
    beside = (positions[1],) if 1 in positions else ()
    return Judged(verdict, text, (base, *channels.values(), *beside))


def stripping(setting: Setting) -> Judged | None:
    """Changed units that cost nothing are needed for their depth: removing them costs accuracy."""
    texts: list[str] = []
    rows: list[Row] = []
    verdicts: list[Verdict] = []
    free = largest_free(setting, "conv1x1") or 0
    stripped = setting.stripped()
    for k, by_strip in sorted(stripped.items()):
        most = max(by_strip)
        found = setting.interval(by_strip[most], by_strip[0], len(stripped))
        assert found is not None  # both have an accuracy
        if k <= free:
            verdicts.append("confirmed" if found.high < 0 else "not confirmed" if found.low >= -TOLERANCE else "open")
        told = ", ".join(f"{k - strip}: {number(row.top1, 1)}" for strip, row in sorted(by_strip.items(), reverse=True))
        texts.append(f"Of {k} changed units so many kept, in %: {told}; with {most} removed {in_points(found)}")
        rows += by_strip.values()
    if not texts:
        return None
    beside = (setting.base,) if setting.base is not None else ()
    curve = setting.curve("conv1x1")
    kept = (f"no loss by changing up to K = {free}" if free else
            "what the unchanged network reaches is not known" if setting.base is None else
            cost_from(setting, curve, "changing units"))
    return Judged(combined(verdicts) if verdicts else "open", ". ".join(texts) + f"; {kept}.",
                  (*beside, *rows))


def field_beyond_image(setting: Setting) -> Judged | None:
    """A receptive field as large as the image is not enough for the accuracy of the unchanged network.

    Asked of VGG-16 alone, as in the paper: with several branches a receptive field is only an upper bound. By the field
    at the final map and by the axis of the paper's figure, which counts otherwise: where the two differ, it is open.
    """
    base, curve = setting.base, setting.curve("conv1x1")
    if base is None or not base.image_size or base.trial.model != "vgg16":
        return None
    fields = {k: row.receptive_field for k, row in sorted(curve.items()) if row.receptive_field is not None}
    found = {k: compared for k in fields if (compared := setting.interval(curve[k], base, len(curve))) is not None}
    if not found:
        return None
    axis = dict(enumerate(experiments()["fig3-receptive-field"].x_ticks))
    verdicts = {_field_verdict({k: (by[k], found[k]) for k in found if k in by}, base.image_size)
                for by in (fields, axis)}
    told = ", ".join(f"{k} ({fields[k]}, {axis.get(k, DASH)}): {signed(each.difference, 1)}"
                     for k, each in found.items())
    read = f" The paper reads {_READ[base.image_size]} off its figure." if base.image_size in _READ else ""
    text = (f"Images of {base.image_size} pixels; points against the unchanged network by K (pixels of the field at "
            f"the final map, by the paper's axis): {told}. With the field the kernels shrink, which is not told "
            f"apart.{read}")
    return Judged(verdicts.pop() if len(verdicts) == 1 else "open", text, (base, *curve.values()))


_READ = {32: "about 50 pixels, K = 5 to 6,", 64: "around 120 pixels, K = 2 to 3,"}  # section 4.4; its axis has neither


def _field_verdict(fields: Mapping[int, tuple[int, Interval]], size: int) -> Verdict:
    enough = [k for k, (field, found) in fields.items() if found.low >= -TOLERANCE and field <= size]
    least = min((field for field, found in fields.values() if found.difference >= -TOLERANCE), default=math.inf)
    little = [k for k, (field, found) in fields.items() if found.high < -TOLERANCE and size <= field < least]
    return weighed(little, enough)
