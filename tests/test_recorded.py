"""Recorded steps: what they read is what each shuffle draws by itself, and a GPU repeats what it would be told."""

from __future__ import annotations

import random
import warnings

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from spaceless.ahead import Ahead
from spaceless.errors import Interrupted
from spaceless.evaluation import evaluate
from spaceless.models import GlobalAveragePool
from spaceless.recorded import Steps
from spaceless.shuffle import Places, Shuffle
from spaceless.surgery import remove_spatial
from spaceless.training import States, train
from spaceless.trial import ShuffleOptions
from test_training import ADAMW, SGD, after, made_data, network

on_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
OPTIONS = [{}, {"channels": True}, {"per_image": True}, {"shared": True}, {"fixed": True}, {"patch": 2},
           {"per_image": True, "shared": True, "patch": 2}]
LONG = SGD.model_copy(update={"epochs": 8})


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_what_is_drawn_ahead_is_what_the_shuffle_draws(options):
    layers = [Shuffle(5, number, **options) for number in range(3)]
    maps = [torch.randn(2, 3, 4, 4), torch.randn(2, 5, 4, 4), torch.randn(2, 5, 2, 2)]
    for layer, x in zip(layers, maps, strict=True):
        layer(x)
    ahead = Ahead(layers)
    for step in (0, 1, 15, 16, 40, 3):  # within a draw, over its end, far ahead, and back
        ahead.fill(step)
        own = []
        for layer, x in zip(layers, maps, strict=True):
            layer.passes["train"] = step
            own.append(layer(x))
        with ahead:
            given = [layer(x) for layer, x in zip(layers, maps, strict=True)]
        assert all(torch.equal(a, b) for a, b in zip(own, given, strict=True))
    assert all(layer.given is None for layer in layers)


def test_what_the_gpus_own_kernel_is_given_moves_the_maps_alike():
    pytest.importorskip("triton", reason="needs Triton, which comes with PyTorch for GPUs")
    layers = [Shuffle(5, number, **options) for number, options in enumerate([{}, {"patch": 2}, {"fixed": True}, {}])]
    maps = [torch.randn(2, 3, 4, 4), torch.randn(2, 5, 4, 4), torch.randn(2, 5, 2, 2), torch.randn(2, 5, 4, 4)]
    for layer, x in zip(layers, maps, strict=True):
        layer(x)
    ahead = Ahead(layers, moves=True)
    for step in (0, 17):
        ahead.fill(step)
        for layer, x in zip(layers, maps, strict=True):
            layer.passes["train"] = step
            own = layer(x)
            with ahead:
                assert isinstance(layer.given, tuple) == (layer.patch == 1)
                assert torch.equal(layer(x), own)


def test_a_pass_of_another_size_changes_nothing_that_is_drawn_ahead():
    layer = Shuffle(5, 0, per_image=True)
    whole, last = torch.randn(4, 3, 4, 4), torch.randn(2, 3, 4, 4)
    layer(whole)
    ahead = Ahead([layer])
    layer(last)
    ahead.fill(30)
    layer.passes["train"] = 30
    own = layer(whole)
    with ahead:
        assert torch.equal(layer(whole), own)


def test_fixed_permutations_for_another_device_are_drawn_on_the_cpu():
    layer = Shuffle(5, 0, fixed=True)
    layer(torch.empty(2, 3, 4, 4, device="meta"))  # on which nothing can be drawn
    assert {each.device.type for each in Ahead([layer]).drawn[0]} == {"meta"}


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last], ids=["NCHW", "NHWC"])
def test_on_a_cpu_too_the_steps_after_the_first_of_a_size_take_what_is_drawn_ahead(layout):
    layer, alone = Shuffle(5, 0), Shuffle(5, 0)
    given, moved = [], []

    def work(_: int, x: Tensor) -> None:
        given.append(layer.given)
        moved.append(layer(x.to(memory_format=layout)))

    steps = Steps(work, nn.Identity(), [layer], recording=False)
    sizes = [4, 4, 2, 4, 2, 5, 6, 7, 7]  # no more than a few are drawn for
    for number, size in enumerate(sizes):
        x = torch.randn(size, 3, 4, 4, generator=torch.Generator().manual_seed(number))
        for each in (layer, alone):
            each.passes["train"] = number
        steps.make(number, size, (x,))
        assert torch.equal(moved[-1], alone(x))
        assert moved[-1].is_contiguous(memory_format=layout)
    assert [isinstance(each, Places) for each in given] == [False, True, False, True, True, False, False, False, False]
    assert given[1].layout == layout
    assert len(steps.ahead) == 4


def test_on_a_cpu_large_maps_are_drawn_for_step_by_step():
    large, small = Shuffle(5, 0), Shuffle(5, 1)
    small(torch.zeros(1, 64, 32, 32))
    assert [Ahead([small]).steps, Ahead([small] * 8).steps] == [16, 8]
    steps = Steps(lambda _, x: large(x), nn.Identity(), [large], recording=False)
    for number in range(2):
        steps.make(number, 1, (torch.zeros(1, 90, 224, 224),))
    assert steps.ahead == {}


@pytest.mark.parametrize("draw", [lambda: torch.rand(1), random.random, np.random.rand],
                         ids=["torch", "random", "numpy"])
def test_a_network_that_draws_on_the_host_is_not_recorded(draw):
    steps = Steps(lambda *_: draw(), nn.Identity(), (), recording=True)
    steps.make(0, 4, (torch.zeros(2),))
    with pytest.warns(UserWarning, match="draws random numbers on the host"):
        steps.make(1, 4, (torch.zeros(2),))
    for number in range(2, 6):  # on a CPU a recording would fail
        steps.make(number, 4, (torch.zeros(2),))


def test_a_network_that_moves_its_tensors_is_not_recorded():
    model = nn.BatchNorm1d(2)

    def moved(*_: object) -> None:
        model.running_mean = 0.9 * model.running_mean

    steps = Steps(moved, model, (), recording=True)
    steps.make(0, 4, (torch.zeros(2),))
    with pytest.warns(UserWarning, match="changes its tensors for others"):
        steps.make(1, 4, (torch.zeros(2),))


def test_without_a_recording_every_step_is_a_call():
    calls: list[tuple[int, Tensor]] = []
    steps = Steps(lambda whole, x: calls.append((whole, x)), nn.Identity(), (), recording=False)
    for number in range(6):
        steps.make(number, 4, (torch.full((2,), number),))
    assert [whole for whole, _ in calls] == [4] * 6
    assert [int(x[0]) for _, x in calls] == list(range(6))


def close(one: nn.Module, other: nn.Module) -> None:
    for (name, a), b in zip(one.state_dict().items(), other.state_dict().values(), strict=True):
        assert torch.allclose(a.double(), b.double(), rtol=1e-3, atol=1e-4), name


@on_gpu
@pytest.mark.parametrize("recipe", [LONG, ADAMW.model_copy(update={"epochs": 8})], ids=["sgd", "adamw"])
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_recorded_training_is_the_eager_one(recipe, precision):
    both = []
    for eager in (False, True):
        model = network(2).cuda()
        both.append((model, train(model, made_data(100), recipe, 3, precision=precision, eager=eager)))
        assert all(weight.dtype is torch.float32 for weight in model.parameters())
        assert evaluate(model, made_data(100), repeats=3, precision=precision).images == 20
        assert evaluate(model, made_data(100), repeats=3).images == 20
    if precision == "fp32":
        close(both[0][0], both[1][0])
    for one, other in zip(both[0][1].history, both[1][1].history, strict=True):
        assert one.loss == pytest.approx(other.loss, rel=1e-3 if precision == "fp32" else 0.1)
    assert both[0][1].history[-1].loss < both[0][1].history[0].loss


@on_gpu
def test_a_recorded_training_goes_on_after_an_interruption(tmp_path):
    model = network(2).cuda()
    train(model, made_data(100), LONG, 3)
    states = States(tmp_path / "states", "abc")
    for steps in (2, 9, 20):
        with pytest.raises(Interrupted):
            train(network(2).cuda(), made_data(100), LONG, 3, states=states, stop=after(steps))
    resumed = network(2).cuda()
    train(resumed, made_data(100), LONG, 3, states=states)
    close(model, resumed)


@on_gpu
@pytest.mark.parametrize("options", [{"per_image": True}, {"patch": 2}, {"channels": True}], ids=str)
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_every_kind_of_shuffle_is_recorded(options, precision):
    both = []
    for eager in (False, True):
        kind = "channel_shuffle" if options == {"channels": True} else "shuffle"
        own = remove_spatial(network(0), kind, 2, image_size=8, shuffle=ShuffleOptions(
            **{} if kind == "channel_shuffle" else options))[0].cuda()
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            both.append((own, train(own, made_data(44), LONG, 3, precision=precision, eager=eager)))
    if precision == "fp32" and "per_image" not in options:
        close(both[0][0], both[1][0])
    assert both[0][1].history[-1].loss == pytest.approx(both[1][1].history[-1].loss, rel=0.2)


@on_gpu
def test_a_network_that_looks_at_its_numbers_is_not_recorded_and_learns_all_the_same():
    class Looking(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x if float(x.detach().mean()) > 1e9 else x * 1.0

    def looking() -> nn.Module:
        torch.manual_seed(0)
        return nn.Sequential(
            nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), Looking(), nn.Dropout(0.3),
            GlobalAveragePool(), nn.Flatten(), nn.Linear(8, 4)).cuda()

    models = [looking(), looking()]
    with pytest.warns(UserWarning, match="cannot be recorded"):
        train(models[0], made_data(100), LONG, 3)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        train(models[1], made_data(100), LONG, 3, eager=True)
    close(*models)


@on_gpu
def test_a_recorded_network_is_evaluated_and_shuffles_anew():
    model = network(1).cuda()
    train(model, made_data(100), LONG, 3)
    assert evaluate(model, made_data(100), repeats=50).images == 20
    x = torch.randn(4, 3, 8, 8, device="cuda")
    assert not torch.equal(model(x), model(x))
    plain = remove_spatial(network(0), "gap_fc", 1, image_size=8)[0].cuda()
    train(plain, made_data(100), LONG, 3)
    assert evaluate(plain, made_data(100)).images == 20
