"""Whether a candidate can be relaxed at all, said in a sentence."""

from __future__ import annotations

from collections.abc import Collection
from typing import TYPE_CHECKING

import numpy as np

from dpa4sim.adapters.ase import OCCUPANCY_TOLERANCE
from dpa4sim.screen.contacts import pairs

if TYPE_CHECKING:
    from ase import Atoms

CLOSEST = 0.5
"""Å; H2 has 0.74, and nothing that is not squeezed is shorter."""

THINNEST = 0.4
"""Å between opposite faces of a cell; H2 at megabars has 1.4."""

LARGEST_NUMBER = 118


def invalid_reason(atoms: Atoms, known_elements: Collection[int] | None = None) -> str:
    """Why a structure is no candidate, as a sentence; empty if it is one.

    Args:
        known_elements: atomic numbers that the model knows; all, where it does not say.
    """
    if len(atoms) == 0:
        return "it holds no atoms"
    return (
        _numbers(atoms)
        or _elements(atoms, known_elements)
        or _occupancy(atoms)
        or _cell(atoms)
        or _contacts(atoms)
    )


def _numbers(atoms: Atoms) -> str:
    if not np.isfinite(atoms.positions).all():
        bad = int(np.flatnonzero(~np.isfinite(atoms.positions).all(axis=1))[0])
        return f"the position of atom {bad} is not a finite number"
    if not np.isfinite(atoms.cell.array).all():
        return "a lattice vector is not finite"
    return ""


def _elements(atoms: Atoms, known_elements: Collection[int] | None) -> str:
    from ase.data import chemical_symbols

    for index, number in enumerate(atoms.numbers.tolist()):
        if not 1 <= number <= LARGEST_NUMBER:
            return f"atom {index} is no element (atomic number {number})"
    if known_elements is not None:
        unknown = sorted(set(atoms.numbers.tolist()) - set(known_elements))
        if unknown:
            names = ", ".join(chemical_symbols[number] for number in unknown)
            return f"the model does not know {names}"
    return ""


def _occupancy(atoms: Atoms) -> str:
    """ASE notes what a CIF says about occupancy; other formats have none."""
    occupancy = atoms.info.get("occupancy")
    if isinstance(occupancy, dict):
        for site, species in occupancy.items():
            shares = list(species.values())
            if len(shares) != 1 or abs(shares[0] - 1) >= OCCUPANCY_TOLERANCE:
                parts = ", ".join(f"{symbol} {share:g}" for symbol, share in species.items())
                return f"site {site} is partially occupied ({parts})"
    return ""


def _cell(atoms: Atoms) -> str:
    periodic = atoms.pbc
    if not periodic.any():
        return ""
    vectors = atoms.cell.array
    lengths = np.linalg.norm(vectors, axis=1)
    for axis in np.flatnonzero(periodic & (lengths == 0)):
        return f"it is periodic along lattice vector {axis}, which is zero"
    if not periodic.all():
        return ""
    volume = float(np.linalg.det(vectors))
    if volume < 0:
        return f"the cell is left-handed (volume {volume:.4g} Å^3)"
    faces = [np.linalg.norm(np.cross(vectors[i - 2], vectors[i - 1])) for i in range(3)]
    if volume == 0 or volume / max(faces) < THINNEST:
        return f"the cell is flat (volume {volume:.4g} Å^3)"
    return ""


def _contacts(atoms: Atoms) -> str:
    first, second, _, distance = pairs(atoms, CLOSEST)
    if len(distance) == 0:
        return ""
    at = int(np.argmin(distance))
    names = [f"{atoms.symbols[k]} {k}" for k in sorted((int(first[at]), int(second[at])))]
    return f"atoms {names[0]} and {names[1]} are {distance[at]:.3f} Å apart (less than {CLOSEST})"
