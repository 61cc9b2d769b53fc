"""A report while its studies run: how far they have come, what is left, and the page made again and again."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path

from spaceless.claims import CLAIM
from spaceless.errors import InputError, Interrupted
from spaceless.files import write
from spaceless.numerals import duration
from spaceless.page import Watched, html_text
from spaceless.records import read
from spaceless.report import gather
from spaceless.rows import load
from spaceless.signals import caught_signals
from spaceless.trial import Outcome, Trial

Stop = Callable[[], int | None]
_SLICE = 0.2  # seconds between two looks at whether a signal has come
_SILENT = 1800.0  # seconds without a sign of life after which a trial that has begun is not thought to run


@dataclass(frozen=True)
class Running:
    """A trial that has begun and has no outcome: when it began and when it last wrote something, in seconds ago."""

    trial: Trial
    begun: float
    heard: float


def running(dirs: Sequence[str | Path], now: float) -> list[Running]:
    """Return the trials under `dirs` that have begun and have no outcome, the longest first; `now` is a Unix time."""
    found = []
    for path in (p for folder in map(Path, dirs) for p in (*folder.glob("trial.json"), *folder.glob("*/trial.json"))):
        if (path.parent / "outcome.json").exists():
            continue
        try:
            trial = read(Trial, path)
            written = [p.stat().st_mtime for p in path.parent.rglob("*")]
            claim = path.with_name(CLAIM)  # written anew by whoever goes on with it
            begun = (claim if claim.exists() else path).stat().st_mtime
        except (InputError, OSError):
            continue  # half-written or gone in this moment: the report names what stays broken
        found.append(Running(trial, now - begun, now - max(written)))
    return sorted(found, key=lambda each: -each.begun)


def time_left(waiting: Sequence[Trial], begun: Sequence[Running], finished: Sequence[Outcome]) -> float | None:
    """Return the seconds until `waiting` and `begun` are done, or None where nothing is finished to judge by.

    A trial takes as long as the finished ones of its network, data and length did on average, or else as all did. As
    many run at once as have begun and shown a sign of life.
    """
    known = [(o.trial, o.seconds) for o in finished if o.seconds is not None]
    if not known:
        return None

    def expected(trial: Trial) -> float:
        alike = [seconds for other, seconds in known if _work(other) == _work(trial)]
        return statistics.fmean(alike or [seconds for _, seconds in known])

    alive = [each for each in begun if each.heard < _SILENT]
    left = sum(map(expected, waiting)) + sum(max(0.0, expected(r.trial) - r.begun) for r in alive)
    left += sum(expected(r.trial) for r in begun if r not in alive)
    return left / max(1, len(alive))


def _work(trial: Trial) -> tuple[object, ...]:
    return trial.model, trial.data, trial.width, trial.image_size, trial.train_images, trial.recipe.epochs


def look(dirs: Sequence[str | Path], every: int | None, now: float) -> Watched:
    """Return how far the studies under `dirs` have come at the Unix time `now`; see `Watched` for `every`."""
    outcomes, studies, _ = load(dirs)
    planned = {p.trial.id: p.trial for s in studies for p in s.planned}
    ended = {o.trial.id for o in outcomes}
    begun = running(dirs, now)
    waiting = [t for key, t in planned.items() if key not in ended and key not in {r.trial.id for r in begun}]
    mine = [r for r in begun if r.trial.id in planned or not planned]
    done = sum(key in ended for key in planned)
    parts = [f"{done} of {len(planned)} trials have ended" if planned else f"{len(ended)} trials have ended"]
    alive = [r for r in mine if r.heard < _SILENT]
    left = time_left(waiting, mine, [o for o in outcomes if o.status == "finished"])
    failed = sum(o.status == "failed" for o in outcomes if o.trial.id in planned)
    if done == len(planned) and planned:
        parts.append(f"{failed} failed, which the same command would try again" if failed else "nothing is left to do")
    elif not alive:
        parts.append("none is running")
    else:
        parts.append(f"{len(alive)} running")
        parts.append(f"about {_rough(left)} left" if left is not None else "time left not known yet")
    moment = f"{datetime.fromtimestamp(now, UTC):%Y-%m-%d %H:%M:%S} UTC"
    lines = [f"{r.trial.label}: begun {_rough(r.begun)} ago"
             + ("" if r in alive else f", without a sign of life for {_rough(r.heard)}") for r in mine]
    return Watched(done, len(planned), f"{moment}: {', '.join(parts)}.", tuple(lines), every)


def _rough(seconds: float) -> str:
    return f"{seconds:.0f} s" if round(seconds) < 60 else duration(seconds)


def watch(
    dirs: Sequence[str | Path], html: Path, every: int, *, tell: Callable[[str], None],
    pause: Callable[[float, Stop], None] | None = None,
) -> Path:
    """Write the report of `dirs` to `html` every `every` seconds until all planned trials have ended; return `html`.

    Figures and tables are made anew only when an outcome, a further test or a study has come. When it ends, also by a
    signal, the page is written once more and no longer loads itself again. Raises Interrupted for a signal, and
    InputError as `gather` does and for less than a second.
    """
    if every < 1:
        raise InputError("--every", found=every, expected="at least 1 second", cure="leave it out")
    seen, page, told = None, None, None
    with caught_signals(patient=True) as stop:  # a page half-way would be left loading itself again for ever
        while True:
            files = _files(dirs)
            if page is None or files != seen:
                page, seen = gather(dirs), files
            now = look(dirs, every, time.time())
            ended = bool(now.planned) and now.done == now.planned and not any(s.missing for s in page.sections)
            asked = stop()
            write(html, html_text(page, replace(now, every=None) if ended or asked else now))
            if (now.done, len(now.running)) != told:
                tell(now.text)
            told = now.done, len(now.running)
            if asked:
                raise Interrupted(asked)
            if ended:
                return html
            (pause or _pause)(every, stop)


def _pause(seconds: float, stop: Stop) -> None:
    """Sleep, but not through a signal."""
    end = time.monotonic() + seconds
    while stop() is None and (left := end - time.monotonic()) > 0:
        time.sleep(min(left, _SLICE))


def _files(dirs: Sequence[str | Path]) -> list[tuple[str, int]]:
    """Return the files that a report is made of, each with the time of its last change."""
    found = []
    for folder in map(Path, dirs):
        for pattern in ("*.study.json", "outcome.json", "*/outcome.json", "evaluations/*.json", "*/evaluations/*.json"):
            found += [(str(path), path.stat().st_mtime_ns) for path in folder.glob(pattern)]
    return sorted(found)
