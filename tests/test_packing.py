"""A nested state taken apart and put together again is the same, whatever its keys are called."""

from __future__ import annotations

import json

import pytest
import torch

from spaceless.packing import pack, unpack

ONE, TWO = torch.zeros(1), torch.ones(2)


@pytest.mark.parametrize(("state", "paths", "plain"), [
    ({"a": ONE}, {"a"}, {}),
    ({"a": {"b.weight": ONE, "c": 1.5}}, {"a/b.weight"}, {"a": {"c": 1.5}}),
    ({"state": {0: {"m": ONE}, 10: {}}}, {"state/#0/m"}, {"state": {"#0": {}, "#10": {}}}),
    ({"#0": ONE, 0: TWO}, {"##0", "#0"}, {}),
    ({"a/b": {"c": ONE}, "a": {"b/c": TWO}}, {"a~1b/c", "a/b~1c"}, {"a~1b".replace("~1", "/"): {}, "a": {}}),
    ({"~1": ONE, "/": TWO}, {"~01", "~1"}, {}),
    ({"groups": [{"lr": 0.1, "params": [0, 1], "on": True, "none": None}]}, set(),
     {"groups": [{"lr": 0.1, "params": [0, 1], "on": True, "none": None}]}),
], ids=range(7))
def test_there_and_back(state, paths, plain):
    tensors, rest = pack(state)
    assert (set(tensors), rest) == (paths, plain)
    found = unpack(tensors, json.loads(json.dumps(rest)))
    assert _flat(found) == _flat(state)


def _flat(value: object, place: tuple = ()) -> dict:
    if isinstance(value, dict):
        return {k: v for key, each in value.items() for k, v in _flat(each, (*place, key)).items()} | {place: None}
    return {place: value.tolist() if isinstance(value, torch.Tensor) else value}


def test_pairs_come_back_as_lists():
    assert unpack(*pack({"betas": (0.9, 0.999)})) == {"betas": [0.9, 0.999]}


@pytest.mark.parametrize("state", [{"a": {1, 2}}, {"a": [ONE]}, {(1, 2): 3}, {"a": {True: 1}}, {"a": b"x"}], ids=str)
def test_what_neither_form_can_hold_is_a_mistake(state):
    with pytest.raises(TypeError):
        pack(state)


@pytest.mark.parametrize(("tensors", "plain"), [
    ({"a/b": ONE}, {}), ({"a/b": ONE}, {"a": 3}), ({"a": ONE}, {"a": 3}), ({"a": ONE}, []), ({"#x": ONE}, {}),
    ({}, {"#x": 1}),
], ids=str)
def test_parts_that_do_not_belong_together_are_refused(tensors, plain):
    with pytest.raises((LookupError, TypeError, ValueError)):
        unpack(tensors, plain)
