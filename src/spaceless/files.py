"""A report as files: written whole or not at all, and its figures and tables each on their own."""

from __future__ import annotations

import re
import tempfile
from pathlib import Path

from spaceless.errors import InputError
from spaceless.looks import on_paper, png, svg
from spaceless.page import Page
from spaceless.tables import plain, table_csv

_LONGEST = 120  # characters of a name


def write_files(page: Page, folder: Path) -> list[Path]:
    """Write every figure of `page` as SVG and PNG, over each of its axes, and every table as CSV; return the files.

    What is to be seen on each figure is said in `captions.md`. Raises InputError for a file that cannot be written.
    """
    written: list[Path] = []
    told = page.captions
    captions = ""
    for name, view in page.views.items():
        place, _, what = name.partition(" ")
        stem = f"figure-{int(place):02d}-{_slug(what)}"
        captions += f"- `{stem}`: {plain(told[name])}\n"
        spec = on_paper(view)
        written += [write(folder / f"{stem}.svg", svg(spec)), write(folder / f"{stem}.png", png(spec))]
    if captions:
        written.append(write(folder / "captions.md", captions))
    tables = [(section.name, table) for section in page.sections for table in section.tables]
    for number, (study, table) in enumerate(tables, 1):
        written.append(write(folder / f"table-{number:02d}-{_slug(f'{study} {table.title}')}.csv", table_csv(table)))
    return written


def _slug(name: str) -> str:
    return re.sub(r"[^0-9A-Za-z]+", "-", name).strip("-").lower()[:_LONGEST].rstrip("-") or "trials"


def write(path: Path, content: str | bytes) -> Path:
    """Write `content` so that a reader sees the old or the new file whole, and return `path`.

    Raises InputError for a file that cannot be written.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=path.parent, prefix=f".{path.name}.", delete=False) as file:
            try:
                file.write(content if isinstance(content, bytes) else content.encode())
                file.flush()
                Path(file.name).chmod(0o644)
                Path(file.name).replace(path)
            except BaseException:
                Path(file.name).unlink(missing_ok=True)
                raise
    except OSError as error:
        raise InputError(str(path), found=error.strerror, expected="a file that can be written",
                         cure="choose another place") from error
    return path
