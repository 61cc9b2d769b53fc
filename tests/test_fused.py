"""A network with its normalisations joined and its weights cast in one go is the network, to the last name."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from spaceless import fused as room
from spaceless.evaluation import evaluate
from spaceless.fused import Halves, Normalised, Pooled, fused
from spaceless.models import build_model
from spaceless.surgery import remove_spatial
from test_training import made_data

pytest.importorskip("triton", reason="needs Triton, which comes with PyTorch for GPUs")

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
torch.set_num_threads(1)


def ready(name: str, method: str = "shuffle", k: int = 0) -> nn.Module:
    torch.manual_seed(0)
    model = build_model(name, 10, 32, width=0.125)
    model = remove_spatial(model, method, k, image_size=32)[0] if k else model
    return model.train().to(DEVICE, memory_format=torch.channels_last)


def images(count: int = 16, side: int = 32) -> tuple[Tensor, Tensor]:
    source = torch.Generator().manual_seed(1)
    x = torch.randn(count, 3, side, side, generator=source).to(DEVICE)
    return x.contiguous(memory_format=torch.channels_last), torch.arange(count, device=DEVICE) % 10


def step(network: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    torch.manual_seed(2)
    loss = functional.cross_entropy(network(x), y)
    loss.backward()
    return loss.detach()


class Residual(nn.Module):
    """A block with a shortcut that is normalised too, as ResNets have it, and one without, behind a pooling."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.norm = nn.Conv2d(3, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8)
        self.conv1, self.bn1 = nn.Conv2d(8, 8, 3, padding=1), nn.BatchNorm2d(8)
        self.conv2, self.bn2 = nn.Conv2d(8, 16, 1, bias=False), nn.BatchNorm2d(16)
        self.short = nn.Sequential(nn.Conv2d(8, 16, 1, bias=False), nn.BatchNorm2d(16))
        self.conv3, self.bn3 = nn.Conv2d(16, 16, 3, padding=1), nn.BatchNorm2d(16)
        self.relu, self.pool, self.drop = nn.ReLU(inplace=True), nn.MaxPool2d(2), nn.Dropout(0.2)
        self.head = nn.Linear(16, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.pool(self.relu(self.norm(self.stem(x))))
        y = self.bn2(self.conv2(self.relu(self.bn1(self.conv1(x)))))
        y += self.short(x)
        x = self.relu(y)
        x = functional.relu(torch.add(x, self.bn3(self.conv3(x))))
        return self.head(self.drop(x.mean((2, 3))))


def residual(shuffled: int = 0) -> nn.Module:
    torch.manual_seed(0)
    model = Residual()
    model = remove_spatial(model, "shuffle", shuffled, image_size=8)[0] if shuffled else model
    return model.train().to(DEVICE, memory_format=torch.channels_last)


@pytest.mark.parametrize(("name", "norms", "relus", "pools"), [("vgg16", 13, 13, 5), ("resnet50", 53, 49, 0)])
def test_all_that_can_be_joined_is(name, norms, relus, pools):
    for method, k in (("shuffle", 3), ("conv1x1", 2)):
        network = room._rewritten(ready(name, method, k), 32)
        joined = [module for module in network.modules() if isinstance(module, Normalised)]
        assert len(joined) == norms
        assert sum(each.relu for each in joined) == relus
        assert sum(isinstance(module, Pooled) for module in network.modules()) == pools


@pytest.mark.parametrize("shuffled", [0, 2])
def test_it_is_the_same_network_in_fewer_parts(shuffled):
    model, own = residual(shuffled), residual(shuffled)
    network = fused(model, 8)
    joined = [module for module in network.modules() if isinstance(module, Normalised)]
    assert [each.relu for each in joined].count(True) == 4
    assert len(joined) == 5  # with that of the shortcut
    assert {id(p) for p in network.parameters()} == {id(p) for p in model.parameters()}
    x, y = images(side=8)
    for _ in range(3):
        assert torch.allclose(step(network, x, y), step(own, x, y), rtol=1e-4)
    for (path, a), b in zip(own.named_buffers(), model.buffers(), strict=True):
        assert torch.allclose(a.double(), b.double(), rtol=1e-3, atol=1e-4), path
    for (path, a), b in zip(own.named_parameters(), model.parameters(), strict=True):
        assert torch.allclose(a.grad, b.grad, rtol=1e-2, atol=1e-4), path


def test_the_casts_leave_the_network_as_it_was_and_train_it():
    model, own = residual(2), residual(2)
    before = dict(model.named_parameters())
    x, y = images(side=8)
    losses: dict[bool, list[float]] = {False: [], True: []}
    for halved, each in ((False, own), (True, model)):
        network = Halves(fused(each, 8)) if halved else each
        optimizer = torch.optim.SGD(each.parameters(), lr=0.1, momentum=0.9)
        for _ in range(8):
            torch.manual_seed(2)
            with torch.autocast(DEVICE, torch.bfloat16):
                logits = network(x)
            loss = functional.cross_entropy(logits.float(), y)
            optimizer.zero_grad()
            loss.backward()
            if isinstance(network, Halves):
                network.hand_back()
            optimizer.step()
            losses[halved].append(loss.item())
    assert losses[True] == pytest.approx(losses[False], rel=0.1)
    assert losses[True][-1] < 0.8 * losses[True][0]
    after = dict(model.named_parameters())
    assert all(after[name] is parameter and parameter.dtype is torch.float32 for name, parameter in before.items())
    assert after.keys() == before.keys()
    assert evaluate(model, made_data(classes=10)).images == 20  # without autocast


def test_a_module_with_two_names_keeps_its_weights_too():
    linear = nn.Linear(4, 4, device=DEVICE)
    model = nn.Sequential(linear, nn.ReLU(), linear)
    halves = Halves(model)
    with torch.autocast(DEVICE, torch.bfloat16):
        halves(torch.randn(3, 4, device=DEVICE)).float().sum().backward()
    halves.hand_back()
    assert linear.weight is next(model.parameters())
    assert linear.weight.dtype is linear.weight.grad.dtype is torch.float32
    assert linear.weight.grad.any()


class Unusual(nn.Module):
    """A normalisation used twice, one whose map is used again, a shared ReLU, a pooling of another kind."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 6, 3, padding=1)
        self.twice, self.once = nn.BatchNorm2d(6), nn.BatchNorm2d(6)
        self.still = nn.BatchNorm2d(6, momentum=None)
        self.relu, self.pool = nn.ReLU(inplace=True), nn.MaxPool2d(3, 2, 1)
        self.head = nn.Linear(6, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv(x)
        x = self.relu(self.twice(x)) + self.twice(x)
        y = self.once(x)
        x = self.relu(y + x) * y
        return self.head(self.pool(self.still(x)).mean((2, 3)))


def test_what_cannot_be_joined_stays():
    torch.manual_seed(0)
    model = Unusual().to(DEVICE).train()
    own = copy.deepcopy(model)
    network = fused(model, 16)
    (only,) = (module for module in network.modules() if isinstance(module, Normalised))
    assert only.norm is model.once and only.conv is None and not only.relu
    x, y = images(side=16)
    assert torch.allclose(step(network, x, y), step(own, x, y), rtol=1e-4)


class Spread(nn.Module):
    """A sum with something smaller, which PyTorch spreads over the map."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm, self.short = nn.Conv2d(3, 6, 3, padding=1), nn.BatchNorm2d(6), nn.Conv2d(3, 6, 1)
        self.head = nn.Linear(6, 10)

    def forward(self, x: Tensor) -> Tensor:
        y = torch.relu(self.norm(self.conv(x)) + self.short(x.mean((2, 3), keepdim=True)))
        return self.head(y.mean((2, 3)))


def test_a_residual_of_another_size_is_spread_as_ever():
    torch.manual_seed(0)
    model = Spread().to(DEVICE).train()
    own = copy.deepcopy(model)
    network = fused(model, 8)
    assert network is not model
    x, y = images(side=8)
    assert torch.allclose(step(network, x, y), step(own, x, y), rtol=1e-4)


def test_a_network_that_would_not_be_itself_is_left_alone(monkeypatch):
    model = residual()
    right = Normalised.forward
    monkeypatch.setattr(Normalised, "forward", lambda self, x, residual=None: 1.1 * right(self, x, residual))
    assert fused(model, 8) is model
    plain = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 36, 10)).to(DEVICE)
    assert fused(plain, 8) is plain

    class Choosing(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm = nn.BatchNorm2d(3)

        def forward(self, x: Tensor) -> Tensor:
            return self.norm(x) if float(x.detach().sum()) > 0 else x

    choosing = nn.Sequential(nn.Conv2d(3, 3, 1), Choosing()).to(DEVICE)
    assert fused(choosing, 8) is choosing


def test_kernels_that_do_not_work_are_said_to_once(monkeypatch):
    from spaceless import kernels

    monkeypatch.setattr(kernels, "works", lambda _: "no C compiler")
    room.kernels_work.cache_clear()
    with pytest.warns(UserWarning, match="no C compiler"):
        assert not room.kernels_work(torch.device(DEVICE))
    assert not room.kernels_work(torch.device(DEVICE))
    monkeypatch.undo()
    room.kernels_work.cache_clear()
    assert room.kernels_work(torch.device(DEVICE))
