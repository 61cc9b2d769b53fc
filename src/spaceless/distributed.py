"""Several processes on one training, as `torchrun` starts them: each takes its share of every batch.

What comes out is what one process would get from the whole batch, up to the order of floating-point sums: gradients
are those of the whole batch, and so are the statistics of batch normalisation. Only dropout draws other masks.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from spaceless.errors import InputError, SpacelessError

_T = TypeVar("_T")
_SHAREABLE = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm)


@dataclass(frozen=True)
class Share:
    """Which part of every batch this process works on: each `count`-th image, beginning with number `rank`."""

    rank: int = 0
    count: int = 1

    def of(self, batch: Tensor) -> Tensor:
        """Return this process's part of `batch` (B, ...); the parts of all ranks make up the whole, each image once."""
        return batch[self.rank::self.count]


def share() -> Share:
    """Return this process's share: all of it, unless `joined` is in force."""
    return Share(dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else Share()


def asked_processes() -> int:
    """Return how many processes `torchrun` has started for this work; 1 without it."""
    return int(os.environ.get("WORLD_SIZE", "1")) if "RANK" in os.environ else 1


@contextmanager
def joined(device: str = "auto") -> Iterator[Share]:
    """Join the other processes that `torchrun` has started, if there are any, and yield this one's share.

    They talk by NCCL where each has a GPU of its own (`auto` and `cuda` then mean that GPU), by gloo otherwise.

    Raises:
        InputError: A GPU is named by its number, which several processes cannot share, or there are too few.

    """
    if asked_processes() == 1:
        yield Share()
        return
    if device not in ("auto", "cuda", "cpu"):
        raise InputError("device", found=device, expected="auto, cuda or cpu under torchrun", cure="leave --device out")
    gpu = device != "cpu" and torch.cuda.is_available()
    if gpu:
        here, gpus = int(os.environ.get("LOCAL_WORLD_SIZE", "1")), torch.cuda.device_count()
        if here > gpus:
            raise InputError(
                "processes", found=f"{here} on this machine", expected=f"one for each GPU, at most {gpus}",
                cure="lower --nproc-per-node, or add --device cpu",
            )
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")))
    # Both: tensors on the GPU travel by NCCL, objects and the agreement on signals by gloo, without a wait for the GPU.
    dist.init_process_group("cpu:gloo,cuda:nccl" if gpu else "gloo")
    try:
        yield share()
    finally:
        dist.destroy_process_group()


def from_first(value: _T) -> _T:
    """Return the `value` of the first process to all of them."""
    if not dist.is_initialized():
        return value
    box: list[Any] = [value]
    dist.broadcast_object_list(box, src=0, device=torch.device("cpu"))
    return box[0]  # type: ignore[no-any-return]


def gathered(values: Iterable[_T]) -> set[_T]:
    """Return the union of what all processes hand in."""
    own = set(values)
    if not dist.is_initialized():
        return own
    union: set[_T] = set()
    # By hand over the processors' wire: all_gather_object goes by the GPUs where there are some.
    for rank in range(dist.get_world_size()):
        box = [own]
        dist.broadcast_object_list(box, src=rank, device=torch.device("cpu"))
        union |= box[0]
    return union


def highest(*values: int) -> tuple[int, ...]:
    """Return the largest of every process's values, each by itself: how all agree on a signal, or on saving now."""
    if not dist.is_initialized():
        return values
    box = torch.tensor(values)
    dist.all_reduce(box, dist.ReduceOp.MAX)
    return tuple(int(value) for value in box)


def total(values: Tensor) -> Tensor:
    """Return the sum of `values` over all processes."""
    if dist.is_initialized():
        values = values.clone()
        dist.all_reduce(values)
    return values


@contextmanager
def spread(model: nn.Module) -> Iterator[nn.Module]:
    """Yield `model` so that its batch statistics, and with `average_gradients` its gradients, are of the whole batch.

    The loss of each process has to be the sum over its images, divided by the images of the whole batch and multiplied
    by the number of processes: the gradients are averaged over these. Parameters and buffers are those of `model`.
    """
    if not dist.is_initialized():
        yield model
        return
    device = next(iter(model.parameters())).device
    if device.type == "cuda":
        nn.SyncBatchNorm.convert_sync_batchnorm(model)  # type: ignore[no-untyped-call]
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)  # what shall replace `broadcast_buffers` is too new to use
            parallel = DistributedDataParallel(model, device_ids=[device], broadcast_buffers=False)
        yield parallel
        return
    for tensor in (*model.parameters(), *model.buffers()):
        dist.broadcast(tensor.detach(), 0)
    usual = {m: type(m) for m in model.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)}
    try:
        for module in usual:
            # Its own class: torch's SyncBatchNorm is for GPUs only. No parameter, buffer or name changes.
            module.__class__ = GlobalBatchNorm
        yield model
    finally:
        for module, kind in usual.items():
            module.__class__ = kind


def average_gradients(model: nn.Module) -> None:
    """Replace the gradients of what `spread` yields by their mean over all processes; call it after `backward`.

    `DistributedDataParallel` has done so already, while `backward` went on. On processors, where that saves little, it
    is done here in an order that is always the same: DDP finds its own during the first steps, so that the sums of
    three or more numbers, and with them the weights, would depend on where a training was interrupted.
    """
    if not dist.is_initialized() or isinstance(model, DistributedDataParallel):
        return
    gradients = [parameter.grad for parameter in model.parameters() if parameter.grad is not None]
    mean = total(torch.cat([gradient.flatten() for gradient in gradients])) / dist.get_world_size()
    parts = torch.split(mean, [gradient.numel() for gradient in gradients])
    for gradient, part in zip(gradients, parts, strict=True):
        gradient.copy_(part.view_as(gradient))


def refuse_unshareable(model: nn.Module) -> None:
    """Raise InputError if a normalisation of `model` does more than normalise: ours would replace all that it does."""
    if not dist.is_initialized():
        return
    for name, module in model.named_modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm) and type(module) not in _SHAREABLE:
            raise InputError(
                f"processes: {name}", found=type(module).__name__, expected="torch's own batch normalisation",
                cure="run this network without torchrun",
            )


@contextmanager
def told_by_all() -> Iterator[None]:
    """Make bad input an error of its own where only one process may have met it, and no other could tell of it."""
    try:
        yield
    except InputError as error:
        if share().rank == 0:
            raise
        raise SpacelessError(error.what, found=error.found, expected=error.expected, cure=error.cure) from error


class _Sum(torch.autograd.Function):
    """The sum over all processes; what comes back is the sum of all their gradients."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:  # noqa: ARG004
        return total(x)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:  # noqa: ARG004
        return total(gradients[0])


class GlobalBatchNorm(nn.modules.batchnorm._BatchNorm):
    """Batch normalisation with the statistics of all processes' images, on any device (Ioffe & Szegedy 2015)."""

    def forward(self, x: Tensor) -> Tensor:
        """Return x (B, C, ...) normalised; in evaluation mode this is ordinary batch normalisation."""
        if not self.training:
            return super().forward(x)
        places = [0, *range(2, x.ndim)]
        shape = [1, -1, *[1] * (x.ndim - 2)]
        wide = x.float()  # as under autocast: statistics are never taken in half precision
        count = total(torch.tensor(float(x.numel() // x.shape[1])))
        mean = _Sum.apply(wide.sum(places)) / count
        centred = wide - mean.view(shape)
        variance = _Sum.apply(centred.square().sum(places)) / count
        self._remember(mean.detach(), variance.detach() * count / (count - 1))
        scale = (variance + self.eps).rsqrt()
        if self.affine:
            scale = scale * self.weight
        y: Tensor = centred * scale.view(shape)
        if self.affine:
            y = y + self.bias.view(shape)
        return y.to(x.dtype)

    def _remember(self, mean: Tensor, variance: Tensor) -> None:
        if self.running_mean is None or self.running_var is None or self.num_batches_tracked is None:
            return
        self.num_batches_tracked.add_(1)
        rate = self.momentum if self.momentum is not None else 1 / float(self.num_batches_tracked)
        self.running_mean.lerp_(mean, rate)
        self.running_var.lerp_(variance, rate)

    def _check_input_dim(self, x: Tensor) -> None:
        """Accept any number of dimensions: which one is right was checked when the class was another."""
