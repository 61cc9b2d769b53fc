"""One folder per trial; finished means outcome.json; a broken file is named and never taken for an answer."""

from __future__ import annotations

import json
import os
import warnings
from pathlib import Path

import pytest

from spaceless.errors import CheckpointError, DamagedError, InputError
from spaceless.records import read, sealed
from spaceless.store import Store, read_outcome, read_trial
from spaceless.trial import Evaluation, Outcome, Trial

TRIAL = Trial(model="vgg16", data="cifar100", method="shuffle", k=3)
OTHER = Trial(model="vgg16", data="cifar100")
OUTCOME = Outcome(trial=TRIAL, status="finished", evaluations=(Evaluation(images=10, top1=(50.0, 60.0)),))


@pytest.fixture
def store(tmp_path) -> Store:
    made = Store(tmp_path / "deep" / "runs")
    made.begin(TRIAL)
    return made


def test_looking_creates_nothing(tmp_path):
    store = Store(tmp_path / "runs")
    assert store.outcome(TRIAL) is None
    assert not (tmp_path / "runs").exists()


def test_a_begun_trial_says_what_it_is_and_is_not_finished(store):
    assert [p.name for p in store.root.iterdir()] == [TRIAL.id]
    assert read_trial(store.folder(TRIAL)) == TRIAL
    assert store.outcome(TRIAL) is None
    written = (store.folder(TRIAL) / "trial.json").stat().st_mtime_ns
    store.begin(TRIAL)
    assert (store.folder(TRIAL) / "trial.json").stat().st_mtime_ns == written


def test_the_folder_of_a_trial_is_on_disk_before_the_trial_begins(tmp_path, monkeypatch):
    flushed, flush = [], os.fsync
    monkeypatch.setattr(os, "fsync", lambda d: (flushed.append(Path(f"/proc/self/fd/{d}").resolve()), flush(d))[1])
    Store(tmp_path / "runs").begin(TRIAL)
    assert {tmp_path, tmp_path / "runs", tmp_path / "runs" / TRIAL.id} <= set(flushed)


def test_a_finished_trial_is_read_back_as_it_was(store):
    store.finish(OUTCOME)
    assert store.outcome(TRIAL) == OUTCOME
    assert store.outcome(OTHER) is None


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"\xff\xfe\x00", b'{"trial": {}}', b"[" * 100_000,
                                     OUTCOME.model_dump_json().encode()[:-20]])
def test_a_broken_outcome_is_named_and_is_no_outcome(store, content):
    path = store.folder(TRIAL) / "outcome.json"
    path.write_bytes(content)
    for looking in (lambda: store.look(TRIAL), lambda: read_outcome(path)):
        with pytest.raises(DamagedError, match=r"outcome\.json"):
            looking()
    assert path.read_bytes() == content
    with pytest.warns(UserWarning, match=r"outcome\.json.* found .*; set aside as outcome\.json\.broken"):
        assert store.outcome(TRIAL) is None
    assert path.with_name("outcome.json.broken").read_bytes() == content
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert store.outcome(TRIAL) is None
        store.finish(OUTCOME)
        assert store.outcome(TRIAL) == OUTCOME


def test_every_single_flipped_bit_of_an_outcome_is_noticed(store):
    store.finish(OUTCOME)
    path = store.folder(TRIAL) / "outcome.json"
    content = path.read_bytes()
    for bit in range(0, 8 * len(content), 7):  # 7 and 8 have no common divisor: every bit of a byte has its turn
        changed = bytearray(content)
        changed[bit // 8] ^= 1 << bit % 8
        path.write_bytes(changed)
        with pytest.raises(DamagedError):
            store.look(TRIAL)


@pytest.mark.parametrize("status", ["finished", "diverged", "failed"])
def test_states_that_a_killed_process_has_left_are_removed_unless_there_is_something_to_go_on_with(store, status):
    left = store.states(TRIAL) / "state-000000001.safetensors"
    left.parent.mkdir()
    left.write_bytes(b"")
    assert store.outcome(TRIAL) is None
    assert left.exists()
    store.finish(OUTCOME.model_copy(update={"status": status}))
    store.look(TRIAL)
    assert left.exists()
    assert store.outcome(TRIAL).status == status
    assert left.exists() == (status == "failed")


def test_with_the_outcome_go_the_further_tests_of_its_weights(store):
    store.finish(OUTCOME)
    path = store.add_evaluation(TRIAL, Evaluation(shuffle_last=0, images=10, top1=(50.0,)))
    (store.folder(TRIAL) / "outcome.json").write_bytes(b"{")
    with pytest.warns(UserWarning, match="set aside"):
        assert store.outcome(TRIAL) is None
    assert [p.name for p in path.parent.iterdir()] == [f"{path.name}.broken"]


def test_a_damaged_further_test_is_set_aside_and_the_outcome_stays(store):
    store.finish(OUTCOME)
    paths = [store.add_evaluation(TRIAL, Evaluation(shuffle_last=last, images=10, top1=(50.0,))) for last in (0, 1)]
    paths[0].write_bytes(paths[0].read_bytes().replace(b"50.0", b"60.0"))
    assert store.look(TRIAL) == OUTCOME
    assert paths[0].exists()  # looking changes nothing
    with pytest.warns(UserWarning, match="shuffle-last-0.*set aside"):
        assert store.outcome(TRIAL) == OUTCOME
    assert [path.exists() for path in paths] == [False, True]


def test_a_damaged_file_that_cannot_be_set_aside_is_an_error(store, monkeypatch):
    (store.folder(TRIAL) / "outcome.json").write_bytes(b"{")
    monkeypatch.setattr("os.replace", _failing)
    with pytest.raises(CheckpointError, match=r"outcome\.json: found a broken file that cannot be renamed"):
        store.outcome(TRIAL)


def _failing(*_words: object) -> None:
    raise OSError(30, "Read-only file system")


def test_the_outcome_of_another_trial_is_refused(store):
    store.begin(OTHER)
    (store.folder(OTHER) / "outcome.json").write_text(OUTCOME.model_dump_json())
    for look in (store.look, store.outcome):
        with pytest.raises(InputError, match="K=3"):
            look(OTHER)
    assert (store.folder(OTHER) / "outcome.json").exists()


def test_a_sound_outcome_of_another_version_is_neither_used_nor_set_aside(store):
    path = store.folder(TRIAL) / "outcome.json"
    path.write_bytes(sealed(OUTCOME.model_dump(mode="json") | {"robustness": 3}))
    for look in (store.look, store.outcome):
        with pytest.raises(InputError, match=r"robustness.*another version") as caught:
            look(TRIAL)
        assert not isinstance(caught.value, DamagedError)
    assert path.exists()


# --- a folder that holds another trial -------------------------------------------------------------------------------


def _edit(path, edit) -> None:
    path.write_text(edit(path.read_text()))


@pytest.mark.parametrize("unsealed", [False, True], ids=["edited", "edited and unsealed"])
@pytest.mark.parametrize("finished", [False, True], ids=["begun", "finished"])
def test_a_changed_specification_is_refused_by_name_and_nothing_is_changed(store, unsealed, finished):
    if finished:
        store.finish(OUTCOME)
    path = store.folder(TRIAL) / "trial.json"
    _edit(path, lambda text: text.replace('"epochs": 200', '"epochs": 2'))
    if unsealed:
        path.write_text(json.dumps({k: v for k, v in json.loads(path.read_text()).items() if k != "checksum"}))
    before = path.read_bytes()
    for use in (store.begin, store.look, store.outcome):
        with pytest.raises(InputError, match=r"trial\.json: found .* with recipe\.epochs 2, expected .* whose folder"):
            use(TRIAL)
    assert path.read_bytes() == before
    path.unlink()  # the cure
    assert store.outcome(TRIAL) == (OUTCOME if finished else None)


def test_two_trials_of_one_identity_are_told_apart(store, monkeypatch):
    monkeypatch.setattr(Trial, "id", TRIAL.id)
    for use in (store.begin, store.look, store.outcome):
        with pytest.raises(InputError, match=r"trial\.json: found .*K=3"):
            use(OTHER)
    assert read_trial(store.folder(OTHER)) == TRIAL


@pytest.mark.parametrize("content", [b"", b"{", b"\xff", b"[]", b"{}"])
def test_a_damaged_trial_file_is_written_anew(store, content):
    store.finish(OUTCOME)
    path = store.folder(TRIAL) / "trial.json"
    path.write_bytes(content)
    assert store.look(TRIAL) == OUTCOME
    with pytest.warns(UserWarning, match=r"trial\.json.* found"):
        assert store.outcome(TRIAL) == OUTCOME
    assert read_trial(store.folder(TRIAL)) == TRIAL
    assert path.with_name("trial.json.broken").read_bytes() == content


@pytest.mark.parametrize("content", [None, b"", b"\xff", b"{}"])
def test_a_folder_that_holds_no_trial_is_refused(tmp_path, content):
    if content is not None:
        (tmp_path / "trial.json").write_bytes(content)
    with pytest.raises(InputError, match=str(tmp_path)):
        read_trial(tmp_path)
    with pytest.raises(InputError, match="nowhere"):
        read_trial(tmp_path / "nowhere")


def test_an_outcome_that_cannot_be_read_is_an_input_error(store):
    (store.folder(TRIAL) / "outcome.json").mkdir()
    with pytest.raises(InputError, match=r"outcome\.json"):
        store.outcome(TRIAL)


def test_every_test_scheme_has_a_file_of_its_own(store):
    evaluations = [Evaluation(shuffle_last=0, images=10, top1=(50.0,)), Evaluation(shuffle_last=2, images=10,
                                                                                    top1=(1.0, 2.0, 3.0))]
    paths = [store.add_evaluation(TRIAL, each) for each in evaluations]
    assert [p.name for p in paths] == ["shuffle-last-0-repeats-1.json", "shuffle-last-2-repeats-3.json"]
    assert paths == [store.evaluation(TRIAL, 0, 1), store.evaluation(TRIAL, 2, 3)]
    assert [read(Evaluation, p) for p in paths] == evaluations


def _study(*trials: Trial, **fields) -> dict:
    return {"name": "fig2", "planned": [{"trial": t.model_dump(mode="json", exclude_defaults=True)} for t in trials],
            **fields}


def _stored(path) -> dict:
    return {key: value for key, value in json.loads(path.read_text()).items() if key != "checksum"}


def test_a_study_is_written_down_by_its_name(store):
    path = store.write_study({"name": "fig2", "planned": []})
    assert path == store.root / "fig2.study.json"
    assert _stored(path) == {"name": "fig2", "planned": []}


def test_a_study_may_be_run_again_and_grow(store):
    for manifest in (_study(TRIAL), _study(TRIAL, title="said better"), _study(OTHER, TRIAL)):
        assert _stored(store.write_study(manifest)) == manifest


@pytest.mark.parametrize("others", [(), (OTHER,), (OTHER, TRIAL.model_copy(update={"seed": 1}))], ids=len)
def test_another_study_of_the_same_name_is_refused_and_the_first_stays(store, others):
    path = store.write_study(_study(TRIAL))
    before = path.read_bytes()
    with pytest.raises(InputError, match=r"fig2\.study\.json: found .* 1 other trials, first vgg16 shuffle K=3"):
        store.write_study(_study(*others))
    assert path.read_bytes() == before
    store.write_study(_study(*others, name="another"))
    assert len(list(store.root.glob("*.study.json"))) == 2


def test_a_damaged_study_is_set_aside_and_written_anew(store):
    path = store.write_study(_study(TRIAL))
    path.write_bytes(path.read_bytes().replace(b"shuffle", b"gap_fc"))
    with pytest.warns(UserWarning, match=r"fig2\.study\.json: found other content"):
        store.write_study(_study(OTHER))
    assert _stored(path) == _study(OTHER)
    assert path.with_name("fig2.study.json.broken").exists()


def test_a_root_that_is_a_file_is_an_input_error(tmp_path):
    (tmp_path / "file").write_text("in the way")
    for root in (tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises(InputError, match="--out"):
            Store(root).begin(TRIAL)
        with pytest.raises(InputError, match="--out"):
            Store(root).write_study({"name": "fig2"})
        with pytest.raises(InputError, match="a file at"):
            Store(root).check()
    Store(tmp_path / "to" / "be" / "made").check()
    assert [p.name for p in tmp_path.iterdir()] == ["file"]


def test_a_full_disk_leaves_a_trial_unfinished(store, monkeypatch):
    def full(_descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(CheckpointError, match="No space left"):
        store.finish(OUTCOME)
    assert store.outcome(TRIAL) is None
