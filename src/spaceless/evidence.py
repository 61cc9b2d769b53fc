"""What stored outcomes say of the paper's claims: every claim with every setting that tests it, as Markdown."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import count
from pathlib import Path

from spaceless.errors import InputError
from spaceless.findings import near_chance
from spaceless.numerals import listed, with_spread
from spaceless.protocol import differences
from spaceless.rows import Row, load, rows
from spaceless.setting import TOLERANCE, Setting
from spaceless.tables import plain
from spaceless.theses import THESES, Judged, Thesis
from spaceless.trial import ShuffleOptions, Trial, is_control

_NONE = "no outcome here tests it"


@dataclass(frozen=True)
class Found:
    """A claim and what each setting that tests it says, by the setting's letter."""

    thesis: Thesis
    judged: dict[str, Judged]


def evidence(dirs: Sequence[str | Path]) -> tuple[dict[str, Setting], list[Found]]:
    """Return the settings of the outcomes in `dirs`, lettered, the longest trainings first, and the claims judged.

    Made data, holdouts and warm starts are left out: the claims are about trainings from scratch on real images. So
    are settings whose unchanged network is missing or near a blind guess: nothing follows from those.
    Raises InputError for a folder that does not exist.
    """
    outcomes, _, _ = load(dirs)
    groups: dict[str, list[Row]] = {}
    for row in rows(outcomes):
        trial = row.trial
        if row.n and not is_control(trial.data) and trial.holdout is None and trial.start is None:
            groups.setdefault(_unchanged(trial).id, []).append(row)
    found = telling([Setting(tuple(group)) for group in groups.values()])
    settings = dict(zip(_letters(), sorted(found, key=_order), strict=False))
    return settings, [Found(thesis, {letter: judged for letter, setting in settings.items()
                                     if (judged := thesis.judge(setting)) is not None}) for thesis in THESES]


def telling(settings: Iterable[Setting]) -> list[Setting]:
    """Return the settings of which some claim says something, and whose unchanged network is better than a guess."""
    return [each for each in settings if (base := each.base) is not None and base.classes
            and not near_chance(base, TOLERANCE) and any(thesis.judge(each) for thesis in THESES)]


def evidence_text(dirs: Sequence[str | Path]) -> str:
    """Return the page of `evidence` as Markdown; raise InputError if there is nothing to judge by."""
    settings, claims = evidence(dirs)
    if not settings:
        raise InputError(
            ", ".join(map(str, dirs)), found="no outcomes that the paper's claims could be judged by",
            expected="a network trained on real images, better than a blind guess, and changed ones beside it",
            cure="run one of its experiments, see `spaceless paper`")
    lines = [_HOW, "", "## Verdicts", "", f"| claim of the paper | {' | '.join(settings)} |",
             f"|:---|{':---|' * len(settings)}"]
    for number, claim in enumerate(claims, 1):
        verdicts = [f"{judged.verdict}, {_runs(judged.rows)}" if (judged := claim.judged.get(letter)) else ""
                    for letter in settings]
        lines.append(f"| {number}. {claim.thesis.says} | {' | '.join(verdicts)} |")
    lines += ["", "## Settings", ""]
    for letter, setting in settings.items():
        lines += _setting(letter, setting)
    for number, claim in enumerate(claims, 1):
        lines += ["", f"## {number}. {claim.thesis.says}", "", f"Paper: {claim.thesis.source}. Experiments: "
                  + ", ".join(f"`spaceless study {name}`" for name in claim.thesis.experiments) + ".", ""]
        lines += [f"- **{letter}, {judged.verdict}** ({_seeds(judged.rows)}). {judged.text}"
                  for letter, judged in claim.judged.items()] or [f"- {_NONE}."]
    return "\n".join(lines)


def _unchanged(trial: Trial) -> Trial:
    return trial.model_copy(update={
        "method": "baseline", "k": 0, "only": None, "strip": 0, "downsample": "avg", "shuffle": ShuffleOptions(),
        "seed": 0, "repeats": 1,
    })


def _order(setting: Setting) -> tuple[float, str]:
    trial = setting.rows[0].trial
    return -trial.recipe.epochs * (trial.train_images or 1 << 20) * trial.width, _label(setting)


def _letters() -> Iterable[str]:
    for number in count():
        yield chr(ord("A") + number % 26) * (1 + number // 26)


def _label(setting: Setting) -> str:
    trial = setting.rows[0].trial
    width = "" if trial.width == 1 else f" x {trial.width:g}"
    images = f"{trial.train_images:,}" if trial.train_images else "all"
    size = f", images of {trial.image_size} pixels" if trial.image_size else ""
    augment = ", no augmentation" if trial.recipe.augment == "none" else ""
    return (f"{trial.model}{width} on {trial.data}, {images} training images{size}, {trial.recipe.epochs} epochs of "
            f"the recipe {trial.recipe.name}{augment}")


def _setting(letter: str, setting: Setting) -> list[str]:
    base = setting.base
    assert base is not None  # see `evidence`
    reached = with_spread(base.top1, base.spread, 1)
    told = " ".join(plain(each.text) for each in differences(base.trial, None))
    return [f"- **{letter}**: {plain(_label(setting))}; the unchanged network reaches {reached} % ({_seeds((base,))}). "
            f"Not as in the paper: {told or 'nothing.'}"]


def _seeds(found: Sequence[Row]) -> str:
    images = sorted({row.images // row.n for row in found})
    return f"{_runs(found)}, {', '.join(f'{each:,}' for each in images)} test images"


def _runs(found: Sequence[Row]) -> str:
    seeds = {row.n for row in found}
    return "1 seed" if seeds == {1} else f"{listed(seeds)} seeds"


_HOW = f"""\
A loss of at most {TOLERANCE:g} point counts as none, as in the paper's Table 1. Intervals in brackets are 95 %: over
seeds where both sides have several (Student's), else those of the test images alone, which know nothing of what another
seed would give: a verdict by one seed is a hint. *Confirmed* and *not confirmed* need intervals on one side, wider
where many are compared; *in part* says that it holds for some of what the claim names, *open* that the figures leave it
undecided. How each claim is judged: `spaceless/theses.py`."""
