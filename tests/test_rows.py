"""Rows: hand-worked means and spreads, and nothing that is missing becomes a number."""

import csv
import io
import itertools
import math

import pytest

from made_outcomes import manifest, outcome, store
from spaceless.errors import InputError
from spaceless.findings import DASH, free_ks, panels, standard_error
from spaceless.frame import frame
from spaceless.paper import experiment
from spaceless.rows import Planned, load, rows
from spaceless.store import Store
from spaceless.tables import csv_lines, panel_table
from spaceless.trial import RECIPES, Evaluation
from spaceless.wording import answer


def test_runs_that_differ_only_in_their_seed_are_one_row():
    found = rows([outcome(seed=s, top1=t) for s, t in enumerate((73.0, 74.0, 75.0))])
    (row,) = found
    assert (row.n, row.seeds, row.top1, row.spread) == (3, (0, 1, 2), 74.0, 1.0)
    assert row.shuffle_spread is None
    assert (row.images, row.classes, row.params, row.units) == (30_000, 100, 34_000_000, 13)


def test_the_spread_over_shuffles_is_the_mean_over_runs_of_their_own():
    # standard deviations of (70, 72) and (71, 75): sqrt(2) and 2 sqrt(2); the means are 71 and 73
    made = [outcome("shuffle", 3, seed=0, top1=(70.0, 72.0)), outcome("shuffle", 3, seed=1, top1=(71.0, 75.0))]
    (row,) = rows(made)
    assert row.top1 == 72.0
    assert row.spread == pytest.approx(math.sqrt(2))
    assert row.shuffle_spread == pytest.approx(1.5 * math.sqrt(2))


def test_numbers_in_names_are_sorted_as_numbers_unless_they_have_no_end():
    names = [f"chain:{number}-8" for number in ("9" * 5000, "16", "4", "16a")]
    found = rows([outcome(model=name) for name in names])
    assert [row.trial.model.count("9") for row in found] == [5000, 0, 0, 0]
    assert [row.trial.model for row in found[1:]] == ["chain:4-8", "chain:16-8", "chain:16a-8"]


def test_a_lone_run_has_no_spread():
    (row,) = rows([outcome(top1=74.0)])
    assert (row.n, row.spread, row.shuffle_spread) == (1, None, None)


@pytest.mark.parametrize("other", [
    {"width": 0.5}, {"train_images": 100}, {"image_size": 64}, {"recipe": RECIPES["smoke"]}, {"data": "cifar10"},
    {"method": "conv1x1", "k": 1},
], ids=str)
def test_what_differs_in_more_than_the_seed_is_another_row(other):
    assert len(rows([outcome(), outcome(seed=1, **other)])) == 2


def test_failed_diverged_and_missing_runs_are_named_and_never_averaged_in():
    made = [outcome("gap_fc", 2, seed=0, top1=70.0), outcome("gap_fc", 2, seed=1, status="failed"),
            outcome("gap_fc", 2, seed=2, status="diverged")]
    plan = [Planned(trial=made[0].trial.model_copy(update={"seed": s})) for s in range(5)]
    (row,) = rows(made, plan)
    assert (row.top1, row.spread, row.n) == (70.0, None, 1)
    assert (row.failed, row.diverged, row.missing) == ((1,), (2,), (3, 4))


def test_a_planned_trial_without_an_outcome_is_a_row_of_missing_numbers():
    (row,) = rows([], [Planned(trial=outcome("gap_fc", 2).trial)])
    assert (row.top1, row.params, row.n, row.missing) == (None, None, 0, (0,))


def test_a_planned_test_scheme_without_an_evaluation_is_missing():
    base = outcome(extra={3: (1.0, 1.2)})
    found = {r.shuffle_last: r for r in rows([base], [Planned(trial=base.trial, evaluations=(3, 5))])}
    assert found[3].top1 == pytest.approx(1.1)
    assert (found[5].top1, found[5].missing) == (None, (0,))


def test_the_papers_numbers_stand_beside():
    found = rows([outcome(top1=74.5), outcome("conv1x1", 5, top1=74.0), outcome("conv1x1", 3)],
                 experiment=experiment("fig2-vgg16"))
    base, three, five = found
    assert (base.paper_top1, base.paper_params) == (74.12, 34.02)
    assert (five.paper_top1, five.paper_params) == (74.06, 23.53)
    assert five.difference == pytest.approx(-0.06)
    assert (three.paper_top1, three.difference) == (None, None)


def test_a_printed_best_of_all_k_belongs_to_no_single_row():
    recipe = RECIPES["paper"].model_copy(update={"augment": "none"})
    made = [outcome("conv1x1", k, model="resnet50", recipe=recipe) for k in (2, 4)]
    assert [r.paper_top1 for r in rows(made, experiment=experiment("table2-right"))] == [None, None]


def test_latency_is_the_median_over_runs_in_milliseconds_of_the_network_as_trained():
    made = [outcome(seed=s, latency=t, extra={3: (1.0,)}) for s, t in enumerate((0.002, 0.003, 0.007, None))]
    found = {row.shuffle_last: row for row in rows([*made, outcome("gap_fc", 1)])
             if row.trial.method == "baseline"}
    assert (found[None].latency, found[None].timed_on) == (3.0, ("2 cores, 1 thread",))
    assert (found[3].latency, found[3].timed_on) == (None, ())
    (untimed,) = rows([outcome("gap_fc", 1)])
    assert (untimed.latency, untimed.timed_on) == (None, ())


def test_latency_is_in_table_csv_and_frame_and_missing_where_it_was_not_measured(tmp_path):
    made = [outcome(latency=0.00125), outcome("gap_fc", 1)]
    (panel,) = panels(rows(made))
    table = panel_table(panel)
    place = [c.name for c in table.columns].index("latency")
    assert table.columns[place].about == "ms"
    assert [line[place] for line in table.lines] == ["1.250", DASH]
    assert "latency" not in [c.name for c in panel_table(panels(rows(made[1:]))[0]).columns]
    lines = list(csv.DictReader(io.StringIO(csv_lines(("", row) for row in rows(made)))))
    assert [line["latency_ms"] for line in lines] == ["1.25", ""]
    assert [line["receptive_field"] for line in lines] == ["", ""]
    read = frame(store(tmp_path, *made)).set_index("method").latency_ms
    assert read["baseline"] == 1.25
    assert math.isnan(read["gap_fc"])


def test_load_reads_a_run_folder_and_a_single_trial(tmp_path):
    made = [outcome(), outcome("gap_fc", 1)]
    store(tmp_path, *made)
    (tmp_path / made[0].trial.id / "evaluations").mkdir()
    extra = Evaluation(shuffle_last=3, images=10, top1=(1.0, 2.0))
    (tmp_path / made[0].trial.id / "evaluations" / "more.json").write_text(extra.model_dump_json())
    manifest(tmp_path, "one", list(made))
    outcomes, studies, problems = load([tmp_path])
    assert {o.trial.id for o in outcomes} == {o.trial.id for o in made}
    assert next(o for o in outcomes if o.trial.method == "baseline").evaluations[1] == extra
    assert [len(s.planned) for s in studies] == [2]
    assert not problems
    alone, _, _ = load([tmp_path / made[1].trial.id, tmp_path / made[1].trial.id])
    assert alone == [made[1]]


@pytest.mark.parametrize(
    "text", ["", "{", "null", '{"status": "finished"}', "\x00", '{"trial": {"model": 3}}'], ids=repr)
def test_a_broken_file_is_a_named_problem(tmp_path, text):
    store(tmp_path, outcome())
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "outcome.json").write_text(text)
    (tmp_path / "cut.study.json").write_text('{"name": "cut", "plan')
    outcomes, studies, problems = load([tmp_path])
    assert (len(outcomes), studies) == (1, [])
    assert {p.where for p in problems} == {str(tmp_path / "broken/outcome.json"), str(tmp_path / "cut.study.json")}
    assert all("expected" in p.text and str(tmp_path) not in p.text for p in problems)


def test_a_flipped_bit_is_a_problem_and_never_a_number(tmp_path):
    made = outcome(top1=74.0)
    Store(tmp_path).begin(made.trial)
    Store(tmp_path).finish(made)
    planned = [{"trial": made.trial.model_dump(mode="json")}]
    Store(tmp_path).write_study({"name": "s", "title": "Which?", "planned": planned})
    assert frame(tmp_path)["top1"].tolist() == [74.0]
    paths = [tmp_path / made.trial.id / "outcome.json", tmp_path / "s.study.json"]
    for path, old, new in zip(paths, (b"74.0", b"Which?"), (b"76.0", b"Whiah?"), strict=True):
        path.write_bytes(path.read_bytes().replace(old, new))
    outcomes, studies, problems = load([tmp_path])
    assert (outcomes, studies) == ([], [])
    assert [p.where for p in problems] == list(map(str, reversed(paths)))
    with pytest.warns(UserWarning) as warned:
        assert frame(tmp_path).empty
    assert [str(each.message).split(":")[0] for each in warned] == [p.where for p in problems]


def test_bytes_that_are_no_text_are_a_problem_too(tmp_path):
    (tmp_path / "x").mkdir()
    (tmp_path / "x" / "outcome.json").write_bytes(b"\xff\xfe\x00")
    assert [p.where for p in load([tmp_path])[2]] == [str(tmp_path / "x/outcome.json")]


def test_a_trial_that_has_begun_is_named(tmp_path):
    trial = outcome().trial
    (tmp_path / trial.id).mkdir()
    (tmp_path / trial.id / "trial.json").write_text(trial.model_dump_json())
    assert "no outcome yet" in load([tmp_path])[2][0].text
    manifest(tmp_path, "one", [trial])
    assert not load([tmp_path])[2]


def test_a_folder_that_does_not_exist_is_bad_input(tmp_path):
    with pytest.raises(InputError, match="no such folder"):
        load([tmp_path / "none"])


def test_the_frame_is_tidy_and_keeps_what_is_missing(tmp_path):
    store(tmp_path, outcome(top1=74.0, extra={3: (1.0, 3.0)}), outcome("conv1x1", 2, status="failed", params=None))
    table = frame(tmp_path)
    assert len(table) == 3
    shuffled = table[table.shuffle_last == 3].iloc[0]
    assert (shuffled.top1, shuffled.repeats, shuffled.method) == (2.0, 2, "baseline")
    failed = table[table.status == "failed"].iloc[0]
    assert math.isnan(failed.top1)
    assert failed.isna()[["params", "spread", "images", "repeats", "seconds"]].tolist() == [True] * 4 + [False]
    assert str(table.dtypes["params"]) == "Int64"
    store(tmp_path / "all" / "runs", outcome())  # of which the folder above is no folder of runs
    with pytest.warns(UserWarning, match="no outcome in .*all or the folders directly in it"):
        assert len(frame(tmp_path / "all")) == 0


# ------------------------------------------------------------------------------------------------ findings


def test_the_standard_error_is_binomial():
    assert standard_error(25.0, 300) == pytest.approx(2.5)  # 100 sqrt(0.25 * 0.75 / 300)


def test_the_largest_free_k_ends_before_the_first_fall():
    accuracy = {0: 74.0, 1: 73.5, 2: 73.0, 4: 73.2, 5: 72.0, 6: 73.5}
    made = [outcome("conv1x1" if k else "baseline", k, top1=t) for k, t in accuracy.items()]
    (panel,) = panels(rows(made))
    (free,) = free_ks(panel, 1.0)
    assert (free.k, free.unmeasured, free.again) == (4, (3,), (6,))
    assert free_ks(panel, 0.2)[0].k == 0


def test_a_training_that_diverged_is_a_loss_and_one_that_failed_is_unmeasured():
    made = [outcome(seed=seed) for seed in (0, 1)]
    made += [outcome("conv1x1", k, seed=seed) for k in (1, 3, 4) for seed in (0, 1)]
    made += [outcome("conv1x1", 2, status="failed"), outcome("conv1x1", 5, seed=0),
             outcome("conv1x1", 5, seed=1, status="diverged"), outcome("conv1x1", 6)]
    (panel,) = panels(rows(made))
    (free,) = free_ks(panel, 1.0)
    assert (free.k, free.unmeasured, free.diverged, free.again) == (4, (2,), (5,), (6,))
    told = answer(panel, 1.0).sentences
    assert "A training diverged, which counts as a loss: 1x1 Conv K = 5." in told
    (alone,) = panels(rows([outcome(), outcome("conv1x1", 1, status="diverged")]))
    assert "no measured K (1) stays within" in answer(alone, 1.0).text


def test_of_copies_of_one_training_every_test_counts(tmp_path):
    """Whatever the order of the folders; a copy with other weights is another training, and named."""
    made = outcome(extra={0: (73.0,)}).model_copy(update={"weights_sha256": "a" * 64})
    again = outcome(extra={3: (1.0, 2.0)}).model_copy(update={"weights_sha256": "a" * 64})
    store(tmp_path / "a", made)
    store(tmp_path / "b", again)
    for order in ("ab", "ba"):
        (found,), _, problems = load([tmp_path / name for name in order])
        assert {e.shuffle_last: len(e.top1) for e in found.evaluations} == {None: 1, 0: 1, 3: 2}
        assert problems == []
    store(tmp_path / "c", made.model_copy(update={"weights_sha256": "b" * 64}))


def test_of_two_trainings_of_one_trial_the_same_one_counts_in_any_order(tmp_path):
    """The one beside the study that plans it, else the one with more tests; the other one is named."""
    planned = outcome().model_copy(update={"weights_sha256": "b" * 64})
    tested = outcome(extra={0: (73.0,), 3: (1.0,)}).model_copy(update={"weights_sha256": "c" * 64})
    few = outcome(extra={0: (73.0,)}).model_copy(update={"weights_sha256": "a" * 64})
    for name, each in (("planned", planned), ("tested", tested), ("few", few)):
        store(tmp_path / name, each)
    failed = outcome(status="failed")
    store(tmp_path / "failed", failed)
    manifest(tmp_path / "failed", "study", [failed])

    def kept(*names):
        (found,), _, problems = load([tmp_path / name for name in names])
        assert len(problems) == len([name for name in names if name != "failed"]) - 1
        assert all("with other weights: left out" in problem.text for problem in problems)
        return found

    for order in itertools.permutations(("planned", "tested", "few", "failed")):
        assert kept(*order) == tested
    manifest(tmp_path / "planned", "study", [planned])
    for order in itertools.permutations(("planned", "tested", "few")):
        assert kept(*order) == planned


def test_warm_starts_from_two_originals_are_two_rows():
    first, second = (outcome(recipe=RECIPES["fast"].model_copy(update={"epochs": epochs})) for epochs in (3, 4))
    start = {"run": first.trial.id, "weights_sha256": "a" * 64}
    warm = [outcome("conv1x1", 2, top1=top1, start={**start, "run": run}) for top1, run in
            ((73.0, first.trial.id), (71.0, second.trial.id), (70.0, "1" * 16), (69.0, "2" * 16))]
    found = rows([first, second, *warm])
    assert sorted(row.top1 for row in found if row.trial.start) == [69.5, 71.0, 73.0]
    (mixed,) = [row for row in found if row.top1 == 69.5]  # of originals that nothing is known of
    assert (mixed.n, mixed.seeds) == (2, (0, 0))
    lines = csv_lines(("", row) for row in found).splitlines()
    described = [line.split(",")[:24] for line in lines[1:]]
    assert len({tuple(each) for each in described}) == len(described)
    titles = [panel.title for panel in panels(found)]
    assert len(set(titles)) == len(titles)


def test_panels_split_what_cannot_share_a_picture():
    made = [
        outcome(), outcome("conv1x1", 2), outcome("shuffle", only=4), outcome("conv1x1", 6, strip=2),
        outcome("conv1x1", 6), outcome(model="resnet50"), outcome(width=0.5),
    ]
    found = panels(rows(made))
    assert sorted((p.title, p.x, len(p.rows)) for p in found) == [
        ("resnet50 on cifar100", "k", 1), ("vgg16 on cifar100, width 0.5", "k", 1),
        ("vgg16 on cifar100, width 1", "k", 3), ("vgg16 on cifar100, width 1", "kept", 3),
        ("vgg16 on cifar100, width 1", "only", 2),
    ]


def test_what_else_differs_in_a_recipe_is_in_the_title():
    recipes = [RECIPES["fast"].model_copy(update=changed) for changed in ({}, {"precision": "bf16"}, {"momentum": 0.8})]
    assert [panel.title for panel in panels(rows([outcome(recipe=each) for each in recipes]))] == [
        f"vgg16 on cifar100, {what}" for what in (
            "momentum 0.9, precision auto", "momentum 0.9, precision bf16", "momentum 0.8, precision auto")]


def test_a_study_that_names_its_axis_is_drawn_on_it():
    made = [outcome("conv1x1", k, image_size=size) for k in (0, 1) for size in (None, 64)]
    (suggested,) = panels(rows(made))
    assert (suggested.x, suggested.ticks) == ("receptive_field", ())
    assert [(p.x, len(p.rows)) for p in panels(rows(made), "k")] == [("k", 2), ("k", 2)]
    (named,) = panels(rows(made), "receptive_field", (212, 164))
    assert [line[-1] for line in panel_table(named).lines] == ["212", "164", "212", "164"]
    assert panel_table(named).columns[-1].name == "paper's axis"
