"""The crystals inside the package are what their labels say, and chemically sensible."""

from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import spglib
from ase import Atoms
from ase.data import covalent_radii
from ase.io import read
from ase.neighborlist import neighbor_list
from pymatgen.core import Composition

import dpa4sim

FILE = Path(dpa4sim.__file__).parent / "crystals" / "experimental.extxyz"
SYMMETRY_PRECISION = 1e-3  # Å: a hundred times the file's rounding
# Sums of covalent radii: vanadyl V=O (0.72) is the shortest bond, close-packed Pb, In, Ca, K and
# ionic PbI2 are the longest nearest neighbours.
SHORTEST, LONGEST = 0.70, 1.25
# Å^3 per atom: diamond 5.7, rubidium 88
SMALLEST_VOLUME, LARGEST_VOLUME = 5.0, 95.0


@pytest.fixture(scope="module")
def crystals() -> list[Atoms]:
    return read(FILE, ":")


def test_count_sizes_and_file_size(crystals: list[Atoms]) -> None:
    sizes = [len(atoms) for atoms in crystals]
    assert len(crystals) >= 120
    assert min(sizes) >= 2
    assert max(sizes) <= 64
    assert sum(size >= 48 for size in sizes) >= 3
    assert FILE.stat().st_size < 160_000


def test_names_are_unique_and_sources_stated(crystals: list[Atoms]) -> None:
    repeated = [
        name for name, n in Counter(atoms.info["name"] for atoms in crystals).items() if n > 1
    ]
    assert not repeated
    assert {atoms.info["source"] for atoms in crystals} == {
        "textbook room-temperature lattice parameters"
    }
    assert all(isinstance(atoms.info["prototype"], str) for atoms in crystals)


def test_formulas(crystals: list[Atoms]) -> None:
    wrong = [
        atoms.info["name"]
        for atoms in crystals
        if Composition(atoms.get_chemical_formula()).reduced_composition
        != Composition(atoms.info["formula"]).reduced_composition
    ]
    assert not wrong


def test_space_groups(crystals: list[Atoms]) -> None:
    wrong = []
    for atoms in crystals:
        cell = (atoms.cell[:], atoms.get_scaled_positions(), atoms.numbers)
        found = spglib.get_symmetry_dataset(cell, symprec=SYMMETRY_PRECISION).number
        if found != atoms.info["space_group"]:
            wrong.append((atoms.info["name"], atoms.info["space_group"], found))
    assert not wrong


def test_shortest_distances(crystals: list[Atoms]) -> None:
    wrong = []
    for atoms in crystals:
        first, second, distance = neighbor_list("ijd", atoms, 6.5)
        radii = covalent_radii[atoms.numbers]
        contact = float(np.min(distance / (radii[first] + radii[second])))
        if not SHORTEST < contact < LONGEST:
            wrong.append((atoms.info["name"], round(contact, 2)))
    assert not wrong


def test_every_atom_has_a_neighbour(crystals: list[Atoms]) -> None:
    for atoms in crystals:
        first, second, distance = neighbor_list("ijd", atoms, 6.5)
        radii = covalent_radii[atoms.numbers]
        nearest = np.full(len(atoms), np.inf)
        np.minimum.at(nearest, first, distance / (radii[first] + radii[second]))
        assert nearest.max() < 1.4, atoms.info["name"]


def test_volumes_and_handedness(crystals: list[Atoms]) -> None:
    for atoms in crystals:
        assert atoms.pbc.all()
        assert np.linalg.det(atoms.cell[:]) > 0, atoms.info["name"]
        volume = atoms.get_volume() / len(atoms)
        assert SMALLEST_VOLUME < volume < LARGEST_VOLUME, atoms.info["name"]


@pytest.mark.parametrize(
    ("name", "density"),
    [
        ("Halite", 2.16),
        ("Alpha quartz", 2.65),
        ("Forsterite", 3.22),
        ("Hematite", 5.27),
        ("Gold", 19.3),
        ("Calcite", 2.71),
        ("Baryte", 4.48),
        ("Pyrite", 5.01),
    ],
)
def test_handbook_densities(crystals: list[Atoms], name: str, density: float) -> None:
    """Densities (g/cm^3) measured with a balance know nothing of our table."""
    atoms = next(atoms for atoms in crystals if atoms.info["name"] == name)
    grams_per_cm3 = atoms.get_masses().sum() / atoms.get_volume() * 1.66054
    assert grams_per_cm3 == pytest.approx(density, rel=0.01)
