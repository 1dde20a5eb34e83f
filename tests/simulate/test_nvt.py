"""Langevin and stochastic velocity rescaling: the equations of one step, and their limits."""

from dataclasses import replace
from math import exp, sqrt

import pytest
import torch
from toy import Einstein, Free, LennardJones, crystals, packed

from dpa4sim.batch import Batch
from dpa4sim.simulate.nve import nve_step
from dpa4sim.simulate.nvt import bussi_step, langevin_step, rescale, rescaling_numbers
from dpa4sim.simulate.random import Stream
from dpa4sim.simulate.state import (
    MDState,
    atom_normals,
    conserved_energy,
    kinetic_energy,
    md_init,
    set_conditions,
    temperature,
    thermal_energy,
)
from dpa4sim.units import BOLTZMANN_EV_K, EV_PER_AMU_A2_FS2

ROUNDING = 1e-12

BOTH = pytest.mark.parametrize("step", [langevin_step, bussi_step])


def started(batch: Batch, model, **settings) -> MDState:
    return md_init(batch, model, conditions=set_conditions(batch, **{"n_steps": 999} | settings))


def test_a_langevin_step_written_out():
    """Two atoms on springs, number by number."""
    model = Einstein(stiffness=2.0)
    batch = Batch.single([[0.1, 0.0, -0.2], [0.3, 0.2, 0.0]], [3, 11])
    state = started(batch, model, timestep=1.5, thermostat_time=20.0, temperature=250.0)
    noise = atom_normals(state, Stream.LANGEVIN)
    c, kt = exp(-1.5 / 20.0), BOLTZMANN_EV_K * 250.0
    masses = state.masses.tolist()
    random = [[sqrt((1 - c * c) * kt / EV_PER_AMU_A2_FS2 / m) * float(x) for x in row]
              for m, row in zip(masses, noise, strict=True)]  # fmt: skip
    for axis in range(3):
        drift = sum(m * r[axis] for m, r in zip(masses, random, strict=True)) / sum(masses)
        for atom, m in enumerate(masses):
            x, v = float(batch.positions[atom, axis]), float(state.velocities[atom, axis])
            v += 0.75 * -2.0 * x / (m * EV_PER_AMU_A2_FS2)
            x += 0.75 * v
            v = c * v + random[atom][axis] - drift
            x += 0.75 * v
            v += 0.75 * -2.0 * x / (m * EV_PER_AMU_A2_FS2)
            after = langevin_step(state, model)
            assert float(after.batch.positions[atom, axis]) == pytest.approx(x, rel=ROUNDING)
            assert float(after.velocities[atom, axis]) == pytest.approx(v, rel=1e-10)


def test_rescaling_written_out():
    """The kinetic energy that Bussi's Eq. A7 gives, and velocities along the old ones."""
    state = started(packed(crystals().values()), Free(), thermostat_time=30.0, timestep=2.0)
    squares, (normal,) = rescaling_numbers(state, 1)
    before, kt = kinetic_energy(state), thermal_energy(state)
    after = rescale(state, before, kt, squares, normal)
    c, f = exp(-2.0 / 30.0), state.conditions.degrees_of_freedom
    for s in range(state.batch.n_systems):
        k, r, mean = float(before[s]), float(normal[s]), 0.5 * float(f[s]) * float(kt[s])
        expected = c * k + (1 - c) * mean / float(f[s]) * (r * r + float(squares[s]))
        expected += 2 * r * sqrt(c * (1 - c) * k * mean / float(f[s]))
        assert float(kinetic_energy(after)[s]) == pytest.approx(expected, rel=ROUNDING)
        ratio = (after.velocities / state.velocities)[state.batch.system_idx == s]
        assert float((ratio - ratio[0, 0]).abs().max()) < 1e-9
    torch.testing.assert_close(after.heat, kinetic_energy(after) - before, rtol=1e-9, atol=1e-12)


def test_the_numbers_of_a_rescaling_do_not_depend_on_how_many_are_asked_for():
    state = started(packed(crystals().values()), Free())
    few, many = rescaling_numbers(state, 2), rescaling_numbers(state, 4)
    assert torch.equal(few[0], many[0])
    assert torch.equal(few[1][0], many[1][0])
    assert len(rescaling_numbers(state, 7)[1]) == 7


@BOTH
def test_a_slow_thermostat_leaves_constant_energy(step):
    batch, model = packed(crystals().values()), LennardJones()
    ours = theirs = started(batch, model, thermostat_time=1e30, timestep=2.0)
    for _ in range(5):
        ours, theirs = step(ours, model), nve_step(theirs, model)
    assert float((ours.batch.positions - theirs.batch.positions).abs().max()) < ROUNDING
    assert float(ours.heat.abs().max()) < 1e-9


@BOTH
def test_heat_is_all_the_energy_that_free_particles_get(step):
    state = started(packed(crystals().values()), Free(), temperature=500.0)
    before = conserved_energy(state)
    for _ in range(50):
        state = step(state, Free())
    assert float(state.heat.abs().min()) > 1e-4, "eV"
    assert float((conserved_energy(state) - before).abs().max()) < ROUNDING


@BOTH
def test_the_centre_of_mass_stays_at_rest(step):
    batch = packed([atoms for name, atoms in crystals().items() if name != "primitive"])
    state = started(batch, Free(), thermostat_time=10.0)
    for _ in range(20):
        state = step(state, Free())
    momentum = torch.zeros(batch.n_systems, 3, dtype=torch.float64)
    momentum = momentum.index_add(0, batch.system_idx, state.masses[:, None] * state.velocities)
    assert float(momentum.abs().max()) < 1e-10


def test_a_single_atom_has_three_degrees_of_freedom():
    batch = Batch.concatenate([Batch.single([[0.0, 0.0, 0.0]], [29])] * 2000)
    state = started(batch, Free(), temperature=400.0, thermostat_time=2.0)
    for _ in range(10):
        state = langevin_step(state, Free())
    five_sigma = 5 * 400.0 * sqrt(2 / 3 / 2000)
    assert float(temperature(state).mean()) == pytest.approx(400.0, abs=five_sigma)


@BOTH
def test_each_system_follows_its_own_ramp(step):
    """A thermostat much faster than the ramp: the temperature ends at the end of the ramp."""
    batch = packed([crystals()["cubic"]] * 300)
    ends = torch.tensor([100.0, 400.0, 900.0]).repeat_interleave(100)
    state = started(
        batch, Free(), n_steps=100, temperature=300.0, temperature_end=ends, thermostat_time=1.0
    )
    halfway = None
    for k in range(100):
        state = step(state, Free())
        halfway = temperature(state) if k == 49 else halfway
    for part in range(3):
        rows = slice(100 * part, 100 * part + 100)
        for found, wanted in ((temperature(state), ends), (halfway, 0.5 * (300.0 + ends))):
            mean, target = float(found[rows].mean()), float(wanted[rows][0])
            five_sigma = 5 * target * sqrt(2 / 93 / 100)
            assert mean == pytest.approx(target, abs=five_sigma + 0.03 * target)


def test_rescaling_cools_to_nothing_and_cannot_heat_it():
    batch, model = packed([crystals()["cubic"]]), Free()
    state = started(batch, model, temperature=0.0)
    moving = replace(state, velocities=0.01 * (batch.positions - batch.positions.mean(0)))
    before = float(kinetic_energy(moving))
    assert float(kinetic_energy(bussi_step(moving, model))) == pytest.approx(
        before * exp(-1.0 / 100.0), rel=ROUNDING
    )
    still = bussi_step(state, model)
    assert not still.velocities.any()
    assert float(still.heat) == 0.0
