"""Conditions, the start of a trajectory, and laws 1, 4 and 5 for every integrator."""

from dataclasses import replace
from functools import partial
from math import inf, nan

import pytest
import torch
from toy import Einstein, Free, LennardJones, Sick, crystals, packed

from dpa4sim.batch import Batch
from dpa4sim.errors import ConfigError, DataError, Status
from dpa4sim.pool.pack import fill, flatten, join, take
from dpa4sim.simulate.npt import c_rescale_step
from dpa4sim.simulate.nve import nve_step
from dpa4sim.simulate.nvt import bussi_step, langevin_step
from dpa4sim.simulate.state import (
    MDState,
    external_pressure,
    kinetic_energy,
    md_init,
    set_conditions,
    temperature,
    thermal_energy,
)
from dpa4sim.units import BOLTZMANN_EV_K, EV_PER_AMU_A2_FS2, GPA_PER_EV_A3

STEPS = {
    "nve": nve_step,
    "langevin": langevin_step,
    "bussi": bussi_step,
    "isotropic": c_rescale_step,
    "anisotropic": partial(c_rescale_step, coupling="anisotropic"),
    "triclinic": partial(c_rescale_step, coupling="triclinic"),
}
ALL = pytest.mark.parametrize("name", STEPS)
NPT = ("isotropic", "anisotropic", "triclinic")

ROUNDING = 1e-12


def walk(state: MDState, model, step, n: int) -> MDState:
    for _ in range(n):
        state = step(state, model)
    return state


def started(batch: Batch, model, **settings) -> MDState:
    return md_init(batch, model, conditions=set_conditions(batch, **{"n_steps": 99} | settings))


def bits(state: MDState) -> dict[str, torch.Tensor]:
    """Everything but the numbering of the systems."""
    return {name: t for name, t in flatten(state).items() if "system_idx" not in name}


def assert_same_bits(ours: MDState, theirs: MDState) -> None:
    torch.testing.assert_close(bits(ours), bits(theirs), rtol=0, atol=0, equal_nan=True)


# --- conditions --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"timestep": -1.0}, "timestep = -1 for system 0"),
        ({"timestep": [1.0, 1.0, 0.0]}, "timestep = 0 for system 2"),
        ({"timestep": nan}, "finite"),
        ({"temperature": [300.0, 400.0]}, "temperature has 2 values for 3 systems"),
        ({"temperature": -5.0}, "temperature = -5"),
        ({"temperature": 0.0, "temperature_end": 100.0}, "ramp a start above 0 K"),
        ({"temperature_end": inf}, "finite"),
        ({"thermostat_time": 0.0}, "thermostat_time = 0"),
        ({"barostat_time": -1.0}, "barostat_time = -1"),
        ({"bulk_modulus_gpa": 0.0}, "bulk_modulus_gpa = 0"),
        ({"n_steps": 0}, "n_steps = 0"),
        ({"n_steps": 2.5}, "n_steps = 2.5"),
        ({"seed": 2**70}, "seed"),
        ({"seed": 0.5}, "seed = 0.5"),
        ({"identity": [0, -1, 2]}, "identity = -1 for system 1"),
    ],
)
def test_conditions_that_cannot_be_used(settings, words):
    batch = packed(list(crystals().values())[:3])
    with pytest.raises(ConfigError, match=words):
        set_conditions(batch, **{"n_steps": 10} | settings)


def test_conditions_of_each_system():
    batch = packed(list(crystals().values())[:3])
    found = set_conditions(
        batch,
        n_steps=[10, 20, 30],
        temperature=[100, 200, 300],
        temperature_end=600,
        pressure_gpa=(0.0, 1.0, 2.0),
        seed=2**62 + 1,
        bulk_modulus_gpa=50.0,
    )
    assert found.n_steps.tolist() == [10, 20, 30]
    assert found.temperature_start.tolist() == [100.0, 200.0, 300.0]
    assert found.temperature_end.tolist() == [600.0] * 3
    assert (found.pressure_end * GPA_PER_EV_A3).tolist() == pytest.approx([0.0, 1.0, 2.0])
    assert found.seed.tolist() == [2**62 + 1] * 3
    assert found.identity.tolist() == [0, 1, 2]
    assert found.degrees_of_freedom.tolist() == [3, 21, 9], "a single atom keeps its three"
    assert (found.compressibility * 50.0 / GPA_PER_EV_A3).tolist() == pytest.approx([1.0] * 3)


def test_ramps_are_linear_and_each_on_its_own_clock():
    batch, model = packed(list(crystals().values())[:2]), Free()
    state = started(
        batch,
        model,
        n_steps=[4, 8],
        temperature=[100.0, 300.0],
        temperature_end=[500.0, 300.0],
        pressure_gpa=[0.0, 8.0],
        pressure_end_gpa=[4.0, 0.0],
    )
    kelvin, gpa = [], []
    for _ in range(4):
        kelvin.append((thermal_energy(state) / BOLTZMANN_EV_K).tolist())
        gpa.append((external_pressure(state) * GPA_PER_EV_A3).tolist())
        state = nve_step(state, model)
    ramp = torch.tensor(kelvin)
    assert ramp[:, 0].tolist() == pytest.approx([200.0, 300.0, 400.0, 500.0])
    assert ramp[:, 1].tolist() == pytest.approx([300.0] * 4)
    assert torch.tensor(gpa)[:, 0].tolist() == pytest.approx([1.0, 2.0, 3.0, 4.0])
    assert torch.tensor(gpa)[:, 1].tolist() == pytest.approx([7.0, 6.0, 5.0, 4.0])


# --- the start ---------------------------------------------------------------------------------


def test_first_velocities_are_thermal_and_do_not_drift():
    atoms = crystals()["cubic"]
    batch = packed([atoms] * 200)
    state = started(batch, Free(), temperature=[300.0] * 100 + [900.0] * 100, seed=4)
    momentum = torch.zeros(200, 3, dtype=torch.float64)
    momentum = momentum.index_add(0, batch.system_idx, state.masses[:, None] * state.velocities)
    assert float(momentum.abs().max()) < ROUNDING
    degrees = 3 * len(atoms) - 3
    spread = (2.0 / degrees) ** 0.5
    found = temperature(state)
    for part, wanted in ((found[:100], 300.0), (found[100:], 900.0)):
        five_sigma = 5 * wanted * spread / 100**0.5
        assert float(part.mean()) == pytest.approx(wanted, abs=five_sigma)
        assert float(part.std()) == pytest.approx(wanted * spread, rel=5 / 200**0.5)
    scaled = md_init(batch, Free(), conditions=state.conditions, exact_temperature=True)
    wanted = state.conditions.temperature_start
    torch.testing.assert_close(temperature(scaled), wanted, rtol=ROUNDING, atol=0)


def test_given_velocities_and_masses():
    batch = packed([crystals()["hexagonal"]])
    conditions = set_conditions(batch, n_steps=5)
    velocities = torch.tensor([[0.02, 0.0, 0.0], [0.0, 0.0, 0.0]])
    masses = torch.tensor([1.0, 3.0])
    state = md_init(batch, Free(), conditions=conditions, velocities=velocities, masses=masses)
    expected = torch.tensor([[0.015, 0.0, 0.0], [-0.005, 0.0, 0.0]]).double()
    torch.testing.assert_close(state.velocities, expected, rtol=1e-6, atol=0)
    energy = 0.5 * EV_PER_AMU_A2_FS2 * (0.015**2 + 3 * 0.005**2)
    assert float(kinetic_energy(state)) == pytest.approx(energy)
    with pytest.raises(DataError, match="velocities have shape"):
        md_init(batch, Free(), conditions=conditions, velocities=velocities[:1])
    for bad in (masses[:1], -masses):
        with pytest.raises(DataError, match="masses have shape"):
            md_init(batch, Free(), conditions=conditions, masses=bad)


# --- law 1 and law 5: the same trajectory in any company ---------------------------------------


@ALL
def test_a_trajectory_is_the_same_in_any_company(name):
    step, model = STEPS[name], LennardJones()
    systems = [packed([atoms]) for atoms in crystals().values()]
    together = Batch.concatenate(systems)
    settings = {"temperature": [200.0, 300.0, 400.0, 500.0, 600.0], "timestep": 2.0, "seed": 11}
    start = started(together, model, **settings)
    whole = walk(start, model, step, 6)
    assert set(whole.status.tolist()) == {Status.RUNNING}
    for k, system in enumerate(systems):
        conditions = take(start, [k]).conditions
        alone = walk(md_init(system, model, conditions=conditions), model, step, 6)
        assert_same_bits(take(whole, [k]), alone)
    backwards = walk(take(start, [4, 3, 2, 1, 0]), model, step, 6)
    assert_same_bits(take(backwards, [4, 3, 2, 1, 0]), whole)


@ALL
def test_a_copied_state_goes_on_bit_for_bit(name):
    step, model = STEPS[name], LennardJones()
    batch = packed(crystals().values())
    state = walk(started(batch, model, seed=3), model, step, 5)
    kept = {name: tensor.clone() for name, tensor in flatten(state).items()}
    other = started(batch, model, seed=9)
    resumed = fill(other, kept)
    assert_same_bits(walk(resumed, model, step, 5), walk(state, model, step, 5))


@pytest.mark.parametrize("name", ["langevin", "bussi", "isotropic", "triclinic"])
def test_newcomers_and_leavers_are_not_noticed(name):
    """As a pool does it: systems join and leave between steps, each at its own step number."""
    step, model = STEPS[name], LennardJones()
    first, second = (packed([crystals()[key]]) for key in ("cubic", "skewed"))
    old = started(first, model, seed=1, identity=[8])
    new = started(second, model, seed=1, identity=[9])
    mixed = walk(join(walk(old, model, step, 4), new), model, step, 3)
    assert_same_bits(take(mixed, [0]), walk(old, model, step, 7))
    assert_same_bits(take(mixed, [1]), walk(new, model, step, 3))


@pytest.mark.parametrize("name", ["langevin", "bussi", "isotropic"])
def test_seed_and_identity_tell_trajectories_apart(name):
    step, model = STEPS[name], LennardJones()
    batch = packed([crystals()["hexagonal"]] * 4)
    settings = {"seed": [1, 2, 1, 1], "identity": [0, 0, 1, 0]}
    state = walk(started(batch, model, **settings), model, step, 2)
    parts = [take(state, [k]) for k in range(4)]
    assert torch.equal(parts[0].velocities, parts[3].velocities)
    for k in (1, 2):
        assert not torch.equal(parts[0].velocities, parts[k].velocities)
    same_start = replace(started(batch, model, **settings))
    velocities = take(same_start, [0, 0, 0, 0]).velocities
    state = md_init(batch, model, conditions=same_start.conditions, velocities=velocities)
    state = walk(state, model, step, 1)
    assert not torch.equal(take(state, [0]).velocities, take(state, [2]).velocities)


# --- law 4: the sick ---------------------------------------------------------------------------

ILLNESSES = [
    ("energy", nan, Status.NOT_FINITE),
    ("forces", nan, Status.NOT_FINITE),
    ("forces", inf, Status.NOT_FINITE),
    ("stress", nan, Status.NOT_FINITE),
    ("forces", 1e4, Status.EXPLODED),
]
"""Field, value, verdict."""


def marked() -> Batch:
    """Five crystals; the third is the one that falls sick."""
    batch = packed(crystals().values())
    batch.atomic_numbers[batch.system_idx == 2] = Sick.MARK
    return batch


def assert_quarantined(path: list[MDState], healthy: list[MDState], expected: Status) -> int:
    """The third is marked and stays at its last sound step; returns the step of the onset."""
    for ours, theirs in zip(path, healthy, strict=True):
        assert_same_bits(take(ours, [0, 1, 3, 4]), take(theirs, [0, 1, 3, 4]))
    status = [int(state.status[2]) for state in path]
    onset = status.index(expected)
    assert status == [Status.RUNNING] * onset + [expected] * (len(path) - onset)
    before, after = bits(take(path[onset - 1], [2])), bits(take(path[-1], [2]))
    for name in before.keys() - {"status", "steps"}:
        assert torch.equal(before[name], after[name]), name
        assert torch.isfinite(after[name]).all()
    assert int(path[-1].steps[2]) == onset
    return onset


def recorded(state: MDState, model, step, n: int) -> list[MDState]:
    path = [state]
    for _ in range(n):
        path.append(step(path[-1], model))
    return path


@ALL
@pytest.mark.parametrize(("field", "value", "expected"), ILLNESSES)
def test_sick_from_the_third_step(name, field, value, expected):
    step = STEPS[name]
    sick = Sick(LennardJones(), field, value, from_call=4)
    path = recorded(started(marked(), sick), sick, step, 6)
    healthy = recorded(started(marked(), LennardJones()), LennardJones(), step, 6)
    assert assert_quarantined(path, healthy, expected) == 3


@pytest.mark.parametrize("name", NPT)
@pytest.mark.parametrize(
    ("stress", "expected"), [(-50.0, Status.EXPLODED), (50.0, Status.COLLAPSED)]
)
def test_a_cell_that_leaves_its_bounds(name, stress, expected):
    step = STEPS[name]
    seen = []

    def watched(batch: Batch):
        seen.append(float(batch.volume[2] / start.volume[2]))
        return sick(batch)

    start, sick = marked(), Sick(LennardJones(), "stress", stress, from_call=4)
    watched.cutoff, watched.device = sick.cutoff, sick.device
    settings = {"barostat_time": 600.0}
    path = recorded(started(start, watched, **settings), watched, step, 22)
    healthy = recorded(started(start, LennardJones(), **settings), LennardJones(), step, 22)
    onset = assert_quarantined(path, healthy, expected)
    assert onset > 3
    assert 0.2 <= min(seen) <= max(seen) <= 5.0, "the model never sees such a cell"
    assert not 0.3 < seen[-1] < 3.0


@pytest.mark.parametrize(("field", "value", "expected"), ILLNESSES)
def test_sick_from_the_start(field, value, expected):
    sick = Sick(LennardJones(), field, value)
    state = walk(started(marked(), sick), sick, nve_step, 2)
    healthy = walk(started(marked(), LennardJones()), LennardJones(), nve_step, 2)
    assert_same_bits(take(state, [0, 1, 3, 4]), take(healthy, [0, 1, 3, 4]))
    assert int(state.status[2]) == expected
    assert int(state.steps[2]) == 0


def test_positions_that_run_away_are_not_taken_for_free_flight():
    """Beyond 1e8 Å no neighbours are searched: there is no force, and that is not zero force."""
    batch, model = packed(crystals().values()), LennardJones()
    state = started(batch, model)
    velocities = state.velocities.clone()
    velocities[batch.system_idx == 1] = 1e9
    state = replace(state, velocities=velocities)
    after = nve_step(state, model)
    assert after.status.tolist() == [0, Status.NOT_FINITE, 0, 0, 0]
    assert torch.equal(take(after, [1]).batch.positions, take(state, [1]).batch.positions)


def test_a_structure_that_cannot_be_computed_is_invalid():
    batch = packed(list(crystals().values())[:2])
    cell = batch.cell.clone()
    cell[1] = 0.0
    state = started(batch.with_geometry(batch.positions, cell), LennardJones())
    assert state.status.tolist() == [Status.RUNNING, Status.INVALID]


def test_a_molecule_has_no_stress_and_is_not_sick():
    batch = Batch.single([[0.0, 0, 0], [0, 0, 2.5]], [29, 29])
    state = walk(started(batch, LennardJones()), LennardJones(), langevin_step, 2)
    assert state.status.tolist() == [Status.RUNNING]
    assert torch.isnan(state.prediction.stress).all()


def test_the_edges_of_a_prediction_are_not_kept():
    model = LennardJones()
    batch = packed([crystals()["cubic"]])
    assert model(batch).edges is not None
    state = started(batch, model)
    assert state.prediction.edges is None
    assert nve_step(state, model).prediction.edges is None


def test_atoms_are_numbered_within_their_system():
    batch = packed(list(crystals().values())[2:4])
    state = started(batch, Einstein())
    counts = batch.n_atoms.tolist()
    assert state.number.tolist() == [*range(counts[0]), *range(counts[1])]
