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
from spaceless.numerals import PLUS_MINUS, number, with_spread
from spaceless.paper import Axis, experiments
from spaceless.protocol import has_protocol, protocol
from spaceless.rows import Problem, Row, Study, load, rows
from spaceless.setting import TOLERANCE, Setting
from spaceless.tables import plain
from spaceless.theses import THESES, Thesis
from spaceless.trial import RECIPES, Outcome, ShuffleOptions, Trial, is_control
from spaceless.verdict import Judged

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


@dataclass(frozen=True)
class Evidence:
    """The settings by their letters, the longest trainings first, the claims judged, and what they were made from."""

    settings: dict[str, Setting]
    claims: list[Found]
    outcomes: list[Outcome]
    studies: list[Study]
    problems: list[Problem]


def evidence(dirs: Sequence[str | Path]) -> Evidence:
    """Return what the outcomes in `dirs` say of the claims.

    Made data, holdouts and warm starts are left out: the claims are about trainings from scratch on real images. So
    are settings whose unchanged network is missing or near a blind guess: nothing follows from those.
    Raises InputError for a folder that does not exist.
    """
    outcomes, studies, problems = load(dirs)
    groups: dict[tuple[str, int | None], list[Row]] = {}
    for row in rows(outcomes):
        trial = row.trial
        if not is_control(trial.data) and trial.holdout is None and trial.start is None:
            groups.setdefault(_key(trial, row), []).append(row)
    augmented = {key: Setting(tuple(group)) for key, group in groups.items()}
    found = [Setting(tuple(group), augmented.get(_augmented(group))) for group in groups.values()]
    settings = dict(zip(_letters(), sorted(telling(found), key=_order), strict=False))
    claims = [Found(thesis, {letter: judged for letter, setting in settings.items()
                             if (judged := thesis.judge(setting)) is not None}) for thesis in THESES]
    return Evidence(settings, claims, outcomes, studies, problems)


def telling(settings: Iterable[Setting]) -> list[Setting]:
    """Return the settings of which some claim says something, and whose unchanged network is better than a guess."""
    return [each for each in settings if (base := each.base) is not None and base.classes
            and not near_chance(base, TOLERANCE) and any(thesis.judge(each) for thesis in THESES)]


def evidence_page(dirs: Sequence[str | Path], folder: str | None = None) -> Told:
    """Return the page of `evidence`, with `folder` with figures, which it looks for in that folder beside itself.

    Raises InputError if there is nothing to judge by.
    """
    found = evidence(dirs)
    settings, claims = found.settings, found.claims
    if not settings:
        raise InputError(
            ", ".join(map(str, dirs)), found="no outcomes that the paper's claims could be judged by",
            expected="a network trained on real images, better than a blind guess, and changed ones beside it",
            cure="run one of its experiments, see `spaceless paper`")
    lines = [_HOW, "", "## Verdicts", "", f"| claim of the paper | {' | '.join(settings)} |",
             f"|:---|{':---|' * len(settings)}"]
    for place, claim in enumerate(claims, 1):
        verdicts = [f"{judged.verdict}, {_runs(judged.rows)}" if (judged := claim.judged.get(letter)) else ""
                    for letter in settings]
        lines.append(f"| {place}. {claim.thesis.says} | {' | '.join(verdicts)} |")
    lines += ["", "## Settings", ""]
    for letter, setting in settings.items():
        lines += _setting(letter, setting, found)
    shown = [] if folder is None else _drawn(settings, claims)
    for place, claim in enumerate(claims, 1):
        lines += ["", f"## {place}. {claim.thesis.says}", "", f"Paper: {claim.thesis.source}. Experiments: "
                  + ", ".join(f"`spaceless study {name}`" for name in claim.thesis.experiments) + ".", ""]
        lines += [f"- **{letter}, {judged.verdict}** ({_seeds(judged.rows)}). {judged.text}"
                  for letter, judged in claim.judged.items()] or [f"- {_NONE}."]
        for picture in (each for each in shown if place in each.claims):
            if place == min(picture.claims):
                about = f"{claim.thesis.says.rstrip('.')}: setting {picture.letter}"
                lines += ["", f"![{about}]({folder}/{picture.file})", "", f"*{picture.caption}*"]
            else:
                lines += ["", f"Figure of setting {picture.letter}: with claim {min(picture.claims)}."]
    if found.problems:
        lines += ["", "## Without a result", ""]
        lines += [f"- {plain(each.where)}: {plain(each.text)}" for each in found.problems]
    return Told("\n".join(lines), {each.file: each.spec for each in shown})


@dataclass
class _Picture:
    """What a setting says of the claims that the same figure of the paper shows."""

    letter: str
    experiment: str
    x: Axis
    claims: list[int]
    rows: tuple[Row, ...]
    caption: str = ""
    spec: Spec = field(default_factory=dict)

    @property
    def file(self) -> str:
        return f"claim-{min(self.claims):02d}-{self.letter.lower()}.svg"


def _drawn(settings: dict[str, Setting], claims: Sequence[Found]) -> list[_Picture]:
    """Return a picture for each setting and each figure of the paper; what a picture shows already needs no other."""
    from spaceless.charts import panel_chart

    pictures: list[_Picture] = []
    for place, claim in enumerate(claims, 1):
        name = claim.thesis.experiments[0]
        x = experiments()[name].x or "k"
        for letter, judged in claim.judged.items():
            for picture in (each for each in pictures if (each.letter, each.x) == (letter, x)):
                more = tuple(row for row in judged.rows if all(row is not other for other in picture.rows))
                if picture.experiment == name or not more:
                    picture.claims.append(place)
                    picture.rows += more
                    break
            else:
                pictures.append(_Picture(letter, name, x, [place], judged.rows))
    for picture in pictures:
        setting = settings[picture.letter]
        panel = Panel(f"Setting {picture.letter}: {plain(_label(setting))}", picture.x, picture.rows)
        spec = panel_chart(panel, TOLERANCE)
        assert spec is not None  # what is judged has an accuracy
        ringed = picture.x == "k" and any(free.k for free in free_ks(panel, TOLERANCE))
        picture.spec, picture.caption = on_paper(spec), plain(accuracy_caption(panel, TOLERANCE, ringed))
        if setting.base is not None and (own := setting.interval(setting.base, setting.base)) and own.lone:
            picture.caption += (f" The test images alone leave {PLUS_MINUS} {number(own.half, 1)} points of a "
                                "difference to the baseline (95 %).")
    return pictures


def _unchanged(trial: Trial) -> Trial:
    return trial.model_copy(update={
        "method": "baseline", "k": 0, "only": None, "strip": 0, "downsample": "avg", "shuffle": ShuffleOptions(),
        "seed": 0, "repeats": 1,
    })


def _key(trial: Trial, row: Row) -> tuple[str, int | None]:
    """Return what the rows of a setting share; images of their own size are those of that size."""
    return _unchanged(trial.model_copy(update={"image_size": None})).id, row.image_size or trial.image_size


def _augmented(group: Sequence[Row]) -> tuple[str, int | None]:
    """Return the key of the setting that differs from that of `group` in nothing but that images are augmented."""
    row = group[0]
    recipe = row.trial.recipe
    if recipe.augment != "none" or recipe.name not in RECIPES:
        return "", None
    usual = recipe.model_copy(update={"augment": RECIPES[recipe.name].augment})
    return _key(row.trial.model_copy(update={"recipe": usual}), row)


def _order(setting: Setting) -> tuple[float, str]:
    trial = setting.rows[0].trial
    return -trial.recipe.epochs * (trial.train_images or 1 << 20) * trial.width, _label(setting)


def _letters() -> Iterable[str]:
    for place in count():
        yield chr(ord("A") + place % 26) * (1 + place // 26)


def _label(setting: Setting) -> str:
    trial = setting.rows[0].trial
    width = "" if trial.width == 1 else f" x {trial.width:g}"
    images = f"{trial.train_images:,}" if trial.train_images else "all"
    size = f", images of {trial.image_size} pixels" if trial.image_size else ""
    augment = ", no augmentation" if trial.recipe.augment == "none" else ""
    usual = RECIPES.get(trial.recipe.name)
    rates = "" if usual and (usual.learning_rate, usual.batch_size) == (
        trial.recipe.learning_rate, trial.recipe.batch_size) else (
        f", learning rate {trial.recipe.learning_rate:g} for batches of {trial.recipe.batch_size}")
    return (f"{trial.model}{width} on {trial.data}, {images} training images{size}, {trial.recipe.epochs} epochs of "
            f"the recipe {trial.recipe.name}{augment}{rates}")


def _setting(letter: str, setting: Setting, found: Evidence) -> list[str]:
    base = setting.base
    assert base is not None  # see `evidence`
    reached = with_spread(base.top1, base.spread, 1)
    mine = {trial for row in setting.rows for trial in row.ids}
    told = [plain(each.text) for each in protocol([o for o in found.outcomes if o.trial.id in mine], None)]
    trial = setting.rows[0].trial
    if not has_protocol(trial):
        told.append("The paper has no such network on such data")
    lost = sorted({f"{plain(row.trial.model_copy(update={'seed': seed}).label)}: {what}" for row in setting.rows
                   for what, seeds in (("diverged", row.diverged), ("failed", row.failed)) for seed in seeds})
    spread = "" if setting.spread is None else (
        f"From seed to seed an accuracy varies by {number(setting.spread.deviation, 2)} points (standard deviation, "
        f"{setting.spread.freedom} degrees of freedom; network by network {number(setting.spread.least, 2)} to "
        f"{number(setting.spread.most, 2)}). ")
    return [f"- **{letter}**: {plain(_label(setting))}; the unchanged network reaches {reached} % ({_seeds((base,))}). "
            f"{spread}Not as in the paper: {'; '.join(each.rstrip('.') for each in told) or 'nothing'}.",
            *(f"  - without a result: {each}" for each in lost),
            *(f"  - `{command}`" for command in _commands(setting, found.studies))]


def _commands(setting: Setting, studies: Sequence[Study]) -> list[str]:
    """Return the commands that made the rows of `setting`."""
    mine = {trial for row in setting.rows for trial in row.ids}
    return sorted({study.command for study in studies
                   if study.command and any(planned.trial.id in mine for planned in study.planned)})


def _seeds(found: Sequence[Row]) -> str:
    images = sorted({row.images // row.n for row in found})
    return f"{_runs(found)}, {', '.join(f'{each:,}' for each in images)} test images"


def _runs(found: Sequence[Row]) -> str:
    least, most = min(row.n for row in found), max(row.n for row in found)
    return "1 seed" if most == 1 else f"{most} seeds" if least == most else f"{least} to {most} seeds"


_HOW = f"""\
A loss of at most {TOLERANCE:g} point counts as none, as in the paper's Table 1. Intervals in brackets are 95 %. Where
enough networks of a setting have several seeds, the intervals are Student's, of what other seeds would give on the same
test images; the spread over seeds is taken as one for all networks of the setting, those with one seed too. Elsewhere
they are of what other test images would give, which knows nothing of other seeds: there a verdict is a hint, and that
nothing is lost it can hardly show but for a network that gains. Where many differences are compared, their intervals
are wider, so that all of them hold together with 95 %. A training that diverged is a loss. *In part* says that a claim
holds for some of what it names, *open* that the figures leave it undecided. How each claim is judged: the module
`spaceless.theses`."""
