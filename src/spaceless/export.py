"""`spaceless export`: a trained network as a folder to hand on, each file checked before the folder appears."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from datetime import UTC, datetime
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from spaceless.atomic import atomic_write
from spaceless.card import card
from spaceless.checkpoint import dumped
from spaceless.cost import Latency, compare_latency, cost, latency
from spaceless.data.augment import normalise
from spaceless.data.feed import Batch, test_batches
from spaceless.data.heldout import JUDGED_ON_THEM
from spaceless.errors import InputError, Interrupted, SpacelessError
from spaceless.models import build_model
from spaceless.onnx_file import (
    OPSET,
    PACKAGES,
    compare,
    open_session,
    require_packages,
    session_latencies,
    to_onnx,
)
from spaceless.rebuild import SURGERY, load_model, surgery_of
from spaceless.retest import Trained, open_trial, tested
from spaceless.run import Place, hardware, versions
from spaceless.store import WEIGHTS, Store, read_trial
from spaceless.trial import RANDOM_METHODS, Outcome, Trial

ONNX, CARD, RECORD = "model.onnx", "README.md", "export.json"
FILES = (WEIGHTS, SURGERY, ONNX, CARD, RECORD)
CHECKED = 1000  # test images, unless there are fewer or the user asks for another number
_PASSES = 50  # that each latency is the median of
_BATCH = 100


def export_run(
    folder: Path, *, out: Path | None = None, onnx: Path | None = None, images: int | None = None,
    data_root: Path | None = None, stop: Callable[[], int | None] | None = None,
    progress: Callable[[float], None] | None = None,
) -> dict[str, Any]:
    """Write the network of the finished trial in `folder` to a folder of its own; return what `export.json` holds.

    Args:
        folder: The trial's.
        out: What to write: `FILES`. The trial's `export/` by default. An earlier export there is replaced.
        onnx: A second place for the ONNX file.
        images: How many test images the files are checked on; `CHECKED` by default, or all if there are fewer.
        data_root: The folder that data sets are looked for in.
        stop: Asked between the steps; a signal number ends the work.
        progress: Called with the share that is done.

    Whatever is not as it should be is found before anything is written, or leaves nothing behind.

    Raises:
        InputError: No finished trial, a network that shuffles, missing packages or data, or places that are taken.
        SpacelessError: ONNX cannot express the network, or a file answers differently from the trained network.
        Interrupted: `stop` asked for it.

    """
    out = folder / "export" if out is None else out
    check_export(out, onnx)
    trial = read_trial(folder)
    _refuse_shuffles(trial, folder)

    def done(share: float) -> None:
        if (asked := stop() if stop is not None else None) is not None:
            raise Interrupted(asked, saved=False)
        if progress is not None:
            progress(share)

    trained = open_trial(folder, Place(folder.parent, data_root, "cpu"))
    data = trained.data
    checked = data.subset(None, min(CHECKED, data.test_count) if images is None else images)
    model = trained.model.eval()
    done(0.1)
    size, scale = data.image_size, (data.mean, data.std)
    networks = [model]
    if trial.method != "baseline":
        networks.insert(0, build_model(trial.model, data.classes, size, width=trial.width).eval())
    exported = [to_onnx(each, size, *scale, data.class_names) for each in networks]
    sessions = [open_session(each) for each in exported]
    done(0.4)
    batches = partial(test_batches, checked, _BATCH, torch.device("cpu"))
    parity, answers = compare(model, sessions[-1], batches, *scale)
    parity.check()
    done(0.6)
    with _staged(out) as stage:
        atomic_write(stage / WEIGHTS, (folder / WEIGHTS).read_bytes())
        atomic_write(stage / ONNX, exported[-1])
        surgery = surgery_of(trained.outcome, model, *scale, data.class_names)
        atomic_write(stage / SURGERY, (surgery.model_dump_json(indent=1) + "\n").encode())
        _check_rebuilt(load_model(stage), answers, batches(), scale)
        done(0.8)
        record = _described(trained, surgery.mean, surgery.std) | {
            "checks": asdict(parity) | {"allowed": parity.allowed, "rebuilt_bit_identical": parity.images},
        } | _measured(trained, networks, exported, sessions)
        record["files"] = {path.name: _file(path.read_bytes()) for path in sorted(stage.iterdir())}
        atomic_write(stage / CARD, card(record).encode())
        atomic_write(stage / RECORD, (json.dumps(record, indent=1) + "\n").encode())
        done(1.0)
        if onnx is not None:
            atomic_write(onnx, exported[-1])
    return record


def _refuse_shuffles(trial: Trial, folder: Path) -> None:
    if trial.method in RANDOM_METHODS and trial.strip < trial.k:
        why = "one that every computer with the file would have to draw alike" if trial.shuffle.fixed else (
            "redrawn in every pass")
        raise InputError(
            str(folder), found=f"a network that shuffles ({trial.label}): a random permutation, {why}, "
            "for which ONNX has no operation", expected="one that does not",
            cure="export a conv1x1 or gap_fc trial of the same K; spaceless.load_model opens this folder in Python",
        )


def check_export(out: Path, onnx: Path | None = None) -> None:
    """Raise InputError unless the packages are here and both places are free, or hold an earlier export."""
    require_packages()
    if out.exists() and not out.is_dir():
        raise InputError(str(out), found="a file", expected="a folder, or nothing", cure="choose another folder")
    Store(out).check()
    others = {path.name for path in out.iterdir()} if out.exists() else set()
    if others and (RECORD not in others or not others.issubset(FILES)):
        raise InputError(
            str(out), found=f"{sorted(others - set(FILES) or others)[0]} in it",
            expected="no folder, an empty one or an earlier export", cure="choose another folder",
        )
    if onnx is not None:
        if onnx.is_dir():
            raise InputError(str(onnx), found="a folder", expected="the name of a file", cure="choose another --onnx")
        if out.resolve() in (onnx.resolve(), *onnx.resolve().parents):
            raise InputError(
                str(onnx), found=f"a place in {out}", expected="one outside, for a second copy",
                cure=f"leave --onnx out: the folder holds {ONNX}",
            )
        Store(onnx.parent).check()


@contextmanager
def _staged(out: Path) -> Iterator[Path]:
    """Give an empty folder beside `out` that takes its place at the end, or vanishes if anything goes wrong."""
    out = out.absolute()
    stage, old = (out.with_name(f".{out.name}.{os.getpid()}.{what}") for what in ("new", "old"))
    made = [parent for parent in out.parents if not parent.exists()]
    try:
        try:
            shutil.rmtree(stage, ignore_errors=True)
            stage.mkdir(parents=True)
        except OSError as error:
            raise InputError(
                str(out), found=error.strerror, expected="a folder that can be written to",
                cure="choose another folder",
            ) from error
        yield stage
        if out.exists():
            out.rename(old)
        try:
            stage.rename(out)
        except OSError:
            if old.exists():
                old.rename(out)
            raise
    except BaseException:
        shutil.rmtree(stage, ignore_errors=True)
        for parent in made:  # the innermost first
            if parent.exists() and not any(parent.iterdir()):
                parent.rmdir()
        raise
    shutil.rmtree(old, ignore_errors=True)


def _check_rebuilt(
    rebuilt: nn.Module, answers: Sequence[Tensor], batches: Iterable[Batch], scale: tuple[Any, Any],
) -> None:
    """Raise SpacelessError unless the network out of the files answers bit for bit as the trained one did."""
    with torch.inference_mode():
        found = [rebuilt(normalise(each.images, *scale)) for each in batches if len(each.images)]
    if len(found) != len(answers) or not all(map(torch.equal, found, answers)):
        raise SpacelessError(
            SURGERY, found="a rebuilt network with other logits than the trained one", expected="the same bit for bit",
            cure="nothing was written; please report this network",
        )


def _described(trained: Trained, mean: tuple[float, ...], std: tuple[float, ...]) -> dict[str, Any]:
    """Return what the network is and how it was made."""
    outcome, trial, facts = trained.outcome, trained.trial, trained.data.facts
    what = "" if trial.method == "baseline" else (
        f"-{trial.method}-unit{trial.only}" if trial.only else f"-{trial.method}-k{trial.k}")
    spec = trial.model_dump(mode="json", exclude={"data", "recipe"})  # data may be a path of this machine
    facts = outcome.data or facts
    if trial.holdout is not None and tested(trained.store.folder(trial)) is not None:
        facts = facts.model_copy(update={"note": facts.note.replace(JUDGED_ON_THEM, "")})
    return {
        "format": 1, "name": trial.model.replace(":", "-") + what, "created": datetime.now(UTC).date().isoformat(),
        "trial": trial.id, "network": spec | {"classes": facts.classes, "image_size": facts.image_size},
        "units": outcome.units, "changed_modules": len(outcome.changes),
        "recipe": trial.recipe.model_dump(mode="json"), "precision": outcome.precision,
        "trained_on": outcome.hardware, "data": facts.model_dump(mode="json"),
        "mean": list(mean), "std": list(std), "opset": OPSET,
        "preprocessing": {
            "colours": "RGB", "shorter_side": trained.data.shorter_side, "centre": facts.image_size,
            "interpolation": "bilinear, antialiased",
        },
        "versions": versions() | {name: version(name) for name in PACKAGES},
        "hardware": hardware(torch.device("cpu")), "threads": torch.get_num_threads(),
    }


def _measured(
    trained: Trained, networks: Sequence[nn.Module], exported: Sequence[bytes], sessions: Sequence[Any],
) -> dict[str, Any]:
    """Return what the network costs and gives, and the same of the original it was made from, if it is another one."""
    size = trained.data.image_size
    onnx_times, onnx_ratio = session_latencies(sessions, size, _PASSES)
    if len(networks) == 2:
        first, second, ratio = compare_latency(networks[0], networks[1], size, repeats=_PASSES)
        times = [first, second]
    else:
        times, ratio = [latency(networks[0], size, repeats=_PASSES)], None
    outcomes = [_original(trained), trained.outcome][-len(networks):]
    rows = []
    for model, outcome, content, torch_time, onnx_time in zip(
        networks, outcomes, exported, times, onnx_times, strict=True,
    ):
        costs = cost(model, size)
        rows.append({
            "params": costs.params, "macs": costs.macs, **_accuracies(outcome, trained.store),
            "safetensors_bytes": len(dumped(model.state_dict())), "onnx_bytes": len(content),
            "latency": {"pytorch": _times(torch_time), "onnxruntime": _times(onnx_time)},
        })
    return {
        "exported": rows[-1], "original": rows[0] if len(rows) == 2 else None,
        "times_as_fast": None if ratio is None or onnx_ratio is None else {
            "pytorch": _times(ratio), "onnxruntime": _times(onnx_ratio)},
    }


def _original(trained: Trained) -> Outcome | None:
    """Return the outcome of the unchanged network that this one is compared with, if it lies in the same folder."""
    trial, store = trained.trial, trained.store
    if trial.start is None:
        return store.outcome(Trial.model_validate(
            trial.model_dump() | {"method": "baseline", "k": 0, "only": None, "strip": 0}))
    folder = store.root / trial.start.run
    return store.outcome(read_trial(folder)) if folder.is_dir() else None


def _accuracies(outcome: Outcome | None, store: Store) -> dict[str, float | None]:
    """Return top-1 on the test images and, of a training with a holdout, on the images held out, as far as known."""
    if outcome is None:
        return {"top1": None, "held_out": None}
    if outcome.trial.holdout is None:
        return {"top1": outcome.top1, "held_out": None}
    test = tested(store.folder(outcome.trial))
    return {"top1": None if test is None else test.mean, "held_out": outcome.top1}


def _times(found: Latency) -> dict[str, float]:
    return asdict(found)


def _file(content: bytes) -> dict[str, Any]:
    return {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}
