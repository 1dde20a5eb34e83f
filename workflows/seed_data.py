"""Compounds for the shipped model's training set: known crystals with other elements in them.

    python workflows/seed_data.py [SEED]

prints how many compounds the recipe holds.  `seed_labels.py` relaxes them coarsely, perturbs them
with `seed_frames.py` and labels them.  Needs ase, pymatgen and the neighbouring `demo_crystals.py`;
no potential.  Everything is a function of the seed.
"""

import sys
import zlib
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cache
from itertools import product

import numpy as np
from ase import Atoms
from ase.data import atomic_numbers, chemical_symbols, covalent_radii
from ase.neighborlist import neighbor_list
from demo_crystals import Crystal, build_prototype, primitive_cell, read_table
from pymatgen.core import Composition

HELD_OUT = 0.06  # of the formulas to valid and to test each
CLOSEST = 0.7  # shortest contact of a starting cell, in sums of covalent radii
DRAWS = ((4, 30), (8, 22), (14, 14), (24, 4), (1000, 0))
"""Atoms of a crystal at most, decorations of it; twice as many with three elements or more."""

FAMILIES = {
    1: "Li Na K Rb Cs Cu Ag Tl",
    2: "Be Mg Ca Sr Ba Zn Cd Hg Sn Pb V Cr Mn Fe Co Ni Cu Pd Pt Eu Yb",
    3: "B Al Ga In Tl Sc Y La Ce Pr Nd Sm Eu Gd Tb Dy Ho Er Tm Yb Lu Ti V Cr Mn Fe Co Ru Rh Ir Au "
    "As Sb Bi U",
    4: "C Si Ge Sn Pb Ti Zr Hf V Nb Ta Mo W Mn Re Ru Os Rh Ir Pd Pt Ce Th U S Se Te",
    5: "V Nb Ta Mo W Re P As Sb Bi U",
    6: "Cr Mo W Re Os S Se Te U",
    -1: "F Cl Br I H",
    -2: "O S Se Te",
    -3: "N P As Sb Bi",
    -4: "C Si Ge B",
}
"""Oxidation number -> elements that take each other's place in a crystal."""

METALS, NONMETALS = map(
    str.split,
    (
        "Li Be Na Mg Al K Ca Sc Ti V Cr Mn Fe Co Ni Cu Zn Ga Rb Sr Y Zr Nb Mo Ru Rh Pd Ag Cd In Sn "
        "Cs Ba La Ce Pr Nd Sm Eu Gd Tb Dy Ho Er Tm Yb Lu Hf Ta W Re Os Ir Pt Au Hg Tl Pb Bi Th U",
        "H B C N O F Si P S Cl Ge As Se Br Sb Te I",
    ),
)
DIATOMIC = {"H": 0.75, "N": 1.11, "O": 1.23, "F": 1.42, "Cl": 2.0, "Br": 2.3, "I": 2.7}
"""Bond lengths of the molecules in Å: these elements' references are not atoms in a lattice."""

PACKED = ("fcc", "bcc", "hcp", "dhcp", "diamond", "beta_tin")
BONDED = ("diamond", "graphite", "arsenic", "black_phosphorus", "selenium", "fcc", "bcc")


@dataclass(frozen=True)
class Compound:
    """A prototype and its decoration; `atoms` is the starting cell (Å), not yet relaxed."""

    label: str
    atoms: Atoms
    split: str


def compound_label(prototype: str, atoms: Atoms) -> str:
    """`prototype:formula` with the reduced formula; one label is one compound."""
    return f"{prototype}:{Composition(atoms.get_chemical_formula()).reduced_formula}"


def split_of(label: str, known: set[str]) -> str:
    """The split of every frame of a compound.

    All forms of a formula go together, so that none of a held-out formula was trained on; the forms
    of an element are drawn by themselves, for each element must be known.

    Args:
        known: formulas of the demo crystals, which all train.
    """
    formula = label.partition(":")[2]
    if formula in known:
        return "train"
    key = label if len(Composition(formula)) == 1 else formula
    draw = (zlib.crc32(key.encode()) % 10_000) / 10_000
    if draw < HELD_OUT:
        return "valid"
    return "test" if draw < 2 * HELD_OUT else "train"


@dataclass(frozen=True)
class Archetype:
    """A known crystal with its elements taken out.

    Args:
        atoms: primitive cell (Å) whose atomic number minus one is the slot.
        elements: of the known crystal, slot by slot.
        first, second: slots of every pair of atoms within 5.5 Å.
        distance: Å.
    """

    atoms: Atoms
    elements: tuple[str, ...]
    first: np.ndarray
    second: np.ndarray
    distance: np.ndarray


@cache
def archetype_of(crystal: Crystal) -> Archetype:
    """The archetype of a demo crystal."""
    placeholders = tuple(chemical_symbols[1 : 1 + len(crystal.elements)])
    atoms = primitive_cell(
        build_prototype(crystal.prototype, placeholders, crystal.lattice, crystal.free)
    )
    slot = atoms.numbers - 1
    first, second, distance = neighbor_list("ijd", atoms, 5.5)
    return Archetype(atoms, crystal.elements, slot[first], slot[second], distance)


def contacts(archetype: Archetype, elements: tuple[str, ...]) -> np.ndarray:
    """Its distances in sums of the covalent radii that these elements have."""
    radii = np.array([covalent_radii[atomic_numbers[element]] for element in elements])
    return archetype.distance / (radii[archetype.first] + radii[archetype.second])


def decorate(archetype: Archetype, elements: tuple[str, ...]) -> Atoms | None:
    """The archetype with other elements, scaled so that its contacts fit the radii as before.

    Returns:
        None where the radii differ so much that a pair is closer than `CLOSEST`.
    """
    old, new = contacts(archetype, archetype.elements), contacts(archetype, elements)
    near = old < 1.15 * old.min()
    ratio = (archetype.distance / new)[near].mean() / (archetype.distance / old)[near].mean()
    if ratio * new.min() < CLOSEST:
        return None
    atoms = archetype.atoms.copy()
    numbers = np.array([atomic_numbers[element] for element in elements])
    atoms.numbers = numbers[archetype.atoms.numbers - 1]
    atoms.set_cell(archetype.atoms.cell[:] * ratio, scale_atoms=True)
    return atoms


def neutral_charges(archetype: Archetype) -> list[tuple[int, ...]]:
    """Oxidation numbers of the slots that add up to nothing; none for alloys."""
    counts = Counter(archetype.atoms.numbers.tolist())
    n_atoms = [counts[slot + 1] for slot in range(len(archetype.elements))]
    states = [
        [charge for charge, family in FAMILIES.items() if element in family.split()]
        for element in archetype.elements
    ]
    return [
        charges
        for charges in product(*states)
        if sum(n * q for n, q in zip(n_atoms, charges, strict=True)) == 0
    ]


def candidates(archetype: Archetype) -> list[tuple[list[str], ...]]:
    """For each assignment of charges the elements that may fill each slot.

    Without charges a metal may be any metal, and another element one of its column.
    """
    charged = neutral_charges(archetype)
    if charged:
        return [tuple(FAMILIES[q].split() for q in charges) for charges in charged]
    column = [
        METALS
        if element in METALS
        else next(f.split() for q, f in FAMILIES.items() if q < 0 and element in f.split())
        for element in archetype.elements
    ]
    return [tuple(column)]


def demo_compounds() -> Iterator[tuple[str, Atoms]]:
    """The demo crystals in their primitive cells at their measured volume."""
    for crystal in read_table():
        atoms = primitive_cell(
            build_prototype(crystal.prototype, crystal.elements, crystal.lattice, crystal.free)
        )
        yield crystal.prototype, atoms


def decorated_compounds(seed: int) -> Iterator[tuple[str, Atoms]]:
    """So many decorations of each demo crystal of two elements or more as `DRAWS` says."""
    for number, crystal in enumerate(read_table()):
        archetype = archetype_of(crystal)
        if len(crystal.elements) == 1:
            continue
        rng = np.random.default_rng([seed, number])
        options = candidates(archetype)
        draws = next(draws for largest, draws in DRAWS if len(archetype.atoms) <= largest)
        for _ in range(draws * (2 if len(crystal.elements) > 2 else 1)):
            slots = options[rng.integers(len(options))]
            chosen = tuple(str(rng.choice(slot)) for slot in slots)
            if len(set(chosen)) == len(chosen):
                atoms = decorate(archetype, chosen)
                if atoms is not None:
                    yield crystal.prototype, atoms


def element_compounds() -> Iterator[tuple[str, Atoms]]:
    """Every element in several structures."""
    archetypes: dict[str, Crystal] = {}
    for crystal in read_table():
        archetypes.setdefault(crystal.prototype, crystal)
    for element in (*METALS, *NONMETALS):
        for prototype in PACKED if element in METALS else BONDED:
            atoms = decorate(archetype_of(archetypes[prototype]), (element,))
            assert atoms is not None
            yield prototype, atoms
    for element, bond in DIATOMIC.items():
        yield "diatomic", molecular_crystal(element, bond)


def molecular_crystal(element: str, bond: float) -> Atoms:
    """Molecules of two atoms on an fcc lattice, along its body diagonal; bond length in Å."""
    diagonal = np.full(3, bond / np.sqrt(3) / 2)
    apart = bond + 2 * covalent_radii[atomic_numbers[element]] + 1.5
    cell = apart / np.sqrt(2) * np.array([[0, 1, 1], [1, 0, 1], [1, 1, 0]])
    return Atoms([element] * 2, positions=[diagonal, -diagonal], cell=cell, pbc=True)


def seed_compounds(seed: int) -> list[Compound]:
    """All compounds, once each, shuffled; every demo crystal is among them."""
    demo = list(demo_compounds())
    known = {compound_label("", atoms)[1:] for _, atoms in demo}
    unique: dict[str, Compound] = {}
    for prototype, atoms in (*demo, *element_compounds(), *decorated_compounds(seed)):
        label = compound_label(prototype, atoms)
        if label not in unique:
            unique[label] = Compound(label, atoms, split_of(label, known))
    listed = list(unique.values())
    order = np.random.default_rng(seed).permutation(len(listed))
    return [listed[index] for index in order]


def elements_of(compounds: Iterable[Compound]) -> list[str]:
    """The elements that occur, by atomic number."""
    found = {symbol for compound in compounds for symbol in compound.atoms.get_chemical_symbols()}
    return sorted(found, key=atomic_numbers.__getitem__)


def main(arguments: list[str]) -> None:
    """Print the size of the recipe."""
    compounds = seed_compounds(int(arguments[0]) if arguments else 0)
    sizes = [len(compound.atoms) for compound in compounds]
    splits = dict(Counter(compound.split for compound in compounds))
    of_elements = Counter(len(set(compound.atoms.numbers)) for compound in compounds)
    print(f"{len(compounds)} compounds, {np.mean(sizes):.1f} atoms on average, splits {splits}")
    print(f"number of elements: {dict(sorted(of_elements.items()))}")
    names = elements_of(compounds)
    print(f"{len(names)} elements: {' '.join(names)}")


if __name__ == "__main__":
    main(sys.argv[1:])
