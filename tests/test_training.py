"""One training: exact against a plain loop, bit-identical however often it is interrupted, honest when it diverges."""

from __future__ import annotations

import errno
import os
import signal
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.nn import functional

from spaceless import checkpoint, resuming
from spaceless.data import Dataset, feed
from spaceless.data.augment import draw_crops, normalise
from spaceless.data.broken import Broken
from spaceless.errors import CheckpointError, Interrupted
from spaceless.evaluation import evaluate
from spaceless.models import GlobalAveragePool
from spaceless.schedule import learning_rate
from spaceless.shuffle import Shuffle
from spaceless.surgery import remove_spatial
from spaceless.training import Progress, States, Training, train
from spaceless.trial import RECIPES, Recipe

torch.set_num_threads(1)

SIDE, IMAGES, BATCH, EPOCHS = 8, 27, 8, 3
STEPS = 4 * EPOCHS  # 27 images in batches of 8: three whole ones and one of three
SGD = Recipe(name="test", epochs=EPOCHS, batch_size=BATCH, learning_rate=0.05, schedule="one_cycle", warmup=0.2)
ADAMW = SGD.model_copy(update={"optimizer": "adamw", "learning_rate": 3e-3})


def made_data(images: int = IMAGES, classes: int = 4, side: int = SIDE) -> Dataset:
    source = torch.Generator().manual_seed(7)
    parts = []
    for count in (images, 20):
        parts += [torch.randint(0, 256, (count, 3, side, side), dtype=torch.uint8, generator=source),
                  torch.arange(count) % classes]
    return Dataset("made", "test", "", *parts, tuple(map(str, range(classes))))


def network(shuffled: int = 1) -> nn.Module:
    """Batch normalisation, dropout and a shuffled convolution: everything that has a state or draws at random."""
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, 4, 3, padding=1, bias=False), nn.BatchNorm2d(4), nn.ReLU(), nn.Dropout(0.3),
        nn.Conv2d(4, 6, 3, padding=1, bias=False), nn.BatchNorm2d(6), nn.ReLU(),
        GlobalAveragePool(), nn.Flatten(), nn.Dropout(0.3), nn.Linear(6, 4),
    )
    return remove_spatial(model, "shuffle", shuffled, image_size=SIDE)[0] if shuffled else model


def after(steps: int):
    """Return a question that is answered with SIGTERM from the given step of this call on."""
    asked = 0

    def stop() -> int | None:
        nonlocal asked
        asked += 1
        return signal.SIGTERM if asked >= steps else None

    return stop


class Killed(BaseException):
    """Stands for a process that ends without another word."""


def killed_after(steps: int):
    told: list[Progress] = []

    def progress(now: Progress) -> None:
        told.append(now)
        if len(told) == steps:
            raise Killed

    return progress


def same(one: tuple[nn.Module, Training], other: tuple[nn.Module, Training]) -> None:
    """Compare weights, buffers, losses and the evaluation that follows, to the last bit."""
    for (name, a), b in zip(one[0].state_dict().items(), other[0].state_dict().values(), strict=True):
        assert torch.equal(a, b), name
    timeless = {"seconds", "images_per_second"}
    assert [e.model_dump(exclude=timeless) for e in one[1].history] == [
        e.model_dump(exclude=timeless) for e in other[1].history]
    assert one[1].diverged == other[1].diverged
    data = made_data()
    assert evaluate(one[0], data, repeats=3) == evaluate(other[0], data, repeats=3)


@pytest.fixture(scope="module", params=["sgd", "adamw"])
def whole(request) -> tuple[Recipe, nn.Module, Training]:
    """One uninterrupted training."""
    recipe = SGD if request.param == "sgd" else ADAMW
    model = network()
    return recipe, model, train(model, made_data(), recipe, 3)


@pytest.mark.parametrize("step", [1, 3, 4, 6, 8, STEPS - 1, STEPS])  # 4 and 8: the end of an epoch
def test_interrupted_after_any_step_and_resumed_is_bit_identical(whole, tmp_path, step):
    recipe, model, training = whole
    states = States(tmp_path / "states", "abc")
    with pytest.raises(Interrupted) as caught:
        train(network(), made_data(), recipe, 3, states=states, stop=after(step))
    assert caught.value.signum == signal.SIGTERM
    resumed, told = network(), []
    found = train(resumed, made_data(), recipe, 3, states=states, progress=told.append)
    assert len(told) == STEPS - step  # it went on, it did not start again
    same((model, training), (resumed, found))


def test_interrupted_after_every_single_step_is_bit_identical(whole, tmp_path):
    recipe, model, training = whole
    states = States(tmp_path / "states", "abc")
    for _ in range(STEPS):
        with pytest.raises(Interrupted):
            train(network(), made_data(), recipe, 3, states=states, stop=after(1))
    resumed = network()
    same((model, training), (resumed, train(resumed, made_data(), recipe, 3, states=states)))


@pytest.mark.parametrize("step", [3, 7, 11])
def test_killed_without_a_word_it_goes_on_from_the_last_state(whole, tmp_path, step):
    recipe, model, training = whole
    states = States(tmp_path / "states", "abc", every_seconds=0.0)  # a state after every step
    with pytest.raises(Killed):
        train(network(), made_data(), recipe, 3, states=states, progress=killed_after(step))
    resumed, told = network(), []
    found = train(resumed, made_data(), recipe, 3, states=states, progress=told.append)
    assert len(told) == STEPS - (step - 1)  # the step it died in was not saved
    same((model, training), (resumed, found))


def test_a_broken_newest_state_costs_steps_but_changes_nothing(whole, tmp_path):
    recipe, model, training = whole
    states = States(tmp_path / "states", "abc", every_seconds=0.0)
    with pytest.raises(Interrupted):
        train(network(), made_data(), recipe, 3, states=states, stop=after(6))
    newest = max(states.folder.glob("*.safetensors"))
    newest.write_bytes(newest.read_bytes()[:-5])
    resumed = network()
    with pytest.warns(UserWarning, match="set aside"):
        found = train(resumed, made_data(), recipe, 3, states=states)
    same((model, training), (resumed, found))


def test_bf16_resumes_bit_identically_too(tmp_path):
    states = States(tmp_path / "states", "abc")
    model, resumed = network(), network()
    training = train(model, made_data(), SGD, 3, precision="bf16")
    with pytest.raises(Interrupted):
        train(network(), made_data(), SGD, 3, states=states, stop=after(5), precision="bf16")
    same((model, training), (resumed, train(resumed, made_data(), SGD, 3, states=states, precision="bf16")))


def test_what_an_optimizer_keeps_lies_in_memory_as_its_parameter_does(tmp_path):
    # A fused step goes through both from the first number to the last, whatever the numbers belong to.
    model = nn.Sequential(nn.Conv2d(3, 4, 3)).to(memory_format=torch.channels_last)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, fused=True)
    model(torch.randn(2, 3, 5, 5).to(memory_format=torch.channels_last)).sum().backward()
    optimizer.step()
    moment = optimizer.state[model[0].weight]["momentum_buffer"]
    assert moment.stride() == model[0].weight.stride() != torch.empty(4, 3, 3, 3).stride()
    checkpoint.save(tmp_path, {
        "model": model.state_dict(), "optimizer": optimizer.state_dict(), "sums": torch.zeros(3, dtype=torch.float64),
        "step": 1, "spent": 0.0, "history": [], "broken": [(3, "a.png", "cut short")],
    }, 1, "abc")
    other = nn.Sequential(nn.Conv2d(3, 4, 3)).to(memory_format=torch.channels_last)
    fresh = torch.optim.SGD(other.parameters(), lr=0.1, momentum=0.9, fused=True)
    before = checkpoint.load_latest(
        tmp_path, "abc", lambda state: resuming.resumed(state, model=other, optimizer=fresh, last=1))
    assert before.broken == (Broken(3, "a.png", "cut short"),)
    assert not fresh.state
    assert not torch.equal(other[0].weight, model[0].weight)
    before.put_into(other, fresh)
    found = fresh.state[other[0].weight]["momentum_buffer"]
    assert found.stride() == moment.stride()
    assert torch.equal(found, moment)
    assert torch.equal(other[0].weight, model[0].weight)


def _within(state: dict, place: str, value: object) -> None:
    *path, last = (int(part) if part.isdigit() else part for part in place.split("/"))
    for part in path:
        state = state[part]
    if value is None:
        del state[last]
    else:
        state[last] = value


MOMENT = "optimizer/state/0/momentum_buffer"
UNFIT = {
    "no weights": ("model", {}), "weights a number": ("model", 5), "a weight missing": ("model/0.weight", None),
    "a weight more": ("model/x", torch.zeros(1)),
    "a weight of another shape": ("model/0.weight", torch.zeros(4, 3, 3, 2)),
    "a weight of another type": ("model/0.weight", torch.zeros(4, 3, 3, 3).double()),
    "no groups": ("optimizer", {"state": {}}), "two groups": ("optimizer/param_groups", [{}, {}]),
    "no moment": (MOMENT, None), "a moment more": ("optimizer/state/0/exp_avg", torch.zeros(4, 3, 3, 3)),
    "a moment of another shape": (MOMENT, torch.zeros(3)), "of another type": (MOMENT, torch.zeros(4, 3, 3, 3).half()),
    "moments of no parameter": ("optimizer/state/99", {}), "a step in words": ("step", "x"), "no step": ("step", None),
    "a step too many": ("step", STEPS + 1), "before the first": ("step", 0), "no sums": ("sums", None),
    "sums in a list": ("sums", [1]), "sums of another shape": ("sums", torch.zeros(2).double()),
    "sums of another type": ("sums", torch.zeros(3)), "an epoch without numbers": ("history", [{"epoch": 1}]),
    "no epochs": ("history", 5), "time that is none": ("spent", float("inf")), "broken images": ("broken", [[1]]),
}


@pytest.mark.parametrize("how", UNFIT)
def test_a_state_that_does_not_fit_is_set_aside_and_the_one_before_it_goes_on(whole, how, tmp_path):
    recipe, model, training = whole
    states = States(tmp_path / "states", "abc")
    with pytest.raises(Interrupted):
        train(network(), made_data(), recipe, 3, states=states, stop=after(5))
    state = checkpoint.load_latest(states.folder, "abc", dict)
    place, value = UNFIT[how]
    if place == MOMENT and recipe is ADAMW:
        place = "optimizer/state/0/exp_avg_sq"
    if recipe is SGD or place != "optimizer/state/0/exp_avg":  # which AdamW has
        _within(state, place, value)
    else:
        _within(state, "optimizer/state/0/step", torch.zeros(1))
    checkpoint.save(states.folder, state, 6, "abc")
    resumed, told = network(), []
    with pytest.warns(UserWarning, match="state-000000006.* set aside"):
        found = train(resumed, made_data(), recipe, 3, states=states, progress=told.append)
    assert len(told) == STEPS - 5
    same((model, training), (resumed, found))


@pytest.mark.parametrize("changed", [{"weight_decay": 0.1}, {"momentum": 0.5}, {"nesterov": False}], ids=str)
def test_a_state_of_another_optimizer_is_not_gone_on_with(changed, tmp_path):
    states = States(tmp_path / "states", "abc")
    with pytest.raises(Interrupted):
        train(network(), made_data(), SGD, 3, states=states, stop=after(5))
    told = []
    with pytest.warns(UserWarning, match=f"found {next(iter(changed))} .* in the optimizer"):
        train(network(), made_data(), SGD.model_copy(update=changed), 3, states=states, progress=told.append)
    assert len(told) == STEPS


def test_a_disk_that_fills_up_ends_the_training_and_the_same_call_goes_on(whole, tmp_path, monkeypatch):
    recipe, model, training = whole
    states = States(tmp_path / "states", "abc", every_seconds=0.0)
    room, told = [5], []
    write = os.write

    def limited(descriptor, content):
        if not room[0]:
            raise OSError(errno.ENOSPC, "No space left on device")
        return write(descriptor, content)

    def progress(now):
        told.append(now)
        room[0] -= 1

    with monkeypatch.context() as patch:
        patch.setattr(os, "write", limited)
        with pytest.raises(CheckpointError, match=r"state-000000005.*No space left on device.*goes on"):
            train(network(), made_data(), recipe, 3, states=states, progress=progress)
    resumed, again = network(), []
    found = train(resumed, made_data(), recipe, 3, states=states, progress=again.append)
    assert (len(told), len(again)) == (5, STEPS - 4)
    same((model, training), (resumed, found))


def test_the_state_of_another_trial_is_not_used(tmp_path):
    with pytest.raises(Interrupted):
        train(network(), made_data(), SGD, 3, states=States(tmp_path, "abc"), stop=after(5))
    told = []
    with pytest.warns(UserWarning, match="set aside"):
        train(network(), made_data(), SGD, 3, states=States(tmp_path, "another"), progress=told.append)
    assert len(told) == STEPS


def test_training_depends_on_its_seed_and_on_nothing_else_and_disturbs_no_one():
    models = []
    for seed, disturbance in ((3, 1), (3, 2), (4, 1)):
        model = network()
        torch.manual_seed(disturbance)
        before = torch.get_rng_state()
        train(model, made_data(), SGD, seed)
        assert torch.equal(torch.get_rng_state(), before)
        models.append(model.state_dict()["4.conv.weight"])
    assert torch.equal(models[0], models[1])
    assert not torch.equal(models[0], models[2])


@pytest.mark.parametrize("recipe", [SGD, ADAMW, RECIPES["paper"].model_copy(update={"epochs": 5, "batch_size": 9})],
                         ids=["sgd", "adamw", "paper"])
def test_weights_are_those_of_a_plain_loop(recipe):
    recipe = recipe.model_copy(update={"augment": "none"})
    data, model, plain = made_data(), network(0), network(0)
    for each in (model, plain):
        each[3].p = each[9].p = 0.0
    seen: list[torch.Tensor] = []
    hook = model.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    training = train(model, data, recipe, 0)
    hook.remove()
    whole = normalise(data.train_images, data.mean, data.std)
    decays = {"lr": 1.0, "weight_decay": recipe.weight_decay}
    optimizer = torch.optim.AdamW(plain.parameters(), **decays) if recipe.optimizer == "adamw" else torch.optim.SGD(
        plain.parameters(), momentum=0.9, nesterov=True, **decays)
    losses = []
    for step, x in enumerate(seen):
        which = [int((whole == image).flatten(1).all(1).nonzero()) for image in x]
        loss = functional.cross_entropy(plain(x), data.train_labels[which])
        optimizer.param_groups[0]["lr"] = learning_rate(recipe, step / len(seen))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item() * len(x))
    for a, b in zip(model.state_dict().values(), plain.state_dict().values(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)
    per_epoch = len(seen) // recipe.epochs
    assert [e.loss for e in training.history] == pytest.approx(
        [sum(losses[i:i + per_epoch]) / IMAGES for i in range(0, len(seen), per_epoch)], rel=1e-4)


def test_every_epoch_sees_every_image_once_in_another_order():
    data = made_data(32)
    data.train_images[:] = torch.arange(32, dtype=torch.uint8)[:, None, None, None]
    model, seen = network(), []
    model.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0][:, 0, 0, 0]))
    train(model, data, SGD.model_copy(update={"augment": "none"}), 0)
    assert [len(batch) for batch in seen] == [8] * 12
    epochs = [torch.cat(seen[i:i + 4]) for i in (0, 4, 8)]
    assert all(len(epoch.unique()) == 32 for epoch in epochs)
    assert not torch.equal(epochs[0], epochs[1])
    assert not torch.equal(epochs[1], epochs[2])


def test_augmentation_and_shuffles_are_drawn_anew_in_every_step(monkeypatch):
    model, seeds, moved = network(), [], []
    shuffle = model[4].shuffle
    alone = Shuffle(shuffle.seed, shuffle.layer)
    monkeypatch.setattr(
        feed, "draw_crops", lambda n, source: (seeds.append(source.initial_seed()), draw_crops(n, source))[1])
    shuffle.register_forward_hook(lambda _, inputs, out: moved.append(torch.equal(out, alone(*inputs))))
    train(model, made_data(), SGD, 0)
    assert len(set(seeds)) == STEPS
    assert moved == [True] * STEPS  # every step has the permutation of its number, counted from 0


@pytest.mark.parametrize(("images", "sizes"), [
    (8, [8]), (9, [8]), (10, [8, 2]), (16, [8, 8]), (17, [8, 8]), (3, [3]),
])
def test_a_last_batch_of_a_single_image_is_left_out(images, sizes):
    model, seen = network(), []
    model.register_forward_pre_hook(lambda _, inputs: seen.append(len(inputs[0])))
    train(model, made_data(images), SGD.model_copy(update={"epochs": 1}), 0)
    assert seen == sizes


def test_the_history_tells_rate_loss_and_accuracy():
    history = train(network(), made_data(), SGD, 0).history
    assert [e.epoch for e in history] == [1, 2, 3]
    assert [e.learning_rate for e in history] == [learning_rate(SGD, (4 * e - 1) / STEPS) for e in (1, 2, 3)]
    # whole numbers of images, of all 27
    assert all(e.top1 * 27 / 100 == pytest.approx(round(e.top1 * 27 / 100)) for e in history)


def test_something_easy_is_learnt():
    data = made_data(32)
    data.train_images[:] = (data.train_labels * 80).to(torch.uint8)[:, None, None, None]
    model = network()
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
    recipe = SGD.model_copy(update={"epochs": 25, "augment": "none", "learning_rate": 0.2})
    history = train(model, data, recipe, 0).history
    assert history[-1].top1 == 100.0
    assert history[-1].loss < 0.2 * history[0].loss


def test_progress_ends_at_1_and_counts_images():
    told: list[Progress] = []
    train(network(), made_data(), SGD, 0, progress=told.append)
    assert [p.share for p in told] == [(i + 1) / STEPS for i in range(STEPS)]
    assert [p.epoch for p in told] == [1] * 4 + [2] * 4 + [3] * 4
    assert all(p.images_per_second > 0 for p in told)


def test_a_training_that_diverges_says_so():
    found = train(network(), made_data(), SGD.model_copy(update={"learning_rate": 1e30}), 0)
    assert found.diverged
    assert len(found.history) < EPOCHS


def test_weights_that_are_lost_in_the_very_last_step_are_a_divergence_too(tmp_path):
    recipe = Recipe(name="x", epochs=1, batch_size=32, learning_rate=1e300)
    states = States(tmp_path, "abc")
    for _ in range(2):  # resuming the finished training comes to the same
        model = network()
        found = train(model, made_data(), recipe, 0, states=states)
        assert not torch.isfinite(model.state_dict()["4.conv.weight"]).all()
        assert found.diverged


def test_momentum_0_trains_and_resumes(tmp_path):
    model, again, recipe = network(), network(), SGD.model_copy(update={"momentum": 0.0})
    states = States(tmp_path, "abc")
    training = train(model, made_data(), recipe, 0)
    assert len(training.history) == EPOCHS
    with pytest.raises(Interrupted):
        train(network(), made_data(), recipe, 0, states=states, stop=after(5))
    same((model, training), (again, train(again, made_data(), recipe, 0, states=states)))


def test_states_are_written_only_as_often_as_asked(tmp_path):
    folder = Path(tmp_path / "states")
    train(network(), made_data(), SGD, 0, states=States(folder, "abc", every_seconds=3600))
    assert [p.name for p in sorted(folder.iterdir())] == [
        f"state-{STEPS:09d}.json", f"state-{STEPS:09d}.safetensors"]
