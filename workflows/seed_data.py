"""Structures for the seed training set: decorated prototype crystals and their perturbations.

    python workflows/seed_data.py [SEED]

prints how many compounds the recipe holds.  `seed_labels.py` relaxes them coarsely, perturbs them
with the functions below and labels them.  Needs ase, pymatgen and the neighbouring
`demo_crystals.py`; no potential.  Everything is a function of the seed.
"""

import sys
import zlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import lru_cache
from itertools import product

import numpy as np
from ase import Atoms
from ase.data import atomic_numbers, chemical_symbols, covalent_radii
from ase.neighborlist import neighbor_list
from demo_crystals import Crystal, build_prototype, primitive_cell, read_table
from pymatgen.core import Composition

MAX_ATOMS = 32  # atoms of a perturbed frame; the few larger demo cells are used as they are
MIN_CONTACT = 0.55  # shortest distance of a frame, in sums of covalent radii
HELD_OUT = 0.08  # of the decorations to valid and to test each: 5 % of all frames
MAX_PER_RULE = 16  # decorations kept per (prototype, rule)

PLUS1 = ["Li", "Na", "K", "Rb", "Cs", "Ag", "Cu"]
PLUS2 = ["Mg", "Ca", "Sr", "Ba", "Mn", "Fe", "Co", "Ni", "Cu", "Zn", "Cd", "Sn", "Pb", "V"]
PLUS3 = ["Al", "Ga", "In", "Y", "La", "Ti", "V", "Cr", "Mn", "Fe", "Co", "Sb"]
PLUS4 = ["Si", "Ge", "Sn", "Pb", "Ti", "Zr", "V", "Nb", "Mo", "W", "Mn", "Pt"]
HALIDES = ["F", "Cl", "Br", "I"]
CHALCOGENS = ["O", "S", "Se", "Te"]
PNICTOGENS = ["N", "P", "As", "Sb"]
EARLY = ["Ti", "Zr", "V", "Nb", "Cr", "Mo", "W", "Y", "La"]
LATE = ["Mn", "Fe", "Co", "Ni", "Pd", "Pt", "Cu", "Ag", "Au", "Zn"]
SI_TO_AS = ["P", "As", "Si", "Ge"]
MAIN_METALS = ["Al", "Mg", "Ca", "Sr", "Ba", "Li", "Na", "K", "Rb", "Cs", "Pb", "Cd", "In", "Sn"]
METALS = [*EARLY, *LATE, *MAIN_METALS]

# (prototype, candidates for each slot): every combination of different elements is a candidate
# and charge balance is the pairing of the lists.
RULES: tuple[tuple[str, tuple[list[str], ...]], ...] = (
    ("rocksalt", (PLUS1, HALIDES)),
    ("rocksalt", (PLUS2, CHALCOGENS)),
    ("rocksalt", ([*PLUS3, "Zr", "Nb"], PNICTOGENS)),
    ("rocksalt", (["Ti", "Zr", "V", "Nb", "W", "Cr"], ["C", "B"])),
    ("cesium_chloride", (PLUS1, HALIDES)),
    ("cesium_chloride", (["Ni", "Co", "Fe", "Pd", "Cu", "Ag", "Au", "Li", "Mg"], METALS)),
    ("zincblende", (["B", "Al", "Ga", "In"], PNICTOGENS)),
    ("zincblende", (["Mg", "Zn", "Cd", "Mn", "Fe"], CHALCOGENS)),
    ("zincblende", (["Cu", "Ag"], HALIDES)),
    ("zincblende", (["Si", "Ge", "Sn"], ["C", "Si", "Ge"])),
    ("wurtzite", (["B", "Al", "Ga", "In"], PNICTOGENS)),
    ("wurtzite", (["Mg", "Zn", "Cd", "Mn", "Co"], CHALCOGENS)),
    ("wurtzite", (["Li", "Cu", "Ag"], HALIDES)),
    ("fluorite", (["Ca", "Sr", "Ba", "Cd", "Pb", "Mg", "Mn"], HALIDES)),
    ("fluorite", (["Zr", "Ti", "Sn", "Pb"], ["O"])),
    ("fluorite", (CHALCOGENS, ["Li", "Na", "K", "Rb", "Cu", "Ag"])),
    ("fluorite", (["Si", "Ge", "Sn", "Pb"], ["Mg", "Ca"])),
    ("rutile", (PLUS4, ["O"])),
    ("rutile", (["Mg", "Zn", "Mn", "Fe", "Co", "Ni", "Cu", "Pd", "V"], ["F", "Cl"])),
    ("anatase", (["Ti", "Sn", "Zr", "V", "Nb"], ["O", "S"])),
    ("perovskite", (["Ca", "Sr", "Ba", "Pb", "Sn"], ["Ti", "Zr", "Sn", "Mn", "Ge", "Mo"], ["O"])),
    ("perovskite", (["La", "Y"], ["Al", "Ga", "Fe", "Co", "Mn", "Cr", "V", "Ti"], ["O"])),
    ("perovskite", (["Na", "K", "Ag", "Rb"], ["Nb", "V"], ["O"])),
    ("perovskite", (["Na", "K", "Rb", "Cs"], ["Mg", "Zn", "Mn", "Fe", "Co", "Ca"], ["F", "Cl"])),
    ("perovskite", (["Cs", "Rb", "K"], ["Pb", "Sn", "Ge", "Cd"], ["Br", "I", "Cl"])),
    ("spinel", (["Mg", "Zn", "Fe", "Co", "Ni", "Mn", "Cu"], ["Al", "Ga", "Cr", "V", "In"], ["O"])),
    ("spinel", (["Zn", "Mg", "Cd", "Cu", "Fe"], ["In", "Cr", "Y", "Al"], ["S", "Se"])),
    ("spinel", (["Ti", "Ge", "Sn", "Si"], ["Mg", "Co", "Ni", "Zn", "Fe"], ["O"])),
    ("spinel", (["Li"], ["Ti", "V", "Co", "Ni", "Cr"], ["O"])),
    ("corundum", (["Al", "Ga", "In", "Ti", "V", "Cr", "Mn", "Fe", "Co"], ["O", "S"])),
    ("ilmenite", (["Mg", "Mn", "Fe", "Co", "Ni", "Zn"], ["Ti", "Sn", "Ge", "Mn", "Si"], ["O"])),
    ("layered_amx2", (["Li", "Na", "K"], ["Co", "Ni", "Mn", "Cr", "V", "Fe", "Al", "Ti"], ["O"])),
    ("layered_amx2", (["Li", "Na"], ["Ti", "V", "Cr", "Y", "In"], ["S", "Se"])),
    ("delafossite", (["Cu", "Ag", "Pd"], ["Al", "Ga", "Cr", "Fe", "Co", "Y", "In", "La"], ["O"])),
    ("cuprite", (["Cu", "Ag", "Au"], ["O", "S"])),
    ("nickel_arsenide", (["Ti", "V", "Cr", "Mn", "Fe", "Co", "Ni"], ["S", "Se", "Te"])),
    ("nickel_arsenide", (["Mn", "Co", "Ni", "Pd", "Pt"], ["As", "Sb", "Sn", "P"])),
    ("cadmium_iodide", (["Mg", "Ca", "Mn", "Fe", "Co", "Cd", "Pb"], ["Cl", "Br", "I"])),
    ("cadmium_iodide", (["Ti", "Zr", "V", "Nb", "Sn", "Pt", "Ni", "Co"], ["S", "Se", "Te"])),
    ("cadmium_chloride", (["Mg", "Mn", "Fe", "Co", "Zn", "Ni"], ["Cl", "Br"])),
    ("molybdenite", (["Mo", "W", "Nb", "V"], ["S", "Se", "Te"])),
    ("aluminium_diboride", (["Mg", "Al", "Y", "V", "Nb", "Cr", "Mo", "Mn", "La"], ["B"])),
    ("laves_c15", (["Ca", "Mg", "Zr", "Y", "La", "Ti"], ["Al", "Cu", "Ni", "Fe", "Co", "Zn"])),
    ("l1_0", (["Ti", "Fe", "Mn", "Co", "Ni", "Cu", "Mg"], ["Pd", "Pt", "Au", "Al", "Ag"])),
    ("l1_2", (["Ni", "Pt", "Al", "Au", "Cu", "Pd", "Ag"], METALS)),
    ("heusler", (["Co", "Ni", "Fe", "Cu", "Pd"], ["Mn", "Ti", "V", "Zr"], ["Al", "Ga", "Sn"])),
    ("half_heusler", (["Ti", "Zr", "Nb", "V"], ["Ni", "Co", "Fe"], ["Sn", "Sb", "Ge"])),
    ("half_heusler", (["Li", "Na"], ["Zn", "Mg", "Al", "Cd"], ["P", "As", "N", "Si"])),
    ("chalcopyrite", (["Cu", "Ag"], ["Al", "Ga", "In", "Fe"], ["S", "Se", "Te"])),
    ("pyrite", (["Fe", "Co", "Ni", "Mn", "Cu", "Zn"], ["S", "Se"])),
    ("k2nif4", (["K", "Rb"], ["Mg", "Zn", "Co", "Mn"], ["F"])),
    (
        "thcr2si2",
        (["Ca", "Sr", "Ba", "La", "Y"], ["Fe", "Co", "Ni", "Cu"], ["P", "As", "Si", "Ge"]),
    ),
    ("titanium_disilicide", (["Ti", "Zr"], ["Si", "Ge"])),
    ("tungsten_carbide", (["W", "Mo", "Nb", "Ti"], ["C", "N", "P"])),
    ("peroxide", (["Ca", "Sr", "Ba"], ["O", "C"])),
    ("boron_nitride", (["B", "Al"], ["N", "P"])),
    ("k2ptcl6", (["K", "Rb", "Cs"], ["Pt", "Sn", "Ti", "Zr", "Pb"], ["Cl", "Br", "F"])),
    ("calcite", (["Mg", "Ca", "Mn", "Co", "Cd", "Sr", "Ni"], ["C"], ["O"])),
    ("zircon", (["Zr", "Y", "Ca"], ["Si", "P", "V", "W"], ["O"])),
    ("fcc", (METALS,)),
    ("bcc", (METALS,)),
    ("hcp", (METALS,)),
    ("diamond", (["C", "Si", "Ge", "Sn"],)),
)


@dataclass(frozen=True)
class Compound:
    """A prototype and its decoration; `atoms` is the starting cell (Å), not yet relaxed."""

    label: str
    atoms: Atoms
    split: str


def split_of(label: str, from_demo: bool) -> str:
    """The split of every frame of a compound, from its label alone; demo crystals train."""
    if from_demo:
        return "train"
    draw = (zlib.crc32(label.encode()) % 10_000) / 10_000
    if draw < HELD_OUT:
        return "valid"
    return "test" if draw < 2 * HELD_OUT else "train"


def compound_label(prototype: str, atoms: Atoms) -> str:
    """`prototype:formula` with the reduced formula; one label is one compound."""
    return f"{prototype}:{Composition(atoms.get_chemical_formula()).reduced_formula}"


@lru_cache
def archetype_cell(archetype: Crystal) -> tuple[Atoms, np.ndarray, np.ndarray]:
    """A known crystal with its slots as atomic numbers, and the pairs of slots in contact.

    Returns:
        The primitive cell (Å) whose atomic number minus one is the slot, and for each contact
        within 15 % of the shortest (in sums of covalent radii) the two slots.
    """
    placeholders = tuple(chemical_symbols[1 : 1 + len(archetype.elements)])
    atoms = primitive_cell(
        build_prototype(archetype.prototype, placeholders, archetype.lattice, archetype.free)
    )
    slot = atoms.numbers - 1
    radii = slot_radii(archetype.elements)[slot]
    first, second, distance = neighbor_list("ijd", atoms, 6.5)
    contact = distance / (radii[first] + radii[second])
    near = contact < 1.15 * contact.min()
    return atoms, slot[first[near]], slot[second[near]]


def slot_radii(elements: tuple[str, ...]) -> np.ndarray:
    """Covalent radii (Å) of the elements of the slots."""
    return np.array([covalent_radii[atomic_numbers[element]] for element in elements])


def decorate(archetype: Crystal, elements: tuple[str, ...]) -> Atoms:
    """The archetype's primitive cell with other elements, scaled to the radii of its contacts."""
    cell, first, second = archetype_cell(archetype)
    old, new = slot_radii(archetype.elements), slot_radii(elements)
    ratio = ((new[first] + new[second]) / (old[first] + old[second])).mean()
    atoms = cell.copy()
    atoms.numbers = np.array([atomic_numbers[element] for element in elements])[cell.numbers - 1]
    atoms.set_cell(cell.cell[:] * ratio, scale_atoms=True)
    return atoms


def demo_compounds() -> Iterator[Compound]:
    """The demo crystals as seed compounds, in their primitive cells at experimental volume."""
    for crystal in read_table():
        atoms = primitive_cell(
            build_prototype(crystal.prototype, crystal.elements, crystal.lattice, crystal.free)
        )
        yield Compound(compound_label(crystal.prototype, atoms), atoms, "train")


def decorated_compounds(seed: int) -> Iterator[Compound]:
    """At most `MAX_PER_RULE` decorations of each rule, drawn with the seed."""
    archetypes: dict[str, Crystal] = {}
    for crystal in read_table():
        archetypes.setdefault(crystal.prototype, crystal)
    for number, (prototype, slots) in enumerate(RULES):
        choices = [tuple(c) for c in product(*slots) if len(set(c)) == len(c)]
        rng = np.random.default_rng([seed, number])
        limit = len(METALS) if len(slots) == 1 else MAX_PER_RULE
        for pick in rng.permutation(len(choices))[:limit]:
            atoms = decorate(archetypes[prototype], choices[pick])
            label = compound_label(prototype, atoms)
            yield Compound(label, atoms, split_of(label, from_demo=False))


def seed_compounds(seed: int) -> list[Compound]:
    """All compounds of the seed set, once each, shuffled; every demo crystal is among them."""
    unique: dict[str, Compound] = {}
    for compound in (*demo_compounds(), *decorated_compounds(seed)):
        unique.setdefault(compound.label, compound)
    listed = list(unique.values())
    order = np.random.default_rng(seed).permutation(len(listed))
    return [listed[index] for index in order]


def shortest_contact(atoms: Atoms) -> float:
    """The shortest distance in sums of covalent radii (no unit); inf without neighbours in 6 Å."""
    first, second, distance = neighbor_list("ijd", atoms, 6.0)
    radii = covalent_radii[atoms.numbers]
    return float(np.min(distance / (radii[first] + radii[second]), initial=np.inf))


def strain(atoms: Atoms, deformation: np.ndarray) -> Atoms:
    """Deform cell and atoms by (1 + deformation), a (3, 3) matrix without unit."""
    strained = atoms.copy()
    strained.set_cell(atoms.cell[:] @ (np.eye(3) + deformation), scale_atoms=True)
    return strained


def scale_volume(atoms: Atoms, change: float) -> Atoms:
    """Scale the volume by (1 + change)."""
    return strain(atoms, np.eye(3) * (np.cbrt(1.0 + change) - 1.0))


def random_strain(atoms: Atoms, rng: np.random.Generator, largest: float) -> Atoms:
    """A symmetric random strain with components up to `largest` (no unit)."""
    components = rng.uniform(-largest, largest, size=(3, 3))
    return strain(atoms, (components + components.T) / 2)


def rattle(atoms: Atoms, rng: np.random.Generator, sigma: float) -> Atoms:
    """Gaussian displacements, `sigma` Å per component."""
    moved = atoms.copy()
    moved.positions += rng.normal(scale=sigma, size=moved.positions.shape)
    return moved


def random_supercell(atoms: Atoms, rng: np.random.Generator, at_least: int) -> Atoms:
    """Repeat along random, preferably short directions to `at_least` atoms, below `MAX_ATOMS`."""
    cell = atoms.copy()
    while len(cell) < at_least and 2 * len(cell) <= MAX_ATOMS:
        lengths = cell.cell.lengths()
        weight = lengths**-3.0
        repeats = [1, 1, 1]
        repeats[rng.choice(3, p=weight / weight.sum())] = 2
        cell = cell.repeat(repeats)
    return cell


def swap_species(atoms: Atoms, rng: np.random.Generator) -> Atoms:
    """Exchange two atoms of different elements."""
    swapped = atoms.copy()
    first = rng.integers(len(atoms))
    others = np.flatnonzero(atoms.numbers != atoms.numbers[first])
    second = rng.choice(others)
    swapped.numbers[[first, second]] = atoms.numbers[[second, first]]
    return swapped


def squeeze_pair(atoms: Atoms, rng: np.random.Generator, factor: float) -> Atoms:
    """Bring one nearest-neighbour pair to `factor` times its distance, centre fixed."""
    first, second, distance, vector = neighbor_list("ijdD", atoms, 5.0)
    if not len(first):
        return atoms.copy()
    near = np.flatnonzero((distance < 1.1 * distance.min()) & (first != second))
    if not len(near):
        return atoms.copy()
    pair = rng.choice(near)
    shift = vector[pair] * (1.0 - factor) / 2
    squeezed = atoms.copy()
    squeezed.positions[first[pair]] += shift
    squeezed.positions[second[pair]] -= shift
    return squeezed


def perturbed_frames(atoms: Atoms, rng: np.random.Generator) -> list[Atoms]:
    """The frames of one relaxed compound: strained, rattled, swapped and compressed cells.

    Returns:
        13 frames at most, `info["kind"]` says how each was made; contacts shorter than
        `MIN_CONTACT` are dropped.  Compounds of more than 20 atoms give half as many.
    """
    small = random_supercell(atoms, rng, 4)
    wide = random_supercell(atoms, rng, 10)
    frames = {
        "relaxed": atoms.copy(),
        "volume": scale_volume(atoms, rng.uniform(-0.08, 0.10)),
        "rattle": rattle(small, rng, rng.uniform(0.02, 0.10)),
        "strain": rattle(random_strain(atoms, rng, 0.05), rng, 0.02),
        "supercell": rattle(random_supercell(atoms, rng, 12), rng, rng.uniform(0.04, 0.15)),
        "hot": rattle(random_strain(small, rng, 0.04), rng, rng.uniform(0.15, 0.25)),
        "squeeze": squeeze_pair(rattle(small, rng, 0.03), rng, rng.uniform(0.68, 0.88)),
    }
    if len(atoms) <= 20:
        swapped = swap_species(wide, rng) if len(set(wide.numbers)) > 1 else wide
        more = {
            "volume2": rattle(scale_volume(atoms, rng.uniform(-0.08, 0.10)), rng, 0.02),
            "volume3": rattle(scale_volume(small, rng.uniform(-0.20, 0.25)), rng, 0.05),
            "strain2": rattle(random_strain(small, rng, 0.05), rng, 0.05),
            "swap": rattle(random_strain(swapped, rng, 0.03), rng, rng.uniform(0.03, 0.12)),
            "supercell2": rattle(random_strain(wide, rng, 0.03), rng, rng.uniform(0.05, 0.25)),
            "violent": rattle(random_strain(small, rng, 0.06), rng, rng.uniform(0.25, 0.40)),
        }
        frames |= more
    kept = []
    for kind, frame in frames.items():
        frame.info = {"kind": kind}
        if shortest_contact(frame) > MIN_CONTACT:
            kept.append(frame)
    return kept


def elements_of(compounds: Iterable[Compound]) -> list[str]:
    """The elements that occur, by atomic number."""
    found = {symbol for compound in compounds for symbol in compound.atoms.get_chemical_symbols()}
    return sorted(found, key=atomic_numbers.__getitem__)


def main(arguments: list[str]) -> None:
    """Print the size of the recipe."""
    compounds = seed_compounds(int(arguments[0]) if arguments else 0)
    sizes = [len(compound.atoms) for compound in compounds]
    splits = {s: sum(c.split == s for c in compounds) for s in ("train", "valid", "test")}
    print(f"{len(compounds)} compounds, {np.mean(sizes):.1f} atoms on average, splits {splits}")
    names = elements_of(compounds)
    print(f"{len(names)} elements: {' '.join(names)}")


if __name__ == "__main__":
    main(sys.argv[1:])
