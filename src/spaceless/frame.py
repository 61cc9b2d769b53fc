"""All outcomes of some folders as a pandas data frame: `spaceless.load`."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from spaceless.rows import load
from spaceless.trial import Evaluation, Outcome, Trial

if TYPE_CHECKING:
    import pandas as pd


def frame(dirs: str | Path | Sequence[str | Path]) -> pd.DataFrame:
    """Return a tidy data frame of all outcomes under `dirs`, one line per outcome and test scheme.

    Accuracies (`top1`, `top5`) and `spread` over repeats are in percent, those of a trial with a `holdout` on the
    training images that were held out; `start` is the run whose weights a training began from. `latency_ms` is the
    median time for one batch in milliseconds; what was not measured is missing (NaN or NA), also for trials that
    failed. A file that cannot be used is left out with a warning that names it, and without any outcome there is a
    warning too. Raises InputError for a folder that does not exist.
    """
    import pandas as pd

    outcomes, _, problems = load([dirs] if isinstance(dirs, str | Path) else dirs)
    for problem in problems:
        warnings.warn(f"{problem.where}: {problem.text}", stacklevel=2)
    if not (outcomes or problems):
        warnings.warn(f"no outcome in {dirs} or the folders directly in it: name the folder that was given to --out",
                      stacklevel=2)
    lines = [_line(o, e) for o in outcomes for e in (o.evaluations or (None,))]
    table = pd.DataFrame(lines, columns=list(_COLUMNS))
    return table.astype(_COLUMNS)


_COLUMNS = {
    **dict.fromkeys(("id", "model", "data", "method"), "object"),
    **dict.fromkeys(("k", "only", "strip"), "Int64"), "downsample": "object",
    **dict.fromkeys(("image_size", "train_images", "seed"), "Int64"),
    **dict.fromkeys(("holdout", "width"), "float64"), "start": "object", "recipe": "object", "epochs": "Int64",
    "augment": "object", "status": "object",
    "shuffle_last": "Int64", "repeats": "Int64", "images": "Int64",
    **dict.fromkeys(("top1", "spread", "top5"), "float64"),
    **dict.fromkeys(("params", "macs", "receptive_field"), "Int64"),
    **dict.fromkeys(("latency_ms", "seconds"), "float64"), "precision": "object", "error": "object",
}


def _line(outcome: Outcome, evaluation: Evaluation | None) -> dict[str, Any]:
    trial, data = outcome.trial, outcome.data
    line: dict[str, Any] = {name: getattr(trial, name) for name in _COLUMNS if name in Trial.model_fields}
    line |= {name: getattr(outcome, name) for name in _COLUMNS if name in Outcome.model_fields and name != "data"}
    line |= {"id": trial.id, "recipe": trial.recipe.name, "epochs": trial.recipe.epochs,
             "augment": trial.recipe.augment, "downsample": trial.downsample if trial.method == "conv1x1" else None,
             "image_size": data.image_size if data else trial.image_size,
             "train_images": data.train_images if data else trial.train_images,
             "start": trial.start and trial.start.run}
    if outcome.latency and (evaluation is None or evaluation.shuffle_last is None):
        line["latency_ms"] = 1000 * outcome.latency.median
    if evaluation is not None:
        line |= {"shuffle_last": evaluation.shuffle_last, "repeats": len(evaluation.top1), "top1": evaluation.mean,
                 "images": evaluation.images, "spread": evaluation.spread, "top5": evaluation.top5}
    else:
        line["repeats"] = None
    return line
