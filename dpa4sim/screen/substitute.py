"""The user's own structures with other elements in them."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import permutations
from typing import TYPE_CHECKING

import numpy as np

from dpa4sim.screen.candidate import Candidate
from dpa4sim.screen.decorate import elements_of
from dpa4sim.screen.ions import (
    NOBLE_GASES,
    STRONG_ANIONS,
    anion_charge,
    cation_charges,
    crystal_radius,
)

if TYPE_CHECKING:
    from ase import Atoms

ANY_COORDINATION = 6
"""At which radii of ions are compared."""


@dataclass(frozen=True)
class Exchange:
    """Which element takes the place of which, and the charge of each element before.

    Args:
        elements: old to new.
        charges: old to charge; empty for a structure without charges.
    """

    elements: dict[str, str]
    charges: dict[str, float]


def substitute(
    structures: Iterable[Atoms], system: str | Sequence[str], *, subsystems: bool = True
) -> Iterator[Candidate]:
    """The structures with the elements of a chemical system, named like LiCoO2-from-NaFeO2-0.

    An element is replaced by one that takes the same charge, anions by anions; in a structure that
    has no charges a metal replaces a metal, and an element of the p block one of the p block.  An
    element that is in the system already may stay.  The cell grows with the radii.

    Args:
        structures: none may have more elements than the system.
        system: elements joined by hyphens.
        subsystems: whether candidates may lack some of the elements.

    Raises:
        ConfigError: the system is not known.
    """
    elements = elements_of(system)
    return (
        candidate
        for number, atoms in enumerate(structures)
        for candidate in _substitutions(atoms, number, elements, subsystems)
    )


def _substitutions(
    atoms: Atoms, number: int, elements: tuple[str, ...], subsystems: bool
) -> Iterator[Candidate]:
    before = _formula(atoms)
    seen: Counter[str] = Counter()
    for exchange in exchanges(atoms, elements):
        if not subsystems and len(exchange.elements) < len(elements):
            continue
        found = exchanged(atoms, exchange)
        name = f"{_formula(found)}-from-{before}-{number}"
        seen[name] += 1
        if seen[name] > 1:  # the same formula with other elements in each other's places
            name = f"{name}-{seen[name]}"
        yield Candidate(name, f"structure {number} ({before})", found)


def exchanges(atoms: Atoms, elements: Sequence[str]) -> Iterator[Exchange]:
    """All that keep the charges; none for more elements than there are.

    Args:
        elements: of the chemical system.
    """
    old = sorted(set(atoms.get_chemical_symbols()))
    counts = [atoms.get_chemical_symbols().count(element) for element in old]
    charges = oxidation_numbers(tuple(old), tuple(counts))
    for new in permutations(elements, len(old)):
        if all(
            before == after or _may_replace(before, after, charges.get(before))
            for before, after in zip(old, new, strict=True)
        ):
            yield Exchange(dict(zip(old, new, strict=True)), charges)


@cache
def oxidation_numbers(elements: tuple[str, ...], counts: tuple[int, ...]) -> dict[str, float]:
    """The likeliest charges by pymatgen, if they add up to nothing; empty where there are none."""
    from pymatgen.core import Composition

    if len(elements) == 1:
        return {}
    shared = np.gcd.reduce(counts)
    parts = {e: int(n // shared) for e, n in zip(elements, counts, strict=True)}
    guesses = Composition(parts).oxi_state_guesses()
    return dict(guesses[0]) if guesses else {}


def exchanged(atoms: Atoms, exchange: Exchange) -> Atoms:
    """The structure with its elements exchanged, its cell (Å) scaled by the sum of the radii."""
    from ase import Atoms

    symbols = atoms.get_chemical_symbols()
    new = [exchange.elements[symbol] for symbol in symbols]
    before = sum(_radius(s, exchange.charges.get(s)) for s in symbols)
    after = sum(_radius(s, exchange.charges.get(o)) for o, s in zip(symbols, new, strict=True))
    return Atoms(
        new,
        scaled_positions=atoms.get_scaled_positions(wrap=False),
        cell=atoms.cell * (after / before),
        pbc=atoms.pbc,
    )


def _may_replace(before: str, after: str, charge: float | None) -> bool:
    from pymatgen.core import Element

    old, new = Element(before), Element(after)
    if after in NOBLE_GASES:
        return False
    if charge is None:
        strong = bool({before, after} & STRONG_ANIONS)
        return old.is_metal == new.is_metal and not strong
    if charge < 0:
        return anion_charge(after) == anion_charge(before)
    states = cation_charges(after)
    metallic = new.is_metal or new.is_metalloid or not old.is_metal
    return metallic and _takes(states, charge)


def _takes(states: Sequence[int], charge: float) -> bool:
    """A charge that is a state, or between two neighbouring ones."""
    return charge in states or {math.floor(charge), math.ceil(charge)} <= set(states)


def _formula(atoms: Atoms) -> str:
    from pymatgen.core import Composition

    return str(Composition(atoms.symbols.formula.count()).reduced_formula)


def _radius(element: str, charge: float | None) -> float:
    from ase.data import atomic_numbers, covalent_radii

    radius = None if charge is None else crystal_radius(element, charge, ANY_COORDINATION)
    return float(covalent_radii[atomic_numbers[element]]) if radius is None else radius
