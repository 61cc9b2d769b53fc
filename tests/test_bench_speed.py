"""The benches of speed: how ratios are taken, what a record holds and a page says, that the plain loop is honest."""

import json
import os
import statistics
import subprocess
import sys
import time

import pytest
import torch

from spaceless import cli, measuring
from spaceless.bench import accuracy, evaluate, floor, plain, shuffle, study, timing, train, train_worker
from spaceless.bench.record import headed
from spaceless.bench.subjects import CLASSES, RECIPE, Network, for_steps, made_images
from spaceless.bench.verdicts import Target, figure, line, measurement, ratio, table
from spaceless.cost import cost
from spaceless.data.augment import normalise
from spaceless.errors import SpacelessError

torch.set_num_threads(1)
TINY = Network("chain:4-M-8", 1.0, 16)
SHORT = 0.02  # seconds


@pytest.fixture(autouse=True)
def fp32_only(monkeypatch):
    """The same cases on every machine: bf16 would be emulated on some."""
    monkeypatch.setattr(timing, "precisions", lambda: ("fp32",))
    for room in (shuffle, evaluate, floor, study):
        monkeypatch.setattr(room, "precisions", lambda: ("fp32",))


def quiet(_text):
    pass


# How ratios are taken.


def test_a_ratio_is_the_median_of_the_rounds_ratios():
    # 6/2, 4/4, 10/2, 2/1, 8/2: sorted 1, 2, 3, 4, 5. The quotient of the medians, 6/2 = 3, is the same only by chance,
    # so the second case has one that differs: 1/1, 9/3, 2/4: sorted 0.5, 1, 3; of the medians 2/3.
    found = ratio({"a": [6, 4, 10, 2, 8], "b": [2, 4, 2, 1, 2]}, "a", "b")
    assert (found["lower"], found["median"], found["upper"], found["rounds"]) == (2, 3, 4, 5)
    assert found["of"] == "a / b"
    assert ratio({"a": [1, 9, 2], "b": [1, 3, 4]}, "a", "b")["median"] == 1
    assert ratio({"a": [1, 9, 2], "b": [1, 3, 4]}, "a", "b", scale=50)["median"] == 50


def test_rounds_that_do_not_pair_up_are_refused():
    with pytest.raises(ValueError, match="shorter"):
        ratio({"a": [1, 2], "b": [1]}, "a", "b")


def test_a_disturbance_that_hits_both_halves_of_a_round_cancels():
    quiet_rounds, loud = ([3.0, 3, 3], [2.0, 2, 2]), ([3.0, 300, 3], [2.0, 200, 2])
    assert [ratio({"a": a, "b": b}, "a", "b") for a, b in (quiet_rounds, loud)] == [
        ratio({"a": [3.0] * 3, "b": [2.0] * 3}, "a", "b")] * 2


@pytest.mark.parametrize(("target", "median", "met"), [
    (Target(least=2.6), 2.59, False), (Target(least=2.6), 2.6, True), (Target(most=1.06), 1.061, False),
    (Target(most=1.06), 1.06, True), (Target(least=0.8, most=1.2), 1.3, False), (Target(moonshot=9), 1, True)])
def test_a_target_bounds_from_below_or_above(target, median, met):
    assert target.met(median) is met
    assert figure("x", [median], target)["met"] is met


def test_a_page_says_what_is_not_met():
    times = {"plain": [2.0, 2.0, 2.2], "ours": [1.0, 1.0, 1.0]}
    short, reached = Target(least=2.6, moonshot=3.2), Target(most=2.5)
    rows = table([measurement("net", times, [
        ratio(times, "plain", "ours", short), ratio(times, "plain", "ours", reached), ratio(times, "plain", "ours")])])
    assert rows[2:] == [
        "| net | plain / ours | 2 | 2 to 2.1 | 3 | at least 2.6 [3.2] | not met |",
        "| net | plain / ours | 2 | 2 to 2.1 | 3 | at most 2.5 | met |",
        "| net | plain / ours | 2 | 2 to 2.1 | 3 | – |  |",
    ]
    told = line(measurement("net", times, [ratio(times, "plain", "ours", short)]))
    assert told == "net: plain / ours 2 (not met)"


def test_works_take_turns():
    turns = []

    def work(name):
        turns.append(name)
        return float(len(turns))

    times = timing.interleaved({"a": lambda: work("a"), "b": lambda: work("b")}, 0, warm_up=2)
    assert turns == ["a", "b"] * 5  # two rounds of warm-up, then the three that there are at least
    assert times == {"a": [5.0, 7.0, 9.0], "b": [6.0, 8.0, 10.0]}
    assert len(timing.interleaved({"a": timing.timed(lambda: None)}, 0.05)["a"]) > 3


def test_a_step_is_timed_without_the_first_and_is_one_of_the_real_loop(monkeypatch):
    told = []

    def slow_start(model, data, recipe, seed, *, precision, progress):
        assert (data.train_count, recipe.epochs) == (4 * recipe.batch_size, 1)
        for step in range(1, 5):
            clock[0] += 100 if step == 1 else 3
            progress(timing.Progress(step / 4, 1, 1, 0.0))
            told.append((step, precision))

    clock = [0.0]
    monkeypatch.setattr(timing, "train", slow_start)
    monkeypatch.setattr(timing, "now", lambda: clock[0])
    assert timing.training_steps(TINY.build(), "bf16", size=16)() == 3
    assert told == [(step, "bf16") for step in (1, 2, 3, 4)]


# The plain loop.


def test_the_plain_loop_learns():
    data = made_images(256, 64, size=16, classes=4)
    recipe = RECIPE.model_copy(update={"batch_size": 32, "epochs": 6, "learning_rate": 0.05})
    model = TINY.build()
    with torch.random.fork_rng():
        torch.manual_seed(0)
        losses = plain.train_plainly(model, data, recipe, workers=0)
    assert len(losses) == 48
    assert sum(losses[-8:]) < 0.6 * sum(losses[:8])
    assert plain.plain_accuracy(model, data) > 60  # of four classes


def test_the_plain_loop_ends_when_it_has_had_enough():
    data, recipe = for_steps(4, RECIPE.model_copy(update={"batch_size": 8}), 16)
    assert len(plain.train_plainly(TINY.build(), data, recipe, workers=0, enough=lambda done: done == 3)) == 3


def test_the_plain_pipeline_gives_our_pixels():
    data = made_images(64, size=16)
    ours = normalise(data.train_images, data.mean, data.std)
    same = plain.training_images(data, augment=False)
    assert torch.allclose(torch.stack([same[i][0] for i in range(64)]), ours, atol=1e-5)
    assert [same[i][1] for i in range(64)] == data.train_labels.tolist()
    assert ours.mean((0, 2, 3)).abs().max() < 1e-5
    assert (ours.std((0, 2, 3)) - 1).abs().max() < 1e-3


def test_the_plain_pipeline_crops_and_flips_as_ours_does():
    from spaceless.data.augment import apply_crops, draw_crops

    data = made_images(512, size=32)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        images = plain.training_images(data)
        theirs = torch.stack([images[i][0] for i in range(512)])
    crops = draw_crops(512, torch.Generator().manual_seed(1))
    ours = normalise(apply_crops(data.train_images, crops), data.mean, data.std)
    for one, other in ((theirs.mean(), ours.mean()), (theirs.std(), ours.std())):
        assert abs(one - other) < 0.02  # the black border of a padded image darkens both by about half a deviation
    assert theirs.mean() < -0.2


def test_the_clock_counts_steps_behind_its_warm_up(monkeypatch):
    clock = [0.0]
    monkeypatch.setattr(train_worker, "now", lambda: clock[0])
    monkeypatch.setattr(train_worker.time, "perf_counter", lambda: clock[0])
    watch, over = train_worker.Clock(8.0), []
    for step in range(1, 20):
        clock[0] += 50 if step == 1 else 1
        over.append(watch.step(step))
        if over[-1]:
            break
    # Step 1 is at 50 s, and the warm-up lasts a quarter of 8 s from there: step 3. Eight steps more take 8 s.
    assert (len(over), watch.steps, watch.elapsed) == (11, 8, 8.0)


@pytest.mark.parametrize("side", ["plain", "ours"])
def test_a_side_counts_images_and_seconds(side, monkeypatch):
    asked = []
    monkeypatch.setattr(train_worker, "keep_memory", lambda: asked.append(side) or True)
    found = train_worker.measure(side, TINY, SHORT, images=1280, batch_size=8, workers=0)
    assert found["side"] == side
    assert asked == ([side] if side == "ours" else [])
    assert found["seconds"] >= SHORT
    assert found["steps"] == len(found["marks"]) - 1 >= 1
    assert found["images_per_second"] == pytest.approx(8 * found["steps"] / found["seconds"])
    if side == "plain":
        assert (found["precision"], found["memory_kept"]) == ("fp32", False)


# The benches, each on something tiny.


def test_train_has_a_process_for_each_side_of_each_round(monkeypatch):
    case = train.Case(TINY, Target(least=1e9), ("--images", "640", "--batch", "8"))
    calls = []
    spoken = train_worker.measure("ours", TINY, SHORT, images=640, batch_size=8) | {"steps": 10, "batch": 8}

    def worker(command, **options):
        calls.append((command[3], options["env"].get("MALLOC_TOP_PAD_")))
        assert command[1:3] == ["-m", "spaceless.bench.train_worker"]
        assert command[4:7] == ["chain:4-M-8", "1", "0.02"]
        seconds = 4.0 if command[3] == "plain" else 2.0
        answer = json.dumps(spoken | {"side": command[3], "seconds": seconds})
        return subprocess.CompletedProcess(command, 0, answer, "")

    monkeypatch.setattr(train.subprocess, "run", worker)
    monkeypatch.setenv("MALLOC_TOP_PAD_", "1")
    record = headed("train", "cmd", train.run(SHORT, quiet, [case]))
    assert calls == [("plain", None), ("ours", None)] * 3
    found = record["measurements"][0]
    assert found["times"] == {"plain": [0.05] * 3, "ours": [0.025] * 3}
    assert found["images_per_second"] == {"plain": 20, "ours": 40}
    assert found["figures"][0]["median"] == 2
    assert "| chain:4-M-8 | plain / ours | 2 | 2 to 2 | 3 | at least 1e+09 | not met |" in train.markdown(record)


def test_a_worker_speaks_json_and_a_failing_one_is_named(monkeypatch):
    case = train.Case(TINY, None, ("--images", "640", "--batch", "8"))
    assert train._side("plain", case, SHORT)["steps"] >= 1
    for failed in (subprocess.CompletedProcess([], 1, "", "once\nout of memory"),
                   subprocess.CompletedProcess([], 0, "no JSON", "out of memory")):
        monkeypatch.setattr(train.subprocess, "run", lambda *_, failed=failed, **__: failed)
        with pytest.raises(SpacelessError, match=r"training ours chain:4-M-8 .* found out of memory"):
            train._side("ours", case, SHORT)


def test_neither_side_has_anothers_allocator(monkeypatch):
    monkeypatch.setenv("MALLOC_MMAP_THRESHOLD_", "1")
    monkeypatch.setenv("LD_PRELOAD", "libother.so")
    assert train.environment() == {
        name: value for name, value in os.environ.items() if name not in ("MALLOC_MMAP_THRESHOLD_", "LD_PRELOAD")}


def test_shuffle_measures_every_map_and_whole_steps():
    assert shuffle.map_shapes(Network("vgg16", 0.25), 128) == [
        (128, 3, 32, 32), (128, 16, 32, 32), (128, 16, 16, 16), (128, 32, 16, 16), (128, 32, 8, 8), (128, 64, 8, 8),
        (128, 64, 4, 4), (128, 128, 4, 4), (128, 128, 2, 2)]
    steps = [shuffle.Case(TINY, "fp32", Target(most=0), batch=8), shuffle.Case(TINY, "bf16", batch=8)]
    record = headed("shuffle", "cmd", shuffle.run(SHORT, quiet, TINY, steps, batch=4))
    assert [(each["shape"], each["backward"]) for each in record["operator"]] == [
        ((4, 3, 16, 16), False), ((4, 3, 16, 16), True), ((4, 4, 8, 8), False), ((4, 4, 8, 8), True)]
    assert all(set(each["times"]) == {"copy", "ours", "randperm", "argsort"} for each in record["operator"])
    assert all(min(values) > 0 for each in record["operator"] for values in each["times"].values())
    assert [each["precision"] for each in record["measurements"]] == ["fp32"]  # bf16 is left out where it is slow
    assert record["measurements"][0]["units"] == 2
    page = shuffle.markdown(record)
    assert "| step of chain:4-M-8, all 2 units, fp32 | shuffled / unshuffled |" in page
    assert "not met" in page
    assert "| 4x4x8x8 fp32 with backward |" in page


@pytest.mark.parametrize("way", [shuffle.randperm_loop, shuffle.argsort_gather])
def test_a_naive_way_permutes_each_channel_alike_in_all_images(way):
    x = torch.arange(3 * 16.0).view(1, 3, 4, 4).repeat(2, 1, 1, 1)
    y = way(x)
    assert y.shape == x.shape
    assert torch.equal(y[0], y[1])
    assert torch.equal(y.flatten(2).sort(2).values, x.flatten(2))
    orders = y[0].flatten(1) - x[0, :, :1, :1].flatten(1)
    assert not torch.equal(orders[0], orders[1])


@pytest.mark.parametrize("known", [("fp32",), ("fp32", "bf16")])
def test_evaluate_scales_the_naive_way_up(known, monkeypatch):
    monkeypatch.setattr(evaluate, "precisions", lambda: known)
    cases = [evaluate.Case(TINY, 1, Target(least=1e9), Target(least=0)), evaluate.Case(TINY, 2)]
    record = headed("evaluate", "cmd", evaluate.run(SHORT, quiet, cases, images=8, repeats=6, naive_repeats=2))
    found = record["measurements"][0]
    assert found["precision"] == known[-1]
    assert [each["of"] for each in found["figures"]] == [f"naive {each} / ours" for each in reversed(known)]
    for precision, told in zip(reversed(known), found["figures"], strict=True):
        ratios = [3 * a / b for a, b in zip(found["times"][f"naive {precision}"], found["times"]["ours"], strict=True)]
        assert told["median"] == pytest.approx(statistics.median(ratios), rel=1e-4)
    page = evaluate.markdown(record)
    assert page.count("| not met |") == 1
    assert page.count("| met |") == len(known) - 1


def test_evaluate_knows_what_the_multiply_adds_allow():
    # On 16 pixels: 3 * 4 * 9 * 256 in front; behind it 4 * 8 * 9 * 64 and the linear layer of 8 * 100.
    front, tail = 27_648, 18_432 + 800
    model = TINY.build("shuffle", 1)
    assert evaluate.promised(model, 16, 10) == pytest.approx(10 * (front + tail) / (front + 10 * tail), abs=0.01)


def test_naive_passes_are_the_passes_of_ours():
    from spaceless.evaluation import evaluate as ours
    from spaceless.shuffle import seek

    data = made_images(8, 64, size=16, classes=CLASSES)
    model = TINY.build("shuffle", 1).eval()
    found = ours(model, data, repeats=4)
    seek(model, 0, "eval")
    assert evaluate.naive_passes(model, data, 4, "fp32") == pytest.approx(found.top1)


def test_several_at_once_are_counted_together_and_none_may_come_late(monkeypatch):
    asked: list[float] = []
    late = 0.0

    def worker(side: str, network: object, seconds: float, words: tuple[str, ...] = ()) -> dict[str, object]:
        asked.extend(map(float, words[1:]))
        return {"images_per_second": 64.0, "batch": 128, "began": sum(asked[-1:]) + late, "warnings": ["slow"]}

    monkeypatch.setattr(floor, "in_worker", worker)
    case = floor.Together(TINY, (1, 3), Target(least=0.25))
    found = floor._together(case, 1e9, 0.1)
    assert len(asked) == 4 * 3
    assert all(at > time.time() for at in asked)
    assert found["times"] == {"1 at once": [2.0] * 3, "3 at once": [pytest.approx(2 / 3)] * 3}
    share = floor.step_flops(cost(TINY.build(), 16).macs, 128) / (2 / 3) / 1e9
    assert found["figures"][1]["median"] == pytest.approx(share, rel=1e-2)
    assert found["figures"][0]["target"] is None and found["figures"][1]["target"] == {"least": 0.25}
    assert found["warnings"] == ["slow"]
    late = 5.0
    with pytest.raises(SpacelessError, match=r"one that began 5\.0 s after the others"):
        floor._together(case, 1e9, 0.1)


def test_floor_counts_three_passes_of_two_operations():
    assert floor.step_flops(macs=10, batch=4) == 10 * 4 * 6
    steps = [floor.Step(TINY, "fp32"), floor.Step(TINY, "bf16"), floor.Step(TINY, "auto")]
    record = headed("floor", "cmd", floor.run(SHORT, quiet, steps, [floor.Reduced(TINY, (1, 2))], (64,), batch=8))
    peak = record["peaks"]["fp32"]
    assert peak["side"] == 64
    assert peak["flops"] == pytest.approx(2 * 64**3 / min(peak["times"]["64"]), rel=1e-4)
    step, fastest, reduced = record["measurements"]
    assert fastest["precision"] == "fp32"
    macs = cost(TINY.build(), 16).macs
    shares = [6 * macs * 8 / seconds / peak["flops"] for seconds in step["times"]["step"]]
    assert step["figures"][0]["lower"] >= min(shares) * 0.999
    assert step["figures"][0]["upper"] <= max(shares) * 1.001
    assert [each["of"] for each in reduced["figures"]] == [
        f"{what}, {method} K = {k}" for method in ("gap_fc", "conv1x1") for k in (1, 2)
        for what in ("speed-up / promised", "moving the maps / promised time")]
    moved = 13 * cost(TINY.build("conv1x1", 2), 16).activations * 8 * 4 / record["peaks"]["fp32"]["copied"]
    promised = [each * reduced["macs"]["conv1x1 K = 2"] / macs for each in reduced["times"]["K = 0"]]
    assert moved / max(promised) * 0.999 <= reduced["figures"][-1]["median"] <= moved / min(promised) * 1.001
    assert reduced["figures"][0]["promised"] == pytest.approx(macs / reduced["macs"]["gap_fc K = 1"], abs=1e-3)
    assert "| fp32 | " in floor.markdown(record)
    if not torch.cuda.is_available():
        shares = record["measurements"][-1]["parts"]
        assert list(shares) == ["K = 0", "gap_fc K = 1", "gap_fc K = 2", "conv1x1 K = 1", "conv1x1 K = 2"]
        for of in shares.values():
            assert sum(of.values()) == pytest.approx(1, abs=0.001)
            assert of["matrix products and convolutions"] > 0.001 < of["normalisation"]  # on something this tiny


def test_study_times_start_up_input_and_the_whole(monkeypatch):
    small = study.Small(Network("chain:4-M-8"), "arrangement-4", k=1, train_images=64, test_images=16, batch=16)
    assert "repeats = 8" in small.text(10)  # 0.2 * 10 * 64 / 16: as many test passes for a training image as the paper
    commands = []

    def command(words):
        commands.append(words[0])
        return 2.0

    monkeypatch.setattr(study, "_seconds_of", command)
    monkeypatch.setattr(study, "_bare", lambda _plan: 0.01)
    record = headed("study", "cmd", study.run(0.03, quiet, small, [TINY]))
    assert commands == ["--help"] * 3 + ["inspect"] * 3 + ["study"] * 3
    whole = record["measurements"][-1]
    assert (whole["epochs"], whole["trials"], whole["images"]) == (3, 4, 4 * 3 * 64)
    assert whole["figures"][0]["median"] == 0.005
    page = study.markdown(record)
    assert "| `spaceless --help` | wall time | 2 s | 2 to 2 | 3 | at most 0.5 | not met |" in page
    assert "| `spaceless inspect vgg16` | wall time | 2 s | 2 to 2 | 3 | at most 4 | met |" in page
    assert "whole study 384 images/s" in page


def test_study_runs_what_it_says_it_runs(tmp_path):
    small = study.Small(Network("chain:4-M-8"), "arrangement-4", k=1, train_images=64, test_images=16, batch=16)
    file = tmp_path / "small.toml"
    file.write_text(small.text(1))
    plan = study.plan_study(str(file))
    assert [(p.trial.method, p.trial.k) for p in plan.planned] == [
        ("baseline", 0), ("shuffle", 1), ("gap_fc", 1), ("conv1x1", 1)]
    assert study._bare(plan) > 0
    assert study._seconds_of(("study", str(file), "--out", str(tmp_path / "runs"))) > 0
    assert len(list((tmp_path / "runs").glob("*/outcome.json"))) == 4
    with pytest.raises(SpacelessError, match="spaceless no-such-verb"):
        study._seconds_of(("no-such-verb",))


def test_accuracy_trains_pairs_over_seeds():
    case = accuracy.Case(
        Network("chain:4-M-8"), ("no-such-set", "texture"), images=64, tests=32, epochs=1, batch=16, workers=0)
    record = headed("accuracy", "cmd", accuracy.run(0.01, quiet, case))
    assert (record["data"], record["train_images"], record["seeds"]) == ("texture", 64, [0, 1, 2])
    assert {side: len(values) for side, values in record["top1"].items()} == {"plain": 3, "ours": 3}
    assert "64 images of texture" in accuracy.markdown(record)


def test_a_difference_beyond_noise_is_seen():
    trial = accuracy.Trial(model="vgg16", data="texture")
    same = accuracy.difference(trial, [70.0, 71.0, 72.0], [70.5, 71.5, 72.5])
    # Spread 1 in both, 4 degrees of freedom: 0.5 ± 2.776 * sqrt(2 / 3).
    assert (same["points"], same["within_noise"]) == (-0.5, True)
    assert same["high"] - same["low"] == pytest.approx(2 * 2.776 * (2 / 3) ** 0.5, abs=2e-3)
    worse = accuracy.difference(trial, [60.0, 61.0, 62.0], [70.0, 71.0, 72.0])
    assert worse["within_noise"] is False
    record = {"command": "c", "date": "d", "hardware": "h", "versions": {}, "what": "w", "network": "n", "data": "d",
              "train_images": 1, "test_images": 1, "recipe": {"epochs": 1}, "difference": worse,
              "precision": {"plain": "fp32", "ours": "bf16"}, "top1": {"plain": [70.0, 72.0], "ours": [60.0, 62.0]}}
    assert "**not met**" in accuracy.markdown(record)
    assert "**not met**" not in accuracy.markdown(record | {"difference": same})


# The verb.


def bench(monkeypatch, *words):
    monkeypatch.setattr(sys, "argv", ["spaceless", "bench", *words])
    with pytest.raises(SystemExit) as left:
        cli.main()
    return left.value.code or 0


def test_every_bench_is_listed(monkeypatch, capsys):
    assert bench(monkeypatch, "--json") == 0
    assert set(json.loads(capsys.readouterr().out)) == set(cli.pages.Bench.__args__) == set(measuring._BENCHES)


def test_the_command_writes_record_and_page(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(evaluate.run, "__defaults__", ([evaluate.Case(TINY, 1)], 8, 6, 2))
    assert bench(monkeypatch, "evaluate", "--seconds", "0.02", "--out", str(tmp_path), "--json") == 0
    printed = json.loads(capsys.readouterr().out)
    assert printed == json.loads((tmp_path / "evaluate.json").read_text())
    assert printed["command"] == "spaceless bench evaluate --seconds 0.02"
    assert {"versions", "hardware", "threads", "seconds", "batch", "images", "repeats"} <= printed.keys()
    assert "# Repeated evaluation" in (tmp_path / "evaluate.md").read_text()


@pytest.mark.parametrize("words", [
    ("train", "vgg16"), ("train", "--jobs", "2"), ("networks", "--seconds", "1"), ("train", "--seconds", "0"),
    ("train", "--seconds", "nan")])
def test_options_of_another_bench_are_refused(words, tmp_path, capsys, monkeypatch):
    assert bench(monkeypatch, *words, "--out", str(tmp_path / "out")) == 2
    assert "expected" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
