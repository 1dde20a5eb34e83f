"""Relax atoms and cells together; a structure that cannot be used does not stop the others.

python examples/02_relax.py [MODEL]
"""

import sys

import numpy as np
from ase.build import bulk

import dpa4sim

structures = [
    bulk("Si", "diamond", a=5.6),
    bulk("NaCl", "rocksalt", a=5.5, cubic=True),
    bulk("Cu", "fcc", a=3.7, cubic=True),
    bulk("MgO", "rocksalt", a=4.3),
]
structures[1].rattle(0.05, seed=1)
structures[3].positions[0] = np.nan

potential = dpa4sim.load(sys.argv[1] if len(sys.argv) > 1 else "seed")
result = dpa4sim.relax(potential, structures, fmax=0.05, max_steps=100)

for atoms, status, reason, steps, change in zip(
    structures, result.status, result.reasons, result.steps, result.volume_change, strict=True
):
    formula = atoms.get_chemical_formula()
    print(
        f"{formula:8s} {status.name:10s} {steps:3d} steps  volume {100 * change:+6.2f} %  {reason}"
    )

relaxed = result.to_atoms()  # ase.Atoms, in the order of the input
