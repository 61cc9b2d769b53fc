"""Every hostile pickle in every place where a file of others is read: nothing runs, and the error names the file."""

from __future__ import annotations

import contextlib
import copyreg
import hashlib
import json
import os
import pickle
import shutil
import subprocess
import sys
import time
import tracemalloc
import warnings
from pathlib import Path

import pytest
import torch
from safetensors.torch import save as save_weights

from commands import Commands, is_an_error, train, tree
from hostile_pickles import COMMAND, CORPUS, EXTENSIONS, MARKER, Calls, batch, extensions_registered, unpickle
from hostile_places import DATA, TEXTS, Place, png, put_state, write_parquet, zipped_state
from spaceless import checkpoint
from spaceless.data import load
from spaceless.data.cache import cache_file
from spaceless.data.pickles import read_pickle
from spaceless.errors import DataError, InputError
from spaceless.records import sealed
from spaceless.retest import evaluate_run, load_weights
from spaceless.run import Place as RunPlace
from spaceless.run import run_trial
from spaceless.store import read_outcome
from spaceless.trial import RECIPES, Trial

torch.set_num_threads(1)

ARMED = [case for case in CORPUS if case.armed]
every_pickle = pytest.mark.parametrize("hostile", CORPUS, ids=[case.name for case in CORPUS])
every_armed_pickle = pytest.mark.parametrize("hostile", ARMED, ids=[case.name for case in ARMED])
one_pickle = next(case.content for case in CORPUS if case.name == "GLOBAL REDUCE, protocol 2")


@pytest.fixture(scope="module")
def folders(tmp_path_factory) -> dict[str, Path]:
    """A folder of its own for each place, kept for all pickles: only the hostile file is written anew."""
    return {place.name: tmp_path_factory.mktemp("place") for place in (*DATA, *TEXTS)}


@pytest.fixture(autouse=True)
def marker(tmp_path_factory, monkeypatch):
    """The file that each hostile pickle wants to create; it must not be there at the end."""
    path = tmp_path_factory.getbasetemp() / "hostile-marker"
    monkeypatch.setenv(MARKER, str(path))
    monkeypatch.setattr("platformdirs.user_cache_dir", lambda name: str(path.with_name("hostile-cache") / name))
    with extensions_registered(), warnings.catch_warnings():
        yield path
    ran = path.exists()
    path.unlink(missing_ok=True)
    assert not ran, "something in the file was executed"


# --- the corpus has teeth, and the places are sound ------------------------------------------------------------------


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@every_armed_pickle
def test_unpickled_it_would_run(hostile, marker):
    try:
        unpickle(hostile.content)
    except Exception:  # many are broken behind the call
        assert marker.exists()
    assert marker.exists()
    marker.unlink()


@pytest.mark.parametrize("place", (*DATA, *TEXTS), ids=str)
def test_without_anything_hostile_it_is_read(place, folders):
    assert place.read(place.put(folders[place.name], None)) is not None


# --- every pickle in every place -------------------------------------------------------------------------------------


@every_pickle
@pytest.mark.parametrize("place", (*DATA, *TEXTS), ids=str)
def test_nothing_runs_and_the_file_is_named(place: Place, hostile, folders):
    path = place.put(folders[place.name], hostile.content)
    begun = time.process_time()
    with pytest.raises(InputError) as caught:
        place.read(path)
    assert time.process_time() - begun < 3
    assert caught.value.exit_status == 2
    assert place.file in str(caught.value)
    assert len(str(caught.value)) < 1000
    assert place in TEXTS or isinstance(caught.value, DataError)


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
@every_armed_pickle
@pytest.mark.parametrize("form", ["pickle", "zip"])
def test_a_training_state_is_set_aside(form, hostile, tmp_path):
    checkpoint.save(tmp_path, {"step": 1}, 1, "mine")
    content = hostile.content if form == "pickle" else zipped_state(hostile.content)
    path = put_state(tmp_path, 2, "mine", content)
    with pytest.warns(UserWarning, match=path.name):
        assert checkpoint.load_latest(tmp_path, "mine", dict) == {"step": 1}
    assert not path.exists()
    assert path.with_name("state-000000002.safetensors.broken").exists()


@every_armed_pickle
def test_a_cache_is_passed_over(hostile, tmp_path):
    for split in ("train", "test"):
        write_parquet(tmp_path / f"{split}.parquet", [png()] * 3)
    kept = cache_file([tmp_path / "test.parquet", tmp_path / "train.parquet"], "parquet")
    kept.parent.mkdir(parents=True, exist_ok=True)
    kept.write_bytes(hostile.content)
    assert load(tmp_path).train_count == 3
    assert kept.read_bytes() != hostile.content  # decoded again and put there


@every_armed_pickle
def test_pyarrow_is_not_talked_into_unpickling_a_type(hostile, tmp_path):
    write_parquet(tmp_path / "train.parquet", [png()] * 3, extension=hostile.content)
    write_parquet(tmp_path / "test.parquet", [png()] * 3)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # pyarrow may warn that it does not
        load(tmp_path)


@pytest.fixture(scope="module")
def finished(tmp_path_factory) -> tuple[Trial, RunPlace]:
    """The tiny training that `train()` asks for, finished."""
    recipe = RECIPES["control"].model_copy(update={"epochs": 1, "batch_size": 16, "precision": "fp32"})
    made = Trial(model="chain:4-M-8", data="arrangement-4", recipe=recipe, train_images=64, test_images=40)
    place = RunPlace(tmp_path_factory.mktemp("finished"), device="cpu")
    run_trial(made, place)
    return made, place


@every_pickle
def test_weights_are_refused_even_if_the_outcome_vouches_for_them(hostile, finished, tmp_path):
    made, place = finished
    shutil.copytree(place.store.folder(made), tmp_path / made.id)
    outcome = json.loads((tmp_path / made.id / "outcome.json").read_text())
    del outcome["checksum"]
    outcome["weights_sha256"] = hashlib.sha256(hostile.content).hexdigest()
    (tmp_path / made.id / "outcome.json").write_bytes(sealed(outcome))
    (tmp_path / made.id / "model.safetensors").write_bytes(hostile.content)
    with pytest.raises(InputError, match=r"model\.safetensors: found SafetensorError"):
        evaluate_run(tmp_path / made.id, RunPlace(tmp_path, device="cpu"), shuffle_last=0)


def _typed(dtype: str, size: int) -> bytes:
    """Return a file of weights with one tensor of a type by its name in the format."""
    header = json.dumps({"0.weight": {"dtype": dtype, "shape": [2], "data_offsets": [0, size]}}).encode()
    return len(header).to_bytes(8, "little") + header + bytes(size)


_NO_SUCH = r"\"[\w.]+\": found no such tensor, expected float32"
OTHERS = {
    "another network's": (save_weights({"0.weight": torch.zeros(3)}), _NO_SUCH),
    "complex numbers": (_typed("C64", 16), _NO_SUCH),
    "a type that few versions know": (_typed("F8_E8M0", 2), r"(found KeyError|\"[\w.]+\": found no such tensor)"),
    "an unknown type": (_typed("X9", 1), "found SafetensorError"),
}


@pytest.mark.parametrize("case", OTHERS)
def test_weights_of_another_network_are_refused(case, finished, tmp_path):
    made, place = finished
    other, says = OTHERS[case]
    shutil.copytree(place.store.folder(made), tmp_path / made.id)
    outcome = json.loads((tmp_path / made.id / "outcome.json").read_text())
    del outcome["checksum"]
    outcome["weights_sha256"] = hashlib.sha256(other).hexdigest()
    (tmp_path / made.id / "outcome.json").write_bytes(sealed(outcome))
    (tmp_path / made.id / "model.safetensors").write_bytes(other)
    with pytest.raises(InputError, match=rf"model\.safetensors: {says}"):
        evaluate_run(tmp_path / made.id, RunPlace(tmp_path, device="cpu"), shuffle_last=0)


@pytest.mark.parametrize("change", ["type", "shape", "one more", "one less"])
def test_weights_are_compared_before_any_of_them_is_taken(change, tmp_path):
    model = torch.nn.Linear(3, 2)
    kept = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    changed = {name: tensor + 1 for name, tensor in kept.items()}
    match change:
        case "type":
            changed["weight"] = changed["weight"].double()
        case "shape":
            changed["weight"] = changed["weight"].T.contiguous()
        case "one more":
            changed["more"] = torch.zeros(1)
        case "one less":
            del changed["weight"]
    (tmp_path / "w").write_bytes(save_weights(changed))
    name = "more" if change == "one more" else "weight"
    with pytest.raises(InputError, match=rf"w: \"{name}\": found .+, expected .+; remove this trial's folder"):
        load_weights(model, tmp_path / "w", hashlib.sha256((tmp_path / "w").read_bytes()).hexdigest())
    assert all(torch.equal(tensor, kept[name]) for name, tensor in model.state_dict().items())


# --- memory, and the registry of extensions --------------------------------------------------------------------------


@every_pickle
def test_memory_stays_in_proportion_to_the_file(hostile):
    tracemalloc.start()
    try:
        with contextlib.suppress(DataError):
            read_pickle(hostile.content, "file")
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 2_000_000 + 150 * len(hostile.content)


@pytest.mark.parametrize("code", EXTENSIONS.values())
def test_the_registry_of_extensions_is_never_asked(code, monkeypatch):
    class Forbidden(dict):
        def __getitem__(self, key):
            raise AssertionError("the registry was asked")

        get = __contains__ = __getitem__

    size = (code.bit_length() + 7) // 8
    opcode = {1: b"\x82", 2: b"\x83", 3: b"\x84"}[size]
    content = b"\x80\x02" + opcode + code.to_bytes(4 if size == 3 else size, "little") + b")R."
    with monkeypatch.context() as patch, pytest.raises(DataError, match=r"file: found the pickle opcode EXT\d"):
        for name in ("_inverted_registry", "_extension_registry", "_extension_cache"):
            patch.setattr(copyreg, name, Forbidden())
        read_pickle(content, "file")


# --- the command line ------------------------------------------------------------------------------------------------


@pytest.fixture
def spaceless(tmp_path, monkeypatch, capsys) -> Commands:
    return Commands(tmp_path, monkeypatch, capsys)


@pytest.mark.parametrize("verb", ["data", "train"])
@pytest.mark.parametrize("place", DATA, ids=str)
def test_the_command_line_says_it_in_three_lines(place, verb, spaceless, tmp_path):
    (tmp_path / "theirs").mkdir()
    path = place.put(tmp_path / "theirs", one_pickle)
    before = tree(tmp_path)
    size = ("--image-size", 8) if path == tmp_path / "theirs" else ()
    words = ("data", path, "--verify", *size) if verb == "data" else (*train(data=path), *size)
    status, out, err = spaceless(*words)
    is_an_error(status, "" if verb == "data" else out, err)  # of class folders --verify tells what it found first
    assert place.file in err
    assert tree(tmp_path) == before


def test_the_real_command_line_too(tmp_path, marker):
    path = DATA[0].put(tmp_path, one_pickle)
    before = tree(tmp_path)
    ended = subprocess.run(
        [sys.executable, "-m", "spaceless", "data", str(path), "--verify"], capture_output=True, text=True, check=False,
        cwd=tmp_path, env=os.environ | {"OMP_NUM_THREADS": "1"})
    is_an_error(ended.returncode, ended.stdout, ended.stderr)
    assert DATA[0].file in ended.stderr
    assert tree(tmp_path) == before


def test_a_hostile_outcome_on_the_command_line(finished, spaceless, tmp_path):
    made, place = finished
    folder = tmp_path / "runs" / made.id
    shutil.copytree(place.store.folder(made), folder)
    (folder / "outcome.json").write_bytes(one_pickle)
    before = tree(tmp_path)
    status, out, err = spaceless("evaluate", folder)
    is_an_error(status, out, err)
    assert "outcome.json" in err
    assert tree(tmp_path) == before


def test_a_training_is_done_again_beside_a_hostile_outcome(finished, spaceless, tmp_path):
    made, place = finished
    folder = tmp_path / "runs" / made.id
    shutil.copytree(place.store.folder(made), folder)
    (folder / "outcome.json").write_bytes(one_pickle)
    with pytest.warns(UserWarning, match=r"outcome\.json: found .*; set aside as outcome\.json\.broken and made again"):
        assert spaceless(*train())[0] == 0
    assert (folder / "outcome.json.broken").read_bytes() == one_pickle
    before = read_outcome(place.store.folder(made) / "outcome.json")
    assert read_outcome(folder / "outcome.json").weights_sha256 == before.weights_sha256


def test_hostile_weights_on_the_command_line(finished, spaceless, tmp_path):
    made, place = finished
    folder = tmp_path / "runs" / made.id
    shutil.copytree(place.store.folder(made), folder)
    (folder / "model.safetensors").write_bytes(one_pickle)
    before = tree(tmp_path)
    status, out, err = spaceless("evaluate", folder, "--shuffle-last", 0)
    is_an_error(status, out, err)
    assert "model.safetensors" in err and "SHA-256" in err
    assert tree(tmp_path) == before


def test_a_training_starts_again_beside_a_hostile_state(finished, spaceless, tmp_path):
    made, place = finished
    states = tmp_path / "runs" / made.id / "states"
    outcome = read_outcome(place.store.folder(made) / "outcome.json")
    put_state(states, 2, f"{made.id} on {outcome.data.digest} in {outcome.precision}", zipped_state(one_pickle))
    with pytest.warns(UserWarning, match="state-000000002"):
        assert spaceless(*train())[0] == 0
    again = read_outcome(tmp_path / "runs" / made.id / "outcome.json")
    assert again.weights_sha256 == outcome.weights_sha256


def test_a_name_in_a_file_does_not_reach_the_terminal_as_it_is(spaceless, tmp_path):
    content = b"\x80\x04}\x8c\x01a\x8c\x05numpy\x8c\x0a\x1b]0;owned\x07\x93s."
    _, out, err = spaceless("data", DATA[0].put(tmp_path, content), "--verify")
    assert "owned" in err
    assert "\x1b" not in err + out and "\x07" not in err


def test_what_is_inert_is_read(tmp_path):
    """The refusals above are not for want of a reader: the same batch without the call is read."""
    sound = read_pickle(pickle.dumps(batch(more=[1]), 2), "file")
    assert sound["labels"] == [1, 2, 1, 2]
    with pytest.raises(DataError, match=r"posix\.system"):
        read_pickle(pickle.dumps(batch(more=Calls(os.system, COMMAND)), 2), "file")
