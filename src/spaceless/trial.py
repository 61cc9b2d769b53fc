"""What a training is (`Trial`), how it is done (`Recipe`) and what came of it (`Outcome`): frozen, validated, JSON.

The compute half and the report half of the package meet only here, in `outcome.json`.
"""

from __future__ import annotations

import hashlib
import json
import statistics
from typing import Annotated, Any, Literal, Self, get_args

from pydantic import Field, model_validator

from spaceless.errors import InputError, unknown_name
from spaceless.spec import Spec

Method = Literal["baseline", "shuffle", "gap_fc", "conv1x1", "channel_shuffle", "strip"]
Downsample = Literal["avg", "max", "stride"]
Precision = Literal["auto", "fp32", "bf16"]
Augment = Literal["crop_flip", "resized_crop", "none"]
Reduction = Literal["best", "centre", "sum", "mean", "least_squares"]

METHODS: tuple[str, ...] = tuple(m for m in get_args(Method) if m != "baseline")
RANDOM_METHODS = ("shuffle", "channel_shuffle")
COMPRESSING = ("conv1x1", "gap_fc")  # they make a network smaller, and can start from trained kernels
PAPER_MODELS = ("vgg16", "resnet50", "resnet152", "mobilenet_v2", "squeezenet1_0")
MODEL_PREFIXES = ("torchvision:", "timm:", "chain:")
Percent = Annotated[float, Field(ge=0, le=100)]  # an accuracy; means of numbers near the largest float overflow
SPECIFICATION = 1  # goes into every identity: raise it when the same specification begins to mean something else


class Recipe(Spec):
    """How a network is trained.

    `milestones` and `warmup` are shares of the whole training, so that a recipe keeps its shape at any length.
    The learning rate is the one for `batch_size`; it is not rescaled. `augment`: a shifted crop and a flip, or a
    resized crop of 8 to 100 % of the area and a flip (class folders are then decoded anew in every epoch), or nothing.
    """

    name: str
    epochs: Annotated[int, Field(ge=1)]
    batch_size: Annotated[int, Field(ge=1)] = 128
    optimizer: Literal["sgd", "adamw"] = "sgd"
    learning_rate: Annotated[float, Field(gt=0)] = 0.1
    momentum: Annotated[float, Field(ge=0, lt=1)] = 0.9
    nesterov: bool = True
    weight_decay: Annotated[float, Field(ge=0)] = 5e-4
    schedule: Literal["step", "one_cycle"] = "step"
    milestones: tuple[Annotated[float, Field(gt=0, lt=1)], ...] = ()
    factor: Annotated[float, Field(gt=0, le=1)] = 0.2
    warmup: Annotated[float, Field(ge=0, lt=1)] = 0.0
    augment: Augment = "crop_flip"
    precision: Precision = "auto"


RECIPES: dict[str, Recipe] = {
    # Section 3.2 names no recipe; the baselines of Table 1 match the one of Zagoruyko & Komodakis 2016 ("Wide
    # residual networks"): SGD 0.1, Nesterov 0.9, weight decay 5e-4, divided by 5 at epochs 60, 120, 160 of 200.
    "paper": Recipe(name="paper", epochs=200, milestones=(0.3, 0.6, 0.8)),
    "fast": Recipe(name="fast", epochs=30, schedule="one_cycle", warmup=0.2),
    # For few images: small batches for more steps, and the learning rate that goes with them.
    "smoke": Recipe(
        name="smoke", epochs=10, batch_size=64, learning_rate=0.03, schedule="one_cycle", warmup=0.25,
    ),
    # He et al. 2016, "Deep residual learning for image recognition", section 3.4.
    "imagenet": Recipe(
        name="imagenet", epochs=90, batch_size=256, nesterov=False, weight_decay=1e-4,
        milestones=(1 / 3, 2 / 3), factor=0.1, augment="resized_crop",
    ),
    # For the made data sets: small networks, no augmentation (a flip would change the class).
    "control": Recipe(
        name="control", epochs=6, batch_size=64, optimizer="adamw", learning_rate=3e-3, weight_decay=0.01,
        schedule="one_cycle", warmup=0.3, augment="none",
    ),
}


def unknown_model(name: str) -> InputError:
    """Return the error for a network that is none of the paper's and has no prefix."""
    error = unknown_name("model", name, (*PAPER_MODELS, "torchvision:NAME", "timm:NAME", "chain:16-M-24"))
    cure = error.cure if error.cure.endswith("?") else f"{error.cure}."
    return InputError(error.what, found=error.found, expected=error.expected, cure=(
        f"{cure} A network of torchvision would be torchvision:{name}, one of timm timm:{name}"))


class ShuffleOptions(Spec):
    """What is permuted: by default one permutation per channel, the same for all images, redrawn in every pass."""

    per_image: bool = False
    shared: bool = False
    fixed: bool = False
    patch: Annotated[int, Field(ge=1)] = 1

    @property
    def words(self) -> tuple[str, ...]:
        """What differs from the default, in words."""
        found = {"per image": self.per_image, "one for all channels": self.shared, "fixed": self.fixed,
                 f"patches of {self.patch}": self.patch > 1}
        return tuple(word for word, on in found.items() if on)


class Distillation(Spec):
    """Answers of the original network as targets beside the labels (Hinton, Vinyals & Dean 2015).

    The loss is (1 - `weight`) times the cross entropy plus `weight` times temperature squared times the divergence
    (Kullback-Leibler, in nats) of the answers from the original's, both softened by `temperature`.
    """

    temperature: Annotated[float, Field(gt=0)] = 4.0
    weight: Annotated[float, Field(gt=0, le=1)] = 0.5


class Start(Spec):
    """The trained network that a training begins from, and how its spatial kernels become 1x1 kernels.

    `run` is the identity of its trial, `weights_sha256` that of its weights. `reduction`: the kernel's centre tap, the
    sum or the mean of its taps, the least-squares fit to what the original layer puts out, or for each layer the best
    of these. On the first `images` training images: three quarters are for the fit, the rest judge it.
    """

    run: Annotated[str, Field(pattern=r"^[0-9a-f]{16}$")]
    weights_sha256: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
    reduction: Reduction = "best"
    images: Annotated[int, Field(ge=16)] = 2048
    distillation: Distillation | None = None


def is_control(name: str) -> bool:
    """Tell whether `name` is a data set made by code."""
    return name == "texture" or name.startswith("arrangement-")


class Trial(Spec):
    """One network, changed in one way, trained once (from scratch unless it has a `start`) and evaluated.

    `k` counts units from the last one on (section 3.2 of the paper); `only` changes that unit alone (Fig. 6,
    counted from 1 at the input); `strip` removes that many of the last `k` changed units altogether (Fig. 3 left).
    `holdout` is the share of the training images that is not trained on but evaluated on, in place of the test images.
    Fields without influence are put to their defaults, so that equal trainings have equal identities: every
    method's K = 0 is one and the same baseline.
    """

    model: str
    data: str
    method: Method = "baseline"
    k: Annotated[int, Field(ge=0)] = 0
    only: Annotated[int, Field(ge=1)] | None = None
    strip: Annotated[int, Field(ge=0)] = 0
    downsample: Downsample = "avg"
    shuffle: ShuffleOptions = ShuffleOptions()
    width: Annotated[float, Field(gt=0)] = 1.0
    image_size: Annotated[int, Field(ge=1)] | None = None
    train_images: Annotated[int, Field(ge=1)] | None = None
    test_images: Annotated[int, Field(ge=1)] | None = None
    recipe: Recipe = RECIPES["paper"]
    seed: Annotated[int, Field(ge=0)] = 0
    repeats: Annotated[int, Field(ge=1)] = 200
    holdout: Annotated[float, Field(gt=0, lt=1)] | None = None
    start: Start | None = None

    @model_validator(mode="after")
    def _canonical(self) -> Self:
        # After validation, so that no nonsense in a field without influence is accepted and no spelling escapes.
        plain: dict[str, Any] = {}
        if self.only is not None and self.k == 0:
            plain["k"] = 1
        if self.k == 0 and self.only is None:
            plain |= {"method": "baseline", "strip": 0}
        method = plain.get("method", self.method)
        if method != "conv1x1":
            plain["downsample"] = "avg"
        if method == "channel_shuffle":
            plain["shuffle"] = ShuffleOptions(fixed=self.shuffle.fixed)
        elif method != "shuffle":
            plain["shuffle"] = ShuffleOptions()
        if method not in RANDOM_METHODS:
            plain["repeats"] = 1
        for name, value in plain.items():
            object.__setattr__(self, name, value)  # frozen for everyone else
        return self

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.method == "baseline" and self.k:
            raise unknown_name("method", "baseline", METHODS, "name the method that changes the last k units")
        if self.only is not None and self.k != 1:
            raise InputError("k", found=self.k, expected="1 with `only`, which changes one unit", cure="leave k out")
        if self.only is not None and self.method in ("gap_fc", "strip"):
            raise InputError(
                "only", found=f"method {self.method}", expected="shuffle, conv1x1 or channel_shuffle",
                cure="use k: pooling or stripping one unit cannot leave the units behind it as they were",
            )
        if self.strip > self.k or (self.strip and self.method in ("strip", "baseline")):
            raise InputError(
                "strip", found=self.strip, expected=f"at most k = {self.k} units of a method other than strip",
                cure="raise k or lower strip",
            )
        if self.start is not None and (self.method not in COMPRESSING or self.strip or self.only):
            raise InputError(
                "start", found=f"method {self.method}", expected="conv1x1 or gap_fc in the last k units",
                cure="train this network from scratch",
            )
        if self.model not in PAPER_MODELS and not self.model.startswith(MODEL_PREFIXES):
            raise unknown_model(self.model)
        return self

    @property
    def images(self) -> tuple[object, ...]:
        """What its images follow from, together with the files: trials with equal ones must have equal images."""
        return (self.data, self.image_size, self.train_images, self.test_images, self.holdout,
                self.recipe.augment == "resized_crop", self.seed if is_control(self.data) else None)

    @property
    def tested_on(self) -> str:
        """What its accuracies are on: the test images, or in their place training images that are held out."""
        return "test images" if self.holdout is None else "held-out training images"

    @property
    def id(self) -> str:
        """The content hash of the canonical specification: 16 hexadecimal digits."""
        fields = self.model_dump(mode="json")
        for later in ("holdout", "start"):  # left out where unused: trials from before these fields keep their identity
            if fields[later] is None:
                del fields[later]
        text = json.dumps({"specification": SPECIFICATION, **fields}, sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:16]

    @property
    def label(self) -> str:
        """One short line for progress and tables, such as `vgg16 shuffle K=3 seed 0`."""
        if self.method == "baseline":
            what = "baseline"
        else:
            what = f"{self.method} unit {self.only}" if self.only else f"{self.method} K={self.k}"
        strip = f" strip {self.strip}" if self.strip else ""
        start = " warm" if self.start else ""
        return f"{self.model} {what}{strip}{start} {self.data} seed {self.seed}"


class Change(Spec):
    """One module that surgery changed: the unit it belongs to (from 1 at the input), its path, before and after."""

    unit: int
    path: str
    before: str
    after: str


class Evaluation(Spec):
    """Top-1 and top-5 accuracy, in percent, of one trained network under one test scheme.

    On the test set, or of a trial with a `holdout` on the training images that were held out.

    `shuffle_last` is None for the scheme the network was trained with; otherwise the network is evaluated without
    its training shuffle and with the inputs of its last `shuffle_last` units shuffled (0: clean).
    `top1` holds one value per repeat: passes over the same images with fresh permutations. `images` counts those that
    were seen; `left_out` are the paths of broken ones, which were not. `right` tells for each image, one bit in their
    order and a broken one counted as wrong, whether the single pass was right (see `spaceless.paired`); None where that
    was not recorded.
    """

    shuffle_last: Annotated[int, Field(ge=0)] | None = None
    images: Annotated[int, Field(ge=1)]
    top1: Annotated[tuple[Percent, ...], Field(min_length=1)]
    top5: Percent | None = None
    left_out: tuple[str, ...] = ()
    right: str | None = None

    @property
    def mean(self) -> float:
        """The mean top-1 accuracy over the repeats, in percent."""
        return statistics.fmean(self.top1)

    @property
    def spread(self) -> float | None:
        """The standard deviation over the repeats, in percentage points; None for a single pass."""
        return statistics.stdev(self.top1) if len(self.top1) > 1 else None


class Epoch(Spec):
    """One epoch of training: mean loss (nats), top-1 on the augmented training images (percent), speed."""

    epoch: int
    loss: float
    top1: float
    learning_rate: float
    seconds: float
    images_per_second: float


class DataFacts(Spec):
    """The data a trial saw: its name, where it came from, a note that must be shown with it, and its size."""

    name: str
    source: str
    note: str = ""
    classes: int
    image_size: int
    train_images: int
    test_images: int
    digest: str


_PassSeconds = Annotated[float, Field(gt=0, le=86400)]  # up to a day: what is more was not measured


class Latency(Spec):
    """Median, lower and upper quartile of the seconds for one batch of `batch` images, over `repeats` timed passes."""

    median: _PassSeconds
    lower: _PassSeconds
    upper: _PassSeconds
    batch: Annotated[int, Field(ge=1)]
    repeats: Annotated[int, Field(ge=2)]


class Outcome(Spec):
    """Everything that is known of a finished trial. A number that was not measured is None, never 0.

    `latency` is of the forward pass in fp32 on `hardware` with `threads`, whatever `precision` the training had; it is
    not part of `seconds`. It is measured where one process trains alone, and only of networks that did not diverge.
    """

    trial: Trial
    status: Literal["finished", "diverged", "failed"]
    error: str | None = None
    units: int | None = None
    changes: tuple[Change, ...] = ()
    params: int | None = None
    macs: int | None = None
    receptive_field: int | None = None
    receptive_stride: int | None = None
    latency: Latency | None = None
    evaluations: tuple[Evaluation, ...] = ()
    history: tuple[Epoch, ...] = ()
    data: DataFacts | None = None
    precision: str | None = None
    weights_sha256: str | None = None
    notes: tuple[str, ...] = ()
    versions: dict[str, str] = Field(default_factory=dict)
    hardware: str = ""
    threads: int | None = None
    processes: int = 1
    started: str = ""
    seconds: float | None = None

    @property
    def top1(self) -> float | None:
        """Mean top-1 accuracy in percent under the scheme the network was trained with."""
        matched = [e for e in self.evaluations if e.shuffle_last is None]
        return matched[0].mean if matched else None
