"""Models that cost nothing or little, for this package and for TorchSim alike."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import ase.build
import torch
from torch import Tensor

from dpa4sim.adapters.ase import from_atoms
from dpa4sim.batch import Batch
from dpa4sim.edges import Edges, neighbors
from dpa4sim.potential import Prediction, assemble

CPU = torch.device("cpu")


@dataclass(frozen=True)
class Constant:
    """Always the same answer, whatever the geometry: what is left of a step is the engine's work.

    Args:
        answer: given to every call, its edges included.
    """

    answer: Prediction
    cutoff: float = 5.0
    device: torch.device = CPU

    def __call__(self, batch: Batch) -> Prediction:
        """The answer."""
        return self.answer


def constant(batch: Batch, *, force: float = 1e-4, cutoff: float = 5.0) -> Constant:
    """Forces and stresses too small to carry anything away within a benchmark, and real edges.

    Args:
        force: standard deviation of a component, eV/Å.
    """
    noise = torch.Generator().manual_seed(0)
    count, n_systems = len(batch.positions), batch.n_systems
    strain = 1e-2 * force * torch.randn(n_systems, 3, 3, generator=noise, dtype=torch.float64)
    answer = Prediction(
        energy=torch.zeros(n_systems, dtype=torch.float64),
        forces=force * torch.randn(count, 3, generator=noise, dtype=torch.float64),
        stress=0.5 * (strain + strain.transpose(1, 2)),
        atomic_energies=torch.zeros(count, dtype=torch.float64),
        edges=neighbors(batch, cutoff),
    )
    return Constant(answer, cutoff)


@dataclass(frozen=True)
class CompiledConstant(Constant):
    """The same, for steps as they are for a model that was loaded with compile=True."""

    network: bool = True


@dataclass(frozen=True)
class LennardJones:
    """E = 1/2 sum_ij 4 eps [(s/r)^12 - (s/r)^6] (1 - r^2/rc^2)^3, one kind of atom."""

    epsilon: float = 0.1
    sigma: float = 2.4
    cutoff: float = 5.0
    device: torch.device = CPU

    def __call__(self, batch: Batch) -> Prediction:
        """Energy, forces and stress, neighbour list included."""
        edges: Edges = neighbors(batch, self.cutoff)
        r2 = edges.vector.square().sum(1)
        attraction = (self.sigma * self.sigma / r2) ** 3
        pair = 4 * self.epsilon * attraction * (attraction - 1)
        slope = -24 * self.epsilon * attraction * (2 * attraction - 1) / r2
        inside = (1 - r2 / self.cutoff**2).clamp(min=0.0)
        by_r = slope * inside**3 - 6 * pair * inside**2 / self.cutoff**2
        energies = batch.positions.new_zeros(len(batch.positions))
        energies = energies.index_add(0, edges.center, 0.5 * pair * inside**3)
        return assemble(batch, edges, energies, 0.5 * by_r[:, None] * edges.vector)


def eight_atom_cells(count: int, *, rattle: float = 0.05, a: float = 3.6) -> Batch:
    """Cells of eight atoms: two conventional fcc cells of copper, each rattled in its own way."""
    perfect = from_atoms(ase.build.bulk("Cu", "fcc", a=a, cubic=True).repeat((2, 1, 1)))
    batch = Batch.concatenate([perfect] * count)
    noise = torch.Generator().manual_seed(1)
    step = torch.randn(len(batch.positions), 3, generator=noise, dtype=torch.float64)
    return batch.with_geometry(batch.positions + rattle * step, batch.cell)


def torchsim_constant(prediction: Prediction) -> Any:
    """The same answer as a TorchSim model, without any conversion between the two worlds."""
    from torch_sim.models.interface import ModelInterface

    class Model(ModelInterface):
        def __init__(self) -> None:
            super().__init__()
            self._device, self._dtype = CPU, torch.float64
            self._compute_forces = self._compute_stress = True

        def forward(self, state: Any, **kwargs: Any) -> dict[str, Tensor]:
            return {
                "energy": prediction.energy,
                "forces": prediction.forces.clone(),
                "stress": prediction.stress,
            }

    return Model()
