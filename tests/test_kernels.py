"""The kernels for a GPU against float64 and PyTorch's own operations: on a GPU, or else by Triton's interpreter."""

from __future__ import annotations

import copy
import itertools

import pytest
import torch
from torch import nn
from torch.nn import functional

kernels = pytest.importorskip("spaceless.kernels", reason="needs Triton, which comes with PyTorch for GPUs")

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
LAST = torch.channels_last
TYPES = pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])


def drawn(*shape: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    x = torch.randn(shape, device=DEVICE).to(dtype)
    return (x.contiguous(memory_format=LAST) if x.dim() == 4 else x).requires_grad_()


def apart(one: torch.Tensor, other: torch.Tensor) -> float:
    return ((one.double() - other).norm() / other.norm().clamp_min(1e-9)).item()


@TYPES
@pytest.mark.parametrize("shape", [(4, 24, 6, 6), (8, 3, 8, 8), (2, 80, 2, 2), (40, 16, 1, 1), (3, 5, 3, 7)], ids=str)
@pytest.mark.parametrize(("relu", "added", "shifted"), list(itertools.product((False, True), repeat=3)))
def test_a_joined_normalisation_is_that_of_float64(dtype, shape, relu, added, shifted):
    torch.manual_seed(0)
    channels = shape[1]
    norm = nn.BatchNorm2d(channels, device=DEVICE)
    for weight in norm.parameters():
        nn.init.normal_(weight)
    exact = copy.deepcopy(norm).double()
    x = (drawn(*shape, dtype=dtype).detach() * 2 + 3).requires_grad_()
    residual = drawn(*shape, dtype=dtype) if added else None
    offset = drawn(channels) if shifted else None
    y = kernels.normalised(x, norm, residual=residual, offset=offset, relu=relu)
    assert y.dtype is dtype and y.is_contiguous(memory_format=LAST)
    arriving = torch.randn(shape, device=DEVICE).to(dtype)
    y.backward(arriving)

    wide = x.detach().double().requires_grad_()
    beside = residual.detach().double().requires_grad_() if added else None
    z = exact(wide if offset is None else wide + offset.detach().double()[:, None, None])
    z = z if beside is None else z + beside
    z = z.relu() if relu else z
    z.backward(arriving.double())
    found = [y, x.grad, norm.weight.grad, norm.bias.grad, norm.running_mean, norm.running_var]
    wanted = [z, wide.grad, exact.weight.grad, exact.bias.grad, exact.running_mean, exact.running_var]
    if added:
        found, wanted = [*found, residual.grad], [*wanted, beside.grad]
    for a, b in zip(found, wanted, strict=True):
        assert apart(a, b) < (1e-4 if dtype is torch.float32 else 3e-2)
    assert norm.num_batches_tracked == exact.num_batches_tracked == 1
    if shifted:
        assert not offset.grad.any()  # as it is but for rounding


def test_a_normalisation_of_large_numbers_stays_precise():
    torch.manual_seed(0)
    norm, exact = nn.BatchNorm2d(4, device=DEVICE), nn.BatchNorm2d(4, device=DEVICE).double()
    x = torch.randn(16, 4, 8, 8, device=DEVICE).mul_(1e-2).add_(100).contiguous(memory_format=LAST)
    assert apart(kernels.normalised(x, norm, relu=False), exact(x.double())) < 1e-2  # E[x²] - E[x]² would be all wrong


def test_nan_is_handed_on_and_a_lone_number_is_refused():
    norm = nn.BatchNorm2d(2, device=DEVICE)
    x = torch.randn(4, 2, 2, 2, device=DEVICE)
    x[0, 1, 0, 0] = float("nan")
    y = kernels.normalised(x, norm, relu=True)
    assert y[:, 0].isfinite().all() and y[:, 1].isnan().all()
    with pytest.raises(ValueError, match="more than 1 value per channel"):
        kernels.normalised(x[:1, :, :1, :1], norm, relu=True)


@TYPES
@pytest.mark.parametrize("shape", [(3, 20, 4, 4), (2, 7, 8, 8), (2, 130, 2, 2), (1, 5, 3, 3), (2, 3, 32, 32)], ids=str)
def test_a_permutation_and_its_gradient_are_exact(dtype, shape):
    torch.manual_seed(0)
    n, channels, height, width = shape
    permutation = torch.rand(channels, height * width, device=DEVICE).argsort(1)
    moves = tuple(each.t().int().contiguous() for each in (permutation, permutation.argsort(1)))
    x = drawn(*shape, dtype=dtype)
    own = x.detach().clone().requires_grad_()
    y = kernels.permute(x, moves)
    z = own.flatten(2).gather(2, permutation.expand(n, channels, height * width)).view(shape)
    arriving = torch.randn_like(z)
    y.backward(arriving)
    z.backward(arriving)
    assert torch.equal(y, z)
    assert torch.equal(x.grad, own.grad)


@TYPES
@pytest.mark.parametrize("shape", [(2, 5, 4, 6), (3, 70, 2, 2)], ids=str)
def test_pooling_is_pytorchs_with_equal_numbers_too(dtype, shape):
    torch.manual_seed(0)
    x = torch.randint(-2, 3, shape, device=DEVICE).to(dtype)
    x[0, 0, 0, 1] = float("nan")
    x = x.contiguous(memory_format=LAST).requires_grad_()
    own = x.detach().clone().requires_grad_()
    y, z = kernels.pooled(x), functional.max_pool2d(own, 2)
    arriving = torch.randn_like(z)
    y.backward(arriving)
    z.backward(arriving)
    assert torch.equal(y.nan_to_num(99), z.nan_to_num(99))
    assert torch.equal(x.grad, own.grad)


def test_a_look_at_whether_they_work_says_why_not(monkeypatch):
    assert kernels.works(torch.device(DEVICE)) is None

    def broken(_: torch.Tensor) -> torch.Tensor:
        raise RuntimeError("Failed to find C compiler.\nMore of it.")

    monkeypatch.setattr(kernels, "pooled", broken)
    assert kernels.works(torch.device(DEVICE)) == "RuntimeError: Failed to find C compiler."
    monkeypatch.setattr(kernels, "pooled", lambda x: x[:, :, :1, :1])
    assert kernels.works(torch.device(DEVICE)) == "a wrong result"
