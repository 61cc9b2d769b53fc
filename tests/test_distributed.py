"""Several processes on one training: what comes out is what one process gets from the whole batch."""

import json
import os
import signal
import subprocess
import sys
import time
from contextlib import redirect_stderr

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from commands import Commands
from several import several
from spaceless import checkpoint, distributed
from spaceless.cli import main
from spaceless.data import Dataset
from spaceless.data.feed import test_batches as batches_of_a_test
from spaceless.data.feed import training_batches
from spaceless.distributed import GlobalBatchNorm, Share, average_gradients, highest, share, spread
from spaceless.errors import InputError, Interrupted, SpacelessError
from spaceless.profiling import measure_sensitivity
from spaceless.training import States, train
from spaceless.trial import RECIPES

RECIPE = RECIPES["paper"].model_copy(update={"epochs": 2, "batch_size": 8})


def made(train, test):
    random = torch.Generator().manual_seed(0)
    images = [torch.randint(0, 256, (n, 3, 8, 8), generator=random, dtype=torch.uint8) for n in (train, test)]
    labels = [torch.arange(n) % 3 for n in (train, test)]
    return Dataset("made", "made", "", images[0], labels[0], images[1], labels[1], ("a", "b", "c"))


@pytest.mark.parametrize("count", [1, 2, 3, 5])
def test_the_shares_of_a_batch_hold_every_image_once(count):
    data = made(27, 13)
    data.train_images[:] = torch.arange(27, dtype=torch.uint8)[:, None, None, None]
    plain = RECIPE.model_copy(update={"augment": "none"})
    cpu = torch.device("cpu")
    shares = [training_batches(data, plain, 0, 0, cpu, Share(rank, count)) for rank in range(count)]
    together = zip(*shares, strict=True)
    whole = training_batches(data, plain, 0, 0, cpu)
    for parts, batch in zip(together, whole, strict=True):
        seen = torch.cat([part.images[:, 0, 0, 0] for part in parts])
        assert sorted(seen.tolist()) == sorted(batch.images[:, 0, 0, 0].tolist())
    tested = [batch.labels for rank in range(count) for batch in batches_of_a_test(data, 4, cpu, Share(rank, count))]
    assert sorted(torch.cat(tested).tolist()) == sorted(data.test_labels.tolist())


@pytest.mark.parametrize("augment", ["crop_flip", "resized_crop"])
def test_every_image_has_the_crop_that_one_process_gives_it(augment):
    data, cpu, recipe = made(27, 13), torch.device("cpu"), RECIPE.model_copy(update={"augment": augment})
    plain = list(training_batches(data, recipe.model_copy(update={"augment": "none"}), 3, 0, cpu))
    for step, whole in enumerate(training_batches(data, recipe, 3, 0, cpu)):
        assert not torch.equal(whole.images, plain[step].images)
        for rank in range(2):
            mine = list(training_batches(data, recipe, 3, 0, cpu, Share(rank, 2)))[step]
            assert torch.equal(mine.images, whole.images[rank::2])
            assert torch.equal(mine.labels, whole.labels[rank::2])


def test_alone_nothing_is_shared_or_wrapped():
    model = nn.Linear(2, 2)
    assert share() == Share(0, 1)
    assert highest(3, 0) == (3, 0)
    with spread(model) as same:
        assert same is model


def network():
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4, momentum=0.3), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 9, 5),
        nn.BatchNorm1d(5, affine=False), nn.Linear(5, 2),
    )


def plain_network():
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 4, 3), nn.AdaptiveMaxPool2d(1), nn.Flatten(), nn.Linear(4, 3))


def compare_with_one(rank, count, images, meeting, folder):
    os.environ |= {"RANK": str(rank), "WORLD_SIZE": str(count), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": meeting}
    torch.set_num_threads(1)
    alone = measure_sensitivity(plain_network(), made(3, 13), repeats=2, batch_size=6)  # the last batch is of one image
    with distributed.joined("cpu") as mine:
        assert measure_sensitivity(plain_network(), made(3, 13), repeats=2, batch_size=6) == alone
        compare_a_step(mine, images)
        compare_a_resumed_training(rank, folder)


def compare_a_resumed_training(rank, folder):
    def network():
        torch.manual_seed(rank)  # the first process's weights count
        return nn.Sequential(
            nn.Conv2d(3, 16, 3), nn.BatchNorm2d(16), nn.ReLU(), nn.Conv2d(16, 32, 3), nn.BatchNorm2d(32), nn.ReLU(),
            nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(32, 3))

    data = made(27, 13)
    recipe = RECIPE.model_copy(update={"batch_size": 9})  # 3 steps in each of 2 epochs
    whole = network()
    told = train(whole, data, recipe, 0)
    states = States(folder / "states", "mine")
    save = checkpoint.save
    if rank == 0:
        checkpoint.save = lambda *words: (time.sleep(0.5), save(*words))  # a slow disk
    for done, steps in ((1, 1), (3, 2), (4, 1)):
        asked = iter([None] * (steps - 1) + [signal.SIGTERM])
        with pytest.raises(Interrupted):
            train(network(), data, recipe, 0, states=states, stop=asked.__next__)
        assert (folder / "states" / f"state-{done:09d}.json").exists()  # no process ends before
    resumed = network()
    again = train(resumed, data, recipe, 0, states=states)
    checkpoint.save = save
    for one, other in zip(whole.state_dict().values(), resumed.state_dict().values(), strict=True):
        assert torch.equal(one, other)
    assert [(e.loss, e.top1) for e in again.history] == [(e.loss, e.top1) for e in told.history]


def compare_a_step(mine, images):
    x, y = torch.randn(images, 3, 5, 5, generator=torch.Generator().manual_seed(1)), torch.arange(images) % 2
    alone = network()
    (nn.functional.cross_entropy(alone(x), y, reduction="sum") / images).backward()
    shared = network()
    with spread(shared) as parallel:
        assert sum(isinstance(m, GlobalBatchNorm) for m in shared.modules()) == 2
        loss = nn.functional.cross_entropy(parallel(mine.of(x)), mine.of(y), reduction="sum") / images
        (loss * mine.count).backward()
        average_gradients(parallel)
    assert not any(isinstance(m, GlobalBatchNorm) for m in shared.modules())
    assert highest(mine.rank, 7 - mine.rank) == (mine.count - 1, 7)
    assert distributed.from_first(f"from {mine.rank}") == "from 0"
    assert distributed.total(torch.tensor([1, mine.rank])).tolist() == [mine.count, sum(range(mine.count))]
    for one, other in zip(alone.state_dict().values(), shared.state_dict().values(), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-6)  # running statistics are among them
    for one, other in zip(alone.parameters(), shared.parameters(), strict=True):
        # Moments of two images: divided by so little, the last digits depend on the processor's own order of sums.
        torch.testing.assert_close(one.grad, other.grad, rtol=2e-3, atol=2e-5)


def test_processes_together_do_what_one_does_and_resume_bit_for_bit(free_port, tmp_path):
    count, images = 3, 2  # none is left for the last of them
    several(compare_with_one, count, images, free_port, tmp_path)


@pytest.fixture
def free_port():
    import socket

    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return str(probe.getsockname()[1])


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    random = np.random.default_rng(0)
    y_train, y_test = np.arange(45) % 3, np.arange(31) % 3
    parts = {"y_train": y_train, "y_test": y_test}
    for split, labels in (("train", y_train), ("test", y_test)):
        noise = random.integers(0, 120, (len(labels), 8, 8, 3))
        parts[f"x_{split}"] = (noise + 60 * labels[:, None, None, None]).astype(np.uint8)
    path = tmp_path_factory.mktemp("data") / "shades.npz"
    np.savez(path, **parts)
    return path


def test_two_processes_give_what_one_gives(images, tmp_path, monkeypatch, capsys):
    # 45 images in batches of 10: shares of 5 and 5, at the end 3 and 2.
    words = (
        "train", "--model", "chain:6-M-8", "--data", images, "--method", "shuffle", "-k", "1", "--recipe", "smoke",
        "--epochs", "4", "--batch-size", "10", "--precision", "fp32", "--repeats", "5", "--device", "cpu", "--json",
    )
    one = json.loads(Commands(tmp_path, monkeypatch, capsys)(*words, "--out", tmp_path / "one")[1])
    torchrun = (sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2")
    two = json.loads(subprocess.run(
        [*torchrun, "-m", "spaceless", *map(str, words), "--out", tmp_path / "two"], check=True, capture_output=True,
        text=True, env=os.environ | {"OMP_NUM_THREADS": "1"}, timeout=200).stdout)
    assert (one["processes"], two["processes"]) == (1, 2)
    assert two["evaluations"][0]["images"] == 31
    # The sums are taken in another order, nothing else: 5 significant digits of every loss, every weight to 1e-4, and
    # so no image on the other side of the border between two classes.
    assert [e["loss"] for e in two["history"]] == pytest.approx([e["loss"] for e in one["history"]], rel=1e-5)
    assert [e["top1"] for e in two["history"]] == [e["top1"] for e in one["history"]]
    assert two["evaluations"] == one["evaluations"]
    weights = [load_file(next((tmp_path / name).glob("*/model.safetensors"))) for name in ("one", "two")]
    for name, tensor in weights[0].items():
        torch.testing.assert_close(weights[1][name], tensor, rtol=1e-4, atol=1e-4)


def command(rank, count, meeting, folder, *words):
    """Be one of `count` processes that torchrun starts for a command, and keep what it says and its exit status."""
    os.environ |= {"RANK": str(rank), "WORLD_SIZE": str(count), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": meeting}
    sys.argv = ["spaceless", *map(str, words)]
    with (folder / f"{rank}.said").open("w") as file, redirect_stderr(file):
        try:
            main()
        except SystemExit as end:
            (folder / f"{rank}.status").write_text(str(end.code))


def test_what_several_processes_cannot_do_is_said_once(images, tmp_path, free_port):
    words = ("train", "--model", "chain:6-M-8", "--data", images, "--method", "shuffle", "-k", 1, "--per-image")
    several(command, 2, free_port, tmp_path, *words, "--out", tmp_path / "o")
    assert all(int(path.read_text()) > 0 for path in tmp_path.glob("*.status"))
    assert len(list(tmp_path.glob("*.status"))) == 2
    assert sum(path.read_text().count("per-image shuffles") for path in tmp_path.glob("*.said")) == 1
    assert not (tmp_path / "o").exists()


def test_more_processes_than_gpus_are_refused(monkeypatch):
    for name, value in {"RANK": "0", "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    with pytest.raises(InputError, match="2 on this machine"), distributed.joined("auto"):
        pass


def test_a_normalisation_that_does_more_is_refused(monkeypatch):
    class WithActivation(nn.BatchNorm2d):
        def forward(self, x):
            return super().forward(x).relu()

    model = nn.Sequential(nn.BatchNorm2d(2), WithActivation(2))
    distributed.refuse_unshareable(model)  # alone nothing is replaced
    monkeypatch.setattr(distributed.dist, "is_initialized", lambda: True)
    distributed.refuse_unshareable(model[:1])
    with pytest.raises(InputError, match="processes: 1: found WithActivation"):
        distributed.refuse_unshareable(model)


@pytest.mark.parametrize("rank", [0, 1])
def test_what_one_process_meets_alone_is_told(rank, monkeypatch):
    monkeypatch.setattr(distributed, "share", lambda: Share(rank, 2))
    with pytest.raises(SpacelessError, match="a file: found dust") as caught, distributed.told_by_all():
        raise InputError("a file", found="dust", expected="an image", cure="clean it")
    assert caught.value.exit_status == (1 if rank else 2)  # the command line prints 2 in the first process only


def test_a_numbered_gpu_is_refused_under_torchrun(monkeypatch):
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(InputError, match="cuda:1"), distributed.joined("cuda:1"):
        pass
