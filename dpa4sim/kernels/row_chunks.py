"""Functions of rows, a few rows at a time and without stored activations.

The backward pass makes the activations of each chunk again: the memory does not grow with them, and
what is in flight stays in cache.  Weights are constants.  For large batches on the CPU.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.autograd.function import once_differentiable

from dpa4sim.kernels.segments import chunks

CHUNK_ATOMS, CHUNK_EDGES = 128, 4096
"""Rows in flight."""

type Cut = tuple[slice, slice]
"""Rows that go in, and rows that come out of them."""


def in_chunks(
    function: Callable[..., Tensor], tensors: Sequence[Tensor], cuts: Sequence[Cut], n_out: int
) -> Tensor:
    """function(*tensors, all rows) for one whose result on a cut is what the cut's rows give.

    Args:
        function: takes a part of each tensor, and the slices of its rows and of the result's.
        cuts: which rows give which; rows of the result outside of all cuts are zero.
        n_out: rows of the result.
    """
    if len(cuts) < 2:
        return function(*tensors, slice(0, len(tensors[0])), slice(0, n_out))
    return _InChunks.apply(function, cuts, n_out, *tensors)


def atom_cuts(n_atoms: int) -> list[Cut]:
    """Cuts of a function from atoms to atoms."""
    return _even(n_atoms, CHUNK_ATOMS)


def edge_cuts(n_edges: int) -> list[Cut]:
    """Cuts of a function from edges to edges."""
    return _even(n_edges, CHUNK_EDGES)


def center_cuts(offsets: Sequence[int]) -> list[Cut]:
    """Cuts of a function from edges to their centers; no center is divided."""
    return [
        (slice(offsets[first], offsets[last]), slice(first, last))
        for first, last in chunks(offsets, CHUNK_EDGES)
    ]


def pair_dot(
    left: Float[Tensor, "atom *head channel"],
    right: Float[Tensor, "atom *head channel"],
    center: Int[Tensor, " edge"],
    neighbor: Int[Tensor, " edge"],
) -> Float[Tensor, " edge *head"]:
    """left_i . right_j of each edge, without a row of channels for every edge."""
    return _PairDot.apply(left, right, center, neighbor)


def _even(n: int, size: int) -> list[Cut]:
    return [(slice(i, min(i + size, n)),) * 2 for i in range(0, n, size)]


class _InChunks(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, function: Callable[..., Tensor], cuts: Sequence[Cut], n_out: int, *tensors: Tensor
    ) -> Tensor:
        ctx.save_for_backward(*tensors)
        ctx.function, ctx.cuts = function, cuts
        (rows, to), *others = cuts
        part = function(*(tensor[rows] for tensor in tensors), rows, to)
        out = part.new_zeros(n_out, *part.shape[1:])
        out[to] = part
        for rows, to in others:
            out[to] = function(*(tensor[rows] for tensor in tensors), rows, to)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        tensors, needed = ctx.saved_tensors, ctx.needs_input_grad[3:]
        found = [
            torch.zeros_like(tensor) if wanted else None
            for tensor, wanted in zip(tensors, needed, strict=True)
        ]
        for rows, to in ctx.cuts:
            parts = [
                tensor[rows].detach().requires_grad_(wanted)
                for tensor, wanted in zip(tensors, needed, strict=True)
            ]
            with torch.enable_grad():
                value = ctx.function(*parts, rows, to)
            asked = [part for part, wanted in zip(parts, needed, strict=True) if wanted]
            into = [whole for whole in found if whole is not None]
            for whole, given in zip(
                into, torch.autograd.grad(value, asked, gradient[to]), strict=True
            ):
                whole[rows] = given
        return None, None, None, *found


class _PairDot(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, left: Tensor, right: Tensor, center: Tensor, neighbor: Tensor) -> Tensor:
        ctx.save_for_backward(left, right, center, neighbor)
        out = left.new_empty(len(center), *left.shape[1:-1])
        for edges, _ in edge_cuts(len(center)):
            at, to = center[edges], neighbor[edges]
            product = left.index_select(0, at).mul_(right.index_select(0, to))
            torch.sum(product, -1, out=out[edges])
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor, None, None]:
        left, right, center, neighbor = ctx.saved_tensors
        d_left, d_right = torch.zeros_like(left), torch.zeros_like(right)
        for edges, _ in edge_cuts(len(center)):
            at, to, given = center[edges], neighbor[edges], gradient[edges].unsqueeze(-1)
            d_left.index_add_(0, at, right.index_select(0, to).mul_(given))
            d_right.index_add_(0, to, left.index_select(0, at).mul_(given))
        return d_left, d_right, None, None
