"""Two theories on one trunk: the same crystals with energies of another zero and stiffer forces.

python examples/11_branches.py [MODEL]
"""

import sys
import tempfile

import numpy as np
from ase.build import bulk
from ase.calculators.singlepoint import SinglePointCalculator
from ase.io import write

import dpa4sim
from dpa4sim.data.read import read_frames
from dpa4sim.data.writer import write_store

rng = np.random.default_rng(0)
teacher = dpa4sim.load(sys.argv[1] if len(sys.argv) > 1 else "seed")
crystals = [bulk("Si", a=5.43), bulk("NaCl", "rocksalt", a=5.64)]
with tempfile.TemporaryDirectory() as folder:
    for theory, factor, zero in (("soft", 1.0, 0.0), ("stiff", 1.2, -100.0)):  # made up
        frames = [atoms.copy() for atoms in 8 * crystals]
        for atoms in frames:
            atoms.positions += rng.normal(0, 0.1, atoms.positions.shape)
            said = teacher.evaluate(atoms)
            labels = {"energy": factor * float(said.energy) + 2 * zero}
            atoms.calc = SinglePointCalculator(atoms, forces=factor * said.forces.numpy(), **labels)
        write(f"{folder}/{theory}.extxyz", frames)
        write_store(f"{folder}/{theory}.h5", read_frames(f"{folder}/{theory}.extxyz"))
    sets = {name: {"train": f"{folder}/{name}.h5"} for name in ("soft", "stiff")}
    model = {"channels": 16, "n_blocks": 1, "max_degree": 1, "cutoff": 5.0}
    run = {"branches": sets, "model": model, "run": {"steps": 15}, "loss": {"virial": 0}}
    run |= {"schedule": {"warmup_steps": 3}, "data": {"valid_fraction": 0.25, "max_edges": 2000}}
    dpa4sim.train(run, directory=f"{folder}/run")
    for name in ("soft", "stiff"):
        one = dpa4sim.load(f"{folder}/run/best.safetensors", branch=name)
        values = (one.evaluate(crystals).energy / 2).tolist()
        words = (f"{a.symbols} {e:.2f}" for a, e in zip(crystals, values, strict=True))
        print(f"{name}, eV/atom: {', '.join(words)}")
