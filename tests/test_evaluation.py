"""Accuracy of networks whose answers are known, and repeats over the tail only that equal repeats of the whole."""

from __future__ import annotations

import itertools
import signal
import statistics

import pytest
import torch
from torch import Tensor, nn

from spaceless import evaluation as evaluation_room
from spaceless.data import Dataset
from spaceless.data.augment import normalise
from spaceless.errors import InputError, Interrupted
from spaceless.evaluation import evaluate, split_at_shuffle
from spaceless.models import build_model
from spaceless.shuffle import Shuffle, ShuffleConv, seek, several, shuffles
from spaceless.surgery import remove_spatial

torch.set_num_threads(1)


def made_data(classes: int, side: int, images: int = 40) -> Dataset:
    source = torch.Generator().manual_seed(1)
    parts = [torch.randint(0, 256, (images, 3, side, side), dtype=torch.uint8, generator=source),
             torch.arange(images) % classes]
    return Dataset("made", "test", "", *parts, *parts, tuple(map(str, range(classes))))


class Ranked(nn.Module):
    """Ranks the classes 3, 0, 4, 1, 5, 2, 6, 7 for every image: top-1 is always 3, the top 5 are 3, 0, 4, 1, 5."""

    order = (3, 0, 4, 1, 5, 2, 6, 7)

    def __init__(self) -> None:
        super().__init__()
        self.scores = nn.Parameter(torch.tensor([float(-self.order.index(c)) for c in range(8)]))

    def forward(self, x: Tensor) -> Tensor:
        return self.scores.expand(len(x), 8)


@pytest.mark.parametrize("batch_size", [1, 3, 8, 100])
def test_top1_and_top5_of_a_network_with_known_answers(batch_size):
    labels = torch.tensor([3, 3, 3, 0, 4, 1, 2, 6, 7, 7])  # 3 first, 6 among the first five
    images = torch.zeros(10, 3, 4, 4, dtype=torch.uint8)
    data = Dataset("made", "test", "", images, labels, images, labels, tuple("abcdefgh"))
    found = evaluate(Ranked(), data, batch_size=batch_size)
    assert (found.top1, found.top5, found.images, found.shuffle_last) == ((30.0,), 60.0, 10, None)
    assert evaluate(Ranked(), data, repeats=4).top5 == 60.0


def test_the_test_images_are_looked_at_normalised_by_the_training_images():
    class Brightness(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.tensor([-1.0, 1.0]))

        def forward(self, x: Tensor) -> Tensor:
            return x.mean((1, 2, 3))[:, None] * self.weight  # class 1 for what is brighter than the training mean

    train = torch.full((2, 3, 2, 2), 100, dtype=torch.uint8)
    train[1] = 140  # mean 120
    test = torch.tensor([119, 121, 200, 0], dtype=torch.uint8)[:, None, None, None].expand(4, 3, 2, 2).contiguous()
    data = Dataset("made", "t", "", train, torch.tensor([0, 1]), test, torch.tensor([0, 1, 1, 1]), ("a", "b"))
    assert evaluate(Brightness(), data).top1 == (75.0,)


def test_no_top5_where_it_would_be_100_by_counting():
    data = made_data(5, 8)
    assert evaluate(build_model("chain:4", 5, 8), data).top5 is None


class Residual(nn.Module):
    """Skips around a shuffled convolution; the skip starts in front of the shuffle and ends behind it."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.stem, self.one, self.two = (nn.Conv2d(3, 6, 3, padding=1), nn.Conv2d(6, 6, 3, padding=1),
                                         nn.Conv2d(6, 6, 3, padding=1))
        self.head = nn.Linear(12, 4)

    def forward(self, x: Tensor) -> Tensor:
        stem = self.stem(x).relu()
        once = self.one(stem).relu() + stem
        twice = self.two(once).relu() + stem
        return self.head(torch.cat([twice.amax((2, 3)), stem.amax((2, 3))], 1))


NETWORKS = {
    "chain": ("chain:6-M-8-8-10", "shuffle", {"k": 2}), "chain, all units": ("chain:6-8", "shuffle", {"k": 2}),
    "one unit in the middle": ("chain:6-8-8", "shuffle", {"only": 2}),
    "channels": ("chain:6-8-8", "channel_shuffle", {"k": 2}),
    "resnet": ("resnet50", "shuffle", {"k": 4, "stem": False}),
    "mobilenet": ("mobilenet_v2", "shuffle", {"k": 15, "stem": False}),
    "skips": (Residual, "shuffle", {"k": 2}), "stripped": ("chain:6-8-8-8", "shuffle", {"k": 3, "strip": 1}),
}


def shuffling(name: str) -> nn.Module:
    kind, method, options = NETWORKS[name]
    width = 0.125 if kind == "resnet50" else 1.0
    model = kind() if callable(kind) else build_model(kind, 4, 16, width=width)
    model = remove_spatial(model, method, image_size=16, **options)[0].eval()
    data = made_data(4, 16)
    head = [m for m in model.modules() if isinstance(m, nn.Linear)][-1]
    with torch.no_grad():  # centre the answers, or an untrained network says one class whatever it sees
        head.bias -= model(normalise(data.test_images, data.mean, data.std)).mean(0)
    return model


@pytest.mark.parametrize("name", NETWORKS)
def test_the_parts_in_front_of_and_behind_the_first_shuffle_make_the_whole(name):
    model = shuffling(name)
    x = torch.randn(3, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    prefix, tail = split_at_shuffle(model)
    with torch.inference_mode():
        front = prefix(x)
        seek(model, 0, "eval")
        again = [tail(*front) for _ in range(3)]
        seek(model, 0, "eval")
        whole = [model(x) for _ in range(3)]
    assert all(torch.equal(a, b) for a, b in zip(again, whole, strict=True))
    assert not torch.equal(whole[0], whole[1])
    assert not [m for m in prefix.modules() if isinstance(m, Shuffle | ShuffleConv)]


@pytest.mark.parametrize("name", NETWORKS)
def test_repeating_the_tail_equals_repeating_the_whole(name):
    model, data = shuffling(name), made_data(4, 16)
    split = evaluate(model, data, repeats=6, batch_size=16)
    assert split == evaluate(model, data, repeats=6, batch_size=16, split=False)
    if name != "mobilenet":  # on maps of 2x2
        assert len(set(split.top1)) > 1  # the repeats differ, so that the line above says something


def test_the_front_is_computed_once_per_batch(monkeypatch):
    model, data, calls = shuffling("chain"), made_data(4, 16), []
    model.features[0].register_forward_hook(lambda *_: calls.append(1))
    evaluate(model, data, repeats=5, batch_size=10)
    assert len(calls) == 4
    calls.clear()
    evaluate(model, data, repeats=5, batch_size=10, split=False)
    assert len(calls) == 20


def test_a_network_without_a_shuffle_is_not_split():
    assert split_at_shuffle(build_model("chain:4", 4, 8)) is None


def test_repeats_by_hand():
    """Mean and spread of the repeats, against passes made one by one with the same draws."""
    model, data = shuffling("chain"), made_data(4, 16)
    found = evaluate(model, data, repeats=7, batch_size=40)
    seek(model, 0, "eval")
    with torch.no_grad():
        x = normalise(data.test_images, data.mean, data.std)
        passes = [100 * (model(x).argmax(1) == data.test_labels).double().mean().item() for _ in range(7)]
    assert found.top1 == pytest.approx(tuple(passes))
    assert found.spread == pytest.approx(statistics.stdev(passes))
    assert found.spread > 0


def test_evaluation_is_deterministic_whatever_was_computed_before():
    model, data = shuffling("chain"), made_data(4, 16)
    found = evaluate(model, data, repeats=4)
    model.train()
    model(torch.randn(4, 3, 16, 16))
    model.load_state_dict(shuffling("chain").state_dict())  # the training pass moved the running moments
    torch.manual_seed(99)
    assert evaluate(model, data, repeats=4) == found
    assert not model.training


def test_evaluation_changes_no_weight_and_no_moment():
    model, data = shuffling("chain"), made_data(4, 16)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    evaluate(model.train(), data, repeats=2)
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())


def test_more_repeats_begin_with_the_same_passes():
    model, data = shuffling("chain"), made_data(4, 16)
    short, long = (evaluate(model, data, repeats=r, batch_size=100).top1 for r in (3, 6))
    assert long[:3] == short


class Branching(nn.Module):
    """Its control flow depends on values: no tracer gets through."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.conv = ShuffleConv(Shuffle(), nn.Conv2d(3, 4, 3, padding=1))

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(x if x.sum() > 1e9 else -x).amax((2, 3))


def test_a_network_that_cannot_be_traced_is_repeated_as_a_whole_and_says_so():
    data = made_data(4, 8)
    with pytest.warns(UserWarning, match="whole network is repeated"):
        found = evaluate(Branching(), data, repeats=5)
    assert found == evaluate(Branching(), data, repeats=5, split=False)
    assert len(set(found.top1)) > 1


def test_a_signal_ends_it_between_batches():
    asked = itertools.count(1)
    progress = []
    with pytest.raises(Interrupted) as caught:
        evaluate(build_model("chain:4", 4, 8), made_data(4, 8), batch_size=4, progress=progress.append,
                 stop=lambda: signal.SIGINT if next(asked) == 3 else None)
    assert caught.value.exit_status == 130
    assert progress == [0.1, 0.2]


def test_progress_ends_at_1():
    progress = []
    evaluate(build_model("chain:4", 4, 8), made_data(4, 8), batch_size=30, progress=progress.append)
    assert progress == [0.75, 1.0]


def test_bf16_agrees_nearly():
    model, data = shuffling("resnet"), made_data(4, 16)
    exact, rough = (evaluate(model, data, repeats=3, precision=p) for p in ("fp32", "bf16"))
    assert rough.mean == pytest.approx(exact.mean, abs=10)


@pytest.mark.parametrize("options", [{}, {"channels": True}, {"per_image": True}, {"shared": True}, {"fixed": True}],
                         ids=str)
def test_several_passes_in_a_batch_are_the_passes_one_by_one(options):
    module = Shuffle(seed=3, **options).eval()
    x = torch.arange(2.0 * 3 * 16).view(2, 3, 4, 4)
    one_by_one = torch.cat([module(x) for _ in range(3)])
    seek(module, 0, "eval")
    with several(module, 3):
        assert torch.equal(module(x.repeat(3, 1, 1, 1)), one_by_one)
    assert module.together == 1
    assert module.passes["eval"] == 3


class Crossing(nn.Module):
    """What crosses the cut: a number taken from the batch, or a map that the tail overwrites."""

    def __init__(self, *, number: bool) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.stem, self.conv, self.number = nn.Conv2d(3, 8, 3, 2, 1), nn.Conv2d(8, 8, 3, padding=1), number
        self.head = nn.Linear(8, 6)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        if self.number:
            return self.head(self.conv(x).view(x.size(0), 8, -1).mean(2))
        y = self.conv(x)
        return self.head(x.add_(y).relu_().mean((2, 3)))


@pytest.mark.parametrize("number", [False, True], ids=["overwritten", "number"])
@pytest.mark.parametrize("most", [1, 3, 16])
def test_whatever_crosses_the_cut_repeats_of_the_tail_are_repeats_of_the_whole(number, most, monkeypatch):
    monkeypatch.setattr(evaluation_room, "_MOST_PASSES", most)
    model, _ = remove_spatial(Crossing(number=number), "shuffle", 1, image_size=8)
    data = made_data(6, 8)
    whole = evaluate(model, data, repeats=7, split=False, batch_size=16)
    assert evaluate(model, data, repeats=7, batch_size=16) == whole
    assert all(module.together == 1 for module in shuffles(model))


class Scaled(nn.Module):
    """A parameter behind the cut with as many entries as a batch has images, and one that is computed from it."""

    def __init__(self, count: int) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.stem, self.conv = nn.Conv2d(3, count, 3, 2, 1), nn.Conv2d(count, count, 3, padding=1)
        self.scale, self.head = nn.Parameter(torch.rand(count, 1, 1)), nn.Linear(count, 6)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        return self.head((x + self.scale * self.conv(x) * torch.exp(self.scale)).mean((2, 3)))


def test_a_parameter_of_the_size_of_a_batch_is_none_of_its_images():
    model, _ = remove_spatial(Scaled(16), "shuffle", 1, image_size=8)
    prefix, tail = split_at_shuffle(model, 8)
    x = torch.rand(16, 3, 8, 8)
    assert [len(part) for part in prefix(x)] == [16]  # nothing but the maps behind the stem
    assert {name for name, _ in tail.named_parameters()} >= {"scale"}
    data = made_data(6, 8)
    assert evaluate(model, data, repeats=7, batch_size=16) == evaluate(
        model, data, repeats=7, split=False, batch_size=16)


@pytest.mark.parametrize(("fields", "said"), [
    ({"repeats": 0}, "repeats"), ({"batch_size": 0}, "batch_size"), ({"precision": "fp16"}, "precision")])
def test_what_cannot_be_meant_is_bad_input(fields, said):
    with pytest.raises(InputError, match=said):
        evaluate(Ranked(), made_data(8, 4), **fields)


@pytest.mark.parametrize("classes", [4, 100])
def test_a_network_of_other_classes_than_the_data_has_no_accuracy(classes):
    with pytest.raises(InputError, match=rf"found \(16, 8\) to 16 images,\s+expected logits \(16, {classes}\)"):
        evaluate(Ranked(), made_data(classes, 4), batch_size=16)
