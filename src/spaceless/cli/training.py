"""The verbs that train: a demonstration, a calibration, one network, a study, a search."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from cyclopts import Parameter

from spaceless import work
from spaceless.cli.options import HERE, Json, K, Preset, Where, app, check_change
from spaceless.errors import InputError
from spaceless.trial import Augment, Downsample, Precision
from spaceless.wanted import Wanted
from spaceless.work import Workers

_ONE = Workers()
_WANTED = Wanted()


@app.command
def demo(*, out: Path = Path("demo"), jobs: int | None = None, open_report: bool = False) -> None:
    """Calibrate on made data, in minutes on a laptop's CPU, and write a report.

    Example: `spaceless demo --open-report`

    Parameters
    ----------
    out
        The folder of outcomes and of the page.
    jobs
        Processes (default: one per processor core, up to 8).
    open_report
        Show the report in the browser.

    """
    work.calibrate("smoke", Where(out=out).place(), jobs, "spaceless demo", open_report=open_report)


@app.command
def calibrate(
    *, preset: Literal["smoke", "fast", "full"] = "smoke", jobs: int | None = None, as_json: Json = False,
    where: Where = HERE,
) -> None:
    """Train over K and distance on made data and compare the measured with the true largest K.

    Example: `spaceless calibrate --preset fast --jobs 2`

    Parameters
    ----------
    preset
        `smoke`: one distance, two methods, one seed. `fast`: three, three, three. `full`: six, three, five.
    jobs
        Processes (default: one per processor core, up to 8).

    """
    work.calibrate(preset, where.place(), jobs, f"spaceless calibrate --preset {preset}", as_json=as_json)


@app.command
def train(
    *, model: str, data: str, method: str = "baseline", k: K = None, only: int | None = None, strip: int = 0,
    downsample: Downsample | None = None, recipe: str = "paper", epochs: int | None = None,
    batch_size: int | None = None, augment: Augment | None = None, precision: Precision | None = None, seed: int = 0,
    width: float = 1.0, image_size: int | None = None, train_images: int | None = None,
    test_images: int | None = None, repeats: int | None = None, per_image: bool = False, shared: bool = False,
    fixed: bool = False, patch: int = 1, holdout: float | None = None, as_json: Json = False, where: Where = HERE,
) -> None:
    """Train one network from scratch, changed in its last K units, and evaluate it.

    Example: `spaceless train --model vgg16 --method shuffle -k 3 --data cifar100 --recipe fast`

    The same command goes on after an interruption.

    Parameters
    ----------
    model
        A network's name, see `spaceless inspect --help`.
    data
        The name or path of a data set: `cifar100`, `arrangement-8`, `my/images`, ...
    method
        `shuffle`, `gap_fc`, `conv1x1`, `channel_shuffle` or `strip`.
    k
        How many units to change, from the last one on; 0 trains the baseline.
    only
        Change this unit alone (from 1 at the input).
    strip
        Of the K changed units, remove this many of the last ones altogether.
    downsample
        What replaces a strided convolution for `conv1x1` (default: `avg`).
    recipe
        `paper` (default): 200 epochs of SGD in steps. `fast`: 30, one cycle. `smoke`: 10, for few images. `imagenet`:
        90, images decoded anew in each. `control`: 6 of AdamW, no augmentation, for the made sets.
    epochs
        Instead of the recipe's.
    batch_size
        Instead of the recipe's.
    augment
        Instead of the recipe's. With `resized_crop` class folders are decoded anew in every epoch.
    precision
        Instead of the recipe's; `auto` is bf16 where the hardware multiplies it natively.
    seed
        Everything random derives from it.
    width
        The factor for all channel counts.
    image_size
        Resize the images to this side in pixels.
    train_images
        Use a balanced draw of this many.
    test_images
        Use a balanced draw of this many.
    repeats
        Evaluations of a shuffling network (default: 200).
    per_image
        Shuffle: a permutation for every image.
    shared
        Shuffle: one permutation for all channels.
    fixed
        Shuffle: the same permutation in every pass.
    patch
        Shuffle: move patches of this side as a whole.
    holdout
        Keep this share of the training images from the training, and evaluate on them instead of the test images.

    """
    from spaceless import show
    from spaceless.errors import unknown_name
    from spaceless.paper import Planned
    from spaceless.spec import make
    from spaceless.studies import Plan
    from spaceless.trial import RANDOM_METHODS, RECIPES, Recipe, ShuffleOptions, Trial

    options = make(ShuffleOptions, "shuffle", per_image=per_image, shared=shared, fixed=fixed, patch=patch)
    if options != ShuffleOptions() and method != "shuffle" and (
            method != "channel_shuffle" or options != ShuffleOptions(fixed=True)):
        raise InputError("shuffle options", found=f"method {method}",
                         expected="shuffle, or channel_shuffle with --fixed alone", cure="leave them out")
    check_change(method, k, only, downsample)
    if strip and k is None:
        raise InputError(f"--strip {strip}", found="no -k", expected="the number of changed units", cure="add -k")
    if repeats is not None and method not in RANDOM_METHODS:
        raise InputError(f"--repeats {repeats}", found=f"method {method}",
                         expected=" or ".join(sorted(RANDOM_METHODS)), cure="leave it out: every pass is the same")
    if recipe not in RECIPES:
        raise unknown_name("recipe", recipe, RECIPES)
    changed = {"epochs": epochs, "batch_size": batch_size, "augment": augment, "precision": precision}
    fields = RECIPES[recipe].model_dump() | {name: value for name, value in changed.items() if value is not None}
    trial = make(
        Trial, "train", model=model, data=data, method=method, k=k or 0, only=only, strip=strip,
        downsample=downsample or "avg", recipe=make(Recipe, "recipe", **fields), seed=seed, width=width,
        image_size=image_size, train_images=train_images, test_images=test_images,
        repeats=200 if repeats is None else repeats, holdout=holdout,
        shuffle=options,
    )
    plan = Plan(trial.label, trial.label, "", "spaceless train", (Planned(trial=trial),))
    place = where.place()
    tally = work.run(plan, place, Workers(), ())
    outcome = (tally.ran or tally.known)[0]
    show.outcome(outcome, place.store.folder(trial), as_json)


@app.command
def study(
    name: str, *, preset: Preset | None = None, dry_run: bool = False,
    data: str | None = None, k_step: int | None = None, width: float | None = None,
    train_images: int | None = None, test_images: int | None = None,
    epochs: int | None = None, seeds: str | None = None, repeats: int | None = None, recipe: str | None = None,
    as_json: Json = False, where: Where = HERE, workers: Annotated[Workers, Parameter(name="*")] = _ONE,
) -> None:
    """Run all trials of a table or figure of the paper, or of a TOML file of your own, and write its report.

    Example: `spaceless study fig2-vgg16 --preset smoke --jobs 2`

    Finished trials are skipped; the same command goes on after an interruption. The same command in another shell, or
    on another machine that sees the same folder, takes its share. `spaceless paper` lists the names; `all` is all of
    them, with each trial run once.

    Parameters
    ----------
    name
        An experiment of the paper, `all`, or the path of a `.toml` file.
    preset
        `paper` (full protocol), `fast` (30 epochs, 3 seeds) or `smoke` (minutes). Default: the file's scale, or paper.
    dry_run
        Show what would run and what it costs, one trial after another, judged by a few steps of each network, and run
        nothing.
    data
        In place of the experiment's own: the name or path of a data set.
    k_step
        Keep every N-th K of each list, the last, and those of which the paper prints a number.
    width
        Instead of the preset's.
    train_images
        Instead of the preset's.
    test_images
        Instead of the preset's.
    epochs
        Instead of the recipe's.
    seeds
        Instead of the preset's: `0-2` or `0,1,2`.
    repeats
        Evaluations of each shuffling network, instead of the preset's.
    recipe
        Instead of the preset's (see `spaceless train --help`).

    """
    from spaceless import show
    from spaceless.estimate import estimate
    from spaceless.studies import plan_all, plan_study

    given = {
        "data": data, "k_step": k_step, "width": width, "train_images": train_images, "test_images": test_images,
        "epochs": epochs, "seeds": seeds, "repeats": repeats, "recipe": recipe,
    }
    asked = {key: value for key, value in given.items() if value is not None}
    workers.check()
    place = where.place()
    if name == "all":
        plan, studies = plan_all(preset, asked, where.data_root)
    else:
        plan = plan_study(name, preset, asked)
        studies = [plan]
    if dry_run:
        show.plans(plan, studies, lambda p: estimate(p.planned, place), as_json)
    else:
        show.stand_ins(studies)
        work.report(plan, place, work.run(plan, place, workers, studies), as_json, studies)


@app.command
def compress(
    model: str, *, data: str, export: Path | None = None, dry_run: bool = False, as_json: Json = False,
    where: Where = HERE,
    wanted: Annotated[Wanted, Parameter(name="*")] = _WANTED, workers: Annotated[Workers, Parameter(name="*")] = _ONE,
) -> None:
    """Find the largest K that costs no more accuracy than the tolerance, and the smaller network that follows.

    Example: `spaceless compress vgg16 --data cifar100 --recipe fast --tolerance 1.0`

    K is searched by bisection with a neighbour check, on training images that are held out; the test images are read
    once, at the end. Finished trials in --out are not run again; the same command goes on after an interruption.

    Parameters
    ----------
    model
        A network's name, see `spaceless inspect --help`.
    data
        The name or path of a data set.
    export
        Write the chosen network to this folder, as `spaceless export` does.
    dry_run
        Show what the search may cost at most, and train nothing.

    """
    from spaceless.compressing import compress as run

    run(model, data, wanted, where.place(), workers, export=export, dry_run=dry_run, as_json=as_json)
