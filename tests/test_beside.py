"""Several networks side by side: each against its own baseline, and only where something follows."""

from made_outcomes import outcome
from spaceless.beside import beside_chart, comparable
from spaceless.findings import panels
from spaceless.rows import rows


def _panels(*made):
    return panels(rows(made))


def _two():
    return [outcome(top1=74.0, units=10), outcome("conv1x1", 5, top1=73.0, units=10),
            outcome(model="resnet50", top1=77.0, units=16),
            outcome("conv1x1", 4, model="resnet50", top1=70.0, units=16)]


def test_each_network_is_counted_from_its_own_baseline():
    spec = beside_chart(comparable(_panels(*_two()), 1.0), 1.0)
    assert [cell["title"]["text"] for cell in spec["concat"]] == ["resnet50 on cifar100", "vgg16 on cifar100"]
    drawn = {(p["trial"], p["share"], p["y"]) for values in spec["datasets"].values() for p in values if "share" in p}
    assert drawn == {("vgg16 baseline cifar100", 0.0, 0.0), ("vgg16 conv1x1 K=5 cifar100", 50.0, -1.0),
                     ("resnet50 baseline cifar100", 0.0, 0.0), ("resnet50 conv1x1 K=4 cifar100", 25.0, -7.0)}
    scales = {str(layer["encoding"]["y"]["scale"]["domain"]) for cell in spec["concat"] for layer in cell["layer"]
              if layer["encoding"]["y"].get("scale")}
    assert scales == {"[-7, 0]"}  # one axis for all


def test_a_baseline_at_chance_is_left_out_and_one_network_is_no_comparison():
    vgg, base = _two()[:2], outcome(model="resnet50", top1=1.1, units=16)
    found = comparable(_panels(*vgg, base, outcome("conv1x1", 4, model="resnet50", top1=1.0, units=16)), 1.0)
    assert [p.title for p in found] == ["vgg16 on cifar100"]
    assert beside_chart(found, 1.0) is None


def test_panels_about_one_network_are_one_with_the_methods_as_the_paper_has_them():
    base, wide = _two()[:2]
    others = [outcome("gap_fc", 2, top1=74.0, units=10), outcome("conv1x1", 3, top1=60.0, units=10, downsample="max"),
              outcome("shuffle", 3, top1=60.0, units=10, shuffle={"fixed": True})]
    (found,) = comparable([*_panels(base, wide), *_panels(base, *others)], 1.0)
    assert [(row.trial.method, row.trial.k) for row in found.rows] == [("baseline", 0), ("conv1x1", 5), ("gap_fc", 2)]
    assert {found.series(row) for row in found.rows[1:]} == {"1x1 Conv", "GAP+FC"}
    (only,) = comparable(_panels(base, others[1]), 1.0)
    assert [row.trial.k for row in only.rows] == [0, 3]  # a variant is better than nothing


def test_titles_tell_protocols_apart():
    others = [outcome(width=0.5, units=10), outcome("conv1x1", 5, width=0.5, units=10)]
    found = comparable([*_panels(*_two()[:2]), *_panels(*others)], 1.0)
    assert sorted(p.title for p in found) == ["vgg16 on cifar100, width 0.5", "vgg16 on cifar100, width 1"]
