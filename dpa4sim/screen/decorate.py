"""The prototypes with the elements of a chemical system in their slots."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import reduce
from itertools import pairwise, product
from math import gcd

import numpy as np
from ase import Atoms
from pymatgen.core import Element

from dpa4sim.errors import ConfigError
from dpa4sim.screen.candidate import Candidate
from dpa4sim.screen.dedup import Known
from dpa4sim.screen.fit import Fit, fit_atoms, fit_ions, shortest_contact
from dpa4sim.screen.ions import (
    NOBLE_GASES,
    STRONG_ANIONS,
    anion_charge,
    cation_charges,
    electronegativity,
)
from dpa4sim.screen.prototypes import Prototype, Slot, prototype, prototypes, skeleton

OXIDE_ONLY = frozenset(["C", "N", "S", "Cl", "Br", "I"])
"""Cations with oxygen or fluorine only, as in carbonates and sulfates."""

OXIDISERS = frozenset(("O", "F"))


@dataclass(frozen=True)
class Sanity:
    """How far a decoration may be from what is known to exist.

    The crystals inside the package pass with room to spare: their largest strain is 0.12
    (ringwoodite), their shortest anion contact 0.83 (Sb2Te3), their shortest contact 0.69 (V2O5).

    Args:
        strain: of a cation's bonds, relative to the mean bond of the structure.
        anion_contact: shortest distance of two anions, in sums of their radii.
        contact: shortest distance of two atoms, in sums of their covalent radii.
    """

    strain: float = 0.2
    anion_contact: float = 0.8
    contact: float = 0.6


def elements_of(system: str | Sequence[str]) -> tuple[str, ...]:
    """The elements of a chemical system such as "Li-Fe-O", in alphabetical order.

    Raises:
        ConfigError: one is no element, or there is none.
    """
    given = [part.strip() for part in (system.split("-") if isinstance(system, str) else system)]
    wrong = [symbol for symbol in given if not Element.is_valid_symbol(symbol)]
    if wrong or not given:
        raise ConfigError(
            f"{system!r} is no chemical system: {', '.join(map(repr, wrong)) or 'nothing'} is no "
            "element. Join symbols of elements by hyphens, such as Li-Fe-O."
        )
    return tuple(sorted(set(given)))


def decorate(
    system: str | Sequence[str],
    *,
    names: Iterable[str] | None = None,
    subsystems: bool = True,
    max_atoms: int = 80,
    sanity: Sanity | None = None,
) -> Iterator[Candidate]:
    """Candidates of a chemical system, named like LiFeO2-delafossite, in a fixed order.

    A slot with a sign takes elements so that the charges add up to nothing, over the oxidation
    states of pymatgen; alloys, carbides and their like take the prototypes without charges in every
    composition.  The volume is that of the radii, or the sum of those of the atoms.

    Args:
        system: elements joined by hyphens.
        names: of the prototypes; all where none is given.
        subsystems: whether candidates may lack some of the elements (they have two or more).
        max_atoms: of the primitive cell.
        sanity: how well the ions have to fit.

    Raises:
        ConfigError: the system or a prototype is not known.
    """
    elements = elements_of(system)
    limits = sanity or Sanity()
    chosen = list(prototypes()) if names is None else [prototype(name).name for name in names]
    return (
        candidate
        for name in chosen
        if len(skeleton(name)[1]) <= max_atoms
        for candidate in _decorations(prototype(name), elements, subsystems, limits)
    )


def _decorations(
    found: Prototype, elements: tuple[str, ...], subsystems: bool, limits: Sanity
) -> Iterator[Candidate]:
    least = 2 if subsystems else len(elements)
    fits = {
        assigned: fit
        for assigned in assignments(found, elements)
        if len(set(assigned)) >= least and (fit := fit_of(found, assigned, limits)) is not None
    }
    # exchanging elements may change nothing (B2) or next to nothing (LiCoO2): the better fit stays
    known = Known()
    kept = {}
    for assigned in sorted(fits, key=lambda a: (not fits[a].charges, round(fits[a].strain, 6))):
        atoms = decorated(found.name, assigned, fits[assigned].scale)
        if known.earlier(0, atoms) is None:
            kept[assigned] = atoms
    for assigned in fits:
        if assigned in kept:
            label = f"{formula_of(found.name, assigned)}-{found.name}"
            yield Candidate(label, f"prototype {found.name}", kept[assigned])


def assignments(found: Prototype, elements: Sequence[str]) -> Iterator[tuple[str, ...]]:
    """Elements slot by slot: different ones, but for slots that may hold the same."""
    for assigned in product(elements, repeat=len(found.slots)):
        repeated = [k for k, element in enumerate(assigned) if assigned.count(element) > 1]
        if all(k in found.mixed for k in repeated):
            yield assigned


def decorated(name: str, elements: Sequence[str], scale: float) -> Atoms:
    """The primitive cell (Å) of a prototype with these elements; scale without unit."""
    known, slots = skeleton(name)
    return Atoms(
        [elements[slot] for slot in slots],
        scaled_positions=known.get_scaled_positions(),
        cell=known.cell * scale,
        pbc=True,
    )


def formula_of(name: str, elements: Sequence[str]) -> str:
    """The formula in the order of the slots, reduced: LiFeO2, Fe3O4."""
    _, slots = skeleton(name)
    counts: dict[str, int] = {}
    for slot, element in enumerate(elements):
        counts[element] = counts.get(element, 0) + slots.count(slot)
    shared = reduce(gcd, counts.values())
    return "".join(
        symbol + (str(n // shared) if n > shared else "") for symbol, n in counts.items()
    )


def fit_of(found: Prototype, elements: Sequence[str], limits: Sanity) -> Fit | None:
    """The best size of a decoration, None where it makes no sense."""
    fits = [fit_ions(found.name, elements, q) for q in neutral_charges(found, elements)]
    sound = [
        fit
        for fit in fits
        if fit is not None and fit.strain <= limits.strain and fit.contact >= limits.anion_contact
    ]
    if sound:
        best = min(sound, key=lambda fit: fit.strain)
    elif not fits and _is_alloy(found, elements):
        best = fit_atoms(found.name, elements)
    else:
        return None
    closest = shortest_contact(found.name, elements, best.scale)
    return best if closest >= limits.contact else None


def neutral_charges(found: Prototype, elements: Sequence[str]) -> list[tuple[float, ...]]:
    """Charges slot by slot that add up to nothing; none for what has no charges.

    Where whole numbers do not, one cation may have the mean of two neighbouring states, as Mn in
    LiMn2O4.
    """
    if not found.ionic:
        return []
    _, slots = skeleton(found.name)
    counts = np.bincount(slots)
    states = [_states(slot, each) for slot, each in zip(found.slots, elements, strict=True)]
    if not _polar(found, elements):
        return []
    whole = [q for q in product(*states) if abs(np.dot(counts, q)) < 1e-9]
    if whole:
        return whole
    found_halves = []
    for k, slot in enumerate(found.slots):
        if slot.sign > 0:
            halves = [a + 0.5 for a, b in pairwise(states[k]) if b == a + 1]
            trial = [*states[:k], tuple(halves), *states[k + 1 :]]
            found_halves += [q for q in product(*trial) if abs(np.dot(counts, q)) < 1e-9]
    return found_halves


def _states(slot: Slot, element: str) -> tuple[float, ...]:
    if slot.sign > 0:
        return cation_charges(element) if element != "H" else ()
    charge = anion_charge(element)
    if charge is None or charge + slot.bonded >= 0:
        return ()
    return (charge + slot.bonded,)


def _polar(found: Prototype, elements: Sequence[str]) -> bool:
    """Whether every cation may be one beside every anion."""
    cations = {e for e, slot in zip(elements, found.slots, strict=True) if slot.sign > 0}
    anions = {e for e, slot in zip(elements, found.slots, strict=True) if slot.sign < 0}
    for cation in cations:
        if cation in OXIDE_ONLY and not anions <= OXIDISERS:
            return False
        if not Element(cation).is_metal and any(
            electronegativity(cation) >= electronegativity(anion) for anion in anions
        ):
            return False
    return True


def _is_alloy(found: Prototype, elements: Sequence[str]) -> bool:
    """Metals, with or without boron, carbon, silicon and the like."""
    distinct = set(elements)
    anions = [e for e, slot in zip(elements, found.slots, strict=True) if slot.sign < 0]
    return (
        (found.alloys == "*" or not found.ionic or (found.alloys == "~" and _p_block(anions)))
        and not distinct & (STRONG_ANIONS | NOBLE_GASES | {"H"})
        and any(Element(element).is_metal for element in distinct)
    )


def _p_block(elements: Sequence[str]) -> bool:
    return all(Element(element).block == "p" for element in elements)
