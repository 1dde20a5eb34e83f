"""CHGNet relaxes a file of structures one after another, with its own relaxer and environment.

    python chgnet_screen_worker.py START.extxyz END.jsonl FMAX STEPS

One line of END.jsonl per structure: name, energy in eV, geometry, steps, fmax, seconds of the
processor.  Lines that are there are not computed again, so a killed worker goes on.
"""

import json
import os
import sys
import time
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import torch
from ase import Atoms
from ase.io import read
from chgnet.model import CHGNet, StructOptimizer

warnings.simplefilter("ignore")
torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))


def relaxed(optimizer: StructOptimizer, atoms: Atoms, fmax: float, steps: int) -> dict[str, Any]:
    """How one structure ended; without an energy where CHGNet refuses it."""
    begin = time.process_time()
    row = {"name": atoms.info["name"], "energy": None}
    try:
        found = optimizer.relax(
            atoms, fmax=fmax, steps=steps, relax_cell=True, verbose=False, assign_magmoms=False
        )
    except Exception as error:
        return row | {"reason": str(error)[:200], "seconds": time.process_time() - begin}
    path, end = found["trajectory"], found["final_structure"]
    forces = np.asarray(path.forces[-1])
    return row | {
        "energy": float(path.energies[-1]),
        "numbers": [int(number) for number in end.atomic_numbers],
        "positions": end.cart_coords.ravel().tolist(),
        "cell": end.lattice.matrix.ravel().tolist(),
        "steps": len(path.energies) - 1,
        "fmax": float(np.linalg.norm(forces, axis=1).max()),
        "seconds": time.process_time() - begin,
    }


def main(start: str, end: str, fmax: str, steps: str) -> None:
    """Relax what is not yet in the file."""
    file = Path(end)
    lines = file.read_text().splitlines() if file.exists() else []
    known = {json.loads(line)["name"] for line in lines}
    optimizer = StructOptimizer(model=CHGNet.load(use_device="cpu", verbose=False))
    with file.open("a") as output:
        for atoms in read(start, ":"):
            if atoms.info["name"] not in known:
                row = relaxed(optimizer, atoms, float(fmax), int(steps))
                output.write(json.dumps(row) + "\n")
                output.flush()


main(*sys.argv[1:])
