"""The protocol: everything in which stored trials differ from what the paper did, in sentences."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from spaceless.numerals import listed
from spaceless.paper import PRESETS, Experiment
from spaceless.trial import PAPER_MODELS, RANDOM_METHODS, RECIPES, Outcome, Recipe, Trial


@dataclass(frozen=True)
class Difference:
    """One thing that was not done as in the paper: a topic to group by, and a sentence."""

    topic: str
    text: str


def differences(trial: Trial, experiment: Experiment | None) -> list[Difference]:
    """Return everything in which `trial` differs from the paper's own (of `experiment`, else its usual protocol)."""
    return _differences(trial, _paper_trials(experiment))


def protocol(outcomes: Sequence[Outcome], experiment: Experiment | None) -> list[Difference]:
    """Return all differences of `outcomes` from the paper's protocol, each once; says for how many if not for all."""
    theirs = _paper_trials(experiment)
    found: dict[Difference, int] = {}
    for outcome in outcomes:
        own = _differences(outcome.trial, theirs)
        own += remarks([outcome])
        if outcome.precision and outcome.precision != "fp32":
            own.append(Difference("Precision", f"Trained in {outcome.precision}; the paper names no precision."))
        for difference in own:
            found[difference] = found.get(difference, 0) + 1
    seeds = sorted({o.trial.seed for o in outcomes})
    if seeds and seeds != [0]:
        runs = f"Up to {len(seeds)} runs" if len(seeds) > 1 else "One run"
        found[Difference("Runs", f"{runs} per network (seed {listed(seeds)}); the paper speaks of one initial seed and "
                                 "names no number of runs.")] = len(outcomes)
    return [
        d if n == len(outcomes) else Difference(d.topic, f"{d.text.removesuffix('.')} ({n} of {len(outcomes)} trials).")
        for d, n in sorted(found.items(), key=lambda item: (item[0].topic, -item[1]))
    ]


def has_protocol(trial: Trial) -> bool:
    """Tell whether the paper trained this network on this data, and a training of it can differ from the paper's."""
    return trial.model in PAPER_MODELS and trial.data in ("cifar100", "imagenet32", "imagenet")


def remarks(outcomes: Sequence[Outcome]) -> list[Difference]:
    """Return what the data and the trials themselves say must be shown with them, each sentence once."""
    found = [Difference("Data", o.data.note) for o in outcomes if o.data and o.data.note]
    found += [Difference("Trials", note) for o in outcomes for note in o.notes]
    return list(dict.fromkeys(found))


def _paper_trials(experiment: Experiment | None) -> dict[str, Trial]:
    planned = experiment.trials(PRESETS["paper"]) if experiment else []
    return {_identity(p.trial): p.trial for p in planned}


def _identity(trial: Trial) -> str:
    plain = {"width": 1.0, "train_images": None, "test_images": None, "seed": 0, "repeats": 1}
    # How images are augmented depends on the recipe and is listed with it; whether they are tells trials apart.
    augment = "none" if trial.recipe.augment == "none" else RECIPES["paper"].augment
    recipe = RECIPES["paper"].model_copy(update={"augment": augment})
    return trial.model_copy(update={**plain, "recipe": recipe}).id


def _differences(trial: Trial, theirs: dict[str, Trial]) -> list[Difference]:
    sets = {each.data for each in theirs.values()}
    if len(sets) == 1 and trial.data not in sets:
        (usual,) = sets
        swapped = _differences(trial.model_copy(update={"data": usual}), theirs)
        return [Difference("Data", f"{trial.data} instead of {usual}."), *swapped]
    paper = theirs.get(_identity(trial))
    found = []
    if paper is None:
        if theirs:
            found.append(Difference("Trials", "Not among the trials of this table or figure."))
        if not has_protocol(trial):
            return found
        recipe = RECIPES["imagenet" if trial.data == "imagenet" else "paper"]
        paper = trial.model_copy(update={"width": 1.0, "train_images": None, "test_images": None, "recipe": recipe,
                                         "repeats": 200 if trial.method in RANDOM_METHODS else 1})
    found += _assumed(trial)
    if trial.width != paper.width:
        found.append(Difference("Network", f"Every layer has {trial.width:g} times the paper's channels."))
    for what, ours, full in (("Training", trial.train_images, paper.train_images),
                             ("Test", trial.test_images, paper.test_images)):
        if ours != full:
            found.append(Difference("Data", f"{what} images: {ours:,} instead of all." if ours else
                                    f"{what} images: all instead of {full:,}."))
    if trial.image_size != paper.image_size:
        found.append(Difference("Data", f"Images of {trial.image_size or 'their own'} pixels instead of "
                                        f"{paper.image_size or 'their own'}."))
    if changes := _recipe_changes(trial.recipe, paper.recipe):
        found.append(Difference("Training", f"Recipe {trial.recipe.name}: {', '.join(changes)}."))
    if trial.repeats != paper.repeats:
        often = "once" if trial.repeats == 1 else f"{trial.repeats} times"
        found.append(Difference("Test", f"Models that shuffle are evaluated {often} instead of {paper.repeats}."))
    return found


# What the authors of these networks say of their own trainings on ImageNet, where ours are others.
_AUTHORS = {
    "resnet": "images of a side of 256 to 480 pixels, cropped and changed in colour, instead of crops of random size, "
              "and a rate that falls when the error stays where it is (He et al. 2016, section 3.4)",
    "vgg": "no batch normalisation, and a rate of 0.01 with a weight decay of 5e-4 (Simonyan & Zisserman 2015, "
           "section 3.1)",
    "mobilenet": "RMSProp at a rate of 0.045 that falls by 2 % in every epoch, with a weight decay of 4e-5 (Sandler et "
                 "al. 2018, section 6.1)",
    "squeezenet": "batches of 512 at a rate of 0.04 that falls along a line (Iandola et al. 2016)",
}


def _assumed(trial: Trial) -> list[Difference]:
    """Return what the paper's baselines on ImageNet, trained as their authors did, have and ours have not."""
    authors = next((said for name, said in _AUTHORS.items() if trial.model.startswith(name)), None)
    if trial.data != "imagenet" or authors is None:
        return []
    return [Difference("Training", "For ImageNet the paper names no recipe but those of the networks' authors. Ours is "
                                   f"SGD at a rate that falls in steps; theirs had {authors}.")]


def _recipe_changes(ours: Recipe, paper: Recipe) -> list[str]:
    changes = []
    for field in Recipe.model_fields:
        mine, theirs = getattr(ours, field), getattr(paper, field)
        shape = field in ("milestones", "factor", "warmup") and ours.schedule != paper.schedule
        if mine != theirs and field not in ("name", "precision") and not shape:
            text = {True: "on", False: "off"}.get(mine, mine) if isinstance(mine, bool) else mine
            was = {True: "on", False: "off"}.get(theirs, theirs) if isinstance(theirs, bool) else theirs
            changes.append(f"{field.replace('_', ' ')} {_plain(text)} instead of {_plain(was)}")
    return changes


def _plain(value: object) -> str:
    if isinstance(value, tuple):
        return " / ".join(f"{v:g}" for v in value) or "none"
    return f"{value:g}" if isinstance(value, float) else str(value).replace("_", " ")
