"""From a neighbour's features to the edge frame, for training: x_e = A_e h_j, A = fold(kernel, D).

Two ways to the same numbers, each passed four times (edge_training.py):

| where | edges | one product for each |
|---|---|---|
| `AtNeighbors` | grouped by neighbour (edge_groups.py), last in kernel and rotation | atom |
| `InOrder` | as listed | edge |

With edges last, `fold` and its cotangents are long loops over contiguous numbers.  Pass 3 wants the
cotangents through those of pass 2,

    dh = A^T dx,   dA = dx h^T,   dk = dA D,   dD = dA k

where h', k' and D' are those of dh, dk and dD and A' = k' D + k D':

    cotangents: A' h + A h' of dx,  A'^T dx of h,  those of k and D as above, dx h^T and dx h'^T
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple, Self

import torch
from jaxtyping import Float
from torch import Tensor

from dpa4sim.kernels.frame_products import (
    Folded,
    FrameShape,
    fold,
    fold_to_kernel,
    fold_to_rows,
)

Features = Float[Tensor, "edge row_channel"]
Lanes = Float[Tensor, "_ edge"]


class ToFrame(NamedTuple):
    """Cotangents of `Beginning`.

    Args:
        near: of h_j, for each atom or each edge.
        kernel: of k.
        rows: of D.
    """

    near: Tensor
    kernel: Tensor
    rows: Tensor


@dataclass(frozen=True)
class Beginning:
    """What comes before the stack; `AtNeighbors` and `InOrder` say how its tensors lie.

    Args:
        near: h_j, for each atom or each edge.
        kernel: k.
        rows: D of the orders and degrees in use.
    """

    s: FrameShape
    near: Tensor
    kernel: Tensor
    rows: Tensor

    @cached_property
    def folded(self) -> Folded:
        """A."""
        return self._fold(self.kernel, self.rows)

    def features(self) -> Features:
        """X."""
        return self._multiply(self.folded, self.near)

    def backward(self, d_x: Features) -> ToFrame:
        """Pass 2 and 4."""
        outer = self._outer(d_x, self.near)
        return ToFrame(
            self._transposed(self.folded, d_x),
            self._to_kernel(outer, self.rows),
            self._to_rows(outer, self.kernel),
        )

    def second(self, d_x: Features, dots: Self) -> tuple[Features, ToFrame]:
        """Pass 3: the cotangent of d_x, and those of h, k and D.

        Args:
            dots: h', k' and D'.
        """
        moved = self._fold(dots.kernel, self.rows) + self._fold(self.kernel, dots.rows)
        still, turned = self._outer(d_x, dots.near), self._outer(d_x, self.near)
        tangent = self._multiply(self.folded, dots.near) + self._multiply(moved, self.near)
        return tangent, ToFrame(
            self._transposed(moved, d_x),
            self._to_kernel(still, self.rows).add_(self._to_kernel(turned, dots.rows)),
            self._to_rows(still, self.kernel).add_(self._to_rows(turned, dots.kernel)),
        )

    def _fold(self, kernel: Tensor, rows: Tensor) -> Folded:
        return fold(kernel, rows, self.s)

    def _multiply(self, folded: Folded, near: Tensor) -> Features:
        raise NotImplementedError

    def _transposed(self, folded: Folded, d_x: Features) -> Tensor:
        raise NotImplementedError

    def _outer(self, d_x: Features, near: Tensor) -> Tensor:
        raise NotImplementedError

    def _to_kernel(self, d_folded: Tensor, rows: Tensor) -> Tensor:
        return fold_to_kernel(d_folded, rows, self.s)

    def _to_rows(self, d_folded: Tensor, kernel: Tensor) -> Tensor:
        return fold_to_rows(d_folded, kernel, self.s)


class InOrder(Beginning):
    """Edges as listed; h_j is gathered for each."""

    def _multiply(self, folded: Folded, near: Tensor) -> Features:
        return torch.bmm(folded, near).flatten(1)

    def _transposed(self, folded: Folded, d_x: Features) -> Tensor:
        return torch.bmm(folded.transpose(1, 2), self._apart(d_x))

    def _outer(self, d_x: Features, near: Tensor) -> Folded:
        return torch.bmm(self._apart(d_x), near.transpose(1, 2))

    def _apart(self, x: Features) -> Float[Tensor, "edge row channel"]:
        return x.unflatten(1, (-1, self.s.width))


class AtNeighbors(Beginning):
    """Edges of a group of neighbours, last in kernel (column, edge) and rows (order, lm, edge)."""

    def _fold(self, kernel: Lanes, rows: Tensor) -> Folded:
        return fold_lanes(kernel, rows, self.s).flatten(0, 2).T.contiguous()

    def _multiply(self, folded: Folded, near: Tensor) -> Features:
        return torch.bmm(self._of_atoms(folded), near).view(len(folded), -1)

    def _transposed(self, folded: Folded, d_x: Features) -> Tensor:
        return torch.bmm(self._of_atoms(folded).transpose(1, 2), self._apart(d_x))

    def _outer(self, d_x: Features, near: Tensor) -> Tensor:
        s, edges = self.s, len(d_x)
        outer = torch.bmm(near, self._apart(d_x).transpose(1, 2))
        by_edge = outer.view(len(near), s.terms, s.n_lm, edges // len(near), s.n_rows)
        return by_edge.permute(4, 1, 2, 0, 3).reshape(s.n_rows, s.terms, s.n_lm, edges)

    def _to_kernel(self, d_folded: Tensor, rows: Tensor) -> Lanes:
        return fold_lanes_to_kernel(d_folded, rows, self.s)

    def _to_rows(self, d_folded: Tensor, kernel: Lanes) -> Tensor:
        return fold_lanes_to_rows(d_folded, kernel, self.s)

    def _apart(self, x: Features) -> Float[Tensor, "atom edge_row channel"]:
        return x.view(len(self.near), -1, self.s.width)

    def _of_atoms(self, folded: Folded) -> Float[Tensor, "atom edge_row term_lm"]:
        return folded.view(len(self.near), -1, self.s.terms * self.s.n_lm)


def fold_lanes(
    kernel: Lanes, rows: Float[Tensor, "order lm edge"], s: FrameShape
) -> Float[Tensor, "row term lm edge"]:
    """`fold` with the edges last."""
    folded = kernel.new_empty(s.n_rows, s.terms, s.n_lm, kernel.shape[1])
    for order, of_kernel, of_rows, of_folded in _orders(kernel, rows, folded, s):
        of_folded[:, :, :, : order**2] = 0  # there are no such degrees
        for degree in range(order, s.max_degree + 1):
            here = slice(degree**2, (degree + 1) ** 2)
            factor = of_kernel[None, :, :, degree - order, None]
            torch.mul(factor, of_rows[:, None, None, here], out=of_folded[:, :, :, here])
    return folded


def fold_lanes_to_kernel(
    d_folded: Float[Tensor, "row term lm edge"],
    rows: Float[Tensor, "order lm edge"],
    s: FrameShape,
) -> Lanes:
    """`fold_to_kernel` with the edges last."""
    d_kernel = rows.new_empty(s.spans[-1][1], rows.shape[2])
    for order, of_kernel, of_rows, of_folded in _orders(d_kernel, rows, d_folded, s):
        for degree in range(order, s.max_degree + 1):
            target, first = of_kernel[:, :, degree - order], True
            for copy in range(len(of_rows)):
                for lm in range(degree**2, (degree + 1) ** 2):
                    _add(target, of_folded[copy, :, :, lm], of_rows[copy, lm], first)
                    first = False
    return d_kernel


def fold_lanes_to_rows(
    d_folded: Float[Tensor, "row term lm edge"], kernel: Lanes, s: FrameShape
) -> Float[Tensor, "order lm edge"]:
    """`fold_to_rows` with the edges last."""
    d_rows = kernel.new_empty(2 * s.max_order + 1, s.n_lm, kernel.shape[1])
    for order, of_kernel, of_rows, of_folded in _orders(kernel, d_rows, d_folded, s):
        of_rows[:, : order**2] = 0
        for degree in range(order, s.max_degree + 1):
            here = slice(degree**2, (degree + 1) ** 2)
            for row in range(s.sizes[order]):
                for term in range(s.terms):
                    part = of_folded[:, row, term, here]
                    factor = of_kernel[row, term, degree - order]
                    _add(of_rows[:, here], part, factor, row + term == 0)
    return d_rows


def _orders(
    kernel: Lanes, rows: Tensor, folded: Tensor, s: FrameShape
) -> Iterator[tuple[int, Tensor, Tensor, Tensor]]:
    """Of each order m: kernel [l', r, l], rows [copy, lm], folded [copy, l', r, lm]."""
    start = 0
    for order, ((first, last), size) in enumerate(zip(s.spans, s.sizes, strict=True)):
        copies = 2 if order else 1
        of_kernel = kernel[first:last].unflatten(0, (size, s.terms, size))
        of_rows = rows[2 * order - 1 : 2 * order + 1] if order else rows[:1]
        of_folded = folded[start : start + copies * size].unflatten(0, (copies, size))
        yield order, of_kernel, of_rows, of_folded
        start += copies * size


def _add(target: Tensor, a: Tensor, b: Tensor, first: bool) -> None:
    """Target + a b, or a b alone, in place."""
    if first:
        torch.mul(a, b, out=target)
    else:
        target.addcmul_(a, b)
