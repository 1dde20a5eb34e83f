"""ASE in and out, and the calculator under ASE's optimisers, filters and constraints."""

import numpy as np
import pytest
import torch
from ase import Atoms
from ase.build import bulk, fcc111, molecule
from ase.calculators.calculator import PropertyNotImplementedError
from ase.calculators.fd import calculate_numerical_forces, calculate_numerical_stress
from ase.constraints import FixAtoms, FixSymmetry
from ase.filters import FrechetCellFilter, UnitCellFilter
from ase.optimize import BFGS, FIRE, LBFGS
from toy import LennardJones

from dpa4sim.adapters.ase import DPA4Calculator, from_atoms, to_atoms
from dpa4sim.batch import Batch
from dpa4sim.errors import DataError

MODEL = LennardJones()

DIFFERENCE_TOLERANCE = 1e-6
"""Central differences of 1e-6 Å in float64 leave about 1e-8 eV/Å of rounding."""

FMAX = 0.01


def rattled(atoms: Atoms, seed: int = 0) -> Atoms:
    atoms.rattle(0.05, seed=seed)
    return atoms


def copper() -> Atoms:
    return rattled(bulk("Cu", cubic=True, a=3.7))


def slab() -> Atoms:
    atoms = rattled(fcc111("Cu", (2, 2, 2), a=3.6, vacuum=None))
    assert not atoms.cell[2].any()
    return atoms


def test_arrays_survive_the_round_trip():
    for atoms in (copper(), molecule("H2O"), fcc111("Pt", (1, 1, 3), vacuum=5.0)):
        (again,) = to_atoms(from_atoms(atoms))
        np.testing.assert_array_equal(again.positions, atoms.positions)
        np.testing.assert_array_equal(again.numbers, atoms.numbers)
        np.testing.assert_array_equal(again.pbc, atoms.pbc)
        np.testing.assert_array_equal(again.cell.array, atoms.cell.array)


def test_charge_and_spin_come_from_info_and_go_back():
    atoms = molecule("H2O")
    assert from_atoms(atoms).charge is None
    atoms.info.update(charge=-1, spin=np.float64(2))
    batch = from_atoms(atoms)
    assert (batch.charge.tolist(), batch.spin.tolist()) == ([-1.0], [2.0])
    assert to_atoms(batch)[0].info == {"charge": -1.0, "spin": 2.0}
    atoms.info["charge"] = "two"
    with pytest.raises(DataError, match=r"H2O has info\['charge'\] = 'two'"):
        from_atoms(atoms)


def test_a_slab_without_a_third_vector_is_completed_and_a_molecule_is_not():
    batch = from_atoms(slab())
    assert batch.pbc.tolist() == [[True, True, False]]
    third = batch.cell[0, 2]
    assert third.norm() == 1
    assert (batch.cell[0, :2] @ third).abs().max() < 1e-12
    assert from_atoms(molecule("H2O")).cell.eq(0).all()


@pytest.mark.parametrize(
    "occupancy", [{"0": {"Cu": 1.0}, "1": {"Cu": 0.5, "Ag": 0.5}}, {"0": {"Cu": 0.9}}]
)
def test_partial_occupancy_is_refused(occupancy):
    atoms = copper()
    atoms.info["occupancy"] = occupancy
    with pytest.raises(DataError, match=r"Cu4 is partially occupied: site \d holds Cu 0\.\d"):
        from_atoms(atoms)
    atoms.info["occupancy"] = {"0": {"Cu": 0.9999}}
    from_atoms(atoms)


def test_predictions_arrive_in_a_single_point_calculator():
    structures = [copper(), molecule("H2O")]
    batch = Batch.concatenate([from_atoms(atoms) for atoms in structures])
    prediction = MODEL(batch)
    solid, gas = to_atoms(batch, prediction)
    assert solid.get_potential_energy() == float(prediction.energy[0])
    assert gas.get_potential_energy() == float(prediction.energy[1])
    np.testing.assert_array_equal(gas.get_forces(), prediction.forces[4:].numpy())
    np.testing.assert_array_equal(gas.get_potential_energies(), prediction.atomic_energies[4:])
    voigt = solid.get_stress()
    np.testing.assert_array_equal(voigt[[0, 5]], prediction.stress[0, 0, [0, 1]].numpy())
    with pytest.raises(PropertyNotImplementedError):
        gas.get_stress()


def test_templates_lend_info_arrays_and_constraints():
    template = copper()
    template.info["name"] = "sample"
    template.set_tags([1, 2, 3, 4])
    template.set_constraint(FixAtoms([0]))
    batch = from_atoms(template)
    batch = batch.with_geometry(batch.positions + 1.0, batch.cell * 1.1)
    (atoms,) = to_atoms(batch, templates=[template])
    assert atoms.info["name"] == "sample"
    assert atoms.get_tags().tolist() == [1, 2, 3, 4]
    assert atoms.constraints[0].index.tolist() == [0]
    np.testing.assert_array_equal(atoms.positions, batch.positions.numpy())
    np.testing.assert_array_equal(atoms.cell.array, batch.cell[0].numpy())
    with pytest.raises(DataError, match=r"Template 0 .*H2O.* does not hold"):
        to_atoms(batch, templates=[molecule("H2O")])
    with pytest.raises(DataError, match="2 templates for 1 systems"):
        to_atoms(batch, templates=[template, template])


def test_calculator_agrees_with_finite_differences():
    atoms = copper()
    atoms.calc = DPA4Calculator(MODEL)
    forces = calculate_numerical_forces(atoms, eps=1e-6)
    np.testing.assert_allclose(atoms.get_forces(), forces, atol=DIFFERENCE_TOLERANCE)
    stress = calculate_numerical_stress(atoms, eps=1e-6)
    np.testing.assert_allclose(atoms.get_stress(), stress, atol=DIFFERENCE_TOLERANCE)
    assert atoms.get_stress(voigt=False).shape == (3, 3)
    assert atoms.get_potential_energy(force_consistent=True) == atoms.get_potential_energy()
    assert atoms.get_potential_energies().sum() == pytest.approx(atoms.get_potential_energy())


@pytest.mark.parametrize("make", [slab, lambda: molecule("H2O")], ids=["slab", "molecule"])
def test_no_stress_without_a_volume(make):
    atoms = make()
    atoms.calc = DPA4Calculator(MODEL)
    assert np.isfinite(atoms.get_forces()).all()
    with pytest.raises(PropertyNotImplementedError):
        atoms.get_stress()


@pytest.mark.parametrize("optimizer", [FIRE, BFGS, LBFGS])
@pytest.mark.parametrize("cell_filter", [None, FrechetCellFilter, UnitCellFilter])
def test_optimisers_and_filters_converge(optimizer, cell_filter):
    atoms = copper()
    atoms.calc = DPA4Calculator(MODEL)
    target = atoms if cell_filter is None else cell_filter(atoms)
    assert optimizer(target, logfile=None).run(fmax=FMAX, steps=300)
    assert np.linalg.norm(target.get_forces(), axis=1).max() < FMAX


def test_fixed_atoms_stay():
    atoms = copper()
    atoms.set_constraint(FixAtoms([0, 1]))
    atoms.calc = DPA4Calculator(MODEL)
    before = atoms.positions.copy()
    assert BFGS(atoms, logfile=None).run(fmax=FMAX, steps=100)
    np.testing.assert_array_equal(atoms.positions[:2], before[:2])
    assert not np.array_equal(atoms.positions[2:], before[2:])


def test_fixed_symmetry_stays():
    atoms = bulk("Cu", cubic=True, a=3.7)
    atoms.set_constraint(FixSymmetry(atoms))
    atoms.calc = DPA4Calculator(MODEL)
    assert FIRE(FrechetCellFilter(atoms), logfile=None).run(fmax=FMAX, steps=100)
    edges = atoms.cell.lengths()
    assert edges[0] != 3.7
    np.testing.assert_allclose(edges, edges[0])
    np.testing.assert_allclose(atoms.cell.angles(), 90)


class Counting:
    """Counts the evaluations of a model, and depends on the charge."""

    def __init__(self):
        self.cutoff, self.device, self.calls = MODEL.cutoff, MODEL.device, 0

    def __call__(self, batch):
        self.calls += 1
        prediction = MODEL(batch)
        charge = 0.0 if batch.charge is None else batch.charge
        return type(prediction)(
            prediction.energy + charge,
            prediction.forces,
            prediction.stress,
            prediction.atomic_energies,
        )


def test_one_evaluation_serves_every_property_and_a_new_charge_asks_again():
    atoms, model = copper(), Counting()
    atoms.calc = DPA4Calculator(model)
    atoms.get_forces()
    energy = atoms.get_potential_energy()
    atoms.get_stress()
    assert model.calls == 1
    atoms.info["charge"] = 2
    assert atoms.get_potential_energy() == energy + 2
    assert model.calls == 2


def test_unusable_atoms_are_refused_with_the_reason():
    atoms = copper()
    atoms.calc = DPA4Calculator(MODEL)
    atoms.positions[2] = np.nan
    with pytest.raises(DataError, match="Cu4 cannot be evaluated: position of atom 2 is not"):
        atoms.get_potential_energy()


def test_elements_that_the_model_does_not_know_are_refused():
    class Narrow(Counting):
        known_elements = frozenset({13})

    atoms = copper()
    atoms.calc = DPA4Calculator(Narrow())
    with pytest.raises(DataError, match=r"does not know the element.* Cu"):
        atoms.get_potential_energy()


def test_the_calculator_gives_the_numbers_of_the_model():
    atoms = copper()
    atoms.calc = DPA4Calculator(MODEL)
    prediction = MODEL(from_atoms(atoms))
    assert torch.equal(torch.tensor(atoms.get_forces()), prediction.forces)
    assert atoms.get_potential_energy() == float(prediction.energy[0])
