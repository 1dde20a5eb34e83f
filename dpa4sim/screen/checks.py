"""What became of a candidate: collapsed, exploded, fell apart, or changed its symmetry."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np

from dpa4sim.screen.contacts import relative_pairs
from dpa4sim.screen.symmetry import SYMPREC, space_group

if TYPE_CHECKING:
    from ase import Atoms

COLLAPSED_CONTACT = 0.6
"""Sums of covalent radii; the shortest real bond, V=O, has 0.72."""

COLLAPSED_VOLUME = 0.4
EXPLODED_VOLUME = 2.0
"""Of the start; volumes guessed from radii are within 25 %."""

BONDED = 1.25
APART = 1.6
"""Sums of covalent radii.  At the start atoms within the first are bonded, at the end those within
the second still are: what is in between, such as the gaps of layers, is nobody's fracture."""


def post_checks(
    start: Atoms,
    relaxed: Atoms,
    *,
    symprec: float = SYMPREC,
    space_groups: tuple[int, int] | None = None,
) -> list[str]:
    """Flags of a relaxed structure, among collapsed, exploded, fragmented, symmetry_changed.

    Args:
        symprec: of the space groups, Å.
        space_groups: of start and end where they are known already.
    """
    checks: dict[str, Callable[[], bool]] = {
        "collapsed": lambda: _collapsed(start, relaxed),
        "exploded": lambda: _volume_ratio(start, relaxed) > EXPLODED_VOLUME,
        "fragmented": lambda: _fragmented(start, relaxed),
    }
    flags = [name for name, holds in checks.items() if holds()]
    before, after = space_groups or (space_group(start, symprec), space_group(relaxed, symprec))
    return [*flags, "symmetry_changed"] if before != after else flags


def _volume_ratio(start: Atoms, relaxed: Atoms) -> float:
    """1 for what is not a crystal."""
    if not (start.pbc.all() and relaxed.pbc.all()):
        return 1.0
    return float(abs(relaxed.cell.volume) / abs(start.cell.volume))


def _collapsed(start: Atoms, relaxed: Atoms) -> bool:
    if _volume_ratio(start, relaxed) < COLLAPSED_VOLUME:
        return True
    return len(relative_pairs(relaxed, COLLAPSED_CONTACT).first) > 0


def _fragmented(start: Atoms, relaxed: Atoms) -> bool:
    """More pieces, or pieces that run along fewer directions, than at the start."""
    pieces_before, directions_before = connectivity(start, BONDED)
    pieces_after, directions_after = connectivity(relaxed, APART)
    return pieces_after > pieces_before or directions_after < directions_before


def connectivity(atoms: Atoms, reach: float) -> tuple[int, int]:
    """How many pieces a structure has per cell, and along how many directions its pieces run.

    Walking a piece's bonds from an atom back to one of its images gives lattice vectors; the rank
    of all of them is the number of directions: 3 for a framework, 2 for layers, 1 for chains, 0 for
    molecules.

    Args:
        reach: atoms within so many sums of their covalent radii are bonded.
    """
    first, second, shift, _ = relative_pairs(atoms, reach)
    neighbours: list[list[int]] = [[] for _ in range(len(atoms))]
    for bond, atom in enumerate(first.tolist()):
        neighbours[atom].append(bond)
    image = np.zeros((len(atoms), 3), dtype=int)
    seen = np.zeros(len(atoms), dtype=bool)
    pieces, directions = 0, 0
    for root in range(len(atoms)):
        if seen[root]:
            continue
        pieces += 1
        seen[root], members = True, [root]
        for atom in members:
            for bond in neighbours[atom]:
                other = int(second[bond])
                if not seen[other]:
                    seen[other] = True
                    image[other] = image[atom] + shift[bond]
                    members.append(other)
        inside = np.isin(first, members)
        loops = image[first[inside]] + shift[inside] - image[second[inside]]
        rank = int(np.linalg.matrix_rank(loops)) if len(loops) else 0
        directions = max(directions, rank)
    return pieces, directions
