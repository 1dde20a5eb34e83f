"""nvalchemi-toolkit in and out, and its dynamics around our model."""

import subprocess
import sys
import warnings
from dataclasses import replace

import numpy as np
import pytest
import torch
from ase import units
from ase.build import bulk, molecule
from ase.md.velocitydistribution import thermalize_momenta
from ase.md.verlet import VelocityVerlet
from models import OPTION_SETS, random_potential
from toy import AseModel, LennardJones, crystals, from_atoms, packed, without_bulk

from dpa4sim.batch import Batch
from dpa4sim.errors import DataError, ModelError
from dpa4sim.potential import EnergyModel

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # of theirs, while they are imported
    pytest.importorskip(
        "nvalchemi", reason="the extra is not installed: pip install 'dpa4sim[nvalchemi]'"
    )
    from nvalchemi.data import AtomicData
    from nvalchemi.data import Batch as AlchemiBatch
    from nvalchemi.dynamics import FIRE, FIRE2, NVE, ConvergenceHook, FIRE2VariableCell

    from dpa4sim.adapters.nvalchemi import OUTPUTS, DPA4Model, from_batch, to_batch, to_data

MODEL = LennardJones(cutoff=5.0)
FMAX = 0.02

ASE_TOLERANCE_A = 1e-7
"""After 40 fs; both integrate in float64, the unit of time differs in its ninth digit."""

STRAIN = 1e-5
SLOPE_TOLERANCE = 1e-6
"""eV/Å^3; a central difference over `STRAIN`; measured 1e-9.  The stresses are 0.01 to 0.2."""

MIXED = {**crystals(), **without_bulk()}


def right_handed() -> list:
    """Crystals that their own reader of Atoms takes: it calls a left-handed cell undefined."""
    return [atoms for atoms in crystals().values() if np.linalg.det(atoms.cell.array) > 0]


def mixed() -> Batch:
    """Crystals, a slab and a molecule without a cell."""
    return packed(MIXED.values())


def assert_equal(outputs: dict, model: EnergyModel, batch: Batch) -> None:
    """Bit for bit what the model says."""
    expected = model(batch)
    assert torch.equal(outputs["energy"][:, 0], expected.energy)
    for name in ("forces", "stress", "atomic_energies"):
        theirs, ours = outputs[name], getattr(expected, name)
        torch.testing.assert_close(theirs, ours, rtol=0, atol=0, equal_nan=True, msg=name)


def test_systems_survive_the_round_trip():
    batch = mixed()
    again = from_batch(to_batch(batch))
    for name in ("positions", "atomic_numbers", "cell", "pbc", "system_idx", "n_atoms"):
        assert torch.equal(getattr(again, name), getattr(batch, name)), name
    assert again.charge is None
    assert again.spin is None


def test_charge_and_spin_belong_to_the_systems():
    ions = [replace_state(from_atoms(molecule("H2O")), q, s) for q, s in ((1, 2), (0, 1), (-1, 2))]
    batch = Batch.concatenate(ions)
    data = to_batch(batch)
    assert data.charge.tolist() == [[1.0], [0.0], [-1.0]]
    again = from_batch(data)
    assert again.charge.tolist() == [1.0, 0.0, -1.0]
    assert again.spin.tolist() == [2.0, 1.0, 2.0]


def replace_state(system: Batch, charge: float, spin: float) -> Batch:
    value = torch.tensor([[charge], [spin]], dtype=torch.float64)
    return replace(system, charge=value[0], spin=value[1])


def test_the_batch_shares_no_memory_with_theirs():
    batch = mixed()
    before = batch.positions.clone()
    to_batch(batch).positions.add_(1.0)
    assert torch.equal(batch.positions, before)


def test_a_batch_of_their_own_making_is_ours():
    structures = right_handed()
    records = [AtomicData.from_atoms(atoms, dtype=torch.float64) for atoms in structures]
    again, ours = from_batch(AlchemiBatch.from_data_list(records)), packed(structures)
    for name in ("positions", "atomic_numbers", "cell", "pbc", "system_idx", "n_atoms"):
        assert torch.equal(getattr(again, name), getattr(ours, name)), name


def test_molecules_of_their_own_making_have_no_cell():
    records = [AtomicData.from_atoms(molecule(name), dtype=torch.float64) for name in ("H2O", "CO")]
    batch = from_batch(AlchemiBatch.from_data_list(records))
    assert not batch.pbc.any()
    assert (batch.cell == 0).all()


def test_a_crystal_behind_a_molecule_keeps_its_cell():
    """Their own constructor takes the first system's keys for those of all, and drops the cell."""
    structures = [molecule("H2O"), bulk("Cu")]
    theirs = [AtomicData.from_atoms(atoms, dtype=torch.float64) for atoms in structures]
    assert "cell" not in AlchemiBatch.from_data_list(theirs)
    batch = packed(structures)
    data = AlchemiBatch.from_data_list(to_data(batch))
    assert torch.equal(from_batch(data).cell, batch.cell)
    assert_equal(DPA4Model(MODEL)(data), MODEL, batch)


def test_what_is_given_for_some_systems_only_is_refused():
    data = to_batch(mixed())
    data._storage.groups["system"].validate = False
    del data["cell"]
    with pytest.raises(DataError, match="has no 'cell'"):
        from_batch(data)
    object.__setattr__(data, "cell", torch.zeros(3, 3, 3))
    with pytest.raises(DataError, match="3 entries of 'cell' for 7 systems"):
        from_batch(data)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_outputs_are_the_numbers_of_the_model(dtype):
    batch = mixed()
    data = to_batch(batch, dtype=dtype)
    outputs = DPA4Model(MODEL)(data)
    assert tuple(outputs) == OUTPUTS
    assert {value.dtype for value in outputs.values()} == {dtype}
    if dtype == torch.float64:
        assert_equal(outputs, MODEL, batch)
    expected = MODEL(from_batch(data)).energy.to(dtype)
    assert torch.equal(outputs["energy"], expected[:, None])


def test_a_network_gives_the_numbers_of_its_potential():
    potential = random_potential(OPTION_SETS["neo"])
    structures = [bulk("Si"), bulk("SiC", "zincblende", a=4.3), molecule("CO2")]
    batch = packed(structures)
    model = DPA4Model(potential)
    data = to_batch(batch)
    outputs = model(data)
    assert_equal(outputs, potential, batch)
    assert not any(value.requires_grad for value in outputs.values())
    model.compute_embeddings(data)
    assert data.node_embeddings.shape == (len(batch.positions), *shape_of(model))
    expected = potential(batch, descriptors=True).descriptors
    assert torch.equal(data.node_embeddings, expected)


def shape_of(model: DPA4Model) -> tuple[int, ...]:
    return model.embedding_shapes["node_embeddings"]


def test_other_models_have_no_embeddings():
    model = DPA4Model(MODEL)
    assert model.embedding_shapes == {}
    with pytest.raises(ModelError, match="LennardJones has no embeddings"):
        model.compute_embeddings(to_batch(mixed()))


def test_one_record_is_a_batch_of_one():
    batch = packed([bulk("Cu", cubic=True)])
    assert_equal(DPA4Model(MODEL)(to_data(batch)[0]), MODEL, batch)


def test_only_active_outputs_are_given():
    model = DPA4Model(MODEL)
    model.set_config("active_outputs", {"energy", "forces"})
    assert set(model(to_batch(mixed()))) == {"energy", "forces"}


def test_tension_is_positive():
    """A stretched crystal pulls: its stress is the slope of the energy by the strain, over V."""
    batch = packed([bulk("Cu", cubic=True, a=3.6), bulk("Cu", cubic=True, a=2.9)])
    stress = DPA4Model(MODEL)(to_batch(batch))["stress"]
    pull, push = stress.diagonal(dim1=1, dim2=2)
    assert pull.min() > 0.01
    assert push.max() < -0.01
    longer, shorter = (
        MODEL(batch.with_geometry(batch.positions * f, batch.cell * f)).energy
        for f in (1 + STRAIN, 1 - STRAIN)
    )
    slope = (longer - shorter) / (2 * STRAIN) / batch.volume
    trace = stress.diagonal(dim1=1, dim2=2).sum(1)
    torch.testing.assert_close(trace, slope, rtol=0, atol=SLOPE_TOLERANCE)


def test_a_neighbour_list_in_the_batch_is_never_read():
    """One that was cut off, or is stale, cannot be told from a good one."""
    batch = packed(crystals().values())
    data = to_batch(batch)
    sizes, nobody = batch.n_atoms.tolist(), len(batch.positions)
    data.add_key("neighbor_matrix", [torch.full((n, 2), nobody).int() for n in sizes])
    data.add_key("num_neighbors", [torch.full((n,), 55).int() for n in sizes])
    model = DPA4Model(MODEL)
    assert not model.model_config.needs_neighborlist
    assert model.make_neighbor_hooks() == []
    assert_equal(model(data), MODEL, batch)


def test_outputs_without_a_place_are_given_one():
    """Their dynamics drop them."""
    records = [AtomicData.from_atoms(atoms, dtype=torch.float64) for atoms in right_handed()]
    data = AlchemiBatch.from_data_list(records)
    assert not any(name in data for name in OUTPUTS)
    dynamics = FIRE(DPA4Model(MODEL), dt=0.1, n_steps=2)
    dynamics.compute(data)
    dynamics.run(data)
    assert_equal({name: data[name] for name in OUTPUTS}, MODEL, from_batch(data))


def test_places_are_filled_when_the_prediction_is_known():
    batch = mixed()
    data = to_batch(batch, MODEL(batch))
    assert_equal({name: data[name] for name in OUTPUTS}, MODEL, batch)
    assert (to_batch(batch).forces == 0).all()


def test_a_sick_system_does_not_harm_its_mates():
    batch = mixed()
    positions = batch.positions.clone()
    positions[0] = torch.nan
    data = to_batch(batch.with_geometry(positions, batch.cell))
    potential = random_potential(OPTION_SETS["neo"])
    data["atomic_numbers"].fill_(14)
    outputs = DPA4Model(potential)(data)
    assert outputs["energy"].isnan()[:, 0].tolist() == [True] + [False] * 6
    assert outputs["forces"][batch.system_idx > 0].isfinite().all()


def test_fire_relaxes_to_forces_below_fmax():
    batch = packed([*crystals().values()])
    hook = ConvergenceHook.from_forces(FMAX)
    dynamics = FIRE(DPA4Model(MODEL), dt=0.3, dt_max=3.0, convergence_hook=hook, n_steps=600)
    data = dynamics.run(to_batch(batch, MODEL(batch)))
    assert_equal({name: data[name] for name in OUTPUTS}, MODEL, from_batch(data))
    assert data.forces.norm(dim=1).max() < FMAX
    assert (data.energy[:, 0] <= MODEL(batch).energy).all()
    assert dynamics.step_count < 600


def test_fire2_moves_the_cell_of_an_aligned_crystal():
    """Right-handed cells with the first vector along x: what their variable cell needs."""
    structures = [bulk("Cu", cubic=True, a=3.4), bulk("Ni", cubic=True, a=3.9)]
    for atoms in structures:
        atoms.rattle(0.05, seed=2)
    batch = packed(structures)
    dynamics = FIRE2VariableCell(DPA4Model(MODEL), dt=0.05, n_steps=200)
    data = dynamics.run(to_batch(batch, MODEL(batch)))
    assert_equal({name: data[name] for name in OUTPUTS}, MODEL, from_batch(data))
    before = MODEL(batch).stress.abs().amax((1, 2))
    assert (data.stress.abs().amax((1, 2)) < 0.1 * before).all()


def test_fire2_at_fixed_cell_goes_down():
    batch = packed([*crystals().values()])
    data = FIRE2(DPA4Model(MODEL), dt=0.05, n_steps=60).run(to_batch(batch, MODEL(batch)))
    several = batch.n_atoms > 1
    assert (data.energy[:, 0] < MODEL(batch).energy)[several].all()
    assert torch.equal(data.cell, batch.cell)


def test_nve_is_that_of_ase():
    structures = list(crystals().values())
    for seed, atoms in enumerate(structures):
        thermalize_momenta(atoms, temperature_K=300, rng=np.random.default_rng(seed))
    batch = packed(structures)
    data = to_batch(batch, MODEL(batch))
    data.atomic_masses.copy_(torch.tensor(np.concatenate([a.get_masses() for a in structures])))
    data.velocities.copy_(torch.tensor(np.concatenate([a.get_velocities() for a in structures])))
    NVE(DPA4Model(MODEL), dt=2.0).run(data, n_steps=20)
    start = 0
    for atoms in structures:
        atoms.calc = AseModel(MODEL)
        VelocityVerlet(atoms, timestep=2.0 * units.fs).run(20)
        theirs = data.positions[start : start + len(atoms)].numpy()
        assert np.abs(theirs - atoms.positions).max() < ASE_TOLERANCE_A
        start += len(atoms)
    assert_equal({name: data[name] for name in OUTPUTS}, MODEL, from_batch(data))


def test_two_models_are_added():
    batch = packed(crystals().values())
    outputs = (DPA4Model(MODEL) + DPA4Model(LennardJones(epsilon=0.1)))(to_batch(batch))
    expected = MODEL(batch).energy + LennardJones(epsilon=0.1)(batch).energy
    torch.testing.assert_close(outputs["energy"][:, 0], expected, rtol=1e-12, atol=0)


def test_without_the_extra_the_error_says_what_to_type():
    code = (
        "import sys; sys.modules['nvalchemi'] = None; sys.modules['nvalchemi.data'] = None\n"
        "import dpa4sim.adapters.nvalchemi"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert found.returncode != 0
    assert "pip install 'dpa4sim[nvalchemi]'" in found.stderr
