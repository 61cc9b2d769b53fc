"""Wrong input on the command line: three lines, status 2, the right answers named, nothing left behind."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from commands import STUDY, Commands, is_an_error, train, tree
from spaceless.paper import experiments
from spaceless.trial import RECIPES

torch.set_num_threads(1)


@pytest.fixture
def spaceless(tmp_path, monkeypatch, capsys) -> Commands:
    return Commands(tmp_path, monkeypatch, capsys)


WRONG = {
    "no such verb": ("frobnicate",), "no such option": ("--frobnicate",),
    "demo, jobs": ("demo", "--jobs", "0"), "demo, option": ("demo", "--nonsense"),
    "demo, out is a file": ("demo", "--out", "file"),
    "calibrate, preset": ("calibrate", "--preset", "quick"), "calibrate, jobs": ("calibrate", "--jobs", "-1"),
    "calibrate, device": ("calibrate", "--device", "nonsense"),
    "inspect, nothing": ("inspect",), "inspect, model": ("inspect", "vgg61"),
    "inspect, chain": ("inspect", "chain:4-X"), "inspect, torchvision": ("inspect", "torchvision:resnet5000"),
    "inspect, method": ("inspect", "vgg16", "--method", "shufle"),
    "inspect, method and k": ("inspect", "vgg16", "--method", "shufle", "-k", "2"),
    "inspect, k": ("inspect", "vgg16", "--method", "shuffle", "-k", "14"),
    "inspect, negative k": ("inspect", "vgg16", "--method", "shuffle", "-k", "-1"),
    "inspect, k is no number": ("inspect", "vgg16", "--method", "shuffle", "-k", "three"),
    "inspect, k without a method": ("inspect", "vgg16", "-k", "2"),
    "inspect, unit": ("inspect", "vgg16", "--method", "shuffle", "--only", "14"),
    "inspect, downsample": ("inspect", "vgg16", "--method", "conv1x1", "-k", "2", "--downsample", "median"),
    "inspect, classes": ("inspect", "vgg16", "--classes", "0"),
    "inspect, image size": ("inspect", "vgg16", "--image-size", "0"),
    "inspect, small image": ("inspect", "vgg16", "--image-size", "8"),
    "inspect, width": ("inspect", "vgg16", "--width", "0.3"),
    "inspect, batch": ("inspect", "vgg16", "--latency", "--batch", "0"),
    "inspect, batch alone": ("inspect", "vgg16", "--batch", "2"),
    "bench, name": ("bench", "speed"), "bench, network": ("bench", "costs", "alexnte"),
    "train, nothing": ("train",), "train, no data": train(data=None), "train, model": train(model="vgg61"),
    "train, model with a line break": train(model="vgg\n16"),
    "train, chain with a line break": train(model="chain:4-\nM"),
    "train, method": train(method="shufle"), "train, k": train(method="shuffle", k=3),
    "train, k without a method": train(k=1), "train, a method without k": train(method="shuffle"),
    "train, downsample of another method": train(method="shuffle", k=1, downsample="max"),
    "train, strip without k": train(method="conv1x1", only=1, strip=1),
    "train, repeats of what is not random": train(method="conv1x1", k=1, repeats=3),
    "inspect, a method without k": ("inspect", "vgg16", "--method", "conv1x1"),
    "inspect, downsample of an unchanged one": ("inspect", "vgg16", "--downsample", "max"),
    "report, no page to open": ("report", "runs", "--markdown", "--open-report"),
    "train, unit": train(method="shuffle", only=9),
    "train, gap_fc of one unit": train(method="gap_fc", only=1),
    "train, strip": train(method="shuffle", k=1, strip=2),
    "train, recipe": train(recipe="papr"), "train, epochs": train(epochs=0),
    "train, seed": train(seed=-1), "train, width": train(width=0.3),
    "train, images": train(train_images=5000), "train, device": train(device="nonsense"),
    "train, patch": train(method="shuffle", k=1, patch=3),
    "train, shuffle options": train(method="gap_fc", k=1, shared=True),
    "train, option": train(learning_rat=3), "train, an option twice": (*train(), "--seed", "1", "--seed", "2"),
    "train, out is a file": train(out="file"), "train, out is in a file": train(out="file/runs"),
    "train, missing data": train(data="cifar100"), "train, broken data": train(data="broken.npz"),
    "train, data with a line break": train(data="a\nb"), "train, distance": train(data="arrangement-1"),
    "report, live and figures": ("report", "folder", "--live", "--figures", "x"),
    "report, every": ("report", "runs", "--live", "--every", "0"),
    "report, every and nothing live": ("report", "runs", "--every", "5"),
    "study, nothing": ("study",), "study, name": ("study", "fig2-vgg61"),
    "study, preset": ("study", "mine.toml", "--preset", "quick"), "study, no file": ("study", "nowhere.toml"),
    "study, broken file": ("study", "broken.toml"), "study, folder": ("study", "folder.toml"),
    "study, jobs": ("study", "mine.toml", "--jobs", "0"), "study, epochs": ("study", "mine.toml", "--epochs", "0"),
    "study, seeds": ("study", "mine.toml", "--seeds", "x"), "study, recipe": ("study", "mine.toml", "--recipe", "papr"),
    "study, device": ("study", "mine.toml", "--device", "nonsense"),
    "study, images": ("study", "mine.toml", "--train-images", "5000"),
    "study, no weights to test": ("study", "mine.toml", "--no-weights"),
    "study, out is a file": ("study", "mine.toml", "--out", "file"),
    "study, missing data": ("study", "fig2-vgg16", "--preset", "smoke"),
    "study, dry run of missing data": ("study", "mine.toml", "--data", "nowhere", "--dry-run"),
    "evaluate, nothing": ("evaluate",), "evaluate, no folder": ("evaluate", "nowhere"),
    "evaluate, not a run": ("evaluate", "."), "evaluate, a file": ("evaluate", "file"),
    "evaluate, repeats": ("evaluate", ".", "--repeats", "0"),
    "paper, experiment": ("paper", "table9"), "paper, option": ("paper", "--chek"),
    "report, nothing": ("report",), "report, no folder": ("report", "nowhere"), "report, a file": ("report", "file"),
    "data, verify and no name": ("data", "--verify"),
    "data, image size and no name": ("data", "--image-size", "9"),
    "data, missing": ("data", "cifar100"), "data, name": ("data", "cifar1000"), "data, path": ("data", "no/where"),
    "data, broken": ("data", "broken.npz", "--verify"), "data, distance": ("data", "arrangement-x"),
}


@pytest.mark.parametrize("what", WRONG)
def test_wrong_input_gives_three_lines_status_2_and_leaves_nothing(spaceless, tmp_path, what):
    (tmp_path / "file").write_text("in the way")
    (tmp_path / "mine.toml").write_text(STUDY)
    (tmp_path / "broken.toml").write_text("name = ")
    (tmp_path / "folder.toml").mkdir()
    np.savez(tmp_path / "whole.npz", train_images=np.zeros((8, 4, 4, 3), np.uint8), train_labels=np.arange(8) % 2)
    (tmp_path / "broken.npz").write_bytes((tmp_path / "whole.npz").read_bytes()[:-30])
    before = tree(tmp_path)
    is_an_error(*spaceless(*WRONG[what]))
    assert tree(tmp_path) == before


@pytest.mark.parametrize(("words", "says"), [
    (("inspect", "vgg61"), ("vgg16", "resnet50", "resnet152", "mobilenet_v2", "squeezenet1_0", "timm:NAME")),
    (("inspect", "resnet18"), ("torchvision:resnet18", "timm:resnet18")),
    (("inspect", "vgg16", "--method", "shufle"), ("shuffle", "gap_fc", "conv1x1", "channel_shuffle", "strip")),
    (("inspect", "vgg16", "--method", "shuffle", "-k", "14"), ("14", "13")),
    (("study", "fig2-vgg61"), ("did you mean 'fig2-vgg16'?",)),
    (("paper", "tabel1"), tuple(experiments())),
    (train(recipe="papr"), tuple(RECIPES)),
    (train(data="cifar100"), ("cifar-100-python", "cifar-100-binary", "cifar100.npz", "--download")),
    (("inspect", "vgg16", "--clases", "3"), ("--clases", "--classes", "spaceless inspect --help")),
    (("frobnicate",), ("frobnicate", "spaceless --help")),
])
def test_errors_name_what_would_have_been_right(spaceless, words, says):
    message = spaceless(*words)[2]
    assert [word for word in says if word not in message] == [], message
