"""Damage to states and outcomes: noticed and made good now, and a reader that would not notice is found out."""

from __future__ import annotations

import os
from types import SimpleNamespace

import pytest
import torch

from spaceless import checkpoint, records
from spaceless.bench.faults import damage

torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def a_disk_that_flushes_at_once(monkeypatch):
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)


def measure(**sizes) -> dict:
    return damage.run(lambda _: None, **{"truncations": 14, "flips": 28, "recoveries": 0} | sizes)


def test_all_damage_is_noticed_and_made_good():
    found = measure(recoveries=7)
    assert found["failing"] == []
    counts = found["counts"]
    assert (counts["truncations"], counts["bit flips"]) == (14, 28)
    assert counts["truncations detected before use"] == 14
    assert counts["bit flips detected before use"] == 28
    assert counts["commands run again"] == counts["ended in the same weights and numbers"] >= 7


def test_records_that_are_not_compared_with_their_checksum_are_found_out(monkeypatch):
    def trusting(content, what, *, required=False):
        return content[:content.rfind(b',\n "checksum"')] + b"\n}\n"

    monkeypatch.setattr(records, "unsealed", trusting)
    found = measure(truncations=0, flips=70)
    assert any("outcome.json" in each for each in found["failing"])
    assert any("study.json" in each for each in found["failing"])
    assert found["counts"]["bit flips detected before use"] < 70


def test_tensors_that_are_not_compared_with_their_digest_are_found_out(monkeypatch):
    class Trusting:
        def __init__(self, content):
            self.content = content

        def hexdigest(self):
            return "the same for all"

    monkeypatch.setattr(checkpoint, "hashlib", SimpleNamespace(sha256=Trusting))
    found = measure(truncations=0, flips=70)
    assert found["failing"]
    assert all(".safetensors" in each and "no word" in each for each in found["failing"])


def test_a_training_that_comes_to_something_else_is_found_out(monkeypatch):
    usual = damage._go_on

    def other(root):
        monkeypatch.setattr("spaceless.training.learning_rate", lambda recipe, share: 0.001)
        usual(root)

    monkeypatch.setattr(damage, "_go_on", other)
    found = measure(truncations=7, flips=0, recoveries=7)
    # Damage to a further test or to the manifest of a study leaves no training to be done.
    assert [each.count("not as undamaged") for each in found["failing"]] == [1] * 5
