"""How far to trust a model, and where it stops: an ensemble.  python examples/09_uncertainty.py

Members are usually trained from different seeds, see workflows/active_learning.py; here they are
one model whose weights are shaken by 0.2 percent, so that the example needs no training.
"""

import copy
import sys
import tempfile
from pathlib import Path

import torch
from ase.build import bulk

import dpa4sim

model = dpa4sim.load(sys.argv[1] if len(sys.argv) > 1 else "seed")
members = []
with tempfile.TemporaryDirectory() as folder:
    for seed in range(3):
        network, noise = copy.deepcopy(model.model), torch.Generator().manual_seed(seed)
        for weight in network.parameters():
            weight.mul_(1 + 0.002 * torch.randn(weight.shape, generator=noise))
        members.append(Path(folder) / f"{seed}.safetensors")
        dpa4sim.Potential(network).save(members[-1])
    committee = dpa4sim.load(members)  # or of one file: committee.save("committee.safetensors")

crystals = [bulk("Si", "diamond", a=5.43), bulk("NaCl", "rocksalt", a=5.0), bulk("Cu", a=2.9)]
for atoms in crystals:
    atoms.rattle(0.03, seed=1)
said = committee.evaluate(crystals)
for atoms, energy, spread in zip(crystals, said.energy, said.energy_spread, strict=True):
    print(f"{atoms.symbols!s:6s} {energy / len(atoms):8.3f} +- {spread:.3f} eV per atom")
print(f"forces differ by up to {said.force_spread.max():.3f} eV/Å")
result = dpa4sim.relax(committee, crystals, max_force_spread=0.003, max_steps=20)  # eV/Å
for atoms, status in zip(crystals, result.status, strict=True):
    print(f"{atoms.symbols!s:6s} {status.name}")
