"""Seeds: pinned, spread out, and independent of everything but their arguments."""

import itertools

import pytest
import torch

from spaceless.seeds import derive, generator


@pytest.mark.parametrize(
    ("arguments", "seed"),
    # blake2b of "0|shuffle/train/0|0" and so on; if these change, no stored result can be repeated.
    [((0, "shuffle/train/0", 0), 4389383231144632656), ((7, "augment", 12), 8423375528291716972)],
    ids=["first", "later"],
)
def test_pinned(arguments, seed):
    assert derive(*arguments) == seed


def test_different_arguments_give_different_seeds_of_63_bits():
    purposes = ("a", "b", "a|1", "1|a", "")
    seeds = [derive(*each) for each in itertools.product(range(-1, 12), purposes, range(30))]
    assert len(set(seeds)) == len(seeds) == 13 * 5 * 30
    assert all(0 <= seed < 2**63 for seed in seeds)
    ones = sum(seed.bit_count() for seed in seeds) / len(seeds)
    assert abs(ones - 31.5) < 0.5  # every bit is used: the mean of 1950 draws has a spread of 0.09


def test_a_step_of_zero_is_the_default():
    assert derive(3, "x") == derive(3, "x", 0) != derive(3, "x", 1)


def test_a_generator_on_a_cpu_uses_the_low_32_bits_of_its_seed():
    seed = derive(1, "augment", 2)  # as the docstring of `generator` says
    drawn = [torch.rand(5, generator=torch.Generator().manual_seed(each)) for each in (seed, seed % 2**32, seed + 1)]
    assert torch.equal(drawn[0], drawn[1])
    assert not torch.equal(drawn[0], drawn[2])


def test_generators_repeat_and_leave_the_global_one_alone():
    torch.manual_seed(0)
    before = torch.get_rng_state()
    first = torch.rand(5, generator=generator(1, "augment", 2))
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(99)
    assert torch.equal(torch.rand(5, generator=generator(1, "augment", 2)), first)
    for other in ((2, "augment", 2), (1, "crop", 2), (1, "augment", 3)):
        assert not torch.equal(torch.rand(5, generator=generator(*other)), first)
