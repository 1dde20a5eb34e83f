"""Matrices of an edge: kernel times rotation (to the edge frame), and the rotation back.

Both are products of two small tensors, so their derivatives are products of the same kind:
`fold` with `fold_to_kernel` and `fold_to_rows`, `lift` with `lift_to_rows`.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from math import prod

import torch
from jaxtyping import Float, Int
from torch import Tensor

Folded = Float[Tensor, "edge row term_lm"]


@dataclass(frozen=True)
class FrameShape:
    """Index tables of the edge frame.

    Args:
        width: channels of the focus.
        terms: rank of the edge-node product.
        max_degree: L.
        max_order: M.
        lift: rescale of the degrees l > M on the way back.
    """

    width: int
    terms: int
    max_degree: int
    max_order: int
    lift: Float[Tensor, " lm"]
    degree_of_lm: Int[Tensor, " lm"]

    @cached_property
    def sizes(self) -> list[int]:
        """Degrees l = m..L of each order m."""
        return [self.max_degree - order + 1 for order in range(self.max_order + 1)]

    @cached_property
    def n_rows(self) -> int:
        """Rows of the edge frame."""
        return self.sizes[0] + 2 * sum(self.sizes[1:])

    @cached_property
    def n_lm(self) -> int:
        """(L + 1)^2."""
        return (self.max_degree + 1) ** 2

    @cached_property
    def frames(self) -> list[tuple[int, int, int, int]]:
        """(order, rotation row, first frame row, last frame row) of m = 0, -1, +1, -2, ..."""
        result, start = [], 0
        for order, size in enumerate(self.sizes):
            for row in (0,) if order == 0 else (2 * order - 1, 2 * order):
                result.append((order, row, start, start + size))
                start += size
        return result

    @cached_property
    def gated(self) -> list[tuple[int, int, int]]:
        """What `gated_groups` gives for this frame."""
        return gated_groups(self.max_degree, self.max_order, self.width)

    @cached_property
    def spans(self) -> list[tuple[int, int]]:
        """Columns of the kernel that belong to each order."""
        spans, start = [], 0
        for size in self.sizes:
            spans.append((start, start + size * size * self.terms))
            start += size * size * self.terms
        return spans

    @cached_property
    def sources(self) -> list[Int[Tensor, " lm"]]:
        """Which kernel column each lm reads: l - m (0 where l < m, the rotation is zero there)."""
        return [(self.degree_of_lm - order).clamp(min=0) for order in range(self.max_order + 1)]

    @cached_property
    def expansion(self) -> Int[Tensor, " order_row_term_lm"]:
        """The kernel column that each entry of `fold` reads, by order."""
        found = []
        for (start, _), size, source in zip(self.spans, self.sizes, self.sources, strict=True):
            rows = torch.arange(size * self.terms, device=source.device)
            found.append((start + rows[:, None] * size + source).flatten())
        return torch.cat(found)

    @cached_property
    def selection(self) -> Float[Tensor, "order_row_term_lm column"]:
        """The same as a matrix of zeros and ones."""
        columns = torch.arange(self.spans[-1][1], device=self.expansion.device)
        return (self.expansion[:, None] == columns).to(self.lift.dtype)

    @cached_property
    def mask(self) -> Float[Tensor, "row lm"]:
        """sqrt((2l + 1) / (2M + 1)) where the frame row and lm share their degree, else 0."""
        top = self.max_degree + 1
        rows = [torch.arange(top - (last - first), top) for _, _, first, last in self.frames]
        degree = torch.cat(rows).to(self.degree_of_lm)
        return (degree[:, None] == self.degree_of_lm).to(self.lift) * self.lift


def gated_groups(max_degree: int, max_order: int, width: int) -> list[tuple[int, int, int]]:
    """(first column, copies, first gate column) of the rows of degree l >= 1, by order.

    m = 0 and m = +-1 have the same degrees and lie side by side: three copies of one gate.
    """
    if max_degree == 0:
        return []
    groups = [(width, 3 if max_order else 1, 0)]
    start = width + groups[0][1] * max_degree * width
    for order in range(2, max_order + 1):
        groups.append((start, 2, (order - 1) * width))
        start += 2 * (max_degree - order + 1) * width
    return groups


def gated_rows(
    x: Float[Tensor, "edge row_channel"], group: tuple[int, int, int], max_degree: int, width: int
) -> Float[Tensor, "edge copy column"]:
    """The columns of one group, its copies apart."""
    start, copies, column = group
    size = max_degree * width - column
    return x[:, start : start + copies * size].unflatten(1, (copies, size))


def fold(
    kernel: Float[Tensor, "edge column"], rows: Float[Tensor, "edge order lm_top"], s: FrameShape
) -> Folded:
    """Kernel times rotation: entry [l', (r, l m')] = k[l', r, l] D^l_{m m'}."""
    folded = kernel.new_empty(len(kernel), s.n_rows, s.terms * s.n_lm)
    parts = zip(_expanded(kernel, s), _by_order(folded, s), _rows_by_order(rows, s), strict=True)
    for block, target, of_order in parts:
        torch.mul(block, of_order, out=target)
    return folded


def fold_to_kernel(
    d_folded: Folded, rows: Float[Tensor, "edge order lm_top"], s: FrameShape
) -> Float[Tensor, "edge column"]:
    """Cotangent of the kernel through `fold`."""
    products = rows.new_empty(len(rows), len(s.expansion))
    blocks = _split_expanded(products, s)
    parts = zip(_by_order(d_folded, s), _rows_by_order(rows, s), blocks, strict=True)
    for part, of_order, block in parts:
        torch.mul(part[:, 0], of_order[:, 0], out=block[:, 0])
        for copy in range(1, part.shape[1]):
            block[:, 0].addcmul_(part[:, copy], of_order[:, copy])
    return products @ s.selection


def fold_to_rows(
    d_folded: Folded, kernel: Float[Tensor, "edge column"], s: FrameShape
) -> Float[Tensor, "edge order lm"]:
    """Cotangent of the rotation rows through `fold`, for l <= L."""
    found = kernel.new_empty(len(kernel), 2 * s.max_order + 1, s.n_lm)
    for order, (block, part) in enumerate(
        zip(_expanded(kernel, s), _by_order(d_folded, s), strict=True)
    ):
        first = 2 * order - 1 if order else 0
        torch.sum(part * block, (2, 3), out=found[:, first : 2 * order + 1])
    return found


def _expanded(
    kernel: Float[Tensor, "edge column"], s: FrameShape
) -> list[Float[Tensor, "edge _ _ term lm"]]:
    """k[l', r, l] of each order, repeated over the m' of each l."""
    return _split_expanded(kernel.index_select(1, s.expansion), s)


def _split_expanded(
    x: Float[Tensor, "edge order_row_term_lm"], s: FrameShape
) -> list[Float[Tensor, "edge _ _ term lm"]]:
    shapes = [(1, size, s.terms, s.n_lm) for size in s.sizes]
    blocks = x.split_with_sizes([prod(shape) for shape in shapes], 1)
    return [block.unflatten(1, shape) for block, shape in zip(blocks, shapes, strict=True)]


def _by_order(folded: Folded, s: FrameShape) -> list[Float[Tensor, "edge _ _ term lm"]]:
    """The rows of each order; one copy for m = 0, -m and +m for others."""
    copies = [2 if order else 1 for order in range(s.max_order + 1)]
    blocks = folded.split_with_sizes([n * size for n, size in zip(copies, s.sizes, strict=True)], 1)
    return [
        block.unflatten(2, (s.terms, s.n_lm)).unflatten(1, (n, size))
        for block, n, size in zip(blocks, copies, s.sizes, strict=True)
    ]


def _rows_by_order(
    rows: Float[Tensor, "edge order lm_top"], s: FrameShape
) -> list[Float[Tensor, "edge _ _ _ lm"]]:
    """The rotation rows as they meet `_by_order`."""
    used = rows[:, : 2 * s.max_order + 1, None, None, : s.n_lm]
    return list(used.split_with_sizes([1] + [2] * s.max_order, 1))


def lift(rows: Float[Tensor, "edge order lm_top"], s: FrameShape) -> Float[Tensor, "edge row lm"]:
    """Rotation rows spread over the frame rows, rescaled."""
    lifted = rows.new_empty(len(rows), s.n_rows, s.n_lm)
    for _, row, first, last in s.frames:
        torch.mul(rows[:, None, row, : s.n_lm], s.mask[first:last], out=lifted[:, first:last])
    return lifted


def lift_to_rows(
    d_lift: Float[Tensor, "edge row lm"], s: FrameShape
) -> Float[Tensor, "edge order lm"]:
    """Cotangent of the rotation rows through `lift`, for l <= L."""
    masked = d_lift * s.mask
    return torch.stack([masked[:, first:last].sum(1) for _, _, first, last in s.frames], 1)


def weigh(
    x: Float[Tensor, "edge row_channel"], alpha: Float[Tensor, "edge head"], n_rows: int
) -> Float[Tensor, "edge row_channel"]:
    """Edge rows times the weight of their head."""
    if alpha.shape[1] == 1:
        return x * alpha
    return (x.unflatten(1, (n_rows, alpha.shape[1], -1)) * alpha[:, None, :, None]).flatten(1)


def contract_heads(
    a: Float[Tensor, "edge row_channel"], b: Float[Tensor, "edge row_channel"], heads: int, n: int
) -> Float[Tensor, "edge head"]:
    """Sum of a b over rows and the channels of each head; cotangent of alpha through `weigh`."""
    if heads == 1:
        return torch.linalg.vecdot(a, b)[:, None]
    return (a * b).unflatten(1, (n, heads, -1)).sum((1, 3))
