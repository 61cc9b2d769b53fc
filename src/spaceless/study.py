"""Many trials: the finished ones skipped, the others run here, in several local processes or on a cluster."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace

import torch

from spaceless.attempts import Event, Tell, finished
from spaceless.cluster import Cluster, on_cluster
from spaceless.dispatch import Hands, Here, dispatch
from spaceless.distributed import share
from spaceless.errors import InputError, Interrupted, SpacelessError
from spaceless.estimate import check
from spaceless.processes import Processes
from spaceless.run import Place, choose_device
from spaceless.sharing import shared_gpu
from spaceless.signals import caught_signals
from spaceless.studies import Plan
from spaceless.trial import Outcome, Trial


@dataclass
class Tally:
    """What a study came to: trials that ran now, that were finished before, and that failed."""

    ran: list[Outcome] = field(default_factory=list)
    known: list[Outcome] = field(default_factory=list)
    failed: list[tuple[Trial, SpacelessError]] = field(default_factory=list)


def run_study(
    plan: Plan, place: Place, *, jobs: int = 1, threads: int | None = None, retries: int = 1,
    cluster: Cluster | None = None, watch: Tell | None = None, studies: Sequence[Plan] | None = None,
) -> Tally:
    """Run the trials of `plan` that are not finished, and evaluate them under their further test schemes.

    Several calls may work on one folder: each trial is run by one of them.

    Args:
        plan: What to run, in this order.
        place: Where.
        jobs: Processes of this machine.
        threads: Processor threads of each trial; None shares the machine's out among the jobs.
        retries: How often a trial that failed is tried again before it is stored as failed.
        cluster: Run the trials on this Ray cluster instead.
        watch: Told about every event.
        studies: What the plan is made of: a `NAME.study.json` is written for each, by which a report knows it. None is
            the plan itself.

    Raises:
        InputError: The plan cannot be run; nothing was written.
        Interrupted: A signal came; states are saved and the same call goes on from there.

    """
    mine = share()
    for name, value, least in (("jobs", jobs, 1), ("threads", threads, 1), ("retries", retries, 0)):
        if value is not None and value < least:
            raise InputError(name, found=value, expected=f"at least {least}", cure="leave it out")
    if mine.count > 1 and (jobs > 1 or cluster):
        raise InputError(
            "jobs" if jobs > 1 else "ray", found=f"{jobs if jobs > 1 else cluster} under torchrun",
            expected="one trial after the other", cure="leave it or torchrun out")
    place.store.check()
    check(plan.planned, place)
    for study in ((plan,) if studies is None else studies) if mine.rank == 0 else ():
        place.store.write_study(study.manifest())
    tally = Tally()
    tell = watch or (lambda _: None)
    todo = []
    for index, planned in enumerate(plan.planned):
        if (known := finished(planned, place)) is None:
            todo.append(index)
        else:
            tally.known.append(known)
            tell(Event(index, "known", outcome=known))

    def note(event: Event) -> None:
        if event.kind == "finished" and event.outcome is not None:
            tally.ran.append(event.outcome)
        elif event.kind == "known" and event.outcome is not None:
            tally.known.append(event.outcome)
        elif event.kind == "failed" and event.error is not None:
            tally.failed.append((plan.planned[event.index].trial, event.error))
        tell(event)

    # How many threads add up a sum decides its last bit, so their number follows from `jobs` and not from what is left.
    before = torch.get_num_threads()
    each = threads or max(1, before // jobs)
    with ExitStack() as stack:
        if cluster is not None and todo:
            hands: Hands = stack.enter_context(on_cluster(cluster, plan, place, note, threads=threads or 1))
        # Behind Ray, which catches SIGTERM itself. And torchrun hands on what a terminal has sent already.
        stop = stack.enter_context(caught_signals(patient=mine.count > 1))
        if cluster is None and jobs > 1 and len(todo) > 1:
            if choose_device(place.device).type == "cuda":
                stack.enter_context(shared_gpu())
                # One that then finds no GPU must say so, and not go on without.
                place = replace(place, device="cuda" if place.device == "auto" else place.device)
            hands = stack.enter_context(Processes(plan, place, note, jobs=min(jobs, len(todo)), threads=each))
        elif cluster is None:
            torch.set_num_threads(each)
            stack.callback(torch.set_num_threads, before)
            hands = Here(plan, place, stop, note)
        if todo:
            dispatch(plan, place, todo, hands, stop, note, retries)
        if (signum := stop()) is not None:
            raise Interrupted(signum)
    return tally
