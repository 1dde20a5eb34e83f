"""Relax the demo crystals with CHGNet itself: the teacher's volumes beside the model's.

    python workflows/seed_volumes.py volumes.json

Runs in an environment that has chgnet, some ten minutes on one core.  Primitive cells, BFGS on
positions and cell, `FMAX`, `STEPS` at most.  A crystal that is in the file already is not
computed again.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from ase import Atoms
from ase.io import read
from demo_crystals import primitive_cell
from seed_labels import Teacher, chgnet_teacher, relax_together
from tqdm import tqdm

CRYSTALS = Path(__file__).parents[1] / "dpa4sim" / "crystals" / "experimental.extxyz"
TOGETHER = 12  # crystals that are relaxed in one batch, and written at once
STEPS = 120
FMAX = 0.01  # eV/Å; of 0.05 the volumes of the alkali metals would keep an error of 3 %


def entry(crystal: Atoms, path: list[Atoms]) -> dict[str, Any]:
    """Measured and relaxed volume in Å^3/atom, energy in eV/atom.

    Args:
        path: of its relaxation by the teacher, first to last.
    """
    last = path[-1]
    return {
        "formula": crystal.info["formula"],
        "prototype": crystal.info["prototype"],
        "volume_per_atom_experiment": crystal.get_volume() / len(crystal),
        "volume_per_atom_chgnet": last.get_volume() / len(last),
        "energy_per_atom_chgnet": last.get_potential_energy() / len(last),
        "converged": len(path) <= STEPS,
    }


def relax_all(teach: Teacher, crystals: list[Atoms], out: Path) -> None:
    """Add the crystals that the file does not have."""
    done = json.loads(out.read_text()) if out.exists() else {}
    missing = [crystal for crystal in crystals if crystal.info["name"] not in done]
    for start in tqdm(range(0, len(missing), TOGETHER), unit="batch"):
        group = missing[start : start + TOGETHER]
        paths = relax_together(teach, [primitive_cell(crystal) for crystal in group], STEPS, FMAX)
        for crystal, path in zip(group, paths, strict=True):
            done[crystal.info["name"]] = entry(crystal, path)
        partial = out.with_suffix(".partial")
        partial.write_text(json.dumps(done, indent=1))
        partial.replace(out)


def main() -> None:
    """One entry per crystal."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("out", type=Path, help="a .json file")
    args = parser.parse_args()
    relax_all(chgnet_teacher(), read(CRYSTALS, ":"), args.out)


if __name__ == "__main__":
    main()
