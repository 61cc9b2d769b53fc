"""The page of `spaceless bench compress`: search and sweep, warm starts, and channel pruning beside them."""

from __future__ import annotations

from typing import Any

from spaceless.bench.compress import BATCHES, PASSES, accepted
from spaceless.bench.record import made_by
from spaceless.bench.verdicts import page
from spaceless.compression import Tried


def markdown(record: dict[str, Any]) -> str:
    """Return the page of a record."""
    data, recipe = record["data"], record["recipe"]
    note = f" ({data['note']})" if data["note"] else ""
    seeds = "one seed" if len(record["seeds"]) == 1 else f"{len(record['seeds'])} seeds"
    setting = [
        f"{record['network']} on {data['name']}{note}, {data['train_images']:,} images to train on, recipe "
        f"`{recipe['name']}` with {recipe['epochs']} epochs, {seeds}, {record['precision']}, trained on "
        f"{record['trained_on']}. Tolerance {record['tolerance']:g} points at {100 * record['confidence']:g} % "
        f"confidence, judged on {data['test_images']:,} held-out training images.",
    ]
    promises = [f"- {what}: {'met' if kept else '**not met**'}" for what, kept in record["promises"].items()]
    return page(record, "Compress: the search, the warm start, and channel pruning beside them", made_by(record),
                setting, promises, *_search_part(record), *_warm_part(record), *_network_part(record))


def _search_part(record: dict[str, Any]) -> list[list[str]]:
    tried = {each["k"]: each for each in record["search"]["tried"]}
    sweep = [tried[0]] + record["sweep"]
    rows = ["| K | top-1 on the images held out, % | minus the baseline, points | at least | verdict | tried by the "
            "search |", "|---|---|---|---|---|---|"]
    rows += [
        f"| {each['k']} | {_number(each['top1'])} | {_points(each['difference'])} | {_points(each['low'])} | "
        f"{each['verdict']} | {'yes' if each['k'] in tried else ''} |" for each in sweep
    ]
    largest = accepted(Tried.model_validate(each) for each in record["sweep"])
    told = record["trainings"]
    end = (f"The sweep accepts K = {largest} with {told['sweep']} trainings, the search K = "
           f"{record['search']['largest']} with {told['search']}.")
    return [["## Search and sweep"], rows, [end]]


def _warm_part(record: dict[str, Any]) -> list[list[str]]:
    rows = [f"| start | epochs | top-1 on the images held out, % | minus from scratch, points | {_ends(record)} |",
            "|---|---|---|---|---|"]
    rows += [
        f"| {each['start']}{', distilled' if each['distilled'] else ''} | {each['epochs']} | {_number(each['top1'])} | "
        f"{_gap_cells(each, record['warm'][0])} |" for each in record["warm"]
    ]
    notes = dict.fromkeys(note for each in record["warm"] for note in each["notes"])
    return [[f"## Warm start at K = {record['warm'][0]['k']}"], rows, list(notes)]


def _network_part(record: dict[str, Any]) -> list[list[str]]:
    rows = ["| network | further epochs | parameters | multiply-adds | top-1 on the test images, % | minus the "
            f"original | {_ends(record)} | times as fast, 1 image | times as fast, 64 images |",
            "|---|---|---|---|---|---|---|---|---|"]
    rows += [
        f"| {each['network']} | {each['epochs'] or '–'} | {each['params']:,} | {each['macs']:,} | "
        f"{_number(each['test'])} | {_gap_cells(each, record['networks'][0])} | "
        + " | ".join(_ratio(each["latency"][str(batch)]) for batch in BATCHES) + " |"
        for each in record["networks"]
    ]
    first = record["networks"][0]["latency"]
    times = ", ".join(f"{1000 * first[str(batch)]['seconds']['median']:.2f} ms for {batch}" for batch in BATCHES)
    end = (f"Test images: {record['networks'][0]['test_images']:,}. The original takes {times} (fp32, "
           f"{record['threads']} threads); ratios are medians and quartiles over {PASSES} passes taken in turn.")
    return [[f"## {record['method']} at K = {record['k']} and pruning to as many parameters"], rows, [end]]


def _ends(record: dict[str, Any]) -> str:
    return f"at least and at most, each {100 * record['confidence']:g} % sure"


def _gap_cells(row: dict[str, Any], first: dict[str, Any]) -> str:
    """Return the difference to the first row and its interval; the first has none to itself."""
    if row is first:
        return "– | –"
    return f"{_points(row['difference'])} | {_points(row['low'])} to {_points(row['high'])}"


def _ratio(found: dict[str, Any]) -> str:
    each = found["times_as_fast"]
    return f"{each['median']:.2f} ({each['lower']:.2f} to {each['upper']:.2f})"


def _number(value: float | None) -> str:
    return "–" if value is None else f"{value:.2f}"


def _points(value: float | None) -> str:
    return "–" if value is None else f"{value:+.2f}"
