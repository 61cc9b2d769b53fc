"""The report: one offline page that says what was measured, whatever is in the files."""

import csv
import io
import subprocess
import sys

import pytest

from made_outcomes import calibration, manifest, outcome, store
from spaceless.errors import InputError
from spaceless.numerals import duration, listed, number, signed
from spaceless.page import html_text
from spaceless.paper import PRESETS, experiment
from spaceless.protocol import differences
from spaceless.report import answers, csv_text, gather, write_report
from spaceless.trial import RECIPES
from test_hostile_page import Elements

FIXED = "\N{NO-BREAK SPACE}"

def _study(root, accuracy, method="conv1x1", name="fig2-vgg16", **fields):
    """Store one run per accuracy, of K = 0, 1, ...; every unit saves 2 M of 34 M parameters."""
    made = [outcome(method if k else "baseline", k, seed=s, top1=t, params=34_000_000 - 2_000_000 * k)
            for k, ts in accuracy.items() for s, t in enumerate(ts)]
    store(root, *made)
    manifest(root, name, list(made), **{"experiment": name, **fields})
    return made


def test_the_answer_is_computed(tmp_path):
    _study(tmp_path, {0: (74.0, 75.0, 76.0), 5: (74.0, 74.5, 75.0), 7: (60.0, 61.0, 62.0)})
    (first, *_) = answers([tmp_path], "fig2-vgg16")
    assert first.replace(FIXED, " ") == (
        "vgg16 on cifar100: the last 5 of 13 convolutions probably need no space within 1 point (1x1 Conv): 24.0 M "
        "parameters instead of 34.0 M (−29 %), accuracy 74.50 ± 0.50 against 75.00 ± 1.00, n = 3.")


def test_the_answer_of_a_lone_run_says_how_sure_it_is(tmp_path):
    _study(tmp_path, {0: (75.0,), 1: (75.0,)})
    first, *notes = answers([tmp_path], "fig2-vgg16")
    assert "in a single run each, the last of 13 convolutions needs no space" in first
    assert first.endswith("n = 1.")
    assert "±" not in first
    # 1.96 sqrt(2) times the standard error of one, 100 sqrt(0.75 * 0.25 / 10,000) = 0.433 points
    assert "a lone run, without a spread over seeds; the 10,000 test images alone" in notes[0]
    assert "−1.2 to +1.2 points (95 %), which reaches across the tolerance" in notes[0]


@pytest.mark.parametrize(("accuracy", "said"), [
    ({0: (74.0,), 1: (60.0,), 2: (50.0,)}, "no measured K (1, 2) stays within 1 point"),
    ({1: (74.0,)}, "the baseline (K = 0) is missing"),
    ({0: (1.2,), 1: (1.1,)}, "too near to chance (1.0 %)"),
    ({0: (74.0,)}, "only the baseline is measured"),
])
def test_an_honest_answer_where_nothing_follows(tmp_path, accuracy, said):
    _study(tmp_path, accuracy)
    assert said in answers([tmp_path], "fig2-vgg16")[0].replace(FIXED, " ")


@pytest.mark.parametrize(("status", "said"), [
    ("diverged", "(K = 0) diverged (seed 0), so nothing follows."), ("failed", "(K = 0) failed (seed 0), so nothing"),
    ("missing", "(K = 0) is missing, so nothing follows yet.")])
def test_what_became_of_a_baseline_without_an_accuracy_is_told(status, said, tmp_path):
    base, changed = outcome(status="finished" if status == "missing" else status), outcome("conv1x1", 1)
    manifest(store(tmp_path, *([] if status == "missing" else [base]), changed), "own", [base, changed])
    assert said in answers([tmp_path], "own")[0]


def test_a_mark_beside_which_a_training_diverged_is_crossed_and_told(tmp_path):
    made = [outcome(), *(outcome("conv1x1", k, seed=seed, status="diverged" if k == seed == 2 else "finished")
                         for k in (1, 2) for seed in (1, 2))]
    page = gather([store(tmp_path, *made)])
    (figure, *_) = page.all_figures
    assert "Crossed: a training diverged, and the mark is the mean of the others." in figure.caption
    marks = [layer for layer in figure.spec["vconcat" if "vconcat" in figure.spec else "layer"]
             if str(layer.get("mark", {}).get("shape", "")).startswith("M")]
    (crossed,) = (figure.spec["datasets"][layer["data"]["name"]] for layer in marks)
    assert [(each["x"], each["runs"]) for each in crossed] == [(2, "n = 1, seed 1; diverged: seed 2")]
    assert "Crossed" not in gather([store(tmp_path / "sound", *made[:2])]).all_figures[0].caption


def test_larger_k_that_are_within_the_tolerance_again_are_not_denied(tmp_path):
    _study(tmp_path, {0: (74.0,), 1: (72.0,), 2: (73.9,), 3: (74.2,)})
    first, *notes = answers([tmp_path], "fig2-vgg16")
    assert "already the first measured K (1) does not stay within 1 point of the baseline's 74.00" in first
    assert "Within the tolerance again although a smaller K is not: 1x1 Conv K = 2, 3." in notes


def test_a_training_that_diverged_is_a_loss_in_the_other_figures_too(tmp_path):
    lost = outcome("shuffle", only=12, seed=1, status="diverged")
    only = [outcome(top1=74.0), *(outcome("shuffle", only=u, top1=74.0) for u in (13, 12, 1)), lost]
    fields = [outcome(field=100), outcome("conv1x1", 1, field=60),
              outcome("conv1x1", 2, field=32, status="diverged"), outcome("conv1x1", 3, field=16)]
    for name, made in (("only", only), ("field", fields)):
        manifest(store(tmp_path / name, *made), name, made, **({"x": "receptive_field"} if name == "field" else {}))
    first, *notes = answers([tmp_path / "only"], "only")
    assert "at most 1 point in units 1, 13 and" in first.replace(FIXED, " ")
    assert "A training diverged, which counts as a loss: Shuffle Conv in unit 12." in notes
    first, *notes = answers([tmp_path / "field"], "field")
    assert "down to a receptive field of 60 pixels" in first
    assert "A training diverged, which counts as a loss: 32 pixels for images of 32." in notes


def test_answers_of_the_other_figures(tmp_path):
    base = outcome(top1=74.0, extra={3: (1.0, 1.0)})
    mixed = outcome("shuffle", 3, top1=(73.5, 73.7), extra={0: (73.5,)})
    only = [outcome("shuffle", only=u, top1=t) for u, t in ((13, 73.9), (12, 73.5), (1, 30.0))]
    kept = [outcome("conv1x1", 6, strip=s, top1=61.0 - s) for s in (0, 6)]
    for name, made in (("mixed", [base, mixed]), ("only", [outcome(top1=74.0), *only]), ("kept", kept)):
        manifest(store(tmp_path / name, *made), name, made)
    said = {name: answers([tmp_path / name], name)[0].replace(FIXED, " ") for name in ("mixed", "only", "kept")}
    assert "the last 3 units shuffled only in the test, accuracy goes from 74.0 to 1.0 (chance 1.0)" in said["mixed"]
    assert "it is 73.6 with and 73.5 without shuffling" in said["mixed"]
    for name, extra, k in (("three", {1: (70.0,), 3: (20.0,), 13: (1.5,)}, 3), ("first", {1: (70.0,), 13: (1.5,)}, 1)):
        told = outcome(top1=74.0, extra=extra)
        manifest(store(tmp_path / name, told), name, [told])
        text = answers([tmp_path / name], name)[0].replace(FIXED, " ")
        assert f"from 74.0 to {extra[k][0]:.1f} (chance 1.0), with the last 13 to 1.5." in text
    assert "at most 1 point in units 12, 13 and most in unit 1 (44.0 points)" in said["only"]
    assert "with 6 modified units left, accuracy is 61.00, with none it is 55.00" in said["kept"]


def test_a_receptive_field_at_chance_is_no_finding(tmp_path):
    made = [outcome("conv1x1" if k else "baseline", k, top1=top1, field=field, image_size=size)
            for size, top1 in ((32, 1.0), (64, 70.0)) for k, field in ((0, 212), (2, 132))]
    manifest(store(tmp_path, *made), "field", made)
    first, *notes = answers([tmp_path], "field")
    assert "down to a receptive field of 132 pixels for images of 64, n = 1" in first
    assert "images of 32" not in first
    assert any("For images of 32 pixels the baseline itself is too near to chance" in note for note in notes)


def test_the_calibration_is_judged_and_shown(tmp_path):
    calibration(tmp_path, {0: (99.0, 99.0), 1: (99.0, 98.0), 2: (25.0, 26.0)}, learnable=1, chance_from=2)
    page = gather([tmp_path])
    (section,) = page.sections
    assert section.answers[0].text.startswith("Measured and true largest K agree in 1 of 1 cells.")
    assert "1 of 1 accuracies lie within 3 standard errors" in section.answers[0].text
    line = section.tables[0].lines[0]
    assert line[:7] == ("arrangement-5", "Shuffle Conv", "1", "2", "1", "agrees", "2")
    assert line[7] == "K = 2: 25.5 (+0.5 s.e.)"  # 0.5 points in units of 100 sqrt(0.1875 / 2000) = 0.968
    assert "more than 5 points" in section.figures[0].caption


def test_a_study_of_forty_trials_is_shown_whole(tmp_path):
    plan = experiment("fig2-vgg16").trials(PRESETS["smoke"])
    assert len(plan) == 40
    made = [outcome(top1=60.0).model_copy(update={"trial": p.trial}) for p in plan]
    store(tmp_path, *made[:-1])
    manifest(tmp_path, "fig2-vgg16", [p.trial for p in plan], experiment="fig2-vgg16")
    (section,) = gather([tmp_path]).sections
    assert len(section.tables[0].lines) == 40
    assert section.missing == (plan[-1].trial.label,)
    assert section.progress == "39 of 40 planned trials finished"
    assert any("0.25 times" in text for text in section.differences["Network"])
    last = next(line for line in section.tables[0].lines if line[0] == "1x1 Conv" and line[1] == "13")
    assert last[2:4] == ("–", "–")
    assert "0" in last  # n = 0 is shown
    assert "seed 0 missing" in last


def test_the_page_is_one_file_that_asks_for_nothing(tmp_path):
    _study(tmp_path, {0: (74.0, 75.0), 1: (74.0, 75.0), 2: (70.0, 71.0)})
    path = write_report([tmp_path], html=tmp_path / "out" / "page.html")
    text = path.read_text(encoding="utf-8")
    assert path.stat().st_size < 5e6
    found = Elements(text)
    assert text.startswith("<!doctype html>")
    assert found.tags.count("svg") == 1  # the picture is there before any script runs
    asking = {"src", "srcset", "href", "xlink:href", "action", "data", "poster", "ping", "background", "formaction"}
    assert [a for a in found.attributes if a[1] in asking and not a[2].startswith("#")] == []
    assert [a for a in found.attributes if a[1].startswith("on")] == []
    assert not {"link", "img", "iframe", "object", "embed", "base", "form"} & set(found.tags)
    addressed = [a for a in found.attributes if "http" in (a[2] or "") and not a[1].startswith("xmlns")]
    assert [a for a in addressed if a[2] not in ("Content-Security-Policy",)] == []
    policy = next(a[2] for a in found.attributes if a[1] == "content" and "default-src" in a[2])
    assert "default-src 'none'" in policy
    assert "script-src 'sha256-" in policy
    assert "unsafe" not in policy.split("script-src")[1]  # neither scripts in the text nor text made into scripts
    for needed in ("prefers-color-scheme: dark", "@media print", "max-width: 560px", "tabular-nums"):
        assert needed in text
    for shown in ("74.50", "74.12", "spaceless study fig2-vgg16", "2 cores", "torch 2.15.0", "n = 2", "6 min 0 s"):
        assert shown in found.text


def test_broken_files_and_failures_are_named_on_the_page(tmp_path):
    made = _study(tmp_path, {0: (74.0,), 1: (73.5,)})
    (tmp_path / made[1].trial.id / "outcome.json").write_text("{")
    store(tmp_path, outcome("gap_fc", 3, status="diverged"))
    text = Elements(html_text(gather([tmp_path]))).text
    assert f"{made[1].trial.id}/outcome.json" in text
    assert made[1].trial.label in text
    assert "vgg16 gap_fc K=3 cifar100 seed 0: diverged, loss is not finite" in text


def test_trials_and_tests_that_no_study_planned_are_shown_too(tmp_path):
    made = _study(tmp_path, {0: (74.0,), 1: (73.5,)})
    folder = tmp_path / made[0].trial.id / "evaluations"
    folder.mkdir()
    (folder / "x.json").write_text('{"shuffle_last": 2, "images": 100, "top1": [1.0, 2.0]}')
    first, rest = gather([tmp_path]).sections
    assert all(r.shuffle_last is None for r in first.rows)
    assert rest.title == "Further trials"
    assert [(r.shuffle_last, r.top1) for r in rest.rows] == [(None, 74.0), (2, 1.5)]
    assert len(gather([tmp_path], "fig2-vgg16").sections) == 1


def test_a_chart_that_can_be_drawn_over_latency_says_where_it_was_measured(tmp_path):
    made = [outcome("shuffle" if k else "baseline", k, latency=0.002 + k / 1000) for k in range(3)]
    figure = gather([store(tmp_path, *made)]).sections[0].figures[0]
    assert "latency" in figure.views
    assert "after training on the machine that trained (2 cores, 1 thread)" in figure.caption
    assert "noisy" in figure.caption
    store(tmp_path, made[1].model_copy(update={"threads": 2}))
    caption = gather([tmp_path]).sections[0].figures[0].caption
    assert "do not compare (2 cores, 1 thread; 2 cores, 2 threads)" in caption
    store(tmp_path, made[2].model_copy(update={"latency": None}))
    page = gather([tmp_path])
    assert "noisy" in dict(page.facts)["Latency"]  # the table still has those that were measured
    figure = page.sections[0].figures[0]
    assert "latency" not in figure.views
    assert "Latency" not in figure.caption


def test_csv_is_exact_and_empty_where_nothing_was_measured(tmp_path):
    made = _study(tmp_path, {0: (74.0, 75.0), 2: (73.0,)})
    store(tmp_path, outcome("conv1x1", 2, seed=1, status="failed"))
    manifest(tmp_path, "fig2-vgg16", [*made, outcome("conv1x1", 2, seed=1).trial], experiment="fig2-vgg16")
    base, two = csv.DictReader(io.StringIO(csv_text(gather([tmp_path], pictures=False))))
    assert (base["top1"], base["n"], base["paper_top1"], base["seeds"]) == ("74.5", "2", "74.12", "0 1")
    assert float(base["spread"]) == pytest.approx(0.5**0.5)
    assert (two["top1"], two["spread"], two["failed"], two["params"]) == ("73.0", "", "1", "30000000")


def test_markdown_holds_the_same_table(tmp_path):
    _study(tmp_path, {0: (74.0, 75.0), 5: (73.0, 73.0)})
    text = write_report([tmp_path], markdown=True)
    assert isinstance(text, str)
    line = next(line for line in text.splitlines() if line.startswith("| 1x1 Conv"))
    assert [c.strip() for c in line.strip("|").split("|")] == [
        "1x1 Conv", "5", "73.00", "0.00", "2", "74.06", "−1.06", "24.00", "23.53", "314.00"]
    assert not list(tmp_path.glob("*.html"))


def test_the_default_page_lies_in_the_first_folder(tmp_path):
    _study(tmp_path, {0: (74.0,), 1: (73.5,)})
    assert write_report([tmp_path]) == tmp_path / "report.html"
    before = (tmp_path / "report.html").read_bytes()
    write_report([tmp_path])
    assert (tmp_path / "report.html").read_bytes() == before  # the same runs give the same bytes
    assert not list(tmp_path.glob(".report*"))


def test_bad_folders_and_names_are_bad_input(tmp_path):
    with pytest.raises(InputError, match=r"no outcome\.json"):
        write_report([tmp_path])
    _study(tmp_path, {0: (74.0,)})
    with pytest.raises(InputError, match="fig2-vgg16"):
        answers([tmp_path], "fig2-vgg61")
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="choose another place"):
        write_report([tmp_path], csv=tmp_path / "file" / "x.csv")


def test_what_differs_from_the_papers_protocol():
    quick = RECIPES["fast"].model_copy(update={"name": "quick", "epochs": 8})
    trial = outcome("shuffle", 3, width=0.5, train_images=1000, top1=(70.0,) * 20, recipe=quick).trial
    found = {d.topic: [] for d in differences(trial, experiment("fig2-vgg16"))}
    for each in differences(trial, experiment("fig2-vgg16")):
        found[each.topic].append(each.text)
    assert found == {
        "Network": ["Every layer has 0.5 times the paper's channels."],
        "Data": ["Training images: 1,000 instead of all."],
        "Training": ["Recipe quick: epochs 8 instead of 200, schedule one cycle instead of step."],
        "Test": ["Models that shuffle are evaluated 20 times instead of 200."],
    }
    own = outcome("shuffle", 3, top1=(70.0,) * 200, recipe=RECIPES["paper"]).trial
    assert differences(own, experiment("fig2-vgg16")) == []
    assert differences(outcome(data="texture").trial, None) == []


def test_trainings_that_no_experiment_asked_for_are_compared_with_the_papers_too(tmp_path):
    ours = outcome("conv1x1", 2, width=0.25)  # none of whose numbers the paper prints
    section, = gather([store(tmp_path / "ours", outcome(width=0.25), ours)]).sections
    assert section.differences["Network"] == ("Every layer has 0.25 times the paper's channels.",)
    assert section.differences_title == "Different from the paper's protocol"
    other, = gather([store(tmp_path / "own", outcome(model="chain:8-8", note="Re-split."))]).sections
    assert (other.differences_title, other.differences) == ("To know with it", {"Data": ("Re-split.",)})


def test_another_augmentation_is_a_difference_and_none_is_another_experiment():
    table = experiment("table4")
    usual = table.trials(PRESETS["paper"])[0].trial
    (assumed,) = differences(usual, table)
    assert "section 3.4" in assumed.text  # of He et al.: this trial is a ResNet-152
    changed = [usual.model_copy(update={"recipe": usual.recipe.model_copy(update={"augment": augment})})
               for augment in ("crop_flip", "none")]
    assert [d.text for d in differences(changed[0], table) if d != assumed] == [
        "Recipe imagenet: augment crop flip instead of resized crop."]
    assert "Not among the trials of this table or figure." in [d.text for d in differences(changed[1], table)]
    about = [any(row.matches(trial) for row in table.printed_all) for trial in (usual, *changed)]
    assert about == [True, True, False]


def test_seeds_notes_and_precision_are_told(tmp_path):
    made = [outcome(seed=s, note="Made again from parquet.").model_copy(update={"precision": "bf16"}) for s in (0, 1)]
    store(tmp_path, *made)
    manifest(tmp_path, "fig2-vgg16", list(made), experiment="fig2-vgg16")
    (section,) = gather([tmp_path]).sections
    assert section.differences["Data"] == ("Made again from parquet.",)
    assert "bf16" in section.differences["Precision"][0]
    assert "seed 0, 1" in section.differences["Runs"][0]


def test_numbers_as_words():
    assert (number(None), number(74.123), number(-0.5, 1)) == ("–", "74.12", "−0.5")
    assert (signed(None), signed(0.061), signed(-1.0), signed(-0.001)) == ("–", "+0.06", "−1.00", "+0.00")
    assert (listed([1, 2, 3, 5]), listed([4, 5]), listed([])) == ("1–3, 5", "4, 5", "")
    assert (duration(12.34), duration(245), duration(11_530)) == ("12.3 s", "4 min 5 s", "3 h 12 min")


def test_the_report_side_imports_no_torch():
    code = "import sys, spaceless.report, spaceless.charts; print([m for m in ('torch', 'altair') if m in sys.modules])"
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert ran.stdout.strip() == "[]"


def test_what_the_paper_prints_is_shown_even_where_nothing_stands_beside_it(tmp_path):
    made = [outcome(model="resnet50", data="texture", classes=4)]
    store(tmp_path, *made)
    manifest(tmp_path, "table3-smoke", made, experiment="table3")
    (section,) = gather([tmp_path], pictures=False).sections
    alone = section.tables[-1]
    assert alone.title == "Printed in the paper, not measured here"
    assert len(alone.lines) == 10  # all of Table 3: its data are others
    assert ("resnet50", "imagenet32", "1x1 Conv", "6", "", "61.00", "–", "17.68", "Table 3") in alone.lines
    measured = [outcome("gap_fc", 4, data="imagenet32", classes=1000)]
    store(tmp_path / "own", *measured)
    manifest(tmp_path / "own", "table3-fast", measured, experiment="table3")
    (section,) = gather([tmp_path / "own"], pictures=False).sections
    assert len(section.tables[-1].lines) == 9


def test_a_bound_on_k_is_told_with_its_curve_and_not_again(tmp_path):
    made = [outcome(), outcome("conv1x1", 5)]
    store(tmp_path, *made)
    manifest(tmp_path, "fig2-vgg16-smoke", made, experiment="fig2-vgg16")
    (section,) = gather([tmp_path], pictures=False).sections
    lines = section.tables[-1].lines
    bounds = {(line[2], line[3]) for line in lines if line[3].startswith("up to")}
    assert bounds == {("Shuffle Conv", "up to 5"), ("GAP+FC", "up to 5")}
