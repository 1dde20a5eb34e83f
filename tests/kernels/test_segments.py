"""Sums over the edges of a center."""

from __future__ import annotations

import torch

from dpa4sim.kernels.segments import chunks, sum_outer

OFFSETS = (0, 3, 3, 4, 9)


def test_sum_outer_and_its_gradient():
    generator = torch.Generator().manual_seed(0)
    a = torch.randn(9, 4, generator=generator, dtype=torch.float64, requires_grad=True)
    b = torch.randn(9, 5, generator=generator, dtype=torch.float64, requires_grad=True)
    center = torch.tensor([0, 0, 0, 2, 3, 3, 3, 3, 3])
    expected = torch.zeros(4, 4, 5, dtype=torch.float64)
    expected = expected.index_add(0, center, a.detach()[:, :, None] * b.detach()[:, None])
    torch.testing.assert_close(sum_outer(a, b, OFFSETS).detach(), expected)
    assert torch.autograd.gradcheck(lambda a, b: sum_outer(a, b, OFFSETS), (a, b))


def test_chunks_hold_whole_centers_and_every_edge():
    for size in (1, 2, 4, 5, 100):
        found = chunks(OFFSETS, size)
        edges = [e for first, last in found for e in range(OFFSETS[first], OFFSETS[last])]
        assert edges == list(range(9))
        for first, last in found:
            assert OFFSETS[last] - OFFSETS[first] <= size or last - first == 1


def test_no_edges_no_chunks():
    assert chunks((0, 0, 0), 10) == []
