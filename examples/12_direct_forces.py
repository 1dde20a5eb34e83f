"""MODEL's forces predicted (experimental).  python examples/12_direct_forces.py [MODEL]"""

import sys
import tempfile
from warnings import simplefilter

import numpy as np
from ase.build import bulk
from ase.io import write

import dpa4sim
from dpa4sim.adapters.ase import DPA4Calculator
from dpa4sim.data.read import read_frames
from dpa4sim.data.writer import write_store

simplefilter("ignore", dpa4sim.NonConservativeWarning)
path = (*sys.argv[1:], "seed")[0]
frames, teacher = [], dpa4sim.load(path)
for seed in range(24):
    frames.append(bulk("Si", a=5.43) if seed % 2 else bulk("NaCl", "rocksalt", a=5.64))
    frames[-1].rattle(0.1, seed=seed)
    frames[-1].calc = DPA4Calculator(teacher)  # keeps its label
with tempfile.TemporaryDirectory() as folder:
    size = np.std([atoms.get_forces() for atoms in frames])
    write(f"{folder}/set.extxyz", frames)
    write_store(f"{folder}/set.h5", read_frames(f"{folder}/set.extxyz"))
    plain = {"model": {"force_head": "direct"}, "finetune": {"model": path}, "run": {"steps": 40}}
    plain |= {"data": {"train": f"{folder}/set.h5", "valid_fraction": 0.2, "max_edges": 3000}}
    plain |= {"loss": {"energy": 1, "virial": 0}, "denoise": {"std": 0.05, "probability": 0.3}}
    plain |= {"optimizer": {"lr": 1e-2, "average": 0.8}, "schedule": {"warmup_steps": 3}}
    result = dpa4sim.train(plain, directory=f"{folder}/run")
print(f"force error {result.errors['force_rmse'] / 1e3:.2f} of {size:.2f} eV/Å")
for atoms, force in zip(frames, result.potential.evaluate(frames[:2]).forces[::2], strict=False):
    print(f"{atoms.symbols}: {force.numpy().round(2)} eV/Å, label {atoms.get_forces()[0].round(2)}")
try:  # not without allow_non_conservative=True
    dpa4sim.relax(result.potential, frames[:2], cell=False)
except dpa4sim.ConfigError as refusal:
    print(refusal)
