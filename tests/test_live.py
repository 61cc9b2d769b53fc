"""A report while its studies run: what is done, what runs, what is left, and when the page comes to rest."""

import os
import re
import signal

import pytest

from made_outcomes import manifest, outcome, store
from spaceless.errors import InputError, Interrupted
from spaceless.live import Running, look, running, time_left, watch

NOW = 1_800_000_000.0


def _begin(root, trial, ago, heard=None):
    folder = root / trial.id
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "trial.json").write_text(trial.model_dump_json())
    os.utime(folder / "trial.json", (NOW - ago, NOW - ago))
    if heard is not None:
        (folder / "state").write_text("x")
        os.utime(folder / "state", (NOW - heard, NOW - heard))


def _took(trial, seconds):
    return trial.model_copy(update={"seconds": seconds})


def test_a_trial_runs_from_its_beginning_to_its_outcome(tmp_path):
    first, second, third = (outcome("gap_fc", k) for k in (1, 2, 3))
    store(tmp_path, first)
    _begin(tmp_path, first.trial, 500)
    _begin(tmp_path, second.trial, 100, heard=40)
    _begin(tmp_path, third.trial, 200, heard=190)
    (tmp_path / "half").mkdir()
    (tmp_path / "half" / "trial.json").write_text("{")
    assert running([tmp_path], NOW) == [Running(third.trial, 200, 190), Running(second.trial, 100, 40)]


def test_a_trial_that_is_gone_on_with_begins_when_it_was_claimed(tmp_path):
    made = outcome("gap_fc", 1).trial
    _begin(tmp_path, made, 86_400)
    claim = tmp_path / made.id / ".claim"
    claim.write_text("{}")
    os.utime(claim, (NOW - 30, NOW - 30))
    assert running([tmp_path], NOW) == [Running(made, 30, 30)]


def test_the_time_left_is_that_of_trials_alike_shared_by_those_that_run():
    small = [outcome("gap_fc", k, width=0.5) for k in (1, 2)]
    large = [outcome("gap_fc", k) for k in range(1, 6)]
    finished = [_took(small[0], 10.0), _took(large[0], 100.0), _took(large[1], 140.0)]
    # three large of 120 s and one small of 10 s are left; one large has run for 30 s, another for longer than expected
    begun = [Running(large[2].trial, 30.0, 5.0), Running(large[3].trial, 150.0, 5.0)]
    assert time_left([large[4].trial, small[1].trial], begun, finished) == (120 + 10 + 90 + 0) / 2
    assert time_left([large[4].trial], [], finished) == 120
    assert time_left([large[4].trial], begun, []) is None
    # one that has been silent for an hour does not run: it is to be done again, and shares nothing
    assert time_left([], [Running(large[2].trial, 4000.0, 3600.0)], finished) == 120
    other = outcome("gap_fc", 1, model="resnet50")
    assert time_left([other.trial], [], finished) == pytest.approx(250 / 3)  # nothing alike: the mean of all


def test_what_is_said_of_a_study_half_way(tmp_path):
    made = [_took(outcome("gap_fc", k), 60.0) for k in (1, 2, 3, 4)]
    manifest(tmp_path, "one", made)
    store(tmp_path, *made[:2])
    _begin(tmp_path, made[2].trial, 20, heard=3)
    found = look([tmp_path], 10, NOW)
    assert (found.done, found.planned, found.every) == (2, 4, 10)
    assert re.fullmatch(r"\S+ \S+ UTC: 2 of 4 trials have ended, 1 running, about 1 min 40 s left\.", found.text)
    assert found.running == (f"{made[2].trial.label}: begun 20 s ago",)
    silent = look([tmp_path], 10, NOW + 7200)
    assert "none is running" in silent.text
    assert "without a sign of life for 2 h 0 min" in silent.running[0]


def test_a_failed_trial_has_ended_until_somebody_tries_again(tmp_path):
    made = [outcome(), outcome("gap_fc", 1, status="failed")]
    manifest(tmp_path, "one", made)
    store(tmp_path, *made)
    assert look([tmp_path], 10, NOW).text.endswith("2 of 2 trials have ended, 1 failed, which the same "
                                                   "command would try again.")


def test_the_page_is_made_again_until_the_study_has_ended(tmp_path):
    made = [outcome(), *(outcome("gap_fc", k) for k in (1, 2))]
    manifest(tmp_path, "one", made)
    store(tmp_path, made[0])
    page, seen, told = tmp_path / "page.html", [], []

    def pause(seconds, stop):
        text = page.read_text()
        seen.append((seconds, re.search(r'<progress value="(\d+)"', text)[1], 'data-every="7"' in text,
                     text.count("seed 0 missing")))
        store(tmp_path, made[len(seen)])

    assert watch([tmp_path], page, 7, tell=told.append, pause=pause) == page
    assert seen == [(7, "1", True, 2), (7, "2", True, 1)]
    last = page.read_text()
    assert 'value="3"' in last
    assert "data-every" not in last
    assert "http-equiv=\"refresh\"" not in last
    assert [text.split(": ", 1)[1][:6] for text in told] == ["1 of 3", "2 of 3", "3 of 3"]


@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_watch_leaves_a_page_at_rest(tmp_path, signum):
    manifest(tmp_path, "one", [outcome(), outcome("gap_fc", 1)])
    store(tmp_path, outcome())

    def interrupt(seconds, stop):
        assert "http-equiv=\"refresh\"" in (tmp_path / "page.html").read_text()
        os.kill(os.getpid(), signum)
        os.kill(os.getpid(), signum)  # as `timeout` does: the page is written nevertheless

    with pytest.raises(Interrupted) as raised:
        watch([tmp_path], tmp_path / "page.html", 5, tell=lambda text: None, pause=interrupt)
    assert raised.value.exit_status == 128 + signum
    assert "data-every" not in (tmp_path / "page.html").read_text()


def test_less_than_a_second_is_bad_input(tmp_path):
    with pytest.raises(InputError, match="at least 1 second"):
        watch([tmp_path], tmp_path / "x.html", 0, tell=print)
