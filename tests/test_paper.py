"""The paper's data: numbers read by hand from its tables, plans counted by hand, and counts from closed forms."""

from __future__ import annotations

from pathlib import Path

import pytest

from spaceless import paper
from spaceless.errors import InputError
from spaceless.paper import PRESETS, Count, Experiment, Planned, Printed, Scale, load_study
from spaceless.trial import RECIPES, Evaluation, ShuffleOptions, Trial

NAMES = [
    "table1", "table2-left", "table2-right", "table3", "table4", "fig2-vgg16", "fig2-resnet50", "fig3-depth",
    "fig3-receptive-field", "fig4-downsampling", "fig5-vgg16", "fig5-resnet50", "fig6-single-layer", "fig7-mismatch",
    "fig8-resnet152", "fig9-resnet50", "fig10-channel-shuffle",
]

# (model, method, K): top-1 in percent, parameters in millions; read from the tables' text, column by column.
TABLES = {
    "table1": {
        ("vgg16", "baseline", 0): (74.12, 34.02), ("vgg16", "gap_fc", 5): (73.21, 23.53),
        ("vgg16", "gap_fc", 2): (74.00, 29.82), ("vgg16", "conv1x1", 5): (74.06, 23.53),
        ("vgg16", "conv1x1", 2): (74.80, 29.82), ("resnet50", "baseline", 0): (78.06, 23.71),
        ("resnet50", "gap_fc", 5): (77.42, 16.37), ("resnet50", "gap_fc", 2): (79.42, 19.51),
        ("resnet50", "conv1x1", 9): (78.49, 14.26), ("resnet50", "conv1x1", 2): (79.42, 19.51),
    },
    "table3": {
        ("vgg16", "baseline", 0): (46.59, 37.70), ("vgg16", "gap_fc", 4): (46.05, 29.31),
        ("vgg16", "gap_fc", 2): (46.50, 33.50), ("vgg16", "conv1x1", 7): (45.44, 25.64),
        ("vgg16", "conv1x1", 4): (46.64, 29.31), ("resnet50", "baseline", 0): (61.87, 25.55),
        ("resnet50", "gap_fc", 3): (61.11, 19.26), ("resnet50", "gap_fc", 1): (61.72, 23.45),
        ("resnet50", "conv1x1", 6): (61.00, 17.68), ("resnet50", "conv1x1", 1): (61.95, 23.45),
    },
    "table4": {
        ("resnet152", "baseline", 0): (77.66, 60.19), ("resnet152", "conv1x1", 19): (77.82, 45.51),
        ("resnet50", "baseline", 0): (75.22, 25.55), ("resnet50", "conv1x1", 5): (75.53, 18.22),
        ("vgg16", "baseline", 0): (72.96, 37.70), ("vgg16", "conv1x1", 1): (72.51, 35.60),
        ("mobilenet_v2", "baseline", 0): (72.29, 3.50), ("mobilenet_v2", "conv1x1", 2): (72.06, 3.48),
        ("squeezenet1_0", "baseline", 0): (60.07, 1.25), ("squeezenet1_0", "conv1x1", 2): (60.64, 1.23),
    },
}

# Trials of one seed at the paper's scale, the baseline counted once.
SIZES = {
    "table1": 10, "table2-left": 2, "table2-right": 1 + 2 + 1 + 2 * 16, "table3": 10, "table4": 10,
    "fig2-vgg16": 1 + 3 * 13, "fig2-resnet50": 1 + 3 * 16, "fig3-depth": 7, "fig3-receptive-field": 3 * 11,
    "fig4-downsampling": 1 + 3 * 16, "fig5-vgg16": 1 + 2 * 13, "fig5-resnet50": 1 + 2 * 16,
    "fig6-single-layer": 1 + 13, "fig7-mismatch": 1 + 13, "fig8-resnet152": 47, "fig9-resnet50": 16,
    "fig10-channel-shuffle": 14,
}


def plan(name: str, preset: str = "paper") -> list[Planned]:
    return paper.experiment(name).trials(PRESETS[preset])


def printed_for(trial: Trial, shuffle_last: int | None, experiment: Experiment) -> list[Printed]:
    """Return the published rows about `trial` under that test scheme."""
    return [row for row in experiment.printed_all if row.matches(trial, shuffle_last)]


def find(name: str, **fields: object) -> Planned:
    """Return the one planned trial of an experiment with these fields."""
    found = [p for p in plan(name) if all(getattr(p.trial, f) == v for f, v in fields.items())]
    assert len(found) == 1, found
    return found[0]


def top1(name: str, shuffle_last: int | None = None, **fields: object) -> list[float | None]:
    experiment = paper.experiment(name)
    return [row.top1 for row in printed_for(find(name, **fields).trial, shuffle_last, experiment) if row.top1]


def test_the_17_experiments_exist_in_order() -> None:
    assert list(paper.experiments()) == NAMES
    assert all(e.source and e.section and e.title and e.asks.endswith("?") for e in paper.experiments().values())


@pytest.mark.parametrize("table", TABLES)
def test_every_cell_of_the_tables(table: str) -> None:
    rows = paper.experiment(table).printed
    assert {(r.model, r.method, r.k or 0): (r.top1, r.params_m) for r in rows} == TABLES[table]
    assert len(rows) == len(TABLES[table])
    assert {(p.trial.model, p.trial.method, p.trial.k) for p in plan(table)} == set(TABLES[table])


@pytest.mark.parametrize("name", NAMES)
def test_plan_has_the_size_worked_out_by_hand(name: str) -> None:
    planned = plan(name)
    assert len(planned) == SIZES[name]
    assert len({p.trial.id for p in planned}) == SIZES[name]
    recipe = "imagenet" if {p.trial.data for p in planned} == {"imagenet"} else "paper"
    assert {p.trial.recipe.name for p in planned} == {recipe}
    assert {p.trial.seed for p in planned} == {0} and {p.trial.width for p in planned} == {1.0}
    assert {p.repeats for p in planned} == {200}


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("preset", PRESETS)
def test_every_printed_row_is_about_a_planned_trial(name: str, preset: str) -> None:
    planned = [(p.trial, scheme) for p in plan(name, preset) for scheme in (None, *p.evaluations)]
    for row in paper.experiment(name).printed_all:
        assert any(row.matches(*each) for each in planned), row


@pytest.mark.parametrize("name", NAMES)
def test_a_trial_has_at_most_one_printed_accuracy_per_source(name: str) -> None:
    for p in plan(name):
        for scheme in (None, *p.evaluations):
            sources = [r.source for r in printed_for(p.trial, scheme, paper.experiment(name)) if r.top1]
            assert len(sources) == len(set(sources)), (p.trial.label, sources)


def test_figure_2_counts_k_over_all_layers() -> None:
    cells = {(p.trial.method, p.trial.k) for p in plan("fig2-vgg16")}
    assert cells == {("baseline", 0)} | {(m, k) for m in ("shuffle", "gap_fc", "conv1x1") for k in range(1, 14)}
    assert max(p.trial.k for p in plan("fig2-resnet50")) == 16
    assert top1("fig2-vgg16", method="conv1x1", k=2) == [74.80]
    assert top1("fig2-vgg16", method="conv1x1", k=3) == []
    assert top1("fig2-resnet50", method="shuffle", k=5) == [77.89]
    assert top1("fig2-resnet50", method="conv1x1", k=9) == [78.49]


def test_schemes_of_table_2_left() -> None:
    assert find("table2-left", method="baseline").evaluations == (3,)  # its own test is clean, and is not done twice
    assert find("table2-left", method="shuffle", k=3).evaluations == (0,)
    rows = {}
    for method, scheme in (("shuffle", None), ("shuffle", 3), ("shuffle", 0), ("baseline", 3), ("baseline", 0)):
        (row,) = printed_for(find("table2-left", method=method).trial, scheme, paper.experiment("table2-left"))
        rows[method, scheme] = (row.top1, row.std)
    assert rows == {
        ("shuffle", None): (73.67, 1.03), ("shuffle", 3): (73.67, 1.03), ("shuffle", 0): (73.57, 0.97),
        ("baseline", 3): (1.06, 1.15), ("baseline", 0): (74.10, None),
    }


def test_figure_7_tests_the_baseline_under_every_shuffle_and_the_shuffled_without() -> None:
    baseline, *shuffled = plan("fig7-mismatch")
    assert baseline.trial.method == "baseline" and baseline.evaluations == tuple(range(1, 14))
    assert baseline.trial.repeats == 1 and baseline.repeats == 200
    assert [(p.trial.k, p.evaluations) for p in shuffled] == [(k, (0,)) for k in range(1, 14)]
    assert top1("fig7-mismatch", 3, method="baseline") == [1.06]
    assert top1("fig7-mismatch", 4, method="baseline") == []
    assert top1("fig7-mismatch", 0, method="shuffle", k=3) == [73.57]


def test_augmentation_of_table_2_right() -> None:
    planned = plan("table2-right")
    bare = [p.trial for p in planned if p.trial.recipe.augment == "none"]
    assert len(bare) == 33 and all(t.recipe == RECIPES["paper"].model_copy(update={"augment": "none"}) for t in bare)
    experiment = paper.experiment("table2-right")
    plain = {(r.method, r.augment): (r.top1, r.k) for r in experiment.printed}
    assert plain == {
        ("baseline", "crop_flip"): (78.06, None), ("gap_fc", "crop_flip"): (79.42, 2),
        ("conv1x1", "crop_flip"): (79.42, 2), ("baseline", "none"): (65.64, None),
        ("gap_fc", "none"): (68.40, None), ("conv1x1", "none"): (73.65, None),
    }
    (bare_baseline,) = [t for t in bare if t.method == "baseline"]
    assert [r.top1 for r in printed_for(bare_baseline, None, experiment)] == [65.64]


def test_gains_in_the_text_are_differences_of_printed_accuracies() -> None:
    gains = {}
    for e in paper.experiments().values():
        for row in (r for r in e.printed if r.gain is not None):
            (base,) = [b for b in e.printed if b.method == "baseline"
                       and (b.model, b.augment) == (row.model, row.augment)]
            assert row.top1 is not None and base.top1 is not None
            assert row.gain == round(row.top1 - base.top1, 2)
            gains[e.name] = row.gain
    assert gains == {"table1": 1.36, "table2-right": 8.01}


def test_figure_3_strips_and_upsamples() -> None:
    assert [(p.trial.method, p.trial.k, p.trial.strip) for p in plan("fig3-depth")] == [
        ("conv1x1", 6, strip) for strip in range(7)]
    assert top1("fig3-depth", strip=0) == [61.00] and top1("fig3-depth", strip=1) == []
    native = [p.trial for p in plan("fig3-receptive-field") if p.trial.image_size is None]
    figure2 = {p.trial.id for p in plan("fig2-vgg16")}
    assert len(native) == 11 and all(t.id in figure2 for t in native)  # 32 pixels is CIFAR-100's own size
    assert {p.trial.image_size for p in plan("fig3-receptive-field")} == {None, 64, 96}
    assert top1("fig3-receptive-field", method="conv1x1", k=5, image_size=None) == [74.06]
    assert top1("fig3-receptive-field", method="conv1x1", k=5, image_size=64) == []


def vgg16_fields(k: int) -> tuple[int, int, int]:
    """Return the receptive field as Figure 3 counts it, at the last convolution, and at the final map."""
    size, jump, layer = 1, 1, 0
    printed, last = 1, 0
    for convolutions in (2, 2, 3, 3, 3):
        for _ in range(convolutions):
            layer += 1
            size += 2 * jump if layer <= 13 - k else 0
            if layer == 13:
                last = size
        size += jump
        jump *= 2
        if layer - convolutions < 13 - k <= layer:  # the stage of the last 3x3 convolution
            printed = size if layer == 13 - k else size - jump // 2
    return printed, last, size


def test_figure_3_axis_is_the_field_after_the_last_3x3() -> None:
    printed, last, final = zip(*(vgg16_fields(k) for k in range(11)), strict=True)
    assert paper.experiment("fig3-receptive-field").x_ticks == printed
    (finding,) = [f for f in paper.findings() if f.name == "receptive-field-axis"]
    assert ", ".join(map(str, printed)) in finding.paper_says
    assert ", ".join(map(str, last)) in finding.we_find
    assert ", ".join(map(str, final)) in finding.we_find
    assert [vgg16_fields(k)[0] for k in (11, 12, 13)] == [6, 3, 1] and vgg16_fields(13)[2] == 32
    assert not {50, 120} & {*printed, *last, *final}


def test_figure_4_and_6() -> None:
    downs = [p.trial.downsample for p in plan("fig4-downsampling") if p.trial.k == 16]
    assert sorted(downs) == ["avg", "max", "stride"]
    assert top1("fig4-downsampling", k=6, downsample="avg") == [61.00]
    assert top1("fig4-downsampling", k=6, downsample="max") == []
    baseline, *single = plan("fig6-single-layer")
    assert baseline.trial.method == "baseline"
    assert [(p.trial.method, p.trial.only) for p in single] == [("shuffle", i) for i in range(1, 14)]


def test_figure_10_and_largest_ks_in_the_text() -> None:
    assert top1("fig10-channel-shuffle", k=0) == [74.10] and top1("fig10-channel-shuffle", k=1) == [71.49]
    stated = {
        (name, r.method, r.downsample): r.largest_k
        for name, e in paper.experiments().items() for r in e.printed if r.largest_k
    }
    assert stated == {
        ("fig2-vgg16", "shuffle", "avg"): 5, ("fig2-vgg16", "gap_fc", "avg"): 5, ("fig2-vgg16", "conv1x1", "avg"): 5,
        ("fig2-resnet50", "shuffle", "avg"): 5, ("fig2-resnet50", "gap_fc", "avg"): 5,
        ("fig2-resnet50", "conv1x1", "avg"): 9, ("fig4-downsampling", "conv1x1", "stride"): 3,
        ("fig4-downsampling", "conv1x1", "avg"): 6, ("fig5-vgg16", "gap_fc", "avg"): 4,
        ("fig5-vgg16", "conv1x1", "avg"): 7, ("fig5-resnet50", "gap_fc", "avg"): 3,
        ("fig5-resnet50", "conv1x1", "avg"): 6, ("fig6-single-layer", "shuffle", "avg"): 4,
        ("fig8-resnet152", "conv1x1", "avg"): 19, ("fig9-resnet50", "conv1x1", "avg"): 5,
    }


def test_equal_trials_are_shared_between_experiments() -> None:
    ids = {name: {p.trial.id for p in plan(name)} for name in NAMES}
    assert ids["table1"] < ids["fig2-vgg16"] | ids["fig2-resnet50"]
    assert ids["table3"] < ids["fig5-vgg16"] | ids["fig5-resnet50"]
    assert ids["table2-left"] < ids["fig7-mismatch"] < ids["fig2-vgg16"]
    assert len(ids["table4"] & (ids["fig8-resnet152"] | ids["fig9-resnet50"])) == 4


def test_presets_scale_every_trial_and_win_over_the_recipe() -> None:
    smoke = plan("fig9-resnet50", "smoke")
    assert {(t.width, t.train_images, t.test_images, t.recipe.name) for t in (p.trial for p in smoke)} == {
        (0.125, 1_000, 500, "smoke")}  # its series says so, since the usual 10,000 images would take too long
    assert [p.trial.k for p in smoke] == [0, 5, 10, 15]
    vgg = {(p.trial.width, p.trial.train_images, p.trial.test_images) for p in plan("fig2-vgg16", "smoke")}
    assert vgg == {(0.25, 10_000, 2_000)}
    assert {p.repeats for p in smoke} == {20}
    fast = plan("fig2-vgg16", "fast")
    assert len(fast) == 3 * 40
    assert [(p.trial.seed, p.trial.k) for p in fast] == sorted((p.trial.seed, p.trial.k) for p in fast)
    assert [p.trial.method for p in fast].count("baseline") == 3 and fast[0].trial.method == "baseline"
    plain = [p.trial.k for p in plan("table2-right", "smoke") if p.trial.recipe.augment == "none"]
    assert plain == [0, 2, 2, 8, 8, 16, 16]


def test_a_step_thins_the_units_but_keeps_the_last_and_the_printed_ones() -> None:
    assert [p.trial.k for p in plan("fig8-resnet152", "smoke")] == [0, 16, 19, 32, 46]  # Figure 8 names K = 19
    thinned = paper.experiment("fig6-single-layer").trials(Scale(k_step=5))
    assert [p.trial.only for p in thinned] == [None, 1, 6, 11, 13]
    assert [p.trial.k for p in paper.experiment("fig10-channel-shuffle").trials(Scale(k_step=6))] == [0, 1, 6, 12, 13]


def test_other_data_take_the_place_of_the_experiments_own() -> None:
    own, other = (paper.experiment("fig3-receptive-field").trials(Scale(data=data)) for data in (None, "mine.npz"))
    assert {p.trial.data for p in other} == {"mine.npz"}
    assert [(p.trial.k, p.trial.image_size) for p in own] == [(p.trial.k, p.trial.image_size) for p in other]


def test_the_facts_of_the_data_sets_are_the_published_ones() -> None:
    found = paper.data_sets()
    assert set(found) == {s.data for e in paper.experiments().values() for s in e.series}
    assert {name: (d.classes, d.image_size, d.train_images, d.test_images) for name, d in found.items()} == {
        "cifar100": (100, 32, 50_000, 10_000),  # Krizhevsky 2009
        "imagenet32": (1000, 32, 1_281_167, 50_000),  # Chrabaszcz et al. 2017
        "imagenet": (1000, 224, 1_281_167, 50_000),  # Russakovsky et al. 2015
    }


def test_scale_overrides_recipe_fields_and_epochs() -> None:
    scale = Scale(epochs=3, overrides={"batch_size": 64}, seeds=(7,))
    (first, *_) = paper.experiment("fig2-vgg16").trials(scale)
    assert first.trial.recipe == RECIPES["paper"].model_copy(update={"epochs": 3, "batch_size": 64})
    assert first.trial.seed == 7
    with pytest.raises(InputError, match=r"overrides: batch_sise"):
        paper.experiment("fig2-vgg16").trials(Scale(overrides={"batch_sise": 64}))
    with pytest.raises(InputError, match="did you mean 'fast'"):
        paper.experiment("fig2-vgg16").trials(Scale(recipe="fats"))


def test_printed_rows_are_only_about_what_the_paper_trained() -> None:
    table = paper.experiment("table1")
    usual = Trial(model="vgg16", data="cifar100", method="conv1x1", k=5)
    assert [r.top1 for r in printed_for(usual, None, table)] == [74.06]
    for change in ({"data": "imagenet32"}, {"image_size": 64}, {"downsample": "max"}, {"strip": 1}, {"k": 4},
                   {"model": "resnet50"}, {"method": "gap_fc", "k": 4},
                   {"recipe": RECIPES["paper"].model_copy(update={"augment": "none"})}):
        assert printed_for(Trial(**{**usual.model_dump(), **change}), None, table) == [], change
    left = paper.experiment("table2-left")
    fixed = Trial(model="vgg16", data="cifar100", method="shuffle", k=3, shuffle=ShuffleOptions(fixed=True))
    assert printed_for(fixed, None, left) == []
    assert printed_for(usual.model_copy(update={"width": 0.25, "seed": 9}), None, table) != []


def test_schemes_are_those_of_an_evaluation() -> None:
    for name in NAMES:
        for p in plan(name):
            for scheme in p.evaluations:
                Evaluation(shuffle_last=scheme, images=1, top1=(0.0,))


# Exact counts from closed forms: a 3x3 convolution of a to b channels that becomes 1x1 loses 8 a b weights.
WIDE, HALF, QUARTER = 8 * 512 * 512, 8 * 256 * 256, 8 * 128 * 128
VGG = 14_714_688 + 2 * 4224 + (512 * 4096 + 4096) + (4096 * 4096 + 4096)  # 13 convolutions, their norms, two layers
VGG_SAVED = [WIDE] * 5 + [8 * 256 * 512, HALF]  # the last 7 layers, from the last one on
STEM = 64 * 3 * (49 - 9)
RESNET_SAVED = [WIDE] * 3 + [HALF] * 6


def exact(count: Count) -> int:
    """Return the parameters of the network of a count row, from published totals and the closed forms above."""
    head = 4097 * count.classes
    if count.network == "vgg16":
        return VGG + head - sum(VGG_SAVED[:count.k])
    if count.network == "resnet50":
        total = 25_557_032 - 2049 * 1000 + 2049 * count.classes - (STEM if count.image_size == 32 else 0)
        return total - sum(RESNET_SAVED[:count.k])
    if count.network == "resnet152":
        return 60_192_808 - sum(([WIDE] * 3 + [HALF] * 36)[:count.k])
    if count.network == "mobilenet_v2":
        return 3_504_872 - count.k * 960 * (9 + 2)
    assert count.network == "squeezenet1_0"
    return 1_248_424 - count.k * 8 * 64 * 256


@pytest.mark.parametrize("count", paper.counts(), ids=lambda c: f"{c.network}-{c.classes}-{c.method}-{c.k}")
def test_counts_agree_with_closed_forms(count: Count) -> None:
    params = exact(count)
    assert count.exact in (None, params)
    assert count.agrees(params) == (count.finding is None)
    assert not count.agrees(params + 20_000) and not count.agrees(params - 20_000)


def test_counts_are_those_of_the_tables() -> None:
    data = {"table1": (100, 32), "table3": (1000, 32), "table4": (1000, 224)}
    printed = {
        (*data[table], model, method, k): millions
        for table, cells in TABLES.items() for (model, method, k), (_, millions) in cells.items()
    }
    assert {(c.classes, c.image_size, c.network, c.method, c.k): c.millions for c in paper.counts()} == printed
    assert len(paper.counts()) == len(printed) == 30


@pytest.mark.parametrize(("millions", "params", "agrees"), [
    (14.26, 14_268_068, True), (14.27, 14_268_068, True), (14.28, 14_268_068, False), (14.25, 14_268_068, False),
    (25.55, 25_557_032, True), (35.60, 35_605_544, True), (1.23, 986_280, False), (1.23, 1_232_040, True),
    (34.02, 34_015_396, True), (34.01, 34_015_396, True), (0.29, 290_000, True),
])
def test_agrees_when_rounded_or_truncated(millions: float, params: int, agrees: bool) -> None:
    count = Count(network="n", classes=1, image_size=1, millions=millions, source="s")
    assert count.agrees(params) is agrees


def test_findings_stand_by_the_printed_numbers() -> None:
    found = {f.name: f for f in paper.findings()}
    assert len(found) == len(paper.findings())
    assert {c.finding for c in paper.counts() if c.finding} <= set(found)
    one, three, four = TABLES["table1"], TABLES["table3"], TABLES["table4"]

    def loss(table: dict[tuple[str, str, int], tuple[float, float]], model: str, method: str, k: int) -> float:
        return round(table[model, "baseline", 0][0] - table[model, method, k][0], 2)

    assert loss(three, "vgg16", "conv1x1", 7) == 1.15 and "1.15 points" in found["outside-one-point"].we_find
    for value, case in ((0.91, (one, "vgg16", "gap_fc", 5)), (0.87, (three, "resnet50", "conv1x1", 6))):
        assert loss(*case) == value and f"{value:.2f} points" in found["no-loss-is-one-point"].we_find
    for value, case in ((0.45, (four, "vgg16", "conv1x1", 1)), (0.23, (four, "mobilenet_v2", "conv1x1", 2))):
        assert loss(*case) == value and f"{value:.2f} points" in found["imagenet-loss"].we_find
    losses = [loss(four, *key) for key in four if key[1] == "conv1x1"]
    assert sum(each < 0 for each in losses) == 3  # three of the five networks gain
    assert 1_248_424 - 2 * 8 * 64 * 256 == 986_280 and 1_248_424 - 2 * 8 * 16 * 64 == 1_232_040
    skips = 8 * (64 * 256 + 256 * 512 + 512 * 1024 + 1024 * 2048)
    assert round((23_705_252 + skips) / 1e6, 2) == 45.86 and "45.86 M" in found["skip-convolution"].we_find


def test_mixed_rounding_names_every_truncated_figure() -> None:
    (finding,) = [f for f in paper.findings() if f.name == "mixed-rounding"]
    truncated = {f"{c.millions:.2f}" for c in paper.counts()
                 if c.finding is None and round(c.millions * 100) != (exact(c) + 5_000) // 10_000}
    assert truncated == {"14.26", "33.50", "35.60", "17.68", "25.55"}
    assert all(figure in finding.we_find for figure in truncated)
    rounded_only = {f"{c.millions:.2f}" for c in paper.counts()
                    if c.finding is None and round(c.millions * 100) != exact(c) // 10_000}
    assert {"16.37", "19.26", "18.22"} <= rounded_only


def test_unknown_experiment_names_the_nearest() -> None:
    with pytest.raises(InputError, match="did you mean 'fig2-vgg16'"):
        paper.experiment("fig2-vgg")


STUDY = """
asks = "Does it matter whether images of a batch share a permutation?"
also = ["table2-left"]

[[series]]
model = "vgg16"
data = "cifar100"
methods = ["shuffle"]
ks = "0, 3-4"
shuffle = {per_image = true}

[scale]
width = 0.5
train_images = 1000
seeds = "0-1"
recipe = "fast"
overrides = {learning_rate = 0.05}
"""


def study_file(folder: Path, text: str, name: str = "per image.toml") -> Path:
    path = folder / name
    path.write_text(text, encoding="utf-8")
    return path


def test_a_study_file_is_an_experiment(tmp_path: Path) -> None:
    study = load_study(study_file(tmp_path, STUDY))
    assert isinstance(study, Experiment) and study.name == "per-image" and study.scale is not None
    trials = [p.trial for p in study.trials(study.scale)]
    assert [(t.seed, t.k) for t in trials] == [(0, 0), (0, 3), (0, 4), (1, 0), (1, 3), (1, 4)]
    assert {t.width for t in trials} == {0.5} and {t.recipe.learning_rate for t in trials} == {0.05}
    assert {t.recipe.name for t in trials} == {"fast"} and {t.train_images for t in trials} == {1000}
    assert trials[1].shuffle.per_image and not trials[0].shuffle.per_image
    assert [r.top1 for r in study.printed_all] == [74.10]  # per-image shuffling is not what Table 2 tested


@pytest.mark.parametrize(("before", "after", "message"), [
    ('ks = "0, 3-4"', 'ks = "0, x"', r"series\.0\.ks.*numbers such as"),
    ('ks = "0, 3-4"', 'ks = "0, 4-3"', r"series\.0\.ks.*numbers such as"),
    ('ks = "0, 3-4"', 'ks = "0-99999999999"', r"series\.0\.ks.*at most 10,000 numbers"),
    ('ks = "0, 3-4"', 'ks = "0-7000, 0-7000"', r"series\.0\.ks.*at most 10,000 numbers"),
    ('ks = "0, 3-4"', 'ks = "0-9999"\nstrips = "0-9999"', r"series: found [\d,]+ trials, expected at most 10,000"),
    ('ks = "0, 3-4"', "kz = [1]", r"series\.0\.kz.*one of model, data, methods, ks,"),
    ('methods = ["shuffle"]', 'methods = ["shufle"]', r"series\.0\.methods\.0.*'shuffle'"),
    ('methods = ["shuffle"]', "methods = []", r"series\.0\.methods"),
    ('model = "vgg16"', 'model = "vgg17"', r"model: found 'vgg17'.*did you mean 'vgg16'"),
    ('model = "vgg16"', "", r"series\.0\.model: found nothing, expected a value; add it"),
    ('methods = ["shuffle"]', 'method = ["shuffle"]', r"series\.0\.method: found 'method'.*did you mean 'methods'"),
    ("[[series]]", "[series]", r"series: found \[series\], expected \[\[series\]\]"),
    ("width = 0.5", "width = 0", r"scale\.width.*greater than 0"),
    ('recipe = "fast"', 'recipe = "fst"', "recipe: found 'fst'.*did you mean 'fast'"),
    ("learning_rate = 0.05", "learning_rat = 0.05", r"overrides: learning_rat"),
    ('"table2-left"', '"table2-lft"', "experiment: found 'table2-lft'.*did you mean 'table2-left'"),
    ("[scale]", "[[scale", "a TOML file"),
    ("asks =", "what = 3\nasks =", r"what.*one of name, source, section, title"),
    ("shuffle = {per_image = true}", "strips = [4]", r"strip: found 4, expected at most k = 3"),
])
def test_a_bad_study_file_is_named_with_its_field(tmp_path: Path, before: str, after: str, message: str) -> None:
    path = study_file(tmp_path, STUDY)
    assert load_study(path)
    path = study_file(tmp_path, STUDY.replace(before, after))
    with pytest.raises(InputError, match=message) as caught:
        load_study(path)
    assert str(path) in str(caught.value)


def test_a_missing_study_file(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="found no such file"):
        load_study(tmp_path / "none.toml")


@pytest.mark.parametrize("preset", PRESETS)
def test_imagenet_is_streamed_at_every_scale(preset: str) -> None:
    trials = [p.trial for name in NAMES for p in plan(name, preset)]
    for each in trials:
        assert (each.recipe.augment == "resized_crop") == (each.data == "imagenet")
    assert any(each.data == "imagenet" for each in trials)


@pytest.mark.parametrize("text", ["a=" + "[" * 5000, f"[{'.'.join('a' * 5000)}]\nb = 1"], ids=["lists", "tables"])
def test_a_study_nested_without_end_is_bad_input(text, tmp_path):
    with pytest.raises(InputError, match=r"study\.toml: found maximum recursion depth"):
        load_study(study_file(tmp_path, text, "study.toml"))
