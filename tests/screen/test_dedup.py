"""Equal structures are found however they are written down; unequal ones are kept apart."""

from __future__ import annotations

import time

import numpy as np
import pytest
from ase import Atoms
from ase.build import bulk, make_supercell, molecule
from ase.spacegroup import crystal

from dpa4sim.screen.dedup import Known, duplicates, equal, fingerprint
from dpa4sim.screen.prototypes import prototypes, skeleton

NOISE = 2e-3  # Å: what is left after a relaxation to 0.02 eV/Å
RATE = 60  # structures per second of processor time; 280 measured
SOME = ["rocksalt", "tenorite", "tin_sulfide", "baddeleyite", "quartz", "corundum", "spinel"]
SOME += ["perovskite_orthorhombic", "olivine", "delafossite", "wolframite", "gallium_oxide"]
SOME += ["laves_c14", "heusler", "kesterite", "lithium_manganate"]


def written_anew(atoms: Atoms, rng: np.random.Generator) -> Atoms:
    """The same crystal: rotated, another cell, another origin, another order, a little noise."""
    matrix = np.eye(3, dtype=int)
    for _ in range(3):
        i, j = rng.choice(3, size=2, replace=False)
        matrix[i] += rng.integers(-1, 2) * matrix[j]
    matrix[0] *= rng.integers(1, 3)
    copy = make_supercell(atoms, matrix)
    if np.linalg.det(copy.cell.array) < 0:
        copy.set_cell(-copy.cell.array)
    copy.rotate(float(rng.uniform(0, 180)), rng.normal(size=3), rotate_cell=True)
    copy.positions += rng.normal(size=3) + rng.normal(scale=NOISE, size=copy.positions.shape)
    return copy[rng.permutation(len(copy))]


@pytest.mark.parametrize("name", SOME)
def test_a_crystal_written_anew_is_a_duplicate(name: str) -> None:
    atoms, _ = skeleton(name)
    rng = np.random.default_rng(7)
    copies = [written_anew(atoms, rng) for _ in range(4)]
    assert duplicates([atoms, *copies]) == [None, 0, 0, 0, 0]


def test_prototypes_of_one_formula_are_all_different() -> None:
    """AB compounds in 20 prototypes, with the same elements: no two are mistaken for each other."""
    seen = []
    for name in prototypes():
        atoms, slots = skeleton(name)
        if len(set(slots)) == 2 and 2 * slots.count(0) == len(slots):
            atoms = atoms.copy()
            atoms.numbers = [(11, 17)[slot] for slot in slots]
            seen.append(atoms)
    assert len(seen) >= 20
    assert duplicates(seen) == [None] * len(seen)


def test_mirror_images_are_equal() -> None:
    right, _ = skeleton("quartz")
    left = right.copy()
    left.set_cell(right.cell.array * [1, 1, -1])
    left.set_scaled_positions(right.get_scaled_positions())
    left = Atoms(left.numbers, positions=left.positions, cell=-left.cell.array, pbc=True)
    assert np.linalg.det(left.cell.array) > 0
    assert duplicates([right, left]) == [None, 0]


def test_size_counts_only_where_it_should() -> None:
    small, large = bulk("Cu", a=3.6), bulk("Cu", a=3.8)
    assert duplicates([small, large]) == [None, 0]
    assert duplicates([small, large], scale=False) == [None, None]
    assert duplicates([small, bulk("Cu", a=3.61)], scale=False) == [None, 0]


def test_small_distortions_are_kept() -> None:
    """Cubic and tetragonal PbTiO3 differ by 0.3 Å: two minima, two candidates."""
    cubic, _ = skeleton("perovskite")
    cubic.symbols = ["Pb" if s == "Sr" else s for s in cubic.get_chemical_symbols()]
    tetragonal, _ = skeleton("perovskite_tetragonal")
    assert duplicates([cubic, tetragonal]) == [None, None]


def test_elements_in_each_others_places_are_another_structure() -> None:
    def spinel(a: str, b: str) -> Atoms:
        return crystal(
            [a, b, "O"],
            [(1 / 8, 1 / 8, 1 / 8), (0.5, 0.5, 0.5), (0.26, 0.26, 0.26)],
            spacegroup=227,
            setting=2,
            cellpar=[8.1, 8.1, 8.1, 90, 90, 90],
        )

    assert duplicates([spinel("Mg", "Al"), spinel("Al", "Mg")]) == [None, None]
    # B2 looks the same from both
    first = crystal(
        ["Ni", "Al"], [(0, 0, 0), (0.5, 0.5, 0.5)], spacegroup=221, cellpar=[2.9] * 3 + [90] * 3
    )
    second = crystal(
        ["Al", "Ni"], [(0, 0, 0), (0.5, 0.5, 0.5)], spacegroup=221, cellpar=[2.9] * 3 + [90] * 3
    )
    assert duplicates([first, second]) == [None, 0]


def test_molecules_and_slabs_are_left_alone() -> None:
    slab = bulk("Cu", cubic=True)
    slab.center(vacuum=5, axis=2)
    slab.pbc = (True, True, False)
    assert duplicates([molecule("H2O"), molecule("H2O"), slab, slab.copy()]) == [None] * 4


def test_one_by_one_is_as_all_at_once() -> None:
    rng = np.random.default_rng(3)
    structures = [written_anew(skeleton(SOME[k])[0], rng) for k in rng.integers(0, 6, size=30)]
    known = Known()
    single = [known.earlier(index, atoms) for index, atoms in enumerate(structures)]
    assert single == duplicates(structures)
    assert sum(found is None for found in single) <= 6


def test_equality_is_symmetric() -> None:
    prints = [fingerprint(skeleton(name)[0]) for name in SOME]
    for first in prints:
        for second in prints:
            assert first is not None
            assert second is not None
            assert equal(first, second) == equal(second, first)


def test_it_is_fast_enough_for_a_campaign() -> None:
    """200 structures of one formula, most of them duplicates in disguise."""
    rng = np.random.default_rng(1)
    base = []
    for name in prototypes():
        atoms, slots = skeleton(name)
        if len(set(slots)) == 2 and 2 * slots.count(0) == len(slots):
            atoms = atoms.copy()
            atoms.numbers = [(11, 17)[slot] for slot in slots]
            base.append(atoms)
    structures = [written_anew(base[k], rng) for k in rng.integers(0, len(base), size=200)]
    start = time.process_time()
    found = duplicates(structures)
    assert len(structures) / (time.process_time() - start) > RATE
    assert sum(each is None for each in found) <= len(base) + 4  # noise may hide a symmetry
