"""A trial on its way to a folder that can be handed on: what is in it is true, and nothing half done is left."""

from __future__ import annotations

import ast
import json
import re
import shutil
import signal
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch
import yaml
from PIL import Image
from torch import nn

import spaceless
from commands import Commands, is_an_error
from networks import Tied
from spaceless import export as export_room
from spaceless.card import card
from spaceless.cost import cost, count_parameters
from spaceless.data.augment import normalise
from spaceless.data.images import centre
from spaceless.errors import InputError, Interrupted, SpacelessError
from spaceless.export import FILES, export_run
from spaceless.onnx_file import TOLERANCE, TakesImages, to_onnx
from spaceless.run import Place, load_data, run_trial
from spaceless.trial import RECIPES, Outcome, Trial

torch.set_num_threads(1)

RECIPE = RECIPES["control"].model_copy(update={"epochs": 1, "batch_size": 16, "precision": "fp32"})
BASE = {"model": "chain:4-M-8-8", "data": "arrangement-4", "train_images": 64, "test_images": 1000, "recipe": RECIPE,
        "repeats": 2}
TRIALS = {name: Trial.model_validate(BASE | fields) for name, fields in {
    "baseline": {}, "conv1x1": {"method": "conv1x1", "k": 2}, "gap_fc": {"method": "gap_fc", "k": 1},
    "shuffle": {"method": "shuffle", "k": 2}, "fixed": {"method": "shuffle", "k": 1, "shuffle": {"fixed": True}},
    "channels": {"method": "channel_shuffle", "k": 1}, "stripped": {"method": "shuffle", "k": 2, "strip": 2},
}.items()}


@pytest.fixture(scope="module")
def runs(tmp_path_factory) -> dict[str, Outcome]:
    out = tmp_path_factory.mktemp("runs")
    return {name: run_trial(trial, Place(out, device="cpu")) for name, trial in TRIALS.items()} | {"": out}


@pytest.fixture(scope="module")
def made(runs, tmp_path_factory) -> tuple[Path, dict]:
    """The export of the conv1x1 trial, and its record."""
    out = tmp_path_factory.mktemp("made") / "small"
    return out, export_run(folder(runs, "conv1x1"), out=out, onnx=out.parent / "copy.onnx")


def folder(runs, name: str) -> Path:
    return runs[""] / TRIALS[name].id


def tree(place: Path) -> dict[str, bytes]:
    return {str(path.relative_to(place)): path.read_bytes() if path.is_file() else b"" for path in place.rglob("*")}


def images(count: int = 1000) -> torch.Tensor:
    return load_data(TRIALS["baseline"]).test_images[:count]


def test_weights_under_several_names_count_once_and_are_one_again(tmp_path, monkeypatch):
    monkeypatch.setattr("spaceless.models._construct", lambda _name, classes, _size: Tied(classes))
    trial = TRIALS["conv1x1"].model_copy(update={
        "model": "torchvision:tied", "k": 1, "test_images": 40, "image_size": 16})
    with pytest.raises(InputError, match="one: found a convolution that runs 2 times"):
        run_trial(trial.model_copy(update={"k": 2}), Place(tmp_path, device="cpu"))
    run_trial(trial, Place(tmp_path, device="cpu"))
    record = export_run(tmp_path / trial.id)
    assert record["original"]["params"] == (27 * 8 + 8) + (72 * 8 + 16) + 16 + (8 * 4 + 4)
    assert record["exported"]["params"] == record["original"]["params"] + 64  # the 1x1 kernel is one of its own
    model = spaceless.load_model(tmp_path / trial.id / "export")
    assert model.one is model.again


def test_the_folder_holds_what_it_should_and_the_record_says_so(made):
    out, record = made
    assert sorted(path.name for path in out.iterdir()) == sorted(FILES)
    assert json.loads((out / "export.json").read_text()) == record
    assert set(record["files"]) == {"model.safetensors", "model.onnx", "surgery.json"}
    for name, file in record["files"].items():
        assert file["bytes"] == (out / name).stat().st_size
    assert [path.name for path in out.parent.iterdir() if path.name.startswith(".")] == []
    assert (out.parent / "copy.onnx").read_bytes() == (out / "model.onnx").read_bytes()


def test_both_networks_are_described_by_what_was_measured(made, runs):
    record, small, whole = made[1], runs["conv1x1"], runs["baseline"]
    for row, outcome in ((record["exported"], small), (record["original"], whole)):
        assert (row["params"], row["macs"], row["top1"]) == (outcome.params, outcome.macs, outcome.top1)
        for times in row["latency"].values():
            assert 0 < times["lower"] <= times["median"] <= times["upper"] < 1
            assert times["repeats"] == 50
        weights = runs[""] / outcome.trial.id / "model.safetensors"
        assert row["safetensors_bytes"] == weights.stat().st_size
    assert record["exported"]["onnx_bytes"] == (made[0] / "model.onnx").stat().st_size
    assert record["original"]["onnx_bytes"] > record["exported"]["onnx_bytes"]
    assert set(record["times_as_fast"]) == {"pytorch", "onnxruntime"}


def test_the_checks_are_those_of_all_1000_test_images(made, runs):
    checks = made[1]["checks"]
    assert checks["images"] == checks["same_class"] == checks["rebuilt_bit_identical"] == 1000
    assert checks["correct_onnx"] == checks["correct_pytorch"] == round(10 * runs["conv1x1"].top1)
    assert 0 <= checks["largest_difference"] <= checks["allowed"] == TOLERANCE


def test_the_files_answer_as_the_trial_does(made, runs):
    out, record = made
    x = normalise(images(), record["mean"], record["std"])
    with torch.inference_mode():
        expected = spaceless.load_model(folder(runs, "conv1x1"))(x)
        assert torch.equal(spaceless.load_model(out)(x), expected)
    (found,) = onnxruntime.InferenceSession(out / "model.onnx").run(None, {"images": images().numpy()})
    np.testing.assert_allclose(found, expected.numpy(), atol=TOLERANCE, rtol=0)
    assert len(expected.unique(dim=0)) > 500


def test_the_card_says_it_and_its_code_runs(made, monkeypatch, capsys):
    out, record = made
    text = (out / "README.md").read_text()
    _, head, body = text.split("---\n", 2)
    head = yaml.safe_load(head)
    assert head["pipeline_tag"] == "image-classification"
    result = head["model-index"][0]["results"][0]
    assert result["dataset"]["name"] == "arrangement-4"
    assert 100 * result["metrics"][0]["value"] == pytest.approx(record["exported"]["top1"])
    for name in ("params", "macs"):
        for row in ("original", "exported"):
            assert f" {record[row][name]:,} |" in body
    assert head["model-index"][0]["name"] == record["name"] == "chain-4-M-8-8-conv1x1-k2"
    assert "method `conv1x1`, K = 2: the last 2 of its 3 units changed" in body
    assert "1,000 test images" in body
    codes = re.findall(r"```python\n(.*?)```", body, re.DOTALL)
    assert len(codes) == 2
    monkeypatch.chdir(out)
    given = []
    for code in codes:
        mine = images(5) if "torch" in code else images(5).numpy()
        names = {"mine": mine}
        exec(re.sub(r"(?m)^images = .*$", "images = mine", code), names)
        given.append(np.asarray(names["logits"]))
    np.testing.assert_allclose(*given, atol=TOLERANCE, rtol=0)
    assert given[0].shape == (5, 4)
    told = capsys.readouterr().out
    assert len(ast.literal_eval(told)) == 5  # the names of the classes


@pytest.mark.parametrize(("size", "beyond"), [((80, 60), 0), ((61, 140), 0), ((300, 200), 7), ((48, 48), 0)])
def test_an_image_is_prepared_by_the_cards_code_as_in_the_test(size, beyond, made, tmp_path):
    side = made[1]["network"]["image_size"]
    assert made[1]["preprocessing"]["shorter_side"] == side == made[1]["preprocessing"]["centre"]
    shorter = side + beyond  # larger where images are streamed
    record = made[1] | {"preprocessing": made[1]["preprocessing"] | {"shorter_side": shorter}}
    (code,) = re.findall(r"```python\n(.*?)\n\n\nsession = ", card(record), re.DOTALL)
    names = {}
    exec(code, names)
    pixels = np.random.default_rng(0).integers(0, 256, (*size[::-1], 3), np.uint8)
    Image.fromarray(pixels).save(tmp_path / "image.png")
    expected = centre(Image.fromarray(pixels), shorter, side, "image.png")
    np.testing.assert_array_equal(names["prepared"](tmp_path / "image.png"), np.asarray(expected).transpose(2, 0, 1))


def test_nothing_in_the_folder_names_a_place_of_this_machine(made, runs):
    for content in tree(made[0]).values():
        for place in (runs[""], made[0].parent, Path.home(), Path(spaceless.__file__).parent):
            assert str(place).encode() not in content


def test_a_baseline_has_no_original_beside_it(runs, tmp_path):
    record = export_run(folder(runs, "baseline"), out=tmp_path / "whole", images=40)
    assert (record["original"], record["times_as_fast"], record["checks"]["images"]) == (None, None, 40)
    assert "It is `chain:4-M-8-8`, unchanged." in (tmp_path / "whole" / "README.md").read_text()


def test_an_original_that_was_not_trained_there_has_no_accuracy(runs, tmp_path):
    run = shutil.copytree(folder(runs, "gap_fc"), tmp_path / TRIALS["gap_fc"].id)
    record = export_run(run, images=40)
    assert record["original"]["top1"] is None
    text = (run / "export" / "README.md").read_text()
    assert "| top-1 accuracy on the test images | – |" in text
    assert "its accuracy is not known" in text
    assert record["original"]["params"] == runs["baseline"].params


def test_where_all_that_shuffled_was_removed_there_is_nothing_to_refuse(runs, tmp_path):
    record = export_run(folder(runs, "stripped"), out=tmp_path / "x", images=40)
    assert record["checks"]["same_class"] == 40
    assert "units changed: they were removed altogether." in (tmp_path / "x" / "README.md").read_text()


# --- refused ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["shuffle", "channels", "fixed"])
def test_networks_that_shuffle_are_refused_with_reason_and_cure(name, runs, tmp_path):
    before = tree(runs[""])
    with pytest.raises(InputError) as caught:
        export_run(folder(runs, name), out=tmp_path / "x")
    message = str(caught.value)
    assert "a random permutation" in message
    assert "for which ONNX has no operation" in message
    assert "conv1x1 or gap_fc" in message
    assert ("redrawn in every pass" in message) == (name != "fixed")
    assert tree(runs[""]) == before
    assert tree(tmp_path) == {}
    assert spaceless.load_model(folder(runs, name))(torch.zeros(1, 3, 48, 48)).shape == (1, 4)


@pytest.fixture
def command(tmp_path, monkeypatch, capsys) -> Commands:
    return Commands(tmp_path, monkeypatch, capsys)


WRONG = {
    "nothing": (), "no folder": ("nowhere",), "not a run": (".",), "a file": ("file",),
    "option": ("RUN", "--format", "x"),
    "out is a file": ("RUN", "--out", "file"), "out is in a file": ("RUN", "--out", "file/x"),
    "out holds other things": ("RUN", "--out", "mine"), "out is the run": ("RUN", "--out", "RUN"),
    "onnx is a folder": ("RUN", "--out", "x", "--onnx", "mine"),
    "onnx is in a file": ("RUN", "--out", "x", "--onnx", "file/x"),
    "onnx in out": ("RUN", "--out", "x", "--onnx", "x/model.onnx"), "onnx is out": ("RUN", "--out", "x", "--onnx", "x"),
    "no images": ("RUN", "--out", "x", "--images", "0"), "too many images": ("RUN", "--out", "x", "--images", "1001"),
    "images, a word": ("RUN", "--out", "x", "--images", "all"),
    "a shuffle": ("SHUFFLE", "--out", "x"),
    "unfinished": ("UNFINISHED", "--out", "x"), "no weights": ("WEIGHTLESS", "--out", "x"),
}


@pytest.mark.parametrize("what", WRONG)
def test_wrong_input_gives_three_lines_status_2_and_leaves_nothing(what, command, runs, tmp_path):
    (tmp_path / "file").write_text("in the way")
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.tex").write_text("do not touch")
    for name, lost in (("UNFINISHED", "outcome.json"), ("WEIGHTLESS", "model.safetensors")):
        shutil.copytree(folder(runs, "conv1x1"), tmp_path / name / TRIALS["conv1x1"].id)
        (tmp_path / name / TRIALS["conv1x1"].id / lost).unlink()
    places = {"RUN": folder(runs, "conv1x1"), "SHUFFLE": folder(runs, "shuffle")} | {
        name: tmp_path / name / TRIALS["conv1x1"].id for name in ("UNFINISHED", "WEIGHTLESS")}
    before, trials = tree(tmp_path), tree(runs[""])
    is_an_error(*command("export", *(places.get(word, word) for word in WRONG[what])))
    assert tree(tmp_path) == before
    assert tree(runs[""]) == trials


def test_the_command_prints_one_document_or_a_table(command, runs, tmp_path):
    status, out, err = command("export", folder(runs, "conv1x1"), "--out", "small", "--images", 50, "--json")
    assert (status, err) == (0, "")
    found = json.loads(out)
    assert found["folder"] == "small"
    assert found["checks"]["images"] == 50
    status, out, err = command("export", folder(runs, "conv1x1"), "--out", "small", "--images", 60)  # again
    assert (status, err) == (0, "")
    assert out.splitlines()[-1] == "small"
    rows = {line.split()[0]: line.split() for line in out.splitlines() if line.strip()}
    assert rows["parameters"][1:] == [f"{found[name]['params']:,}" for name in ("original", "exported")]
    assert json.loads((tmp_path / "small" / "export.json").read_text())["checks"]["images"] == 60
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".small")] == []


def test_the_folder_that_one_stands_in_is_a_trial_too(command, runs, tmp_path, monkeypatch, translated):
    run = shutil.copytree(folder(runs, "conv1x1"), tmp_path / TRIALS["conv1x1"].id)
    monkeypatch.chdir(run)
    status, out, err = command("export", ".", "--images", 20, "--onnx", "../copy.onnx", "--json")
    assert (status, err, json.loads(out)["folder"]) == (0, "", "export")
    assert sorted(path.name for path in (run / "export").iterdir()) == sorted(FILES)
    assert (tmp_path / "copy.onnx").is_file()


def test_the_data_are_looked_for_where_the_user_says(command, tmp_path):
    (tmp_path / "there").mkdir()
    pixels = np.random.default_rng(0).integers(0, 256, (32, 16, 16, 3), dtype=np.uint8)
    labels = np.arange(32) % 2
    names = {"train_images": pixels, "train_labels": labels, "test_images": pixels, "test_labels": labels}
    np.savez(tmp_path / "there" / "mine.npz", **names)
    trial = Trial(model="chain:4", data="mine", method="conv1x1", k=1, recipe=RECIPE)
    run_trial(trial, Place(tmp_path / "runs", tmp_path / "there", "cpu"))
    is_an_error(*command("export", tmp_path / "runs" / trial.id, "--out", "x"))
    status, out, _ = command("export", tmp_path / "runs" / trial.id, "--out", "x", "--data-root", "there", "--json")
    assert (status, json.loads(out)["checks"]["images"]) == (0, 32)
    assert b"there" not in b"".join(tree(tmp_path / "x").values())
    (tmp_path / "other").mkdir()
    np.savez(tmp_path / "other" / "mine.npz", **names | {"test_images": pixels[::-1]})
    is_an_error(*command("export", tmp_path / "runs" / trial.id, "--out", "y", "--data-root", "other"))
    assert not (tmp_path / "y").exists()


# --- what breaks leaves what was there -------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def files(runs) -> dict[int, bytes]:
    """The ONNX files of the conv1x1 trial's network and of its original, by the number of parameters."""
    data = load_data(TRIALS["conv1x1"])
    networks = [spaceless.load_model(folder(runs, name)) for name in ("baseline", "conv1x1")]
    return {count_parameters(m): to_onnx(m, data.image_size, data.mean, data.std, data.class_names) for m in networks}


@pytest.fixture
def translated(files, monkeypatch) -> None:
    """Spare the translation, which takes most of the time."""
    monkeypatch.setattr(export_room, "to_onnx", lambda model, *_: files[count_parameters(model)])


def wrong_scale(self, x):
    return self.model(x.to(torch.float32) * self.scale)


def a_weight_apart(place):
    model = spaceless.load_model(place)
    with torch.no_grad():
        next(model.parameters()).view(-1)[0] += 1e-3
    return model


def raising(*_args, **_kwargs):
    raise OSError(28, "No space left on device")


BREAKS = {
    "the rebuilt network answers otherwise": (
        export_room, "load_model", a_weight_apart, SpacelessError, "a rebuilt network with other logits"),
    "the card cannot be made": (export_room, "card", raising, OSError, "No space left"),
    "the latency cannot be measured": (export_room, "session_latencies", raising, OSError, "No space left"),
}


@pytest.mark.parametrize("what", BREAKS)
@pytest.mark.parametrize("earlier", [False, True])
def test_whatever_breaks_leaves_an_earlier_export_or_nothing(
    what, earlier, made, runs, tmp_path, monkeypatch, translated,
):
    out = tmp_path / "in" / "deep"
    if earlier:
        shutil.copytree(made[0], out)
    before = tree(tmp_path)
    place, name, broken, error, says = BREAKS[what]
    monkeypatch.setattr(place, name, broken)
    with pytest.raises(error, match=says):
        export_run(folder(runs, "conv1x1"), out=out, onnx=tmp_path / "x.onnx", images=30)
    assert tree(tmp_path) == before


def test_an_onnx_file_that_answers_otherwise_is_noticed(runs, tmp_path, monkeypatch):
    monkeypatch.setattr(TakesImages, "forward", wrong_scale)
    with pytest.raises(SpacelessError, match=r"ONNX: found logits that differ by .* on 30 images") as caught:
        export_run(folder(runs, "conv1x1"), out=tmp_path / "x", onnx=tmp_path / "x.onnx", images=30)
    assert caught.value.exit_status == 1
    assert tree(tmp_path) == {}


def test_a_folder_that_cannot_take_its_place_leaves_the_earlier_one(made, runs, tmp_path, monkeypatch, translated):
    out = shutil.copytree(made[0], tmp_path / "x")
    before, rename = tree(tmp_path), Path.rename

    def refused(self, target):
        if self.name.endswith(".new"):
            raise OSError(5, "Input/output error")
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", refused)
    with pytest.raises(OSError, match="Input/output"):
        export_run(folder(runs, "conv1x1"), out=out, images=30)
    assert tree(tmp_path) == before


def test_a_signal_ends_it_and_nothing_is_left(runs, tmp_path, translated):
    shares: list[float] = []
    for steps in range(5):
        shares.clear()
        with pytest.raises(Interrupted) as caught:
            export_run(folder(runs, "conv1x1"), out=tmp_path / "x", images=30, progress=shares.append,
                       stop=lambda steps=steps: signal.SIGTERM if len(shares) == steps else None)
        assert caught.value.exit_status == 143
        assert tree(tmp_path) == {}
    assert shares == sorted(shares)


def test_the_networks_are_told_apart_by_what_they_are(made, runs):
    """The row `original` is the network without surgery, `exported` the one of the trial."""
    small = spaceless.load_model(made[0])
    assert [m.kernel_size for m in small.modules() if isinstance(m, nn.Conv2d)] == [(3, 3), (1, 1), (1, 1)]
    assert cost(small, 48).params == made[1]["exported"]["params"] < made[1]["original"]["params"]
    assert runs["conv1x1"].params == made[1]["exported"]["params"]
