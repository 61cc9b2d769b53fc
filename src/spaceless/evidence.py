"""What stored outcomes say of the paper's claims: every claim with every setting that tests it, as Markdown."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path
from typing import NamedTuple

from spaceless.captions import accuracy_caption
from spaceless.errors import InputError
from spaceless.findings import Panel, free_ks, near_chance
from spaceless.looks import Spec, on_paper
from spaceless.numerals import listed, with_spread
from spaceless.paper import experiments
from spaceless.protocol import differences
from spaceless.rows import Row, Study, load, rows
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


class Told(NamedTuple):
    """The page as Markdown, and the figures that it links to, by the names of their files, as Vega-Lite."""

    text: str
    figures: dict[str, Spec]


def evidence(dirs: Sequence[str | Path]) -> tuple[dict[str, Setting], list[Found], list[Study]]:
    """Return the settings of the outcomes in `dirs`, lettered, the longest trainings first, the claims judged, studies.

    Made data, holdouts and warm starts are left out: the claims are about trainings from scratch on real images. So
    are settings whose unchanged network is missing or near a blind guess: nothing follows from those.
    Raises InputError for a folder that does not exist.
    """
    outcomes, studies, _ = load(dirs)
    groups: dict[str, list[Row]] = {}
    for row in rows(outcomes):
        trial = row.trial
        if row.n and not is_control(trial.data) and trial.holdout is None and trial.start is None:
            groups.setdefault(_unchanged(trial).id, []).append(row)
    found = telling([Setting(tuple(group)) for group in groups.values()])
    settings = dict(zip(_letters(), sorted(found, key=_order), strict=False))
    return settings, [Found(thesis, {letter: judged for letter, setting in settings.items()
                                     if (judged := thesis.judge(setting)) is not None}) for thesis in THESES], studies


def telling(settings: Iterable[Setting]) -> list[Setting]:
    """Return the settings of which some claim says something, and whose unchanged network is better than a guess."""
    return [each for each in settings if (base := each.base) is not None and base.classes
            and not near_chance(base, TOLERANCE) and any(thesis.judge(each) for thesis in THESES)]


def evidence_page(dirs: Sequence[str | Path], folder: str | None = None) -> Told:
    """Return the page of `evidence`, with `folder` with figures, which it looks for in that folder beside itself.

    Raises InputError if there is nothing to judge by.
    """
    settings, claims, studies = evidence(dirs)
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
        lines += _setting(letter, setting, studies)
    shown = {} if folder is None else _drawn(settings, claims)
    for number, claim in enumerate(claims, 1):
        lines += ["", f"## {number}. {claim.thesis.says}", "", f"Paper: {claim.thesis.source}. Experiments: "
                  + ", ".join(f"`spaceless study {name}`" for name in claim.thesis.experiments) + ".", ""]
        lines += [f"- **{letter}, {judged.verdict}** ({_seeds(judged.rows)}). {judged.text}"
                  for letter, judged in claim.judged.items()] or [f"- {_NONE}."]
        for picture in (each for each in shown.values() if number in each.claims):
            if number == min(picture.claims):
                lines += ["", f"![Setting {picture.letter}]({folder}/{picture.file})", "", f"*{picture.caption}*"]
            else:
                lines += ["", f"Figure of setting {picture.letter}: with claim {min(picture.claims)}."]
    return Told("\n".join(lines), {each.file: each.spec for each in shown.values()})


@dataclass
class _Picture:
    """What a setting says of the claims that the same figure of the paper shows."""

    letter: str
    claims: list[int]
    rows: list[Row]
    caption: str = ""
    spec: Spec = field(default_factory=dict)

    @property
    def file(self) -> str:
        return f"claim-{min(self.claims):02d}-{self.letter.lower()}.svg"


def _drawn(settings: dict[str, Setting], claims: Sequence[Found]) -> dict[tuple[str, str], _Picture]:
    """Return a picture for each setting and each figure of the paper that its claims are about."""
    from spaceless.charts import panel_chart

    pictures: dict[tuple[str, str], _Picture] = {}
    for number, claim in enumerate(claims, 1):
        for letter, judged in claim.judged.items():
            picture = pictures.setdefault((claim.thesis.experiments[0], letter), _Picture(letter, [], []))
            picture.claims.append(number)
            picture.rows += [row for row in judged.rows if all(row is not each for each in picture.rows)]
    for (experiment, letter), picture in pictures.items():
        x = experiments()[experiment].x or "k"
        panel = Panel(f"Setting {letter}: {plain(_label(settings[letter]))}", x, tuple(picture.rows))
        spec = panel_chart(panel, TOLERANCE)
        assert spec is not None  # what is judged has an accuracy
        ringed = x == "k" and any(free.k for free in free_ks(panel, TOLERANCE))
        picture.spec, picture.caption = on_paper(spec), plain(accuracy_caption(panel, TOLERANCE, ringed))
    return pictures


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


def _setting(letter: str, setting: Setting, studies: Sequence[Study]) -> list[str]:
    base = setting.base
    assert base is not None  # see `evidence`
    reached = with_spread(base.top1, base.spread, 1)
    told = " ".join(plain(each.text) for each in differences(base.trial, None))
    return [f"- **{letter}**: {plain(_label(setting))}; the unchanged network reaches {reached} % ({_seeds((base,))}). "
            f"Not as in the paper: {told or 'nothing.'}"
            + "".join(f"\n  - `{command}`" for command in _commands(setting, studies))]


def _commands(setting: Setting, studies: Sequence[Study]) -> list[str]:
    """Return the commands that made the rows of `setting`."""
    mine = {trial for row in setting.rows for trial in row.ids}
    return sorted({study.command for study in studies
                   if study.command and any(planned.trial.id in mine for planned in study.planned)})


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
