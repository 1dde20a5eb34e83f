"""A magnet for tests: springs, exchange that depends on distance, Landau moments, anisotropy."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch

from dpa4sim.batch import Batch
from dpa4sim.edges import neighbors
from dpa4sim.potential import Prediction, assemble

CPU = torch.device("cpu")


@dataclass(frozen=True)
class Heisenberg:
    """Energy of positions and moments, differentiated by autograd.

        E = 1/2 sum_ij w(r) [k/2 (r - r0)^2 - D + J m_i . m_j + K (m_i . r/r)^2]
            + sum_i b/4 (|m_i|^2 - m0^2)^2,      w(r) = (1 - r^2/rc^2)^3

    Nickel is magnetic; of other elements only the springs act.
    """

    stiffness: float = 4.0
    length: float = 2.4
    depth: float = 0.5
    exchange: float = 0.05
    anisotropy: float = 0.02
    landau: float = 0.2
    moment: float = 1.5
    cutoff: float = 4.0
    device: torch.device = CPU

    @property
    def magnetic_elements(self) -> frozenset[int]:
        """Nickel."""
        return frozenset({28})

    def __call__(self, batch: Batch) -> Prediction:
        edges = neighbors(batch, self.cutoff)
        magnetic = (batch.atomic_numbers == 28)[:, None]
        moments = batch.magmoms.detach().clone().requires_grad_(True)
        vector = edges.vector.clone().requires_grad_(True)
        with torch.enable_grad():
            m = torch.where(magnetic, moments, 0.0)
            r = vector.square().sum(1).sqrt()
            here, there = m[edges.center], m[edges.neighbor]
            bond = 0.5 * self.stiffness * (r - self.length) ** 2 - self.depth
            bond = bond + self.exchange * (here * there).sum(1)
            bond = bond + self.anisotropy * ((here * vector).sum(1) / r) ** 2
            bond = 0.5 * bond * (1 - r * r / self.cutoff**2).clamp(min=0.0) ** 3
            own = 0.25 * self.landau * (m.square().sum(1) - self.moment**2) ** 2
            energies = torch.where(magnetic[:, 0], own, 0.0).index_add(0, edges.center, bond)
            by_vector, by_moment = torch.autograd.grad(energies.sum(), [vector, moments])
        prediction = assemble(batch, edges, energies.detach(), by_vector)
        return replace(prediction, magnetic_forces=-by_moment)
