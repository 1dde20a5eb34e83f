"""Sums in regular groups are those of one product for each center, and so are their derivatives."""

from __future__ import annotations

import pytest
import torch

from dpa4sim.kernels import group_sums, segments
from dpa4sim.kernels.edge_groups import EdgeGroups

EXACT = 1e-12
COUNTS = [3, 0, 7, 1, 4, 4, 0, 2]


def tensors(padding: int) -> tuple[torch.Tensor, torch.Tensor, list[int], EdgeGroups]:
    """Rows of edges, their offsets and their groups."""
    center = torch.repeat_interleave(torch.arange(len(COUNTS)), torch.tensor(COUNTS))
    offsets = [0, *torch.tensor(COUNTS).cumsum(0).tolist()]
    generator = torch.Generator().manual_seed(4)
    a, b = (
        torch.randn(len(center) + padding, n, generator=generator, dtype=torch.float64)
        for n in (3, 5)
    )
    groups = EdgeGroups.build(center, len(COUNTS), most=9)
    return a.requires_grad_(True), b.requires_grad_(True), offsets, groups


def derivatives(total: torch.Tensor, *leaves: torch.Tensor) -> list[torch.Tensor]:
    """The sums, first derivatives of a function of them, and of a function of those."""
    first = torch.autograd.grad(total.square().sum(), leaves, create_graph=True)
    again = sum((g * g.sin()).sum() for g in first)
    return [total, *first, *torch.autograd.grad(again, leaves)]


@pytest.mark.parametrize("padding", [0, 2])
def test_sums_and_two_derivatives_are_those_of_single_products(padding):
    a, b, offsets, groups = tensors(padding)
    found = derivatives(group_sums.sum_outer(a, b, groups, len(COUNTS)), a, b)
    wanted = derivatives(segments.sum_outer(a, b, offsets), a, b)
    for left, right in zip(found, wanted, strict=True):
        assert float((left - right).detach().abs().max()) < EXACT * float(
            right.detach().abs().max()
        )


def test_rows_meet_the_matrix_of_their_atom():
    a, _, offsets, groups = tensors(2)
    matrix = torch.randn(len(COUNTS), 3, 4, dtype=torch.float64)
    found = group_sums.spread(a, matrix, groups)
    wanted = segments.spread(a, matrix, offsets)
    assert float((found - wanted).detach().abs().max()) < EXACT
