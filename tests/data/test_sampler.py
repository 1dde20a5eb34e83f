"""Laws of the order of frames: each once, within the budget, the same for any number of ranks."""

from __future__ import annotations

import numpy as np
import pytest

from dpa4sim.data.sampler import WINDOW, EdgeBudget
from dpa4sim.errors import ConfigError, DataError

CASES = range(40)


def data(case):
    """Frames of many kinds: all alike, a broad mix, few large among many small, none with edges."""
    rng = np.random.default_rng(case)
    n = int(rng.integers(30, 800))
    atoms = rng.integers(1, 60, n)
    kind = case % 4
    if kind == 0:
        return np.full(n, 40), np.full(n, 2)
    if kind == 1:
        return (atoms * rng.integers(15, 158, n)), atoms
    if kind == 2:
        return np.where(rng.random(n) < 0.1, 4000, 20), atoms
    return np.zeros(n, int), atoms


def same(one, other):
    return len(one) == len(other) and all(map(np.array_equal, one, other))


@pytest.mark.parametrize("case", CASES)
def test_each_frame_once_and_within_the_budget(case):
    edges, atoms = data(case)
    rng = np.random.default_rng(case)
    budget = int(rng.integers(max(edges.max(), atoms.max()), 20_000))
    most_atoms = int(rng.integers(60, 500)) if case % 3 == 0 else None
    sampler = EdgeBudget(edges, atoms, max_edges=budget, seed=case, max_atoms=most_atoms)
    batches = sampler.epoch(3)
    assert sorted(np.concatenate(batches).tolist()) == list(range(len(edges)))
    assert all(len(batch) for batch in batches)
    assert max(edges[batch].sum() for batch in batches) <= budget
    if most_atoms is not None:
        assert max(atoms[batch].sum() for batch in batches) <= most_atoms


@pytest.mark.parametrize("case", CASES)
def test_ranks_share_an_epoch(case):
    """As many batches each; their union is each frame once; one process sees the same steps."""
    edges, atoms = data(case)
    rng = np.random.default_rng(case)
    world = int(rng.integers(2, 9))
    settings = {"max_edges": 10_000 + case, "seed": case}
    ranks = [
        EdgeBudget(edges, atoms, rank=r, world=world, **settings).epoch(1) for r in range(world)
    ]
    assert len({len(batches) for batches in ranks}) == 1
    assert sorted(np.concatenate([f for b in ranks for f in b]).tolist()) == list(range(len(edges)))
    assert all(len(batch) for batches in ranks for batch in batches)
    alone = EdgeBudget(edges, atoms, multiple=world, **settings).epoch(1)
    by_step = [batches[step] for step in range(len(ranks[0])) for batches in ranks]
    assert same(alone, by_step)
    plain = EdgeBudget(edges, atoms, **settings).epoch(1)
    whole = len(plain) // world * world  # only the rest is cut up
    if whole and sum(map(len, plain[whole:])) >= world:
        assert same(plain[:whole], alone[:whole])


def test_an_epoch_is_a_function_of_seed_and_number():
    edges, atoms = data(1)

    def epoch(seed, number):
        return EdgeBudget(edges, atoms, max_edges=20_000, seed=seed).epoch(number)

    assert same(epoch(1, 5), epoch(1, 5))
    sampler = EdgeBudget(edges, atoms, max_edges=20_000, seed=1)
    for number in (0, 3, 4):
        sampler.epoch(number)
    assert same(sampler.epoch(5), epoch(1, 5))
    assert not same(epoch(1, 5), epoch(1, 6))
    assert not same(epoch(1, 5), epoch(2, 5))


def test_batches_are_full_and_mixed():
    """Edges from 30 to 9480 per frame: budgets are used, and no batch is of one size only."""
    rng = np.random.default_rng(0)
    atoms = rng.integers(2, 60, 20_000)
    edges = atoms * rng.integers(15, 158, 20_000)
    sampler = EdgeBudget(edges, atoms, max_edges=40_000, seed=0)
    batches = sampler.epoch(0)
    assert sampler.fill(batches[:-WINDOW]) > 0.97
    means = np.array([edges[batch].mean() for batch in batches])
    sizes = np.array([len(batch) for batch in batches])
    chance = edges.std() / np.sqrt(sizes.mean())
    assert means.std() < 1.5 * chance
    order = np.concatenate(batches)
    position = np.empty(len(order))
    position[order] = np.arange(len(order))
    assert abs(np.corrcoef(position, edges)[0, 1]) < 0.05


def test_a_frame_over_the_budget_goes_alone_with_one_warning():
    edges, atoms = np.array([10, 500, 10, 10, 700]), np.ones(5, int)
    with pytest.warns(UserWarning, match=r"2 of 5 frames .* 700"):
        sampler = EdgeBudget(edges, atoms, max_edges=100, seed=0)
    batches = sampler.epoch(0) + sampler.epoch(1)
    assert all(len(b) == 1 for b in batches if edges[b].max() > 100)
    assert sampler.fill(sampler.epoch(0)) == pytest.approx(0.3)


def test_frames_without_edges_do_not_pile_up():
    sampler = EdgeBudget(np.zeros(1000, int), np.ones(1000, int), max_edges=100, seed=0)
    assert max(map(len, sampler.epoch(0))) <= 100


@pytest.mark.parametrize(
    ("settings", "error", "sentence"),
    [
        ({"max_edges": 0}, ConfigError, "holds nothing"),
        ({"max_edges": 9, "max_atoms": 0}, ConfigError, "holds nothing"),
        ({"max_edges": 9, "rank": 2, "world": 2}, ConfigError, "Ranks count from 0"),
        ({"max_edges": 9, "world": 2, "multiple": 3}, ConfigError, "the world divides"),
        ({"max_edges": 9, "world": 6}, DataError, "5 frames cannot be shared in 6"),
    ],
)
def test_what_cannot_be(settings, error, sentence):
    with pytest.raises(error, match=sentence):
        EdgeBudget(np.ones(5, int), np.ones(5, int), seed=0, **settings)
