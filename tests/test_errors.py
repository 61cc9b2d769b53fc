"""The one message form, what exit status follows, and that errors survive the way between processes."""

from __future__ import annotations

import pickle
import signal

import pytest

from spaceless.errors import (
    CheckpointError,
    DataError,
    InputError,
    Interrupted,
    SpacelessError,
    SurgeryError,
    unknown_name,
)

PARTS = {"found": "14", "expected": "0..13", "cure": "lower k"}
KINDS = {SpacelessError: 1, InputError: 2, SurgeryError: 2, DataError: 2, CheckpointError: 1}


def test_the_message_has_one_form_and_keeps_its_parts():
    error = InputError("k", **PARTS)
    assert str(error) == "k: found 14, expected 0..13; lower k"
    assert (error.what, error.found, error.expected, error.cure) == ("k", "14", "0..13", "lower k")


def test_what_a_file_says_without_end_is_shortened_in_the_middle():
    error = InputError("file: " + "a" * 90_000 + ".last", found="9" * 501, expected="x" * 600, cure="do so")
    nines = "9" * 250
    assert str(error) == (
        f"file: {'a' * 244} ... {'a' * 245}.last: found {nines} ... {nines}, expected {'x' * 600}; do so")
    assert error.found == "9" * 501  # the parts are what they were


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
def test_exit_status_and_the_way_through_a_pickle(kind):
    error = pickle.loads(pickle.dumps(kind("k", **PARTS)))
    assert type(error) is kind
    assert error.exit_status == KINDS[kind]
    assert str(error) == "k: found 14, expected 0..13; lower k"
    assert (error.what, error.found, error.expected, error.cure) == ("k", "14", "0..13", "lower k")


@pytest.mark.parametrize(("signum", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_an_interruption_ends_as_a_shell_would_say(signum, status):
    error = pickle.loads(pickle.dumps(Interrupted(signum)))
    assert (error.signum, error.exit_status) == (signum, status)
    assert isinstance(error, SpacelessError)
    assert not isinstance(error, InputError)


def test_unknown_name_lists_all_and_offers_the_nearest():
    near = unknown_name("model", "vgg-16", ("vgg16", "resnet50"))
    assert str(near) == "model: found 'vgg-16', expected one of vgg16, resnet50; did you mean 'vgg16'?"
    far = unknown_name("model", "zzz", iter(("vgg16", "resnet50")), "see the list")
    assert str(far) == "model: found 'zzz', expected one of vgg16, resnet50; see the list"
    assert unknown_name("model", "zzz", ("vgg16",)).cure == "choose one of these"
