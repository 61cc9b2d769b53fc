"""Studies on a Ray cluster, as far as one machine can be one."""

from __future__ import annotations

import os
import sys
from dataclasses import replace

import pytest

from spaceless import cluster as cluster_room
from spaceless.attempts import Event
from spaceless.bench.faults import tiny
from spaceless.cluster import Cluster
from spaceless.errors import InputError
from spaceless.paper import Planned
from spaceless.run import Place
from spaceless.study import run_study

ray = pytest.importorskip("ray")


@pytest.fixture(scope="module", autouse=True)
def ended():
    """One cluster of this machine for the tests of this file: each takes ten seconds to start."""
    asked, init, shutdown = [], ray.init, ray.shutdown

    def shared(address, **words):
        if address == "local" and ray.is_initialized():
            return
        shutdown()
        init(address, **words)

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_worker_niceness", "0")  # Ray's workers are nice to others by 15: beside a busy suite too nice
        patch.setattr(ray, "init", shared)
        patch.setattr(ray, "shutdown", lambda: asked.append(True))
        yield asked
    shutdown()


@pytest.fixture
def small():
    """Four trials of 5 epochs."""
    return tiny.plan(4, epochs=5)


def test_a_study_on_a_cluster_comes_to_the_outcomes_of_one_process(tmp_path, small, ended):
    ended.clear()
    one = run_study(small, Place(tmp_path / "one", device="cpu"), threads=1)
    broken = Planned(trial=small.planned[1].trial.model_copy(update={"seed": 7}))
    (tmp_path / "many" / broken.trial.id).mkdir(parents=True)
    (tmp_path / "many" / broken.trial.id / "states").write_text("a file where the folder of states should be")
    plan = replace(small, planned=(broken, *small.planned))
    events: list[Event] = []
    tally = run_study(
        plan, Place(tmp_path / "many", device="cpu"), cluster=Cluster("local"), watch=events.append)
    assert sorted(map(tiny.fingerprint, tally.ran)) == sorted(map(tiny.fingerprint, one.ran))
    assert [trial for trial, _ in tally.failed] == [broken.trial]
    assert [event.index for event in events if event.kind == "again"] == [0]
    assert {event.index for event in events if event.kind == "started"} == {0, 1, 2, 3, 4}
    assert ended.pop()
    assert not ended
    whole = run_study(small, Place(tmp_path / "many", device="cpu"), cluster=Cluster("local"), studies=())
    assert len(whole.known) == 4  # without a cluster being asked


def test_several_processes_share_one_trial_in_ray_train(tmp_path):
    whole = tiny.plan(3, epochs=2)
    plan = replace(whole, planned=whole.planned[2:])
    tally = run_study(plan, Place(tmp_path, device="cpu"), cluster=Cluster("local", processes=2))
    assert tally.failed == []
    assert [outcome.processes for outcome in tally.ran] == [2]
    alone = run_study(plan, Place(tmp_path / "alone", device="cpu"), threads=1)
    by_trial = {outcome.trial: outcome for outcome in alone.ran}
    for outcome in tally.ran:
        for ours, theirs in zip(outcome.history, by_trial[outcome.trial].history, strict=True):
            assert ours.loss == pytest.approx(theirs.loss, rel=1e-3)
    assert not (tmp_path / ".ray").exists()


@pytest.mark.parametrize(("cluster", "threads", "words"), [
    (Cluster("local"), 4096, "lower --threads"),
    (Cluster("127.0.0.1:9"), None, "no cluster at 127.0.0.1:9"),
    (Cluster("auto"), None, "no cluster at auto"),
    (Cluster("ray://localhost:port"), None, "no cluster at ray://localhost:port"),
    (Cluster("local", processes=0), None, "--processes: found 0"),
    (Cluster("local", gpus=-1), None, "--gpus: found -1"),
], ids=str)
def test_what_no_cluster_can_run_is_said_before_anything_runs(tmp_path, small, cluster, threads, words):
    with pytest.raises(InputError) as caught:
        run_study(small, Place(tmp_path, device="cpu"), cluster=cluster, threads=threads)
    assert words in str(caught.value)
    assert not list(tmp_path.glob("*/outcome.json"))


def test_without_ray_its_installation_is_the_cure(tmp_path, small, monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(InputError, match=r"pip install 'ray\[train\]'"):
        run_study(small, Place(tmp_path, device="cpu"), cluster=Cluster("local"))


@pytest.mark.parametrize(("kept", "given", "mode"), [
    (True, {}, "token"), (False, {}, None), (False, {"RAY_AUTH_TOKEN": "t"}, "token"),
    (False, {"RAY_AUTH_TOKEN_PATH": "p"}, "token"), (True, {"RAY_AUTH_MODE": "disabled"}, "disabled"),
])
def test_a_token_of_this_machine_is_shown_to_a_cluster_with_an_address(kept, given, mode, tmp_path, monkeypatch):
    for name in ("RAY_AUTH_MODE", "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"):
        monkeypatch.delenv(name, raising=False)
    for name, value in ({"HOME": str(tmp_path)} | given).items():
        monkeypatch.setenv(name, value)
    if kept:
        (tmp_path / ".ray").mkdir()
        (tmp_path / ".ray" / "auth_token").write_text("t")
    cluster_room._offer_token()
    assert os.environ.get("RAY_AUTH_MODE") == mode


def test_machines_may_join_for_a_while(monkeypatch):
    small = {"Resources": {"CPU": 1.0}, "Alive": True}
    gone, large = {"Resources": {"CPU": 64.0}, "Alive": False}, {"Resources": {"CPU": 8.0}, "Alive": True}
    seen = [[], [small, gone], [small, gone], [small, gone, large]]
    monkeypatch.setattr(ray, "nodes", lambda: seen.pop(0) if len(seen) > 1 else seen[0])
    monkeypatch.setattr(cluster_room.time, "sleep", lambda seconds: None)
    assert cluster_room._largest("CPU", 4, 0) == 0
    assert cluster_room._largest("CPU", 4, 60) == 8
    assert cluster_room._largest("CPU", 16, 0) == 8
    assert cluster_room._largest("GPU", 1, 0) == 0


def test_an_attempt_speaks_and_listens_no_more_than_once_a_second(monkeypatch):
    class Actor:
        def __init__(self):
            self.put = self.asked = self
            self.calls = []

        def remote(self, *given):
            self.calls.append(given)
            return

    actor = Actor()
    line = cluster_room._Line(actor)
    monkeypatch.setattr(ray, "get", lambda _: 15)
    clock = [100.0]
    monkeypatch.setattr(cluster_room.time, "monotonic", lambda: clock[0])
    for kind in ("started", "progress", "progress", "finished"):
        line.tell(Event(0, kind))
    assert [event.kind for (event,) in actor.calls] == ["started", "finished"]
    assert line.stop() == 15
    assert line.stop() is None
    clock[0] += 1.5
    line.tell(Event(0, "progress"))
    assert actor.calls[-1][0].kind == "progress"
    assert line.stop() == 15
