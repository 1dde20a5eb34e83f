"""EMT in the place of a teacher: labels for the metals that it knows, no answer about others."""

from __future__ import annotations

from ase import Atoms
from ase.calculators.emt import EMT, parameters
from ase.calculators.singlepoint import SinglePointCalculator


def emt(frames: list[Atoms]) -> list[Atoms | None]:
    """The same structures with energy (eV), forces (eV/Å) and stress (eV/Å^3)."""
    return [_labelled(frame) for frame in frames]


def _labelled(frame: Atoms) -> Atoms | None:
    if not set(frame.symbols) <= set(parameters):
        return None
    atoms = frame.copy()
    atoms.calc = EMT()
    results = {
        "energy": atoms.get_potential_energy(),
        "forces": atoms.get_forces(),
        "stress": atoms.get_stress(),
    }
    atoms.calc = SinglePointCalculator(atoms, **results)
    return atoms
