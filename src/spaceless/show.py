"""What the verbs print: results for people as tables, for programs as one JSON document on standard output."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from spaceless.console import duration, number, screen, table
from spaceless.numerals import listed
from spaceless.paper import Planned

if TYPE_CHECKING:
    from spaceless.estimate import Estimate
    from spaceless.sensitivity import Curve, Sensitivity
    from spaceless.studies import Plan
    from spaceless.study import Tally
    from spaceless.trial import Evaluation, Outcome, Trial


def _json(value: Any) -> None:
    print(json.dumps(value, indent=1))


def inspection(found: dict[str, Any], as_json: bool) -> None:
    """Show what `inspect_model` found."""
    if as_json:
        _json(found)
        return
    width = "" if found["width"] == 1 else f" x {found['width']:g}"
    which = f"unit {found['only']} alone" if found["only"] else f"K = {found['k']}"
    down = "" if found["downsample"] in (None, "avg") else f", down-sampling {found['downsample']}"
    title = (f"{found['model']}{width}, {found['classes']} classes, {found['image_size']} pixels, "
             f"{found['method']}, {which}{down}")
    table(title, ("unit", "name:", "kind:", "map", "field", "stride", "offset", "parameters", "changed:"), [
        (str(u["index"]), u["name"], u["kind"], "x".join(map(str, u["out_size"])), number(u["receptive_field"], 0),
         _plain(u["receptive_stride"]), number(u["receptive_offset"], 0), number(u["params"], 0),
         found["method"] if u["modified"] else "")
        for u in found["units"]
    ])
    print(f"{found['params']:,} parameters; per image {found['macs']:,} multiply-adds, "
          f"{found['activations']:,} activations")
    if any(u["modified"] for u in found["units"]):
        print("map and receptive field are those before the change")
    print("receptive field in pixels: size, stride, first pixel of the first position (negative: in the padding)")
    if any(u["receptive_aligned"] is False for u in found["units"]):
        first = next(u["index"] for u in found["units"] if u["receptive_aligned"] is False)
        print(f"from unit {first} on branches of differing strides meet: the largest size, the mean stride")
    if found["unknown_operations"]:
        print(f"no receptive field behind: {_few(found['unknown_operations'])}")
    if found["head"]:
        print(found["head"])
    if found["not_counted"]:
        print(f"not counted in the multiply-adds: {', '.join(found['not_counted'])}")
    if "latency" in found:
        _latency(found["latency"])


def _plain(value: float | None) -> str:
    return "–" if value is None else f"{value:g}"


def _latency(found: dict[str, Any]) -> None:
    """Show measured times, with the lower and upper quartile of repeated passes behind each median."""
    print(f"batch size {found['batch']}, threads {found['threads']}, "
          f"median (quartiles) of {found['before']['repeats']} passes on the processor:")
    for name in ("before", "after"):
        if name in found:
            low, middle, high = (1000 * found[name][part] for part in ("lower", "median", "upper"))
            print(f"  {name} {middle:.2f} ms ({low:.2f} to {high:.2f})")
    if "ratio" in found:
        ratio = found["ratio"]
        print(f"  {ratio['median']:.2f} times as fast ({ratio['lower']:.2f} to {ratio['upper']:.2f}), pass by pass")


def outcome(found: Outcome, folder: Path, as_json: bool) -> None:
    """Show one trial's outcome and where it is stored."""
    if as_json:
        _json(found.model_dump(mode="json"))
        return
    evaluation_text = "no accuracy" if not found.evaluations else _accuracy(found.evaluations[0], found.trial)
    print(f"{found.trial.label}: {found.status}, {evaluation_text}")
    print(f"{number(found.params, 0)} parameters, {number(found.macs, 0)} multiply-adds per image, "
          f"{len(found.changes)} modules changed, {duration(found.seconds or 0)}, {found.precision}")
    if found.data is not None and found.data.note:
        print(f"{found.data.name}: {found.data.note}")
    for note in found.notes:
        print(note)
    print(folder)


def evaluation(found: Evaluation, trial: Trial, as_json: bool) -> None:
    """Show an evaluation of `trial`'s network.

    `mean` and `spread` (None for a single pass) are in percent and percentage points.
    """
    if as_json:
        _json(found.model_dump(mode="json") | {"mean": found.mean, "spread": found.spread})
    else:
        print(_accuracy(found, trial))


def export(found: dict[str, Any], folder: Path, as_json: bool) -> None:
    """Show what `export_run` recorded, the original beside it, and where it is."""
    if as_json:
        _json(found | {"folder": str(folder)})
        return
    columns = {name: found[name] for name in ("original", "exported") if found[name]}

    def milliseconds(times: dict[str, float]) -> str:
        low, middle, high = (number(1000 * times[part]) for part in ("lower", "median", "upper"))
        return f"{middle} ms ({low} to {high})"

    rows: dict[str, Callable[[dict[str, Any]], str]] = {
        "top-1 in %": lambda each: number(each["top1"]), "parameters": lambda each: number(each["params"], 0),
        "multiply-adds": lambda each: number(each["macs"], 0),
        "model.safetensors, bytes": lambda each: number(each["safetensors_bytes"], 0),
        "model.onnx, bytes": lambda each: number(each["onnx_bytes"], 0),
        "PyTorch": lambda each: milliseconds(each["latency"]["pytorch"]),
        "onnxruntime": lambda each: milliseconds(each["latency"]["onnxruntime"]),
    }
    table(found["name"], (":", *columns), [(what, *map(text, columns.values())) for what, text in rows.items()])
    print(f"times: median (quartiles) for one image, threads {found['threads']}")
    if fast := found["times_as_fast"]:
        print(f"{fast['pytorch']['median']:.2f} times as fast in PyTorch, {fast['onnxruntime']['median']:.2f} in "
              "onnxruntime, pass by pass")
    checks = found["checks"]
    print(f"checked on {checks['images']:,} images: ONNX within {checks['largest_difference']:.2g} of PyTorch, "
          f"{checks['same_class']:,} of the same class; rebuilt bit for bit")
    print(folder)


def sensitivity(found: Sensitivity, trial: Trial, as_json: bool) -> None:
    """Show a profile of `trial`'s network: unit by unit from the input on, each value with its spread over passes."""
    if as_json:
        _json(found.model_dump(mode="json"))
        return

    def passes(curve: Curve) -> str:
        return number(curve.mean) + ("" if curve.spread is None else f" ± {curve.spread:5.2f}")

    often = "1 pass" if found.repeats == 1 else f"{found.repeats} passes"
    table(f"top-1 in % on {found.images:,} {trial.tested_on}, {often} each; clean {found.clean:.2f}",
          ("unit", "name:", "map", "alone", "K", "this and all behind it"),
          [(str(unit.index), unit.name, "x".join(map(str, unit.map)), passes(unit.alone), str(unit.k),
            passes(unit.last)) for unit in found.units])
    print("map: what enters the unit and is shuffled"
          + ("; ±: standard deviation over the passes" if found.repeats > 1 else ""))


def _accuracy(found: Evaluation, trial: Trial) -> str:
    spread = "" if found.spread is None else f" ± {found.spread:.2f} over {len(found.top1)} passes"
    return f"top-1 {found.mean:.2f} %{spread} on {found.images:,} {trial.tested_on}"


def plans(
    whole: Plan, studies: Sequence[Plan], estimate: Callable[[Plan], Estimate], as_json: bool,
) -> None:
    """Show what studies would run, each headed by what it asks, its command and what it costs, and the whole's cost."""
    estimates, together = [estimate(study) for study in studies], estimate(whole)
    if as_json:
        made = [s.manifest() | {"estimate": dataclasses.asdict(e)} for s, e in zip(studies, estimates, strict=True)]
        _json({"studies": made, "estimate": dataclasses.asdict(together)} if len(made) > 1 else made[0])
        return
    for study, each in zip(studies, estimates, strict=True):
        print(f"{study.name}: {study.title}\n{study.asks}\n$ {study.command}".replace("\n\n", "\n"))
        grouped: dict[tuple[str, ...], list[Planned]] = {}
        for planned in study.planned:
            grouped.setdefault(_kind(planned), []).append(planned)
        table("", ("model:", "data:", "method:", "K:", "else:", "further tests:", "epochs", "seeds", "trials"), [
            (*kind[:3], _ks(group), *kind[3:], str(group[0].trial.recipe.epochs),
             listed({each.trial.seed for each in group}), str(len(group)))
            for kind, group in grouped.items()
        ])
        print(_cost(each), end="\n\n" if len(studies) > 1 else "\n")
    if len(studies) > 1:
        print(f"together, with each trial once: {_cost(together)}")


def _kind(planned: Planned) -> tuple[str, ...]:
    """Return what the trials of one line of a plan share: model, data, method, what else, further tests."""
    trial = planned.trial
    others = (
        trial.downsample if trial.downsample != "avg" else "", f"strip {trial.strip}" if trial.strip else "",
        f"{trial.image_size} pixels" if trial.image_size else "",
        "no augmentation" if trial.recipe.augment == "none" else "", "alone" if trial.only is not None else "",
    )
    shuffled = listed([last for last in planned.evaluations if last])
    tests = ("clean" if 0 in planned.evaluations else "", f"last {shuffled} shuffled" if shuffled else "")
    return (trial.model, trial.data, trial.method, ", ".join(filter(None, others)), ", ".join(filter(None, tests)))


def _ks(group: Sequence[Planned]) -> str:
    single = {each.trial.only for each in group if each.trial.only is not None}
    return f"unit {listed(single)}" if single else listed({each.trial.k for each in group})


def _cost(found: Estimate) -> str:
    text = f"{found.trials} trials, {found.to_run} still to run: {_operations(found.macs)} of training"
    if found.seconds is not None and found.to_run:
        text += f", about {duration(found.seconds)} on this machine, one trial after another"
        speeds = [f"{kind} {speed:,.0f} images/s" for kind, speed in found.probes.items()]
        text += f"\nmeasured: {'; '.join(speeds)}"
    if found.absent:
        text += f"\nnot here, sizes as published: {', '.join(found.absent)}"
    return text


def stand_ins(studies: Sequence[Plan]) -> None:
    """Say on standard error which studies are run on made data because their own are not here."""
    names = [study.name for study in studies if any(each.trial.data == "texture" for each in study.planned)]
    if names and len(studies) > 1:
        screen().print(f"data not found, the made set texture stands in: {', '.join(names)}", markup=False)


def _operations(macs: int) -> str:
    """Return a number of multiply-adds in the largest unit that leaves a whole part."""
    power = min(6, max(2, (len(str(macs)) - 1) // 3))
    return f"{macs / 1000**power:,.1f} {'MGTPE'[power - 2]}MAC"


def study(made: Plan, names: Sequence[str], out: Path, page: Path, tally: Tally, as_json: bool) -> None:
    """Show what came of a study: the answers, and the path of its report as the last line."""
    from spaceless.report import answers

    told = answers([out], names)
    if as_json:
        outcomes = [found.model_dump(mode="json") for found in (*tally.known, *tally.ran)]
        _json(made.manifest() | {"report": str(page), "answers": told, "outcomes": outcomes})
        return
    for line in told:
        print(line)
    print(page)


def known_data(data_root: Path | None, as_json: bool) -> None:
    """Show the data sets that are known by name, where each was found or looked for, and the made ones."""
    from spaceless.data.find import known

    found = known(data_root)
    made = (("texture", "the class is a local pattern"),
            ("arrangement-D", "the class is the direction of one mark from another, D pixels away"))
    if as_json:
        _json([
            {"name": k.name, "found": k.found and str(k.found.path), "kind": k.found and k.found.kind,
             "places": [str(place) for place in k.places]} for k in found
        ] + [{"name": name, "found": "made by code", "kind": "made", "places": []} for name, _ in made])
        return
    table("Data sets", ("name:", "found:", "looked for:"), [
        (k.name, f"{k.found.path} ({k.found.kind})" if k.found else "–",
         "" if k.found else "\n".join(map(str, k.places)))
        for k in found
    ] + [(name, "made by code", what) for name, what in made])


def one_data_set(
    name: str, data_root: Path | None, *, verify: bool, download: bool, image_size: int | None, as_json: bool,
) -> None:
    """Show one data set: where it is, and with `verify` what is in it."""
    from spaceless.data.controls import make_control
    from spaceless.data.find import download as fetch
    from spaceless.data.find import find
    from spaceless.data.verify import verify as check
    from spaceless.errors import DataError, InputError
    from spaceless.trial import is_control

    if is_control(name):
        given = {"--verify": verify, "--download": download, "--image-size": image_size is not None}
        if unused := [flag for flag, is_given in given.items() if is_given]:
            raise InputError(f"data {name}", found=" and ".join(unused), expected="none of these: it is made by code",
                             cure="give its name alone")
        facts = make_control(name).facts
        if as_json:
            _json(facts.model_dump(mode="json"))
        else:
            print(f"{name}: made by code, {facts.classes} classes, {facts.image_size} x {facts.image_size} pixels, "
                  f"{facts.train_images:,} + {facts.test_images:,} images")
        return
    if image_size is not None and image_size < 1:
        raise InputError("--image-size", found=image_size, expected="at least 1 pixel", cure="choose a larger size")
    if image_size is not None and not verify:
        raise InputError("--image-size", found="no --verify", expected="both, since only reading needs a size",
                         cure="add --verify, or leave it out")
    place = fetch(name, data_root) if download else find(name, data_root)
    if not verify:
        if as_json:
            _json({"name": place.name, "found": str(place.path), "kind": place.kind})
        else:
            print(f"{place.name}: {place.path} ({place.kind}); --verify reads and checks it")
        return
    facts_found = check(name, data_root, image_size)
    if as_json:
        _json(facts_found.to_json())
    else:
        print("\n".join(facts_found.lines()))
    if not facts_found.sound:
        raise DataError(
            f"data {name}", found=_few(facts_found.problems), expected="what its name promises",
            cure="replace the set, or call it by another name",
        )


def _few(problems: Sequence[str]) -> str:
    """Return the first problems as one line: all of them were shown before."""
    more = f"; and {len(problems) - 3:,} more" if len(problems) > 3 else ""
    return "; ".join(problems[:3]) + more
