"""What the paper asks and prints: its 17 experiments, its parameter counts and where it contradicts itself, as data."""

from __future__ import annotations

import json
import re
import tomllib
from collections.abc import Collection
from functools import cache, cached_property
from itertools import product
from math import prod
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field

from spaceless.errors import InputError, unknown_name
from spaceless.spec import Spec, make, parse
from spaceless.trial import RECIPES, Augment, Downsample, Method, Recipe, ShuffleOptions, Trial

_BOOK = Path(__file__).with_suffix(".toml")
_MOST = 10_000  # trials of a study, and numbers of a list: "0-999999999" is a slip of the hand, and fills any memory


def _numbers(given: Any) -> Any:
    """Read "0-13", "0, 2, 5-7" or a single number as the numbers that it stands for."""
    if not isinstance(given, str):
        return (given,) if isinstance(given, int) else given
    ranges = [re.fullmatch(r"\s*(\d+)(?:\s*-\s*(\d+))?\s*", part) for part in given.split(",")]
    if not all(r and int(r[1]) <= int(r[2] or r[1]) for r in ranges):
        raise ValueError('numbers such as "0-13", "0, 2, 5-7" or [0, 2, 5]')
    spans = [range(int(r[1]), int(r[2] or r[1]) + 1) for r in ranges if r]
    if any(span[-1] - span[0] >= _MOST for span in spans) or sum(map(len, spans)) > _MOST:
        raise ValueError(f"at most {_MOST:,} numbers")
    return [n for span in spans for n in span]


Positive = Annotated[int, Field(ge=1)]
Numbers = Annotated[tuple[Annotated[int, Field(ge=0)], ...], Field(min_length=1), BeforeValidator(_numbers)]


class Scale(Spec):
    """How much of the paper's protocol is run; None means all images, and the epochs and recipe of the experiment."""

    name: str = "own"
    data: str | None = None  # in place of the experiment's own
    k_step: Positive = 1  # of each list of units every `k_step`-th, the last, and the K's that the paper prints
    width: Annotated[float, Field(gt=0)] = 1.0  # times the channels of every network
    train_images: Positive | None = None
    test_images: Positive | None = None
    epochs: Positive | None = None
    seeds: Numbers = (0,)
    repeats: Positive = 200  # test passes with fresh permutations
    recipe: str | None = None
    overrides: dict[str, Any] = Field(default_factory=dict)  # fields of the recipe


PRESETS: dict[str, Scale] = {
    "paper": Scale(name="paper"),  # the paper names no number of runs, and one initial seed (section 3.2)
    "fast": Scale(name="fast", seeds=(0, 1, 2), recipe="fast"),
    "smoke": Scale(name="smoke", width=0.25, train_images=10_000, test_images=2_000, repeats=20, recipe="smoke"),
}


def own_scheme(trial: Trial) -> int | None:
    """Return the `shuffle_last` that is how `trial` was trained, or None if no value is."""
    return {"baseline": 0, "shuffle": trial.k}.get(trial.method) if trial.only is None else None


class Printed(Spec):
    """One model's numbers in the paper: top-1 accuracy and its standard deviation in percent, parameters in millions.

    It was trained as `method` and `k` say and tested likewise unless `shuffle_last` says otherwise (see
    `trial.Evaluation`). A row with neither `k` nor `only` is about a whole curve: its best model, whose K the paper
    leaves out, or `largest_k`, its number of modifiable units. `gain`: percentage points over the table's baseline.
    """

    source: str
    model: str
    data: str
    method: Method = "baseline"
    k: int | None = None
    only: int | None = None
    strip: int = 0
    downsample: Downsample = "avg"
    image_size: int | None = None
    shuffle_last: int | None = None
    augment: Augment = "crop_flip"
    top1: float | None = None
    std: float | None = None
    params_m: float | None = None
    gain: float | None = None
    largest_k: int | None = None

    def matches(self, trial: Trial, shuffle_last: int | None = None) -> bool:
        """Tell whether this row is about `trial` under that test scheme, whatever the scale the trial runs at."""
        shared = ("model", "data", "method", "strip", "downsample", "image_size")
        alike = all(getattr(self, field) == getattr(trial, field) for field in shared)
        alike = alike and trial.holdout is None and trial.start is None  # the paper tests, and trains from scratch
        place = self.k in (None, trial.k) and (self.only == trial.only or self.k is self.only is None)
        own = own_scheme(trial)
        tested = {own if scheme is None else scheme for scheme in (self.shuffle_last, shuffle_last)}
        # The paper prints whether it augmented, not how: that is among the differences of a protocol.
        augmented = (self.augment == "none") == (trial.recipe.augment == "none")
        usual = augmented and trial.shuffle == ShuffleOptions()
        return alike and place and usual and len(tested) == 1


class Series(Spec):
    """Trials that differ in a few lists only: every method with every K (and with each single unit in `only`), ..."""

    model: str
    data: str
    methods: Annotated[tuple[Method, ...], Field(min_length=1)]
    ks: Numbers = (0,)
    only: Numbers = ()
    strips: Numbers = (0,)
    downsamples: Annotated[tuple[Downsample, ...], Field(min_length=1)] = ("avg",)
    image_sizes: Numbers = ()
    shuffle: ShuffleOptions = ShuffleOptions()
    shuffle_last: Numbers = ()  # further test schemes for each of them, as in trial.Evaluation
    augment: Augment | None = None
    recipe: str = "paper"
    overrides: dict[str, Any] = Field(default_factory=dict)
    smoke: dict[str, Any] = Field(default_factory=dict)  # fields of the scale `smoke` that would take too long

    @property
    def combinations(self) -> int:
        """How many trials the lists give with one seed, before any of them are thinned out."""
        places = len(self.ks) + len(self.only)
        lists = self.methods, self.downsamples, self.strips, self.image_sizes or (None,)
        return places * prod(map(len, lists))

    def trials(self, scale: Scale, seed: int, keep: Collection[int] = ()) -> list[Trial]:
        """Return this series' trials at `scale`, in the order of its lists; raise InputError for one that cannot be.

        The K's in `keep` are not thinned out.
        """
        if scale.name == "smoke":
            scale = make(Scale, "smoke", **scale.model_dump() | self.smoke)
        if (name := scale.recipe or self.recipe) not in RECIPES:
            raise unknown_name("recipe", name, RECIPES)
        fields = RECIPES[name].model_dump() | scale.overrides | self.overrides
        fields |= {f: v for f, v in (("epochs", scale.epochs), ("augment", self.augment)) if v}
        common = {f: getattr(scale, f) for f in ("width", "train_images", "test_images", "repeats")}
        common |= {"model": self.model, "data": scale.data or self.data, "shuffle": self.shuffle, "seed": seed,
                   "recipe": parse(Recipe, json.dumps(fields, default=str), "overrides")}
        own = data_sets()[self.data].image_size if self.data in data_sets() else None  # asking for it changes nothing
        sizes = [None if size == own else size for size in self.image_sizes] or [None]
        ks, only = (
            [unit for i, unit in enumerate(units) if i % scale.k_step == 0 or unit in keep or unit == units[-1]]
            for units in (self.ks, self.only)
        )
        places = [{"k": k} for k in ks] + [{"only": unit} for unit in only]
        return [
            make(Trial, "series", image_size=size, method=method, downsample=down, strip=strip, **place, **common)
            for size, method, down, place, strip in product(sizes, self.methods, self.downsamples, places, self.strips)
        ]


class Planned(Spec):
    """A trial, the `shuffle_last` values to evaluate it under besides its own scheme, and the passes for each."""

    trial: Trial
    evaluations: tuple[int, ...] = ()
    repeats: int = 1  # not trial.repeats: a baseline runs once as it is, but many times under shuffling


Axis = Literal["k", "only", "kept", "receptive_field", "shuffled"]


class Experiment(Spec):
    """A table or figure of the paper, or a user's study: a question, the trials that answer it, what is published.

    `x` is the horizontal axis: K; the one modified unit; the modified units kept (k - strip); the receptive field in
    pixels (`x_ticks`: as printed, for K = 0, 1, ...); the number of units shuffled, in training or only in the test.
    """

    name: Annotated[str, Field(pattern=r"^[\w.-]+$")]
    source: str = "own study"
    section: str = ""
    title: str = ""
    asks: str = ""
    x: Axis | None = None  # None: what the trials suggest
    x_ticks: tuple[int, ...] = ()
    also: tuple[str, ...] = ()  # experiments whose printed rows may be about the same trials
    series: Annotated[tuple[Series, ...], Field(min_length=1)]
    printed: tuple[Printed, ...] = ()
    scale: Scale | None = None

    def trials(self, scale: Scale) -> list[Planned]:
        """Return the different trials at `scale`, by seed, then K (the baseline first), equal ones merged.

        Raises:
            InputError: A trial cannot be, or there are more than 10,000.

        """
        count = len(scale.seeds) * sum(each.combinations for each in self.series)
        if count > _MOST:
            raise InputError(
                "series", found=f"{count:,} trials", expected=f"at most {_MOST:,}", cure="shorten some of their lists")
        merged: dict[str, Planned] = {}
        thinned = scale.k_step > 1 or (scale.name == "smoke" and any("k_step" in each.smoke for each in self.series))
        keep = {row.k for row in self.printed_all if row.k is not None} if thinned else set()
        for seed, series in product(scale.seeds, self.series):
            for trial in series.trials(scale, seed, keep):
                further = {last for last in series.shuffle_last if last != own_scheme(trial)}
                schemes = {*further, *(merged[trial.id].evaluations if trial.id in merged else ())}
                merged[trial.id] = Planned(trial=trial, evaluations=tuple(sorted(schemes)), repeats=scale.repeats)
        return sorted(merged.values(), key=lambda planned: (planned.trial.seed, planned.trial.k))

    @cached_property
    def printed_all(self) -> tuple[Printed, ...]:
        """The experiment's own printed rows, then the rows of the experiments in `also` that are about its trials."""
        schemes = [(p.trial, test) for p in self.trials(PRESETS["paper"]) for test in (None, *p.evaluations)]
        others = [row for name in self.also for row in experiment(name).printed_all]
        return self.printed + tuple(row for row in others if any(row.matches(*scheme) for scheme in schemes))


class Count(Spec):
    """A published parameter count in millions: the acceptance test of surgery."""

    network: str
    classes: int
    image_size: int
    method: Method = "baseline"
    k: int = 0
    millions: float
    source: str
    exact: int | None = None  # the network's own count, where it is known
    finding: str | None = None  # why the printed figure is not this network's

    def agrees(self, params: int) -> bool:
        """Tell whether `params` gives the printed figure, rounded or truncated to 2 decimals (the paper does both)."""
        return round(self.millions * 100) in (params // 10_000, (params + 5_000) // 10_000)


class DataSet(Spec):
    """A data set of the paper: what is known of it before it is there. `image_size` is the side in pixels."""

    name: str
    classes: int
    image_size: int
    train_images: int
    test_images: int


class Finding(Spec):
    """A place where the paper contradicts itself, its counts or geometry (`where`), and what follows for a reader."""

    name: str
    where: str
    paper_says: str
    we_find: str
    consequence: str


class _Book(Spec):
    data: tuple[DataSet, ...]
    experiment: tuple[Experiment, ...]
    count: tuple[Count, ...]
    finding: tuple[Finding, ...]


@cache
def _book() -> _Book:
    return parse(_Book, json.dumps(tomllib.loads(_BOOK.read_text(encoding="utf-8"))), _BOOK.name)


def data_sets() -> dict[str, DataSet]:
    """Return the data sets that the paper uses, by name."""
    return {each.name: each for each in _book().data}


def experiments() -> dict[str, Experiment]:
    """Return the paper's experiments by name, in the order of DESIGN section 1."""
    return {each.name: each for each in _book().experiment}


def experiment(name: str) -> Experiment:
    """Return the experiment called `name`, or raise InputError with the names there are."""
    if name not in experiments():
        raise unknown_name("experiment", name, experiments())
    return experiments()[name]


def counts() -> tuple[Count, ...]:
    """Return every published parameter count."""
    return _book().count


def findings() -> tuple[Finding, ...]:
    """Return every discrepancy found in the paper."""
    return _book().finding


def load_study(path: str | Path) -> Experiment:
    """Return the experiment in a user's TOML file, or raise InputError naming the file and the first bad field."""
    if not Path(path).exists():
        raise InputError(str(path), found="no such file", expected="a TOML file with [[series]]", cure="check the path")
    try:
        fields = tomllib.loads(Path(path).read_text(encoding="utf-8"))
        if isinstance(fields.get("series"), dict):
            raise InputError(f"{path}: series", found="[series]", expected="[[series]]", cure="double the brackets")
        name = re.sub(r"[^\w.-]+", "-", Path(path).stem)
        text = json.dumps({"name": name} | fields, default=str)
    except (OSError, ValueError, RecursionError) as error:  # a decoding error and a TOML error are ValueErrors
        raise InputError(str(path), found=error, expected="a TOML file with [[series]]", cure="correct it") from None
    study = parse(Experiment, text, str(path))
    try:
        _ = study.trials(study.scale or PRESETS["paper"]), study.printed_all
    except InputError as error:
        raise InputError(f"{path}: {error.what}", found=error.found, expected=error.expected, cure=error.cure) from None
    return study
