"""The sum over the edges of a center, and then the last SO(2) layer, which is linear.

    m_i[lm] = sum_e alpha_e sum_k D_e[k, lm] (x_e W)_k,l
            = sum_k (sum_e alpha_e D_e[k, lm] x_e) W_k,l

(L + 1)^2 rotation entries meet an edge's features where a matrix did: the most expensive layer of
a stack becomes a small one, and the atoms pay for W instead of the edges.  For orders -m and +m,
W = [[U, V], [-V, U]] and T = sum_e alpha_e D_e (x) x_e give

    m_i[lm] = (T_-- + T_++) U_l + (T_+- - T_-+) V_l
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from dpa4sim.kernels.frame_products import FrameShape

Sums = Float[Tensor, "head copy lm atom copy_row_channel"]
"""T of one order and some atoms; one copy for m = 0, -m and +m for others."""


def sum_centers(
    x: Float[Tensor, "edge row_channel"],
    rows: Float[Tensor, "edge order lm_top"],
    alpha: Float[Tensor, "edge head"],
    matrices: Sequence[Tensor],
    counts: Sequence[int],
    s: FrameShape,
) -> Float[Tensor, "atom lm channel"]:
    """Messages of consecutive atoms, before the rescale of the degrees l > M.

    Args:
        x: what goes into the last layer.
        matrices: of that layer: m = 0, then [[U, V], [-V, U]] of each pair.
        counts: edges of each atom.
    """
    n = len(counts)
    out = x.new_empty(s.n_lm, n, s.width)
    for order, columns in enumerate(order_columns(s)):
        weighted = weighted_rows(rows, alpha, order, s)
        sums = x.new_empty(weighted.shape[1], n, columns.stop - columns.start)
        parts = zip(
            weighted.T.split(counts, 1), x[:, columns].split(counts), sums.unbind(1), strict=True
        )
        for left, right, target in parts:
            torch.mm(left, right, out=target)
        _apply(_as_sums(sums, order, alpha.shape[1], s), matrices[order], out, order, s)
    return out.transpose(0, 1)


def sum_centers_backward(
    gradient: Float[Tensor, "atom lm channel"],
    x: Float[Tensor, "edge row_channel"],
    rows: Float[Tensor, "edge order lm_top"],
    alpha: Float[Tensor, "edge head"],
    matrices: Sequence[Tensor],
    counts: Sequence[int],
    s: FrameShape,
    d_rows: Float[Tensor, "edge order lm_top"],
    d_alpha: Float[Tensor, "edge head"],
) -> Float[Tensor, "edge row_channel"]:
    """Cotangent of x; those of the rotation and of alpha are written."""
    n, dx = len(counts), torch.empty_like(x)
    gradient = gradient.transpose(0, 1).contiguous()
    d_alpha.zero_()
    for order, columns in enumerate(order_columns(s)):
        weighted = weighted_rows(rows, alpha, order, s)
        d_sums = x.new_empty(weighted.shape[1], n, columns.stop - columns.start)
        _apply_backward(
            gradient, matrices[order], _as_sums(d_sums, order, alpha.shape[1], s), order, s
        )
        d_weighted = torch.empty_like(weighted)
        parts = zip(
            weighted.split(counts), d_sums.unbind(1), x[:, columns].split(counts),
            dx[:, columns].split(counts), d_weighted.split(counts), strict=True,
        )  # fmt: skip
        for left, of_atom, right, to_right, to_left in parts:
            torch.mm(left, of_atom, out=to_right)
            torch.mm(right, of_atom.T, out=to_left)
        spread = d_weighted.unflatten(1, (alpha.shape[1], -1, s.n_lm - order**2))
        source, target = rows_of(rows, order, s), rows_of(d_rows, order, s)
        d_alpha += (spread * source[:, None]).sum((2, 3))
        if alpha.shape[1] == 1:
            torch.mul(spread[:, 0], alpha[:, :, None], out=target)
        else:
            torch.sum(spread * alpha[:, :, None, None], 1, out=target)
    return dx


def order_columns(s: FrameShape) -> list[slice]:
    """Columns of an edge's features that belong to each order; those of -m lie before +m."""
    found, start = [], 0
    for order, size in enumerate(s.sizes):
        stop = start + size * s.width * (2 if order else 1)
        found.append(slice(start, stop))
        start = stop
    return found


def rows_of(
    rows: Float[Tensor, "edge order lm_top"], order: int, s: FrameShape
) -> Float[Tensor, "edge copy lm"]:
    """The rotation rows of -m and +m where they are not zero: m <= l <= L."""
    first = 2 * order - 1 if order else 0
    return rows[:, first : 2 * order + 1, order**2 : s.n_lm]


def weighted_rows(
    rows: Float[Tensor, "edge order lm_top"],
    alpha: Float[Tensor, "edge head"],
    order: int,
    s: FrameShape,
) -> Float[Tensor, "edge head_copy_lm"]:
    """Alpha D of one order."""
    return (rows_of(rows, order, s)[:, None] * alpha[:, :, None, None]).flatten(1)


def _as_sums(sums: Tensor, order: int, heads: int, s: FrameShape) -> Sums:
    return sums.view(heads, 2 if order else 1, s.n_lm - order**2, *sums.shape[1:])


def _blocks(
    order: int, heads: int, s: FrameShape
) -> Iterator[tuple[int, slice, slice, slice, slice]]:
    """(head, lm among all, lm of the order, columns of the head, columns of W) of each degree."""
    per_head = s.width // heads
    for head in range(heads):
        columns = slice(head * per_head, (head + 1) * per_head)
        for degree in range(order, s.max_degree + 1):
            first, last = degree**2, (degree + 1) ** 2
            start = (degree - order) * s.width + columns.start
            yield (
                head,
                slice(first, last),
                slice(first - order**2, last - order**2),
                columns,
                slice(start, start + per_head),
            )


def _apply(
    sums: Sums, matrix: Tensor, out: Float[Tensor, "lm atom channel"], order: int, s: FrameShape
) -> None:
    """What one order gives to the messages; m = 0 is the first and writes, others add."""
    heads = len(sums)
    if order == 0:
        pairs = [(sums[:, 0], matrix)]
    else:
        n = len(matrix) // 2
        minus, plus = sums[..., :n], sums[..., n:]
        pairs = [
            (minus[:, 0] + plus[:, 1], matrix[:n, :n]),
            (minus[:, 1] - plus[:, 0], matrix[:n, n:]),
        ]
    for head, all_lm, lm, columns, of_matrix in _blocks(order, heads, s):
        target = out[all_lm].flatten(0, 1)[:, columns]
        for index, (part, block) in enumerate(pairs):
            source = part[head, lm].flatten(0, 1)
            target.addmm_(source, block[:, of_matrix], beta=1 if order + index else 0)


def _apply_backward(
    gradient: Float[Tensor, "lm atom channel"],
    matrix: Tensor,
    d_sums: Sums,
    order: int,
    s: FrameShape,
) -> None:
    """Cotangent of the sums of one order."""
    n = len(matrix) // 2 if order else len(matrix)
    for head, all_lm, lm, columns, of_matrix in _blocks(order, len(d_sums), s):
        source = gradient[all_lm].flatten(0, 1)[:, columns]
        by_u = d_sums[head, 0, lm, :, :n].flatten(0, 1)
        if order == 0:
            torch.mm(source, matrix[:, of_matrix].T, out=by_u)
            continue
        shape = (-1, d_sums.shape[3], n)
        d_sums[head, 0, lm, :, :n] = torch.mm(source, matrix[:n, of_matrix].T).view(shape)
        d_sums[head, 1, lm, :, :n] = torch.mm(source, matrix[:n, n:][:, of_matrix].T).view(shape)
    if order:
        d_sums[:, 1, ..., n:] = d_sums[:, 0, ..., :n]
        torch.neg(d_sums[:, 1, ..., :n], out=d_sums[:, 0, ..., n:])
