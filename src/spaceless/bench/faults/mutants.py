"""One damaged set: which form, which of its files and which damage follow from the seed and the mutation's number."""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Mapping, Sequence
from random import Random
from typing import NamedTuple

from spaceless.bench.faults.corruption import WORDS, damaged
from spaceless.bench.faults.crafted import crafted
from spaceless.bench.faults.form import Form, Sound
from spaceless.records import sealed, unsealed

_CRAFTED = 0.4  # of all mutations know the form of the file


class Mutant(NamedTuple):
    """What was done, in words, and the files of the set that are to be written (path within the folder, content)."""

    what: str
    files: dict[str, bytes]


def randomness(seed: int, number: int) -> Random:
    """Return the generator that everything about mutation `number` is drawn from."""
    return Random(f"mutation {number} of {seed}")  # noqa: S311 (nothing is kept secret)


def form_of(random: Random, forms: Sequence[Form]) -> Form:
    """Draw a form by its share; the first draw from `randomness`."""
    return random.choices(forms, [form.share for form in forms])[0]


def mutant(random: Random, form: Form, sound: Sound, calls: Sequence[bytes]) -> Mutant:
    """Return a damaged set of `form`; `calls` are opcodes that would run something."""
    if form.named and random.random() < 0.5:
        return _renamed(random, sound)
    path, content = random.choice(sound.victims)
    other = random.choice(sound.victims)[1]
    if random.random() < _CRAFTED:
        what, changed = crafted(random, content, other, calls)
    else:
        what, changed = damaged(random, content, other)
    files = {path: changed}
    if form.vouched and random.random() < 0.5:
        what += ", vouched for"
        files |= _vouching(sound.files, path, content, changed)
    return Mutant(f"{path}: {what}", files)


def _vouching(files: Mapping[str, bytes], path: str, old: bytes, new: bytes) -> dict[str, bytes]:
    """Return the files that tell digest and size of `path`, with those of its `new` content."""
    before, after = (hashlib.sha256(content).hexdigest().encode() for content in (old, new))
    told = {name: content for name, content in files.items() if name != path and before in content}
    size = rb"(?<!\d)%d(?!\d)" % len(old)
    renewed = {}
    for name, content in told.items():
        body = unsealed(content, name)
        renewed[name] = re.sub(size, str(len(new)).encode(), body.replace(before, after))
        if body is not content:  # a record with a checksum of its own
            renewed[name] = sealed(json.loads(renewed[name]))
    return renewed


def _renamed(random: Random, sound: Sound) -> Mutant:
    """Give a folder or a file of the set a hostile name; what a file system does not take is left out of the name."""
    path = random.choice(list(sound.files))
    parts = path.split("/")
    old = parts[random.randrange(1, len(parts))]
    word = random.choice(WORDS).replace(b"/", b"").replace(b"\0", b"")[:200]
    if word in (b"", b".", b".."):
        word = b"..."
    suffix = old[old.rfind("."):] if "." in old and random.random() < 0.8 else ""
    new = os.fsdecode(word) + suffix
    files = {"/".join(new if part == old else part for part in name.split("/")): content
             for name, content in sound.files.items()}
    return Mutant(f"{old} is called {new!a}", files)
