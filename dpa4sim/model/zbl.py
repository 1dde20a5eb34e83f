"""Screened nuclear repulsion and the bridging window.  Paper sections 4.2.1 and 4.2.5.

| paper | here |
|---|---|
| clamped distance, Eq. 3  | `Bridge.clamp` |
| amplitude w(r), Eq. 4    | `Bridge.amplitude` |
| source-freeze gate eta_j, Eq. 5 | `source_gate` |
| E_ZBL, Eq. 40            | `repulsion` |
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from dpa4sim.units import BOHR_A, COULOMB_EV_A

SCREENING = ((0.18175, 3.19980), (0.50986, 0.94229), (0.28022, 0.40290), (0.028171, 0.20162))
"""Amplitudes and exponents of the universal screening function (Ziegler, Biersack, Littmark)."""


@dataclass(frozen=True)
class Bridge:
    """The window [inner, outer] in Å between the repulsion and the learned branch."""

    inner: float
    outer: float

    def clamp(self, r: Float[Tensor, " edge"]) -> Float[Tensor, " edge"]:
        """Distance as the network sees it: constant inside, r outside, C3 between.  Eq. 2-3"""
        t = ((r - self.inner) / (self.outer - self.inner)).clamp(0, 1)
        h = t**4 * (20 + t * (-45 + t * (36 - 10 * t)))
        return torch.where(r < self.outer, self.inner + (self.outer - self.inner) * h, r)

    def amplitude(self, r: Float[Tensor, " edge"]) -> Float[Tensor, " edge"]:
        """0 inside the window, 1 outside, C3 between.  Eq. 2, 4

        The reference evaluates it at the clamped distance, the paper at r.
        """
        t = ((r - self.inner) / (self.outer - self.inner)).clamp(0, 1)
        return t**4 * (35 + t * (-84 + t * (70 - 20 * t)))


def source_gate(
    amplitude: Float[Tensor, " edge"], neighbor: Int[Tensor, " edge"], n_atoms: int
) -> Float[Tensor, " atom"]:
    """eta_j: product of the amplitudes over all edges whose neighbour is j.  Eq. 5

    An exact zero (an atom inside the inner zone) gives an exact zero with zero slope.
    """
    frozen = amplitude <= 0
    log = torch.where(frozen, torch.ones_like(amplitude), amplitude).log()
    product = log.new_zeros(n_atoms).index_add(0, neighbor, log).exp()
    count = log.new_zeros(n_atoms).index_add(0, neighbor, frozen.to(log))
    return torch.where(count > 0, torch.zeros_like(product), product)


def repulsion(
    r: Float[Tensor, " edge"],
    charge_center: Float[Tensor, " edge"],
    charge_neighbor: Float[Tensor, " edge"],
) -> Float[Tensor, " edge"]:
    """Screened Coulomb energy of a pair in eV.  Eq. 40

        E = k_e Z_i Z_j / r  sum_k c_k exp(-d_k r / a),   a = 0.88534 a_0 / (Z_i^0.23 + Z_j^0.23)

    Args:
        r: distance in Å, not clamped.
        charge_center: Z_i.
        charge_neighbor: Z_j.
    """
    r = r.clamp(min=1e-10)
    length = 0.88534 * BOHR_A / (charge_center**0.23 + charge_neighbor**0.23)
    x = r / length
    screening = torch.zeros_like(r)
    for amplitude, exponent in SCREENING:
        screening = screening + amplitude * torch.exp(-exponent * x)
    return COULOMB_EV_A * charge_center * charge_neighbor / r * screening
