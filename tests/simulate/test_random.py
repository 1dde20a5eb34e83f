"""Random numbers that belong to an atom and a step: the generator, and what is made of it."""

import pytest
import torch
from scipy.stats import chi2, kstest, norm
from scipy.stats import uniform as flat

from dpa4sim.simulate.random import (
    Stream,
    Words,
    chi_square,
    normal_pair,
    normals,
    philox,
    uniform,
    words,
)

KNOWN_ANSWERS = """
00000000 00000000 00000000 00000000  00000000 00000000  6627e8d5 e169c58d bc57ac4c 9b00dbd8
ffffffff ffffffff ffffffff ffffffff  ffffffff ffffffff  408f276d 41c83b0e a20bc7c6 6d5451fd
243f6a88 85a308d3 13198a2e 03707344  a4093822 299f31d0  d16cfe09 94fdcceb 5001e420 24126ea1
"""
"""Counter, key, block: the philox4x32-10 lines of the known-answer file of Random123."""

DOUBT = 1e-4
"""Probability with which a right generator fails a test of distribution; the seed is fixed."""

N = 200_000


def known(line: int) -> torch.Tensor:
    """The ten words of a line, each a tensor of one entry."""
    text = KNOWN_ANSWERS.split()
    return torch.tensor([[int(word, 16)] for word in text[10 * line : 10 * line + 10]])


def blocks(n: int, stream: Stream = Stream.LANGEVIN, seed: int = 7) -> Words:
    zero = torch.zeros(n, dtype=torch.long)
    return words(torch.arange(n), zero + 3, zero + 5, stream, zero + seed)


@pytest.mark.parametrize("line", range(3))
def test_known_answers(line):
    numbers = known(line)
    block = philox(tuple(numbers[:4]), tuple(numbers[4:6]))
    assert torch.equal(torch.stack(block), numbers[6:])


def test_many_counters_at_once():
    """The known answers side by side, each under its own key."""
    numbers = torch.cat([known(line) for line in range(3)], 1)
    block = philox(tuple(numbers[:4]), tuple(numbers[4:6]))
    assert torch.equal(torch.stack(block), numbers[6:])


def test_each_part_of_the_counter_counts():
    one = torch.ones(1, dtype=torch.long)

    def block(number=1, step=1, identity=1, stream=Stream.LANGEVIN, seed=1):
        made = words(number * one, step * one, identity * one, stream, seed * one)
        return tuple(int(word) for word in made)

    variants = {
        block(),
        block(number=2),
        block(step=2),
        block(identity=2),
        block(stream=Stream.RESCALING),
        block(seed=2),
        block(seed=1 + 2**32),
        block(seed=-1),
    }
    assert len(variants) == 8


def test_bits_do_not_depend_on_the_place_in_the_batch():
    whole = normals(blocks(5000))
    for start in (0, 1, 2, 3, 1234, 4999):
        part = tuple(word[start : start + 7] for word in blocks(5000))
        assert torch.equal(normals(part), whole[start : start + 7])


def test_uniforms_are_uniform_and_inside():
    block = blocks(N)
    for word in block:
        assert kstest(uniform(word).numpy(), flat.cdf).pvalue > DOUBT
    ends = uniform(torch.tensor([0, 2**32 - 1]))
    assert float(ends[0]) > 0
    assert float(ends[1]) < 1


def test_normals_are_normal_and_independent():
    drawn = normals(blocks(N))
    for component in drawn.unbind(1):
        assert kstest(component.numpy(), norm.cdf).pvalue > DOUBT
    following = normals(blocks(N, seed=8))
    together = torch.cat([drawn, following, drawn.roll(1, 0), drawn.square()], 1)
    correlation = torch.corrcoef(together.T) - torch.eye(12, dtype=torch.float64)
    five_sigma = 5 / N**0.5
    assert float(correlation.abs().max()) < five_sigma


@pytest.mark.parametrize("degrees", [2, 5, 23, 299])
def test_sums_of_squares(degrees):
    n = N // 4
    block = tuple(word.reshape(n, 4)[:, :3] for word in blocks(N))
    tried = torch.cat(normal_pair(block[0], block[1]), 1)
    chance = torch.cat([uniform(block[2]), uniform(block[3])], 1)
    found = chi_square(tried, chance, torch.full((n,), float(degrees), dtype=torch.float64))
    assert kstest(found.numpy(), chi2(degrees).cdf).pvalue > DOUBT


def test_a_sum_of_squares_takes_the_first_good_try():
    good, bad = 0.5, -9.0  # (1 + bad / sqrt(9 d))^3 < 0 is never taken
    tried = torch.tensor([[bad, good, 0.1], [good, bad, bad], [bad, bad, bad]]).double()
    chance = torch.full_like(tried, 0.5)
    degrees = torch.full((3,), 2.0, dtype=torch.float64)
    d = 1.0 - 1.0 / 3.0
    expected = 2 * d * (1 + good / (9 * d) ** 0.5) ** 3
    found = chi_square(tried, chance, degrees)
    assert found[:2].tolist() == pytest.approx([expected] * 2)
    assert 0 <= float(found[2]) < 1e-100


@pytest.mark.gpu
def test_the_words_are_the_same_on_cuda():
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    counter = torch.randint(0, 2**32, (4, N))
    key = torch.randint(0, 2**32, (2, N))
    here = philox(tuple(counter), tuple(key))
    there = philox(tuple(counter.cuda()), tuple(key.cuda()))
    for ours, theirs in zip(here, there, strict=True):
        assert torch.equal(ours, theirs.cpu())
