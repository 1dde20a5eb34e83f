"""Constant energy: velocity Verlet, and the pieces that every integrator is composed of.

    kick    v <- v + a dt                 drift    r <- r + v dt

An integrator is a chain of pieces up to the new positions; `advance` evaluates the model there and
gives the last half kick (Swope, Andersen, Berens and Wilson, J. Chem. Phys. 76, 637, 1982).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from dpa4sim.batch import Batch
from dpa4sim.compiled_steps import fused
from dpa4sim.errors import Status
from dpa4sim.pool.pack import choose
from dpa4sim.potential import EnergyModel, Prediction
from dpa4sim.simulate.state import MDState, inspect_geometry, inspect_prediction, tick
from dpa4sim.units import EV_PER_AMU_A2_FS2

type Moved = tuple[MDState, Float[Tensor, "system 3 3"] | None]
"""A state with new positions, and velocities at half a step; the strain of cells that move."""


@dataclass(frozen=True)
class Departure:
    """What changes before the model is asked.

    Args:
        positions: to ask the model about, Å; a system that must not go there has not moved.
        cell: likewise.
        velocities: at half a step, Å/fs; as of `MDState`, the following too.
        sickness: by the geometry alone.
        strain: of the cells in this step; None where no cell moves.
        searched: of the model's edges, see `Edges`.
    """

    positions: Float[Tensor, "atom 3"]
    cell: Float[Tensor, "system 3 3"]
    velocities: Float[Tensor, "atom 3"]
    heat: Float[Tensor, " system"]
    work: Float[Tensor, " system"]
    sickness: Int[Tensor, " system"]
    strain: Float[Tensor, "system 3 3"] | None
    searched: Bool[Tensor, " system"] | None = None

    def batch(self, before: Batch) -> Batch:
        """Where to ask the model."""
        return before.with_geometry(self.positions, self.cell)


def nve_step(state: MDState, model: EnergyModel) -> MDState:
    """Half a kick, a drift, half a kick; time-reversible, conserves energy to O(dt^2).

    A system that would leave its sound geometries is put back to the last one and marked; one
    that no longer runs is evaluated again where it stands, to no effect.
    """
    return advance(state, model, _fly)


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


def arrive(before: MDState, departure: Departure, prediction: Prediction) -> MDState:
    """The second half kick, by the answer of the model.

    Systems that were not running stay as they were before; so do those that fell sick on the way,
    and get their verdict.
    """
    batch = departure.batch(before.batch)
    has_volume = before.start_volume > 0
    found = inspect_prediction(batch, prediction, has_volume, departure.searched)
    sickness = torch.where(departure.sickness == Status.RUNNING, found, departure.sickness)
    sound = before.running & (sickness == Status.RUNNING)
    moved = replace(
        before,
        batch=batch,
        prediction=prediction,
        velocities=departure.velocities,
        heat=departure.heat,
        work=departure.work,
    )
    return tick(before, choose(sound, batch.system_idx, kick(moved, 0.5), before), sickness)


def advance(
    state: MDState,
    model: EnergyModel,
    move: Callable[..., Moved],
    *how: str,
    end: Callable[[MDState, Departure, Prediction], MDState] = arrive,
) -> MDState:
    """One step: move, evaluate the model, and the rest of it.

    The model never sees a geometry that was found sick.

    Args:
        move: from the state, and `how`.
        end: the rest.
    """
    call = fused(model)
    departure = call(_depart, state, model.cutoff, move, *how)
    prediction = model(departure.batch(state.batch))
    if prediction.edges is not None:
        departure = replace(departure, searched=prediction.edges.searched)
    return call(end, state, departure, replace(prediction, edges=None))


def _depart(state: MDState, cutoff: float, move: Callable[..., Moved], *how: str) -> Departure:
    """Up to the question to the model."""
    moved, strain = move(state, *how)
    sickness = inspect_geometry(moved, cutoff, moves_cell=strain is not None)
    sound = state.running & (sickness == Status.RUNNING)
    batch = choose(sound, state.batch.system_idx, moved.batch, state.batch)
    return Departure(
        positions=batch.positions,
        cell=batch.cell,
        velocities=moved.velocities,
        heat=moved.heat,
        work=moved.work,
        sickness=sickness,
        strain=strain,
    )


def _fly(state: MDState) -> Moved:
    return drift(kick(state, 0.5), 1.0), None
