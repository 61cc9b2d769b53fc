"""What the verb `bench` does: one measurement of the tool itself, written as a record and a page, and shown."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from spaceless.console import table
from spaceless.errors import InputError, SpacelessError
from spaceless.work import job_count

_BENCHES = {
    "networks": "surgery on the CNNs of torchvision and timm: what holds for each, and what is refused",
    "receptive-fields": "size, stride and offset: derived against measured, and against published sizes",
    "costs": "parameters and multiply-adds against those that torchvision publishes with its weights",
    "train": "images per second of our training against the loop that a user would write",
    "accuracy": "the same training by both loops, over seeds: whether speed costs accuracy",
    "shuffle": "the shuffle operator against a copy and the naive ways, and what it adds to a training step",
    "evaluate": "200 evaluations of a shuffling network against running all of it each time",
    "floor": "the share of the machine's matrix peak that training steps reach, and what fewer multiply-adds buy",
    "study": "a whole study against its bare training loops, the input's share of a step, and start-up",
    "compress": "the search against the full sweep, warm starts against scratch, and channel pruning beside them",
    "faults": "studies that are killed, interrupted, crowded and damaged: what is lost, repeated or mixed up",
}


def bench(
    name: str | None, networks: Sequence[str], jobs: int | None, seconds: float | None, out: Path, as_json: bool,
) -> None:
    """Run the measurement called `name`, write its record and page, and show where they are; without a name list all.

    Raises:
        InputError: An option of another measurement.
        SpacelessError: What was measured is not what the tool promises.

    """
    from spaceless.bench.record import write

    if name is None:
        _list(as_json)
        return
    if name in ("networks", "receptive-fields", "costs"):
        _refuse(name, "--seconds", seconds)
        record, page = _row_by_row(name, networks, job_count(jobs))
    elif name == "faults":
        _refuse(name, "--seconds", seconds)
        _refuse(name, "--jobs", jobs)
        record, page = _faults(networks)
    elif name == "compress":
        _refuse(name, "NETWORKS", " ".join(networks) or None)
        _refuse(name, "--seconds", seconds)
        record, page = _compress(out / "compress", jobs)
    else:
        _refuse(name, "NETWORKS", " ".join(networks) or None)
        _refuse(name, "--jobs", jobs)
        record, page = _speed(name, seconds)
    paths = write(record, page, out)
    _show(record, page, paths, as_json)
    if failing := record.get("summary", {}).get("failing"):
        raise SpacelessError(
            f"bench {name}", found=f"{len(failing)} that break a promise: {', '.join(failing)}",
            expected="none", cure="look at the page; this is a bug, please report it",
        )


def _list(as_json: bool) -> None:
    """Show the names of the measurements."""
    if as_json:
        print(json.dumps(_BENCHES, indent=1))
    else:
        table("Measurements", ("name:", "of:"), list(_BENCHES.items()))


def _show(record: dict[str, Any], page: str, paths: Sequence[Path], as_json: bool) -> None:
    """Show the page of a measurement and where it was written."""
    if as_json:
        print(json.dumps(record, indent=1))
        return
    print(page)
    for path in paths:
        print(path)


def _refuse(name: str, option: str, value: object) -> None:
    if value is not None:
        raise InputError(option, found=value, expected=f"nothing, with bench {name}", cure="leave it out")


def _row_by_row(name: str, chosen: Sequence[str], jobs: int) -> tuple[dict[str, Any], str]:
    """Run a measurement that has a row for each network."""
    from spaceless.bench import costs, networks, receptive_fields
    from spaceless.bench.record import headed
    from spaceless.console import screen

    out = screen()
    room = {"networks": networks, "receptive-fields": receptive_fields, "costs": costs}[name]
    found = []
    for row in room.rows(chosen, jobs):
        found.append(row)
        out.print(room.line(row), markup=False)
    content = {"summary": room.summary(found), "rows": found}
    record = headed(name, " ".join(["spaceless bench", name, *chosen]), content, also=("timm",))
    return record, room.markdown(record)


def _faults(chosen: Sequence[str]) -> tuple[dict[str, Any], str]:
    """Run all faults, or the chosen ones."""
    from spaceless.bench import faults
    from spaceless.bench.record import headed
    from spaceless.console import screen

    out = screen()
    content = faults.run(lambda text: out.print(text, markup=False), chosen)
    also = ("ray", "safetensors", "pyarrow", "pillow")
    record = headed("faults", " ".join(["spaceless bench faults", *chosen]), content, also=also)
    return record, faults.markdown(record)


def _compress(trials: Path, jobs: int | None) -> tuple[dict[str, Any], str]:
    """Compare ways to a smaller network; what is trained for it is stored in the folder `trials`."""
    from spaceless import work
    from spaceless.bench import compress, compress_page
    from spaceless.bench.record import headed
    from spaceless.console import screen
    from spaceless.run import Place

    if jobs is not None:
        job_count(jobs)
    out, place = screen(), Place(trials)
    workers = work.Workers(jobs=jobs or 1)
    content = compress.run(
        place, lambda plan: work.run(plan, place, workers, ()), lambda text: out.print(text, markup=False))
    record = headed("compress", compress.COMMAND, content, also=("torch-pruning",))
    return record, compress_page.markdown(record)


def _speed(name: str, seconds: float | None) -> tuple[dict[str, Any], str]:
    """Run a measurement of speed, `seconds` for each of its cases."""
    from spaceless.bench import accuracy, evaluate, floor, shuffle, study, train
    from spaceless.bench.record import headed
    from spaceless.console import screen

    if seconds is not None and not 0 < seconds < float("inf"):
        raise InputError("--seconds", found=seconds, expected="more than 0", cure="leave it out for a sensible time")
    out = screen()
    rooms = {"train": train, "accuracy": accuracy, "shuffle": shuffle, "evaluate": evaluate, "floor": floor,
             "study": study}
    room = rooms[name]
    content = room.run(room.SECONDS if seconds is None else seconds, lambda text: out.print(text, markup=False))
    command = f"spaceless bench {name}" + ("" if seconds is None else f" --seconds {seconds:g}")
    record = headed(name, command, content)
    return record, room.markdown(record)
