"""How measurements run, and what they are stored with: command, date, versions, hardware and threads."""

from __future__ import annotations

import json
import multiprocessing
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any


def in_processes(
    row: Callable[..., dict[str, Any]], wanted: Sequence[Sequence[Any]], jobs: int,
) -> Iterator[dict[str, Any]]:
    """Yield `row(*each)` for each in `wanted`, in order, computed by `jobs` processes of one thread."""
    with ProcessPoolExecutor(jobs, multiprocessing.get_context("spawn"), initializer=_one_thread) as pool:
        yield from pool.map(row, *zip(*wanted, strict=True))


def _one_thread() -> None:
    import torch

    torch.set_num_threads(1)


def headed(name: str, command: str, content: dict[str, Any], *, also: tuple[str, ...] = ()) -> dict[str, Any]:
    """Return the record of the measurement `name`: what it was done with, then `content`.

    Args:
        name: The measurement's name.
        command: The command that makes it.
        content: What was measured, plain values.
        also: Further packages whose versions matter.

    """
    import torch

    from spaceless.run import hardware, versions

    known = versions()
    for package in also:
        try:
            known[package] = version(package)
        except PackageNotFoundError:
            known[package] = "not installed"
    return {
        "bench": name, "command": command, "date": datetime.now(UTC).date().isoformat(), "versions": known,
        "hardware": hardware(torch.device("cuda" if torch.cuda.is_available() else "cpu")),
        "threads": torch.get_num_threads(),
    } | content


def made_by(record: dict[str, Any]) -> str:
    """Return the line that heads a page: the command and what it was run with."""
    known = ", ".join(f"{name} {number}" for name, number in record["versions"].items())
    return f"Made by `{record['command']}` ({record['date']}, {record['hardware']}; {known})."


def write(record: dict[str, Any], page: str, out: Path) -> tuple[Path, Path]:
    """Write `out`/NAME.json and the Markdown `page` as `out`/NAME.md; return both paths."""
    out.mkdir(parents=True, exist_ok=True)
    paths = out / f"{record['bench']}.json", out / f"{record['bench']}.md"
    for path, text in zip(paths, (json.dumps(record, indent=1, ensure_ascii=False) + "\n", page), strict=True):
        partial = path.with_name(f".{path.name}.partial")
        partial.write_text(text, encoding="utf-8")
        partial.replace(path)
    return paths
