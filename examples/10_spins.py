"""Magnetic forces of nickel oxide, and its moments relaxed.  python examples/10_spins.py [MODEL]

MODEL has spins: trained by `dpa4sim train` on labels with moments, or a DeePMD-kit checkpoint.
Without one a network of random weights shows the calls; its numbers mean nothing.
"""

import sys

import numpy as np
import torch
from ase.build import bulk

import dpa4sim
from dpa4sim.config import DPA4Config, SpinConfig
from dpa4sim.model import DPA4

if len(sys.argv) > 1:
    potential = dpa4sim.load(sys.argv[1])
else:
    torch.manual_seed(0)
    spin = SpinConfig(scheme="virtual", magnetic=("Ni",), virtual_scale=(0.314,))  # Å per muB
    config = DPA4Config(species=("Ni", "O"), cutoff=4.5, channels=16, n_blocks=1, spin=spin)
    network = DPA4(config)
    for weight in network.parameters():
        weight.data += 0.05 * torch.randn_like(weight)
    potential = dpa4sim.Potential(network)

atoms = bulk("NiO", "rocksalt", a=4.17) * (2, 1, 1)
directions = np.outer([1.2, 0, -1.2, 0], [0.3, 0.1, 1.0])  # along and against; numbers are along z
atoms.set_initial_magnetic_moments(directions)
said = potential.evaluate(atoms)
print(f"{atoms.symbols}: {said.energy[0] / len(atoms):.4f} eV per atom")
print("magnetic forces, eV per Bohr magneton\n", said.magnetic_forces[[0, 2]].numpy().round(4))
result = dpa4sim.relax(potential, [atoms], moments=True, magnetic_fmax=0.02)  # and the cell
print(f"{result.status[0].name}: {result.energy[0] / len(atoms):.4f} eV per atom")
print("moments, Bohr magnetons\n", result.batches[0].magmoms[[0, 2]].numpy().round(3))
