"""Space groups and primitive cells, by moyopy."""

from __future__ import annotations

import logging
from functools import cache
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from ase import Atoms
    from moyopy import MoyoDataset

SYMPREC = 0.05
"""Å: relaxed to 0.02 eV/Å, atoms are within about 0.01 Å of where symmetry has them."""


def dataset(atoms: Atoms, symprec: float) -> MoyoDataset | None:
    """What moyopy finds; None for what is no crystal, or when it finds no symmetry at all."""
    from moyopy import Cell, MoyoDataset, Setting

    if not atoms.pbc.all() or len(atoms) == 0 or atoms.cell.rank < 3:
        return None
    _quieten()
    cell = Cell(
        atoms.cell.array.tolist(), atoms.get_scaled_positions().tolist(), atoms.numbers.tolist()
    )
    try:
        return MoyoDataset(cell, symprec=symprec, setting=Setting.standard())
    except ValueError:  # atoms on top of each other, a needle of a cell
        return None


def space_group(atoms: Atoms, symprec: float = SYMPREC) -> int:
    """The number of the space group, 0 where there is none to find; symprec in Å."""
    found = dataset(atoms, symprec)
    return 0 if found is None else int(found.number)


def primitive_cell(atoms: Atoms, symprec: float = 1e-3) -> Atoms:
    """The standard primitive cell (Å), right-handed; the cell as it is where there is none."""
    from ase import Atoms

    found = dataset(atoms, symprec)
    if found is None:
        return atoms.copy()
    cell = found.prim_std_cell
    return Atoms(
        numbers=cell.numbers,
        scaled_positions=np.array(cell.positions) % 1.0,
        cell=cell.basis,
        pbc=True,
    )


@cache
def _quieten() -> None:
    """It remarks on every supercell."""
    logging.getLogger("moyo").setLevel(logging.ERROR)
