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
from torch.autograd.function import once_differentiable


def sum_outer(
    a: Float[Tensor, "edge p"], b: Float[Tensor, "edge q"], offsets: Sequence[int]
) -> Float[Tensor, "atom p q"]:
    """Sum over the edges of each center of a (x) b; first derivatives only.

    Args:
        offsets: row_ptr as Python integers.
    """
    return _SumOuter.apply(a.contiguous(), b.contiguous(), offsets)


class _SumOuter(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, a: Tensor, b: Tensor, offsets: Sequence[int]) -> Tensor:
        out = a.new_zeros(len(offsets) - 1, a.shape[1], b.shape[1])
        a_t = a.T
        for atom, (start, stop) in enumerate(spans(offsets)):
            if stop > start:
                torch.mm(a_t[:, start:stop], b[start:stop], out=out[atom])
        ctx.save_for_backward(a, b)
        ctx.offsets = offsets
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor, None]:
        a, b = ctx.saved_tensors
        da, db = torch.zeros_like(a), torch.zeros_like(b)
        gradient = gradient.contiguous()
        for atom, (start, stop) in enumerate(spans(ctx.offsets)):
            if stop > start:
                torch.mm(b[start:stop], gradient[atom].T, out=da[start:stop])
                torch.mm(a[start:stop], gradient[atom], out=db[start:stop])
        return da, db, None


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
