"""The paper's claims, and for each the rule by which a setting confirms it, contradicts it or leaves it open."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, NamedTuple

from spaceless.certainty import Interval, interval
from spaceless.findings import METHOD_NAMES, standard_error
from spaceless.numerals import listed, number, signed
from spaceless.rows import Row
from spaceless.setting import METHODS, TOLERANCE, Setting, largest_free, paper_k, sides, where

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


def last_layers(setting: Setting) -> Judged | None:
    """The last units need no space: no loss up to the paper's K, by each method."""
    base = setting.base
    texts: list[str] = []
    kinds: set[Verdict] = set()
    rows: list[Row] = []
    for method in METHODS:
        curve = setting.curve(method)
        if base is None or not curve:
            continue
        measured, sure = largest_free(setting, method), largest_free(setting, method, sure=True)
        theirs = paper_k(setting, method)
        first = interval(curve[min(curve)], base)
        assert measured is not None and sure is not None and first is not None
        if theirs is not None and sure >= theirs:
            kinds.add("confirmed")
        elif sure:
            kinds.add("in part" if theirs else "confirmed")
        else:
            kinds.add("not confirmed" if first.high < -TOLERANCE else "open")
        beside = "" if theirs is None else f", in the paper {theirs}"
        text = f"{METHOD_NAMES[method]}: no loss up to K = {measured}{beside}"
        if measured != sure:
            text += f" (with the whole interval up to {sure})"
        beyond = min((k for k in curve if k > measured), default=None)
        if beyond is not None:
            found = interval(curve[beyond], base)
            assert found is not None
            text += f"; K = {beyond}: {_points(found)}"
        texts.append(text)
        rows += curve.values()
    if base is None or not texts:
        return None
    verdict: Verdict = "in part"
    if len(kinds) == 1:
        (verdict,) = kinds
    return Judged(verdict, ". ".join(texts) + ".", (base, *rows))


def one_by_one(setting: Setting) -> Judged | None:
    """1x1 Conv bears more changed units than Shuffle Conv and GAP+FC."""
    free = {method: largest_free(setting, method) for method in METHODS}
    ours, curves = free["conv1x1"], {method: setting.curve(method) for method in METHODS}
    others = {m: k for m, k in free.items() if m != "conv1x1" and k is not None}
    if ours is None or not others:
        return None
    compared = {m: sides((k, curves["conv1x1"][k], curves[m][k]) for k in sorted(curves["conv1x1"].keys() & curves[m]))
                for m in others}
    ahead = all(ours > k and len(compared[m][0]) > len(compared[m][1]) for m, k in others.items())
    behind = all(ours < k or len(compared[m][0]) < len(compared[m][1]) for m, k in others.items())
    beats = any(ours > k and len(compared[m][0]) > len(compared[m][1]) for m, k in others.items())
    verdict: Verdict = "confirmed" if ahead else "not confirmed" if behind else "in part" if beats else "open"
    reached = ", ".join(f"{METHOD_NAMES[m]} {free[m]}" for m in METHODS if free[m] is not None)
    text = f"No loss up to K: {reached}. "
    text += ". ".join(f"1x1 Conv against {METHOD_NAMES[m]}: {where(*found)}" for m, found in compared.items()) + "."
    return Judged(verdict, text, tuple(row for curve in curves.values() for row in curve.values()))


def clean_collapses(setting: Setting) -> Judged | None:
    """A network that was trained as usual falls to chance when its last three units are shuffled in the test."""
    base, tested = setting.base, setting.tested("baseline")
    shuffled = {k: row for k, row in sorted(tested.items()) if k}
    if base is None or not shuffled or not base.classes:
        return None
    at = _MISMATCHED if _MISMATCHED in shuffled else min(shuffled)
    row, chance = shuffled[at], 100 / base.classes
    assert row.top1 is not None and base.top1 is not None
    error = standard_error(chance, max(1, row.images // row.n))
    if row.top1 <= chance + _CHANCE_ERRORS * error:
        verdict: Verdict = "confirmed"
    else:
        found = interval(row, base)
        assert found is not None
        verdict = "in part" if found.high < -TOLERANCE else "not confirmed"
    curve = ", ".join(f"{k}: {number(r.top1, 1)}" for k, r in shuffled.items())
    text = (f"{number(base.top1, 1)} % clean, {number(row.top1, 1)} % with the last {at} shuffled (chance "
            f"{number(chance, 1)} %). By how many are shuffled, in %: {curve}.")
    return Judged(verdict, text, (base, *shuffled.values()))


def shuffled_do_not_care(setting: Setting) -> Judged | None:
    """A network that was trained with shuffling is as good without it in the test."""
    pairs = {k: (row, setting.tested("shuffle", k)[0]) for k, row in sorted(setting.curve("shuffle").items())
             if 0 in setting.tested("shuffle", k)}
    base = setting.base
    if not pairs or base is None:
        return None
    free = largest_free(setting, "shuffle") or 0
    gaps = {k: (clean.top1 or 0.0) - (row.top1 or 0.0) for k, (row, clean) in pairs.items()}
    same = [k for k, gap in gaps.items() if abs(gap) <= TOLERANCE]
    # The paper claims it of those that keep the baseline's accuracy, Table 2 left shows K = 3.
    asked = [k for k in gaps if k <= max(free, _MISMATCHED)] or list(gaps)
    held = sum(k in same for k in asked)
    verdict: Verdict = "confirmed" if held == len(asked) else "in part" if held else "not confirmed"
    told = ", ".join(f"{k}: {number(row.top1, 1)} and {number(clean.top1, 1)}" for k, (row, clean) in pairs.items())
    return Judged(verdict, f"By K, in %, shuffled and clean test of the same network: {told} (the unchanged network: "
                           f"{number(base.top1, 1)}).", (base, *(row for pair in pairs.values() for row in pair)))


def parameters(setting: Setting) -> Judged | None:
    """GAP+FC and 1x1 Conv save parameters at no loss."""
    base = setting.base
    texts: list[str] = []
    rows: list[Row] = []
    verdict: Verdict = "not confirmed"
    if base is None or not base.params:
        return None
    for method in METHODS[1:]:
        curve = setting.curve(method)
        if not curve:
            continue
        sure, measured = largest_free(setting, method, sure=True), largest_free(setting, method)
        rows += curve.values()
        k = sure or measured
        if not k or not curve[k].params:
            texts.append(f"{METHOD_NAMES[method]}: none")
            continue
        verdict = "confirmed" if sure else "open" if verdict == "not confirmed" else verdict
        saved = 100 * (1 - (curve[k].params or 0) / base.params)
        how = "no loss with the whole interval" if sure else "no loss by the mean alone"
        texts.append(f"{METHOD_NAMES[method]}: {saved:.0f} % of the parameters at K = {k}, {how}, "
                     f"{number(curve[k].top1, 1)} against {number(base.top1, 1)} %")
    return Judged(verdict, ". ".join(texts) + ".", (base, *rows)) if texts else None


def no_augmentation(setting: Setting) -> Judged | None:
    """Without augmentation the changed networks are better than the unchanged one."""
    base = setting.base
    if base is None or base.trial.recipe.augment != "none":
        return None
    texts: list[str] = []
    rows: list[Row] = []
    verdicts: list[Verdict] = []
    for method in METHODS[1:]:
        curve = setting.curve(method)
        if curve:
            found = sides((k, row, base) for k, row in sorted(curve.items()))
            best = max(curve, key=lambda k: curve[k].top1 or 0.0)
            texts.append(f"{METHOD_NAMES[method]} {where(*found)}; best {number(curve[best].top1, 1)} % at K = {best}")
            rows += curve.values()
            better, worse, _ = map(len, found)
            verdicts.append("confirmed" if better > len(curve) / 2 else "in part" if better else
                            "not confirmed" if worse else "open")
    if not texts:
        return None
    verdict: Verdict = verdicts[0] if len(set(verdicts)) == 1 else "in part"
    return Judged(verdict, f"Unchanged {number(base.top1, 1)} %. " + ". ".join(texts) + ".", (base, *rows))


def stride_hurts(setting: Setting) -> Judged | None:
    """Down-sampling 1x1 convolutions by a stride loses more than by pooling; the two poolings are alike."""
    average, strided, largest = (setting.curve("conv1x1", downsample=how) for how in ("avg", "stride", "max"))
    both = sorted(average.keys() & strided)
    if not both:
        return None
    better, worse, neither = sides((k, average[k], strided[k]) for k in both)
    verdict: Verdict = ("confirmed" if better and not worse else "in part" if better else
                        "not confirmed" if worse else "open")
    gap = max(both, key=lambda k: (average[k].top1 or 0.0) - (strided[k].top1 or 0.0))
    text = (f"Average pooling against stride 2: {where(better, worse, neither)}; most at K = {gap}, "
            f"{number(average[gap].top1, 1)} against {number(strided[gap].top1, 1)} %.")
    pooled = sorted(average.keys() & largest)
    if pooled:
        text += f" Against max pooling: {where(*sides((k, average[k], largest[k]) for k in pooled))}."
    return Judged(verdict, text, tuple(each[k] for each in (average, strided) for k in both))


def early_layers(setting: Setting) -> Judged | None:
    """Shuffling one unit alone harms most in the first units and little in the last ones."""
    base, alone = setting.base, setting.alone("shuffle")
    third = len(alone) // 3
    if base is None or not third:
        return None
    order = [alone[unit] for unit in sorted(alone)]
    first, last = ([row.top1 or 0.0 for row in part] for part in (order[:third], order[-third:]))
    both = (*order[:third], *order[-third:])
    error = math.hypot(*(standard_error(row.top1 or 0.0, row.images) / third for row in both))
    gap = sum(last) / third - sum(first) / third
    verdict: Verdict = "confirmed" if gap > 2 * error else "not confirmed" if gap < -2 * error else "open"
    free = [unit for unit, row in alone.items()
            if (found := interval(row, base)) is not None and found.difference >= -TOLERANCE]
    told = ", ".join(f"{unit}: {number(alone[unit].top1, 1)}" for unit in sorted(alone))
    text = (f"Unchanged {number(base.top1, 1)} %; the first {third} units alone come to "
            f"{number(sum(first) / third, 1)} %, the last {third} to {number(sum(last) / third, 1)} %. No loss by unit "
            f"{listed(free) or 'none'}. By unit, in %: {told}.")
    return Judged(verdict, text, (base, *order))


def channel_shuffle(setting: Setting) -> Judged | None:
    """Shuffling the channels of the last unit alone costs accuracy at once, and more than shuffling its positions."""
    base, channels, positions = setting.base, setting.curve("channel_shuffle"), setting.curve("shuffle")
    if base is None or not channels:
        return None
    k = min(channels)
    found, beside = interval(channels[k], base), positions.get(k)
    against = None if beside is None else interval(channels[k], beside)
    assert found is not None
    lost = found.high < -TOLERANCE
    verdict: Verdict = ("confirmed" if lost and against is not None and against.high < 0 else "in part" if lost else
                        "not confirmed" if found.low >= -TOLERANCE else "open")
    told = ", ".join(f"{k}: {number(row.top1, 1)}" for k, row in sorted(channels.items()))
    text = f"Unchanged {number(base.top1, 1)} %; channels shuffled, by K, in %: {told}."
    if beside is not None:
        text += f" Positions shuffled at K = {k}: {number(beside.top1, 1)} %."
    return Judged(verdict, text, tuple(r for r in (base, *channels.values(), beside) if r is not None))


def stripping(setting: Setting) -> Judged | None:
    """The changed units are needed for their depth: removing them costs accuracy."""
    texts: list[str] = []
    rows: list[Row] = []
    kinds: set[Verdict] = set()
    for k, by_strip in sorted(setting.stripped().items()):
        most = max(by_strip)
        found = interval(by_strip[most], by_strip[0])
        assert found is not None
        kinds.add("confirmed" if found.high < 0 else "not confirmed" if found.low > 0 else "open")
        told = ", ".join(f"{k - strip}: {number(row.top1, 1)}" for strip, row in sorted(by_strip.items(), reverse=True))
        texts.append(f"Of {k} changed units so many kept, in %: {told}; with {most} removed {_points(found)}")
        rows += by_strip.values()
    if not texts:
        return None
    verdict: Verdict = "in part"
    if len(kinds) == 1:
        (verdict,) = kinds
    return Judged(verdict, ". ".join(texts) + ".", tuple(rows))


def field_beyond_image(setting: Setting) -> Judged | None:
    """The receptive field that accuracy needs is larger than the image."""
    base, curve = setting.base, setting.curve("conv1x1")
    fields = {k: row.receptive_field for k, row in curve.items() if row.receptive_field is not None}
    if base is None or not base.image_size or not fields or base.receptive_field is None:
        return None
    free = largest_free(setting, "conv1x1") or 0
    beyond = min((k for k in fields if k > free), default=None)
    needed = base.receptive_field if free == 0 else fields.get(free)
    if needed is None:
        return None
    lost = None if beyond is None else interval(curve[beyond], base)
    verdict: Verdict = "open"
    if beyond is not None and lost is not None:
        # Fields between the last that is enough and the first that is not were not measured.
        verdict = "confirmed" if fields[beyond] >= base.image_size and lost.high < -TOLERANCE else (
            "not confirmed" if needed <= base.image_size else "open")
    text = f"Images of {base.image_size} pixels; no loss down to a field of {needed} pixels (K = {free})"
    if beyond is not None and lost is not None:
        text += f"; with {fields[beyond]} pixels (K = {beyond}) {_points(lost)}"
    return Judged(verdict, text + ".", (base, *curve.values()))


THESES = (
    Thesis("The last layers tolerate the loss of spatial information.", "section 4.1, Fig. 2",
           ("fig2-vgg16", "fig2-resnet50"), last_layers),
    Thesis("1x1 Conv tolerates more changed layers than Shuffle Conv and GAP+FC.", "section 4.2, Fig. 2",
           ("fig2-vgg16", "fig2-resnet50"), one_by_one),
    Thesis("A network trained as usual falls to a random guess when its last 3 layers are shuffled in the test.",
           "section 4.1, Table 2 left, Fig. 7", ("table2-left", "fig7-mismatch"), clean_collapses),
    Thesis("A network that was trained with shuffling is as accurate whether or not the test shuffles.",
           "section 4.1, Table 2 left, Fig. 7", ("table2-left", "fig7-mismatch"), shuffled_do_not_care),
    Thesis("GAP+FC and 1x1 Conv save parameters at no loss of accuracy.", "section 4.1, Table 1",
           ("table1", "fig2-vgg16"), parameters),
    Thesis("Without augmentation GAP+FC and 1x1 Conv are better than the unchanged network.",
           "section 4.1, Table 2 right", ("table2-right",), no_augmentation),
    Thesis("For 1x1 Conv down-sampling by stride 2 is worse than by pooling.", "section A.1, Fig. 4",
           ("fig4-downsampling",), stride_hurts),
    Thesis("Shuffling a single layer harms the first layers most.", "section A.3, Fig. 6", ("fig6-single-layer",),
           early_layers),
    Thesis("Shuffling channels harms at once, unlike shuffling positions.", "section A.6, Fig. 10",
           ("fig10-channel-shuffle",), channel_shuffle),
    Thesis("The changed layers are needed: removing them costs accuracy.", "section 4.4, Fig. 3 left",
           ("fig3-depth",), stripping),
    Thesis("The receptive field that accuracy needs is larger than the image.", "section 4.4, Fig. 3 right",
           ("fig3-receptive-field",), field_beyond_image),
)
