"""Every way in which a candidate can be unusable has its own sentence."""

from __future__ import annotations

from io import StringIO

import numpy as np
import pytest
from ase import Atoms
from ase.build import bulk, molecule
from ase.io import read

from dpa4sim.screen.prototypes import prototypes, skeleton
from dpa4sim.screen.validity import CLOSEST, invalid_reason

HALF = """data_x
_cell_length_a 3.6
_cell_length_b 3.6
_cell_length_c 3.6
_cell_angle_alpha 90
_cell_angle_beta 90
_cell_angle_gamma 90
_symmetry_space_group_name_H-M 'P 1'
loop_
_atom_site_label
_atom_site_type_symbol
_atom_site_fract_x
_atom_site_fract_y
_atom_site_fract_z
_atom_site_occupancy
Cu1 Cu 0 0 0 {0}
Ni1 Ni 0.5 0.5 0.5 1.0
"""


def test_every_prototype_and_molecule_is_valid() -> None:
    wrong = {name: invalid_reason(skeleton(name)[0]) for name in prototypes()}
    assert {name: reason for name, reason in wrong.items() if reason} == {}
    assert invalid_reason(molecule("H2")) == ""
    assert invalid_reason(bulk("Cu"), known_elements=[29]) == ""


@pytest.mark.parametrize(("distance", "good"), [(CLOSEST - 0.01, False), (CLOSEST + 0.01, True)])
@pytest.mark.parametrize("pbc", [True, False])
def test_closest_contact(distance: float, good: bool, pbc: bool) -> None:
    atoms = Atoms("H2", [[0, 0, 0], [distance, 0, 0]], cell=[9, 9, 9], pbc=pbc)
    assert (invalid_reason(atoms) == "") == good


def test_contacts_across_the_boundary_count() -> None:
    atoms = Atoms("CuNi", [[0.1, 0, 0], [3.9, 0, 0]], cell=[4, 4, 4], pbc=True)
    assert "Cu 0 and Ni 1 are 0.200 Å apart" in invalid_reason(atoms)
    assert invalid_reason(Atoms("Cu", cell=[0.45, 4, 4], pbc=True)).startswith(
        "atoms Cu 0 and Cu 0"
    )


def nan_position() -> Atoms:
    atoms = bulk("Cu", cubic=True)
    atoms.positions[2, 1] = np.nan
    return atoms


def nan_cell() -> Atoms:
    return Atoms("Cu", cell=[[np.inf, 0, 0], [0, 3, 0], [0, 0, 3]], pbc=True)


def left_handed() -> Atoms:
    return Atoms("Cu", cell=[[0, 3, 0], [3, 0, 0], [0, 0, 3]], pbc=True)


@pytest.mark.parametrize(
    ("atoms", "reason"),
    [
        (Atoms(pbc=True, cell=[3, 3, 3]), "no atoms"),
        (nan_position(), "position of atom 2 is not a finite"),
        (nan_cell(), "lattice vector is not finite"),
        (Atoms("X", cell=[3, 3, 3], pbc=True), "atom 0 is no element"),
        (Atoms([119], cell=[3, 3, 3], pbc=True), "atomic number 119"),
        (Atoms("Cu", cell=[3, 0, 3], pbc=True), "lattice vector 1, which is zero"),
        (Atoms("Cu", cell=[[3, 0, 0], [6, 0, 0], [0, 0, 3]], pbc=True), "flat"),
        (Atoms("Cu", cell=[0.2, 40, 40], pbc=True), "flat"),
        (left_handed(), "left-handed"),
    ],
)
def test_reasons(atoms: Atoms, reason: str) -> None:
    assert reason in invalid_reason(atoms)


def test_a_slab_may_have_no_third_vector() -> None:
    slab = Atoms("Cu", cell=[3, 3, 0], pbc=(True, True, False))
    assert invalid_reason(slab) == ""


def test_elements_that_the_model_does_not_know() -> None:
    assert invalid_reason(bulk("Cu"), known_elements=[1, 8]) == "the model does not know Cu"


@pytest.mark.parametrize(("share", "good"), [("0.5", False), ("1.0", True)])
def test_partial_occupancy_of_a_cif(share: str, good: bool) -> None:
    atoms = read(StringIO(HALF.format(share)), format="cif", fractional_occupancies=True)
    reason = invalid_reason(atoms)
    assert ("partially occupied (Cu 0.5)" in reason) != good
    assert (reason == "") == good
