"""A made-up band gap, learned by a new head on MODEL's network.

python examples/08_property.py [MODEL]
"""

import sys
import tempfile

import numpy as np
from ase.build import bulk
from ase.io import write

import dpa4sim
from dpa4sim.data.frame import LabelKeys
from dpa4sim.data.read import read_frames
from dpa4sim.data.writer import write_store

frames = []
for index, scale in enumerate(np.random.default_rng(0).uniform(0.94, 1.06, 48)):
    atoms = bulk("Si", a=5.43) if index % 2 == 0 else bulk("NaCl", "rocksalt", a=5.64)
    atoms.set_cell(atoms.cell * scale, scale_atoms=True)
    atoms.info["gap"] = (1.1 if index % 2 == 0 else 8.5) * scale**-2  # eV, made up
    frames.append(atoms)
with tempfile.TemporaryDirectory() as folder:
    write(f"{folder}/set.extxyz", frames)
    labelled = read_frames(f"{folder}/set.extxyz", LabelKeys(properties=("gap",)))
    write_store(f"{folder}/set.h5", labelled)
    settings = {
        "data": {"train": f"{folder}/set.h5", "valid_fraction": 0.25, "max_edges": 2000},
        "model": {"property_head": {"name": "gap", "intensive": True, "hidden": [32, 32]}},
        "finetune": {"model": sys.argv[1] if len(sys.argv) > 1 else "seed", "freeze": ["blocks"]},
        "optimizer": {"lr": 1e-2, "average": 0.8},
        "schedule": {"warmup_steps": 3},
        "run": {"steps": 40, "validate_every": 0},
    }
    result = dpa4sim.train(settings, directory=f"{folder}/run")
    print(f"MAE {result.errors['property_mae']:.3f} eV after {result.steps} steps")
    values = result.potential.evaluate(frames[:2]).values[:, 0].tolist()
    for atoms, value in zip(frames[:2], values, strict=True):
        print(f"{atoms.symbols}: {value:.2f} eV, label {atoms.info['gap']:.2f}")
