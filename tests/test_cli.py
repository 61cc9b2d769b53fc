"""The command line as a script sees it: exit status, one JSON document, errors of three lines, nothing left behind."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from commands import STUDY, Commands, is_an_error, train, tree
from spaceless import cli
from spaceless.errors import InputError, Interrupted, SpacelessError
from spaceless.paper import Experiment, Planned, experiments
from spaceless.studies import Plan
from spaceless.trial import RECIPES, Trial

torch.set_num_threads(1)

VERBS = ("demo", "inspect", "train", "study", "compress", "evaluate", "export", "paper", "calibrate", "report", "data",
         "bench")


@pytest.fixture
def spaceless(tmp_path, monkeypatch, capsys) -> Commands:
    return Commands(tmp_path, monkeypatch, capsys)


def document(out: str) -> object:
    """Return the one JSON document in `out`; anything beside it is an error."""
    return json.loads(out)


# --- help ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_explains_itself_with_an_example(spaceless, verb):
    status, out, err = spaceless(verb, "--help")
    assert (status, err) == (0, "")
    assert "Example" in out
    assert f"spaceless {verb}" in out.split("Example", 1)[1]


def test_the_overview_names_every_verb(spaceless):
    status, out, _ = spaceless("--help")
    assert status == 0
    assert [verb for verb in VERBS if verb not in out] == []
    assert spaceless("--version")[:2] == (0, "0.1.0\n")


def test_help_and_the_paper_need_no_torch():
    program = ("import sys; sys.argv = ['spaceless', {words}]\nfrom spaceless.cli import main\n"
               "try: main()\nexcept SystemExit as end: assert not end.code\nassert 'torch' not in sys.modules")
    for words in ("'train', '--help'", "'paper', '--json'"):
        subprocess.run([sys.executable, "-c", program.format(words=words)], check=True, stdout=subprocess.DEVNULL)


def test_debug_shows_where_it_happened(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["spaceless", "--debug", "inspect", "vgg61"])
    with pytest.raises(InputError):
        cli.main()


# --- other ends ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("error", "status"), [
    (SpacelessError("x", found="a", expected="b", cure="c"), 1), (RuntimeError("many\nlines\nof\ntext\n"), 1),
    (OSError(28, "No space left on device", "runs/x"), 1), (PermissionError(13, "Permission denied", "x"), 2),
    (AssertionError(), 1), (MemoryError(), 1),
])
def test_whatever_breaks_ends_in_three_lines_and_a_status(spaceless, monkeypatch, error, status):
    def broken(*_args, **_kwargs):
        raise error

    monkeypatch.setattr("spaceless.inspection.inspect_model", broken)
    is_an_error(*spaceless("inspect", "vgg16"), expected=status)
    with pytest.raises(type(error)):
        spaceless("inspect", "vgg16", "--debug")


@pytest.mark.parametrize(("error", "status"), [
    (Interrupted(signal.SIGINT), 130), (Interrupted(signal.SIGTERM), 143), (KeyboardInterrupt(), 130),
])
def test_an_interruption_has_the_status_of_its_signal(spaceless, monkeypatch, error, status):
    def interrupted(*_args, **_kwargs):
        raise error

    monkeypatch.setattr("spaceless.study.run_study", interrupted)
    found, out, err = spaceless(*train())
    assert (found, out) == (status, "")
    assert err.startswith("interrupted")
    assert "Traceback" not in err


@pytest.mark.parametrize(("words", "message"), [
    ("evaluate", "found no RUN, expected the folder of a finished trial; write for example `spaceless evaluate runs/"),
    ("inspect", "found no MODEL, expected `vgg16`, `resnet50`, "),
    ("compress vgg16", "found no --data, expected the name or path of a data set; write for example `spaceless"),
    ("train --model vgg16", "expected the name or path of a data set: `cifar100`, `arrangement-8`, `my/images`; "),
    ("train --model", "parameter --model requires an argument."),
    ("studdy fig2-vgg16", "command: found 'studdy', expected one of inspect, evaluate, export, paper, report, data, "),
    ("studdy fig2-vgg16", "train, study, compress; did you mean 'study'?"),
    ("inspect vgg16 -k 2", "-k 2: found no --method, expected one of shuffle, gap_fc, "),
    ("train --model vgg16 --data texture --only 2", "--only 2: found no --method, expected one of "),
    ("study fig2-vgg16 --dry-run --jobs 0", "--jobs: found 0, expected at least 1"),
    ("study fig2-vgg16 --dry-run --gpus 1", "--gpus: found 1 without --ray, expected a cluster"),
])
def test_what_is_missing_or_misspelt_is_named_with_an_example(spaceless, words, message):
    status, out, err = spaceless(*words.split())
    is_an_error(status, out, err)
    assert message in " ".join(err.split())


@pytest.mark.parametrize("words", ["'paper', '--json'", "'paper'"])  # ours and rich's way to print
def test_a_reader_that_has_seen_enough_is_no_error(words):
    program = f"import sys; sys.argv = ['spaceless', {words}]\nfrom spaceless.cli import main\nmain()"
    process = subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    process.stdout.read(10)
    process.stdout.close()
    error = process.stderr.read()
    assert process.wait() in (0, 141)
    assert error == b""


# --- what is printed -------------------------------------------------------------------------------------------------


def test_inspect_for_programs(spaceless):
    status, out, err = spaceless(
        "inspect", "vgg16", "--classes", "100", "--image-size", "32", "--method", "conv1x1", "-k", "5", "--json")
    found = document(out)
    assert (status, err) == (0, "")
    assert found["params"] == 23529636
    names = ("model", "classes", "image_size", "method", "k", "params", "macs", "units")
    assert {name: found[name] for name in names[:5]} == {
        "model": "vgg16", "classes": 100, "image_size": 32, "method": "conv1x1", "k": 5}
    assert set(names) <= set(found)
    assert [u["index"] for u in found["units"]] == list(range(1, 14))
    assert [u["index"] for u in found["units"] if u["modified"]] == [9, 10, 11, 12, 13]
    for unit in found["units"]:
        assert {"index", "name", "kind", "out_size", "receptive_field", "params", "modified"} <= set(unit)


@pytest.mark.parametrize(("words", "params"), [
    (("resnet50", "--classes", 100, "--image-size", 32, "--method", "conv1x1", "-k", 9), 14268068),
    (("resnet152", "--method", "conv1x1", "-k", 19), 45512744),
])
def test_parameter_counts_of_the_issue(spaceless, words, params):
    assert document(spaceless("inspect", *words, "--json")[1])["params"] == params


def test_inspect_for_people(spaceless):
    told = spaceless("inspect", "chain:4-M-8", "--classes", "3", "--method", "conv1x1", "-k", "1", "--latency")[1]
    lines = [line.split() for line in told.splitlines()]
    assert ["2", "features.4", "Conv2d", "24x24", "8", "2", "-3", "40", "conv1x1"] in lines  # as in the table's head
    assert "activations" in told
    assert "batch size 1, threads" in told
    assert [line[0] for line in lines[-3:]] == ["before", "after", lines[-1][0]]
    assert told.splitlines()[-1].endswith(", pass by pass")
    assert max(map(len, map(str.rstrip, told.splitlines()))) <= 110


def test_inspect_names_what_ends_the_receptive_fields(spaceless):
    told = spaceless("inspect", "timm:edgenext_xx_small")[1]
    assert "no receptive field behind: matmul in stages.1.blocks.1.xca" in told


def test_inspect_one_unit_alone(spaceless):
    found = document(spaceless("inspect", "vgg16", "--method", "conv1x1", "--only", 5, "--json")[1])
    assert [u["index"] for u in found["units"] if u["modified"]] == [5]


def test_the_paper_is_checked_against_our_counts(spaceless):
    status, out, _ = spaceless("paper", "--check", "--json")
    rows = document(out)
    assert status == 0
    assert len(rows) == 30
    differing = [row for row in rows if not row["agrees"]]  # the paper's own slip
    assert [(row["network"], row["k"], row["params"]) for row in differing] == [("squeezenet1_0", 2, 986280)]
    assert differing[0]["finding"]


def test_a_count_that_differs_without_a_reason_fails_the_check(spaceless, monkeypatch):
    class Wrong:
        finding = None

    monkeypatch.setattr("spaceless.inspection.check_counts", lambda: [(Wrong(), 1, False)])
    monkeypatch.setattr("spaceless.show_paper.counts", lambda found, as_json: None)
    is_an_error(*spaceless("paper", "--check"), expected=1)


@pytest.mark.parametrize("words", [("paper",), ("paper", "table1"), ("data",), ("data", "texture"),
                                   ("inspect", "chain:4-M-8"), ("study", "mine.toml", "--dry-run")])
def test_people_get_tables_and_programs_get_json(spaceless, tmp_path, words):
    (tmp_path / "mine.toml").write_text(STUDY)
    status, out, err = spaceless(*words)
    assert (status, err) == (0, "")
    assert out.strip()
    with pytest.raises(json.JSONDecodeError):
        document(out)
    status, out, err = spaceless(*words, "--json")
    assert (status, err) == (0, "")
    document(out)
    assert tree(tmp_path) == {"mine.toml"}


def test_a_training_from_end_to_end(spaceless, tmp_path):
    status, out, _ = spaceless(*train(method="shuffle", k=1, repeats=2, json=True))
    outcome = document(out)
    assert status == 0
    assert (outcome["status"], outcome["trial"]["k"], len(outcome["evaluations"][0]["top1"])) == ("finished", 1, 2)
    (folder,) = (tmp_path / "runs").iterdir()
    stored = json.loads((folder / "outcome.json").read_text())
    assert stored.pop("checksum").startswith("sha256:")
    assert stored == outcome

    status, out, _ = spaceless(*train(method="shuffle", k=1, repeats=2))
    assert status == 0  # it is finished: shown, not trained
    assert out.splitlines()[-1] == str(Path("runs") / folder.name)

    status, out, _ = spaceless("evaluate", folder, "--shuffle-last", 2, "--repeats", 3, "--json")
    found = document(out)
    assert (status, len(found["top1"]), found["shuffle_last"]) == (0, 3, 2)
    assert found["mean"] == pytest.approx(sum(found["top1"]) / 3)
    assert [p.name for p in (folder / "evaluations").iterdir()] == ["shuffle-last-2-repeats-3.json"]
    is_an_error(*spaceless("evaluate", folder, "--shuffle-last", 3))
    assert "--shuffle-last: found 3, expected 0 to 2" in spaceless("evaluate", folder, "--shuffle-last", 3)[2]
    is_an_error(*spaceless("evaluate", folder, "--shuffle-last", 0, "--repeats", 5))
    is_an_error(*spaceless("evaluate", folder, "--repeats", 0))

    status, out, err = spaceless("evaluate", folder, "--profile", "--test-images", 20, "--repeats", 2)
    assert (status, err) == (0, "")
    assert "top-1 in % on 20 test images, 2 passes each; clean" in out
    assert [line.split()[:2] for line in out.splitlines() if "features." in line] == [
        ["1", "features.0"], ["2", "features.4"]]
    found = document(spaceless("evaluate", folder, "--profile", "--json")[1])
    assert (found["repeats"], [unit["k"] for unit in found["units"]]) == (10, [2, 1])
    assert len(list((folder / "profiles").iterdir())) == 2
    is_an_error(*spaceless("evaluate", folder, "--profile", "--shuffle-last", 1))
    is_an_error(*spaceless("evaluate", folder, "--profile", "--repeats", 0))
    is_an_error(*spaceless("evaluate", folder, "--profile", "--test-images", 0))

    status, out, _ = spaceless("report", "runs", "--html", "page.html", "--csv", "rows.csv")
    assert status == 0
    assert "<html" in (tmp_path / "page.html").read_text()[:500].lower()
    assert "Where space matters in chain:" in (tmp_path / "page.html").read_text()
    assert (tmp_path / "rows.csv").read_text().count("\n") >= 2
    status, out, _ = spaceless("report", "runs", "--figures", "pictures")
    assert (status, out.strip()) == (0, "pictures")
    assert {p.suffix for p in (tmp_path / "pictures").iterdir()} == {".svg", ".png", ".csv", ".md"}


def test_a_study_from_end_to_end(spaceless, tmp_path):
    (tmp_path / "mine.toml").write_text(STUDY)
    status, out, err = spaceless("study", "mine.toml", "--json")
    assert status == 0, err
    found = document(out)
    assert len(found["outcomes"]) == len(found["planned"]) == 2
    page = Path(found["report"])
    assert "<html" in page.read_text()[:500].lower()
    status, out, err = spaceless("report", "runs", "--live", "--html", "live.html")  # all have ended: it does not wait
    assert (status, out.strip()) == (0, "live.html")
    assert "2 of 2 trials have ended, nothing is left to do." in err
    stamps = {p: p.stat().st_mtime_ns for p in (tmp_path / "runs").rglob("*.json")}
    assert len([p for p in stamps if p.name == "shuffle-last-0-repeats-1.json"]) == 1  # the baseline is clean anyway
    status, out, _ = spaceless("study", "mine.toml")
    assert status == 0
    assert out.splitlines()[-1] == str(page)
    assert {p: p.stat().st_mtime_ns for p in stamps if p.name != "mine.study.json"} == {
        p: stamp for p, stamp in stamps.items() if p.name != "mine.study.json"}


def test_a_dry_run_of_everything_heads_each_study_by_question_command_and_cost(spaceless, monkeypatch, tmp_path):
    two = {name: experiments()[name] for name in ("table2-left", "fig10-channel-shuffle")}
    monkeypatch.setattr("spaceless.studies.experiments", lambda: two)
    monkeypatch.setattr("spaceless.estimate._images_per_second", lambda *_: 100.0)
    status, out, err = spaceless("study", "all", "--preset", "paper", "--dry-run", "--k-step", 13)
    assert status == 0, err
    assert "Does a network bear a random order of its channels" in out
    assert "$ spaceless study fig10-channel-shuffle --preset paper --k-step 13" in out
    assert "not here, sizes as published: cifar100" in out
    assert "vgg16 x 1 at 32 pixels 100 images/s" in out
    # K = 0 and 3 of the table, 0, 1 (printed) and 13 of the figure: 200 epochs of 50,000 images at 100/s are 28 h each
    assert "together, with each trial once: 4 trials, 4 still to run" in out
    assert "about 5 days on this machine" in out
    made = document(spaceless("study", "table2-left", "--dry-run", "--json")[1])
    assert made["estimate"]["seconds"] == pytest.approx((2 * 1e7 + (201 + 201) * 1e4 / 3) / 100)
    assert tree(tmp_path) == set()


def test_everything_at_once_ends_with_one_page_of_all_sections(spaceless, monkeypatch, tmp_path):
    def tiny(name: str, method: str) -> Experiment:
        series = {"model": "chain:4-M-8", "data": "cifar100", "methods": [method], "ks": "0-2"}
        return Experiment.model_validate({"name": name, "title": f"With {method}", "series": [series]})

    two = {"first": tiny("first", "shuffle"), "second": tiny("second", "conv1x1")}
    for room in ("paper", "studies", "report"):
        monkeypatch.setattr(f"spaceless.{room}.experiments", lambda: two)
    words = ("study", "all", "--preset", "smoke", "--train-images", 64, "--test-images", 20, "--epochs", 1,
             "--width", 1.0, "--k-step", 2, "--repeats", 2)
    status, out, err = spaceless(*words)
    assert status == 0, err
    assert "made set texture stands in: first-smoke" in err
    page = Path(out.splitlines()[-1])
    assert page.name.startswith("all-smoke")
    text = page.read_text()
    assert "With shuffle" in text and "With conv1x1" in text
    assert text.count("texture instead of cifar100") >= 2
    assert len(list((tmp_path / "runs").glob("*.study.json"))) == 2
    stamps = {p: p.stat().st_mtime_ns for p in (tmp_path / "runs").glob("*/outcome.json")}
    assert len(stamps) == 3  # the baseline is one, K = 1 is left out, K = 2 is another trial for each method
    assert spaceless(*words)[0] == 0
    assert {p: p.stat().st_mtime_ns for p in (tmp_path / "runs").glob("*/outcome.json")} == stamps


def test_a_failed_trial_fails_the_study_after_its_report(spaceless, tmp_path):
    (tmp_path / "mine.toml").write_text(STUDY)
    made = document(spaceless("study", "mine.toml", "--dry-run", "--json")[1])
    lost = Trial.model_validate(made["planned"][1]["trial"]).id
    (tmp_path / "runs" / lost).mkdir(parents=True)
    (tmp_path / "runs" / lost / "states").write_text("in the way")
    status, out, err = spaceless("study", "mine.toml")
    assert status == 1
    assert out.splitlines()[-1].endswith(".html")
    assert "error: 1 of 2 trials" in err
    assert "Traceback" not in err


@pytest.mark.parametrize(("verb", "wrong"), [("demo", []), ("calibrate", ["texture shuffle"])])
def test_a_calibration_ends_with_its_report_and_fails_if_it_differs(spaceless, monkeypatch, verb, wrong):
    recipe = RECIPES["control"].model_copy(update={"epochs": 1, "batch_size": 16, "precision": "fp32"})
    trials = [Trial(model="chain:4-M-8", data="texture", method=method, k=k, recipe=recipe, train_images=64,
                    test_images=40, repeats=2) for method, k in (("baseline", 0), ("shuffle", 1))]
    truth = {"data": "texture", "method": "shuffle", "learnable_k": 1, "chance_from_k": None, "chance": 25.0}
    plan = Plan("calibration-tiny", "Tiny", "?", f"spaceless {verb}", tuple(Planned(trial=t) for t in trials),
                preset="smoke", kind="calibration", truth=(truth,))
    monkeypatch.setattr("spaceless.calibrate.plan_calibration", lambda preset, command: plan)
    monkeypatch.setattr("spaceless.report.disagreements", lambda *_args: wrong)
    found, out, err = spaceless(verb, "--jobs", 1, *(("--json",) if verb == "calibrate" else ()))
    assert found == len(wrong), err
    page = Path(document(out)["report"] if verb == "calibrate" else out.splitlines()[-1])
    assert "<html" in page.read_text()[:500].lower()
    assert ("error: " in err) == bool(wrong)


def test_data_that_are_there_are_found_and_verified(spaceless, tmp_path):
    (tmp_path / "data").mkdir()
    labels = np.arange(12) % 3
    images = np.random.default_rng(0).integers(0, 256, (12, 8, 8, 3), dtype=np.uint8)
    np.savez(tmp_path / "data" / "mine.npz", train_images=images, train_labels=labels, test_images=images[:6],
             test_labels=labels[:6])
    status, out, err = spaceless("data", "mine", "--json")
    assert (status, err, document(out)["kind"]) == (0, "", "npz")
    status, out, err = spaceless("data", "mine", "--verify", "--json")
    assert status == 0, err
    document(out)
    assert "mine" in [row["name"] for row in document(spaceless("data", "--json")[1])]
    assert spaceless("data", "mine", "--data-root", tmp_path / "elsewhere")[0] == 2
