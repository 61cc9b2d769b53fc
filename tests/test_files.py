"""A report as files: every figure as a picture that stands alone, every table as CSV, every chart as an object."""

import csv
import xml.etree.ElementTree as ElementTree

import pytest

import spaceless
from made_outcomes import manifest, outcome, store
from spaceless.errors import InputError
from spaceless.files import write
from spaceless.report import write_report


@pytest.fixture
def runs(tmp_path):
    made = [outcome(top1=74.12), *(outcome("conv1x1", k, top1=74.0, params=34_000_000 - k * 10**6) for k in (1, 5))]
    store(tmp_path / "runs", *made)
    manifest(tmp_path / "runs", "fig2-vgg16", [*made, outcome("conv1x1", 6)], experiment="fig2-vgg16")
    return tmp_path / "runs"


def test_figures_become_svg_and_png_and_tables_csv(runs, tmp_path):
    out = tmp_path / "out"
    assert write_report([runs], files=out) == out
    names = sorted(path.name for path in out.iterdir())
    assert [name for name in names if name.endswith(".svg")] == [
        f"figure-01-fig2-vgg16-accuracy-over-{axis}.svg" for axis in ("k", "parameters", "share-of-the-units")]
    assert [name.removesuffix("svg") for name in names if name.endswith(".svg")] == [
        name.removesuffix("png") for name in names if name.endswith(".png")]
    for path in out.glob("*.svg"):
        text = path.read_text()
        assert ElementTree.fromstring(text).tag.endswith("svg")
        assert "currentColor" not in text  # there is no page whose ink it could take
    for path in out.glob("*.png"):
        assert path.read_bytes().startswith(b"\x89PNG")
    assert not (runs / "report.html").exists()
    captions = (out / "captions.md").read_text(encoding="utf-8").splitlines()
    assert [line.split("`")[1] for line in captions] == [
        name.removesuffix(".svg") for name in sorted(names) if name.endswith(".svg")] or len(captions) == 3
    assert all("vgg16 on cifar100. " in line for line in captions)


def test_several_networks_of_one_study_are_told_apart_by_name_and_title(tmp_path):
    made = [outcome(method, k, model=model, params=34_000_000 - k) for model in ("vgg16", "resnet50")
            for method, k in (("baseline", 0), ("conv1x1", 1))]
    manifest(store(tmp_path / "runs", *made), "two", made)
    write_report([tmp_path / "runs"], files=tmp_path / "out")
    over_k = sorted(path.name for path in (tmp_path / "out").glob("*-over-k.svg"))
    assert over_k == ["figure-02-two-accuracy-resnet50-on-cifar100-over-k.svg",
                      "figure-03-two-accuracy-vgg16-on-cifar100-over-k.svg"]
    assert "resnet50 on cifar100" in (tmp_path / "out" / over_k[0]).read_text(encoding="utf-8")


def test_a_table_in_csv_has_numbers_that_a_program_reads(runs, tmp_path):
    write_report([runs], files=tmp_path / "out")
    first, second = sorted((tmp_path / "out").glob("*.csv"))
    lines = list(csv.DictReader(first.open(encoding="utf-8")))
    assert [line["K units"] for line in lines] == ["0", "1", "5", "6"]
    assert lines[2]["differs points"] == "-0.06"
    assert lines[3]["top-1 percent"] == ""  # missing stays missing
    assert lines[3]["n runs"] == "0"
    assert "not-measured-here" in second.name


def test_a_notebook_gets_the_same_charts_as_objects(runs):
    charts = spaceless.figures(runs)
    assert list(charts) == [f"1 fig2-vgg16 accuracy over {axis}" for axis in ("K", "share of the units", "parameters")]
    assert [type(chart).__name__ for chart in charts.values()] == ["VConcatChart", "LayerChart", "LayerChart"]
    for number, chart in enumerate(charts.values()):  # as a notebook shows them: checked against Vega-Lite's schema
        chart.save(runs / f"{number}.svg")
        assert "currentColor" in (runs / f"{number}.svg").read_text()  # the notebook's ink
    spec = next(iter(charts.values())).to_dict()
    assert any(each["y"] == 74.12 for values in spec["datasets"].values() for each in values if "y" in each)


def test_a_file_is_written_whole_or_not_at_all(tmp_path):
    (tmp_path / "taken").mkdir()
    with pytest.raises(InputError, match="choose another place"):
        write(tmp_path / "taken", "text")
    assert [path.name for path in tmp_path.iterdir()] == ["taken"]
    assert write(tmp_path / "new" / "x", b"\x00").read_bytes() == b"\x00"
