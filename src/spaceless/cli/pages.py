"""The verbs that show and measure: the paper, reports, data sets, the tool itself."""

from __future__ import annotations

import webbrowser
from pathlib import Path
from typing import Literal

from spaceless import work
from spaceless.cli.options import Json, app
from spaceless.errors import InputError, SpacelessError

Bench = Literal[
    "networks", "receptive-fields", "costs", "train", "accuracy", "shuffle", "evaluate", "floor", "study",
    "compress", "faults",
]


@app.command
def paper(experiment: str | None = None, *, check: bool = False, as_json: Json = False) -> None:
    """List the paper's experiments, show one with its printed numbers, or verify every parameter count.

    Example: `spaceless paper table1` or `spaceless paper --check`

    Parameters
    ----------
    experiment
        The name of one; without it all are listed.
    check
        Build every network whose parameter count the paper prints and compare.

    """
    from spaceless import show_paper

    if check:
        from spaceless.inspection import check_counts

        found = check_counts()
        show_paper.counts(found, as_json)
        if not all(agrees or count.finding for count, _, agrees in found):
            raise SpacelessError(
                "paper --check", found="counts that differ without a known reason", expected="the paper's counts",
                cure="see the rows marked differs",
            )
    elif experiment is None:
        show_paper.experiments_list(as_json)
    else:
        show_paper.one_experiment(experiment, as_json)


@app.command
def report(
    *dirs: Path, html: Path | None = None, csv: Path | None = None, figures: Path | None = None,
    markdown: bool = False, claims: bool = False, open_report: bool = False, live: bool = False,
    every: int | None = None,
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
        A folder for every figure as SVG and PNG and every table as CSV; with `--claims` for its figures, as SVG.
    markdown
        Print the report as Markdown.
    claims
        Print, as Markdown and instead of the report, what the outcomes say of each of the paper's claims: confirmed,
        in part, not confirmed or open, with the figures.
    open_report
        Show the page in the browser.
    live
        Write the page again and again until all planned trials have ended; in the browser it loads itself again.
    every
        With `--live`: seconds between two writings of the page (default: 10).

    """
    from spaceless.report import write_claims, write_report

    if not dirs:
        raise InputError("report", found="no folder", expected="at least one", cure="write `spaceless report runs`")
    if live:
        if csv or figures or markdown or claims:
            raise InputError("--live", found="--csv, --figures, --markdown or --claims", expected="the page alone",
                             cure="write those when the study has ended")
        work.watch(dirs, html, 10 if every is None else every, open_report)
        return
    if every is not None:
        raise InputError(f"--every {every}", found="no --live", expected="both, or neither",
                         cure="add --live, or leave --every out")
    if claims:
        if html or csv or markdown or open_report:
            raise InputError("--claims", found="--html, --csv, --markdown or --open-report",
                             expected="--claims alone, or with --figures",
                             cure="ask for the report in a second command")
        print(write_claims(dirs, figures))
        return
    if open_report and not html and (csv or figures or markdown):
        raise InputError("--open-report", found="--csv, --figures or --markdown and no page to show",
                         expected="a page", cure="add --html PAGE")
    written = write_report(dirs, html=html, csv=csv, markdown=markdown, files=figures)
    print(written)
    if open_report:
        webbrowser.open((html or Path(written)).resolve().as_uri())


@app.command
def data(
    name: str | None = None, *, verify: bool = False, download: bool = False, image_size: int | None = None,
    data_root: Path | None = None, as_json: Json = False,
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
        The folder that data sets are looked for in (default: $SPACELESS_DATA, else the user cache).

    """
    from spaceless import show

    if name is None and (verify or download or image_size is not None):
        raise InputError("data", found="--verify, --download or --image-size and no name",
                         expected="the name or path of a set", cure="name it: spaceless data cifar100 --verify")
    if name is None:
        show.known_data(data_root, as_json)
    else:
        show.one_data_set(name, data_root, verify=verify, download=download, image_size=image_size, as_json=as_json)


@app.command
def bench(
    name: Bench | None = None, *networks: str, jobs: int | None = None, seconds: float | None = None,
    out: Path = Path("bench"), as_json: Json = False,
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
        With `networks`, `receptive-fields` and `costs`: only these, by name (see `spaceless inspect --help`); `NAME@64`
        with `networks` for images of 64 pixels. With `faults`: only these kinds of fault.
    jobs
        With those three: processes (default: one per processor core, up to 8). With `compress`: trainings at once
        (default: 1).
    seconds
        With a measurement of speed: how long each of its cases is measured (three rounds of it, if they take longer).
    out
        The folder of the record and the page.

    """
    from spaceless.measuring import bench as measure

    measure(name, networks, jobs, seconds, out, as_json)
