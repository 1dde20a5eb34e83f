"""Crystals for workflows/train/branches.toml: frames of a few elements out of many labelled files.

python workflows/train/branches_data.py crystals.extxyz LABELS/*/*.extxyz [--elements O,Mg,Si]
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
from pathlib import Path

import ase.io
from ase import Atoms
from tqdm import tqdm

ELEMENTS = "O,Li,Na,Mg,Al,Si,Ca,Ti,Zn"


def chosen(
    files: Sequence[Path], elements: set[str], least: str, largest_force: float
) -> Iterator[Atoms]:
    """Frames of compounds that have `least` and nothing but the elements, and no larger force."""
    for file in tqdm(files, unit="file", disable=None):
        for atoms in ase.io.iread(file):
            found = set(atoms.get_chemical_symbols())
            calm = abs(atoms.get_forces()).max() <= largest_force
            if calm and len(found) > 1 and least in found and found <= elements:
                yield atoms


def main() -> None:
    """Write the file."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("out", type=Path, help="an .extxyz file")
    parser.add_argument("files", type=Path, nargs="+", help="labelled frames")
    parser.add_argument("--elements", default=ELEMENTS, help=f"others are left out [{ELEMENTS}]")
    parser.add_argument("--with", dest="least", default="O", help="one that must be there [O]")
    parser.add_argument("--largest-force", type=float, default=4.0, help="eV/Å [4]")
    args = parser.parse_args()
    elements = set(args.elements.split(","))
    frames = list(chosen(args.files, elements, args.least, args.largest_force))
    ase.io.write(args.out, frames, format="extxyz")
    print(f"{len(frames)} frames: {args.out}")


if __name__ == "__main__":
    main()
