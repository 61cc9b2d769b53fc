"""Trials, recipes and outcomes: one identity for one training, nothing accepted that cannot be meant, exact JSON."""

from __future__ import annotations

import json

import pytest
from pydantic import ValidationError

from spaceless.errors import InputError
from spaceless.spec import make, parse
from spaceless.trial import (
    METHODS,
    RECIPES,
    Change,
    DataFacts,
    Epoch,
    Evaluation,
    Latency,
    Outcome,
    Recipe,
    ShuffleOptions,
    Trial,
)

BASE = {"model": "vgg16", "data": "cifar100"}
FAST = RECIPES["fast"]

# One other value for every field: what it is, and for which base trials it must change the identity.
EVERYTHING = {"baseline", "shuffle", "gap_fc", "conv1x1", "channel_shuffle", "strip"}
CHANGED = EVERYTHING - {"baseline"}
RANDOM = {"shuffle", "channel_shuffle"}
FIELDS = {
    "model": ("resnet50", EVERYTHING),
    "data": ("cifar10", EVERYTHING),
    "k": (4, CHANGED),
    "strip": (1, CHANGED - {"strip"}),
    "downsample": ("max", {"conv1x1"}),
    "shuffle": ({"per_image": True}, {"shuffle"}),
    "width": (0.5, EVERYTHING),
    "image_size": (64, EVERYTHING),
    "train_images": (500, EVERYTHING),
    "test_images": (500, EVERYTHING),
    "recipe": (FAST, EVERYTHING),
    "seed": (1, EVERYTHING),
    "repeats": (7, RANDOM),
    "holdout": (0.1, EVERYTHING),
    "start": ({"run": "0" * 16, "weights_sha256": "0" * 64}, {"conv1x1", "gap_fc"}),
}
UNCHANGEABLE = EVERYTHING - {"conv1x1", "gap_fc"}  # they have no kernels to make of trained ones
REFUSED = {("k", "baseline"), ("strip", "strip"), *(("start", method) for method in UNCHANGEABLE)}  # no such trial
WITHOUT_INFLUENCE = {("strip", "baseline")}  # put to its default: nothing is changed, so nothing can be stripped


def trial(**fields) -> Trial:
    return make(Trial, "test", **BASE | fields)


def base(method: str) -> dict:
    return {"method": method, "k": 0 if method == "baseline" else 3}


@pytest.mark.parametrize("method", sorted(EVERYTHING))
@pytest.mark.parametrize("name", FIELDS)
def test_a_field_changes_the_identity_exactly_where_it_has_influence(name, method):
    value, relevant = FIELDS[name]
    if (name, method) in REFUSED:
        with pytest.raises(InputError):
            trial(**base(method) | {name: value})
        return
    changed, plain = trial(**base(method) | {name: value}), trial(**base(method))
    assert (changed.id != plain.id) == (method in relevant)
    assert (changed == plain) == (method not in relevant)


def test_the_table_above_holds_every_field():
    assert set(FIELDS) == set(Trial.model_fields) - {"method", "only"}  # these two have tests of their own


@pytest.mark.parametrize("option", ["per_image", "shared", "fixed", "patch"])
def test_every_shuffle_option_is_part_of_the_identity(option):
    assert set(ShuffleOptions.model_fields) == {"per_image", "shared", "fixed", "patch"}
    value = 2 if option == "patch" else True
    assert trial(**base("shuffle"), shuffle={option: value}).id != trial(**base("shuffle")).id


def test_every_recipe_field_is_part_of_the_identity():
    other = {
        "name": "mine", "epochs": 3, "batch_size": 64, "optimizer": "adamw", "learning_rate": 0.2, "momentum": 0.8,
        "nesterov": False, "weight_decay": 0.0, "schedule": "one_cycle", "milestones": (0.5,), "factor": 0.1,
        "warmup": 0.1, "augment": "none", "precision": "fp32",
    }
    assert set(other) == set(Recipe.model_fields)
    plain = RECIPES["paper"].model_dump()
    ids = {trial(recipe=Recipe(**plain | {name: value})).id for name, value in other.items()}
    assert len(ids | {trial().id}) == len(other) + 1


def test_every_method_with_k_0_is_one_baseline():
    everything = {"downsample": "max", "shuffle": {"fixed": True}, "strip": 2, "repeats": 9}
    trials = [trial(), *(trial(method=m, k=0, **everything) for m in METHODS), trial(method="shuffle", k="0")]
    assert {t.id for t in trials} == {trial().id}
    assert {t.method for t in trials} == {"baseline"}
    assert {t.repeats for t in trials} == {1}


def test_a_different_method_unit_or_k_is_a_different_training():
    trials = [trial(method=m, k=3) for m in METHODS]
    trials += [trial(method="shuffle", k=1), trial(method="shuffle", only=1), trial(method="shuffle", only=2)]
    assert len({t.id for t in trials}) == len(trials)


def test_only_changes_one_unit_whether_k_is_left_out_or_given():
    assert trial(method="conv1x1", only=3) == trial(method="conv1x1", only=3, k=1)
    assert trial(method="conv1x1", only=3, k=0).k == 1  # 0 is what a command line hands over when nothing was said


@pytest.mark.parametrize(("fields", "literal"), [
    # Stored runs are found by these. If this fails, finished work is trained again: raise SPECIFICATION knowingly.
    ({}, "2f710be52e1518e8"),
    ({"method": "shuffle", "k": 3}, "77619aaebfefe4fc"),
    ({"method": "conv1x1", "only": 3}, "5c83362346cf2609"),
])
def test_stored_identities_never_change_silently(fields, literal):
    assert Trial(**BASE, **fields).id == literal


def test_spelling_does_not_change_the_identity():
    written = {**BASE, "method": "shuffle", "k": 3.0, "width": 1, "recipe": RECIPES["paper"].model_dump(), "only": None}
    assert Trial.model_validate(written).id == "77619aaebfefe4fc"
    assert Trial.model_validate_json(json.dumps(written)).id == "77619aaebfefe4fc"


@pytest.mark.parametrize("fields", [{}, {"method": "shuffle", "k": 3, "shuffle": {"patch": 2}},
                                    {"method": "conv1x1", "only": 3, "downsample": "stride"},
                                    {"method": "gap_fc", "k": 4, "strip": 2, "width": 0.1, "seed": 7}])
def test_json_round_trip(fields):
    made = trial(**fields)
    again = parse(Trial, made.model_dump_json(), "test")
    assert again == made
    assert again.id == made.id
    assert hash(again) == hash(made)


def test_records_are_frozen():
    made = trial(method="shuffle", k=3)
    with pytest.raises(ValidationError):
        made.k = 4
    with pytest.raises(ValidationError):
        made.recipe.epochs = 1
    with pytest.raises(ValidationError):
        made.shuffle.patch = 2


@pytest.mark.parametrize(("fields", "where", "must_say"), [
    ({"method": "shufle", "k": 3}, "method", METHODS),
    ({"method": "shufle"}, "method", METHODS),  # K = 0 is no excuse
    ({"model": "vgg61"}, "model", ("vgg16", "resnet50", "resnet152", "mobilenet_v2", "squeezenet1_0", "timm:NAME",
                                   "torchvision:NAME", "chain:16-M-24", "did you mean 'vgg16'?")),
    ({"method": "conv1x1", "k": 3, "downsample": "median"}, "downsample", ("avg", "max", "stride")),
    ({"method": "shuffle", "k": 3, "downsample": "median"}, "downsample", ("avg", "max", "stride")),
    ({"method": "gap_fc", "k": 3, "shuffle": {"patches": 2}}, "shuffle.patches", ()),
    ({"k": 3}, "method", METHODS),
    ({"method": "shuffle", "k": -1}, "k", ("0",)),
    ({"method": "shuffle", "k": 2, "only": 3}, "k", ("1",)),
    ({"method": "gap_fc", "only": 3}, "only", ("shuffle", "conv1x1", "channel_shuffle")),
    ({"method": "strip", "only": 3}, "only", ("shuffle", "conv1x1", "channel_shuffle")),
    ({"only": 3}, "method", METHODS),
    ({"method": "shuffle", "only": 0}, "only", ("1",)),
    ({"method": "shuffle", "k": 2, "strip": 3}, "strip", ("2",)),
    ({"method": "strip", "k": 2, "strip": 1}, "strip", ()),
    ({"method": "shuffle", "k": 3, "shuffle": {"patch": 0}}, "shuffle.patch", ("1",)),
    ({"seed": -1}, "seed", ("0",)),
    ({"width": 0}, "width", ("0",)),
    ({"width": float("nan")}, "width", ("finite",)),
    ({"width": float("inf")}, "width", ("finite",)),
    ({"train_images": 0}, "train_images", ("1",)),
    ({"repeats": 0, "method": "shuffle", "k": 1}, "repeats", ("1",)),
    ({"kk": 3}, "kk", ()),
    ({"recipe": RECIPES["paper"].model_dump() | {"lr": 0.1}}, "recipe.lr", ()),
    ({"recipe": RECIPES["paper"].model_dump() | {"milestones": (1.5,)}}, "recipe.milestones", ("1",)),
])
def test_what_cannot_be_meant_is_refused_with_the_valid_answers(fields, where, must_say):
    with pytest.raises(InputError) as caught:
        trial(**fields)
    message = str(caught.value)
    assert where in caught.value.what
    assert message.count("\n") == 0
    missing = [word for word in must_say if str(word) not in message]
    assert not missing, message


@pytest.mark.parametrize("text", ["", "{", "[]", "null", '{"model": "vgg16"}', '{"model": "vgg16", "data": 3}',
                                  "[" * 5000, '{"model": "vgg16", "data": "x", "seed": 1e400}'])
def test_broken_json_is_an_input_error_that_names_the_file(text):
    with pytest.raises(InputError, match=r"runs/trial\.json"):
        parse(Trial, text, "runs/trial.json")


def test_recipes_are_the_published_ones():
    paper, imagenet = RECIPES["paper"], RECIPES["imagenet"]
    assert (paper.learning_rate, paper.momentum, paper.nesterov, paper.weight_decay) == (0.1, 0.9, True, 5e-4)
    assert (paper.batch_size, paper.epochs, paper.factor, paper.augment) == (128, 200, 0.2, "crop_flip")
    assert [m * paper.epochs for m in paper.milestones] == [60, 120, 160]
    assert (imagenet.learning_rate, imagenet.batch_size, imagenet.weight_decay) == (0.1, 256, 1e-4)
    assert (imagenet.epochs, imagenet.factor, imagenet.nesterov) == (90, 0.1, False)
    assert [m * imagenet.epochs for m in imagenet.milestones] == [30, 60]
    assert imagenet.augment == "resized_crop"
    assert all(name == recipe.name for name, recipe in RECIPES.items())


def test_labels_tell_trials_apart():
    assert trial().label == "vgg16 baseline cifar100 seed 0"
    assert trial(method="shuffle", k=3, seed=2).label == "vgg16 shuffle K=3 cifar100 seed 2"
    assert trial(method="shuffle", k=3, strip=1).label == "vgg16 shuffle K=3 strip 1 cifar100 seed 0"
    assert trial(method="conv1x1", only=5).label == "vgg16 conv1x1 unit 5 cifar100 seed 0"


def test_mean_and_spread_over_repeats_by_hand():
    found = Evaluation(images=10, top1=(50.0, 60.0, 70.0))
    assert found.mean == 60.0
    assert found.spread == pytest.approx(10.0)  # of a sample: sqrt((100 + 0 + 100) / 2)
    assert Evaluation(images=10, top1=(50.0,)).spread is None
    with pytest.raises(ValidationError):
        Evaluation(images=10, top1=())


@pytest.mark.parametrize("top1", [-0.5, 100.5, 1e308, float("nan")])
def test_an_accuracy_is_a_percentage(top1):
    for fields in ({"top1": (50.0, top1)}, {"top1": (50.0,), "top5": top1}):
        with pytest.raises(ValidationError):
            Evaluation(images=10, **fields)
    assert Evaluation(images=10, top1=(0.0, 100.0), top5=100.0).mean == 50.0


def test_outcome_round_trip_and_missing_numbers_stay_missing():
    epoch = Epoch(epoch=1, loss=0.1 + 0.2, top1=100 / 3, learning_rate=1e-9, seconds=1.5, images_per_second=42.0)
    data = DataFacts(name="x", source="/x", classes=4, image_size=8, train_images=3, test_images=2, digest="ab")
    full = Outcome(
        trial=trial(method="shuffle", k=3), status="finished", units=13, history=(epoch,), data=data, params=1,
        latency=Latency(median=2e-3, lower=1e-3, upper=3e-3, batch=1, repeats=20),
        changes=(Change(unit=1, path="a.b", before="c", after="d"),), versions={"torch": "2"},
        evaluations=(Evaluation(images=3, top1=(1 / 3, 2 / 3)), Evaluation(shuffle_last=0, images=3, top1=(9.0,))),
    )
    assert parse(Outcome, full.model_dump_json(), "x") == full
    assert full.top1 == pytest.approx(0.5)
    empty = parse(Outcome, Outcome(trial=trial(), status="diverged").model_dump_json(), "x")
    assert (empty.top1, empty.params, empty.macs, empty.latency, empty.seconds) == (None,) * 5


def test_an_outcome_from_before_latency_was_measured_is_read():
    old = Outcome(trial=trial(), status="finished").model_dump(mode="json")
    del old["latency"]
    assert parse(Outcome, json.dumps(old), "x").latency is None


@pytest.mark.parametrize("value", ["NaN", "Infinity", "-Infinity"])
def test_no_outcome_holds_what_is_not_a_number(value):
    text = Outcome(trial=trial(), status="finished", seconds=1.0).model_dump_json().replace('"seconds":1.0',
                                                                                       f'"seconds":{value}')
    with pytest.raises(InputError, match="seconds"):
        parse(Outcome, text, "x")


def test_a_fixed_shuffle_of_channels_is_another_trial():
    options = ({}, {"fixed": True}, {"fixed": True, "shared": True, "patch": 2})
    usual, fixed, same = (Trial(model="vgg16", data="cifar100", method="channel_shuffle", k=1, shuffle=each)
                          for each in options)
    assert (usual.shuffle.fixed, fixed.shuffle.fixed) == (False, True)
    assert usual.id != fixed.id == same.id  # channels have no patches
