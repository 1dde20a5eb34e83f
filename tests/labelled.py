"""Structures with labels of an exact model, in every format that training data comes in."""

from __future__ import annotations

import json

import numpy as np
from ase import Atoms
from ase.build import bulk
from ase.calculators.singlepoint import SinglePointCalculator
from ase.stress import full_3x3_to_voigt_6_stress
from toy import LennardJones

from dpa4sim.adapters.ase import from_atoms
from dpa4sim.units import GPA_PER_EV_A3

SHIFTS_EV = {"Cu": -3.5, "Al": -3.4, "H": -12.0}
MODEL = LennardJones()


def label(atoms: Atoms, energy: float = 1.0, forces: float = 1.0, stress: float = 1.0) -> Atoms:
    """Attach labels, each times a factor."""
    prediction = MODEL(from_atoms(atoms))
    total = float(prediction.energy[0]) + sum(
        SHIFTS_EV.get(s, 0.0) for s in atoms.get_chemical_symbols()
    )
    results = {"energy": energy * total, "forces": forces * prediction.forces.numpy()}
    if atoms.pbc.all():
        tensor = stress * prediction.stress[0].numpy()
        results["stress"] = full_3x3_to_voigt_6_stress(tensor)
    atoms.calc = SinglePointCalculator(atoms, **results)
    return atoms


def crystal(seed: int, rattle: float = 0.05, strain: float = 0.02) -> Atoms:
    """Four copper or aluminium atoms, or both, in a cell of no symmetry."""
    rng = np.random.default_rng(seed)
    atoms = bulk("Cu", "fcc", a=3.6, cubic=True)
    atoms.numbers = rng.choice([13, 29], 4)
    atoms.set_cell(atoms.cell.array @ (np.eye(3) + strain * rng.normal(size=(3, 3))), True)
    atoms.positions += rattle * rng.normal(size=(4, 3))
    return atoms


def molecule(seed: int) -> Atoms:
    """Two or three hydrogen atoms on a bent line, open."""
    rng = np.random.default_rng(seed)
    n = int(rng.integers(2, 4))
    places = 1.9 * np.arange(n)[:, None] * np.array([1.0, 0.2, 0.0]) + 0.1 * rng.normal(size=(n, 3))
    return Atoms(f"H{n}", positions=places)


def mixed(n: int, seed: int = 0) -> list[Atoms]:
    """Crystals, and a molecule as every third."""
    return [label(molecule(seed + k) if k % 3 == 2 else crystal(seed + k)) for k in range(n)]


def trajectory(n: int, seed: int = 0, **factors: float) -> list[Atoms]:
    """Small moves and strains of one crystal, from frame to frame."""
    rng = np.random.default_rng(seed)
    atoms = bulk("Cu", "fcc", a=3.5, cubic=True)
    atoms.positions += 0.1 * rng.normal(size=(4, 3))
    images = []
    for _ in range(n):
        atoms = atoms.copy()
        atoms.set_cell(atoms.cell.array @ (np.eye(3) + 0.006 * rng.normal(size=(3, 3))), True)
        atoms.positions += 0.03 * rng.normal(size=(4, 3))
        images.append(label(atoms, **factors))
    return images


def mptrj(images: list[Atoms]) -> str:
    """As MPtrj has them: two materials, stress in kBar with VASP's sign."""
    from pymatgen.io.ase import AseAtomsAdaptor

    table: dict[str, dict[str, object]] = {}
    for k, atoms in enumerate(images):
        stress = -10 * GPA_PER_EV_A3 * atoms.get_stress(voigt=False)
        table.setdefault(f"mp-{k % 2}", {})[f"mp-{k % 2}-0-{k}"] = {
            "structure": AseAtomsAdaptor.get_structure(atoms.copy()).as_dict(),
            "uncorrected_total_energy": atoms.get_potential_energy(),
            "corrected_total_energy": atoms.get_potential_energy() - 1.0,
            "force": atoms.get_forces().tolist(),
            "stress": stress.tolist(),
            "magmom": None,
        }
    return json.dumps(table)
