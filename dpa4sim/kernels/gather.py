"""Features of the neighbours in the edge frame, as PyTorch or as compiled loops.

    x_e[row] = sum_r sum_l k_e[row, r, l]  sum_m' D_e^l[m, m'] h_j[r, l m']

PyTorch makes the matrix of each edge, copies the features of its neighbour beside it, and
multiplies; a compiled loop reads them where they are, and keeps what is between in registers.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import reduce
from operator import add

import torch
from jaxtyping import Float, Int
from torch import Tensor

from dpa4sim.kernels.frame_products import FrameShape, fold, fold_to_kernel, fold_to_rows
from dpa4sim.kernels.loops import EXAMPLE_ATOMS, EXAMPLE_EDGES, Loop, Run, open_loops, per_edge

LARGEST_DEGREE = 4
"""A loop is a program as long as an edge has products: beyond, compiling takes too long."""


@dataclass(frozen=True)
class GatherShape:
    """What the compiled loops depend on.

    Args:
        columns: of the kernel.
        row_shape: orders and lm of the rotation rows, used or not.
    """

    width: int
    terms: int
    max_degree: int
    max_order: int
    columns: int
    row_shape: tuple[int, int]
    dtype: torch.dtype

    @staticmethod
    def open(kernel: Tensor, rows: Tensor, s: FrameShape) -> tuple[Run, ...] | None:
        """The loops from neighbours to edges, and back; None where there are none."""
        if s.terms > 1 or s.max_degree > LARGEST_DEGREE or s.max_order > 1:
            return None
        return open_loops(
            GatherShape(
                s.width, s.terms, s.max_degree, s.max_order, kernel.shape[1],
                (rows.shape[1], rows.shape[2]), kernel.dtype,
            )
        )  # fmt: skip

    @property
    def n_lm(self) -> int:
        """(L + 1)^2."""
        return (self.max_degree + 1) ** 2

    def frames(self) -> Iterator[tuple[int, int, int, int]]:
        """(order, rotation row, first frame row, first kernel column) of m = 0, -1, +1, ..."""
        first = column = 0
        for order in range(self.max_order + 1):
            size = self.max_degree + 1 - order
            for row in (0,) if order == 0 else (2 * order - 1, 2 * order):
                yield order, row, first, column
                first += size
            column += size * size

    def gather(
        self, node: Tensor, kernel: Tensor, rows: Tensor, neighbor: Tensor, x: list[Tensor]
    ) -> list[Tensor]:
        """Into each row of x; nothing is new."""
        near = node[neighbor]
        for order, row, first, column in self.frames():
            size = self.max_degree + 1 - order
            turned = self._turned(near, rows, order, row)
            for a in range(size):
                parts = [kernel[:, column + a * size + b, None] * turned[b] for b in range(size)]
                x[first + a].copy_(reduce(add, parts))
        return []

    def gather_backward(
        self,
        dx: list[Tensor],
        node: Tensor,
        kernel: Tensor,
        rows: Tensor,
        neighbor: Tensor,
        d_near: list[Tensor],
    ) -> list[Tensor]:
        """Cotangents of the kernel and of the rotation rows; of the neighbours into d_near."""
        near = node[neighbor]
        to_near: list[list[Tensor]] = [[] for _ in range(self.n_lm)]
        to_kernel: dict[int, list[Tensor]] = {}
        nothing = torch.zeros_like(kernel[:, 0])
        d_rows = []
        for order, row, first, column in self.frames():
            size = self.max_degree + 1 - order
            turned = self._turned(near, rows, order, row)
            d_rows += [nothing] * order**2
            for b in range(size):
                parts = [
                    kernel[:, column + a * size + b, None] * dx[first + a] for a in range(size)
                ]
                d_turned, degree = reduce(add, parts), order + b
                for lm in range(degree**2, (degree + 1) ** 2):
                    to_near[lm].append(rows[:, row, lm, None] * d_turned)
                    d_rows.append((d_turned * near[:, lm]).sum(1))
                for a in range(size):
                    product = dx[first + a] * turned[b]
                    to_kernel.setdefault(column + a * size + b, []).append(product)
        for to, parts in zip(d_near, to_near, strict=True):
            to.copy_(reduce(add, parts))
        d_kernel = [reduce(add, to_kernel[c]).sum(1) for c in sorted(to_kernel)]
        return [torch.stack(d_kernel, 1), torch.stack(d_rows, 1)]

    def loops(self) -> list[Loop]:
        """Both directions."""
        atoms = {0: torch.export.Dim("n_atoms", min=1)}
        edges = {0: torch.export.Dim("n_edges", min=0)}
        n_rows = sum(self.max_degree + 1 - order for order, *_ in self.frames())
        orders, lms = self.row_shape

        def rest() -> tuple[Tensor, ...]:
            rows = torch.zeros(EXAMPLE_EDGES, orders, lms, dtype=self.dtype)
            node = torch.zeros(EXAMPLE_ATOMS, self.n_lm, self.width, dtype=self.dtype)
            neighbor = torch.zeros(EXAMPLE_EDGES, dtype=torch.long)
            return node, per_edge(self.columns, self.columns, self.dtype), rows, neighbor

        def parts(n: int) -> list[Tensor]:
            return [per_edge(self.width, n * self.width, self.dtype) for _ in range(n)]

        sizes = atoms, edges, edges, edges
        forth = Loop("gather", self.gather, (*rest(), parts(n_rows)), (*sizes, [edges] * n_rows))
        back = Loop(
            "gather_backward",
            self.gather_backward,
            (parts(n_rows), *rest(), parts(self.n_lm)),
            ([edges] * n_rows, *sizes, [edges] * self.n_lm),
        )
        return [forth, back]

    def _turned(self, near: Tensor, rows: Tensor, order: int, row: int) -> list[Tensor]:
        """The row of each degree in the edge frame."""
        return [
            reduce(add, [rows[:, row, lm, None] * near[:, lm] for lm in range(l * l, (l + 1) ** 2)])
            for l in range(order, self.max_degree + 1)
        ]


def gather(
    node: Float[Tensor, "atom term_lm channel"],
    kernel: Float[Tensor, "edge column"],
    rows: Float[Tensor, "edge order lm_top"],
    neighbor: Int[Tensor, " edge"],
    x: Float[Tensor, "edge row_channel"],
    s: FrameShape,
    loops: tuple[Run, ...] | None,
) -> None:
    """Features of the neighbours in the frames of their edges, into x."""
    if loops is not None:
        loops[0]([node, kernel, rows, neighbor, *x.split(s.width, 1)])
        return
    near = node.index_select(0, neighbor)
    torch.bmm(fold(kernel, rows, s), near, out=x.view(len(x), s.n_rows, s.width))


def gather_backward(
    dx: Float[Tensor, "edge row_channel"],
    node: Float[Tensor, "atom term_lm channel"],
    kernel: Float[Tensor, "edge column"],
    rows: Float[Tensor, "edge order lm_top"],
    neighbor: Int[Tensor, " edge"],
    d_node: Float[Tensor, "atom term_lm channel"],
    s: FrameShape,
    loops: tuple[Run, ...] | None,
) -> tuple[Float[Tensor, "edge column"], Float[Tensor, "edge order lm"]]:
    """Cotangents of the kernel and of the rotation rows; that of the features is added."""
    if loops is not None:
        d_near = dx.new_empty(len(dx), node.shape[1], s.width)
        parts = dx.split(s.width, 1), d_near.unbind(1)
        d_kernel, d_rows = loops[1]([*parts[0], node, kernel, rows, neighbor, *parts[1]])
        d_node.index_add_(0, neighbor, d_near)
        return d_kernel, d_rows.unflatten(1, (-1, s.n_lm))
    rowed = dx.unflatten(1, (s.n_rows, s.width))
    folded = fold(kernel, rows, s)
    d_node.index_add_(0, neighbor, torch.bmm(folded.transpose(1, 2), rowed))
    d_folded = torch.bmm(rowed, node.index_select(0, neighbor).transpose(1, 2))
    return fold_to_kernel(d_folded, rows, s), fold_to_rows(d_folded, kernel, s)
