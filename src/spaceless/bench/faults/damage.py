"""Files of states and outcomes cut short or with one bit flipped: noticed before use, and made good bit for bit."""

from __future__ import annotations

import shutil
import tempfile
import warnings
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from spaceless.bench.faults.tiny_trials import (
    FOUR,
    STEPS,
    get_ready,
    identical,
    in_child,
    owner,
    place,
    state_and_complaints,
    study,
    timeless,
)
from spaceless.errors import Interrupted
from spaceless.rows import load
from spaceless.run import run_trial
from spaceless.study import run_study
from spaceless.trial import Outcome

TITLE = "Truncations and single flipped bits in the files of states and outcomes"
_COUNTED = (
    "truncations", "truncations detected before use", "bit flips", "bit flips detected before use",
    "commands run again", "ended in the same weights and numbers",
)
_TRIAL = FOUR[0]
_PLAN = replace(study(), planned=study().planned[:1])


@dataclass(frozen=True)
class _Harm:
    """One damage: `at` is the bit that is flipped, or the number of bytes that are left."""

    path: str
    kind: str
    at: int

    def do(self, root: Path) -> None:
        content = bytearray((root / self.path).read_bytes())
        if self.kind == "flip":
            content[self.at // 8] ^= 1 << self.at % 8
        else:
            del content[self.at:]
        (root / self.path).write_bytes(content)

    def __str__(self) -> str:
        return f"{self.path}, {'bit' if self.kind == 'flip' else 'cut to byte'} {self.at}"


def run(
    progress: Callable[[str], None], *, seed: int = 0, truncations: int = 100, flips: int = 500,
    recoveries: int | None = None,
) -> dict[str, Any]:
    """Damage copies of a training's last two states and of a finished study, one file at a time.

    Args:
        progress: Told about what comes next.
        seed: Of what is damaged where.
        truncations: How many, to lengths from nothing to all but one byte.
        flips: How many single bits.
        recoveries: After how many of them, evenly spread, the same command is run again; None is all.

    """
    counts = Counter(dict.fromkeys(_COUNTED, 0))
    failing: list[str] = []
    get_ready()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for work in (_begin, _finish):
            status, _ = in_child(partial(work, folder))
            assert status == 0, "the undamaged trainings"
        reference = _told(folder / "done")
        harms = _harms(folder, truncations, flips, np.random.default_rng(seed))
        every = 1 if recoveries is None else max(1, len(harms) // max(1, recoveries))
        for number, (base, harm) in enumerate(harms):
            if number % 50 == 0:
                progress(f"damage {number} of {len(harms)}")
            here = folder / "damaged"
            shutil.copytree(folder / base, here)
            harm.do(here)
            kind = "bit flips" if harm.kind == "flip" else "truncations"
            counts[kind] += 1
            complaint = (_used_state if base == "begun" else _used_record)(here, harm)
            counts[f"{kind} detected before use"] += complaint is None
            if complaint:
                failing.append(f"{harm}: {complaint}")
            if number % every == 0:
                status, _ = in_child(partial(_go_on, here))
                same = status == 0 and _told(here) == reference
                counts["commands run again"] += 1
                counts["ended in the same weights and numbers"] += same
                if not same:
                    failing.append(f"{harm}: run again, it ends with status {status} and not as undamaged")
            shutil.rmtree(here)
    return {"what": _WHAT, "counts": dict(counts), "failing": failing}


def _begin(folder: Path) -> None:
    """Leave a training interrupted within its last epoch, with its last two states."""
    asked = iter([None] * (STEPS - 3) + [15])
    try:
        run_trial(_TRIAL, place(folder / "begun"), stop=lambda: next(asked))
    except Interrupted:
        return
    raise AssertionError("not interrupted")


def _finish(folder: Path) -> None:
    run_study(_PLAN, place(folder / "done"))


def _go_on(root: Path) -> None:
    warnings.simplefilter("ignore")  # one for each damage: they are what `_used_state` counts
    run_study(_PLAN, place(root))


def _told(root: Path) -> tuple[list[dict[str, Any]], list[str]]:
    """Return what a report would be made of: outcomes with their further tests, and the studies that are known."""
    outcomes, studies, problems = load([root])
    return [timeless(each) for each in outcomes], [each.name for each in studies] + [each.text for each in problems]


def _harms(folder: Path, truncations: int, flips: int, rng: np.random.Generator) -> list[tuple[str, _Harm]]:
    states = [("begun", path) for path in sorted((folder / "begun").glob("*/states/*"))]
    done = folder / "done"
    records = [("done", path) for path in (
        *done.glob("*/outcome.json"), *done.glob("*/evaluations/*.json"), *done.glob("*.study.json"))]
    files = [*states, *records]
    found = []
    for kind, count in (("cut", truncations), ("flip", flips)):
        for number in range(count):
            base, path = files[number % len(files)]
            size = path.stat().st_size * (8 if kind == "flip" else 1)
            found.append((base, _Harm(str(path.relative_to(folder / base)), kind, int(rng.integers(size)))))
    return found


def _used_state(root: Path, harm: _Harm) -> str | None:
    """Return what is wrong with how a damaged state is met, or None; `root` is left as it was."""
    states = (root / harm.path).parent
    stem = Path(harm.path).stem
    newest = max(path.stem for path in states.iterdir())
    with tempfile.TemporaryDirectory() as name:
        here = Path(name, "states")
        shutil.copytree(states, here)
        for path in here.iterdir():
            if path.stem > stem:  # so that the damaged one is the first that is looked at
                path.unlink()
        state, complaints = state_and_complaints(here, owner(_TRIAL))
        if len(complaints) != 1 or stem not in complaints[0]:
            return f"met with {complaints or 'no word'}"
        if stem == newest:
            for path in states.iterdir():
                if path.stem != stem:
                    shutil.copy(path, Path(name, path.name))
            before, _ = state_and_complaints(Path(name), owner(_TRIAL))
            return None if before and identical(state, before) else "the state before it is not as it was"
        return None if state is None else "a state that there is not"


def _used_record(root: Path, harm: _Harm) -> str | None:
    """Return what is wrong with how a report meets a damaged record, or None; nothing is changed."""
    outcomes, studies, problems = load([root])
    if [each.where for each in problems] != [str(root / harm.path)]:
        return "not named"
    used = {
        "outcome.json": bool(outcomes), "study.json": bool(studies),
        "evaluations": any(_tests(each) > 1 for each in outcomes),
    }
    return "used all the same" if any(used[part] for part in used if part in harm.path) else None


def _tests(outcome: Outcome) -> int:
    return len(outcome.evaluations)


_WHAT = """\
Damaged are tensors and manifests of the last two states of an interrupted training, and the outcome, the further test
and the manifest of a finished study; a state that is not the newest is made so. Detected is what is set aside or named
before it is used, with the state before it loaded bit for bit. Then the same command is run again: it must end in the
weights (by their SHA-256), losses and accuracies of the undamaged study."""
