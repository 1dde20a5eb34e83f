"""Labelled alloys for workflows/train/small.toml: rattled, strained, with EMT's energies.

python workflows/train/small_data.py small.extxyz
"""

from __future__ import annotations

import argparse
from pathlib import Path

import ase.io
import numpy as np
from ase import Atoms
from ase.build import bulk
from ase.calculators.emt import EMT
from ase.calculators.singlepoint import SinglePointCalculator
from tqdm import tqdm

METALS = ("Cu", "Ag", "Au")


def alloy(rng: np.random.Generator) -> Atoms:
    """A cell of 4 to 16 atoms of one to three metals, away from its equilibrium."""
    atoms = bulk("Cu", cubic=True, a=rng.uniform(3.5, 4.2)).repeat((1, 1, int(rng.integers(1, 5))))
    atoms.symbols = rng.choice(METALS[: rng.integers(1, 4)], len(atoms))
    strain = np.eye(3) + rng.normal(0, 0.02, (3, 3))
    atoms.set_cell(atoms.cell[:] @ strain, scale_atoms=True)
    atoms.positions += rng.normal(0, rng.uniform(0.01, 0.15), atoms.positions.shape)
    return atoms


def labelled(atoms: Atoms) -> Atoms:
    """The same with energy, forces and stress."""
    atoms.calc = EMT()
    results = {
        "energy": atoms.get_potential_energy(),
        "forces": atoms.get_forces(),
        "stress": atoms.get_stress(),
    }
    atoms.calc = SinglePointCalculator(atoms, **results)
    return atoms


def main() -> None:
    """Write the file."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("out", type=Path, help="an .extxyz file")
    parser.add_argument("--frames", type=int, default=400)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    rng = np.random.default_rng(args.seed)
    bar = tqdm(range(args.frames), unit="frame", disable=None)
    ase.io.write(args.out, [labelled(alloy(rng)) for _ in bar], format="extxyz")
    print(f"{args.frames} frames: {args.out}")


if __name__ == "__main__":
    main()
