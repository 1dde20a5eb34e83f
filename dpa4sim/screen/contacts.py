"""Pairs of atoms that are close to each other."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import numpy as np

if TYPE_CHECKING:
    from ase import Atoms

MOST_BINS = 50_000
"""vesin ends the process beyond about twice as many; what is so wide and empty goes to ASE."""


class Pairs(NamedTuple):
    """Ordered pairs, each twice.

    Args:
        first, second: atoms.
        shift: lattice vectors from the cell of the first to that of the second.
        distance: Å.
    """

    first: np.ndarray
    second: np.ndarray
    shift: np.ndarray
    distance: np.ndarray


def pairs(atoms: Atoms, radius: float) -> Pairs:
    """All pairs within a radius (Å), images of an atom itself included."""
    from ase.neighborlist import neighbor_list
    from vesin import ase_neighbor_list

    search = ase_neighbor_list if _bins(atoms, radius) <= MOST_BINS else neighbor_list
    return Pairs(*search("ijSd", atoms, radius))


def relative_pairs(atoms: Atoms, reach: float) -> Pairs:
    """All pairs within so many sums of their covalent radii; their distance in those sums."""
    from ase.data import covalent_radii

    radii = covalent_radii[atoms.numbers]
    found = pairs(atoms, 2 * reach * float(radii.max()))
    relative = found.distance / (radii[found.first] + radii[found.second])
    near = relative < reach
    return Pairs(found.first[near], found.second[near], found.shift[near], relative[near])


def _bins(atoms: Atoms, radius: float) -> float:
    """Of a width of one radius in the box around the atoms; many for an incomplete cell."""
    if atoms.cell.rank == 3:
        inverse = np.linalg.inv(atoms.cell.array)
        spread = np.ptp(atoms.positions @ inverse, axis=0)
        widths = np.where(atoms.pbc, 1, spread) / np.linalg.norm(inverse, axis=0)
    elif not atoms.pbc.any():
        widths = np.ptp(atoms.positions, axis=0)
    else:
        return np.inf
    return float(np.prod(np.maximum(widths / radius, 1)))
