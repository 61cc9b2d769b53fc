"""What a training minimises: cross entropy with the labels, or that and the answers of another network."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional

from spaceless.evaluation import autocast, in_format
from spaceless.trial import Distillation

# From logits (B, classes) in fp32, labels int64 (B,) and what went into the network to the loss, summed over the batch.
Loss = Callable[[Tensor, Tensor, Tensor], Tensor]


def cross_entropy(logits: Tensor, labels: Tensor, _inputs: Tensor) -> Tensor:
    """Return the cross entropy in nats, summed over the batch."""
    return functional.cross_entropy(logits, labels, reduction="sum")


def distilled(original: nn.Module, distillation: Distillation, precision: str) -> Loss:
    """Return the loss of `Distillation` towards the answers of `original`, which is put into evaluation mode.

    Args:
        original: On the device that computes; it is not trained.
        distillation: Temperature and weight.
        precision: What `original` computes in, `fp32` or `bf16` (autocast).

    """
    if precision == "bf16":
        original.to(memory_format=torch.channels_last)
    original.eval()
    warmth, weight = distillation.temperature, distillation.weight

    def loss(logits: Tensor, labels: Tensor, inputs: Tensor) -> Tensor:
        with torch.no_grad(), autocast(inputs.device, precision):
            answers = original(in_format(inputs, precision))
        divergence = functional.kl_div(
            functional.log_softmax(logits / warmth, 1), functional.log_softmax(answers.float() / warmth, 1),
            reduction="sum", log_target=True)
        return (1 - weight) * cross_entropy(logits, labels, inputs) + weight * warmth**2 * divergence

    return loss
