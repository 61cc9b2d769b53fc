"""What follows from the rows: panels that can be drawn, and the largest free K."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import groupby

from spaceless.paper import Axis
from spaceless.rows import Row
from spaceless.trial import Recipe

METHOD_NAMES = {
    "baseline": "baseline", "shuffle": "Shuffle Conv", "gap_fc": "GAP+FC", "conv1x1": "1x1 Conv",
    "channel_shuffle": "channel shuffle", "strip": "units removed",
}
DOWNSAMPLE_NAMES = {"avg": "average pooling", "max": "max pooling", "stride": "stride 2"}
DASH = "\N{EN DASH}"
MINUS = "\N{MINUS SIGN}"
ARROW = " \N{RIGHTWARDS ARROW} "


@dataclass(frozen=True)
class Panel:
    """Rows that share a network, data and protocol and can be drawn against one `x`; the baseline is among them.

    `ticks` are the labels that the paper's own axis has for K = 0, 1, ..., if they are not the K.
    """

    title: str
    x: Axis
    rows: tuple[Row, ...]
    ticks: tuple[int, ...] = ()

    @property
    def baseline(self) -> Row | None:
        """The unmodified network under the scheme it was trained with; None when it is missing or not unique."""
        found = [r for r in self.rows if r.trial.method == "baseline" and r.shuffle_last is None]
        return found[0] if len(found) == 1 else None

    @property
    def chance(self) -> float | None:
        """The accuracy of a blind guess in percent, or None when the number of classes is not known."""
        classes = next((r.classes for r in self.rows if r.classes), None)
        return 100 / classes if classes else None

    def series(self, row: Row) -> str:
        """Return the name of the line that `row` belongs to: its method and the options that vary in this panel."""
        return series_name(row, self.rows)


def series_name(row: Row, among: Iterable[Row]) -> str:
    """Return `row`'s method and those of its options that vary among the rows of that method or are unusual."""
    trial = row.trial
    parts = [METHOD_NAMES[trial.method]]
    if len({r.trial.downsample for r in among if r.trial.method == "conv1x1"}) > 1 and trial.method == "conv1x1":
        parts.append(DOWNSAMPLE_NAMES[trial.downsample])
    return ", ".join([*parts, *trial.shuffle.words])


def scheme_name(row: Row) -> str:
    """Return how `row` was trained, an arrow, how it was tested: the curves of mismatched schemes (Fig. 7)."""
    trained = {"baseline": "clean", "shuffle": "shuffled"}.get(row.trial.method, METHOD_NAMES[row.trial.method])
    if row.shuffle_last is not None:
        return f"{trained}{ARROW}{'shuffled' if row.shuffle_last else 'clean'}"
    return f"{trained}{ARROW}{trained if trained in ('clean', 'shuffled') else 'as trained'}"


def panels(rows: Sequence[Row], x: Axis | None = None, ticks: tuple[int, ...] = ()) -> list[Panel]:
    """Return the panels that show `rows`, split by what cannot share one picture; each row is in at least one.

    Without `x` the axis is the one that the trials of each picture suggest.
    """
    def place(row: Row) -> tuple[object, ...]:
        t = row.trial
        return (t.model, t.data, t.width, t.train_images or 0, t.test_images or 0, t.recipe.model_dump_json(),
                t.holdout or 0, t.start.model_dump_json() if t.start else "")

    ordered = sorted(rows, key=lambda r: tuple(map(str, place(r))))
    groups = [list(group) for _, group in groupby(ordered, key=place)]
    titles = panel_titles([group[0] for group in groups])
    found = []
    for title, group in zip(titles, groups, strict=True):
        group.sort(key=rows.index)
        sizes = sorted({r.trial.image_size or 0 for r in group})
        suggested = len(sizes) > 1 and all(r.trial.only is None and not r.trial.strip for r in group)
        if x == "receptive_field" or (x is None and suggested):
            found.append(Panel(title, "receptive_field", tuple(group), ticks))
            continue
        for size in sizes:
            name = f"{title}, {size} pixels" if len(sizes) > 1 and size else title
            part = [r for r in group if (r.trial.image_size or 0) == size]
            found += _split(name, part) if x is None else [Panel(name, x, tuple(part), ticks)]
    return sorted(found, key=lambda p: rows.index(p.rows[0]))


def _split(title: str, group: list[Row]) -> list[Panel]:
    bases = [r for r in group if r.trial.method == "baseline" and r.shuffle_last is None]
    singles = [r for r in group if r.trial.only is not None and r.shuffle_last is None]
    stripped = [r for r in group if r.trial.strip]
    strips = [r for r in group if any(_unstripped(r) == _unstripped(s) for s in stripped)]
    retested = {r.trial.method for r in group if r.shuffle_last is not None}
    mismatched = [r for r in group if r.trial.method in retested | {"baseline"}] if retested else []
    depth = [r for r in group if r.shuffle_last is None and r.trial.only is None and not r.trial.strip]
    shown = {id(r) for r in (*singles, *strips, *mismatched, *bases)}
    found = []
    if any(id(r) not in shown for r in depth) or not (singles or strips or mismatched):
        found.append(Panel(title, "k", tuple(depth or group)))
    if singles:
        found.append(Panel(title, "only", (*bases, *singles)))
    if strips:
        found.append(Panel(title, "kept", (*bases, *strips)))
    if mismatched:
        found.append(Panel(title, "shuffled", tuple(mismatched)))
    return found


def _unstripped(row: Row) -> str:
    return row.trial.model_copy(update={"strip": 0}).id


_AUGMENTED = {
    "none": "without augmentation", "crop_flip": "with augmentation", "resized_crop": "with random resized crops",
}
_TRAITS: tuple[Callable[[Row], str], ...] = (
    lambda r: f"width {r.trial.width:g}",
    lambda r: f"{r.trial.train_images:,} training images" if r.trial.train_images else "all training images",
    lambda r: f"{r.trial.test_images:,} test images" if r.trial.test_images else "all test images",
    lambda r: f"{r.trial.recipe.epochs} epoch{'s' if r.trial.recipe.epochs > 1 else ''}",
    lambda r: _AUGMENTED[r.trial.recipe.augment],
    lambda r: f"recipe {r.trial.recipe.name}",
    lambda r: f"{100 * r.trial.holdout:g} % of the training images held out" if r.trial.holdout else "nothing held out",
    lambda r: "from trained weights" if r.trial.start else "from scratch",
    lambda r: "with the original's answers" if r.trial.start and r.trial.start.distillation else "by the labels alone",
    lambda r: f"kernels by {r.trial.start.reduction}" if r.trial.start else "kernels drawn",
    lambda r: f"original {r.trial.start.run[:6]}" if r.trial.start else "no original",
    lambda r: f"batch {r.trial.recipe.batch_size}, learning rate {r.trial.recipe.learning_rate:g}",
)


def panel_titles(heads: Sequence[Row]) -> list[str]:
    """Return a title for each row: its network and data, and of its protocol what tells it from the others."""
    titles = []
    for head in heads:
        alike = [h for h in heads if (h.trial.model, h.trial.data) == (head.trial.model, head.trial.data)]
        traits = [trait(head) for trait in _TRAITS if len({trait(h) for h in alike}) > 1]
        titles.append(", ".join([f"{head.trial.model} on {head.trial.data}", *traits]))
    return [", ".join([title, *_rest(head, [h for h, other in zip(heads, titles, strict=True) if other == title])])
            for head, title in zip(heads, titles, strict=True)]


def _rest(head: Row, alike: Sequence[Row]) -> list[str]:
    """Return the fields of the recipe that tell `head` from rows whose titles are alike, in words."""
    fields = [name for name in Recipe.model_fields if len({getattr(h.trial.recipe, name) for h in alike}) > 1]
    return [f"{name.replace('_', ' ')} {getattr(head.trial.recipe, name)}" for name in fields]


def standard_error(percent: float, images: int) -> float:
    """Return the binomial standard error of an accuracy in percentage points: sqrt(p (1 - p) / n)."""
    p = min(max(percent / 100, 0.0), 1.0)
    return 100 * math.sqrt(p * (1 - p) / images)


def least_top1(classes: int, images: int, tolerance: float) -> float:
    """Return which accuracy in percent on so many images is above a blind guess by more than `tolerance` points."""
    chance = 100 / classes
    return chance + 3 * standard_error(chance, images) + tolerance


def near_chance(base: Row | None, tolerance: float) -> bool:
    """Tell whether the baseline is so near to a blind guess that nothing follows within `tolerance` points."""
    if base is None or base.top1 is None or not base.classes or not base.images:
        return False
    return base.top1 <= least_top1(base.classes, base.images, tolerance)


@dataclass(frozen=True)
class FreeK:
    """The largest K of one series such that it and every smaller measured K stay within the tolerance.

    `row` is the row at that K (the baseline for K = 0); `diverged` are the K at which a training diverged, which is
    not within the tolerance whatever its other seeds came to; `unmeasured` are smaller K of which nothing is known;
    `again` are larger K that stay within the tolerance although a smaller one does not.
    """

    series: str
    k: int
    row: Row
    measured: tuple[int, ...]
    diverged: tuple[int, ...]
    unmeasured: tuple[int, ...]
    again: tuple[int, ...]


def free_ks(panel: Panel, tolerance: float) -> list[FreeK]:
    """Return the largest free K of each series of a panel over K; `tolerance` is in percentage points.

    There is none where the baseline is missing, nor where it is near to chance: there every K would seem free.
    """
    base = panel.baseline
    if base is None or base.top1 is None or near_chance(base, tolerance):
        return []
    found = []
    for name in dict.fromkeys(panel.series(r) for r in panel.rows if r.trial.method != "baseline"):
        line = {r.trial.k: r for r in panel.rows if r.trial.method != "baseline" and panel.series(r) == name}
        good = {k: within(r, base.top1 - tolerance) for k, r in sorted(line.items())
                  if r.top1 is not None or r.diverged}
        k = 0
        for candidate, kept in good.items():
            if not kept:
                break
            k = candidate
        found.append(FreeK(
            name, k, line.get(k, base), tuple(good), diverged=tuple(i for i in good if line[i].diverged),
            unmeasured=tuple(i for i in range(1, k) if i not in good),
            again=tuple(i for i, kept in good.items() if kept and i > k),
        ))
    return found


def within(row: Row, least: float) -> bool:
    """Tell whether no training of the row diverged and its mean accuracy is at least `least` percent."""
    return not row.diverged and row.top1 is not None and at_least(row.top1, least)


def at_least(value: float, bound: float) -> bool:
    """Tell whether an accuracy or a difference is at least `bound`, where an exact tie is not left to rounding."""
    return value >= bound - 1e-9
