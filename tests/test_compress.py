"""The search for the largest K by trainings: found where geometry says it is, resumed, reused, shown; its options."""

from __future__ import annotations

import json
import re
import shutil
import signal
from pathlib import Path

import pytest
import torch

from commands import Commands, is_an_error, tree
from spaceless import attempts, records, retest
from spaceless.calibrate import regime
from spaceless.errors import SpacelessError
from spaceless.models import build_model
from spaceless.receptive import usable_field
from spaceless.store import WEIGHTS, read_outcome
from spaceless.surgery import remove_spatial
from spaceless.trial import RECIPES

torch.set_num_threads(1)

NET, DATA = "chain:16-M-24-M-32-32", "arrangement-4"
OPTIONS = {"data": DATA, "recipe": "control", "precision": "fp32", "method": "gap_fc", "tolerance": 5,
           "train-images": 2048, "test-images": 400, "holdout": 0.25, "epochs": 4}
TINY = {"data": DATA, "recipe": "control", "precision": "fp32", "train-images": 64, "test-images": 40, "epochs": 1,
        "batch-size": 16, "holdout": 0.25}


def words(model: str = NET, options: dict = OPTIONS, **changed: object) -> tuple[str, ...]:
    given = options | {name.replace("_", "-"): value for name, value in changed.items()}
    return ("compress", model, *(str(word) for name, value in given.items() if value is not None
                                 for word in ((f"--{name}",) if value is True else (f"--{name}", value))))


@pytest.fixture
def command(tmp_path, monkeypatch, capsys) -> Commands:
    return Commands(tmp_path, monkeypatch, capsys)


@pytest.fixture(scope="module")
def searched(tmp_path_factory) -> Path:
    """Return the folder of a search that was interrupted in a training, and gone on with by the same command."""
    folder = tmp_path_factory.mktemp("searched")
    patch, fired = pytest.MonkeyPatch(), []
    run = attempts.run_trial

    def interrupted(trial, place, *, progress, **rest):
        def told(now):
            progress(now)
            if trial.k == 3 and now.share > 0.4 and not fired:
                fired.append(now.share)
                signal.raise_signal(signal.SIGTERM)

        return run(trial, place, progress=told, **rest)

    patch.setattr(attempts, "run_trial", interrupted)
    with pytest.MonkeyPatch.context() as context:
        context.chdir(folder)
        from spaceless import cli

        statuses = []
        for _ in range(2):
            context.setattr("sys.argv", ["spaceless", *words(out="runs")])
            try:
                cli.main()
                statuses.append(0)
            except SystemExit as end:
                statuses.append(end.code)
    patch.undo()
    assert statuses == [143, 0]
    assert fired
    return folder / "runs"


def record(out: Path) -> dict:
    return {key: value for key, value in json.loads((out / "compress.json").read_text()).items() if key != "checksum"}


def true_largest() -> tuple[int, int]:
    """Return the largest K that must be learnable, and the last before chance, from geometry alone."""
    with torch.device("meta"):
        model = build_model(NET, 4, 20)
    kinds = [regime(DATA, usable_field(remove_spatial(model, "gap_fc", k, image_size=20)[0], 20)) for k in range(5)]
    return kinds.index("chance") - 1 if "open" not in kinds else kinds.index("open") - 1, kinds.index("chance") - 1


def test_the_largest_k_is_the_one_of_geometry(searched):
    found = record(searched)
    assert true_largest() == (2, 2)
    assert (found["largest"], found["chosen"], found["units"]) == (2, 2, 4)
    verdicts = {each["k"]: each["verdict"] for each in found["tried"]}
    assert verdicts[2] == verdicts[1] == "within"
    assert verdicts[3] == "beyond"
    assert len(found["tried"]) <= 1 + found["budget"]


def test_every_tried_network_is_an_ordinary_trial_judged_on_images_held_out(searched):
    found = record(searched)
    ids = [each["ids"][0] for each in found["tried"]]
    assert sorted(ids) == sorted(path.parent.name for path in searched.glob("*/outcome.json"))
    for each in found["tried"]:
        outcome = read_outcome(searched / each["ids"][0] / "outcome.json")
        assert outcome.trial.holdout == 0.25
        assert (outcome.data.train_images, outcome.data.test_images) == (1536, 512)
        assert each["top1"] == pytest.approx(outcome.top1)
        assert (each["params"], each["macs"]) == (outcome.params, outcome.macs)


def test_the_test_images_are_read_for_the_baseline_and_the_chosen_network_alone(searched):
    found = record(searched)
    tested = {path.parent.name for path in searched.glob("*/tested.json")}
    assert tested == {each["ids"][0] for each in found["tried"] if each["k"] in (0, found["chosen"])}
    assert found["test"]["images"] == 400
    assert found["test"]["chosen"] > 95
    assert found["test"]["difference"] == pytest.approx(found["test"]["chosen"] - found["test"]["baseline"])


def test_an_uninterrupted_search_comes_to_the_same_and_a_second_one_trains_nothing(searched, command, tmp_path):
    status, out, err = command(*words(out="runs"))
    assert status == 0, err
    first, again = record(searched), record(tmp_path / "runs")
    for each in (first, again):
        for tried in each["tried"]:
            tried.pop("latency")
    assert first == again
    for path in searched.glob("*/outcome.json"):
        ours, theirs = (json.loads(p.read_text())["weights_sha256"] for p in (
            path, tmp_path / "runs" / path.parent.name / "outcome.json"))
        assert ours == theirs
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "runs").glob("*/*.*")}
    status, again, _ = command(*words(out="runs"))
    assert status == 0
    assert again == out
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "runs").glob("*/*.*")} == before


def test_what_is_shown_of_a_search(searched, command, monkeypatch):
    monkeypatch.chdir(searched.parent)
    status, out, err = command(*words(out="runs"))
    assert status == 0
    assert ("K = 2 of 4 units by GAP+FC stays within 5 points of the baseline with the fewest parameters of those "
            "tried and accepted: ") in out
    assert "−70\N{NO-BREAK SPACE}% parameters, −44\N{NO-BREAK SPACE}% multiply-adds.\n" in out
    assert "On the 400 test images, read once:" in out
    assert out.splitlines()[-1] == "runs/compress.html"
    assert (Path(out.splitlines()[-3]) / "model.safetensors").is_file()
    assert "at most 5 trainings: the baseline and 4 of 4 K" in err
    assert re.search(r"K = 3: -\d+\.\d\d points, at least -\d+\.\d\d: beyond; 2 more K to try at most", err)
    page = (searched / "compress.html").read_text()
    assert "The trade-off: accuracy against parameters" in page
    assert "What was tried, and whether it is within 5 points" in page
    assert "512 of 2,048 training images are held out" in page
    status, out, _ = command("report", "runs", "--markdown")
    assert status == 0
    assert "K = 2 of 4 units by GAP+FC" in out


def test_an_export_that_fails_costs_the_search_nothing(searched, command, monkeypatch):
    def broken(*_args, **_options):
        raise SpacelessError("ONNX", found="nothing", expected="a file", cure="none")

    monkeypatch.chdir(searched.parent)
    monkeypatch.setattr("spaceless.export.export_run", broken)
    before = record(searched)
    (searched / "compress.json").unlink()
    status, _, err = command(*words(out="runs"), "--export", "small")
    assert (status, "ONNX: found nothing" in err) == (1, True)
    assert record(searched) == before


def test_json_is_one_document(searched, command, monkeypatch):
    monkeypatch.chdir(searched.parent)
    status, out, _ = command(*words(out="runs"), "--json")
    assert status == 0
    told = json.loads(out)
    assert told["chosen"] == 2
    assert told["report"] == "runs/compress.html"
    assert told["answers"][0].startswith(NET)
    assert {key: told[key] for key in record(searched)} == record(searched)


def test_a_dry_run_says_what_it_may_cost_and_writes_nothing(command, tmp_path):
    status, out, _ = command(*words(), "--dry-run")
    assert status == 0
    assert out.startswith("at most 5 trainings: the baseline and 4 of 4 K, 1 seed each, 4 epochs; about ")
    status, out, _ = command(*words(seeds="0-2", budget=2), "--dry-run", "--json")
    told = json.loads(out)
    assert (told["units"], told["tries"], told["trainings"]) == (4, 2, 9)
    assert told["estimate"]["to_run"] == 9
    assert tree(tmp_path) == set()


def test_a_warm_search_starts_from_the_weights_of_a_run_elsewhere(command, tmp_path, searched):
    base = next(each["ids"][0] for each in record(searched)["tried"] if each["k"] == 0)
    status, _, err = command("compress", NET, "--data", DATA, "--method", "gap_fc", "--tolerance", 5, "--out", "warm",
                             "--from", searched / base, "--tune-epochs", 1, "--distill", "--export", "small")
    assert status == 0, err
    found = record(tmp_path / "warm")
    made = json.loads((tmp_path / "small" / "export.json").read_text())
    assert made["trial"] == found["tried"][[each["k"] for each in found["tried"]].index(2)]["ids"][0]
    assert made["exported"]["top1"] == found["test"]["chosen"]
    assert made["original"]["top1"] == found["test"]["baseline"]
    assert made["exported"]["held_out"] == next(each["top1"] for each in found["tried"] if each["k"] == 2)
    assert made["data"]["note"] == "512 of 2,048 training images are held out"
    assert found["largest"] == 2
    assert "1 epoch instead of 4" in found["warm"]
    assert "temperature 4, weight 0.5" in found["warm"]
    source = (searched / base / "outcome.json").read_bytes()
    assert (tmp_path / "warm" / base / "outcome.json").read_bytes() == source
    digest = json.loads(source)["weights_sha256"]
    for each in found["tried"][1:]:
        trial = json.loads((tmp_path / "warm" / each["ids"][0] / "trial.json").read_text())
        assert trial["start"]["weights_sha256"] == digest
        assert trial["recipe"]["learning_rate"] == pytest.approx(RECIPES["control"].learning_rate / 10)
    assert "warm" in err
    assert "at most 4 trainings: 4 of 4 K, 1 seed each, 1 epoch; about " in err


def test_a_warm_search_trains_its_own_baseline_first(command, tmp_path):
    status, out, err = command(*words(out="runs", reduction="sum", budget=1, tune_epochs=1), "--from", "baseline")
    assert status == 0, err
    found = record(tmp_path / "runs")
    (base,), (warm,) = (each["ids"] for each in found["tried"])
    trial = json.loads((tmp_path / "runs" / warm / "trial.json").read_text())
    assert (trial["k"], trial["start"]["run"], trial["start"]["reduction"]) == (1, base, "sum")
    assert (found["largest"], found["spent"], found["alone"]) == (1, True, [])  # the K before it is the baseline
    assert "a larger budget may find a larger K" in out


@pytest.mark.parametrize(("given", "extra", "must_say"), [
    ({"tolerance": -1}, (), ("--tolerance", "0 to 100")),
    ({"confidence": 0.3}, (), ("--confidence", "0.5")),
    ({"budget": 0}, (), ("--budget", "1 or more")),
    ({}, ("--export", __file__), ("test_compress.py", "a folder, or nothing")),
    ({"holdout": 1.5}, (), ("holdout", "less than 1")),
    ({"holdout": 0.01}, (), ("holdout of arrangement-4", "at least 4")),
    ({"holdout": 0.07, "tolerance": 20}, (), ("--holdout", "4 images held out of 4 classes", "larger share")),
    ({"recipe": "quick"}, (), ("recipe", "smoke")),
    ({"seeds": "3-1"}, (), ("--seeds", "0-2 or 0,1,2")),
    ({"seeds": "a"}, (), ("--seeds",)),
    ({"data": "nowhere"}, (), ("nowhere",)),
    ({}, ("--reduction", "sum"), ("--reduction", "--from baseline")),
    ({}, ("--distill",), ("--distill", "--from")),
    ({}, ("--tune-epochs", "3"), ("--tune-epochs", "--from")),
    ({}, ("--from", "baseline", "--tune-epochs", "0"), ("--tune-epochs", "1 or more")),
    ({"method": "gap_fc"}, ("--downsample", "max"), ("--downsample", "conv1x1")),
    ({}, ("--no-weights",), ("--no-weights", "weights to test")),
    ({}, ("--from", "somewhere"), ("--holdout", "leave it out")),
    ({}, ("--from", "baseline", "--jobs", "2"), ("--jobs", "seeds")),
    ({"width": 0}, (), ("width", "greater than 0")),
    ({}, ("--objective", "latency", "--ray", "local", "--processes", "2"), ("--objective latency", "--processes")),
])
def test_wrong_options_are_refused_before_anything_is_written(command, tmp_path, given, extra, must_say):
    status, out, err = command(*words("chain:4-M-8", TINY, **given), *extra)
    is_an_error(status, out, err)
    assert all(text in err for text in must_say), err
    assert tree(tmp_path) == set()


def test_a_run_to_start_from_must_be_an_unchanged_one_with_a_holdout(command, tmp_path):
    tiny = ("--model", "chain:4-M-8", *(str(w) for n, v in TINY.items() if n != "holdout" for w in (f"--{n}", v)))
    folders = {}
    for name, more in {"all images": (), "changed": ("--holdout", 0.25, "--method", "gap_fc", "-k", 1),
                       "no weights": ("--holdout", 0.25, "--no-weights")}.items():
        status, out, err = command("train", *tiny, *more)
        assert status == 0, err
        folders[name] = out.splitlines()[-1]
    for name, must_say in {"all images": "spaceless train --holdout 0.1", "changed": "changed by gap_fc",
                           "no weights": "no finished run with weights"}.items():
        told = command("compress", "chain:4-M-8", "--data", DATA, "--from", folders[name])
        is_an_error(*told)
        assert must_say in " ".join(told[2].split())
    is_an_error(*command("compress", "chain:4-M-9", "--data", DATA, "--from", folders["all images"]))
    is_an_error(*command("compress", "chain:4-M-8", "--data", DATA, "--from", "nowhere"))


def test_another_run_of_the_same_trial_is_not_taken_for_the_one_that_is_named(command, tmp_path, searched):
    """One with other weights, and one without weights: both are refused before anything trains."""
    base = next(each["ids"][0] for each in record(searched)["tried"] if each["k"] == 0)
    other = tmp_path / "runs" / base
    shutil.copytree(searched / base, other)
    _of_other_weights(other / "outcome.json")
    asked = ("compress", NET, "--data", DATA, "--method", "gap_fc", "--out", "runs", "--tune-epochs", 1)
    before = tree(tmp_path)
    told = command(*asked, "--from", searched / base)
    is_an_error(*told)
    assert "other weights of the same trial" in " ".join(told[2].split())
    assert tree(tmp_path) == before
    shutil.copy(searched / base / "outcome.json", other)
    (other / WEIGHTS).unlink()
    status, _, err = command(*asked, "--from", searched / base)
    assert status == 2
    assert "a trained network without its weights" in " ".join(err.split())
    assert retest.tested(other) is not None
    _of_other_weights(other / "tested.json")
    assert retest.tested(other) is None  # of other weights


def _of_other_weights(path: Path) -> None:
    content = json.loads(path.read_text()) | {"weights_sha256": "0" * 64}
    records.write(path, {name: value for name, value in content.items() if name != "checksum"})
