"""The memory of L-BFGS: past steps and what they changed, and what follows from them.

With s_i, y_i the step and the change of the gradient i steps ago (0 is the newest), the two loops
of Nocedal (Math. Comp. 35, 773) are two triangular solutions: with R_ij = s_i . y_j for i >= j,

    R a = S^T g        r = g - Y a        z0 = H0 r        R^T c = D a - Y^T z0        z = z0 + S c

where D is the diagonal of R.  Nothing is as long as the history but four sums over the rows.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from dpa4sim.relax.layout import Layout

MIN_CURVATURE = 1e-6
"""Smallest s . y / (|s| |y|) of a step that is remembered."""


@dataclass(frozen=True)
class History:
    """What each system remembers; entries beyond `length` are of no meaning.

    Args:
        step: s_i along the last axis, the newest first.
        change: y_i.
        product: R, zero above the diagonal.
        length: how many steps are remembered.
    """

    step: Float[Tensor, "row 3 memory"]
    change: Float[Tensor, "row 3 memory"]
    product: Float[Tensor, "system memory memory"]
    length: Int[Tensor, " system"]

    @property
    def memory(self) -> int:
        """How many steps can be remembered."""
        return self.product.shape[2]


def forgotten(rows: Float[Tensor, "row 3"], length: Int[Tensor, " system"], memory: int) -> History:
    """An empty history of the shape that these rows need."""
    return History(
        step=rows.new_zeros(len(rows), 3, memory),
        change=rows.new_zeros(len(rows), 3, memory),
        product=rows.new_zeros(len(length), memory, memory),
        length=torch.zeros_like(length),
    )


def remember(
    history: History,
    step: Float[Tensor, "row 3"],
    change: Float[Tensor, "row 3"],
    usable: Bool[Tensor, " system"],
    layout: Layout,
) -> History:
    """With a step more; empty where it is not usable or met no positive curvature."""
    steps = torch.cat([step[:, :, None], history.step[:, :, :-1]], 2)
    changes = torch.cat([change[:, :, None], history.change[:, :, :-1]], 2)
    newest = inner(steps, change, layout)
    older = torch.nn.functional.pad(history.product[:, :-1, :-1], (0, 0, 1, 0))
    squares = layout.sum(torch.stack([across(step, step), across(change, change)], 1))
    lengths = (squares[:, 0] * squares[:, 1]).sqrt()
    usable = usable & (newest[:, 0] > MIN_CURVATURE * lengths)
    length = (history.length + 1).clamp(max=history.memory)
    return History(
        step=steps,
        change=changes,
        product=torch.cat([newest[:, :, None], older], 2),
        length=torch.where(usable, length, 0),
    )


def first_loop(
    history: History, gradient: Float[Tensor, "row 3"], layout: Layout
) -> tuple[Float[Tensor, "row 3"], Float[Tensor, "system memory"]]:
    """What is left of the gradient, r = g - Y a, and a."""
    projections = inner(history.step, gradient, layout)
    weights = _solve(history, projections, transposed=False)
    return gradient - combined(history.change, weights, layout), weights


def second_loop(
    history: History,
    start: Float[Tensor, "row 3"],
    weights: Float[Tensor, "system memory"],
    layout: Layout,
) -> Float[Tensor, "row 3"]:
    """The minus direction z = z0 + S c.

    Args:
        start: z0.
        weights: a.
    """
    diagonal = torch.diagonal(history.product, dim1=1, dim2=2)
    projections = diagonal * weights - inner(history.change, start, layout)
    return start + combined(history.step, _solve(history, projections, transposed=True), layout)


def across(left: Float[Tensor, "row 3"], right: Float[Tensor, "row 3"]) -> Float[Tensor, " row"]:
    """Scalar product of each row, its additions in one order."""
    product = left * right
    return product[:, 0] + product[:, 1] + product[:, 2]


def inner(
    vectors: Float[Tensor, "row 3 memory"], rows: Float[Tensor, "row 3"], layout: Layout
) -> Float[Tensor, "system memory"]:
    """Scalar products of all remembered vectors with one more, system by system."""
    product = vectors * rows[:, :, None]
    return layout.sum(product[:, 0] + product[:, 1] + product[:, 2])


def combined(
    vectors: Float[Tensor, "row 3 memory"], weights: Float[Tensor, "system memory"], layout: Layout
) -> Float[Tensor, "row 3"]:
    """Sum of the remembered vectors with a system's weights, halves added to halves."""
    total = vectors * layout.spread(weights)[:, None]
    while total.shape[2] > 1:
        half = total.shape[2] // 2
        odd = total[:, :, 2 * half :]
        total = total[:, :, :half] + total[:, :, half : 2 * half]
        total = torch.cat([total, odd], 2) if odd.shape[2] else total
    return total[:, :, 0]


def _solve(
    history: History, right: Float[Tensor, "system memory"], *, transposed: bool
) -> Float[Tensor, "system memory"]:
    """R^-1 or R^-T times a vector per system; zero beyond the length of the history.

    A second right-hand side of zeros keeps every vector on a cache line.
    """
    there = torch.arange(history.memory, device=right.device) < history.length[:, None]
    identity = torch.eye(history.memory, dtype=right.dtype, device=right.device)
    product = torch.where(there[:, :, None] & there[:, None], history.product, identity)
    vectors = torch.nn.functional.pad(torch.where(there, right, 0.0)[:, :, None], (0, 1))
    product = product.transpose(1, 2) if transposed else product
    return torch.linalg.solve_triangular(product, vectors, upper=transposed)[:, :, 0]
