"""The search for the largest K on scripted curves: exact where the curve falls once, careful where it does not."""

from __future__ import annotations

import itertools

import pytest

from spaceless.search import first_k, largest_k, usual_budget


def searched(units: int, good, budget: int | None = None):
    """Return what the search finds on a curve, after checking that it asked for no K twice and kept to its budget."""
    asked: list[int] = []

    def within(k: int) -> bool:
        asked.append(k)
        return good(k)

    found = largest_k(units, within, budget)
    assert len(asked) == len(set(asked))
    assert all(1 <= k <= units for k in asked)
    assert len(asked) <= (usual_budget(units) if budget is None else budget)
    assert list(found.tried) == asked
    assert not found.spent or len(asked) == (usual_budget(units) if budget is None else budget)  # nothing is given away
    assert found.accepted[-1] == found.largest
    return found


def curve(text: str):
    """Return the answers of a curve such as `++-+` for K = 1, 2, 3, 4."""
    return lambda k: text[k - 1] == "+"


@pytest.mark.parametrize("units", [1, 2, 3, 4, 7, 8, 13, 16, 17, 50])
def test_a_curve_that_falls_once_is_answered_exactly(units):
    for largest in range(units + 1):
        found = searched(units, lambda k, largest=largest: k <= largest)
        assert (found.largest, found.spent, found.alone) == (largest, False, ())


def test_thirteen_units_take_at_most_half_of_the_trainings_of_a_sweep():
    assert usual_budget(13) == 6  # and the baseline: 7 of 14
    trained = [len(searched(13, lambda k, largest=largest: k <= largest).tried) for largest in range(14)]
    assert max(trained) <= 5
    for text in itertools.islice(itertools.product("+-", repeat=13), 0, None, 7):
        assert len(searched(13, curve("".join(text))).tried) <= 6


@pytest.mark.parametrize("budget", [None, 1, 3, 13])
def test_whatever_the_curve_an_answer_and_the_k_before_it_are_within(budget):
    for text in itertools.product("+-", repeat=9):
        found = searched(9, curve("".join(text)), None if budget is None else min(budget, 9))
        answers = {0: True, **found.tried}
        assert found.largest == max(k for k, good in answers.items() if k == 0 or (good and answers.get(k - 1)))
        assert all(text[k - 1] == "+" for k in (found.largest, found.largest - 1) if k > 0)
        assert found.alone == tuple(sorted(k for k, good in found.tried.items() if good and k > found.largest))


@pytest.mark.parametrize(("text", "largest", "alone"), [
    ("+++++++++++++", 13, ()),
    ("-------------", 0, ()),
    ("+------------", 1, ()),
    ("++++++++++-++", 13, ()),  # 11 alone was unlucky: the pair 12, 13 is above it, and 11 is not even tried
    ("++++++-++++++", 13, ()),  # 7 is the first that is tried; 8 makes it known as an unlucky one
    ("++++-----+---", 4, ()),  # a lucky one that nobody asks for
    ("++++--+------", 4, (7,)),  # a lucky one that the bisection meets: the K before it is not within
])
def test_noise_in_one_training_decides_nothing(text, largest, alone):
    found = searched(13, curve(text), 13)
    assert (found.largest, found.alone) == (largest, alone)


@pytest.mark.parametrize(("budget", "asked", "largest"), [
    (1, [1], 1), (2, [7, 6], 7), (3, [7, 10, 9], 10), (4, [7, 10, 12, 11], 12), (5, [7, 10, 12, 13, 11], 12)])
def test_with_the_trials_used_up_the_best_pair_so_far_is_the_answer(budget, asked, largest):
    found = searched(13, curve("++++++++++++-"), budget)
    assert (list(found.tried), found.largest, found.spent) == (asked, largest, budget < 5)


@pytest.mark.parametrize("units", [1, 2, 5, 13, 17])
def test_no_trial_is_spent_on_what_cannot_be_accepted(units):
    """Where the curve falls once, whatever was found within the tolerance is accepted, and asked for first as told."""
    for budget, largest in itertools.product(range(1, units + 1), range(units + 1)):
        found = searched(units, lambda k, largest=largest: k <= largest, budget)
        assert found.alone == ()
        assert next(iter(found.tried)) == first_k(units, budget)


def test_a_lucky_k_at_the_end_of_a_small_budget_ends_the_search():
    found = searched(13, curve("++++--+------"), 2)
    assert (found.tried, found.largest, found.alone, found.spent) == ({7: True, 6: False}, 0, (7,), True)
