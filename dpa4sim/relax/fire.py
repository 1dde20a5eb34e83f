"""FIRE (Bitzek et al., Phys. Rev. Lett. 97, 170201), step for step as ASE 3.29 takes it.

Every system of the batch has its own clock: it advances as it would alone, stops moving at the
step where it converges or falls sick, and reads nothing from its neighbours.  A step reads nothing
back from the device, apart from what the model reads.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from dpa4sim.batch import Batch, dot
from dpa4sim.edges import computable
from dpa4sim.errors import Status
from dpa4sim.potential import EnergyModel, Prediction
from dpa4sim.relax.cell import Geometry, generalized_forces, move, place
from dpa4sim.relax.criterion import inspect_geometry, inspect_prediction, residual, sum_over_atoms
from dpa4sim.relax.pack import choose


@dataclass(frozen=True, kw_only=True)
class FireSettings:
    """When to stop, and the constants of FIRE with ASE's defaults.

    Args:
        fmax: eV/Å.
        max_steps: moves, exactly; the start is evaluated besides.
        dt: first time step.
        dt_max: largest time step.
        step_max: largest norm of one step of one system, atoms and cell rows together, Å.
        patience: downhill moves before the time step may grow.
        grow: factor of a growing time step.
        shrink: factor of the time step after a move uphill.
        mixing: first share of the force direction in the velocity.
        mixing_decay: factor of the share at each growth.
    """

    fmax: float = 0.02
    max_steps: int = 500
    dt: float = 0.1
    dt_max: float = 1.0
    step_max: float = 0.2
    patience: int = 5
    grow: float = 1.1
    shrink: float = 0.5
    mixing: float = 0.1
    mixing_decay: float = 0.99


@dataclass(frozen=True)
class FireState:
    """A batch on its way down.

    Args:
        geometry: where each system is; a sick one stays at its last sound geometry.
        prediction: what the model said there.
        force: generalised forces on the atoms, eV/Å.
        cell_force: generalised forces on the cell coordinates, eV/Å; zero where it stands still.
        velocity: of the undeformed positions; like the clocks, of no meaning after a system
            has stopped.
        cell_velocity: of the cell coordinates.
        dt: time step.
        alpha: share of the force direction in the velocity.
        n_positive: downhill moves since the last one uphill.
        steps: moves tried.
        status: `errors.Status` as an integer.
        residual: largest norm of a generalised force, eV/Å; converged when below fmax.
        settings: the same for every system.
    """

    geometry: Geometry
    prediction: Prediction
    force: Float[Tensor, "atom 3"]
    cell_force: Float[Tensor, "system 3 3"]
    velocity: Float[Tensor, "atom 3"]
    cell_velocity: Float[Tensor, "system 3 3"]
    dt: Float[Tensor, " system"]
    alpha: Float[Tensor, " system"]
    n_positive: Int[Tensor, " system"]
    steps: Int[Tensor, " system"]
    status: Int[Tensor, " system"]
    residual: Float[Tensor, " system"]
    settings: FireSettings

    @property
    def batch(self) -> Batch:
        """The systems with their present positions and cells."""
        return self.geometry.batch

    @property
    def running(self) -> Bool[Tensor, " system"]:
        """Which systems still move."""
        return self.status == Status.RUNNING

    @property
    def evaluations(self) -> Int[Tensor, " system"]:
        """Evaluations of the model used: one at the start, one per move."""
        return self.steps + 1


def fire_init(
    batch: Batch,
    model: EnergyModel,
    *,
    cell: bool | Bool[Tensor, " system"] = True,
    cell_filter: str = "frechet",
    settings: FireSettings | None = None,
) -> FireState:
    """Evaluate the start; every system at rest.

    Args:
        cell: whether the cells move, one answer for all or one per system; a cell that moves
            must be periodic in three dimensions.
        cell_filter: "frechet" or "unit", as ASE names them.
    """
    settings = settings or FireSettings()
    fixed = isinstance(cell, bool) and not cell
    flags = torch.as_tensor(cell, device=batch.device).expand(batch.n_systems).clone()
    geometry = place(batch, flags, None if fixed else cell_filter)
    prediction = model(geometry.batch)
    force, cell_force = generalized_forces(geometry, prediction)
    one = torch.ones_like(prediction.energy)
    state = FireState(
        geometry=geometry,
        prediction=prediction,
        force=force,
        cell_force=cell_force,
        velocity=torch.zeros_like(force),
        cell_velocity=torch.zeros_like(cell_force),
        dt=settings.dt * one,
        alpha=settings.mixing * one,
        n_positive=torch.zeros_like(batch.n_atoms),
        steps=torch.zeros_like(batch.n_atoms),
        status=torch.full_like(batch.n_atoms, Status.RUNNING),
        residual=residual(batch, force, cell_force),
        settings=settings,
    )
    sickness = inspect_geometry(geometry, model.cutoff)
    for verdict in (
        torch.where(computable(geometry.batch, model.cutoff), Status.RUNNING, Status.INVALID),
        inspect_prediction(geometry, prediction),
    ):
        sickness = torch.where(sickness == Status.RUNNING, verdict, sickness)
    return _judge(state, state.running, sickness)


def fire_step(state: FireState, model: EnergyModel) -> FireState:
    """Move every running system once and evaluate it there.

    A system that would leave its sound geometries is put back to the last one and marked; the
    systems that no longer run are evaluated again where they stand, to no effect.
    """
    running, system_idx = state.running, state.batch.system_idx
    state = _accelerate(state)
    step, cell_step = _bounded_step(state)
    moved = move(state.geometry, step, cell_step)
    sickness = inspect_geometry(moved, model.cutoff)
    sound = running & (sickness == Status.RUNNING)
    moved = choose(sound, system_idx, moved, state.geometry)

    prediction = model(moved.batch)
    sickness = torch.where(sound, inspect_prediction(moved, prediction), sickness)
    sound = running & (sickness == Status.RUNNING)
    geometry = choose(sound, system_idx, moved, state.geometry)
    prediction = choose(sound, system_idx, prediction, state.prediction)

    force, cell_force = generalized_forces(geometry, prediction)
    state = replace(
        state,
        geometry=geometry,
        prediction=prediction,
        force=force,
        cell_force=cell_force,
        steps=state.steps + running,
        residual=residual(geometry.batch, force, cell_force),
    )
    return _judge(state, running, sickness)


def _accelerate(state: FireState) -> FireState:
    """New velocities and clocks.  ASE mixes with the old alpha and kicks with the new dt.

    downhill (power > 0):  v <- (1 - alpha) v + alpha |v| F/|F|;  after `patience` moves faster
    uphill:                v <- 0, dt shrinks, alpha starts again; the first move leaves dt alone
    then                   v <- v + dt F
    """
    settings, system_idx = state.settings, state.batch.system_idx
    velocity, force = (state.velocity, state.cell_velocity), (state.force, state.cell_force)
    power = _inner(velocity, force, state.batch)
    ratio = _inner(velocity, velocity, state.batch) / _inner(force, force, state.batch)
    downhill, first = power > 0, state.steps == 0
    faster = downhill & (state.n_positive > settings.patience)

    keep = torch.where(downhill, 1.0 - state.alpha, 0.0)
    turn = torch.where(downhill, state.alpha * ratio.sqrt(), 0.0)
    grown = (state.dt * settings.grow).clamp(max=settings.dt_max)
    slowed = torch.where(downhill | first, state.dt, state.dt * settings.shrink)
    dt = torch.where(faster, grown, slowed)
    alpha = torch.where(downhill, state.alpha, settings.mixing)
    alpha = torch.where(faster, alpha * settings.mixing_decay, alpha)

    push = (turn + dt)[:, None]
    atom_keep, atom_push = keep[system_idx, None], push[system_idx]
    return replace(
        state,
        velocity=atom_keep * state.velocity + atom_push * state.force,
        cell_velocity=keep[:, None, None] * state.cell_velocity
        + push[..., None] * state.cell_force,
        dt=dt,
        alpha=alpha,
        n_positive=torch.where(downhill, state.n_positive + 1, 0),
    )


def _bounded_step(state: FireState) -> tuple[Float[Tensor, "atom 3"], Float[Tensor, "system 3 3"]]:
    """The move dt v, shortened to `step_max` where its norm over atoms and cell rows is longer."""
    velocity = (state.velocity, state.cell_velocity)
    length = state.dt * _inner(velocity, velocity, state.batch).sqrt()
    limit = state.settings.step_max
    scale = state.dt * torch.where(length > limit, limit / length, 1.0)
    return (
        scale[state.batch.system_idx, None] * state.velocity,
        scale[:, None, None] * state.cell_velocity,
    )


def _inner(
    left: tuple[Tensor, Tensor], right: tuple[Tensor, Tensor], batch: Batch
) -> Float[Tensor, " system"]:
    """Scalar product of two (atoms, cell rows) vectors of each system."""
    rows = dot(left[1], right[1])
    return sum_over_atoms(dot(left[0], right[0]), batch) + rows[:, 0] + rows[:, 1] + rows[:, 2]


def _judge(
    state: FireState, running: Bool[Tensor, " system"], sickness: Int[Tensor, " system"]
) -> FireState:
    """New status of the systems that were running; the others keep theirs."""
    exhausted = state.steps >= state.settings.max_steps
    verdict = torch.where(exhausted, Status.MAX_STEPS, Status.RUNNING)
    converged = state.residual < state.settings.fmax
    verdict = torch.where(converged, Status.CONVERGED, verdict)
    verdict = torch.where(sickness == Status.RUNNING, verdict, sickness)
    return replace(state, status=torch.where(running, verdict, state.status))
