"""The sum over the edges of a center, and then the last SO(2) layer, which is linear.

    m_i[lm] = sum_e alpha_e sum_k D_e[k, lm] (x_e W)_k,l
            = sum_k (sum_e alpha_e D_e[k, lm] x_e) W_k,l

(2M + 1) (L + 1)^2 numbers meet an edge's features where a matrix did: the dearest layer of a stack
becomes a small one, and the atoms pay for W instead of the edges.  For orders -m and +m,
W = [[U, V], [-V, U]] and T = sum_e alpha_e D_e (x) x_e give

    m_i[lm] = (T_-- + T_++) U_l + (T_+- - T_-+) V_l
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from dpa4sim.kernels.frame_products import FrameShape

Sums = Float[Tensor, "_ head lm atom _"]
"""T of one order and some atoms; one copy for m = 0, -m and +m for others."""


def weighted_rows(
    rows: Float[Tensor, "edge order lm_top"], alpha: Float[Tensor, "edge head"], s: FrameShape
) -> Float[Tensor, "edge order_head_lm"]:
    """Alpha D of each head."""
    used = rows[:, : 2 * s.max_order + 1, None, : s.n_lm]
    return (used * alpha[:, None, :, None]).flatten(1)


def unweigh(
    d_weighted: Float[Tensor, "edge order_head_lm"],
    rows: Float[Tensor, "edge order lm_top"],
    alpha: Float[Tensor, "edge head"],
    s: FrameShape,
    d_rows: Float[Tensor, "edge order lm_top"],
    d_alpha: Float[Tensor, "edge head"],
) -> None:
    """Cotangents of rows and alpha through `weighted_rows`, written."""
    n_orders, heads = 2 * s.max_order + 1, alpha.shape[1]
    used, target = rows[:, :n_orders, : s.n_lm], d_rows[:, :n_orders, : s.n_lm]
    if heads == 1:
        torch.mul(d_weighted.view(used.shape), alpha[:, :, None], out=target)
        torch.linalg.vecdot(d_weighted, used.flatten(1), out=d_alpha[:, 0])
        return
    spread = d_weighted.view(-1, n_orders, heads, s.n_lm)
    torch.sum(spread * alpha[:, None, :, None], 2, out=target)
    torch.sum(spread * used[:, :, None], (1, 3), out=d_alpha)


def empty_sums(n_atoms: int, heads: int, s: FrameShape, like: Tensor) -> list[Sums]:
    """Room for the sums of each order."""
    return [
        like.new_empty(2 if order else 1, heads, s.n_lm, n_atoms, columns.stop - columns.start)
        for order, columns in enumerate(_order_columns(s))
    ]


def sum_centers(
    x: Float[Tensor, "edge row_channel"],
    weighted: Float[Tensor, "edge order_head_lm"],
    counts: Sequence[int],
    sums: Sequence[Sums],
    s: FrameShape,
    add: bool = False,
) -> None:
    """T of consecutive atoms.

    Args:
        x: what goes into the last layer.
        counts: edges of each atom.
        sums: of these atoms alone; written, or added to.
    """
    for left, right, target in _by_order(x, weighted, sums, s):
        lefts, rights = left.split_with_sizes(counts), right.split_with_sizes(counts)
        for a, b, to in zip(lefts, rights, target.unbind(1), strict=True):
            to.addmm_(a.T, b, beta=int(add))


def sum_centers_backward(
    x: Float[Tensor, "edge row_channel"],
    weighted: Float[Tensor, "edge order_head_lm"],
    counts: Sequence[int],
    d_sums: Sequence[Sums],
    s: FrameShape,
) -> tuple[Float[Tensor, "edge row_channel"], Float[Tensor, "edge order_head_lm"]]:
    """Cotangents of x and of the weighted rows."""
    dx, d_weighted = torch.empty_like(x), torch.empty_like(weighted)
    primal, dual = _by_order(x, weighted, d_sums, s), _by_order(dx, d_weighted, d_sums, s)
    for (left, right, of_atoms), (d_left, d_right, _) in zip(primal, dual, strict=True):
        parts = (t.split_with_sizes(counts) for t in (left, right, d_left, d_right))
        for a, b, da, db, of_atom in zip(*parts, of_atoms.unbind(1), strict=True):
            torch.mm(a, of_atom, out=db)
            torch.mm(b, of_atom.T, out=da)
    return dx, d_weighted


def last_layer(
    sums: Sequence[Sums], matrices: Sequence[Tensor], s: FrameShape
) -> Float[Tensor, "atom lm channel"]:
    """Messages, before the rescale of the degrees l > M.

    Args:
        matrices: of the last layer: m = 0, then [[U, V], [-V, U]] of each pair.
    """
    n_atoms = sums[0].shape[3]
    out = sums[0].new_empty(s.n_lm * n_atoms, s.width)
    for order, (of_order, matrix) in enumerate(zip(sums, matrices, strict=True)):
        pairs = list(zip(_sources(order, of_order), _halves(order, matrix), strict=True))
        for head, rows, columns, of_matrix in _blocks(order, of_order.shape[1], n_atoms, s):
            target = out[rows, columns]
            for index, (part, block) in enumerate(pairs):  # m = 0 comes first and writes
                beta = 1 if order + index else 0
                target.addmm_(part[head, rows], block[:, of_matrix], beta=beta)
    return out.view(s.n_lm, n_atoms, s.width).transpose(0, 1)


def last_layer_backward(
    gradient: Float[Tensor, "atom lm channel"],
    matrices: Sequence[Tensor],
    heads: int,
    s: FrameShape,
) -> list[Sums]:
    """Cotangents of the sums."""
    n_atoms, d_sums = len(gradient), empty_sums(len(gradient), heads, s, gradient)
    gradient = gradient.transpose(0, 1).flatten(0, 1)
    for order, (of_order, matrix) in enumerate(zip(d_sums, matrices, strict=True)):
        halves = _halves(order, matrix)
        n = len(halves[0])
        of_order[:, :, : order**2] = 0  # the rotation has no rows there
        pairs = list(zip(of_order[..., :n].flatten(2, 3), halves, strict=True))
        for head, rows, columns, of_matrix in _blocks(order, heads, n_atoms, s):
            source = gradient[rows, columns]
            for part, block in pairs:
                torch.mm(source, block[:, of_matrix].T, out=part[head, rows])
        if order:
            of_order[1, ..., n:] = of_order[0, ..., :n]
            torch.neg(of_order[1, ..., :n], out=of_order[0, ..., n:])
    return d_sums


def last_layer_weights(
    sums: Sequence[Sums], gradient: Float[Tensor, "atom lm channel"], s: FrameShape
) -> list[Tensor]:
    """Cotangents of the matrices; all of U and V is in the rows of -m, those of +m are zero."""
    n_atoms, found = len(gradient), []
    gradient = gradient.transpose(0, 1).flatten(0, 1)
    for order, of_order in enumerate(sums):
        n = s.sizes[order] * s.width
        d_matrix = gradient.new_zeros(2 * n, 2 * n) if order else gradient.new_empty(n, n)
        pairs = list(zip(_sources(order, of_order), _halves(order, d_matrix), strict=True))
        for head, rows, columns, of_matrix in _blocks(order, of_order.shape[1], n_atoms, s):
            arriving = gradient[rows, columns]
            for part, half in pairs:
                torch.mm(part[head, rows].T, arriving, out=half[:, of_matrix])
        found.append(d_matrix)
    return found


def _sources(order: int, of_order: Sums) -> list[Float[Tensor, "head lm_atom row_channel"]]:
    """What meets the matrix of m = 0, or U and V."""
    flat = of_order.flatten(2, 3)
    if not order:
        return [flat[0]]
    minus, plus = flat.chunk(2, -1)
    return [minus[0] + plus[1], minus[1] - plus[0]]


def _halves(order: int, matrix: Tensor) -> list[Tensor]:
    """The matrix of m = 0, or U and V, as views."""
    n = len(matrix) // 2
    return [matrix[:n, :n], matrix[:n, n:]] if order else [matrix]


def _order_columns(s: FrameShape) -> list[slice]:
    """Columns of an edge's features that belong to each order; those of -m lie before +m."""
    found, start = [], 0
    for order, size in enumerate(s.sizes):
        stop = start + size * s.width * (2 if order else 1)
        found.append(slice(start, stop))
        start = stop
    return found


def _by_order(
    x: Tensor, weighted: Tensor, sums: Sequence[Sums], s: FrameShape
) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """Of each order: columns of the weighted rows, of x, and the sums with their rows as one."""
    start = 0
    for columns, of_order in zip(_order_columns(s), sums, strict=True):
        flat = of_order.flatten(0, 2)
        yield weighted[:, start : start + len(flat)], x[:, columns], flat
        start += len(flat)


def _blocks(
    order: int, heads: int, n_atoms: int, s: FrameShape
) -> Iterator[tuple[int, slice, slice, slice]]:
    """(head, rows [lm, atom], columns of the head, columns of W) of each degree."""
    per_head = s.width // heads
    for head in range(heads):
        first = head * per_head
        for degree in range(order, s.max_degree + 1):
            start = (degree - order) * s.width + first
            yield (
                head,
                slice(degree**2 * n_atoms, (degree + 1) ** 2 * n_atoms),
                slice(first, first + per_head),
                slice(start, start + per_head),
            )
