"""Sums over the edges of a center in regular groups: one batched product for each group.

The same numbers as segments.py, which makes one product for each center: on the host's side that
takes longer than the arithmetic where the rows are short.
"""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from dpa4sim.kernels.edge_groups import EdgeGroups


def sum_outer(
    a: Float[Tensor, "edge p"], b: Float[Tensor, "edge q"], ends: EdgeGroups, n_atoms: int
) -> Float[Tensor, "atom p q"]:
    """Sum over the edges of each atom of a (x) b; differentiable to any order.

    Args:
        ends: the edges by that atom; what lies behind them is padding.
    """
    return _SumOuter.apply(a, b, ends, n_atoms)


def spread(
    a: Float[Tensor, "edge p"], matrix: Float[Tensor, "atom p q"], ends: EdgeGroups
) -> Float[Tensor, "edge q"]:
    """a_e times the matrix of its atom; differentiable to any order."""
    return _Spread.apply(a, matrix, ends)


class _SumOuter(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, a: Tensor, b: Tensor, ends: EdgeGroups, n_atoms: int) -> Tensor:
        ctx.save_for_backward(a, b)
        ctx.ends = ends
        left, right = a.index_select(0, ends.edge), b.index_select(0, ends.edge)
        left = left * ends.filled[:, None]
        out = a.new_zeros(n_atoms, a.shape[1], b.shape[1])
        for atoms, slots, size in ends.groups:
            p, q = (x[slots].unflatten(0, (len(atoms), size)) for x in (left, right))
            out[atoms] = torch.bmm(p.transpose(1, 2), q)
        return out

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, Tensor | None, None, None]:
        a, b = ctx.saved_tensors
        needs_a, needs_b, *_ = ctx.needs_input_grad
        da = spread(b, gradient.transpose(1, 2), ctx.ends) if needs_a else None
        db = spread(a, gradient, ctx.ends) if needs_b else None
        return da, db, None, None


class _Spread(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, a: Tensor, matrix: Tensor, ends: EdgeGroups) -> Tensor:
        ctx.save_for_backward(a, matrix)
        ctx.ends = ends
        left = a.index_select(0, ends.edge)
        parts = []
        for atoms, slots, size in ends.groups:
            of_atoms = left[slots].unflatten(0, (len(atoms), size))
            parts.append(torch.bmm(of_atoms, matrix.index_select(0, atoms)).flatten(0, 1))
        out = torch.cat(parts).index_select(0, ends.slot)
        padding = out.new_zeros(len(a) - len(out), out.shape[1])
        return torch.cat([out, padding]) if len(padding) else out

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
        a, matrix = ctx.saved_tensors
        needs_a, needs_matrix, _ = ctx.needs_input_grad
        da = spread(gradient, matrix.transpose(1, 2), ctx.ends) if needs_a else None
        d_matrix = sum_outer(a, gradient, ctx.ends, len(matrix)) if needs_matrix else None
        return da, d_matrix, None
