"""Which structures are equal: labels of symmetry first, pymatgen's StructureMatcher among equals.

A label (formula, atoms of the primitive cell, space group, sizes of the orbits) costs about a
millisecond, and only structures of one label are compared.  Structures whose symmetry is hidden
by noise have other labels: they are relaxed, and found equal afterwards.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import cache, cached_property
from typing import TYPE_CHECKING, Any

import numpy as np

from dpa4sim.screen.symmetry import SYMPREC, dataset

if TYPE_CHECKING:
    from ase import Atoms
    from pymatgen.core import Structure

MIRRORED = {78: 76, 95: 91, 96: 92, 145: 144, 153: 151, 154: 152, 170: 169, 172: 171}
MIRRORED |= {179: 178, 181: 180, 213: 212}
"""Space groups that are each other's mirror image: left and right quartz are one structure."""

LENGTH, SITE, ANGLE = 0.2, 0.3, 5.0
"""Tolerances of the matcher, its own defaults: relative, (volume / atom)^(1/3), degrees."""

VOLUME = 0.05
"""Relative difference up to which volumes are equal where `scale` is off."""


@dataclass(frozen=True)
class Fingerprint:
    """What the comparison needs of a structure.

    Args:
        label: equal for equal structures, unless their symmetry is hidden by noise.
        lattice: of the primitive cell, Å, rows.
        fractional: positions in it.
        numbers: atomic numbers.
    """

    label: tuple[Any, ...]
    lattice: np.ndarray
    fractional: np.ndarray
    numbers: np.ndarray

    @property
    def volume(self) -> float:
        """Å^3 per atom."""
        return abs(float(np.linalg.det(self.lattice))) / len(self.numbers)

    @cached_property
    def structure(self) -> Structure:
        """Niggli-reduced, for the matcher, which would do it again for each comparison."""
        from pymatgen.core import Structure

        cell = Structure(self.lattice, self.numbers.tolist(), self.fractional)
        return cell.get_reduced_structure()


def fingerprint(atoms: Atoms, symprec: float = SYMPREC) -> Fingerprint | None:
    """The label and the primitive cell; None for what is not periodic in three directions.

    Args:
        symprec: Å.
    """
    found = dataset(atoms, symprec)
    if found is None:
        return None
    cell = found.prim_std_cell
    numbers = np.array(cell.numbers)
    label = (
        _formula(numbers),
        len(numbers),
        MIRRORED.get(found.number, found.number),
        _orbits(atoms, found),
    )
    return Fingerprint(label, np.array(cell.basis), np.array(cell.positions), numbers)


@dataclass
class Known:
    """The distinct structures so far, by label; feed it one by one.

    Args:
        scale: whether structures that differ in size only are equal, as before a relaxation.
    """

    scale: bool = True
    found: dict[tuple[Any, ...], list[tuple[int, Fingerprint]]] = field(
        default_factory=lambda: defaultdict(list)
    )

    def earlier(self, index: int, atoms: Atoms) -> int | None:
        """The index of the first equal structure; None for a new one, which is remembered."""
        print_ = fingerprint(atoms)
        if print_ is None:
            return None
        bucket = self.found[print_.label]
        for known, other in bucket:
            if equal(print_, other, scale=self.scale):
                return known
        bucket.append((index, print_))
        return None


def duplicates(structures: Iterable[Atoms], *, scale: bool = True) -> list[int | None]:
    """For each structure the index of the first equal one before it, None where there is none.

    Molecules, wires and slabs are never equal to anything.

    Args:
        scale: whether structures that differ in size only are equal, as before a relaxation.
    """
    known = Known(scale)
    return [known.earlier(index, atoms) for index, atoms in enumerate(structures)]


def equal(first: Fingerprint, second: Fingerprint, *, scale: bool = True) -> bool:
    """Whether two structures are the same crystal, mirrored or not."""
    if first.label != second.label:
        return False
    if not scale and abs(first.volume - second.volume) > VOLUME * second.volume:
        return False
    if _identical(first, second):
        return True
    matcher = _matcher(scale)
    return bool(matcher.fit(first.structure, second.structure, skip_structure_reduction=True))


def _identical(first: Fingerprint, second: Fingerprint) -> bool:
    """Equal to the last digits: a copy, which needs no matcher."""
    return (
        np.array_equal(first.numbers, second.numbers)
        and np.allclose(first.lattice, second.lattice, rtol=0, atol=1e-4)
        and np.allclose(first.fractional, second.fractional, rtol=0, atol=1e-5)
    )


@cache
def _matcher(scale: bool) -> Any:
    from pymatgen.analysis.structure_matcher import StructureMatcher

    return StructureMatcher(
        ltol=LENGTH, stol=SITE, angle_tol=ANGLE, primitive_cell=False, scale=scale
    )


def _formula(numbers: np.ndarray) -> tuple[tuple[int, int], ...]:
    """Atomic numbers and how many of each, reduced."""
    kinds, counts = np.unique(numbers, return_counts=True)
    counts = counts // np.gcd.reduce(counts)
    return tuple(zip(kinds.tolist(), counts.tolist(), strict=True))


def _orbits(atoms: Atoms, found: Any) -> tuple[tuple[int, int], ...]:
    """Element and size of each set of equivalent atoms, in the primitive cell.

    Letters of Wyckoff positions depend on the choice of the origin; sizes do not.
    """
    orbits, first = np.unique(found.orbits, return_index=True)
    prim = np.array(found.mapping_std_prim)
    of_prim = {int(p): int(o) for p, o in zip(prim, found.orbits, strict=True)}
    sizes = {int(orbit): 0 for orbit in orbits}
    for orbit in of_prim.values():
        sizes[orbit] += 1
    kinds = {int(o): int(atoms.numbers[i]) for o, i in zip(orbits, first, strict=True)}
    return tuple(sorted((kinds[orbit], size) for orbit, size in sizes.items()))
