"""Our integrators inside TorchSim's `ts.integrate`."""

import pytest
import torch
import torch_sim as ts
from torch_sim.autobatching import BinningAutoBatcher
from torch_sim.constraints import FixAtoms
from torch_sim.units import MetalUnits
from toy import LennardJones, crystals, packed, without_bulk

from dpa4sim.adapters.torchsim import DPA4Model, from_state, to_state
from dpa4sim.adapters.torchsim_state import MotionState, unpacked
from dpa4sim.adapters.torchsim_steps import INTEGRATORS, simulate_pair
from dpa4sim.errors import ConfigError, DataError, Status
from dpa4sim.simulate.random import WORD
from dpa4sim.simulate.state import MDState, kinetic_energy, md_init, set_conditions, temperature

MODEL = LennardJones(cutoff=5.0)
TIMESTEP_FS = 2.0
TEMPERATURES_K = [50.0, 300.0, 100.0, 200.0, 400.0]

SAME_PATH_A = 1e-9
"""After 40 fs; measured 1e-11.  TorchSim's unit of time differs from ours in its ninth digit."""

UNITS = 1e-7
"""Relative; the constants of both sides are of different CODATA years."""


def start() -> ts.SimState:
    return to_state(packed(crystals().values()))


def integrate(system, n_steps: int, pair="langevin", autobatcher=False, **settings) -> MotionState:
    chosen = simulate_pair(pair, **settings) if isinstance(pair, str) else pair
    return ts.integrate(
        system=system,
        model=DPA4Model(MODEL),
        integrator=chosen,
        n_steps=n_steps,
        temperature=TEMPERATURES_K[: system.n_systems],
        timestep=TIMESTEP_FS / 1000,
        autobatcher=autobatcher,
    )


def ours(integrator: str, n_steps: int, **settings) -> MDState:
    batch = packed(crystals().values())
    conditions = set_conditions(
        batch, n_steps=WORD, timestep=TIMESTEP_FS, temperature=TEMPERATURES_K, **settings
    )
    state = md_init(batch, MODEL, conditions=conditions)
    for _ in range(n_steps):
        state = INTEGRATORS[integrator](state, MODEL)
    return state


def assert_same(mine: torch.Tensor, theirs: torch.Tensor) -> None:
    torch.testing.assert_close(mine, theirs, rtol=0, atol=SAME_PATH_A)


@pytest.mark.parametrize("integrator", INTEGRATORS)
def test_paths_are_those_of_our_own_loop(integrator):
    state = integrate(start(), 10, integrator, seed=3)
    expected = ours(integrator, 10, seed=3)
    assert_same(state.positions, expected.batch.positions)
    assert_same(state.row_vector_cell, expected.batch.cell)
    assert_same(state.energy, expected.prediction.energy)
    assert state.steps.tolist() == [10] * 5
    assert state.status.tolist() == [Status.RUNNING] * 5
    moved = (from_state(state).cell - packed(crystals().values()).cell).abs().amax((1, 2)) > 0
    assert moved.all() == (integrator in ("isotropic", "anisotropic", "triclinic"))


def test_nve_is_that_of_torchsim():
    """From the same momenta; nothing of ours sets the units of theirs."""
    system = ts.nve_init(start(), DPA4Model(MODEL), kT=torch.tensor(0.03))
    system.momenta = momenta_without_drift(system)
    end = {}
    for name, integrator in (("theirs", ts.Integrator.nve), ("ours", simulate_pair("nve"))):
        end[name] = ts.integrate(
            system=system.clone(),
            model=DPA4Model(MODEL),
            integrator=integrator,
            n_steps=20,
            temperature=300.0,
            timestep=TIMESTEP_FS / 1000,
        )
    assert (end["ours"].positions - system.positions).abs().max() > 0.01
    torch.testing.assert_close(end["ours"].positions, end["theirs"].positions, rtol=0, atol=1e-7)
    torch.testing.assert_close(end["ours"].momenta, end["theirs"].momenta, rtol=0, atol=1e-5)


def momenta_without_drift(state) -> torch.Tensor:
    """Half of the atoms' own, so that the start is not at rest either."""
    total = torch.zeros(state.n_systems, 3).double().index_add(0, state.system_idx, state.momenta)
    mass = torch.zeros(state.n_systems).double().index_add(0, state.system_idx, state.masses)
    return state.momenta - state.masses[:, None] * (total / mass[:, None])[state.system_idx]


def test_torchsim_reads_our_kinetic_energy_and_temperature():
    """The centre of mass is no degree of freedom, and TorchSim counts so; one atom has none."""
    structures = [atoms for atoms in crystals().values() if len(atoms) > 1]
    state = integrate(to_state(packed(structures)), 3)
    record = unpacked(state)
    kinetic = ts.calc_kinetic_energy(
        momenta=state.momenta, masses=state.masses, system_idx=state.system_idx
    )
    torch.testing.assert_close(kinetic, kinetic_energy(record), rtol=UNITS, atol=0)
    torch.testing.assert_close(
        state.calc_temperature(), temperature(record), rtol=1e-5, atol=0
    )  # Boltzmann's constant differs in its seventh digit


def test_a_run_in_two_parts_is_a_run_in_one():
    """The second part does not draw the random numbers of the first again."""
    whole = integrate(start(), 10, "bussi")
    half = integrate(start(), 4, "bussi")
    joined = integrate(half, 6, "bussi")
    assert joined.steps.tolist() == [10] * 5
    assert torch.equal(joined.positions, whole.positions)
    assert torch.equal(joined.momenta, whole.momenta)


def binned() -> BinningAutoBatcher:
    return BinningAutoBatcher(DPA4Model(MODEL), memory_scales_with="n_atoms", max_memory_scaler=33)


def test_batches_of_torchsim_change_no_bit_of_numbered_systems():
    system = start()
    system.system_extras["identity"] = torch.tensor([4, 8, 15, 16, 23])
    alone = integrate(system, 6)
    in_bins = integrate(system, 6, autobatcher=binned())
    assert torch.equal(alone.positions, in_bins.positions)
    assert torch.equal(alone.momenta, in_bins.momenta)


def test_replicas_in_several_batches_go_several_ways():
    """Each batch has its own beginning, and none of them numbers its systems from 0 again."""
    system = to_state(packed([crystals()["hexagonal"]] * 5))
    batcher = BinningAutoBatcher(
        DPA4Model(MODEL), memory_scales_with="n_atoms", max_memory_scaler=4
    )
    end = ts.integrate(
        system=system,
        model=DPA4Model(MODEL),
        integrator=simulate_pair(),
        n_steps=2,
        temperature=300.0,
        timestep=0.001,
        autobatcher=batcher,
    )
    paths = end.positions.reshape(5, -1)
    assert len(torch.unique(paths, dim=0)) == 5


def test_a_ramp_of_torchsim_arrives():
    ramp = torch.linspace(300.0, 30.0, 6)
    pair = simulate_pair("langevin", thermostat_time=50.0)
    state = ts.integrate(
        system=start(),
        model=DPA4Model(MODEL),
        integrator=pair,
        n_steps=6,
        temperature=ramp,
        timestep=0.001,
    )
    reached = unpacked(state).conditions.temperature_end
    torch.testing.assert_close(reached, torch.full((5,), 30.0).double(), rtol=1e-6, atol=0)


def test_the_conditions_are_those_that_were_asked_for():
    settings = {"thermostat_time": 70.0, "pressure_gpa": 2.0, "barostat_time": 500.0}
    state = integrate(start(), 1, "triclinic", bulk_modulus_gpa=60.0, **settings)
    found = unpacked(state).conditions
    expected = ours("triclinic", 0, bulk_modulus_gpa=60.0, **settings).conditions
    torch.testing.assert_close(found.timestep, expected.timestep, rtol=1e-12, atol=0)
    torch.testing.assert_close(
        found.temperature_start, expected.temperature_start, rtol=1e-12, atol=0
    )
    for name in ("thermostat_time", "barostat_time", "pressure_start", "compressibility", "seed"):
        assert torch.equal(getattr(found, name), getattr(expected, name)), name


def test_a_sick_system_is_marked_and_its_mates_go_on():
    system = start()
    system.positions[1] = torch.nan  # an atom of the second crystal
    state = integrate(system, 4, "nve")
    expected = integrate(start(), 4, "nve")
    assert state.status.tolist() == [Status.RUNNING, Status.INVALID, *[Status.RUNNING] * 3]
    mates = [0, 2, 3, 4]
    assert torch.equal(state.energy[mates], expected.energy[mates])
    healthy = state.system_idx != 1
    assert torch.equal(state.positions[healthy], expected.positions[healthy])


def test_slabs_and_molecules_move_at_fixed_cells():
    for atoms in without_bulk().values():
        state = integrate(to_state(packed([atoms])), 3, "bussi")
        assert state.status.tolist() == [Status.RUNNING]
        assert torch.equal(state.row_vector_cell, packed([atoms]).cell)
        with pytest.raises(DataError, match="has no meaning"):
            integrate(to_state(packed([atoms])), 3, "isotropic")


def test_constraints_that_would_not_be_kept_are_refused():
    system = start()
    system.constraints = [FixAtoms(atom_idx=torch.tensor([3]))]
    with pytest.raises(DataError, match="FixAtoms is not a constraint"):
        integrate(system, 1)


def test_unknown_integrators_are_refused():
    with pytest.raises(ConfigError, match="integrator='nose_hoover' is not known"):
        simulate_pair("nose_hoover")


def test_units_are_those_that_torchsim_means():
    assert float(MetalUnits.time) == pytest.approx(1000 / 10.18051, rel=1e-6)
