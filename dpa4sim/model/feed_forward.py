"""Equivariant feed-forward units.  Paper section 4.2.4, Eq. 31-39."""

from __future__ import annotations

from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.functional import silu

from dpa4sim.model.frames import degree_of_lm
from dpa4sim.model.grid import GridProduct, rotation_grid, sphere_grid
from dpa4sim.model.linear import DegreeLinear, truncated_normal


class FeedForward(nn.Module):
    """Widen, multiply on a grid, narrow (to zero at the start).  Eq. 31-38"""

    def __init__(
        self,
        max_degree: int,
        channels: int,
        hidden: int,
        grid: Literal["s2", "so3"],
        *,
        grid_order: int = 0,
        operation: Literal["product", "mlp", "branch"] = "product",
        n_branches: int = 0,
        bias: bool = False,
    ) -> None:
        super().__init__()
        order = min(grid_order, max_degree) if grid == "so3" else 0
        width = (2 * order + 1) * hidden
        tables = sphere_grid(max_degree) if grid == "s2" else rotation_grid(max_degree, order)
        self.widen = DegreeLinear(max_degree, channels, 2 * width, bias)
        self.product = GridProduct(tables, hidden, operation, n_branches=n_branches, bias=bias)
        self.narrow = DegreeLinear(max_degree, width, channels, bias, zero=True)

    def forward(self, x: Float[Tensor, "atom lm channel"]) -> Float[Tensor, "atom lm channel"]:
        """The update of the residual stream.  Exactly equivariant up to rounding."""
        a, b = self.widen.halves(x)
        return self.narrow(self.product(a, b))


class GatedFeedForward(nn.Module):
    """Widen, gate every degree by scalars, narrow (to zero at the start).

    v_0 <- v_0 silu(g_0),   v_l <- v_l sigmoid(g_0 W)_l     with [v, g] = widen(x)

    Without `gated_linear` there is no g: v_0 <- silu(v_0), and v_0 makes the gates.
    """

    degree: Tensor

    def __init__(
        self, max_degree: int, channels: int, hidden: int, *, gated_linear: bool, bias: bool
    ) -> None:
        super().__init__()
        self.gated_linear, self.hidden = gated_linear, hidden
        self.widen = DegreeLinear(max_degree, channels, hidden * (1 + gated_linear), bias)
        self.narrow = DegreeLinear(max_degree, hidden, channels, bias, zero=True)
        self.register_buffer(
            "degree", torch.tensor(degree_of_lm(max_degree)[1:], dtype=torch.long), persistent=False
        )
        self.gate = self.gate_bias = None
        if max_degree:
            self.gate = nn.Parameter(truncated_normal(torch.empty(hidden, max_degree * hidden)))
            self.gate_bias = nn.Parameter(torch.zeros(max_degree * hidden)) if bias else None

    def forward(self, x: Float[Tensor, "atom lm channel"]) -> Float[Tensor, "atom lm channel"]:
        """The update of the residual stream."""
        value = self.widen(x)
        source = value
        if self.gated_linear:
            value, source = value.chunk(2, -1)
        source = source[:, 0]
        scalar = (value[:, 0] * silu(source) if self.gated_linear else silu(source))[:, None]
        if self.gate is None:
            return self.narrow(scalar)
        logit = source @ self.gate
        if self.gate_bias is not None:
            logit = logit + self.gate_bias
        gates = torch.sigmoid(logit).unflatten(1, (-1, self.hidden))[:, self.degree - 1]
        return self.narrow(torch.cat([scalar, value[:, 1:] * gates], 1))
