"""A small model learns from another one.  python examples/04_train.py [MODEL]"""

import sys
import tempfile

import numpy as np
from ase.build import bulk
from ase.io import write

import dpa4sim
from dpa4sim.adapters.ase import DPA4Calculator
from dpa4sim.data.read import read_frames
from dpa4sim.data.writer import write_store

teacher = dpa4sim.load(sys.argv[1] if len(sys.argv) > 1 else "seed")
rng = np.random.default_rng(0)
frames = []
for index in range(40):
    atoms = bulk("Si", a=5.43) if index % 2 == 0 else bulk("NaCl", "rocksalt", a=5.64)
    atoms.set_cell(atoms.cell * rng.uniform(0.96, 1.04), scale_atoms=True)
    atoms.rattle(0.1, rng=rng)
    atoms.calc = DPA4Calculator(teacher)
    atoms.get_potential_energy()
    frames.append(atoms)

with tempfile.TemporaryDirectory() as folder:
    write(f"{folder}/set.extxyz", frames)  # with energy, forces and stress, under ASE's own keys
    write_store(f"{folder}/set.h5", read_frames(f"{folder}/set.extxyz"), cutoff=4.0)
    settings = {
        "data": {"train": f"{folder}/set.h5", "valid_fraction": 0.2, "max_edges": 1500},
        "model": {"cutoff": 4.0, "channels": 8, "n_blocks": 1, "max_degree": 1},
        "optimizer": {"lr": 5e-3},
        "schedule": {"warmup_steps": 5},
        "run": {"steps": 60, "validate_every": 20},
    }
    result = dpa4sim.train(settings, directory=f"{folder}/run")
    print(f"force MAE {result.errors['force_mae']:.0f} meV/Å after {result.steps} steps")
    for atoms in frames[:2]:
        print(atoms.symbols, f"{result.potential.evaluate(atoms).energy.item():.3f} eV")
