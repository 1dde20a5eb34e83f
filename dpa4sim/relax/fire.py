"""FIRE (Bitzek et al., Phys. Rev. Lett. 97, 170201), step for step as ASE 3.29 takes it.

Every system of the batch has its own clock: it advances as it would alone, stops moving at the
step where it converges or falls sick, and reads nothing from its neighbours.  A step reads nothing
back from the device, apart from what the model reads.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from dpa4sim.batch import Batch, dot, sum_over_atoms
from dpa4sim.compiled_steps import fused
from dpa4sim.edges import computable
from dpa4sim.errors import Status
from dpa4sim.lattice import side_by_side
from dpa4sim.pool.pack import choose
from dpa4sim.potential import EnergyModel, Prediction
from dpa4sim.relax import spins
from dpa4sim.relax.cell import Geometry, generalized_forces, move, place
from dpa4sim.relax.criterion import inspect_geometry, inspect_prediction, residual
from dpa4sim.relax.freedom import Freedom
from dpa4sim.relax.spins import Spins, at_rest, magnetic_residual, spin_force


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
        max_edges: a system that is estimated to have more is out of memory.
        moments: whether magnetic moments relax too, see `spins`.
        magnetic_fmax: eV per Bohr magneton; a system whose moments relax is converged when its
            magnetic forces are below, too.
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
    max_edges: float = math.inf
    moments: bool = False
    magnetic_fmax: float = 0.01


@dataclass(frozen=True)
class FireState:
    """A batch on its way down.

    Args:
        freedom: what may move.
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
        spins: forces and velocities of the moments; None where they stand still.
    """

    freedom: Freedom
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
    spins: Spins | None = None

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


@dataclass(frozen=True)
class Departure:
    """What a move changes before the model is asked.

    Args:
        positions: to ask the model about, Å; a system that must not go there has not moved.
        cell: likewise.
        undeformed: as of `Geometry`, the following too.
        velocity: as of `FireState`, the following too.
        sickness: by the geometry alone.
        magmoms: to ask the model about, Bohr magnetons.
    """

    positions: Float[Tensor, "atom 3"]
    cell: Float[Tensor, "system 3 3"]
    undeformed: Float[Tensor, "atom 3"]
    coordinate: Float[Tensor, "system 3 3"]
    deformation: Float[Tensor, "system 3 3"]
    velocity: Float[Tensor, "atom 3"]
    cell_velocity: Float[Tensor, "system 3 3"]
    dt: Float[Tensor, " system"]
    alpha: Float[Tensor, " system"]
    n_positive: Int[Tensor, " system"]
    sickness: Int[Tensor, " system"]
    magmoms: Float[Tensor, "atom 3"] | None
    spins: Spins | None

    def batch(self, before: Batch) -> Batch:
        """Where to ask the model."""
        return replace(before, positions=self.positions, cell=self.cell, magmoms=self.magmoms)


def fire_init(
    batch: Batch,
    model: EnergyModel,
    *,
    freedom: Freedom,
    cell_filter: str | None = "frechet",
    settings: FireSettings | None = None,
) -> FireState:
    """Evaluate the start; every system at rest.

    Args:
        freedom: what may move; a cell that does must be periodic in three dimensions.
        cell_filter: "frechet" or "unit", as ASE names them; None for a run in which no cell
            moves, whatever `freedom` says.
    """
    settings = settings or FireSettings()
    if cell_filter is None:
        freedom = replace(freedom, moves_cell=torch.zeros_like(freedom.moves_cell))
    geometry = place(batch, freedom.moves_cell, cell_filter)
    prediction = _ask(model, geometry.batch)
    force, cell_force = generalized_forces(geometry, prediction, freedom)
    one = torch.ones_like(prediction.energy)
    state = FireState(
        freedom=freedom,
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
        spins=at_rest(prediction) if settings.moments else None,
    )
    sickness = inspect_geometry(geometry, model.cutoff, settings.max_edges)
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
    call = fused(model)
    departure = call(_depart, state, model.cutoff)
    prediction = _ask(model, departure.batch(state.batch))
    return call(_arrive, state, departure, prediction)


def _depart(state: FireState, cutoff: float) -> Departure:
    """Up to the question to the model."""
    moving, step, cell_step, turn = _accelerate(state)
    moved = move(state.geometry, step, cell_step)
    if turn is not None:
        moved = replace(moved, batch=spins.moved(moved.batch, turn))
    sickness = inspect_geometry(moved, cutoff, state.settings.max_edges)
    sound = state.running & (sickness == Status.RUNNING)
    batch = choose(sound, state.batch.system_idx, moved.batch, state.batch)
    return Departure(
        positions=batch.positions,
        cell=batch.cell,
        undeformed=moved.undeformed,
        coordinate=moved.coordinate,
        deformation=moved.deformation,
        velocity=moving.velocity,
        cell_velocity=moving.cell_velocity,
        dt=moving.dt,
        alpha=moving.alpha,
        n_positive=moving.n_positive,
        sickness=sickness,
        magmoms=batch.magmoms,
        spins=moving.spins,
    )


def _arrive(state: FireState, departure: Departure, prediction: Prediction) -> FireState:
    """From the answer of the model on."""
    running, system_idx = state.running, state.batch.system_idx
    moved = replace(
        state.geometry,
        batch=departure.batch(state.batch),
        undeformed=departure.undeformed,
        coordinate=departure.coordinate,
        deformation=departure.deformation,
    )
    prediction = replace(
        prediction,
        forces=side_by_side(prediction.forces),
        stress=side_by_side(prediction.stress),
    )
    sickness = departure.sickness
    found = inspect_prediction(moved, prediction)
    sickness = torch.where(sickness == Status.RUNNING, found, sickness)
    sound = running & (sickness == Status.RUNNING)
    geometry = choose(sound, system_idx, moved, state.geometry)
    prediction = choose(sound, system_idx, prediction, state.prediction)

    force, cell_force = generalized_forces(geometry, prediction, state.freedom)
    arrived = replace(
        state,
        geometry=geometry,
        prediction=prediction,
        force=force,
        cell_force=cell_force,
        velocity=departure.velocity,
        cell_velocity=departure.cell_velocity,
        dt=departure.dt,
        alpha=departure.alpha,
        n_positive=departure.n_positive,
        steps=state.steps + running,
        residual=residual(geometry.batch, force, cell_force),
    )
    if departure.spins is not None:
        turning = replace(departure.spins, force=spin_force(prediction))
        arrived = replace(arrived, spins=turning)
    return _judge(arrived, running, sickness)


def _ask(model: EnergyModel, batch: Batch) -> Prediction:
    """The model gets rows in the usual order and a state keeps what is its own."""
    usual = batch.with_geometry(batch.positions.contiguous(), batch.cell.contiguous())
    prediction = model(usual)
    return replace(
        prediction,
        forces=side_by_side(prediction.forces),
        stress=side_by_side(prediction.stress),
        edges=None,
    )


def _accelerate(
    state: FireState,
) -> tuple[
    FireState, Float[Tensor, "atom 3"], Float[Tensor, "system 3 3"], Float[Tensor, "atom 3"] | None
]:
    """New velocities and clocks, and the move of atoms, cell and moments.

    ASE mixes with the old alpha, kicks with new dt.

    downhill (power > 0):  v <- (1 - alpha) v + alpha |v| F/|F|;  after `patience` moves faster
    uphill:                v <- 0, dt shrinks, alpha starts again; the first move leaves dt alone
    then                   v <- v + dt F
    move                   dt v, shortened to `step_max` where its norm is longer
    """
    settings, system_idx = state.settings, state.batch.system_idx
    velocity, cell_velocity = side_by_side(state.velocity), side_by_side(state.cell_velocity)
    speeds, forces = (velocity, cell_velocity), (state.force, state.cell_force)
    power = _inner(speeds, forces, state.batch)
    speed2, force2 = _inner(speeds, speeds, state.batch), _inner(forces, forces, state.batch)
    if state.spins is not None:
        own = state.spins.velocity, state.spins.force
        power = power + spins.power(*own, state.batch)
        speed2 = speed2 + spins.power(own[0], own[0], state.batch)
        force2 = force2 + spins.power(own[1], own[1], state.batch)
    downhill, first = power > 0, state.steps == 0
    faster = downhill & (state.n_positive > settings.patience)

    keep = torch.where(downhill, 1.0 - state.alpha, 0.0)
    turn = torch.where(downhill, state.alpha * (speed2 / force2).sqrt(), 0.0)
    grown = (state.dt * settings.grow).clamp(max=settings.dt_max)
    slowed = torch.where(downhill | first, state.dt, state.dt * settings.shrink)
    dt = torch.where(faster, grown, slowed)
    alpha = torch.where(downhill, state.alpha, settings.mixing)
    alpha = torch.where(faster, alpha * settings.mixing_decay, alpha)

    push = turn + dt
    length = dt * (keep * (keep * speed2 + 2.0 * push * power) + push * push * force2).sqrt()
    scale = dt * torch.where(length > settings.step_max, settings.step_max / length, 1.0)
    velocity = _spread(keep, system_idx) * velocity + _spread(push, system_idx) * state.force
    keep, push, rate = keep[:, None, None], push[:, None, None], scale[:, None, None]
    cell_velocity = keep * cell_velocity + push * state.cell_force
    state = replace(
        state,
        velocity=velocity,
        cell_velocity=cell_velocity,
        dt=dt,
        alpha=alpha,
        n_positive=torch.where(downhill, state.n_positive + 1, 0),
    )
    step, cell_step = _spread(scale, system_idx) * velocity, rate * cell_velocity
    if state.spins is None:
        return state, step, cell_step, None
    turning = keep[:, 0].index_select(0, system_idx) * state.spins.velocity
    turning = turning + push[:, 0].index_select(0, system_idx) * state.spins.force
    state = replace(state, spins=replace(state.spins, velocity=turning))
    return state, step, cell_step, _spread(scale, system_idx) * turning


def _spread(values: Float[Tensor, " system"], system_idx: Int[Tensor, " atom"]) -> Tensor:
    """One number per atom, beside its three components."""
    return values.index_select(0, system_idx)[:, None]


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
    if state.spins is not None:
        still = magnetic_residual(state.prediction, state.batch) < state.settings.magnetic_fmax
        converged = converged & still
    verdict = torch.where(converged, Status.CONVERGED, verdict)
    verdict = torch.where(sickness == Status.RUNNING, verdict, sickness)
    return replace(state, status=torch.where(running, verdict, state.status))
