"""One folder per trial; finished means outcome.json; a broken file is named and never taken for an answer."""

from __future__ import annotations

import json

import pytest

from spaceless.errors import CheckpointError, InputError
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


def test_a_finished_trial_is_read_back_as_it_was(store):
    store.finish(OUTCOME)
    assert store.outcome(TRIAL) == OUTCOME
    assert store.outcome(OTHER) is None


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"\xff\xfe\x00", b'{"trial": {}}', b"[" * 100_000,
                                     OUTCOME.model_dump_json().encode()[:-20]])
def test_a_broken_outcome_is_named_and_is_no_outcome(store, content):
    path = store.folder(TRIAL) / "outcome.json"
    path.write_bytes(content)
    for read in (lambda: store.outcome(TRIAL), lambda: read_outcome(path)):
        with pytest.raises(InputError, match=r"outcome\.json"):
            read()


def test_the_outcome_of_another_trial_is_refused(store):
    store.begin(OTHER)
    (store.folder(OTHER) / "outcome.json").write_text(OUTCOME.model_dump_json())
    with pytest.raises(InputError, match="K=3"):
        store.outcome(OTHER)


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
    assert [Evaluation.model_validate_json(p.read_text()) for p in paths] == evaluations


def test_a_study_is_written_down_by_its_name(store):
    path = store.write_study({"name": "fig2", "planned": []})
    assert path == store.root / "fig2.study.json"
    assert json.loads(path.read_text()) == {"name": "fig2", "planned": []}


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
