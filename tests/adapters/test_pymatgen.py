"""pymatgen in and out."""

import numpy as np
import pytest
import torch
from pymatgen.core import Lattice, Molecule, Structure

from dpa4sim.adapters.pymatgen import from_structure, to_entries, to_structures
from dpa4sim.batch import Batch
from dpa4sim.errors import DataError

ROUNDING_A = 1e-12
"""pymatgen keeps fractional coordinates, so positions come back rounded."""


def salt(**options) -> Structure:
    lattice = Lattice.from_parameters(4.0, 4.5, 5.0, 80, 95, 100)
    return Structure(lattice, ["Na", "Cl"], [[0, 0, 0], [0.5, 1.5, -0.5]], **options)


def water(**options) -> Molecule:
    return Molecule(["O", "H", "H"], [[0, 0, 0], [0.96, 0, 0], [-0.24, 0.93, 0]], **options)


def test_structures_survive_the_round_trip_unwrapped():
    batch = from_structure(salt())
    np.testing.assert_allclose(batch.positions, salt().cart_coords, atol=ROUNDING_A)
    np.testing.assert_array_equal(batch.cell[0], salt().lattice.matrix)
    (again,) = to_structures(batch)
    assert again.species == salt().species
    np.testing.assert_allclose(again.cart_coords, salt().cart_coords, atol=ROUNDING_A)
    np.testing.assert_allclose(again.lattice.matrix, salt().lattice.matrix)


def test_a_lattice_keeps_its_open_directions():
    film = Structure(
        Lattice(np.diag([3.0, 3.0, 20.0]), pbc=(True, True, False)), ["C"], [[0, 0, 0]]
    )
    batch = from_structure(film)
    assert batch.pbc.tolist() == [[True, True, False]]
    assert to_structures(batch)[0].lattice.pbc == (True, True, False)


def test_molecules_have_no_cell():
    batch = from_structure(water())
    assert batch.pbc.tolist() == [[False] * 3]
    assert batch.volume.tolist() == [0.0]
    (again,) = to_structures(batch)
    assert isinstance(again, Molecule)
    np.testing.assert_array_equal(again.cart_coords, water().cart_coords)


@pytest.mark.parametrize(
    ("structure", "charge", "spin"),
    [
        (salt(), None, None),
        (salt(charge=1), [1.0], None),
        (salt(properties={"charge": -2, "spin": 3}), [-2.0], [3.0]),
        (water(), None, None),
        (water(charge=1), [1.0], [2.0]),
        (water(spin_multiplicity=3), [0.0], [3.0]),
    ],
    ids=["plain", "charged", "properties", "closed shell", "cation", "triplet"],
)
def test_charge_and_spin(structure, charge, spin):
    batch = from_structure(structure)
    assert (None if batch.charge is None else batch.charge.tolist()) == charge
    assert (None if batch.spin is None else batch.spin.tolist()) == spin


def test_oxidation_states_are_not_a_charge():
    structure = salt()
    structure.add_oxidation_state_by_element({"Na": 1, "Cl": -2})
    batch = from_structure(structure)
    assert batch.charge is None
    assert batch.atomic_numbers.tolist() == [11, 17]


def test_partial_occupancy_names_the_site():
    mixed = Structure(
        Lattice.cubic(4), ["Na", {"Cl": 0.5, "Br": 0.5}], [[0, 0, 0], [0.5, 0.5, 0.5]]
    )
    with pytest.raises(DataError, match=r"partially occupied: site 1 holds .*Br.*0.5"):
        from_structure(mixed)
    vacant = Structure(Lattice.cubic(4), [{"Na": 0.5}], [[0, 0, 0]])
    with pytest.raises(DataError, match="partially occupied: site 0"):
        from_structure(vacant)


def test_placeholders_are_refused():
    with pytest.raises(DataError, match=r"placeholder X.* on site 0"):
        from_structure(Structure(Lattice.cubic(4), ["X"], [[0, 0, 0]]))


def test_a_flat_periodic_cell_has_no_lattice():
    film = Batch.single(
        [[0, 0, 0]], [6], torch.diag(torch.tensor([3.0, 3.0, 0.0])), [True, True, False]
    )
    with pytest.raises(DataError, match="System 0 is periodic but"):
        to_structures(film)


def test_entries_carry_energies():
    batch = Batch.concatenate([from_structure(salt()), from_structure(salt())])
    entries = to_entries(batch, torch.tensor([-3.0, -4.0]))
    assert [entry.energy for entry in entries] == [-3.0, -4.0]
    assert entries[0].structure.composition.reduced_formula == "NaCl"
