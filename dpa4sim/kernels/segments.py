"""Sums over the edges of a center as one matrix product per center.

Edges are sorted by center, so a center's rows are one contiguous slab: sum_e a_e^T b_e is a single
product of two slabs, and nothing of the size edges x p x q is ever stored.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor


def sum_outer(
    a: Float[Tensor, "edge p"], b: Float[Tensor, "edge q"], offsets: Sequence[int]
) -> Float[Tensor, "atom p q"]:
    """Sum over the edges of each center of a (x) b; differentiable to any order.

    Args:
        offsets: row_ptr as Python integers.
    """
    return _SumOuter.apply(a, b, offsets)


def spread(
    a: Float[Tensor, "edge p"], matrix: Float[Tensor, "atom p q"], offsets: Sequence[int]
) -> Float[Tensor, "edge q"]:
    """a_e times the matrix of its center; differentiable to any order."""
    return _Spread.apply(a, matrix, offsets)


class _SumOuter(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, a: Tensor, b: Tensor, offsets: Sequence[int]) -> Tensor:
        ctx.save_for_backward(a, b)
        ctx.offsets = offsets
        a, b = a.contiguous(), b.contiguous()
        out = a.new_empty(len(offsets) - 1, a.shape[1], b.shape[1])
        parts = zip(_slabs(a, offsets), _slabs(b, offsets), out.unbind(), strict=True)
        for left, right, target in parts:
            torch.mm(left.T, right, out=target)
        return out

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
        a, b = ctx.saved_tensors
        needs_a, needs_b, _ = ctx.needs_input_grad
        da = spread(b, gradient.transpose(1, 2), ctx.offsets) if needs_a else None
        db = spread(a, gradient, ctx.offsets) if needs_b else None
        return da, db, None


class _Spread(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, a: Tensor, matrix: Tensor, offsets: Sequence[int]) -> Tensor:
        ctx.save_for_backward(a, matrix)
        ctx.offsets = offsets
        a = a.contiguous()
        out = a.new_empty(len(a), matrix.shape[2])
        out[offsets[-1] :] = 0  # padding
        parts = zip(_slabs(a, offsets), matrix.unbind(), _slabs(out, offsets), strict=True)
        for left, of_atom, target in parts:
            torch.mm(left, of_atom, out=target)
        return out

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
        a, matrix = ctx.saved_tensors
        needs_a, needs_matrix, _ = ctx.needs_input_grad
        da = spread(gradient, matrix.transpose(1, 2), ctx.offsets) if needs_a else None
        d_matrix = sum_outer(a, gradient, ctx.offsets) if needs_matrix else None
        return da, d_matrix, None


def counts(offsets: Sequence[int]) -> list[int]:
    """Edges of each center."""
    return [stop - start for start, stop in spans(offsets)]


def _slabs(x: Tensor, offsets: Sequence[int]) -> Sequence[Tensor]:
    """The rows of each center."""
    return x[: offsets[-1]].split_with_sizes(counts(offsets))


def spans(offsets: Sequence[int]) -> list[tuple[int, int]]:
    """(start, stop) of each center."""
    return list(zip(offsets[:-1], offsets[1:], strict=True))


def chunks(offsets: Sequence[int], size: int) -> list[tuple[int, int]]:
    """Ranges of whole centers with at most `size` edges each, or one center where it has more."""
    ranges, first = [], 0
    for atom in range(1, len(offsets)):
        if offsets[atom] - offsets[first] > size and atom - 1 > first:
            ranges.append((first, atom - 1))
            first = atom - 1
    ranges.append((first, len(offsets) - 1))
    return [(a, b) for a, b in ranges if offsets[b] > offsets[a]]
