"""How large the cell of a decorated prototype is, and whether its ions fit.

With charges the mean bond between cation and anion gets the sum of their radii; each cation may be
off that mean by so much only.  Without charges volumes of the atoms add up (Zen's law).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

import numpy as np
from ase.data import atomic_numbers, covalent_radii

from dpa4sim.screen.contacts import pairs
from dpa4sim.screen.element_table import atomic_volume
from dpa4sim.screen.ions import crystal_radius, electronegativity
from dpa4sim.screen.prototypes import prototype, skeleton

REACH = 7.0
"""Å; holds the first shells of every prototype at the lattice of its known compound."""

SHELL = 1.25
"""A cation's anions are within so many times the distance of the nearest."""

SOFT_ANIONS = frozenset(["Cl", "Br", "I", "S", "Se", "Te"])
SOFT_CATION = 1.6
SOFTNESS = 0.97
"""Bonds of these with cations of at least this electronegativity are shorter than their radii say,
by 3 % in the mean of the crystals inside the package."""

SHARED = 0.18
"""Å by which an anion is smaller for each bond to its own kind, as in pyrite and skutterudite."""


@dataclass(frozen=True)
class Bonds:
    """Kinds of bonds of a prototype.

    Args:
        cation, anion: slots.
        distance: Å, at the lattice of the known compound.
        around_cation, around_anion: coordination numbers.
    """

    cation: np.ndarray
    anion: np.ndarray
    distance: np.ndarray
    around_cation: np.ndarray
    around_anion: np.ndarray


@dataclass(frozen=True)
class Fit:
    """The size of a decorated prototype.

    Args:
        scale: of the lattice of the known compound, no unit.
        charges: slot by slot; empty where the volume is that of the atoms.
        strain: the largest relative difference of a cation's bonds from the mean; 0 without.
        contact: the shortest distance of two anions in sums of their radii, inf without charges.
    """

    scale: float
    charges: tuple[float, ...]
    strain: float
    contact: float


@cache
def bonds(name: str) -> Bonds:
    """The bonds between cations and anions of a prototype."""
    atoms, slots = skeleton(name)
    slot = np.array(slots)
    sign = np.array([each.sign for each in prototype(name).slots])[slot]
    first, second, _, distance = pairs(atoms, REACH)
    opposite = (sign[first] > 0) & (sign[second] < 0)
    first, second, distance = first[opposite], second[opposite], distance[opposite]
    nearest = np.full(len(atoms), np.inf)
    np.minimum.at(nearest, first, distance)
    near = distance < SHELL * nearest[first]
    first, second, distance = first[near], second[near], distance[near]
    around = np.bincount(first, minlength=len(atoms))
    back = np.bincount(second, minlength=len(atoms))
    return Bonds(slot[first], slot[second], distance, around[first], back[second])


@cache
def anion_contacts(name: str) -> dict[tuple[int, int], float]:
    """The shortest distance (Å) between two anion slots that are not bonded."""
    atoms, slots = skeleton(name)
    parts = prototype(name).slots
    shortest: dict[tuple[int, int], float] = {}
    found = pairs(atoms, REACH)
    for i, j, d in zip(found.first, found.second, found.distance, strict=True):
        a, b = slots[i], slots[j]
        both = parts[a].sign < 0 and parts[b].sign < 0
        if both and not (a == b and parts[a].bonded):
            shortest[a, b] = min(float(d), shortest.get((a, b), np.inf))
    return shortest


def fit_ions(name: str, elements: Sequence[str], charges: Sequence[float]) -> Fit | None:
    """The lattice that gives each bond the sum of its radii, weighted by bond strength.

        scale = sum_b w_b (R_cation + R_anion) / d_b,   w_b ~ charge / coordination number

    Args:
        name: of the prototype.
        elements: slot by slot.
        charges: slot by slot.

    Returns:
        None where an ion has no radius.
    """
    shell, parts = bonds(name), prototype(name).slots
    ratio, weight = np.empty(len(shell.distance)), np.empty(len(shell.distance))
    for k in range(len(ratio)):
        a, b = int(shell.cation[k]), int(shell.anion[k])
        cation = crystal_radius(elements[a], charges[a], int(shell.around_cation[k]))
        anion = crystal_radius(elements[b], charges[b], int(shell.around_anion[k]))
        if cation is None or anion is None:
            return None
        anion -= SHARED * parts[b].bonded
        ratio[k] = (cation + anion) * _softness(elements[a], elements[b]) / shell.distance[k]
        weight[k] = charges[a] / shell.around_cation[k]
    scale = float(np.average(ratio, weights=weight))
    means = [ratio[shell.cation == slot].mean() for slot in np.unique(shell.cation)]
    size = [crystal_radius(e, q, 6) or np.nan for e, q in zip(elements, charges, strict=True)]
    contacts = [scale * d / (size[a] + size[b]) for (a, b), d in anion_contacts(name).items()]
    strain = max(abs(mean / scale - 1) for mean in means)
    return Fit(scale, tuple(charges), float(strain), min(contacts, default=np.inf))


def fit_atoms(name: str, elements: Sequence[str]) -> Fit:
    """The lattice whose volume is that of its atoms."""
    atoms, slots = skeleton(name)
    volume = sum(atomic_volume(elements[slot]) for slot in slots)
    return Fit(float(np.cbrt(volume / atoms.get_volume())), (), 0.0, np.inf)


def shortest_contact(name: str, elements: Sequence[str], scale: float) -> float:
    """The shortest distance between two atoms in sums of their covalent radii."""
    radii = np.array([covalent_radii[atomic_numbers[element]] for element in elements])
    first, second, distance = _pairs(name)
    return float((scale * distance / (radii[first] + radii[second])).min())


@cache
def _pairs(name: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Slots and the shortest distance (Å) of each kind of pair."""
    atoms, slots = skeleton(name)
    shortest: dict[tuple[int, int], float] = {}
    found = pairs(atoms, REACH)
    for i, j, d in zip(found.first, found.second, found.distance, strict=True):
        pair = slots[i], slots[j]
        shortest[pair] = min(float(d), shortest.get(pair, np.inf))
    first, second = np.array(list(shortest)).T
    return first, second, np.array(list(shortest.values()))


def _softness(cation: str, anion: str) -> float:
    soft = anion in SOFT_ANIONS and electronegativity(cation) >= SOFT_CATION
    return SOFTNESS if soft else 1.0
