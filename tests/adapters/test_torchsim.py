"""TorchSim in and out, and its runners around our model."""

import numpy as np
import pytest
import torch
import torch_sim as ts
from ase.build import bulk, molecule
from torch_sim import testing
from torch_sim.models.interface import validate_model_outputs
from toy import LennardJones

from dpa4sim.adapters.ase import DPA4Calculator, from_atoms
from dpa4sim.adapters.torchsim import DPA4Model, from_state, to_state
from dpa4sim.batch import Batch
from dpa4sim.errors import DataError

MODEL = LennardJones(cutoff=5.0)
CPU = torch.device("cpu")
FMAX = 0.02


def crystals() -> list:
    structures = [bulk("Cu", cubic=True, a=3.7), bulk("Mg", a=3.2, c=5.3), bulk("Fe", a=2.6)]
    for atoms in structures:
        atoms.set_cell(atoms.cell.array @ [[1, 0.05, 0], [0, 1, 0.02], [0.03, 0, 1]], True)
        atoms.rattle(0.05, seed=1)
    return structures


def test_states_survive_the_round_trip_and_cells_are_transposed():
    batch = Batch.concatenate([from_atoms(atoms) for atoms in crystals()])
    state = to_state(batch)
    torch.testing.assert_close(state.cell[0].T, batch.cell[0], rtol=0, atol=0)
    assert not torch.equal(state.cell[0], batch.cell[0])
    again = from_state(state)
    for name in ("positions", "atomic_numbers", "cell", "pbc", "system_idx", "n_atoms"):
        assert torch.equal(getattr(again, name), getattr(batch, name)), name
    assert again.charge is None


def test_states_that_torchsim_makes_are_ours():
    state = ts.io.atoms_to_state(crystals(), CPU, torch.float64)
    ours = to_state(from_state(state))
    assert torch.equal(ours.cell, state.cell)
    torch.testing.assert_close(ours.masses, state.masses)
    for atoms, again in zip(crystals(), ts.io.state_to_atoms(ours), strict=True):
        np.testing.assert_array_equal(again.positions, atoms.positions)
        np.testing.assert_array_equal(again.cell.array, atoms.cell.array)


def test_charge_and_spin_are_system_extras():
    water = molecule("H2O")
    water.info.update(charge=1, spin=2)
    state = to_state(from_atoms(water))
    assert state.charge.tolist() == [1.0]
    batch = from_state(state)
    assert (batch.charge.tolist(), batch.spin.tolist()) == ([1.0], [2.0])


def test_mixed_pbc_does_not_fit_into_one_state():
    batch = Batch.concatenate([from_atoms(bulk("Cu")), from_atoms(molecule("H2O"))])
    with pytest.raises(DataError, match="holds one pbc"):
        to_state(batch)


def test_a_state_does_not_share_memory_with_the_batch():
    batch = from_atoms(bulk("Cu"))
    to_state(batch).positions.add_(1.0)
    assert torch.equal(batch.positions, from_atoms(bulk("Cu")).positions)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_torchsim_validates_the_model(dtype):
    validate_model_outputs(DPA4Model(MODEL, dtype=dtype), CPU, dtype)


@pytest.mark.parametrize("name", testing.CONSISTENCY_SIMSTATES)
def test_torchsim_finds_model_and_calculator_consistent(name):
    state = testing.SIMSTATE_GENERATORS[name](CPU, torch.float64)
    model = DPA4Model(MODEL, compute_stress=name in testing.SIMSTATE_BULK_GENERATORS)
    testing.assert_model_calculator_consistency(model, DPA4Calculator(MODEL), state)


def test_outputs_follow_the_switches_and_the_dtype():
    state = to_state(from_atoms(bulk("Cu")), torch.float32)
    model = DPA4Model(MODEL, dtype=torch.float32, compute_forces=False, compute_stress=False)
    assert model(state).keys() == {"energy"}
    model.compute_forces = model.compute_stress = True
    output = model(state)
    assert output.keys() == {"energy", "forces", "stress"}
    assert {value.dtype for value in output.values()} == {torch.float32}
    assert model.device == CPU


def test_the_stress_of_a_molecule_is_nan():
    output = DPA4Model(MODEL)(to_state(from_atoms(molecule("H2O"))))
    assert output["stress"].isnan().all()
    assert output["forces"].isfinite().all()


def test_static_gives_the_energies_of_the_model():
    frames = ts.static(system=crystals(), model=DPA4Model(MODEL))
    energies = [float(frame["potential_energy"]) for frame in frames]
    expected = MODEL(Batch.concatenate([from_atoms(atoms) for atoms in crystals()]))
    np.testing.assert_array_equal(energies, expected.energy.numpy())


@pytest.mark.parametrize("cell_filter", [None, ts.CellFilter.frechet])
def test_optimize_converges(cell_filter):
    state = ts.optimize(
        system=crystals(),
        model=DPA4Model(MODEL),
        optimizer=ts.Optimizer.fire,
        convergence_fn=ts.generate_force_convergence_fn(
            FMAX, include_cell_forces=cell_filter is not None
        ),
        max_steps=500,
        init_kwargs={} if cell_filter is None else {"cell_filter": cell_filter},
    )
    assert state.forces.norm(dim=1).max() < FMAX
    start = MODEL(from_state(ts.initialize_state(crystals(), CPU, torch.float64)))
    assert (state.energy[:2] < start.energy[:2]).all()
    assert bool(state.energy[2] < start.energy[2]) == (cell_filter is not None)


def test_integrate_conserves_energy():
    model = DPA4Model(MODEL)
    start = ts.initialize_state(crystals(), CPU, torch.float64)
    final = ts.integrate(
        system=start.clone(),
        model=model,
        integrator=ts.Integrator.nve,
        n_steps=20,
        timestep=0.0005,
        temperature=300.0,
    )
    again = MODEL(from_state(final))
    torch.testing.assert_close(final.energy, again.energy)
    assert not torch.equal(final.positions, start.positions)
