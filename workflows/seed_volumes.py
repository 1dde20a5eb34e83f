"""Relax the demo crystals with CHGNet itself: the teacher's volumes beside the seed model's.

    python workflows/seed_volumes.py volumes.json

Runs in an environment that has chgnet.  Primitive cells, FIRE with ASE's FrechetCellFilter, fmax
0.05 eV/Å, 300 steps at most.  A crystal that is in the file already is not computed again.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

from ase.filters import FrechetCellFilter
from ase.io import read
from ase.optimize import FIRE
from chgnet.model import CHGNet, CHGNetCalculator
from demo_crystals import primitive_cell

CRYSTALS = Path(__file__).parents[1] / "dpa4sim" / "crystals" / "experimental.extxyz"


def main() -> None:
    """One entry per crystal: measured and relaxed volume in Å^3/atom, energy in eV/atom."""
    out = Path(sys.argv[1])
    done = json.loads(out.read_text()) if out.exists() else {}
    model = CHGNet.load(use_device="cpu", verbose=False)
    calculator = CHGNetCalculator(model, use_device="cpu")
    for crystal in read(CRYSTALS, ":"):
        name = crystal.info["name"]
        if name in done:
            continue
        atoms = primitive_cell(crystal)
        measured = atoms.get_volume() / len(atoms)
        atoms.calc = calculator
        optimizer = FIRE(FrechetCellFilter(atoms), logfile=None)
        converged = bool(optimizer.run(fmax=0.05, steps=300))
        done[name] = {
            "formula": crystal.info["formula"],
            "prototype": crystal.info["prototype"],
            "volume_per_atom_experiment": measured,
            "volume_per_atom_chgnet": atoms.get_volume() / len(atoms),
            "energy_per_atom_chgnet": float(atoms.get_potential_energy()) / len(atoms),
            "converged": converged,
        }
        partial = out.with_suffix(".partial")
        partial.write_text(json.dumps(done, indent=1))
        partial.replace(out)
        print(f"{len(done)} {name}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
