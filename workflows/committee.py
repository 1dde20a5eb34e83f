"""What a committee says of frames, and how a teacher's labels are kept."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from ase import Atoms
from ase.calculators.calculator import Calculator
from ase.calculators.singlepoint import SinglePointCalculator
from jaxtyping import Float

from dpa4sim.adapters.ase import from_atoms
from dpa4sim.batch import Batch
from dpa4sim.ensemble import Ensemble
from dpa4sim.errors import ModelError

FRAMES_AT_ONCE = 64


def spreads(committee: Ensemble, frames: Sequence[Atoms]) -> Float[np.ndarray, " frame"]:
    """Largest force spread of each frame, eV/Å."""
    found: list[float] = []
    for start in range(0, len(frames), FRAMES_AT_ONCE):
        batch = Batch.concatenate(map(from_atoms, frames[start : start + FRAMES_AT_ONCE]))
        spread = committee(batch.to(committee.device)).force_spread
        found += [float(part.max()) for part in spread.split(batch.n_atoms.tolist())]
    return np.array(found)


def farthest(features: Float[np.ndarray, "frame feature"], count: int) -> list[int]:
    """The first frame, then always the one that is farthest from those that were chosen."""
    chosen = [0]
    nearest = np.linalg.norm(features - features[0], axis=1)
    while len(chosen) < count:
        chosen.append(int(np.argmax(nearest)))
        nearest = np.minimum(nearest, np.linalg.norm(features - features[chosen[-1]], axis=1))
    return chosen


def feature(committee: Ensemble, atoms: Atoms) -> Float[np.ndarray, " feature"]:
    """Mean descriptor of the atoms by the first member.

    Raises:
        ModelError: it has none.
    """
    batch = from_atoms(atoms).to(committee.device)
    descriptors = committee.members[0](batch, descriptors=True).descriptors
    if descriptors is None:
        raise ModelError("The committee's first member has no descriptors to tell frames apart.")
    return descriptors.mean(0).cpu().numpy()


def labelled(atoms: Atoms, calculator: Calculator) -> Atoms:
    """A copy with the energy, forces and stress of a calculator, and nothing else."""
    atoms = Atoms(atoms.symbols, positions=atoms.positions, cell=atoms.cell, pbc=atoms.pbc)
    atoms.calc = calculator
    results = {"energy": atoms.get_potential_energy(), "forces": atoms.get_forces()}
    if atoms.pbc.all():
        results["stress"] = atoms.get_stress()
    atoms.calc = SinglePointCalculator(atoms, **results)
    return atoms
