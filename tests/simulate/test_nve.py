"""Velocity Verlet: reversible, second order, and the same trajectory in any company."""

from dataclasses import replace

import pytest
import torch
from toy import Einstein, LennardJones, crystals, packed, without_bulk

from dpa4sim.batch import Batch
from dpa4sim.errors import Status
from dpa4sim.simulate.nve import drift, kick, nve_step
from dpa4sim.simulate.state import MDState, conserved_energy, md_init, set_conditions
from dpa4sim.units import EV_PER_AMU_A2_FS2

ROUNDING = 1e-11
"""Å, Å/fs: 100 steps there and back in float64, whose errors a crystal at 300 K hardly grows."""

MOMENTUM = 1e-10
"""amu Å/fs: sums of some thousand rounded terms below 10."""


def started(batch: Batch, model, **settings) -> MDState:
    return md_init(batch, model, conditions=set_conditions(batch, **settings))


def test_kick_and_drift_in_closed_form():
    batch = packed(crystals().values())
    state = started(batch, LennardJones(), n_steps=1, timestep=[1.0, 2.0, 3.0, 4.0, 5.0])
    dt = torch.tensor([1.0, 2.0, 3.0, 4.0, 5.0]).double()[batch.system_idx, None]
    acceleration = state.prediction.forces / (EV_PER_AMU_A2_FS2 * state.masses[:, None])
    expected = state.velocities + 0.25 * dt * acceleration
    torch.testing.assert_close(kick(state, 0.25).velocities, expected, rtol=1e-13, atol=0)
    expected = state.batch.positions + 0.25 * dt * state.velocities
    torch.testing.assert_close(drift(state, 0.25).batch.positions, expected, rtol=1e-13, atol=0)


def test_a_harmonic_oscillator_in_closed_form():
    """x_n = x_0 cos(n w' dt) with sin(w' dt / 2) = w dt / 2, from rest at half a step's kick."""
    batch = Batch.single([[0.3, 0.0, 0.0]], [1])
    model, dt = Einstein(stiffness=5.0), 2.0
    conditions = set_conditions(batch, n_steps=50, timestep=dt, temperature=0.0)
    state = md_init(batch, model, conditions=conditions, masses=torch.tensor([7.0]))
    omega = (5.0 / (7.0 * EV_PER_AMU_A2_FS2)) ** 0.5
    angle = 2 * torch.asin(torch.tensor(omega * dt / 2, dtype=torch.float64))
    for n in range(1, 51):
        state = nve_step(state, model)
        assert float(state.batch.positions[0, 0] - 0.3 * torch.cos(n * angle)) == pytest.approx(
            0, abs=1e-12
        )
    assert state.status.tolist() == [Status.COMPLETED]


def test_it_runs_backwards():
    batch, model = packed([*crystals().values(), *without_bulk().values()]), LennardJones()
    start = state = started(batch, model, n_steps=100, timestep=2.0, seed=1)
    for _ in range(100):
        state = nve_step(state, model)
    assert float((state.batch.positions - batch.positions).abs().max()) > 0.1
    back = md_init(state.batch, model, conditions=state.conditions, velocities=-state.velocities)
    for _ in range(100):
        back = nve_step(back, model)
    assert float((back.batch.positions - batch.positions).abs().max()) < ROUNDING
    assert float((back.velocities + start.velocities).abs().max()) < ROUNDING


def test_the_energy_error_is_of_second_order():
    """Three timesteps in one batch over the same time: the largest deviation goes as dt^2."""
    atoms = crystals()["cubic"] * (1, 1, 1)
    atoms.set_cell(atoms.cell.array * 3.62 / 3.7, scale_atoms=True)
    batch, model = packed([atoms] * 3), LennardJones()
    steps = torch.tensor([200, 100, 50])
    conditions = set_conditions(
        batch, n_steps=steps, timestep=[1.0, 2.0, 4.0], seed=3, identity=[0, 0, 0]
    )
    state = md_init(batch, model, conditions=conditions)
    start = conserved_energy(state)
    worst = torch.zeros_like(start)
    for _ in range(200):
        state = nve_step(state, model)
        worst = torch.maximum(worst, (conserved_energy(state) - start).abs())
    ratios = (worst[1:] / worst[:-1]).tolist()
    assert ratios == pytest.approx([4.0, 4.0], rel=0.15), "an error of dt^3 would give 8"
    assert float(worst[0]) / 32 < 1e-3, "eV per atom"


def test_momentum_is_kept():
    batch, model = packed(crystals().values()), LennardJones()
    state = started(batch, model, n_steps=50, timestep=3.0)
    before = momentum(state)
    assert float(before[1:].abs().max()) < MOMENTUM, "only a single atom drifts"
    for _ in range(50):
        state = nve_step(state, model)
    assert float((momentum(state) - before).abs().max()) < MOMENTUM


def momentum(state: MDState) -> torch.Tensor:
    found = torch.zeros(state.batch.n_systems, 3, dtype=torch.float64)
    return found.index_add(0, state.batch.system_idx, state.masses[:, None] * state.velocities)


def test_what_has_ended_stands_still():
    batch, model = packed(crystals().values()), LennardJones()
    state = started(batch, model, n_steps=[3, 50, 50, 50, 50])
    for _ in range(3):
        state = nve_step(state, model)
    assert state.status.tolist() == [Status.COMPLETED, *[Status.RUNNING] * 4]
    ended = replace(state)
    for _ in range(3):
        state = nve_step(state, model)
    mine = batch.system_idx == 0
    assert torch.equal(state.batch.positions[mine], ended.batch.positions[mine])
    assert torch.equal(state.velocities[mine], ended.velocities[mine])
    assert state.steps.tolist() == [3, 6, 6, 6, 6]
    assert not torch.equal(state.batch.positions[~mine], ended.batch.positions[~mine])
