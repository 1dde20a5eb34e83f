"""Which of these crystals are alike?  Embeddings, distances, and the file of them.

python examples/07_embed.py [MODEL]
"""

import sys
import tempfile

import h5py
import torch
from ase.build import bulk
from ase.io import write

import dpa4sim
from dpa4sim.embed import write_embeddings

crystals = [
    bulk("NaCl", "rocksalt", a=5.64),
    bulk("MgO", "rocksalt", a=4.21),
    bulk("Si", "diamond", a=5.43),
    bulk("Cu", "fcc", a=3.61),
]
model = dpa4sim.load(sys.argv[1] if len(sys.argv) > 1 else "seed")
found = model.embed(crystals)
print(f"{tuple(found.descriptor.shape)} descriptors, {tuple(found.atomic_feature.shape)} features")

sizes = torch.tensor([len(atoms) for atoms in crystals])
per_atom = found.structural_feature / sizes[:, None]  # the feature of a structure is extensive
for atoms, distances in zip(crystals, torch.cdist(per_atom, per_atom), strict=True):
    near = crystals[int(distances.argsort()[1])]
    print(f"{atoms.symbols!s:5} is nearest to {near.symbols}")

with tempfile.TemporaryDirectory() as folder:
    write(f"{folder}/crystals.extxyz", crystals)
    write_embeddings(model, f"{folder}/crystals.extxyz", f"{folder}/out.hdf5")
    with h5py.File(f"{folder}/out.hdf5") as file:
        for name, group in file.items():
            print(name, group["descriptor"].shape)
