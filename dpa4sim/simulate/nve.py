"""Constant energy: velocity Verlet, and the pieces that every integrator is composed of.

    kick    v <- v + a dt                 drift    r <- r + v dt

An integrator is a chain of pieces up to the new positions; `arrive` evaluates the model there and
gives the last half kick (Swope, Andersen, Berens and Wilson, J. Chem. Phys. 76, 637, 1982).
"""

from __future__ import annotations

from dataclasses import replace

import torch

from dpa4sim.errors import Status
from dpa4sim.pool.pack import choose
from dpa4sim.potential import EnergyModel
from dpa4sim.simulate.state import MDState, inspect_geometry, inspect_prediction, tick
from dpa4sim.units import EV_PER_AMU_A2_FS2


def nve_step(state: MDState, model: EnergyModel) -> MDState:
    """Half a kick, a drift, half a kick; time-reversible, conserves energy to O(dt^2).

    A system that would leave its sound geometries is put back to the last one and marked; one
    that no longer runs is evaluated again where it stands, to no effect.
    """
    return arrive(state, drift(kick(state, 0.5), 1.0), model)


def kick(state: MDState, share: float) -> MDState:
    """The forces act for a share of the timestep."""
    step = (share / EV_PER_AMU_A2_FS2) * state.conditions.timestep
    rate = step.index_select(0, state.batch.system_idx) / state.masses
    return replace(state, velocities=state.velocities + rate[:, None] * state.prediction.forces)


def drift(state: MDState, share: float) -> MDState:
    """The atoms fly freely for a share of the timestep."""
    step = (share * state.conditions.timestep).index_select(0, state.batch.system_idx)
    positions = state.batch.positions + step[:, None] * state.velocities
    return replace(state, batch=state.batch.with_geometry(positions, state.batch.cell))


def arrive(
    before: MDState, moved: MDState, model: EnergyModel, moves_cell: bool = False
) -> MDState:
    """Evaluate the model at the new geometry and give the second half kick.

    Systems that were not running stay as they were before; so do those that fell sick on the way,
    and get their verdict.  The model never sees a geometry that was found sick.

    Args:
        before: at the start of the step.
        moved: with new positions, and velocities at half a step.
        moves_cell: whether cells may have changed.
    """
    system_idx = before.batch.system_idx
    sickness = inspect_geometry(moved, model.cutoff, moves_cell)
    sound = before.running & (sickness == Status.RUNNING)
    batch = choose(sound, system_idx, moved.batch, before.batch)

    prediction = model(batch)
    found = inspect_prediction(batch, prediction, before.start_volume > 0)
    prediction = replace(prediction, edges=None)
    sickness = torch.where(sound, found, sickness)
    sound = sound & (found == Status.RUNNING)
    arrived = kick(replace(moved, batch=batch, prediction=prediction), 0.5)
    return tick(before, choose(sound, system_idx, arrived, before), sickness)
