"""Random generators derived from (seed, purpose, step), so that no generator state is ever saved."""

from __future__ import annotations

import hashlib

import torch


def derive(seed: int, purpose: str, step: int = 0) -> int:
    """Return the 63-bit seed for `purpose` at `step`; different arguments give unrelated seeds."""
    digest = hashlib.blake2b(f"{seed}|{purpose}|{step}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1


def generator(seed: int, purpose: str, step: int = 0, device: torch.device | str = "cpu") -> torch.Generator:
    """Return a fresh generator on `device` that depends on nothing but its arguments.

    PyTorch's on a CPU uses the low 32 bits of its seed: two of n generators are the same by chance with a probability
    of about n * n / 2**33.
    """
    return torch.Generator(device).manual_seed(derive(seed, purpose, step))
