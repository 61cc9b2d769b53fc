"""Profiles: exactly what shuffling unit by unit measures, for one clean pass and what lies behind each cut."""

import itertools
import signal

import pytest
import torch
from torch import Tensor, nn

from networks import SMALL, randomised
from spaceless.data import Dataset
from spaceless.data.augment import normalise
from spaceless.errors import InputError, Interrupted
from spaceless.evaluation import evaluate
from spaceless.models import build_model
from spaceless.profiling import cut_at_units, measure_sensitivity
from spaceless.shuffle import shuffles
from spaceless.surgery import remove_spatial
from spaceless.units import find_units

torch.set_num_threads(1)
PASSES = {"repeats": 3, "batch_size": 16}


def made_data(side: int = 16, images: int = 40) -> Dataset:
    source = torch.Generator().manual_seed(1)
    parts = [torch.randint(0, 256, (images, 3, side, side), dtype=torch.uint8, generator=source),
             torch.arange(images) % 4]
    return Dataset("made", "test", "", *parts, *parts, tuple("abcd"))


def centred(model: nn.Module, data: Dataset) -> nn.Module:
    """`model` whose answers differ from image to image: untrained, it says one class whatever it sees."""
    model = randomised(model)
    head = [m for m in model.modules() if isinstance(m, nn.Linear)][-1]
    with torch.no_grad():
        answers = model(normalise(data.test_images, data.mean, data.std))
        head.weight /= answers.std(0)[:, None]
        head.bias -= answers.mean(0)
        head.bias /= answers.std(0)
    return model


class Branches(nn.Module):
    """Two convolutions side by side, a third that sees both, and the images: several tensors cross every cut."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.left, self.right = nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(3, 4, 5, padding=2)
        self.joint, self.head = nn.Conv2d(8, 6, 3, padding=1), nn.Linear(9, 4)

    def forward(self, x: Tensor) -> Tensor:
        both = torch.cat([self.left(x).relu(), self.right(x).relu()], 1)
        return self.head(torch.cat([self.joint(both).relu().amax((2, 3)), x.amax((2, 3))], 1))


NETWORKS = {
    "chain": lambda: build_model("chain:6-M-8-8-10", 4, 16), "one unit": lambda: build_model("chain:6", 4, 16),
    "branches": Branches,
    "resnet": lambda: build_model("torchvision:resnet18", 4, 32, width=0.125), **SMALL,
}


@pytest.mark.parametrize("name", NETWORKS)
def test_every_pass_is_that_of_evaluating_the_changed_network(name):
    data = made_data(32 if name == "resnet" else 16)
    torch.manual_seed(0)
    model = centred(NETWORKS[name](), data)
    found = measure_sensitivity(model, data, seed=5, **PASSES)
    units = find_units(model, data.image_size)
    assert [(u.index, u.name, u.map) for u in found.units] == [(u.index, u.name, u.in_size) for u in units]
    assert (found.clean,) == evaluate(model, data, batch_size=16).top1
    for unit in found.units:
        for curve, changed in ((unit.last, {"k": unit.k}), (unit.alone, {"only": unit.index})):
            copy, _ = remove_spatial(model, "shuffle", image_size=data.image_size, seed=5, **changed)
            assert curve.top1 == evaluate(copy, data, **PASSES).top1, changed
    assert found.units[-1].alone == found.units[-1].last
    assert len({value for u in found.units for c in (u.alone, u.last) for value in c.top1}) > 1  # else nothing is shown


def test_the_clean_part_is_computed_once_per_batch_and_no_more():
    data = made_data()
    model = centred(build_model("chain:6-8-8", 4, 16), data)
    calls = dict.fromkeys(("features.0", "features.3", "features.6"), 0)
    assert [u.name for u in find_units(model, 16)] == list(calls)
    for name in calls:
        def count(_: nn.Module, __: object, made: Tensor, name: str = name) -> None:
            calls[name] += made.device.type != "meta"  # a look at shapes costs nothing

        model.get_submodule(name).register_forward_hook(count)
    measure_sensitivity(model, data, repeats=5, batch_size=20)  # 2 batches
    # Of each batch: a clean pass, the check of the first one, 5 passes behind each cut alone and 5 with all, but the
    # last unit alone is the last one.
    check = 1
    assert calls == {"features.0": 2 * (1 + 10) + check, "features.3": 2 * (1 + 20) + check,
                     "features.6": 2 * (1 + 20 + 5) + check}


def test_what_crosses_a_cut_is_every_tensor_that_is_used_behind_it():
    model = Branches().eval()
    units = find_units(model, 16)
    shuffled, _ = remove_spatial(model, "shuffle", 3, image_size=16)
    cuts, behind = cut_at_units(shuffled.eval(), units, 16)
    x = torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        first = cuts[0].front(x)
        second = cuts[1].front(*first)
        third = cuts[2].front(*second)
        assert [tuple(t.shape[1:]) for t in first] == [(3, 16, 16), (3,)]  # the images, and their brightest values
        assert [tuple(t.shape[1:]) for t in second] == [(3, 16, 16), (4, 16, 16), (3,)]
        assert [tuple(t.shape[1:]) for t in third] == [(8, 16, 16), (3,)]
        assert torch.equal(behind(*third), model(x))


def test_the_model_is_left_as_it_was_and_its_own_shuffles_do_not_count():
    data = made_data()
    plain = centred(build_model("chain:6-8-8", 4, 16), data)
    trained, _ = remove_spatial(plain, "shuffle", 2, image_size=16, seed=9)
    trained.train()
    before = {name: value.clone() for name, value in trained.state_dict().items()}
    assert measure_sensitivity(trained, data, **PASSES) == measure_sensitivity(plain, data, **PASSES)
    assert trained.training
    assert len(list(shuffles(trained))) == 2
    assert all(torch.equal(before[name], value) for name, value in trained.state_dict().items())


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_ties_are_broken_as_evaluating_breaks_them(precision):
    """Two answers may be equal, in bf16 often are, and argmax then takes another one than topk."""
    data = made_data(images=400)
    model = centred(build_model("chain:6-8", 4, 16), data)
    head = [m for m in model.modules() if isinstance(m, nn.Linear)][-1]
    with torch.no_grad():
        head.weight[1], head.bias[1] = head.weight[0], head.bias[0]  # whoever ranks one first ties with the other
    found = measure_sensitivity(model, data, precision=precision, **PASSES)
    assert (found.clean,) == evaluate(model, data, precision=precision, batch_size=16).top1
    for unit in found.units:
        copy, _ = remove_spatial(model, "shuffle", unit.k, image_size=16)
        assert unit.last.top1 == evaluate(copy, data, precision=precision, **PASSES).top1


class Spoiling(nn.Module):
    """Adds to the map that crosses the cut, in place: every repetition would begin with something else."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.one, self.two = nn.Conv2d(3, 6, 3, padding=1), nn.Conv2d(6, 6, 3, padding=1)
        self.head = nn.Linear(6, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.one(x)
        return self.head(x.add_(self.two(x)).amax((2, 3)))


def test_a_network_that_spoils_what_crosses_a_cut_is_refused():
    with pytest.raises(InputError, match="in place"):
        measure_sensitivity(Spoiling(), made_data(), **PASSES)


class Branching(nn.Module):
    """Its control flow depends on values: no tracer gets through."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.one, self.two = nn.Conv2d(3, 6, 3, padding=1), nn.Conv2d(6, 6, 3, padding=1)
        self.head = nn.Linear(6, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.one(x if x.sum() < 1e9 else -x).relu()
        return self.head(self.two(x).relu().amax((2, 3)))


def test_a_network_that_cannot_be_cut_is_repeated_as_a_whole_and_says_so():
    data = made_data()
    model = centred(Branching(), data)
    with pytest.warns(UserWarning, match="whole network is repeated"):
        found = measure_sensitivity(model, data, **PASSES)
    for unit in found.units:
        for curve, changed in ((unit.last, {"k": unit.k}), (unit.alone, {"only": unit.index})):
            copy, _ = remove_spatial(model, "shuffle", image_size=16, **changed)
            assert curve.top1 == evaluate(copy, data, **PASSES, split=False).top1
    assert len({c.top1 for u in found.units for c in (u.alone, u.last)}) == 3


@pytest.mark.parametrize("repeats", [0, -1])
def test_no_passes_are_bad_input(repeats):
    with pytest.raises(InputError, match="repeats"):
        measure_sensitivity(build_model("chain:4", 4, 16), made_data(), repeats=repeats)
    with pytest.raises(InputError, match="the network's answers"):
        measure_sensitivity(build_model("chain:4", 9, 16), made_data(), repeats=1)


def test_a_signal_ends_it_between_two_passes_of_one_batch():
    asked, progress = itertools.count(1), []
    with pytest.raises(Interrupted, match="nothing was written") as caught:
        measure_sensitivity(build_model("chain:4-4", 4, 16), made_data(), repeats=2, progress=progress.append,
                            stop=lambda: signal.SIGTERM if next(asked) == 3 else None)
    assert caught.value.exit_status == 143
    assert progress == pytest.approx([1 / 6, 2 / 6])  # of 1 batch: 2 passes each of unit 1 alone, K = 2 and K = 1


def test_progress_rises_to_1():
    progress = []
    measure_sensitivity(build_model("chain:4-4", 4, 16), made_data(), **PASSES, progress=progress.append)
    assert progress == sorted(progress)
    assert progress[-1] == 1
