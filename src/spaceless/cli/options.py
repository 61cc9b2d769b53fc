"""What the verbs share: the program itself, and the options that several of them have."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from cyclopts import App, Parameter

from spaceless import __version__
from spaceless.errors import InputError
from spaceless.trial import METHODS

if TYPE_CHECKING:
    from spaceless.run import Place

app = App(
    name="spaceless", version=__version__, help_format="markdown", default_parameter=Parameter(negative=""),
    suppress_keyboard_interrupt=False,
    help="From which layer on does an image classifier need no spatial information, and what smaller network "
    "follows?\n\n"
    "Start with `spaceless demo`. Every verb answers `--help` with an example. `--debug` shows tracebacks.",
)

K = Annotated[int | None, Parameter(name=["--k", "-k"])]
Preset = Literal["paper", "fast", "smoke"]
Json = Annotated[bool, Parameter(name="--json", help="Print one JSON document on standard output.")]


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
        Do not keep the trained weights (`evaluate`, `export` and `compress --from` need them).
    eager
        Compute every layer by PyTorch's own operations, and on a GPU launch each by itself: slower, and the way to
        find out whether a fast path of ours is at fault.

    """

    out: Path = Path("runs")
    data_root: Path | None = None
    device: str = "auto"
    no_weights: bool = False
    eager: bool = False

    def place(self) -> Place:
        """Return what the compute half calls this."""
        from spaceless.run import Place

        return Place(self.out, self.data_root, self.device, keep_weights=not self.no_weights,
                     eager=self.eager)


HERE = Where()


def check_change(method: str, k: int | None, only: int | None, downsample: str | None) -> None:
    """Raise InputError for options without effect: a method of no units, what replaces a stride that stays."""
    if method == "baseline" and (k or only is not None):
        option = f"-k {k}" if k else f"--only {only}"
        raise InputError(option, found="no --method", expected="one of " + ", ".join(METHODS),
                         cure="add for example --method conv1x1")
    if method in METHODS and k is None and only is None:
        raise InputError(f"--method {method}", found="no unit to change", expected="-k or --only beside it",
                         cure="say with -k how many of the last units; leave --method out for the unchanged network")
    if downsample is not None and method != "conv1x1":
        raise InputError(f"--downsample {downsample}", found=f"method {method}", expected="conv1x1",
                         cure="leave it out")
