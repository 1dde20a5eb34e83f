"""Radial functions of an edge.  Paper section 4.2.1.

| paper | here |
|---|---|
| s_p(r), Eq. 7        | `envelope` |
| phi_n(r), Eq. 8      | `RadialBasis` |
| rho_ij (Eq. 14)      | `RadialNetwork`: `hidden` (the part that depends on r) and `profile` |
"""

from __future__ import annotations

from collections.abc import Sequence
from math import comb, pi
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.functional import silu

from dpa4sim.model.linear import truncated_normal
from dpa4sim.model.norm import root_mean_square

NORM_EPSILON = 1e-7
"""Guard of the radial network's norm, which the reference does not let its option change."""


def envelope(r: Float[Tensor, " edge"], cutoff: float, exponent: int) -> Float[Tensor, " edge"]:
    """Fall from 1 at r = 0 to 0 at the cutoff, three times differentiable there.  Eq. 7

        s_p(r) = u^4 sum_{k < p} C(k + 3, 3) (1 - u)^k,   u = clip(1 - r / r_c, 0, 1)

    Args:
        r: edge lengths in Å.
        cutoff: r_c in Å.
        exponent: p.
    """
    u = (1 - r / cutoff).clamp(0, 1)
    x = 1 - u
    series = torch.full_like(r, comb(exponent + 2, 3))
    for k in range(exponent - 2, -1, -1):
        series = series * x + comb(k + 3, 3)
    u_squared = u * u
    return u_squared * u_squared * series


class RadialBasis(nn.Module):
    """Radial functions times the basis envelope.  Eq. 8

        bessel:   sin(w_n r) / r  s_p(r),                     w_n learned, n pi / r_c at the start
        gaussian: exp(-(r - mu_n)^2 / (2 sigma^2)) s_p(r),    mu_n learned, sigma = r_c / (N - 1)

    The reference leaves out the factor sqrt(2 / r_c) of the paper.
    """

    def __init__(
        self, kind: Literal["bessel", "gaussian"], n_radial: int, cutoff: float, exponent: int
    ) -> None:
        super().__init__()
        self.kind, self.cutoff, self.exponent = kind, cutoff, exponent
        self.width = cutoff / max(n_radial - 1, 1)
        bessel = torch.arange(1, n_radial + 1, dtype=torch.float64) * (pi / cutoff)
        centers = torch.linspace(0, cutoff, n_radial, dtype=torch.float64)
        start = bessel if kind == "bessel" else centers
        self.parameter = nn.Parameter(start.to(torch.get_default_dtype())[None])

    def forward(self, r: Float[Tensor, " edge"]) -> Float[Tensor, "edge basis"]:
        """Values at the edge lengths r in Å; exactly zero at and beyond the cutoff."""
        weight = envelope(r, self.cutoff, self.exponent)
        if self.kind == "bessel":
            return torch.sin(self.parameter * r[:, None]) * (weight / r)[:, None]
        offset = (r[:, None] - self.parameter) / self.width
        return torch.exp(-0.5 * offset * offset) * weight[:, None]


class RadialNetwork(nn.Module):
    """Bias-free network from the radial basis to one profile per degree and channel.  Eq. 14

        rho_l = W_out,l silu(norm(W ... phi(r)))

    The last matrix is linear: whatever is linear in rho is folded with it before it meets an edge.
    """

    def __init__(
        self, n_radial: int, hidden: Sequence[int], n_degrees: int, channels: int, norm: bool
    ) -> None:
        super().__init__()
        widths = [n_radial, *(width or channels for width in hidden)]
        self.n_degrees, self.channels = n_degrees, channels
        self.weights = nn.ParameterList(
            truncated_normal(torch.empty(a, b))
            for a, b in zip(widths[:-1], widths[1:], strict=True)
        )
        self.scales = nn.ParameterList(torch.ones(width) for width in widths[1:] if norm)
        out = torch.empty(widths[-1], n_degrees * channels)
        self.out = nn.Parameter(truncated_normal(out))

    def forward(self, basis: Float[Tensor, "edge basis"]) -> Float[Tensor, "edge hidden"]:
        """The last hidden layer."""
        hidden = basis
        for layer, weight in enumerate(self.weights):
            hidden = hidden @ weight
            if len(self.scales):
                hidden = root_mean_square(hidden, self.scales[layer], NORM_EPSILON)
            hidden = silu(hidden)
        return hidden

    @property
    def out_by_degree(self) -> Float[Tensor, "degree hidden channel"]:
        """The last matrix, one block per degree."""
        return self.out.unflatten(1, (self.n_degrees, self.channels)).transpose(0, 1)
