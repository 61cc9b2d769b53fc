"""Records are what was written, to the last bit, or are refused by name; older ones without a checksum are read."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import pytest

from spaceless import records
from spaceless.errors import DamagedError, InputError
from spaceless.records import read, read_edited, sealed, unsealed, write
from spaceless.rows import Study
from spaceless.trial import Evaluation, Outcome

FOUND = Evaluation(images=10, top1=(50.0, 62.5), left_out=("\u00e4.png", '"checksum": "sha256:0"'))
FIELDS = FOUND.model_dump(mode="json")
RESULTS = Path(__file__).parents[1] / "results"


@pytest.fixture
def path(tmp_path) -> Path:
    write(tmp_path / "a" / "b.json", FIELDS)
    return tmp_path / "a" / "b.json"


def test_a_record_is_read_back_and_is_readable_by_anyone(path):
    assert read(Evaluation, path) == FOUND
    stored = json.loads(path.read_text())
    assert list(stored) == [*FIELDS, "checksum"]
    assert path.read_text().splitlines()[1] == ' "shuffle_last": null,'
    # By hand: the SHA-256 of the file without its last member.
    body = path.read_text().split(',\n "checksum"')[0] + "\n}\n"
    assert body == json.dumps(FIELDS, indent=1) + "\n"
    assert stored["checksum"] == f"sha256:{hashlib.sha256(body.encode()).hexdigest()}"


def test_every_single_flipped_bit_and_every_truncation_is_noticed(path):
    content = path.read_bytes()
    for bit in range(8 * len(content)):
        changed = bytearray(content)
        changed[bit // 8] ^= 1 << bit % 8
        path.write_bytes(changed)
        with pytest.raises(DamagedError, match=r"b\.json"):
            read(Evaluation, path)
    for length in range(len(content)):
        path.write_bytes(content[:length])
        with pytest.raises(DamagedError, match=r"b\.json"):
            read(Evaluation, path)


def test_a_kind_that_ignores_what_it_does_not_know_notices_a_changed_checksum_too():
    content = sealed({"name": "s", "title": "T", "other": 1})
    for bit in range(8 * len(content)):
        changed = bytearray(content)
        changed[bit // 8] ^= 1 << bit % 8
        with pytest.raises((DamagedError, ValueError)):
            Study.model_validate_json(unsealed(bytes(changed), "s"))


@pytest.mark.parametrize("text", [json.dumps(FIELDS), json.dumps(FIELDS, indent=1) + "\n", FOUND.model_dump_json()])
def test_a_record_without_a_checksum_is_read(path, text):
    path.write_text(text)
    assert read(Evaluation, path) == FOUND
    with pytest.raises(DamagedError, match="no whole checksum"):
        unsealed(text.encode(), "manifest", required=True)


@pytest.mark.parametrize("text", [
    "", "{", "null", "[1]", "{}", "[" * 100_000, "\udcff", '{"images": 0}', json.dumps(FIELDS | {"more": 1}),
    json.dumps(FIELDS | {"checksum": "sha256:" + 64 * "0"}, indent=1), json.dumps(FIELDS | {"checksum": 3}, indent=1),
])
def test_what_is_no_record_is_damaged(path, text):
    path.write_text(text, errors="surrogateescape")
    with pytest.raises(DamagedError, match=r"b\.json"):
        read(Evaluation, path)


def test_a_sound_record_that_is_not_understood_is_not_called_damaged(path):
    write(path, FIELDS | {"more": 1})
    with pytest.raises(InputError, match=r"b\.json: more.*another version") as caught:
        read(Evaluation, path)
    assert not isinstance(caught.value, DamagedError)


def test_what_cannot_be_read_is_not_called_damaged(path, tmp_path, monkeypatch):
    for place in (tmp_path / "none.json", tmp_path):
        with pytest.raises(InputError, match="readable JSON") as caught:
            read(Evaluation, place)
        assert not isinstance(caught.value, DamagedError)
    monkeypatch.setattr(records, "LARGEST_FILE", 10)
    with pytest.raises(InputError, match="at most 10"):
        read(Evaluation, path)


def test_an_edited_record_says_what_it_says(path):
    path.write_text(path.read_text().replace("62.5", "63.5"))
    with pytest.raises(DamagedError, match="other content than its checksum says"):
        read(Evaluation, path)
    assert read_edited(Evaluation, path).top1 == (50.0, 63.5)
    for text in ("", "[]", "3", "{}", "[" * 100_000, "\udcff"):
        path.write_text(text, errors="surrogateescape")
        assert read_edited(Evaluation, path) is None
    assert read_edited(Evaluation, path.with_name("none")) is None


def test_the_outcomes_of_earlier_versions_that_are_kept_here_are_read():
    paths = sorted(RESULTS.glob("table2-left-smoke/*/outcome.json"))
    assert len(paths) == 2
    assert all(read(Outcome, path).status == "finished" for path in paths)
