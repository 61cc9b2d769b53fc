"""What every measurement is stored with: its command, date, versions, hardware and threads."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any


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
