"""What the verbs that train share: running a plan under the eyes of its user, the report that follows, calibration."""

from __future__ import annotations

import os
import webbrowser
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from spaceless.errors import InputError, SpacelessError

if TYPE_CHECKING:
    from spaceless.run import Place
    from spaceless.studies import Plan
    from spaceless.study import Tally


@dataclass(frozen=True)
class Workers:
    """Who runs the trials of a study.

    Parameters
    ----------
    jobs
        Processes of this machine.
    threads
        Processor threads of each trial (default: the machine's, shared out among the jobs; 1 on a cluster).
    retries
        How often a trial that failed is tried again.
    ray
        Run the trials on a Ray cluster: its address (`HEAD:6379`, `ray://HEAD:10001`, `auto`), or the word `local` for
        one that is started and ended with the study.
    gpus
        On a cluster: GPUs of each process of a trial; `0.25` lets four share one (default: 1 where there are GPUs).
    processes
        On a cluster: processes that share each trial's batches (DDP; default 1).

    """

    jobs: int = 1
    threads: int | None = None
    retries: int = 1
    ray: str | None = None
    gpus: float | None = None
    processes: int | None = None

    def check(self) -> None:
        """Raise InputError for options that cannot be meant, or do not go together."""
        for name, count, least in (("--jobs", self.jobs, 1), ("--threads", self.threads, 1),
                                   ("--retries", self.retries, 0)):
            if count is not None and count < least:
                raise InputError(name, found=count, expected=f"at least {least}", cure="leave it out")
        for name, value in (("--gpus", self.gpus), ("--processes", self.processes)):
            if value is not None and self.ray is None:
                raise InputError(
                    name, found=f"{value:g} without --ray", expected="a cluster", cure="add --ray or use torchrun")
        if self.ray is not None and self.jobs != 1:
            raise InputError(
                "--jobs", found=f"{self.jobs} with --ray", expected="no number",
                cure="leave it out: a cluster knows what it can run at once")


def job_count(asked: int | None) -> int:
    """Return how many processes to use: what was asked for, else one per processor core, 8 at most."""
    if asked is not None and asked < 1:
        raise InputError("--jobs", found=asked, expected="at least 1", cure="leave it out for a sensible number")
    return asked or min(8, os.cpu_count() or 1)


def calibrate(
    preset: str, place: Place, jobs: int | None, command: str, *, as_json: bool = False, open_report: bool = False,
) -> None:
    """Run a calibration, write its report, and raise SpacelessError if it does not find the true largest K."""
    from spaceless.calibrate import plan_calibration
    from spaceless.report import disagreements

    plan = plan_calibration(preset, command)
    tally = run(plan, place, Workers(jobs=job_count(jobs)))
    page = report(plan, place, tally, as_json)
    if open_report:
        webbrowser.open(page.resolve().as_uri())
    if wrong := disagreements([place.out], plan.name):
        raise SpacelessError(
            "calibration", found=f"{len(wrong)} cells without it, first {wrong[0]}", expected="the true largest K",
            cure="look at the report; if it is not the training that failed, please report a bug",
        )


def run(plan: Plan, place: Place, workers: Workers, studies: Sequence[Plan] | None = None) -> Tally:
    """Run a plan with its progress shown, alone or under torchrun, and raise its first error if nothing came of it."""
    from spaceless.cluster import Cluster
    from spaceless.console import watching
    from spaceless.distributed import joined
    from spaceless.study import run_study

    workers.check()
    cluster = None if workers.ray is None else Cluster(workers.ray, workers.gpus, workers.processes or 1)
    study = partial(
        run_study, plan, place, jobs=workers.jobs, threads=workers.threads, retries=workers.retries, cluster=cluster,
        studies=studies)
    with joined(place.device) as share:
        if share.rank:  # one process speaks for all
            study()
            raise SystemExit(0)
        with watching(plan) as watch:
            tally = study(watch=watch)
    if not (tally.ran or tally.known):
        raise tally.failed[0][1]
    return tally


def report(plan: Plan, place: Place, tally: Tally, as_json: bool, studies: Sequence[Plan] | None = None) -> Path:
    """Write the report of a plan (or of the studies it is made of), say what came of it, and fail if a trial did."""
    from spaceless import show
    from spaceless.report import write_report

    page = place.out / f"{plan.name}.html"
    names = [study.name for study in studies or (plan,)]
    write_report([place.out], html=page, study=names)
    show.study(plan, names, place.out, page, tally, as_json)
    if tally.failed:
        trial, error = tally.failed[0]
        raise SpacelessError(
            f"{len(tally.failed)} of {len(plan.planned)} trials", found=f"failed, first {trial.label}: {error}",
            expected="an outcome of each", cure="mend the cause and run the same command again",
        )
    return page


def watch(dirs: Sequence[Path], html: Path | None, every: int, open_report: bool) -> None:
    """Keep the page of some run folders up to date while studies run in them, and say on standard error what is new."""
    from spaceless.console import screen
    from spaceless.live import watch as keep
    from spaceless.report import write_report

    page = html or dirs[0] / "report.html"
    if open_report:
        write_report(dirs, html=page)
        webbrowser.open(page.resolve().as_uri())
    out = screen()
    print(keep(dirs, page, every, tell=lambda text: out.print(text, markup=False)))
