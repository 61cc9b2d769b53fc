"""Damage that knows a file's form: other opcodes in a pickle, other shapes in a header, other values in JSON."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from random import Random

from spaceless.bench.faults.corruption import damaged
from spaceless.bench.faults.crafted_archives import crafted_gzip, crafted_parquet, crafted_zip
from spaceless.bench.faults.crafted_images import crafted_image, is_image
from spaceless.bench.faults.crafted_pickles import crafted_npy, crafted_pickle
from spaceless.bench.faults.crafted_texts import crafted_json, crafted_safetensors, crafted_toml
from spaceless.bench.faults.payloads import whole


def crafted(random: Random, content: bytes, other: bytes, calls: Sequence[bytes]) -> tuple[str, bytes]:
    """Return what was done to `content`, by its form, and the result.

    Args:
        random: Decides everything.
        content: A sound file: a pickle, zip, gzip, parquet, image, safetensors, JSON or TOML file.
        other: Another sound file that parts may be taken from.
        calls: Opcodes that would run something, for pickles and for whatever holds them.

    """
    if content[:1] == b"\x80":
        return "pickle opcodes", crafted_pickle(random, calls, content)
    if content[:2] == b"PK":
        return "zip members", crafted_zip(random, content, partial(_member, random, calls))
    if content[:2] == b"\x1f\x8b":
        return "members of a .tar.gz", crafted_gzip(random, content, partial(crafted_pickle, random, calls))
    if content[:4] == b"PAR1":
        return "parquet of another kind", crafted_parquet(random, whole(random.choice(calls)))
    if is_image(content):
        return "fields of an image", crafted_image(random, content)
    if content[8:9] == b"{":
        return "safetensors header", crafted_safetensors(random, content)
    if content[:1] == b"{":
        return "JSON values", crafted_json(random, content)
    if b"[[series]]" in content:
        return "TOML values", crafted_toml(random, content)
    return damaged(random, content, other)


def _member(random: Random, calls: Sequence[bytes], name: str, inside: bytes) -> bytes:
    """Return the changed content of a zip's member: a NumPy array's header, a pickle, or anything."""
    if inside[:6] == b"\x93NUMPY":
        return crafted_npy(random, calls, inside)
    if name.endswith(".pkl"):
        return crafted_pickle(random, calls, inside)
    return damaged(random, inside, inside)[1]
