"""The paper's claims, and for each the rule by which a setting confirms it, contradicts it or leaves it open."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

from spaceless.certainty import Interval, interval
from spaceless.findings import METHOD_NAMES, standard_error
from spaceless.numerals import listed, number, signed
from spaceless.rows import Row
from spaceless.setting import METHODS, TOLERANCE, Setting, largest_free, paper_k, sides, where
from spaceless.trial import Method

_CHANCE_ERRORS = 3  # standard errors from a blind guess that still count as one
_MISMATCHED = 3  # last units that Table 2 left shuffles

Verdict = Literal["confirmed", "in part", "not confirmed", "open"]


class Judged(NamedTuple):
    """What one setting says of a claim: the verdict, the figures behind it, and the rows that they are of."""

    verdict: Verdict
    text: str
    rows: tuple[Row, ...]


@dataclass(frozen=True)
class Thesis:
    """One claim of the paper, where it stands, the experiments that test it, and the rule for a setting.

    The rule returns None where the setting holds nothing about it.
    """

    says: str
    source: str
    experiments: tuple[str, ...]
    judge: Callable[[Setting], Judged | None]


def _points(found: Interval) -> str:
    return f"{signed(found.difference, 1)} points ({signed(found.low, 1)} to {signed(found.high, 1)})"


def combined(verdicts: Iterable[Verdict]) -> Verdict:
    """Return the verdict of parts: what holds for some of them holds in part, and open parts leave all open."""
    found = set(verdicts)
    if len(found) == 1:
        return found.pop()
    return "in part" if found & {"confirmed", "in part"} else "open"


def _of_methods(verdicts: Sequence[Verdict], named: int) -> Verdict:
    """Return the verdict of a claim that names so many methods: confirmed only where each of them was measured."""
    verdict = combined(verdicts)
    return "in part" if verdict == "confirmed" and len(verdicts) < named else verdict


def _of(speaks_for: Sequence[int], against: Sequence[int]) -> Verdict:
    """Return the verdict where so many K speak for a claim, and so many against it."""
    if speaks_for:
        return "in part" if against else "confirmed"
    return "not confirmed" if against else "open"


def _lost(row: Row | None, base: Row) -> bool:
    """Tell whether `row` loses more than the tolerance against the unchanged network, whole interval and all."""
    found = interval(row, base) if row is not None else None
    return found is not None and found.high < -TOLERANCE


def last_layers(setting: Setting) -> Judged | None:
    """The last units need no space: no loss up to the paper's K, or to K = 2 where it names none, by each method."""
    base = setting.base
    texts: list[str] = []
    verdicts: list[Verdict] = []
    rows: list[Row] = []
    for method in METHODS:
        curve = setting.curve(method)
        if base is None or not curve:
            continue
        measured, sure = largest_free(setting, method), largest_free(setting, method, sure=True)
        theirs = paper_k(setting, method)
        assert measured is not None and sure is not None  # there are a baseline and a curve
        lost = [k for k, row in curve.items() if k <= (theirs or 2) and _lost(row, base)]
        verdicts.append("confirmed" if sure >= (theirs or 2) else "in part" if sure else
                        "not confirmed" if lost else "open")
        text = f"{METHOD_NAMES[method]}: no loss up to K = {measured}"
        text += "" if theirs is None else f", in the paper {theirs}"
        if measured != sure:
            text += f" (with the whole interval up to {sure})"
        beyond = min((k for k in curve if k > measured), default=None)
        if beyond is not None and (found := interval(curve[beyond], base)) is not None:
            text += f"; K = {beyond}: {_points(found)}"
        failed = sorted(setting.failed(method) - curve.keys())
        text += f"; trained to no result: K = {listed(failed)}" if failed else ""
        gaps = [k for k in range(1, beyond or max(curve)) if k not in curve and k not in failed]
        texts.append(text + (f"; not measured: K = {listed(gaps)}" if gaps else ""))
        rows += curve.values()
    if base is None or not texts:
        return None
    return Judged(_of_methods(verdicts, len(METHODS)), ". ".join(texts) + ".", (base, *rows))


def one_by_one(setting: Setting) -> Judged | None:
    """1x1 Conv bears more changed units than each of the others, of the K at which both were measured.

    It has to be the better one at a K that it bears and the other does not.
    """
    ours, base = setting.curve("conv1x1"), setting.base
    texts: list[str] = []
    verdicts: list[Verdict] = []
    rows: dict[int, Row] = {}
    for method in ("shuffle", "gap_fc"):
        theirs = setting.curve(method)
        both = sorted(ours.keys() & theirs)
        if base is None or not both:
            continue
        free = [largest_free(setting, each, among=both) or 0 for each in ("conv1x1", method)]
        better, worse, neither = sides((k, ours[k], theirs[k]) for k in both)
        # Between the two largest K one of them loses and the other does not: there they have to be told apart.
        verdicts.append("confirmed" if any(free[1] < k <= free[0] for k in better) else
                        "not confirmed" if any(free[0] < k <= free[1] for k in worse) else "open")
        texts.append(f"No loss up to K = {free[0]} against {free[1]} of {METHOD_NAMES[method]}; beside that it is "
                     f"{where(better, worse, neither)}")
        rows |= {id(row): row for curve in (ours, theirs) for row in curve.values()}
    if not verdicts:
        return None
    return Judged(_of_methods(verdicts, 2), ". ".join(texts) + ".", tuple(rows.values()))


def alike(setting: Setting) -> Judged | None:
    """Shuffle Conv and GAP+FC perform alike: within the tolerance of each other, up to the K that the paper draws."""
    shuffled, pooled = setting.curve("shuffle"), setting.curve("gap_fc")
    found = {k: compared for k in sorted(shuffled.keys() & pooled)
             if (compared := interval(shuffled[k], pooled[k])) is not None}
    if not found:
        return None
    near = [k for k, each in found.items() if each.low >= -TOLERANCE and each.high <= TOLERANCE]
    apart = [k for k, each in found.items() if each.high < -TOLERANCE or each.low > TOLERANCE]
    told = ", ".join(f"{k}: {signed(each.difference, 1)}" for k, each in found.items())
    far = f"more than a point apart, whole interval and all, at K = {listed(apart)}" if apart else (
        "nowhere more than a point apart with the whole interval")
    text = f"Shuffle Conv minus GAP+FC by K, in points: {told}; {far}."
    return Judged(_of(near, apart), text, tuple(each[k] for each in (shuffled, pooled) for k in found))


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
        found = interval(clean, row)
        assert found is not None  # both have an accuracy
        close = abs(found.difference) <= TOLERANCE
        if not close:
            apart.append(k)
        if k <= _MISMATCHED:
            held.append("confirmed" if close else
                        "not confirmed" if found.high < -TOLERANCE or found.low > TOLERANCE else "open")
    told = ", ".join(f"{k}: {number(row.top1, 1)} and {number(clean.top1, 1)}" for k, (row, clean) in pairs.items())
    free = largest_free(setting, "shuffle") or 0
    cost = f"costs nothing up to K = {free}" if free else "itself costs accuracy from the first K measured on"
    text = (f"By K, in %, shuffled and clean test of the same network: {told} (unchanged: {number(base.top1, 1)}). "
            + (f"More than a point apart at K = {listed(apart)}. " if apart else "") +
            f"Judged up to K = {_MISMATCHED}; shuffling in training {cost}.")
    return Judged(combined(held) if held else "open", text, (base, *(row for pair in pairs.values() for row in pair)))


def parameters(setting: Setting) -> Judged | None:
    """GAP+FC and 1x1 Conv save parameters at no loss."""
    base = setting.base
    texts: list[str] = []
    verdicts: list[Verdict] = []
    rows: list[Row] = []
    for method in METHODS[1:]:
        curve = setting.curve(method)
        if base is None or not base.params or not curve:
            continue
        rows += curve.values()
        sure = largest_free(setting, method, sure=True)
        k = sure or largest_free(setting, method)
        params = curve[k].params if k else None
        if not k or params is None or params >= base.params:
            verdicts.append("not confirmed" if _lost(curve.get(1), base) else "open")
            texts.append(f"{METHOD_NAMES[method]} saves none that is known to cost nothing")
            continue
        verdicts.append("confirmed" if sure else "open")
        how = "no loss with the whole interval" if sure else "no loss by the mean alone"
        saved = 100 * (1 - params / base.params)
        texts.append(f"{METHOD_NAMES[method]} saves {saved:.0f} % of the parameters at K = {k}, {how}, "
                     f"{number(curve[k].top1, 1)} against {number(base.top1, 1)} %")
    if base is None or not texts:
        return None
    return Judged(_of_methods(verdicts, 2), ". ".join(texts) + ".", (base, *rows))


def no_augmentation(setting: Setting) -> Judged | None:
    """Without augmentation a changed network is better than the unchanged one, by more than with augmentation."""
    base = setting.base
    if base is None or base.trial.recipe.augment != "none":
        return None
    texts: list[str] = []
    rows: list[Row] = []
    verdicts: list[Verdict] = []
    for method in METHODS[1:]:
        curve = setting.curve(method)
        if not curve:
            continue
        better, worse, neither = sides((k, row, base) for k, row in sorted(curve.items()))
        best = max(curve, key=lambda k: curve[k].top1 or 0.0)
        gain = interval(curve[best], base)
        assert gain is not None  # both have an accuracy
        text = f"{METHOD_NAMES[method]} is {where(better, worse, neither)}; best at K = {best}: {_points(gain)}"
        other = _gain(setting.augmented, method)
        if other is not None:
            text += f"; with augmentation its best is {_points(other[1])} at K = {other[0]}"
        more = other is not None and gain.difference - other[1].difference > math.hypot(gain.half, other[1].half)
        verdicts.append("not confirmed" if not better and not neither else
                        "confirmed" if better and more else "in part" if better and other is None else "open")
        texts.append(text)
        rows += curve.values()
    if not texts:
        return None
    text = f"Unchanged {number(base.top1, 1)} %. " + ". ".join(texts) + "."
    if setting.augmented is None:
        text += " With augmentation nothing was measured: a gain need not be due to its absence."
    return Judged(_of_methods(verdicts, 2), text, (base, *rows))


def _gain(setting: Setting | None, method: Method) -> tuple[int, Interval] | None:
    """Return the K at which `method` is best, and by how much better than the unchanged network it is there."""
    curve = setting.curve(method) if setting is not None else {}
    if setting is None or setting.base is None or not curve:
        return None
    best = max(curve, key=lambda k: curve[k].top1 or 0.0)
    found = interval(curve[best], setting.base)
    return (best, found) if found is not None else None


def stride_hurts(setting: Setting) -> Judged | None:
    """Down-sampling 1x1 convolutions by a stride loses more than by pooling; the two poolings are alike."""
    average, strided, largest = (setting.curve("conv1x1", downsample=how) for how in ("avg", "stride", "max"))
    both = sorted(average.keys() & strided)
    if not both:
        return None
    better, worse, neither = sides((k, average[k], strided[k]) for k in both)
    verdict = _of(better, worse)
    gap = max(both, key=lambda k: (average[k].top1 or 0.0) - (strided[k].top1 or 0.0))
    text = (f"Average pooling against stride 2 is {where(better, worse, neither)}; most at K = {gap}, "
            f"{number(average[gap].top1, 1)} against {number(strided[gap].top1, 1)} %.")
    pooled = sorted(average.keys() & largest)
    if pooled:
        text += f" Against max pooling it is {where(*sides((k, average[k], largest[k]) for k in pooled))}."
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
    error = math.hypot(*(_error(row) / third for row in (*order[:third], *order[-third:])))
    verdict: Verdict = "open"
    if third > 1 and min(alone) == 1 and max(alone) == base.units:
        verdict = "confirmed" if last - first > 2 * error else "not confirmed" if first - last > 2 * error else "open"
    free = [unit for unit, row in alone.items()
            if (found := interval(row, base)) is not None and found.difference >= -TOLERANCE]
    told = ", ".join(f"{unit}: {number(alone[unit].top1, 1)}" for unit in sorted(alone))
    text = (f"Unchanged {number(base.top1, 1)} %; the first {third} units measured, each alone, come to "
            f"{number(first, 1)} %, the last {third} to {number(last, 1)} %. No loss by unit {listed(free) or 'none'}. "
            f"By unit, in %: {told}.")
    return Judged(verdict, text, (base, *order))


def _error(row: Row) -> float:
    """Return the standard error of an accuracy: over seeds where there are several, else that of the test images."""
    return row.spread / math.sqrt(row.n) if row.spread is not None else standard_error(row.top1 or 0.0, row.images)


def channel_shuffle(setting: Setting) -> Judged | None:
    """Shuffling the channels of the last unit alone costs accuracy; shuffling its positions less, if any."""
    base, channels, positions = setting.base, setting.curve("channel_shuffle"), setting.curve("shuffle")
    if base is None or not channels:
        return None
    found = interval(channels[1], base) if 1 in channels else None
    against = interval(channels[1], positions[1]) if 1 in channels and 1 in positions else None
    lost = found is not None and found.high < -TOLERANCE
    unlike = against is not None and against.high < 0 and not _lost(positions[1], base)
    verdict: Verdict = ("confirmed" if lost and unlike else "in part" if lost else
                        "not confirmed" if found is not None and found.low >= -TOLERANCE else "open")
    told = ", ".join(f"{k}: {number(row.top1, 1)}" for k, row in sorted(channels.items()))
    text = f"Unchanged {number(base.top1, 1)} %; channels shuffled, by K, in %: {told}."
    if 1 in positions:
        text += f" Positions shuffled at K = 1: {number(positions[1].top1, 1)} %"
        text += ", which costs accuracy as well." if _lost(positions[1], base) else "."
    beside = (positions[1],) if 1 in positions else ()
    return Judged(verdict, text, (base, *channels.values(), *beside))


def stripping(setting: Setting) -> Judged | None:
    """Changed units that cost nothing are needed for their depth: removing them costs accuracy."""
    texts: list[str] = []
    rows: list[Row] = []
    verdicts: list[Verdict] = []
    free = largest_free(setting, "conv1x1") or 0
    for k, by_strip in sorted(setting.stripped().items()):
        most = max(by_strip)
        found = interval(by_strip[most], by_strip[0])
        assert found is not None  # both have an accuracy
        if k <= free:
            verdicts.append("confirmed" if found.high < 0 else "not confirmed" if found.low >= -TOLERANCE else "open")
        told = ", ".join(f"{k - strip}: {number(row.top1, 1)}" for strip, row in sorted(by_strip.items(), reverse=True))
        texts.append(f"Of {k} changed units so many kept, in %: {told}; with {most} removed {_points(found)}")
        rows += by_strip.values()
    if not texts:
        return None
    beside = (setting.base,) if setting.base is not None else ()
    kept = f"no loss by changing up to K = {free}" if free else "changing units costs accuracy already"
    return Judged(combined(verdicts) if verdicts else "open", ". ".join(texts) + f"; {kept}.",
                  (*beside, *rows))


def field_beyond_image(setting: Setting) -> Judged | None:
    """A receptive field as large as the image is not enough for the accuracy of the unchanged network.

    Asked of VGG-16 alone, as in the paper: with several branches a receptive field is only an upper bound.
    """
    base = setting.base
    fields = {k: (row.receptive_field, found) for k, row in sorted(setting.curve("conv1x1").items())
              if row.receptive_field is not None and base is not None and (found := interval(row, base)) is not None}
    if base is None or not base.image_size or not fields or base.trial.model != "vgg16":
        return None
    enough = [k for k, (field, found) in fields.items() if found.low >= -TOLERANCE and field <= base.image_size]
    least = min((field for field, found in fields.values() if found.difference >= -TOLERANCE), default=math.inf)
    little = [k for k, (field, found) in fields.items()
              if found.high < -TOLERANCE and base.image_size <= field < least]
    told = ", ".join(f"{field}: {signed(found.difference, 1)}" for field, found in fields.values())
    text = (f"Images of {base.image_size} pixels; points against the unchanged network by the field in pixels, "
            f"K = {listed(fields)}: {told}. With the field the kernels shrink, which is not told apart.")
    return Judged(_of(little, enough), text, (base, *setting.curve("conv1x1").values()))


THESES = (
    Thesis("The last layers tolerate the loss of spatial information.", "section 4.1, Fig. 2",
           ("fig2-vgg16", "fig2-resnet50"), last_layers),
    Thesis("1x1 Conv tolerates more changed layers than Shuffle Conv and GAP+FC.", "section 4.2, Fig. 2",
           ("fig2-vgg16", "fig2-resnet50"), one_by_one),
    Thesis("Shuffle Conv and GAP+FC perform alike.", "section 4.2, Fig. 2", ("fig2-vgg16", "fig2-resnet50"), alike),
    Thesis("A network trained as usual falls to a random guess when its last 3 layers are shuffled in the test.",
           "section 4.1, Table 2 left, Fig. 7", ("table2-left", "fig7-mismatch"), clean_collapses),
    Thesis("Trained with shuffling, a network is as accurate whether or not the test shuffles.",
           "section 4.1, Table 2 left, Fig. 7", ("table2-left", "fig7-mismatch"), shuffled_do_not_care),
    Thesis("GAP+FC and 1x1 Conv save parameters at no loss of accuracy.", "section 4.1, Table 1",
           ("fig2-vgg16", "table1"), parameters),
    Thesis("GAP+FC and 1x1 Conv gain more where images are not augmented (the paper: ResNet-50 alone).",
           "section 4.1, Table 2 right", ("table2-right",), no_augmentation),
    Thesis("For 1x1 Conv down-sampling by stride 2 is worse than by pooling.", "section A.1, Fig. 4",
           ("fig4-downsampling",), stride_hurts),
    Thesis("Shuffling a single layer harms the first layers most.", "section A.3, Fig. 6", ("fig6-single-layer",),
           early_layers),
    Thesis("Shuffling channels harms at once, unlike shuffling positions.", "section A.6, Fig. 10",
           ("fig10-channel-shuffle",), channel_shuffle),
    Thesis("The changed layers are needed: removing them costs accuracy.", "section 4.4, Fig. 3 left",
           ("fig3-depth", "fig5-resnet50"), stripping),
    Thesis("The receptive field that accuracy needs is normally larger than the image.", "section 4.4, Fig. 3 right",
           ("fig3-receptive-field",), field_beyond_image),
)
