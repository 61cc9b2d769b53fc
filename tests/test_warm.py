"""Warm start: which 1x1 kernel comes of a spatial one, layer by layer, and what is trained towards."""

from __future__ import annotations

import dataclasses
import re

import pytest
import torch
from torch import nn
from torch.nn import functional

from spaceless.data.augment import normalise
from spaceless.data.controls import make_control
from spaceless.data.feed import training_batches
from spaceless.distill import cross_entropy, distilled
from spaceless.errors import InputError, Interrupted
from spaceless.models import build_model
from spaceless.reduction import candidates, fit
from spaceless.run import Place, run_trial
from spaceless.spec import make
from spaceless.surgery import remove_spatial
from spaceless.trial import Distillation, Start, Trial
from spaceless.warm import load_original, warm_start
from tiny_studies import BASE, RECIPE, trial

torch.set_num_threads(1)

NET, SIZE = "chain:6-8-M-8", 20
DATA = make_control("arrangement-4", 0).subset(256, 40)
WHOLE = RECIPE.model_copy(update={"batch_size": 256})  # one batch: its statistics are those of all images
START = Start(run="0" * 16, weights_sha256="0" * 64, images=64)


def first_images() -> torch.Tensor:
    batches = training_batches(DATA, WHOLE, 0, 0, torch.device("cpu"))
    return normalise(torch.cat([batch.images for batch in batches]), DATA.mean, DATA.std)


def trained_chain(seed: int = 0, net: str = NET) -> nn.Module:
    """Return a chain whose weights are not those of a fresh one, with the statistics of the training images."""
    torch.manual_seed(seed)
    model = build_model(net, 4, SIZE, seed=seed)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.normal_(module.weight, 1, 0.2)
            nn.init.normal_(module.bias, 0, 0.2)
    settle(model)
    return model


def settle(model: nn.Module) -> None:
    torch.optim.swa_utils.update_bn([first_images()], model)
    model.eval()


def centred(model: nn.Module, last: int) -> nn.Module:
    """Leave of the last kernels of `model` nothing but their centre taps."""
    for conv in spatial(model)[-last:]:
        centre = conv.weight.data[:, :, 1, 1].clone()
        conv.weight.data.zero_()
        conv.weight.data[:, :, 1, 1] = centre
    settle(model)
    return model


def spatial(model: nn.Module) -> list[nn.Conv2d]:
    return [m for m in model.modules() if isinstance(m, nn.Conv2d)]


def pointed(original: nn.Module, method: str, k: int, start: Start = START, **options):
    model, _ = remove_spatial(original, method, k, image_size=SIZE, **options)
    notes = warm_start(model, original, DATA, WHOLE, 0, start)
    return model, notes


def test_the_candidates_by_hand():
    taps = torch.arange(9.0).reshape(1, 1, 3, 3)
    found = candidates(torch.cat([taps, 2 * taps]), torch.Size([2, 1, 1, 1]))
    assert {name: weight.flatten().tolist() for name, weight in found.items()} == {
        "centre": [4, 8], "sum": [36, 72], "mean": [4, 8]}


@pytest.mark.parametrize("reduction", ["best", "centre", "least_squares", "sum"])
@pytest.mark.parametrize("k", [1, 2, 3])
def test_kernels_that_are_only_their_centre_tap_are_reproduced(reduction, k):
    original = centred(trained_chain(), k)
    model, notes = pointed(original, "conv1x1", k, START.model_copy(update={"reduction": reduction}))
    for was, now in list(zip(spatial(original), spatial(model), strict=True))[3 - k:]:
        assert now.kernel_size == (1, 1)
        if reduction != "least_squares":  # channels that depend on each other have several exact solutions
            assert torch.allclose(now.weight[:, :, 0, 0], was.weight[:, :, 1, 1], atol=1e-4)
    assert "error from 0.00 to 0.00" in notes[0]
    with torch.no_grad():
        assert torch.allclose(model(first_images()[:64]), original(first_images()[:64]), atol=1e-3)


def errors(original: nn.Module, method: str, k: int, **options) -> dict[str, float]:
    """Return the error of the first changed layer by each reduction, measured by hand on the images that it saw."""
    found = {}
    for reduction in ("centre", "sum", "mean", "least_squares", "best"):
        model, _ = pointed(original, method, k, START.model_copy(update={"reduction": reduction}), **options)
        first = spatial(original)[len(spatial(original)) - k]
        path = next(path for path, module in original.named_modules() if module is first)
        place = model.get_submodule(path)
        seen: dict[str, torch.Tensor] = {}
        handles = [module.register_forward_hook(lambda _m, _i, out, name=name, seen=seen: seen.update({name: out}))
                   for name, module in (("new", place), ("old", first))]
        x = first_images()[:64]
        with torch.no_grad():
            model(x), original(x)
        for handle in handles:
            handle.remove()
        old = seen["old"] if seen["old"].shape == seen["new"].shape else seen["old"].mean((2, 3), keepdim=True)
        away = (seen["new"] - old).transpose(0, 1).flatten(1)
        found[reduction] = float(away.var(1, correction=0).sum() / old.transpose(0, 1).flatten(1).var(
            1, correction=0).sum())
    return found


@pytest.mark.parametrize(("method", "options"), [
    ("conv1x1", {}), ("gap_fc", {}), ("conv1x1", {"downsample": "avg"}), ("conv1x1", {"downsample": "stride"}),
])
@pytest.mark.parametrize("k", [1, 2])
def test_the_fit_is_taken_where_it_is_better_than_the_others(method, options, k):
    found = errors(trained_chain(1), method, k, **options)
    assert found["least_squares"] <= min(found.values()) + 1e-5
    assert found["best"] == pytest.approx(min(found.values()), abs=1e-5)
    assert min(found["centre"], found["sum"], found["mean"]) > 1.2 * found["least_squares"]  # there is something to win


def test_a_fit_that_is_exact_on_its_own_images_alone_is_not_taken():
    """33 images for 32 inputs and a constant: nothing is left over, and nothing is learnt."""
    original = trained_chain(net="chain:6-M-32-32")
    start = START.model_copy(update={"images": 44})  # three quarters are for the fit
    fresh = first_images()[64:]
    away = {}
    for reduction in ("least_squares", "sum", "best"):
        model, notes = pointed(original, "gap_fc", 1, start.model_copy(update={"reduction": reduction}))
        with torch.no_grad():
            away[reduction] = float((model(fresh) - original(fresh)).square().mean())
        error = float(re.search(r"error from (\d+\.\d\d)", notes[0])[1])
        assert (error > 1) == (reduction == "least_squares")
        assert ("least-squares" in notes[0]) == (reduction == "least_squares")
    assert away["best"] <= away["sum"] < away["least_squares"]


@pytest.mark.parametrize(("stride", "groups", "downsample"), [(1, 1, "avg"), (2, 1, "avg"), (2, 1, "stride"),
                                                              (1, 2, "avg"), (2, 2, "avg")])
def test_the_fit_finds_the_weights_that_made_the_outputs(stride, groups, downsample):
    torch.manual_seed(0)
    kernel = nn.Conv2d(4, 6, 1, stride if downsample == "stride" else 1, groups=groups)
    pooled = stride == 2 and downsample == "avg"
    place = nn.Sequential(kernel, nn.AvgPool2d(2, 2)) if pooled else kernel
    x = torch.randn(32, 4, 8, 8)
    with torch.no_grad():
        wanted = place(x) + torch.randn(1, 6, 1, 1)  # a mean per channel is left out
        fitted = fit(kernel, place, [(x[:16], wanted[:16]), (x[16:], wanted[16:])])
    assert torch.allclose(fitted, kernel.weight, atol=1e-4)


def test_a_bias_makes_the_means_those_of_the_original():
    torch.manual_seed(0)
    original = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.ReLU(), nn.Conv2d(4, 4, 3, padding=1),
                             nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 4)).eval()
    model, _ = remove_spatial(original, "conv1x1", 1, image_size=SIZE)
    warm_start(model, original, DATA, WHOLE, 0, START)
    x = first_images()[:64]
    with torch.no_grad():
        means = [part[:3](x).mean((0, 2, 3)) for part in (original, model)]
    assert torch.allclose(*means, atol=1e-5)


def test_batch_normalisation_behind_the_change_is_estimated_again_and_in_front_of_it_is_not():
    original = trained_chain()
    model, _ = pointed(original, "conv1x1", 2)
    pairs = list(zip((m for m in original.modules() if isinstance(m, nn.BatchNorm2d)),
                     (m for m in model.modules() if isinstance(m, nn.BatchNorm2d)), strict=True))
    same = [torch.equal(own.running_mean, theirs.running_mean) for own, theirs in pairs]
    assert same == [True, False, False]
    assert all(theirs.momentum == own.momentum and not theirs.training for own, theirs in pairs)
    assert all(torch.equal(own.weight, theirs.weight) for own, theirs in pairs)


def test_a_residual_network_is_warm_started_behind_a_pooled_bottleneck():
    model = build_model("resnet50", 4, SIZE, width=0.0625).eval()
    for method in ("gap_fc", "conv1x1"):
        changed, _ = remove_spatial(model, method, 2, image_size=SIZE)
        notes = warm_start(changed, model, DATA, RECIPE, 0, START)
        assert notes[0].startswith("Warm start: of 2 kernels ")


def test_the_loss_of_distillation_by_hand():
    torch.manual_seed(0)
    teacher = nn.Sequential(nn.Flatten(), nn.Linear(12, 3))
    x, labels, logits = torch.randn(4, 3, 2, 2), torch.tensor([0, 1, 2, 1]), torch.randn(4, 3)
    answers = teacher(x).detach()
    loss = distilled(teacher, Distillation(temperature=2.0, weight=0.25), "fp32")
    p, q = (functional.softmax(each / 2, 1) for each in (answers, logits))
    divergence = (p * (p / q).log()).sum()
    expected = 0.75 * cross_entropy(logits, labels, x) + 0.25 * 4 * divergence
    assert loss(logits, labels, x).item() == pytest.approx(expected.item(), rel=1e-5)
    assert loss(answers, labels, x).item() == pytest.approx(0.75 * cross_entropy(answers, labels, x).item(), rel=1e-5)
    assert not teacher.training


def warm_trial(base, **fields) -> Trial:
    outcome = fields.pop("outcome")
    start = {"run": base.id, "weights_sha256": outcome.weights_sha256, "images": 32} | fields.pop("start", {})
    return Trial.model_validate(BASE | {"method": "conv1x1", "k": 1, "start": start} | fields)


def test_a_warm_trial_has_an_identity_of_its_own_and_begins_where_the_original_ended(tmp_path):
    place, base = Place(tmp_path), trial()
    outcome = run_trial(base, place)
    warm = warm_trial(base, outcome=outcome)
    others = [warm_trial(base, outcome=outcome, start=change) for change in (
        {"reduction": "sum"}, {"images": 64}, {"distillation": {}}, {"distillation": {"weight": 0.9}},
        {"weights_sha256": "1" * 64})]
    assert len({t.id for t in (warm, trial(method="conv1x1", k=1), *others)}) == 7
    assert Trial.model_validate_json(warm.model_dump_json()).id == warm.id
    found = run_trial(warm, place)
    assert found.notes[0].startswith("Warm start: of 1 kernels")
    assert found.weights_sha256 != run_trial(trial(method="conv1x1", k=1), place).weights_sha256
    assert found.weights_sha256 != run_trial(others[2], place).weights_sha256  # the teacher had a word
    first, _ = remove_spatial(load_original(warm, place.store, DATA), "conv1x1", 1, image_size=DATA.image_size)
    assert spatial(first)[0].weight.equal(spatial(load_original(warm, place.store, DATA))[0].weight)


@pytest.mark.parametrize("distillation", [None, {}])
def test_an_interrupted_warm_trial_goes_on_bit_by_bit(tmp_path, distillation):
    base = trial()
    outcome = run_trial(base, Place(tmp_path))
    warm = warm_trial(base, outcome=outcome, recipe=RECIPE.model_copy(update={"epochs": 2}),
                      start={"distillation": distillation})
    whole = run_trial(warm, Place(tmp_path))
    again = tmp_path / "again"
    run_trial(base, Place(again))
    steps = iter([None, None, 15, *[None] * 100])
    with pytest.raises(Interrupted):
        run_trial(warm, Place(again), stop=lambda: next(steps))
    assert any((again / warm.id / "states").iterdir())
    assert run_trial(warm, Place(again)).weights_sha256 == whole.weights_sha256


def test_other_weights_than_those_named_are_refused(tmp_path):
    place, base = Place(tmp_path), trial()
    outcome = run_trial(base, place)
    with pytest.raises(InputError, match="SHA-256"):
        run_trial(warm_trial(base, outcome=outcome, start={"weights_sha256": "1" * 64}), place)
    with pytest.raises(InputError, match="no weights"):
        run_trial(warm_trial(base, outcome=outcome, start={"run": "1" * 16}), place)
    place_without = dataclasses.replace(place, out=tmp_path / "other")
    with pytest.raises(InputError, match="same --out"):
        run_trial(warm_trial(base, outcome=outcome), place_without)


@pytest.mark.parametrize("fields", [{"method": "shuffle", "k": 1}, {"k": 0}, {"method": "conv1x1", "only": 1},
                                    {"method": "conv1x1", "k": 2, "strip": 1}])
def test_only_methods_that_make_1x1_kernels_can_start_from_trained_ones(fields):
    with pytest.raises(InputError, match="conv1x1 or gap_fc"):
        make(Trial, "test", **BASE | {"start": START} | fields)
