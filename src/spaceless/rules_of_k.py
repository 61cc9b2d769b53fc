"""The rules for the claims about K: how many of the last units each method may change, and what that saves."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping

from spaceless.certainty import Interval
from spaceless.findings import METHOD_NAMES
from spaceless.numerals import listed, number, signed
from spaceless.rows import Row
from spaceless.setting import METHODS, TOLERANCE, Setting, largest_free, paper_k, sides, where
from spaceless.trial import Method
from spaceless.verdict import Judged, Verdict, in_points, loses, of_all, weighed


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
        asked = [k for k in curve if k <= (theirs or 2)]
        diverged = sorted(setting.diverged(method))
        lost = [k for k in asked if loses(setting, curve[k], len(asked))] or [k for k in diverged if k <= (theirs or 2)]
        verdicts.append("confirmed" if sure >= (theirs or 2) else "in part" if sure else
                        "not confirmed" if lost else "open")
        text = f"{METHOD_NAMES[method]}: no loss up to K = {measured}"
        text += "" if theirs is None else f", in the paper {theirs}"
        if measured != sure:
            text += f" (with the whole interval up to {sure})"
        beyond = min((k for k in curve if k > measured), default=None)
        if beyond is not None and (found := setting.interval(curve[beyond], base)) is not None:
            text += f"; K = {beyond}: {in_points(found)}"
        text += f"; a training diverged: K = {listed(diverged)}" if diverged else ""
        gaps = [k for k in range(1, beyond or max(curve)) if k not in curve and k not in diverged]
        texts.append(text + (f"; not measured: K = {listed(gaps)}" if gaps else ""))
        rows += curve.values()
    if base is None or not texts:
        return None
    return Judged(of_all(verdicts, len(METHODS)), ". ".join(texts) + ".", (base, *rows))


def one_by_one(setting: Setting) -> Judged | None:
    """1x1 Conv is the better one wherever it or the other loses accuracy, of the K at which both were measured.

    The largest K that each bears may be the same, as they are in the paper (Table 1, VGG-16).
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
        methods: tuple[Method, ...] = ("conv1x1", method)
        ended = [setting.curve(each).keys() | setting.diverged(each) for each in methods]
        free = [largest_free(setting, each, among=ended[0] & ended[1]) or 0 for each in methods]
        better, worse, neither = sides(setting, ((k, ours[k], theirs[k]) for k in both))
        verdicts.append(weighed(*([k for k in each if k > min(free)] for each in (better, worse))))
        texts.append(f"1x1 Conv against {METHOD_NAMES[method]}: {where(better, worse, neither)}; of the K measured of "
                     f"both no loss up to K = {free[0]} against {free[1]}")
        rows |= {id(row): row for curve in (ours, theirs) for row in curve.values()}
    if not verdicts:
        return None
    return Judged(of_all(verdicts, 2), ". ".join(texts) + ".", tuple(rows.values()))


def alike(setting: Setting) -> Judged | None:
    """Shuffle Conv and GAP+FC perform alike: within the tolerance of each other at every K."""
    shuffled, pooled = setting.curve("shuffle"), setting.curve("gap_fc")
    both = sorted(shuffled.keys() & pooled)
    found = {k: compared for k in both if (compared := setting.interval(shuffled[k], pooled[k], len(both))) is not None}
    if not found:
        return None
    near = [k for k, each in found.items() if each.low >= -TOLERANCE and each.high <= TOLERANCE]
    apart = [k for k, each in found.items() if each.high < -TOLERANCE or each.low > TOLERANCE]
    told = ", ".join(f"{k}: {signed(each.difference, 1)}" for k, each in found.items())
    far = f"more than a point apart, whole interval and all, at K = {listed(apart)}" if apart else (
        "nowhere more than a point apart with the whole interval")
    text = f"Shuffle Conv minus GAP+FC by K, in points: {told}; {far}."
    verdict = weighed(near, apart)
    if verdict == "confirmed" and len(near) < len(found):
        verdict = "in part"
    return Judged(verdict, text, tuple(each[k] for each in (shuffled, pooled) for k in found))


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
            verdicts.append("not confirmed" if loses(setting, curve.get(1)) else "open")
            texts.append(f"{METHOD_NAMES[method]} saves none that is known to cost nothing")
            continue
        verdicts.append("confirmed" if sure else "open")
        how = "no loss with the whole interval" if sure else "no loss by the mean alone"
        saved = 100 * (1 - params / base.params)
        texts.append(f"{METHOD_NAMES[method]} saves {saved:.0f} % of the parameters at K = {k}, {how}, "
                     f"{number(curve[k].top1, 1)} against {number(base.top1, 1)} %")
    if base is None or not texts:
        return None
    return Judged(of_all(verdicts, 2), ". ".join(texts) + ".", (base, *rows))


def no_augmentation(setting: Setting) -> Judged | None:
    """Without augmentation a changed network is better than the unchanged one, by more than with augmentation.

    The best of each is compared, of the K measured with and without: of more K the best is better by chance.
    """
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
        better, worse, neither = sides(setting, ((k, row, base) for k, row in sorted(curve.items())))
        usual = setting.augmented.curve(method) if setting.augmented is not None else {}
        shared = curve.keys() & usual
        best, gain = _best(setting, curve, shared or curve)
        text = f"{METHOD_NAMES[method]} is {where(better, worse, neither)}; best at K = {best}: {in_points(gain)}"
        more = math.nan  # than with augmentation, in points; 0 where that is not sure
        if shared and setting.augmented is not None and setting.augmented.base is not None:
            other, with_it = _best(setting.augmented, usual, shared)
            text += (f"; with augmentation its best of K = {listed(sorted(shared))} is {in_points(with_it)} at "
                     f"K = {other}")
            more = gain.difference - with_it.difference
            more = more if abs(more) > math.hypot(gain.half, with_it.half) else 0.0
        verdicts.append("not confirmed" if more < 0 or not (better or neither) else
                        "confirmed" if better and more > 0 else "in part" if better and math.isnan(more) else "open")
        texts.append(text)
        rows += curve.values()
    if not texts:
        return None
    text = f"Unchanged {number(base.top1, 1)} %. " + ". ".join(texts) + "."
    if setting.augmented is None:
        text += " With augmentation nothing was measured: a gain need not be due to its absence."
    return Judged(of_all(verdicts, 2), text, (base, *rows))


def _best(setting: Setting, curve: Mapping[int, Row], ks: Collection[int]) -> tuple[int, Interval]:
    """Return at which of the `ks` the accuracy is best, and by how much better than the unchanged network's it is."""
    best = max(ks, key=lambda k: curve[k].top1 or 0.0)
    assert setting.base is not None  # asked by both callers
    found = setting.interval(curve[best], setting.base, len(ks))  # the best of so many
    assert found is not None  # both have an accuracy
    return best, found
