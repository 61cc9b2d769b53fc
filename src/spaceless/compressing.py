"""What the verb `compress` does: the search with its progress shown, its page and its record."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from spaceless import work
from spaceless.errors import InputError
from spaceless.wanted import OWN, Wanted, ask, command_line

if TYPE_CHECKING:
    from spaceless.compress import Budget, Question
    from spaceless.compression import Compression
    from spaceless.run import Place


def compress(
    model: str, data: str, wanted: Wanted, place: Place, workers: work.Workers, *, export: Path | None, dry_run: bool,
    as_json: bool,
) -> None:
    """Search the largest K, show what it may cost before and what came of it after, and write page and records.

    `export` is the folder that the chosen network is written to, see `export_run`.

    Raises:
        InputError: Options that cannot be meant; nothing was written.
        SpacelessError: The baseline has not learnt, or a training failed.

    """
    from spaceless import compress as room
    from spaceless.console import screen
    from spaceless.distributed import asked_processes

    if asked_processes() > 1:
        raise InputError("compress", found=f"{asked_processes()} processes under torchrun", expected="one",
                         cure="run it without torchrun, with --jobs for several seeds at once")
    if not place.keep_weights:
        raise InputError("--no-weights", found="with compress", expected="trained weights to test in the end",
                         cure="leave it out")
    question = ask(model, data, wanted)
    if workers.jobs > 1 and len(question.baselines) == 1 and question.warm is not None:
        raise InputError("--jobs", found=f"{workers.jobs} for one seed", expected="1: one training waits for another",
                         cure="leave it out or ask for several --seeds")
    if question.objective == "latency" and (workers.processes or 1) > 1:
        raise InputError("--objective latency", found=f"{workers.processes} processes to a training",
                         expected="one: a network's time is measured by the process that trained it alone",
                         cure="leave --processes out, or choose another objective")
    if export is not None:
        from spaceless.export import check_export

        check_export(export)  # hours before it is needed
    allowed = room.budget(question, place)
    if dry_run:
        _show_budget(question, allowed, as_json)
        return
    _fetch(wanted, question, place)
    out = screen()
    out.print(_budget_text(question, allowed), markup=False)
    command = command_line(model, data, wanted)
    found = room.search(question, allowed, place, lambda plan: work.run(plan, place, workers, ()), command,
                        lambda text: out.print(text, markup=False), ahead=workers.jobs > len(question.baselines))
    _finish(question, found, place, command, export, as_json)


def _export(network: Path, out: Path, place: Place) -> Path:
    from spaceless.console import advancing
    from spaceless.export import export_run
    from spaceless.signals import caught_signals

    with caught_signals() as stop, advancing("export") as progress:
        export_run(network, out=out, data_root=place.data_root, stop=stop, progress=progress)
    return out


def _fetch(wanted: Wanted, question: Question, place: Place) -> None:
    """Copy the run that --from names into the folder of outcomes, its outcome last: the search stands on it.

    Raises InputError if a finished run of the same trial with other weights lies there.
    """
    from spaceless.atomic import atomic_write
    from spaceless.store import OUTCOME, TRIAL, WEIGHTS, read_outcome

    if wanted.original in (None, OWN):
        return
    source, target = Path(wanted.original or "").resolve(), place.store.folder(question.baselines[0])
    if source == target.resolve():
        return
    known = place.store.outcome(question.baselines[0])
    if known is not None and known.status == "finished":
        if known.weights_sha256 == read_outcome(source / OUTCOME).weights_sha256:
            return
        raise InputError(f"--from {wanted.original}", found=f"other weights of the same trial in {target}",
                         expected="those of the run that is named", cure="choose another --out")
    place.store.begin(question.baselines[0])
    for name in (WEIGHTS, TRIAL, OUTCOME):
        atomic_write(target / name, (source / name).read_bytes())


def _budget_text(question: Question, allowed: Budget) -> str:
    from spaceless.console import duration

    seeds = len(question.baselines)
    epochs, base = question.recipe.epochs, "" if question.given else "the baseline and "
    if not question.given and question.baselines[0].recipe.epochs != epochs:
        base = f"the baseline ({_epochs(question.baselines[0].recipe.epochs)}) and "
    text = (f"at most {allowed.trainings} training{'s' * (allowed.trainings > 1)}: {base}{allowed.tries} of "
            f"{allowed.possible} K, {seeds} seed{'s' * (seeds > 1)} each, {_epochs(epochs)}")
    if allowed.estimate.seconds:
        text += f"; about {duration(allowed.estimate.seconds)} at most, one training after another"
    return text + (f"\n{allowed.refused}" if allowed.refused else "")


def _epochs(count: int) -> str:
    return f"{count} epoch{'s' * (count > 1)}"


def _show_budget(question: Question, allowed: Budget, as_json: bool) -> None:
    if as_json:
        from dataclasses import asdict

        print(json.dumps(asdict(allowed), indent=1))
    else:
        print(_budget_text(question, allowed))


def _finish(
    question: Question, found: Compression, place: Place, command: str, export: Path | None, as_json: bool,
) -> None:
    """Write record and page of a search, then its export, and show the answer, the table and where all of it lies."""
    from spaceless import records
    from spaceless.compress import NAME, plan
    from spaceless.console import table
    from spaceless.report import answers, write_report
    from spaceless.tradeoff import compression_table

    trials = [trial for each in found.tried for trial in question.trials(each.k, place)]
    (place.out / f"{NAME}.study.json").unlink(missing_ok=True)  # of an earlier search, whose trials stay
    place.store.write_study(plan(question, trials, command, found).manifest())
    record = place.out / f"{NAME}.json"
    records.write(record, found.model_dump(mode="json"))
    page = place.out / f"{NAME}.html"
    write_report([place.out], html=page, study=NAME)
    network = chosen_run(place, found)
    if network is not None and export is not None:
        network = _export(network, export, place)
    told = answers([place.out], NAME)
    if as_json:
        document: dict[str, Any] = found.model_dump(mode="json") | {
            "answers": told, "network": network and str(network), "report": str(page)}
        json.dump(document, sys.stdout, indent=1)
        print()
        return
    made = compression_table(found)
    heads = [" ".join(filter(None, (c.name, c.about and f"({c.about})"))) + ("" if c.numeric else ":")
             for c in made.columns]
    table(made.title, heads, made.lines)
    for line in told:
        print(line)
    for path in filter(None, (network, record, page)):
        print(path)


def chosen_run(place: Place, found: Compression) -> Path | None:
    """Return the folder that holds the chosen network of the first seed with its weights; None if none was chosen."""
    return place.out / found.at(found.chosen).ids[0] if found.chosen else None
