"""Chunks of rows against the whole at once, and what they store."""

from __future__ import annotations

import pytest
import torch

from dpa4sim.kernels import row_chunks
from dpa4sim.kernels.row_chunks import atom_cuts, center_cuts, edge_cuts, in_chunks, pair_dot

OFFSETS = (0, 3, 3, 9, 10, 10)
"""Centers without edges inside and at the end."""


@pytest.fixture(autouse=True)
def small_chunks(monkeypatch):
    monkeypatch.setattr(row_chunks, "CHUNK_ATOMS", 3)
    monkeypatch.setattr(row_chunks, "CHUNK_EDGES", 4)


def numbers(*shape: int, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator, dtype=torch.float64)


def assert_same(function, reference, *inputs) -> None:
    """Values and gradients of a weighted sum."""
    found = []
    for one in (function, reference):
        given = [value.clone().requires_grad_() for value in inputs]
        value = one(*given)
        weight = numbers(*value.shape, seed=9)
        found.append((value, *torch.autograd.grad((value * weight).sum(), given)))
    for ours, theirs in zip(*found, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-14, atol=1e-14)


@pytest.mark.parametrize("n", [0, 1, 3, 4, 11])
def test_rows_to_rows(n):
    matrix = numbers(5, 2, seed=1)

    def function(x, y, *_):
        return torch.tanh(x @ matrix) * y

    for cuts in (atom_cuts(n), edge_cuts(n)):
        assert [row for _, to in cuts for row in range(n)[to]] == list(range(n))
        assert_same(
            lambda x, y, cuts=cuts: in_chunks(function, [x, y], cuts, n),
            function,
            numbers(n, 5),
            numbers(n, 1, seed=2),
        )


def test_edges_to_centers():
    n_atoms, center = len(OFFSETS) - 1, torch.tensor([0] * 3 + [2] * 6 + [3])
    cuts = center_cuts(OFFSETS)
    assert len(cuts) > 1

    def summed(x, rows, atoms):
        out = x.new_zeros(atoms.stop - atoms.start, 2)
        return out.index_add(0, center[rows] - atoms.start, x.sin())

    assert_same(
        lambda x: in_chunks(summed, [x], cuts, n_atoms),
        lambda x: summed(x, slice(0, 10), slice(0, n_atoms)),
        numbers(10, 2),
    )


def test_an_input_without_a_gradient():
    x, y = numbers(8, 2).requires_grad_(), numbers(8, 2, seed=1)
    value = in_chunks(lambda x, y, *_: x * y, [x, y], atom_cuts(8), 8)
    (gradient,) = torch.autograd.grad(value.sum(), x)
    assert torch.equal(gradient, y)


def test_activations_are_not_stored():
    """What autograd keeps is the input alone, however many steps the function has."""
    stored = []

    def pack(tensor):
        stored.append(tensor)
        return tensor

    x = numbers(9, 2).requires_grad_()

    def many_steps(x, *_):
        for _ in range(5):
            x = x.exp().sin()
        return x

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        in_chunks(many_steps, [x], atom_cuts(9), 9)
    kept = [tensor for tensor in stored if len(tensor) == 9]
    assert [tensor.data_ptr() for tensor in kept] == [x.data_ptr()]


def test_one_chunk_needs_no_second_pass():
    calls = []

    def counted(x, *_):
        calls.append(len(x))
        return x.exp()

    x = numbers(3, 2).requires_grad_()
    in_chunks(counted, [x], atom_cuts(3), 3).sum().backward()
    assert calls == [3]


@pytest.mark.parametrize("n_edges", [0, 3, 10])
def test_products_of_pairs(n_edges):
    generator = torch.Generator().manual_seed(n_edges)
    center, neighbor = torch.randint(0, 5, (2, n_edges), generator=generator)
    assert_same(
        lambda q, k: pair_dot(q, k, center, neighbor),
        lambda q, k: (q[center] * k[neighbor]).sum(-1),
        numbers(5, 2, 3, 4),
        numbers(5, 2, 3, 4, seed=1),
    )
