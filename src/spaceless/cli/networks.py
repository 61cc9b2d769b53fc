"""The verbs about one network: what it is, how a trained one does, and its export."""

from __future__ import annotations

from contextlib import nullcontext
from pathlib import Path

from spaceless.cli.options import Json, K, app, check_change
from spaceless.errors import InputError
from spaceless.trial import Downsample


@app.command
def inspect(
    model: str, *, classes: int = 1000, image_size: int | None = None,
    method: str = "baseline", k: K = None, only: int | None = None, downsample: Downsample | None = None,
    width: float = 1.0, latency: bool = False, batch: int | None = None, as_json: Json = False,
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
        The side of the image in pixels (default: 224, of a chain 48).
    method
        `shuffle`, `gap_fc`, `conv1x1`, `channel_shuffle` or `strip`.
    k
        How many units to change, from the last one on.
    only
        Change this unit alone (from 1 at the input).
    downsample
        What replaces a strided convolution for `conv1x1` (default: `avg`).
    width
        The factor for all channel counts.
    latency
        Measure a forward pass on this machine's processor, before and after in turn.
    batch
        Images in that pass (default: 1).

    """
    from spaceless import show
    from spaceless.imports import without_compiler
    from spaceless.inspection import inspect_model

    if batch is not None and not latency:
        raise InputError("batch", found=f"{batch} without --latency", expected="both", cure="add --latency")
    check_change(method, k, only, downsample)

    with nullcontext() if model.startswith("timm:") else without_compiler():  # timm asks the compiler itself
        found = inspect_model(
            model, classes=classes, image_size=image_size, method=method, k=k or 0, only=only,
            downsample=downsample or "avg", width=width, batch=(1 if batch is None else batch) if latency else None,
        )
    show.inspection(found, as_json)


@app.command
def evaluate(
    run: Path, *, shuffle_last: int | None = None, profile: bool = False, repeats: int | None = None,
    test_images: int | None = None, data_root: Path | None = None, device: str = "auto", as_json: Json = False,
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
        The folder that data sets are looked for in (default: $SPACELESS_DATA, else the user cache).
    device
        `auto`, `cpu`, `cuda`, ...

    """
    from spaceless import show
    from spaceless.console import advancing
    from spaceless.distributed import joined
    from spaceless.retest import evaluate_run, profile_run
    from spaceless.run import Place
    from spaceless.signals import caught_signals
    from spaceless.store import read_trial

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
        show.sensitivity(profiled, read_trial(run), as_json)
    else:
        show.evaluation(found, read_trial(run), as_json)


@app.command
def export(
    run: Path, *, out: Path | None = None, onnx: Path | None = None, images: int | None = None,
    data_root: Path | None = None, as_json: Json = False,
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
        The folder that data sets are looked for in (default: $SPACELESS_DATA, else the user cache).

    """
    from spaceless import show
    from spaceless.console import advancing
    from spaceless.export import export_run
    from spaceless.signals import caught_signals

    with caught_signals() as stop, advancing("export") as progress:
        found = export_run(run, out=out, onnx=onnx, images=images, data_root=data_root, stop=stop, progress=progress)
    show.export(found, run / "export" if out is None else out, as_json)
