"""A network with its normalisations joined and its weights cast in one go is the network, to the last name."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from spaceless import fused as room
from spaceless.errors import InputError
from spaceless.evaluation import evaluate
from spaceless.fused import Halves, Normalised, Pooled, quick
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


def joined(model: nn.Module, image_size: int) -> nn.Module:
    found = quick(model, image_size, kernels=True)
    assert isinstance(found, Halves)
    assert found.network is not model
    return found.network


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
    network = joined(model, 8)
    parts = [module for module in network.modules() if isinstance(module, Normalised)]
    assert [each.relu for each in parts].count(True) == 4
    assert len(parts) == 5  # with that of the shortcut
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
        network = quick(each, 8, kernels=True) if halved else each
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
    network = joined(model, 16)
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
    network = joined(model, 8)
    x, y = images(side=8)
    assert torch.allclose(step(network, x, y), step(own, x, y), rtol=1e-4)


def test_a_network_that_would_not_be_itself_is_not_joined(monkeypatch):
    model = residual()
    right = Normalised.forward
    monkeypatch.setattr(Normalised, "forward", lambda self, x, residual=None: 1.1 * right(self, x, residual))
    with pytest.warns(UserWarning, match="without our kernels, .* other answers or running statistics"):
        found = quick(model, 8, kernels=True)
    assert isinstance(found, Halves) and found.network is model


def test_where_there_is_nothing_to_join_only_the_casts_are():
    plain = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 36, 10)).to(DEVICE)
    for kernels in (True, False):
        found = quick(plain, 8, kernels=kernels)
        assert isinstance(found, Halves) and found.network is plain

    class Choosing(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm = nn.BatchNorm2d(3)

        def forward(self, x: Tensor) -> Tensor:
            return self.norm(x) if float(x.detach().sum()) > 0 else x

    choosing = nn.Sequential(nn.Conv2d(3, 3, 1), Choosing(), nn.Flatten(), nn.Linear(3 * 64, 10)).to(DEVICE)
    with pytest.raises(InputError, match="float"):
        room._rewritten(choosing, 8)
    with pytest.warns(UserWarning, match="Sequential is trained without our kernels, since with them .*: InputError"):
        quick(choosing, 8, kernels=True)


class Stem(nn.Module):
    """A normalised convolution and a head, between which a subclass does something unusual."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm, self.head = nn.Conv2d(3, 6, 3, padding=1), nn.BatchNorm2d(6), nn.Linear(6, 10)

    def stem(self, x: Tensor) -> Tensor:
        return torch.relu(self.norm(self.conv(x))).mean((2, 3))

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.stem(x))


class Frozen(Stem):
    def forward(self, x: Tensor) -> Tensor:
        with torch.no_grad():
            x = self.stem(x)
        return self.head(x)


class Wide(Stem):
    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        with torch.autocast(DEVICE, enabled=False):
            return self.head(x.float())


@pytest.mark.parametrize("kind", [Frozen, Wide])
def test_what_a_graph_does_not_hold_is_not_rewritten(kind):
    torch.manual_seed(0)
    model = kind().to(DEVICE).train()
    with pytest.raises(InputError, match="parts without gradients or autocast"):
        room._rewritten(model, 8)
    x, y = images(side=8)
    if kind is Frozen:
        with pytest.warns(UserWarning, match="without our kernels, .* parts without gradients"):
            found = quick(model, 8, kernels=True)
        assert isinstance(found, Halves)
    else:
        with pytest.warns(UserWarning, match="as it is, .* dtype"):
            found = quick(model, 8, kernels=True)
        assert found is model
    with torch.autocast(DEVICE, torch.bfloat16):
        functional.cross_entropy(found(x).float(), y).backward()
    if isinstance(found, Halves):
        found.hand_back()
    assert (model.conv.weight.grad is None) == (kind is Frozen)
    assert model.head.weight.grad.any()


def test_hooks_are_called():
    model, called = Stem().to(DEVICE).train(), []
    model.norm.register_forward_hook(lambda *_: called.append(1))
    found = quick(model, 8, kernels=True)
    called.clear()
    with torch.autocast(DEVICE, torch.bfloat16):
        found(images(side=8)[0])
    assert called == [1]


def test_a_network_that_cannot_be_copied_is_trained_as_it_is():
    model = Stem().to(DEVICE).train()
    model.cache = (x for x in ())  # no generator can be copied
    with pytest.warns(UserWarning, match="Stem is trained as it is"):
        assert quick(model, 8, kernels=True) is model


def test_a_gradient_that_comes_by_another_way_is_added():
    weight = nn.Parameter(torch.randn(4, 4, device=DEVICE))

    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear, self.own = nn.Linear(4, 4, bias=False, device=DEVICE), weight
            self.linear.weight = weight

        def forward(self, x: Tensor) -> Tensor:
            return self.linear(x) + x @ self.own

    x = torch.randn(3, 4, device=DEVICE)
    gradients = []
    for network in (Twice(), Halves(Twice())):
        weight.grad = None
        with torch.autocast(DEVICE, torch.bfloat16):
            network(x).float().sum().backward()
        if isinstance(network, Halves):
            network.hand_back()
        gradients.append(weight.grad.clone())
    assert torch.allclose(*gradients, rtol=2e-2, atol=2e-2)


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
