"""Cheap exact models for tests: the engine must be right before any network enters."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace

import numpy as np
import torch
from ase import Atoms
from ase.build import bulk, fcc111
from ase.calculators.calculator import Calculator, all_changes
from ase.stress import full_3x3_to_voigt_6_stress
from torch import Tensor

from dpa4sim.batch import Batch
from dpa4sim.edges import Edges, neighbors
from dpa4sim.potential import EnergyModel, Prediction, assemble

CPU = torch.device("cpu")


@dataclass(frozen=True)
class LennardJones:
    """E = 1/2 sum_ij 4 eps [(s/r)^12 - (s/r)^6] (1 - r^2/rc^2)^3, with s = s_0 (w_i + w_j) / 2.

    The weight w of an element is 1 for even and 0.9 for odd atomic numbers.  Sums run in edge
    order, which a system brings with it: its numbers are the same bits in every batch.
    """

    epsilon: float = 0.4
    sigma: float = 2.3
    cutoff: float = 6.0
    device: torch.device = CPU

    def __call__(self, batch: Batch) -> Prediction:
        return self.predict(batch, neighbors(batch, self.cutoff))

    def predict(self, batch: Batch, edges: Edges) -> Prediction:
        """Of edges that were found elsewhere."""
        weight = 1.0 - 0.1 * (batch.atomic_numbers % 2).double()
        sigma = 0.5 * self.sigma * (weight[edges.center] + weight[edges.neighbor])
        r2 = edges.vector.square().sum(1)
        attraction = (sigma * sigma / r2) ** 3
        pair = 4 * self.epsilon * attraction * (attraction - 1)
        slope = -24 * self.epsilon * attraction * (2 * attraction - 1) / r2
        inside = (1 - r2 / self.cutoff**2).clamp(min=0.0)
        by_r = slope * inside**3 - 6 * pair * inside**2 / self.cutoff**2
        energies = torch.zeros_like(batch.positions[:, 0])
        energies = energies.index_add(0, edges.center, 0.5 * pair * inside**3)
        return assemble(batch, edges, energies, 0.5 * by_r[:, None] * edges.vector)


@dataclass(frozen=True)
class Einstein:
    """E = k/2 sum_i |R_i|^2: every atom on a spring to the origin, no edges, no stress."""

    stiffness: float = 1.0
    cutoff: float = 1.0
    device: torch.device = CPU

    def __call__(self, batch: Batch) -> Prediction:
        energies = 0.5 * self.stiffness * batch.positions.square().sum(1)
        energy = energies.new_zeros(batch.n_systems).index_add(0, batch.system_idx, energies)
        forces = -self.stiffness * batch.positions
        return Prediction(energy, forces, torch.zeros_like(batch.cell), energies)


@dataclass(frozen=True)
class Free:
    """E = 0: nothing acts on anything.  What is left of a step is the engine's own work."""

    cutoff: float = 1.0
    device: torch.device = CPU

    def __call__(self, batch: Batch) -> Prediction:
        energies = torch.zeros_like(batch.positions[:, 0])
        energy = torch.zeros_like(batch.cell[:, 0, 0])
        return Prediction(
            energy, torch.zeros_like(batch.positions), torch.zeros_like(batch.cell), energies
        )


class Sick:
    """A model that goes wrong for the systems with a marked atom from its n-th call on.

    Args:
        field: which field of the Prediction goes wrong.
        value: what its entries become.
    """

    MARK = 99

    def __init__(self, model: EnergyModel, field: str, value: float, from_call: int = 1):
        self.model, self.field, self.value, self.from_call = model, field, value, from_call
        self.cutoff, self.device, self.calls = model.cutoff, model.device, 0

    def __call__(self, batch: Batch) -> Prediction:
        self.calls += 1
        prediction = self.model(batch)
        if self.calls < self.from_call:
            return prediction
        marked = torch.zeros(batch.n_systems, dtype=torch.bool, device=batch.device)
        marked[batch.system_idx[batch.atomic_numbers == self.MARK]] = True
        good: Tensor = getattr(prediction, self.field)
        rows = marked[batch.system_idx] if self.field == "forces" else marked
        bad = torch.full_like(good, self.value)
        if self.field == "stress":
            bad = self.value * torch.eye(3, dtype=good.dtype, device=good.device).expand_as(good)
        chosen = torch.where(rows.reshape(-1, *[1] * (good.ndim - 1)), bad, good)
        return replace(prediction, **{self.field: chosen})


class AseModel(Calculator):
    """An ASE calculator around any EnergyModel, one system at a time."""

    implemented_properties = ("energy", "free_energy", "forces", "stress")

    def __init__(self, model: EnergyModel):
        super().__init__()
        self.model = model

    def calculate(self, atoms=None, properties=("energy",), system_changes=all_changes):
        super().calculate(atoms, properties, system_changes)
        prediction = self.model(from_atoms(self.atoms))
        energy = float(prediction.energy[0])
        self.results = {
            "energy": energy,
            "free_energy": energy,
            "forces": prediction.forces.numpy(),
            "stress": full_3x3_to_voigt_6_stress(prediction.stress[0].numpy()),
        }


def from_atoms(atoms: Atoms) -> Batch:
    """A one-system Batch."""
    return Batch.single(
        torch.tensor(atoms.positions),
        torch.tensor(atoms.numbers),
        torch.tensor(atoms.cell.array),
        atoms.pbc.tolist(),
    )


def crystals(seed: int = 0) -> dict[str, Atoms]:
    """Rattled and strained crystals whose cells may relax; unlike sizes, shapes and hands."""
    noise = np.random.default_rng(seed)
    left_handed = bulk("NaCl", "rocksalt", a=4.9, cubic=True)
    left_handed.set_cell(left_handed.cell.array[[1, 0, 2]])
    skewed = bulk("Ni", "fcc", a=3.7) * (2, 2, 1)
    skewed.set_cell(np.array([[1, 0, 0], [2, 1, 0], [0, 0, 1]]) @ skewed.cell.array)
    perfect = {
        "primitive": bulk("Cu", "fcc", a=3.7),
        "left_handed": left_handed,
        "skewed": skewed,
        "cubic": bulk("Cu", "fcc", a=3.7, cubic=True) * (2, 2, 2),
        "hexagonal": bulk("Ti", "hcp", a=2.6, c=4.2),
    }
    for atoms in perfect.values():
        strain = np.eye(3) + 0.05 * noise.normal(size=(3, 3))
        atoms.set_cell(atoms.cell.array @ strain, scale_atoms=True)
        atoms.positions += 0.1 * noise.normal(size=atoms.positions.shape)
    return perfect


def without_bulk(seed: int = 0) -> dict[str, Atoms]:
    """A slab and a molecule, whose cells must stand still."""
    noise = np.random.default_rng(seed)
    slab = fcc111("Cu", (2, 2, 3), a=3.6, vacuum=6.0)
    slab.positions += 0.1 * noise.normal(size=slab.positions.shape)
    corners = [[0, 0, 0], [2.4, 0, 0], [0, 2.5, 0], [0.3, 0.2, 2.3]]
    return {"slab": slab, "molecule": Atoms("CuCoNiCu", positions=corners)}


def packed(structures: Iterable[Atoms]) -> Batch:
    """One batch of ASE structures."""
    return Batch.concatenate(from_atoms(atoms) for atoms in structures)
