"""Energy, forces and stress of several unlike structures, in one batch.

python examples/01_energy.py [MODEL]
"""

import sys

from ase.build import bulk

import dpa4sim

structures = [
    bulk("Si", "diamond", a=5.43),
    bulk("NaCl", "rocksalt", a=5.64),
    bulk("Cu", "fcc", a=3.61, cubic=True),
]
structures[2].rattle(0.05, seed=1)

potential = dpa4sim.load(sys.argv[1] if len(sys.argv) > 1 else "seed")
prediction = potential.evaluate(structures)

start = 0
for atoms, energy, stress in zip(structures, prediction.energy, prediction.stress, strict=True):
    forces = prediction.forces[start : start + len(atoms)]
    start += len(atoms)
    print(f"{atoms.get_chemical_formula():8s} {energy / len(atoms):9.4f} eV/atom", end="  ")
    print(f"largest force {forces.norm(dim=1).max():.4f} eV/Å", end="  ")
    print(f"pressure {-160.2177 * stress.trace() / 3:8.3f} GPa")
