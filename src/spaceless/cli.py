"""The command line: one function per verb that hands its words on and shows what comes back."""

from __future__ import annotations

import os
import signal
import sys
import webbrowser
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal, NoReturn

from cyclopts import App, CycloptsError, Parameter

from spaceless import __version__, work
from spaceless.errors import InputError, Interrupted, SpacelessError
from spaceless.trial import Augment, Downsample, Precision
from spaceless.wanted import Wanted
from spaceless.work import Workers

if TYPE_CHECKING:
    from spaceless.run import Place

_ONE_LINE = 110  # characters; a longer error message is broken where its parts meet
_LONGEST = 4000  # characters of an error message

app = App(
    name="spaceless", version=__version__, help_format="markdown", default_parameter=Parameter(negative=""),
    suppress_keyboard_interrupt=False,
    help="From which layer on does an image classifier need no spatial information, and what smaller network "
    "follows?\n\n"
    "Start with `spaceless demo`. Every verb answers `--help` with an example. `--debug` shows tracebacks.",
)

Short = Annotated[int, Parameter(name=["--k", "-k"])]
Preset = Literal["paper", "fast", "smoke"]
Bench = Literal[
    "networks", "receptive-fields", "costs", "train", "accuracy", "shuffle", "evaluate", "floor", "study",
    "compress", "faults",
]
_Json = Annotated[bool, Parameter(name="--json", help="Print one JSON document on standard output.")]


@Parameter(name="*")
@dataclass(frozen=True)
class Where:
    """Where outcomes go, where data lie and what computes.

    Parameters
    ----------
    out
        The folder of outcomes; finished trials in it are not run again.
    data_root
        The folder that data sets are looked for in (default: $SPACELESS_DATA, else the user cache).
    device
        `auto`, `cpu`, `cuda`, `cuda:1`, ...
    no_weights
        Do not keep the trained weights (they are needed by `evaluate`).

    """

    out: Path = Path("runs")
    data_root: Path | None = None
    device: str = "auto"
    no_weights: bool = False

    def place(self) -> Place:
        """Return what the compute half calls this."""
        from spaceless.run import Place

        return Place(self.out, self.data_root, self.device, keep_weights=not self.no_weights)


_HERE = Where()
_ONE = Workers()
_WANTED = Wanted()


@app.command
def demo(*, out: Path = Path("demo"), jobs: int | None = None, open_report: bool = False) -> None:
    """Calibrate on made data, in minutes on a laptop's CPU, and write a report.

    Example: `spaceless demo --open-report`

    Parameters
    ----------
    out
        The folder of outcomes and of `report.html`.
    jobs
        Processes (default: one per processor core, up to 8).
    open_report
        Show the report in the browser.

    """
    work.calibrate("smoke", Where(out=out).place(), jobs, "spaceless demo", open_report=open_report)


@app.command
def calibrate(
    *, preset: Literal["smoke", "fast", "full"] = "smoke", jobs: int | None = None, as_json: _Json = False,
    where: Where = _HERE,
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
def inspect(
    model: str, *, classes: int = 1000, image_size: int | None = None,
    method: str = "baseline", k: Short = 0, only: int | None = None, downsample: Downsample = "avg",
    width: float = 1.0, latency: bool = False, batch: int | None = None, as_json: _Json = False,
) -> None:
    """Show the units of a network, what K counts, and what it costs before or after surgery.

    Example: `spaceless inspect vgg16 --classes 100 --image-size 32 --method conv1x1 -k 5`

    Parameters
    ----------
    model
        `vgg16`, `resnet50`, `resnet152`, `mobilenet_v2`, `squeezenet1_0`, `torchvision:NAME`, `timm:NAME` or
        `chain:16-M-24`.
    classes
        The number of classes.
    image_size
        The side of the image in pixels (default: 224).
    method
        `shuffle`, `gap_fc`, `conv1x1`, `channel_shuffle` or `strip`.
    k
        How many units to change, from the last one on.
    only
        Change this unit alone (from 1 at the input).
    downsample
        What replaces a strided convolution for `conv1x1`.
    width
        The factor for all channel counts.
    latency
        Measure a forward pass on this machine's processor, before and after in turn.
    batch
        Images in that pass (default: 1).

    """
    from spaceless import show
    from spaceless.inspection import inspect_model

    if batch is not None and not latency:
        raise InputError("batch", found=f"{batch} without --latency", expected="both", cure="add --latency")

    found = inspect_model(
        model, classes=classes, image_size=image_size, method=method, k=k, only=only, downsample=downsample,
        width=width, batch=(1 if batch is None else batch) if latency else None,
    )
    show.inspection(found, as_json)


@app.command
def train(
    *, model: str, data: str, method: str = "baseline", k: Short = 0, only: int | None = None, strip: int = 0,
    downsample: Downsample = "avg", recipe: str = "paper", epochs: int | None = None, batch_size: int | None = None,
    augment: Augment | None = None, precision: Precision | None = None, seed: int = 0,
    width: float = 1.0, image_size: int | None = None, train_images: int | None = None,
    test_images: int | None = None, repeats: int = 200, per_image: bool = False, shared: bool = False,
    fixed: bool = False, patch: int = 1, holdout: float | None = None, as_json: _Json = False, where: Where = _HERE,
) -> None:
    """Train one network from scratch, changed in its last K units, and evaluate it.

    Example: `spaceless train --model vgg16 --method shuffle -k 3 --data cifar100 --recipe fast`

    The same command goes on after an interruption.

    Parameters
    ----------
    model
        See `spaceless inspect --help`.
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
        What replaces a strided convolution for `conv1x1`.
    recipe
        `paper`, `fast`, `smoke`, `imagenet` or `control`.
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
        Evaluations of a shuffling network.
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
    from spaceless.studies import Plan
    from spaceless.trial import RECIPES, Recipe, ShuffleOptions, Trial, make

    if (per_image or shared or fixed or patch != 1) and method != "shuffle":
        raise InputError("shuffle options", found=f"method {method}", expected="shuffle", cure="leave them out")
    if recipe not in RECIPES:
        raise unknown_name("recipe", recipe, RECIPES)
    changed = {"epochs": epochs, "batch_size": batch_size, "augment": augment, "precision": precision}
    fields = RECIPES[recipe].model_dump() | {name: value for name, value in changed.items() if value is not None}
    trial = make(
        Trial, "train", model=model, data=data, method=method, k=k, only=only, strip=strip, downsample=downsample,
        recipe=make(Recipe, "recipe", **fields), seed=seed, width=width, image_size=image_size,
        train_images=train_images, test_images=test_images, repeats=repeats, holdout=holdout,
        shuffle=make(ShuffleOptions, "shuffle", per_image=per_image, shared=shared, fixed=fixed, patch=patch),
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
    as_json: _Json = False, where: Where = _HERE, workers: Annotated[Workers, Parameter(name="*")] = _ONE,
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
        Show what would run and what it costs, judged by a few steps of each network, and run nothing.
    data
        In place of the experiment's own: the name or path of a data set.
    k_step
        Of each list of K's only every so manyth, and the last.
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
        Instead of the preset's.

    """
    from spaceless import show
    from spaceless.estimate import estimate
    from spaceless.studies import plan_all, plan_study

    given = {
        "data": data, "k_step": k_step, "width": width, "train_images": train_images, "test_images": test_images,
        "epochs": epochs, "seeds": seeds, "repeats": repeats, "recipe": recipe,
    }
    asked = {key: value for key, value in given.items() if value is not None}
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
    model: str, *, data: str, export: Path | None = None, dry_run: bool = False, as_json: _Json = False,
    where: Where = _HERE,
    wanted: Annotated[Wanted, Parameter(name="*")] = _WANTED, workers: Annotated[Workers, Parameter(name="*")] = _ONE,
) -> None:
    """Find the largest K that costs no more accuracy than the tolerance, and the smaller network that follows.

    Example: `spaceless compress vgg16 --data cifar100 --recipe fast --tolerance 1.0`

    K is searched by bisection with a neighbour check, on training images that are held out; the test images are read
    once, at the end. Finished trials in --out are not run again; the same command goes on after an interruption.

    Parameters
    ----------
    model
        See `spaceless inspect --help`.
    data
        The name or path of a data set.
    export
        Write the chosen network to this folder, as `spaceless export` does.
    dry_run
        Show what the search may cost at most, and train nothing.

    """
    from spaceless.compressing import compress as run

    run(model, data, wanted, where.place(), workers, export=export, dry_run=dry_run, as_json=as_json)


@app.command
def evaluate(
    run: Path, *, shuffle_last: int | None = None, profile: bool = False, repeats: int | None = None,
    test_images: int | None = None, data_root: Path | None = None, device: str = "auto", as_json: _Json = False,
) -> None:
    """Evaluate a trained network again, as it was trained, with its last K units shuffled, or everywhere in turn.

    Example: `spaceless evaluate runs/0123456789abcdef --profile`

    Parameters
    ----------
    run
        The folder of a finished trial.
    shuffle_last
        Shuffle the inputs of this many last units, whatever the training did; 0 is clean.
    profile
        Shuffle each unit alone, and the last K units for every K: where space matters, in one pass over the images.
    repeats
        Passes over the test images with fresh permutations (default: 200, for a profile 10).
    test_images
        Use a balanced draw of this many.
    data_root
        The folder that data sets are looked for in.
    device
        `auto`, `cpu`, `cuda`, ...

    """
    from spaceless import show
    from spaceless.console import advancing
    from spaceless.distributed import joined
    from spaceless.retest import evaluate_run, profile_run
    from spaceless.run import Place
    from spaceless.signals import caught_signals

    if profile and shuffle_last is not None:
        raise InputError(
            "--profile", found=f"--shuffle-last {shuffle_last} beside it", expected="one of the two",
            cure="leave --shuffle-last out: the profile holds every K")
    place = Place(run.parent, data_root, device)
    # What is left out keeps the default of the function it goes to.
    given = {} if repeats is None else {"repeats": repeats}
    with joined(device) as share, caught_signals(patient=share.count > 1) as stop:
        with advancing("profile" if profile else "evaluation", quiet=share.rank > 0) as progress:
            if profile:
                profiled = profile_run(run, place, test_images=test_images, stop=stop, progress=progress, **given)
            else:
                found = evaluate_run(run, place, shuffle_last=shuffle_last, test_images=test_images, stop=stop,
                                     progress=progress, **given)
        if share.rank:
            raise SystemExit(0)
    if profile:
        show.sensitivity(profiled, as_json)
    else:
        show.evaluation(found, as_json)


@app.command
def export(
    run: Path, *, out: Path | None = None, onnx: Path | None = None, images: int | None = None,
    data_root: Path | None = None, as_json: _Json = False,
) -> None:
    """Write a trained network as a folder to hand on: safetensors, ONNX and a model card, checked against each other.

    Example: `spaceless export runs/0123456789abcdef --out vgg16-small`

    `spaceless.load_model(DIR)` rebuilds the network in Python. Networks that shuffle have no ONNX file.

    Parameters
    ----------
    run
        The folder of a finished trial.
    out
        The folder to write (default: `export` in the trial's); an earlier export there is replaced.
    onnx
        Write the ONNX file to this place too.
    images
        Test images that the files are checked on (default: 1,000, or all if there are fewer).
    data_root
        The folder that data sets are looked for in.

    """
    from spaceless import show
    from spaceless.console import advancing
    from spaceless.export import export_run
    from spaceless.signals import caught_signals

    with caught_signals() as stop, advancing("export") as progress:
        found = export_run(run, out=out, onnx=onnx, images=images, data_root=data_root, stop=stop, progress=progress)
    show.export(found, run / "export" if out is None else out, as_json)


@app.command
def paper(experiment: str | None = None, *, check: bool = False, as_json: _Json = False) -> None:
    """List the paper's experiments, show one with its printed numbers, or verify every parameter count.

    Example: `spaceless paper table1` or `spaceless paper --check`

    Parameters
    ----------
    experiment
        The name of one; without it all are listed.
    check
        Build every network whose parameter count the paper prints and compare.

    """
    from spaceless import show

    if check:
        from spaceless.inspection import check_counts

        found = check_counts()
        show.counts(found, as_json)
        if not all(agrees or count.finding for count, _, agrees in found):
            raise SpacelessError(
                "paper --check", found="counts that differ without a known reason", expected="the paper's counts",
                cure="see the rows marked differs",
            )
    elif experiment is None:
        show.experiments_list(as_json)
    else:
        show.one_experiment(experiment, as_json)


@app.command
def report(
    *dirs: Path, html: Path | None = None, csv: Path | None = None, figures: Path | None = None,
    markdown: bool = False, open_report: bool = False, live: bool = False, every: int = 10,
) -> None:
    """Write one page about everything in some run folders, with the paper's numbers beside ours.

    Example: `spaceless report runs --html report.html`, or `spaceless report runs --live` while a study runs

    Parameters
    ----------
    dirs
        Run folders, or folders of single trials.
    html
        The page, one file that opens offline (default: `report.html` in the first folder).
    csv
        All rows as CSV.
    figures
        A folder for every figure as SVG and PNG and every table as CSV.
    markdown
        Print the report as Markdown.
    open_report
        Show the page in the browser.
    live
        Write the page again and again until all planned trials have ended; in the browser it loads itself again.
    every
        Seconds between two writings of the live page.

    """
    from spaceless.report import write_report

    if not dirs:
        raise InputError("report", found="no folder", expected="at least one", cure="write `spaceless report runs`")
    if live:
        if csv or figures or markdown:
            raise InputError("--live", found="--csv, --figures or --markdown", expected="the page alone",
                             cure="write those when the study has ended")
        work.watch(dirs, html, every, open_report)
        return
    written = write_report(dirs, html=html, csv=csv, markdown=markdown, files=figures)
    print(written)
    if open_report and isinstance(written, Path):
        webbrowser.open(written.resolve().as_uri())


@app.command
def data(
    name: str | None = None, *, verify: bool = False, download: bool = False, image_size: int | None = None,
    data_root: Path | None = None, as_json: _Json = False,
) -> None:
    """Show which data sets are known, where they are looked for, and whether one is sound.

    Example: `spaceless data cifar100 --verify`

    Parameters
    ----------
    name
        The name or path of one; without it all are listed.
    verify
        Read all of it and check it against what its name promises.
    download
        Fetch it first (cifar10, cifar100), through torchvision.
    image_size
        The side in pixels for sets in class folders.
    data_root
        The folder that data sets are looked for in.

    """
    from spaceless import show

    if name is None:
        show.known_data(data_root, as_json)
    else:
        show.one_data_set(name, data_root, verify=verify, download=download, image_size=image_size, as_json=as_json)


@app.command
def bench(
    name: Bench | None = None, *networks: str, jobs: int | None = None, seconds: float | None = None,
    out: Path = Path("bench"), as_json: _Json = False,
) -> None:
    """Measure the tool itself and write what was found as JSON and as a Markdown page.

    Example: `spaceless bench networks --jobs 2`, `spaceless bench train --seconds 60`

    Parameters
    ----------
    name
        `networks`: surgery on the CNNs of torchvision and timm. `receptive-fields`: derived against measured and
        published ones. `costs`: counted against what torchvision publishes. `compress`: its search against a full
        sweep, warm starts against scratch, and channel pruning; hours. `faults`: studies that are killed, interrupted,
        crowded and damaged. The others measure speed. Without a name all are listed.
    networks
        With the first three: only these, by name (see `spaceless inspect --help`); `NAME@64` with `networks` for images
        of 64 pixels. With `faults`: only these kinds of fault.
    jobs
        With the first three: processes (default: one per processor core, up to 8). With `compress`: trainings at once
        (default: 1).
    seconds
        With a measurement of speed: how long each of its cases is measured (three rounds of it, if they take longer).
    out
        The folder of the record and the page.

    """
    from spaceless.measuring import bench as measure

    measure(name, networks, jobs, seconds, out, as_json)


def main() -> None:
    """Run the command line; the exit status is 0 done, 1 failed, 2 bad input, 128 + signal when interrupted."""
    words = [word for word in sys.argv[1:] if word != "--debug"]
    debug = len(words) < len(sys.argv) - 1
    try:
        app(words, exit_on_error=False, print_error=False)
    except CycloptsError as error:
        if debug:
            raise
        verb = f"{words[0]} " if words and words[0] in app and not words[0].startswith("-") else ""
        _fail(f"error: {' '.join(str(error).split())}\nsee `spaceless {verb}--help`", 2)
    except Interrupted as error:
        _fail(f"interrupted by {error.found}: {error.cure}", error.exit_status)
    except SpacelessError as error:
        if debug:
            raise
        _fail(" ".join(str(error).split()), error.exit_status)  # a name may hold line breaks of its own
    except PermissionError as error:
        if debug:
            raise
        _fail(f"error: {error.filename}: found {error.strerror}, expected a place that may be read; choose another", 2)
    except BrokenPipeError:  # the reader of our output, such as `head`, has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise SystemExit(128 + signal.SIGPIPE) from None
    except KeyboardInterrupt:
        _fail("interrupted", 130)
    except Exception as error:  # a full disk, a network that runs out of memory, or a defect of ours
        if debug:
            raise
        reason = " ".join(f"{type(error).__name__}: {error}".split())[:300]
        _fail(f"{' '.join(words[:1])}: found {reason}, expected no such failure; --debug shows where it happened", 1)


def _fail(message: str, status: int) -> NoReturn:
    """Print an error in at most three lines and leave with `status`."""
    text = message if message.startswith(("error: ", "interrupted")) else f"error: {message}"
    # Names out of a file may hold anything, and a terminal would obey some of it.
    text = "".join(letter if letter.isprintable() or letter == "\n" else "?" for letter in text[:_LONGEST])
    if len(text) > _ONE_LINE:  # one line for each of: what was found, what was expected, how to mend it
        text = text.replace(", expected ", ",\n  expected ", 1).replace("; ", ";\n  ", 1)
    if status == 1 or os.environ.get("RANK", "0") == "0":  # what is wrong with the input all processes find alike
        print(text, file=sys.stderr)
    raise SystemExit(status)
