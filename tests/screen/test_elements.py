"""Built-in crystals against handbooks that are not ours: ase.data and density tables."""

from __future__ import annotations

import numpy as np
import pytest
import spglib
from ase import Atoms
from ase.data import (
    atomic_masses,
    atomic_numbers,
    chemical_symbols,
    covalent_radii,
    reference_states,
)
from pymatgen.core import Composition

from dpa4sim.errors import ConfigError
from dpa4sim.screen.contacts import pairs, relative_pairs
from dpa4sim.screen.dedup import duplicates
from dpa4sim.screen.element_table import atomic_volume, solids
from dpa4sim.screen.elements import (
    BINARIES,
    EXPERIMENT,
    binary_crystals,
    elemental_crystals,
    known_crystals,
    sized,
    slots_of,
)
from dpa4sim.screen.prototypes import prototypes
from dpa4sim.screen.validity import invalid_reason

ALIKE = 0.025
"""Relative difference of lattice parameters: room temperature against cold, old against new."""

BRAVAIS = {"fcc": 225, "bcc": 229, "hcp": 194, "diamond": 227, "sc": 221}
NOT_OURS = dict.fromkeys(("La", "Pr", "Nd"), "ASE has hcp, they are dhcp")
NOT_OURS |= {"C": "ASE has diamond", "Se": "ASE has the lattice of its chains", "Te": "as Se"}


def ground_state(symbol: str) -> Atoms:
    return solids()[symbol][0].build()


def test_every_element_to_bismuth_and_the_actinides() -> None:
    wanted = [*chemical_symbols[1:85], *["Ac", "Th", "Pa", "U", "Np", "Pu"]]
    assert [symbol for symbol in wanted if symbol not in solids()] == []
    assert len(elemental_crystals(wanted)) >= len(wanted)


def test_packed_elements_are_those_of_ase() -> None:
    """Structure and lattice of every element that ASE has as a simple packing."""
    checked = 0
    for number, state in enumerate(reference_states):
        symbol = chemical_symbols[number] if number < len(chemical_symbols) else ""
        if state is None or state["symmetry"] not in BRAVAIS or symbol in NOT_OURS:
            continue
        solid = solids()[symbol][0]
        assert solid.space_group == BRAVAIS[state["symmetry"]], symbol
        assert solid.lattice[0] == pytest.approx(state["a"], rel=ALIKE), symbol
        if state["symmetry"] == "hcp":
            assert solid.lattice[1] / solid.lattice[0] == pytest.approx(state["c/a"], rel=ALIKE)
        checked += 1
    assert checked >= 55


@pytest.mark.parametrize("symbol", list(solids()))
def test_space_groups_and_contacts(symbol: str) -> None:
    for solid in solids()[symbol]:
        atoms = solid.build()
        assert invalid_reason(atoms) == ""
        cell = (atoms.cell.array, atoms.get_scaled_positions(), atoms.numbers)
        assert spglib.get_symmetry_dataset(cell, symprec=1e-3).number == solid.space_group
        assert len(spglib.find_primitive(cell, symprec=1e-3)[2]) == len(atoms)
        # 5f bonds are short; neighbours of noble gases are no bonds
        assert 0.65 < relative_pairs(atoms, 7.0).distance.min() < 6.9


# g/cm^3, measured on a balance, of elements whose structure is no packing
DENSITIES = {
    "B": (2.46, 0.02),
    "C": (2.26, 0.02),
    "Si": (2.33, 0.01),
    "P": (2.69, 0.02),
    "S": (2.07, 0.01),
    "Mn": (7.43, 0.01),
    "Ga": (5.91, 0.01),
    "As": (5.75, 0.02),
    "Se": (4.81, 0.01),
    "In": (7.31, 0.01),
    "Sn": (7.29, 0.01),
    "Sb": (6.69, 0.01),
    "Te": (6.24, 0.01),
    "I": (4.93, 0.06),
    "Sm": (7.52, 0.01),
    "Hg": (14.2, 0.03),
    "Bi": (9.79, 0.01),
    "Pa": (15.37, 0.01),
    "U": (19.05, 0.01),
    "Np": (20.25, 0.02),
    "Pu": (19.82 * 244 / 239, 0.01),  # measured on 239Pu
    "N": (1.03, 0.02),
    "O": (1.53, 0.02),
    "La": (6.15, 0.01),
}


@pytest.mark.parametrize(("symbol", "known"), DENSITIES.items())
def test_densities(symbol: str, known: tuple[float, float]) -> None:
    atoms = ground_state(symbol)
    grams_per_cm3 = atoms.get_masses().sum() / atoms.get_volume() * 1.66054
    assert grams_per_cm3 == pytest.approx(known[0], rel=known[1])


# Å; of molecules and networks
BONDS = {"H": 0.74, "N": 1.10, "O": 1.21, "F": 1.42, "Cl": 1.99, "Br": 2.28, "I": 2.70}
BONDS |= {"S": 2.05, "Se": 2.37, "P": 2.22, "C": 1.42, "Si": 2.35, "As": 2.52, "B": 1.71}


@pytest.mark.parametrize(("symbol", "bond"), BONDS.items())
def test_bond_lengths(symbol: str, bond: float) -> None:
    assert pairs(ground_state(symbol), 3.2).distance.min() == pytest.approx(bond, rel=0.02)


@pytest.mark.parametrize(
    ("symbol", "number"),
    [("H", 1), ("O", 1), ("I", 1), ("S", 2), ("Te", 2), ("P", 3), ("Bi", 3), ("Si", 4), ("C", 3)],
)
def test_valences(symbol: str, number: int) -> None:
    """Eight minus the group."""
    atoms = ground_state(symbol)
    found = pairs(atoms, 3.4)
    shortest = found.distance.min()
    assert np.bincount(found.first[found.distance < 1.05 * shortest]).tolist() == [number] * len(
        atoms
    )


def test_forms_of_an_element_are_different_and_named() -> None:
    found = elemental_crystals(["C", "Sn", "Co", "Mn"])
    assert len(found) == 8
    assert len({each.name for each in found}) == 8
    assert duplicates([each.atoms for each in found if each.atoms is not None]) == [None] * 8


def test_an_element_without_a_crystal() -> None:
    with pytest.raises(ConfigError, match="No crystal of At, Fr is built in"):
        elemental_crystals(["Cu", "At", "Fr"])


def test_volumes_in_alloys_are_near_those_of_the_elements() -> None:
    for symbol in ["Al", "Cu", "Ni", "Ti", "Fe", "Mg", "Zn", "La", "Au"]:
        atoms = ground_state(symbol)
        assert atomic_volume(symbol) == pytest.approx(atoms.get_volume() / len(atoms), rel=0.15)


def test_known_compounds_of_a_system() -> None:
    names = [each.name for each in known_crystals("Fe-Li-O")]
    assert names == [each.name for each in known_crystals(["Li", "O", "Fe"])]
    formulas = {name.split("-")[0] for name in names}
    assert {"Li2O", "FeO", "Fe2O3", "Fe3O4", "Li2O2"} <= formulas
    binary = binary_crystals("Ca-Si-O")
    assert {e.name.split("-")[0] for e in binary} <= {"CaO", "SiO2", "CaSi", "Ca2Si", "CaO2"}
    assert {"CaO", "SiO2"} <= {e.name.split("-")[0] for e in binary}
    assert "CaTiO3-perovskite_orthorhombic" in {each.name for each in known_crystals("Ca-Ti-O")}
    assert all(len(set(each.atoms.numbers)) == 2 for each in binary if each.atoms is not None)


def test_measured_lattices_are_kept() -> None:
    (salt,) = binary_crystals("Na-Cl")
    assert salt.source == EXPERIMENT
    assert salt.atoms is not None
    assert salt.atoms.get_volume() == pytest.approx(5.6402**3 / 4, rel=1e-4)


def entries() -> list[tuple[str, str]]:
    lines = (line.partition(":") for line in BINARIES.splitlines())
    return [(name, compound) for name, _, compounds in lines for compound in compounds.split()]


def test_every_line_of_the_table_is_a_compound_of_its_prototype() -> None:
    found = entries()
    assert len(set(found)) == len(found) > 1000
    for name, compound in found:
        assert name in prototypes()
        elements = slots_of(name, compound)
        assert all(element in atomic_numbers for element in elements)
        assert len(Composition(compound)) == 2, compound
    with pytest.raises(ConfigError, match="Fe2O has not the composition of the prototype corundum"):
        slots_of("corundum", "Fe2O")


@pytest.mark.parametrize("prototype", sorted({name for name, _ in entries()}))
def test_start_geometries_are_sound(prototype: str) -> None:
    """Contacts between those of vanadyl bonds and of thallium halides; densities of solids."""
    for name, compound in entries():
        if name == prototype:
            atoms = sized(name, slots_of(name, compound))
            assert 0.66 < relative_pairs(atoms, 1.6).distance.min() < 1.35, compound
            masses = atomic_masses[atoms.numbers].sum()
            assert 0.4 < masses / atoms.get_volume() * 1.66054 < 24, compound
            radii = covalent_radii[atoms.numbers]
            assert 0.12 < (4 / 3 * np.pi * radii**3).sum() / atoms.get_volume() < 1.4, compound


METALS = ["Li", "Na", "K", "Mg", "Ca", "Ba", "Ti", "V", "Cr", "Mn", "Fe", "Co", "Ni", "Cu", "Zn"]
METALS += ["Al", "La"]


@pytest.mark.parametrize("anion", ["O", "F", "Cl", "S"])
@pytest.mark.parametrize("metal", METALS)
def test_common_binaries_are_there(metal: str, anion: str) -> None:
    found = binary_crystals([metal, anion])
    assert bool(found) == ((metal, anion) != ("Al", "S"))  # Al2S3 is of no prototype here
