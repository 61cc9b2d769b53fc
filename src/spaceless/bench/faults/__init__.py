"""`spaceless bench faults`: studies that are killed, interrupted, crowded and damaged, and what is left of them."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from importlib import import_module
from typing import Any

from spaceless.bench.record import made_by
from spaceless.errors import unknown_name

ROOMS = ("kills", "saves", "damage", "claims", "interruptions", "full_disk", "machines", "mutations")


def run(progress: Callable[[str], None], chosen: Sequence[str] = ()) -> dict[str, Any]:
    """Return what came of each of the `chosen` faults, or of all.

    Raises:
        InputError: There is no such fault.

    """
    for name in chosen:
        if name not in ROOMS:
            raise unknown_name("bench faults", name, ROOMS)
    found = []
    for name in chosen or ROOMS:
        room = import_module(f"{__name__}.{name}")
        begun = time.perf_counter()
        try:
            result = room.run(lambda text, name=name: progress(f"{name}: {text}"))
        except Exception as error:  # what the other rooms have found is not lost with this one
            told = f"ended by {type(error).__name__}: {' '.join(str(error).split())[:500]}"
            result = {"what": "It did not come to its end.", "counts": {}, "failing": [told]}
        found.append({"name": name, "title": room.TITLE, "seconds": round(time.perf_counter() - begun, 1), **result})
        progress(f"{name}: {'; '.join(result['failing']) or 'nothing broke'}")
    failing = [f"{each['name']}: {text}" for each in found for text in each["failing"]]
    return {"summary": {"failing": failing}, "faults": found}


_MEANS = {"mutations": (
    "\"Refused\" is an error in the tool's form; \"accepted\" is what reads as well-formed data of the shape, type and "
    "range that are promised: a format without a checksum cannot tell a changed pixel or weight from a meant one.")}


def markdown(record: dict[str, Any]) -> str:
    """Return the page of a record: for each fault what was done, and what was counted."""
    parts = ["# Faults", made_by(record)]
    for each in record["faults"]:
        verdict = "; ".join(each["failing"]) or "nothing broke"
        counts = [f"| {words} | {number:,} |" for words, number in each["counts"].items()]
        parts += [
            f"## {each['name']}: {each['title']}", " ".join(filter(None, (each["what"], _MEANS.get(each["name"])))),
            "\n".join(["| counted | |", "|---|---:|", *counts]), f"**{verdict}**, {each['seconds']:,} s.",
        ]
    return "\n\n".join(parts) + "\n"
