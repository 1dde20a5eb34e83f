"""CHGNet on the other side of a pipe, in its own environment (chgnet 0.4.2).

Each message is eight bytes of length and an .npz file.  In come the packed structures: `positions`
(atom, 3), `numbers` (atom,), `cell` (system, 3, 3), `n_atoms` (system,); out go `energy` in eV,
`forces` in eV/Å and `stress` in eV/Å^3, tension positive.  Every structure is taken as periodic:
one that is not comes in a box whose images do not see each other.  NaN answers a structure that
CHGNet refuses.
"""

import io
import os
import sys
import warnings
from contextlib import redirect_stdout

import numpy as np
import torch
from ase.units import GPa
from chgnet.model import CHGNet
from pymatgen.core import Structure

AT_ONCE = 8  # structures per call, the fastest on one processor core
LARGE = 64  # atoms; such a structure goes alone

warnings.simplefilter("ignore")
torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))


def main() -> None:
    """Answer until the pipe closes."""
    output = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # whatever CHGNet prints goes to stderr
    with redirect_stdout(sys.stderr):
        model = CHGNet.load(use_device="cpu", verbose=False)
    while header := sys.stdin.buffer.read(8):
        size = int.from_bytes(header, "little")
        asked = np.load(io.BytesIO(sys.stdin.buffer.read(size)))
        buffer = io.BytesIO()
        np.savez(buffer, **evaluate(model, asked))
        output.write(len(buffer.getvalue()).to_bytes(8, "little") + buffer.getvalue())
        output.flush()


def evaluate(model: CHGNet, asked: np.lib.npyio.NpzFile) -> dict[str, np.ndarray]:
    """Energy, forces and stress of the packed structures."""
    stops = np.cumsum(asked["n_atoms"])
    positions = np.split(asked["positions"], stops[:-1])
    numbers = np.split(asked["numbers"], stops[:-1])
    graphs = {}
    for index, cell in enumerate(asked["cell"]):
        try:
            structure = Structure(cell, numbers[index], positions[index], coords_are_cartesian=True)
            graphs[index] = model.graph_converter(structure)
        except (ValueError, np.linalg.LinAlgError):
            continue
    energy = np.full(len(stops), np.nan)
    forces = [np.full_like(part, np.nan) for part in positions]
    stress = np.full((len(stops), 3, 3), np.nan)
    for part in parts([(index, len(numbers[index])) for index in graphs]):
        found = model.predict_graph([graphs[i] for i in part], task="efs", batch_size=AT_ONCE)
        for index, one in zip(part, [found] if len(part) == 1 else found, strict=True):
            energy[index] = float(one["e"]) * len(numbers[index])
            forces[index], stress[index] = one["f"], one["s"] * GPa
    return {"energy": energy, "forces": np.concatenate(forces), "stress": stress}


def parts(sizes: list[tuple[int, int]]) -> list[list[int]]:
    """Structures that go together."""
    small = [index for index, size in sizes if size < LARGE]
    together = [small[start : start + AT_ONCE] for start in range(0, len(small), AT_ONCE)]
    return together + [[index] for index, size in sizes if size >= LARGE]


main()
