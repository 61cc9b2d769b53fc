"""`bench faults`, damaged files: the readers keep their promises, and readers that do not are found out."""

from __future__ import annotations

import hashlib
import pickle
import re
from contextlib import suppress
from random import Random

import broken_readers
import pytest

from spaceless.bench.faults import mutations
from spaceless.bench.faults.corruption import _HARMS, damaged
from spaceless.bench.faults.crafted import crafted
from spaceless.bench.faults.form import in_form
from spaceless.bench.faults.mutants import form_of, mutant, randomness
from spaceless.bench.faults.mutations import FORMS
from spaceless.bench.faults.payloads import fragments, whole
from spaceless.bench.faults.sandbox import Limits
from spaceless.records import unsealed

FOUND_OUT = {  # a reader that breaks a promise: the promise, and what is said of it
    broken_readers.unpickles: ("code executed", "pickle.find_class"),
    broken_readers.runs_without_pickle: ("code executed", "the canary was created"),
    broken_readers.writes_elsewhere: ("code executed", "opened for writing: '/dev/null'"),
    broken_readers.raises_key_error: ("other exception", "KeyError: 'labels'"),
    broken_readers.tells_nothing: ("a message that is none", "broken"),
    broken_readers.asks_for_more_than_there_is: ("too much memory", "MemoryError"),
    broken_readers.sleeps: ("too slow", r"\d\.\d s"),
    broken_readers.returns_nonsense: ("malformed result", "a list"),
    broken_readers.eats_memory: ("too much memory", r"\d+ MB"),
    broken_readers.kills_its_process: ("process killed", "exit status -11"),
    broken_readers.hangs: ("too slow", r"killed after \d s"),
}
DEADLY = (broken_readers.eats_memory, broken_readers.kills_its_process, broken_readers.hangs)
SMALL = Limits(memory=64 << 20, seconds=0.5)


def test_many_damaged_sets_break_no_promise():
    told: list[str] = []
    found = mutations.run(told.append, mutations=60, jobs=1)
    assert found["failing"] == []
    counts = found["counts"]
    assert counts["mutations"] == 60
    assert sum(counts[f"{form.name}: mutated"] for form in FORMS) == 60
    assert all(counts[f"{form.name}: refused"] + counts[f"{form.name}: accepted"] == counts[f"{form.name}: mutated"]
               for form in FORMS)
    assert sum(counts[f"{form.name}: refused"] for form in FORMS) > 30
    assert sum(counts[f"{form.name}: accepted"] for form in FORMS) > 4
    assert all(counts[fault] == 0 for fault in mutations.FAULTS)
    assert told == ["60 of 60 damaged sets read, 0 broken promises"]


@pytest.fixture(scope="module")
def found():
    """The counts and failing texts of all broken readers, read in one go."""
    readers = [*FOUND_OUT, broken_readers.refuses_everything, broken_readers.accepts_everything]
    forms = [broken_readers.form(reader, 3 if reader in DEADLY else 20) for reader in readers]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(mutations, "_GRACE", 2.0)
        yield mutations.run(lambda text: None, mutations=100, jobs=2, forms=forms, limits=SMALL)


@pytest.mark.parametrize("reader", FOUND_OUT, ids=lambda reader: reader.__name__)
def test_a_reader_that_breaks_a_promise_is_found_out(reader, found):
    fault, detail = FOUND_OUT[reader]
    texts = [text for text in found["failing"] if text.startswith(f"{reader.__name__}, ")]
    assert texts
    for text in texts:
        form = rf"{reader.__name__}, mutation \d+ of seed 0 \(.+\): {fault}: .*{detail}.*"
        assert re.fullmatch(form, text, re.DOTALL), text


def test_every_broken_promise_is_counted(found):
    counts = found["counts"]
    assert counts["mutations"] == 100
    assert sum(counts[fault] for fault in mutations.FAULTS) == len(found["failing"])
    for reader in (broken_readers.accepts_everything, broken_readers.refuses_everything):
        assert not any(text.startswith(f"{reader.__name__}, ") for text in found["failing"])
    assert counts["accepts_everything: accepted"] == counts["accepts_everything: mutated"] > 5
    assert counts["refuses_everything: refused"] == counts["refuses_everything: mutated"] > 5
    assert counts["largest growth of memory, MB"] > 64
    assert counts["slowest set, seconds"] >= 0.5


def test_refusing_sound_files_is_no_way_out(found):
    assert found["counts"]["unfit to begin"] == 1
    assert "refuses_everything: a sound one is refused (an error in form )" in found["failing"]


def test_what_kills_every_process_is_given_up_and_leaves_nothing(monkeypatch, tmp_path):
    monkeypatch.setattr(mutations, "_MOST_STARTS", 1)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    forms = [broken_readers.form(broken_readers.kills_its_process, 1)]
    found = mutations.run(lambda text: None, mutations=9, jobs=1, forms=forms, limits=SMALL)
    assert found["counts"]["process killed"] == found["counts"]["mutations"] == 1
    assert found["failing"][-1] == "8 mutations were given up: too many processes died"
    assert not list(tmp_path.iterdir())


# --- what is done to the files ---------------------------------------------------------------------------------------


def test_every_call_would_run(tmp_path):
    for number, fragment in enumerate(fragments(tmp_path / "canary")):
        with suppress(Exception):  # some are broken behind the call
            pickle.loads(whole(fragment))
        assert (tmp_path / "canary").exists(), number
        (tmp_path / "canary").unlink()


@pytest.mark.filterwarnings("ignore:Duplicate name")
@pytest.mark.parametrize("form", FORMS, ids=lambda form: form.name)
def test_mutations_change_the_set_and_depend_on_seed_and_number_alone(form, tmp_path):
    sound, calls = form.make(), fragments(tmp_path / "canary")
    assert sound == form.make()
    made = [[mutant(randomness(seed, number), form, sound, calls) for number in range(60)] for seed in (0, 0, 1)]
    assert made[0] == made[1] != made[2]
    changed = [each for each in made[0]
               if any(sound.files.get(name) != content and (name, content) not in sound.victims
                      for name, content in each.files.items())]
    assert len(changed) > 50
    assert len({each.what for each in made[0]}) > 5


def test_forms_come_by_their_shares():
    drawn = [form_of(randomness(3, number), FORMS).name for number in range(3000)]
    for form in FORMS:
        assert drawn.count(form.name) / 30 == pytest.approx(form.share, abs=3)
    assert sum(form.share for form in FORMS) == 100


@pytest.mark.parametrize(("name", "harm"), _HARMS, ids=[name for name, _ in _HARMS])
def test_no_damage_fails_on_a_short_file(name, harm):
    for number in range(50):
        random = Random(number)
        for content in (b"", b"a", b"12"):
            assert isinstance(harm(random, content, b"other" * (number % 3)), bytes)
            assert damaged(random, content, b"")[0]


def test_what_is_crafted_follows_from_the_file():
    sounds = {form.name: form.make() for form in FORMS}
    wanted = {
        "CIFAR batches in pickles": "pickle opcodes", ".npz files": "zip members",
        "parquet files": "parquet of another kind",
        "packed CIFAR archives": "members of a .tar.gz", "images in class folders": "fields of an image",
        "weights": "safetensors header", "outcomes and other records": "JSON values", "study files": "TOML values",
    }
    for name, what in wanted.items():
        for _, content in sounds[name].victims:
            assert crafted(Random(0), content, content, (b"N",))[0] == what


@pytest.mark.parametrize(("message", "right"), [
    ("a file: found this, expected that; do so", True), ("a file: found this, expected that", False), ("broken", False),
    ("a file: found " + "x" * 3000 + ", expected that; do so", False),
])
def test_the_form_of_an_error(message, right):
    assert in_form(message) is right


@pytest.mark.filterwarnings("ignore:Duplicate name")
@pytest.mark.parametrize("name", ["training states vouched for", "exported networks"])
def test_what_vouches_for_a_damaged_file_agrees_with_it(name, tmp_path):
    form = next(form for form in FORMS if form.name == name)
    sound, calls, seen = form.make(), fragments(tmp_path / "canary"), 0
    for number in range(60):
        made = mutant(randomness(0, number), form, sound, calls)
        if not made.what.endswith(", vouched for") or not made.what.startswith(next(iter(made.files))):
            continue
        payload, *vouching = made.files
        if not payload.endswith(".safetensors"):
            continue  # nothing else has a digest
        (record,) = vouching
        digest = hashlib.sha256(made.files[payload]).hexdigest()
        assert digest in (told := unsealed(made.files[record], record).decode())
        assert f'"bytes": {len(made.files[payload])}' in told or "bytes" not in told
        seen += 1
    assert seen > 5
