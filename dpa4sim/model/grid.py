"""Pointwise products on quadrature grids of the sphere and of the rotation group.  Paper Eq. 32-37.

| paper | here |
|---|---|
| grid points q_a, weights w_a | `lebedev` |
| T (to grid), T^+ (from grid) | `GridTables.to_grid`, `.from_grid` |

A product of two degree-L fields, projected back to degree L, is a polynomial of degree 3L on the
sphere: a Lebedev rule of that order integrates it exactly, so the product is exactly equivariant.
The reference multiplies the two halves as they are; the paper puts a SiLU and two matrices there.
On the rotation group the features carry a frame index k = 0, -1, +1, ... beside (l, m).
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from math import pi, sqrt
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.functional import silu

from dpa4sim.kernels.triton_plan import Accuracy
from dpa4sim.model.frames import RotationRows, degree_of_lm
from dpa4sim.model.linear import DegreeLinear, truncated_normal

LEBEDEV_ORDERS = (3, 5, 7, 9, 11, 13, 15, 17, 19, 21, 23, 25, 27, 29, 31, 35, 41, 47, 53, 59, 65)
"""Algebraic orders for which a Lebedev rule exists, as far as they are needed."""


@dataclass(frozen=True)
class GridTables:
    """Constant matrices between coefficients (lm, frame) and grid values, float64."""

    to_grid: Float[Tensor, "grid lm_frame"]
    from_grid: Float[Tensor, "lm_frame grid"]


def lebedev(max_degree: int) -> tuple[Float[Tensor, "grid 3"], Float[Tensor, " grid"]]:
    """Points and weights (they sum to 1) of the smallest rule exact to order 3 L, at least 3."""
    from scipy.integrate import lebedev_rule

    order = next(order for order in LEBEDEV_ORDERS if order >= 3 * max_degree)
    points, weights = lebedev_rule(order)
    return torch.from_numpy(points.T.copy()), torch.from_numpy(weights / (4 * pi))


@lru_cache(maxsize=32)
def sphere_grid(max_degree: int) -> GridTables:
    """Sphere: values are Y(q) . x / sqrt(L + 1), so the product carries 1 / sqrt(L + 1).  Eq. 33"""
    points, weights = lebedev(max_degree)
    harmonics = RotationRows(max_degree, 0).harmonics(points)
    norm = sqrt(max_degree + 1)
    width = 2 * torch.tensor(degree_of_lm(max_degree)).double() + 1
    return GridTables(
        harmonics / norm, (harmonics * weights[:, None] * width * norm).T.contiguous()
    )


@lru_cache(maxsize=32)
def rotation_grid(max_degree: int, max_frame: int) -> GridTables:
    """Rotation group: Lebedev points times 3 k_max + 1 rolls; values are sum D^l_{k m} x_{lm,k}."""
    points, weights = lebedev(max_degree)
    n_rolls = 3 * max_frame + 1
    roll = torch.arange(n_rolls).double() * (2 * pi / n_rolls)
    rotation = RotationRows(max_degree, max_frame)
    rows = rotation(points.repeat_interleave(n_rolls, 0), roll.repeat(len(points)))
    to_grid = rows.transpose(1, 2)
    width = 2 * torch.tensor(degree_of_lm(max_degree)).double() + 1
    weight = weights.repeat_interleave(n_rolls) / n_rolls
    from_grid = to_grid * weight[:, None, None] * width[:, None]
    return GridTables(to_grid.flatten(1).contiguous(), from_grid.flatten(1).T.contiguous())


class GridProduct(nn.Module):
    """Product of two fields on a grid, gated by their scalars.  Eq. 34-38

        c    = T^+ ( (T a) (T b) )
        c   <- c sigmoid([a_0, b_0] W),     c_0 <- c_0 + silu(a_0) b_0

    "mlp" and "branch" put matrices around the product; they act on channels and commute with T.

    Args:
        channels: width of each field in one frame.
        n_frames: 1 on the sphere, 2 k_max + 1 on the rotation group.
        paired: "mlp" mixes both fields before the product (feed-forward) or each by itself.
        n_focus: independent scalar gates, one per focus.
    """

    to_grid: Tensor
    from_grid: Tensor

    def __init__(
        self,
        tables: GridTables,
        channels: int,
        operation: Literal["product", "mlp", "branch"],
        *,
        n_branches: int = 0,
        paired: bool = True,
        n_focus: int = 1,
        bias: bool = False,
    ) -> None:
        super().__init__()
        self.channels, self.operation, self.paired = channels, operation, paired
        self.n_branches, self.n_focus = n_branches, n_focus
        self.triton: Accuracy | None = None
        self.register_buffer("to_grid", tables.to_grid, persistent=False)
        self.register_buffer("from_grid", tables.from_grid, persistent=False)
        gate = torch.empty(2 * channels, n_focus * channels)
        self.gate = nn.Parameter(truncated_normal(gate))
        self.gate_bias = nn.Parameter(torch.zeros(n_focus * channels)) if bias else None
        if operation != "product":
            source, target = self._operator_widths()
            self.left = nn.Parameter(truncated_normal(torch.empty(source, target)))
            self.right = nn.Parameter(truncated_normal(torch.empty(source, target)))
            narrow = channels if operation == "branch" else target
            self.out = nn.Parameter(truncated_normal(torch.empty(narrow, channels)))
        if operation == "branch":
            self.router = nn.Parameter(truncated_normal(torch.empty(2 * channels, n_branches)))

    def forward(
        self,
        a: Float[Tensor, "atom lm frame_channel"],
        b: Float[Tensor, "atom lm frame_channel"],
        scalars: Float[Tensor, "atom two_channel"] | None = None,
        focus: int = 0,
    ) -> Float[Tensor, "atom lm frame_channel"]:
        """The gated product.

        Args:
            a: first field, frame-major within the channels.
            scalars: [a_0, b_0] where they are not the frame-0 scalars of a and b.
            focus: whose scalar gate to use.
        """
        atoms, rows, width = a.shape
        C = self.channels
        lm_frame = rows * width // C
        a, b = a.reshape(atoms, lm_frame, C), b.reshape(atoms, lm_frame, C)
        pair = torch.cat([a[:, 0], b[:, 0]], -1) if scalars is None else scalars
        columns = slice(focus * C, (focus + 1) * C)
        logit = pair @ self.gate[:, columns]
        if self.gate_bias is not None:
            logit = logit + self.gate_bias[columns]
        if self.triton is not None and self.operation == "product":
            from dpa4sim.kernels.triton_grid import grid_product

            grids = self.to_grid, self.from_grid
            return grid_product(a, b, pair, logit, *grids, self.triton).reshape(atoms, rows, width)
        c = self._product(a, b, pair).transpose(0, 1) * torch.sigmoid(logit)
        scalar = c[:1] + silu(pair[:, :C]) * pair[:, C:]
        c = torch.cat([scalar, c[1:]]).transpose(0, 1)
        return c.reshape(atoms, rows, width)

    def _product(
        self,
        a: Float[Tensor, "atom lm_frame channel"],
        b: Float[Tensor, "atom lm_frame channel"],
        pair: Float[Tensor, "atom two_channel"],
    ) -> Float[Tensor, "atom lm_frame channel"]:
        """Operation on the grid, back to coefficients."""
        if self.operation == "product":
            product = _by_table(self.to_grid, a) * _by_table(self.to_grid, b)
            return _by_table(self.from_grid, product)
        if self.operation == "mlp" and self.paired:
            a = b = torch.cat([a, b], -1)
        left = _by_table(self.to_grid, a @ self.left)
        product = left * _by_table(self.to_grid, b @ self.right)
        if self.operation == "branch":
            weight = torch.softmax(pair @ self.router, -1)  # (atom, branch)
            branches = product.unflatten(-1, (self.n_branches, self.channels))
            product = (branches * weight[:, None, :, None]).sum(2)
        return _by_table(self.from_grid, product) @ self.out

    def _operator_widths(self) -> tuple[int, int]:
        if self.operation == "branch":
            return self.channels, self.n_branches * self.channels
        return (2 if self.paired else 1) * self.channels, 2 * self.channels


def _by_table(
    table: Float[Tensor, "b a"], x: Float[Tensor, "atom a channel"]
) -> Float[Tensor, "atom b channel"]:
    """Table times each atom's rows, which lie before the atoms in memory: one product for all."""
    x = x.transpose(0, 1)
    return (table @ x.flatten(1)).unflatten(1, x.shape[1:]).transpose(0, 1)


class MessageGrid(nn.Module):
    """Product of the aggregated message with the atom's own features on the rotation group.

    message <- message + scale * contract( expand(message) x expand(atom) )

    Not in the paper; the reference's `message_node_so3`.
    """

    def __init__(
        self,
        max_degree: int,
        max_frame: int,
        channels: int,
        n_focus: int,
        operation: Literal["product", "mlp", "branch"],
        n_branches: int,
        bias: bool,
    ) -> None:
        super().__init__()
        n_frames = 2 * max_frame + 1
        self.channels, self.n_focus = channels, n_focus
        self.expand = DegreeLinear(max_degree, channels, n_frames * channels, bias=False)
        self.contract = DegreeLinear(max_degree, n_frames * channels, channels, bias=False)
        self.product = GridProduct(
            rotation_grid(max_degree, max_frame),
            channels,
            operation,
            n_branches=n_branches,
            paired=False,
            n_focus=n_focus,
            bias=bias,
        )
        self.scale = nn.Parameter(torch.full((n_focus, channels), 1e-3))

    def forward(
        self,
        message: Float[Tensor, "atom lm focus_channel"],
        atom: Float[Tensor, "atom lm focus_channel"],
    ) -> Float[Tensor, "atom lm focus_channel"]:
        """The message with the product added."""
        increments = []
        for focus in range(self.n_focus):
            columns = slice(focus * self.channels, (focus + 1) * self.channels)
            q, x = message[..., columns], atom[..., columns]
            scalars = torch.cat([q[:, 0], x[:, 0]], -1)
            product = self.product(self.expand(q), self.expand(x), scalars, focus)
            increments.append(self.contract(product) * self.scale[focus])
        return message + torch.cat(increments, -1)
