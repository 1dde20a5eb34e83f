"""What a relaxation does to a structure is flagged; what was so before is not."""

from __future__ import annotations

import numpy as np
import pytest
from ase import Atoms
from ase.build import bulk, graphene, molecule, mx2

from dpa4sim.screen.checks import BONDED, connectivity, post_checks
from dpa4sim.screen.element_table import solids
from dpa4sim.screen.prototypes import prototypes, skeleton


def scaled(atoms: Atoms, factor: float) -> Atoms:
    """The volume multiplied."""
    copy = atoms.copy()
    copy.set_cell(atoms.cell * np.cbrt(factor), scale_atoms=True)
    return copy


@pytest.mark.parametrize("name", list(prototypes()))
def test_nothing_happened(name: str) -> None:
    """Same structure, and the same after a breath of 15 %: no flag, layered or not."""
    atoms, _ = skeleton(name)
    assert post_checks(atoms, atoms) == []
    assert post_checks(atoms, scaled(atoms, 1.15)) == []
    assert post_checks(scaled(atoms, 1.25), atoms) == []


@pytest.mark.parametrize(
    ("atoms", "pieces", "directions"),
    [
        (bulk("Si"), 1, 3),
        (bulk("NaCl", "rocksalt", a=5.64), 1, 3),
        (skeleton("cadmium_iodide")[0], 1, 2),
        (skeleton("molybdenite")[0], 2, 2),
        (solids()["C"][0].build(), 2, 2),
        (solids()["Se"][0].build(), 1, 1),
        (solids()["S"][0].build(), 4, 0),
        (solids()["N"][0].build(), 4, 0),
        (molecule("C6H6"), 1, 0),
        (graphene(vacuum=8.0), 1, 2),
    ],
)
def test_connectivity(atoms: Atoms, pieces: int, directions: int) -> None:
    assert connectivity(atoms, BONDED) == (pieces, directions)


def test_connectivity_does_not_depend_on_the_cell() -> None:
    selenium = solids()["Se"][0].build()
    assert connectivity(selenium.repeat((1, 1, 3)), BONDED) == (1, 1)
    assert connectivity(selenium.repeat((2, 2, 1)), BONDED) == (4, 1)


def test_collapse_by_volume_and_by_contact() -> None:
    salt = bulk("NaCl", "rocksalt", a=5.64)
    assert "collapsed" in post_checks(salt, scaled(salt, 0.3))
    close = salt.copy()
    close.positions[1] = [1.4, 0, 0]
    assert "collapsed" in post_checks(salt, close)
    assert "collapsed" not in post_checks(salt, scaled(salt, 0.8))


def test_short_bonds_of_molecules_are_no_collapse() -> None:
    for symbol in ("H", "N", "O", "F"):
        atoms = solids()[symbol][0].build()
        assert post_checks(atoms, atoms) == []


def test_explosion_is_also_a_fragmentation() -> None:
    copper = bulk("Cu", cubic=True)
    assert post_checks(copper, scaled(copper, 2.5)) == ["exploded"]
    assert post_checks(copper, scaled(copper, 6.0)) == ["exploded", "fragmented"]


def test_a_framework_that_splits_into_slabs() -> None:
    silicon = bulk("Si", cubic=True)
    split = silicon.copy()
    split.set_cell(silicon.cell.array + np.diag([0, 0, 5.0]))  # the atoms stay
    assert "fragmented" in post_checks(silicon, split)


def test_layers_that_move_apart_stay_layers() -> None:
    layers = skeleton("molybdenite")[0]
    apart = layers.copy()
    apart.set_cell(layers.cell.array * [[1, 1, 1], [1, 1, 1], [1.3, 1.3, 1.3]])
    apart.positions[:] = layers.positions
    whole = mx2("MoS2", vacuum=10)
    assert "fragmented" not in post_checks(whole, whole)
    top = layers.positions[:, 2] > layers.cell.array[2, 2] / 2
    apart.positions[top, 2] += 0.15 * layers.cell.array[2, 2]
    assert "fragmented" not in post_checks(layers, apart)


def test_a_molecule_that_dissociates() -> None:
    water = molecule("H2O")
    broken = water.copy()
    broken.positions[1] += [0, 6.0, 0]
    assert post_checks(water, broken) == ["fragmented"]
    assert post_checks(water, water) == []


def test_change_of_symmetry_both_ways() -> None:
    cubic = skeleton("perovskite")[0]
    polar = cubic.copy()
    polar.positions[polar.symbols == "Ti"] += [0.0, 0.0, 0.2]
    assert post_checks(cubic, polar) == ["symmetry_changed"]
    assert post_checks(polar, cubic) == ["symmetry_changed"]
    trembled = cubic.copy()
    trembled.rattle(0.004, seed=1)
    assert post_checks(cubic, trembled) == []


def test_known_space_groups_are_not_looked_for() -> None:
    salt = bulk("NaCl", "rocksalt", a=5.64)
    assert post_checks(salt, salt, space_groups=(225, 1)) == ["symmetry_changed"]
