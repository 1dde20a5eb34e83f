"""L-BFGS with a model Hessian: few evaluations, one per step, no line search.

The unknowns of a system are displacements u of its atoms and a symmetric strain eps = sum q_k B_k,
both counted from where it is now; rows are lattice vectors:

    X = exp(eps)        r <- (r + u) X        h <- h X

What falls is the enthalpy E + p V; its gradient is (-F, -B_k : W) with W = -V (stress + p).  A
step moves along the direction that was planned after the last evaluation, evaluates, learns from
what it finds, and plans the next direction: the two loops of L-BFGS (see `history`) around
gamma P^-1, with the pair-stiffness Hessian P of the present bonds (see `hessian`).  Every step is
accepted; a trust radius bounds it.  What happens when that fails is told in `rescue`.

Every system of the batch has its own clock and reads nothing from its neighbours.  A step reads
nothing back from the device, apart from what the model reads.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from dpa4sim.batch import Batch, dot, max_over_atoms
from dpa4sim.edges import Edges, computable
from dpa4sim.errors import Status
from dpa4sim.lattice import expm, matmul
from dpa4sim.pool.pack import choose
from dpa4sim.potential import EnergyModel, Prediction
from dpa4sim.relax.cell import Geometry
from dpa4sim.relax.criterion import inspect_geometry, inspect_prediction
from dpa4sim.relax.freedom import Freedom, project_forces, project_strain, to_strain
from dpa4sim.relax.hessian import covalent_radii, pair_hessian, solve
from dpa4sim.relax.history import History, across, first_loop, forgotten, remember, second_loop
from dpa4sim.relax.layout import DENSE_UP_TO, Layout, LayoutSlots, lay_out
from dpa4sim.relax.point import Point, evaluate
from dpa4sim.relax.rescue import (
    RESTART_RADIUS_A,
    REVIVAL_RADIUS_A,
    Events,
    Rescue,
    diagnose,
    fall,
    healthy,
    plain_step,
)

GAMMA_RANGE = (0.1, 10.0)
"""The model Hessian is not trusted to be wrong by more."""

STRAIN_PER_RADIUS = 0.5
"""Largest Frobenius norm of a step's strain, per Å of the trust radius."""

UPHILL = 1e-10
"""A direction whose cosine with the downhill one is below this leads uphill."""

RISE_PER_ATOM = 1e-5
"""eV; a smaller rise of the enthalpy may be rounding of a float32 model."""

TINY = 1e-30


@dataclass(frozen=True, kw_only=True)
class LbfgsSettings:
    """When to stop, and how far to trust.

    Args:
        fmax: eV/Å.
        max_steps: moves, exactly; the start is evaluated besides.
        memory: steps to remember; a multiple of four.
        radius: first trust radius: the longest displacement of an atom in one step, Å.
        radius_min: it never falls below.
        radius_max: it never grows beyond.
        dense_up_to: atoms of the largest system whose Hessian is factorised as a whole; in larger
            ones every atom stands for itself.
        max_edges: a system that is estimated to have more is out of memory.
    """

    fmax: float = 0.02
    max_steps: int = 500
    memory: int = 20
    radius: float = 0.2
    radius_min: float = 0.02
    radius_max: float = 0.4
    dense_up_to: int = DENSE_UP_TO
    max_edges: float = math.inf


@dataclass(frozen=True)
class LbfgsState:
    """A batch on its way down.  After a system has stopped, only its point has a meaning.

    Args:
        start: the batch as it was given.
        freedom: what may move.
        radii: covalent radii, Å.
        point: where each system is; a sick one stays at its last sound point.
        best: the point of lowest enthalpy.
        direction: the planned step in packed rows, see `layout`; Å and strain.
        limited: whether the trust radius shortened it.
        history: past steps.
        gamma: scale of the model Hessian's inverse.
        radius: trust radius, Å.
        rescue: how each system has fared.
        steps: moves tried.
        status: `errors.Status` as an integer.
        settings: the same for every system.
        layout: follows from the composition of the batch.
    """

    start: Batch
    freedom: Freedom
    radii: Float[Tensor, " atom"]
    point: Point
    best: Point
    direction: Float[Tensor, "row 3"]
    limited: Bool[Tensor, " system"]
    history: History
    gamma: Float[Tensor, " system"]
    radius: Float[Tensor, " system"]
    rescue: Rescue
    steps: Int[Tensor, " system"]
    status: Int[Tensor, " system"]
    settings: LbfgsSettings
    layout: LayoutSlots

    @property
    def batch(self) -> Batch:
        """The systems with their present positions and cells."""
        return self.start.with_geometry(self.point.positions, self.point.cell)

    @property
    def prediction(self) -> Prediction:
        """What the model said at the present point."""
        return self.point.prediction

    @property
    def residual(self) -> Float[Tensor, " system"]:
        """Largest norm of a force or cell-force row, eV/Å; converged when below fmax."""
        return self.point.residual

    @property
    def start_cell(self) -> Float[Tensor, "system 3 3"]:
        """The cells as they were given, Å."""
        return self.start.cell

    @property
    def running(self) -> Bool[Tensor, " system"]:
        """Which systems still move."""
        return self.status == Status.RUNNING

    @property
    def evaluations(self) -> Int[Tensor, " system"]:
        """Evaluations of the model used: one at the start, one per move."""
        return self.steps + 1


def lbfgs_init(
    batch: Batch,
    model: EnergyModel,
    *,
    freedom: Freedom,
    settings: LbfgsSettings | None = None,
) -> LbfgsState:
    """Evaluate the start and plan the first step.

    Args:
        freedom: what may move; a cell that does must be periodic in three dimensions.
    """
    settings = settings or LbfgsSettings()
    batch = batch.with_geometry(batch.positions.double(), batch.cell.double())
    slots = lay_out(batch.n_atoms.tolist(), batch.device, dense_up_to=settings.dense_up_to)
    point, edges = evaluate(batch, model, freedom)
    rows = batch.positions.new_zeros(len(batch.positions) + 2 * batch.n_systems, 3)
    one, never = torch.ones_like(point.enthalpy), torch.zeros_like(freedom.moves_cell)
    state = LbfgsState(
        start=batch,
        freedom=freedom,
        radii=covalent_radii(batch.atomic_numbers),
        point=point,
        best=point,
        direction=rows,
        limited=never,
        history=forgotten(rows, batch.n_atoms, settings.memory),
        gamma=one,
        radius=settings.radius * one,
        rescue=healthy(point.residual, rows),
        steps=torch.zeros_like(batch.n_atoms),
        status=torch.full_like(batch.n_atoms, Status.RUNNING),
        settings=settings,
        layout=slots,
    )
    geometry = _geometry(state, batch)
    sickness = inspect_geometry(geometry, model.cutoff, settings.max_edges)
    for verdict in (
        torch.where(computable(batch, model.cutoff), Status.RUNNING, Status.INVALID),
        inspect_prediction(geometry, point.prediction),
    ):
        sickness = torch.where(sickness == Status.RUNNING, verdict, sickness)
    state = _judge(state, state.running, sickness)
    return _plan(state, edges, Events(never, never, never), _opened(slots, state))


def lbfgs_step(state: LbfgsState, model: EnergyModel) -> LbfgsState:
    """Move every running system once, evaluate it there, and plan its next step.

    The systems that no longer run are evaluated again where they stand, to no effect.
    """
    running, system_idx = state.running, state.start.system_idx
    layout = _opened(state.layout, state)
    arrival, edges, sickness = _advance(state, model, layout)
    sick = running & (sickness != Status.RUNNING)
    converged = arrival.residual < state.settings.fmax
    steps = state.steps + running
    curable = sick & (sickness != Status.UNCERTAIN)  # from the best point it goes there again
    rescue, events = diagnose(
        state.rescue, arrival.residual, steps + 1, curable, running & ~sick & ~converged
    )
    history, radius = _learn(state, arrival, running & ~sick & ~rescue.falling, layout)
    best = choose(arrival.enthalpy < state.best.enthalpy, system_idx, arrival, state.best)
    radius = torch.where(events.revival, REVIVAL_RADIUS_A, radius)
    radius = torch.where(events.restart | events.fall, RESTART_RADIUS_A, radius)
    state = replace(
        state,
        point=choose(events.back, system_idx, best, arrival),
        best=best,
        history=replace(history, length=torch.where(events.any, 0, history.length)),
        gamma=torch.where(events.any, 1.0, state.gamma),
        radius=radius,
        rescue=rescue,
        steps=steps,
    )
    state = _judge(state, running, torch.where(events.revival, Status.RUNNING, sickness))
    return _plan(state, edges, events, layout)


def laid_out(state: LbfgsState, **options: Any) -> LbfgsState:
    """The same state with the layout of its composition, which `take` and `join` drop.

    A step that finds none works it out by itself; reads `n_atoms` on the host.

    Args:
        options: `rounded`, `n_silent` and `room` of `layout.lay_out`, for steps that are compiled
            or recorded.
    """
    counts, device = state.start.n_atoms.tolist(), state.start.device
    slots = lay_out(counts, device, dense_up_to=state.settings.dense_up_to, **options)
    return replace(state, layout=slots)


def settled(state: LbfgsState, n_silent: int, like: LbfgsState | None) -> LbfgsState:
    """`laid_out` for a padded state whose step is recorded.

    Args:
        n_silent: systems at the end that only pad it.
        like: a state that was recorded; if there is room in its layout, the new one has its shape.
    """
    room = () if like is None else like.layout.classes
    return laid_out(state, rounded=True, n_silent=n_silent, room=room)


def _opened(slots: LayoutSlots, state: LbfgsState) -> Layout:
    layout = slots.open()
    return layout if layout is not None else _opened(laid_out(state).layout, state)


def _advance(
    state: LbfgsState, model: EnergyModel, layout: Layout
) -> tuple[Point, Edges, Int[Tensor, " system"]]:
    """Move, ask, and inspect: a system that is unsound either way stays at its point."""
    batch, system_idx = state.batch, state.start.system_idx
    moved = _moved(batch, state.direction, layout)
    limits = model.cutoff, state.settings.max_edges
    sickness = inspect_geometry(_geometry(state, moved), *limits)
    sound = state.running & (sickness == Status.RUNNING)
    asked = choose(sound, system_idx, moved, batch)
    point, edges = evaluate(asked, model, state.freedom)
    verdict = inspect_prediction(_geometry(state, asked), point.prediction)
    sickness = torch.where(sound, verdict, sickness)
    sound = sound & (sickness == Status.RUNNING)
    return choose(sound, system_idx, point, state.point), edges, sickness


def _moved(batch: Batch, direction: Float[Tensor, "row 3"], layout: Layout) -> Batch:
    """R <- (r + u) exp(eps),  h <- h exp(eps); a cell that stands still keeps every bit."""
    stretch = expm(to_strain(layout.strain(direction)))
    columns = stretch.reshape(-1, 9).index_select(0, batch.system_idx).view(-1, 3, 3)
    x, y, z = (batch.positions + layout.atoms(direction))[:, :, None].unbind(1)
    positions = x * columns[:, 0] + y * columns[:, 1] + z * columns[:, 2]
    return batch.with_geometry(positions, matmul(batch.cell, stretch).contiguous())


def _gradient(point: Point, layout: Layout) -> Float[Tensor, "row 3"]:
    return layout.rows(-point.force, -point.work)


def _learn(
    state: LbfgsState, arrival: Point, usable: Bool[Tensor, " system"], layout: Layout
) -> tuple[History, Float[Tensor, " system"]]:
    """History and trust radius after the step from the state's point to another.

    Args:
        usable: whether the step can be learned from.
    """
    before, after = _gradient(state.point, layout), _gradient(arrival, layout)
    step, settings = state.direction, state.settings
    history = remember(state.history, step, after - before, usable, layout)
    slopes = layout.sum(torch.stack([across(before, step), across(after, step)], 1))
    old, new = slopes.unbind(1)
    rise = arrival.enthalpy - state.point.enthalpy
    worse = (rise > RISE_PER_ATOM * state.start.n_atoms) & (new > 0)
    onward = (rise < 0) & state.limited & (new < 0)
    beyond = (new > 0) & (new > -0.9 * old)
    radius = torch.where(beyond, 0.6 * state.radius, state.radius)
    radius = torch.where(onward, 1.5 * state.radius, radius)
    radius = torch.where(worse, 0.5 * state.radius, radius)
    radius = torch.where(usable, radius, state.radius)
    return history, radius.clamp(settings.radius_min, settings.radius_max)


def _plan(state: LbfgsState, edges: Edges, events: Events, layout: Layout) -> LbfgsState:
    """The next direction from the present point.

    Args:
        edges: at the present point; those of a system that went back are not used.
    """
    gradient = _gradient(state.point, layout)
    direction, gamma, history = _descent(state, edges, gradient, layout)
    rescue, falling = fall(
        state.rescue,
        gradient,
        state.start,
        events.fall | (events.revival & state.rescue.falling),
        layout,
    )
    plain = plain_step(gradient, state.point.volume, layout)
    flags = layout.spread(torch.stack([events.revival, rescue.falling], 1))
    direction = torch.where(flags[:, :1], plain, direction)
    direction = torch.where(flags[:, 1:], falling, direction)
    direction, limited = _bounded(state, direction, layout)
    return replace(
        state, direction=direction, limited=limited, history=history, gamma=gamma, rescue=rescue
    )


def _descent(
    state: LbfgsState, edges: Edges, gradient: Float[Tensor, "row 3"], layout: Layout
) -> tuple[Float[Tensor, "row 3"], Float[Tensor, " system"], History]:
    """L-BFGS direction, gamma and history; the latter is forgotten where it leads uphill."""
    history = state.history
    hessian = pair_hessian(
        edges, state.radii, state.start, state.point.volume, state.freedom, layout
    )
    rest, weights = first_loop(history, gradient, layout)
    newest = history.change[:, :, 0]
    columns = solve(hessian, torch.stack([newest, rest, gradient], 2), layout)
    solved_change, solved_rest, solved_gradient = columns.unbind(2)
    stiffness = layout.sum(across(newest, solved_change)[:, None])[:, 0]
    scale = (history.product[:, 0, 0] / stiffness.clamp(min=TINY)).clamp(*GAMMA_RANGE)
    gamma = torch.where(history.length > 0, scale, state.gamma)
    spread = layout.spread(gamma)[:, None]
    step = -second_loop(history, spread * solved_rest, weights, layout)
    pairs = ((step, gradient), (step, step), (gradient, gradient))
    sums = layout.sum(torch.stack([across(*pair) for pair in pairs], 1))
    slope, step2, gradient2 = sums.unbind(1)
    downhill = slope < -UPHILL * (step2 * gradient2).sqrt()
    chosen = layout.spread(downhill)[:, None]
    step = torch.where(chosen, step, -spread * solved_gradient)
    return step, gamma, replace(history, length=torch.where(downhill, history.length, 0))


def _bounded(
    state: LbfgsState, direction: Float[Tensor, "row 3"], layout: Layout
) -> tuple[Float[Tensor, "row 3"], Bool[Tensor, " system"]]:
    """The part of a direction that is free, shortened as a whole to the trust radius."""
    batch, freedom = state.start, state.freedom
    atoms = project_forces(freedom, batch, layout.atoms(direction))
    strain = project_strain(freedom, layout.strain(direction))
    farthest = max_over_atoms(dot(atoms, atoms), batch).clamp(min=TINY).sqrt()
    squares = strain * strain
    halves = squares[:, :3] + squares[:, 3:]
    largest = (halves[:, 0] + halves[:, 1] + halves[:, 2]).clamp(min=TINY).sqrt()
    factor = torch.minimum(1.0 / farthest, STRAIN_PER_RADIUS / largest) * state.radius
    factor = factor.clamp(max=1.0)
    rows = layout.rows(atoms, strain) * layout.spread(factor)[:, None]
    return rows, factor < 1


def _geometry(state: LbfgsState, batch: Batch) -> Geometry:
    """A geometry as the criterion wants it; its coordinates are of no use here."""
    return Geometry(
        batch=batch,
        undeformed=batch.positions,
        start_cell=state.start.cell,
        coordinate=batch.cell,
        deformation=batch.cell,
        moves_cell=state.freedom.moves_cell,
        cell_filter="frechet",
    )


def _judge(
    state: LbfgsState, running: Bool[Tensor, " system"], sickness: Int[Tensor, " system"]
) -> LbfgsState:
    """New status of the systems that were running; the others keep theirs."""
    exhausted = state.steps >= state.settings.max_steps
    verdict = torch.where(exhausted, Status.MAX_STEPS, Status.RUNNING)
    converged = state.point.residual < state.settings.fmax
    verdict = torch.where(converged, Status.CONVERGED, verdict)
    verdict = torch.where(sickness == Status.RUNNING, verdict, sickness)
    return replace(state, status=torch.where(running, verdict, state.status))
