"""What L-BFGS falls back on when it gets lost.

    sick on the way            back to the best point, one careful downhill step, history forgotten;
                               once, the second sickness is final
    slow or without progress   history forgotten, short steps; once
    still not converged        FIRE from the best point, for good

A sickness is a number that is not finite, a volume or a force beyond the limits of `criterion`.
The best point is the one of lowest enthalpy.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from dpa4sim.batch import Batch
from dpa4sim.relax.history import across
from dpa4sim.relax.layout import Layout

REVIVAL_RADIUS_A = 0.05
"""Longest displacement after a sickness."""

RESTART_AFTER = 120
"""Evaluations after which the history is forgotten once."""

STALE_AFTER = 60
"""Evaluations without a new lowest residual after which it is."""

RESTART_RADIUS_A = 0.1
"""Longest displacement after that, and under FIRE."""

FIRE_AFTER = 200
"""Evaluations after which FIRE takes over."""

PLAIN_STIFFNESS = 70.0
"""eV/Å^2 of an atom, where nothing is known of its bonds."""

PLAIN_CELL_STIFFNESS = 1.0
"""eV/Å^3, likewise."""

DT, DT_MAX, GROW, SHRINK, PATIENCE, MIXING, MIXING_DECAY = 0.1, 1.0, 1.1, 0.5, 5, 0.1, 0.99
"""Constants of FIRE, as ASE has them."""


@dataclass(frozen=True)
class Rescue:
    """How each system has fared.

    Args:
        lowest: residual, eV/Å.
        stale: evaluations since then.
        revived: whether it was sick once.
        restarted: whether its history was forgotten for slowness.
        falling: whether FIRE has taken over.
        velocity: of FIRE, in rows whose strains are scaled by `strain_scale`.
        dt: of FIRE, as the following.
        alpha: share of the force direction in the velocity.
        n_positive: downhill moves since the last one uphill.
    """

    lowest: Float[Tensor, " system"]
    stale: Int[Tensor, " system"]
    revived: Bool[Tensor, " system"]
    restarted: Bool[Tensor, " system"]
    falling: Bool[Tensor, " system"]
    velocity: Float[Tensor, "row 3"]
    dt: Float[Tensor, " system"]
    alpha: Float[Tensor, " system"]
    n_positive: Int[Tensor, " system"]


@dataclass(frozen=True)
class Events:
    """What befalls each system after an evaluation, at most one of them.

    Args:
        revival: it was sick for the first time.
        restart: it is slow.
        fall: FIRE takes over.
    """

    revival: Bool[Tensor, " system"]
    restart: Bool[Tensor, " system"]
    fall: Bool[Tensor, " system"]

    @property
    def back(self) -> Bool[Tensor, " system"]:
        """Whether it goes back to its best point."""
        return self.revival | self.fall

    @property
    def any(self) -> Bool[Tensor, " system"]:
        """Whether something befalls it: its history is forgotten."""
        return self.back | self.restart


def healthy(residual: Float[Tensor, " system"], rows: Float[Tensor, "row 3"]) -> Rescue:
    """Nothing has happened yet."""
    never = torch.zeros_like(residual, dtype=torch.bool)
    return Rescue(
        lowest=residual,
        stale=torch.zeros_like(residual, dtype=torch.long),
        revived=never,
        restarted=never,
        falling=never,
        velocity=torch.zeros_like(rows),
        dt=torch.full_like(residual, DT),
        alpha=torch.full_like(residual, MIXING),
        n_positive=torch.zeros_like(residual, dtype=torch.long),
    )


def diagnose(
    rescue: Rescue,
    residual: Float[Tensor, " system"],
    evaluations: Int[Tensor, " system"],
    sick: Bool[Tensor, " system"],
    unfinished: Bool[Tensor, " system"],
) -> tuple[Rescue, Events]:
    """What befalls the systems.

    Args:
        residual: at the last sound point, eV/Å.
        evaluations: so far.
        sick: whether the last one was unsound.
        unfinished: whether it was sound, and the system has not converged.
    """
    better = residual < rescue.lowest
    stale = torch.where(better, 0, rescue.stale + 1)
    revival = sick & ~rescue.revived
    fall = unfinished & ~rescue.falling & (evaluations >= FIRE_AFTER)
    slow = (evaluations >= RESTART_AFTER) | (stale >= STALE_AFTER)
    restart = unfinished & slow & ~(rescue.restarted | rescue.falling | fall)
    falling = rescue.falling | fall
    rescue = replace(
        rescue,
        lowest=torch.where(better, residual, rescue.lowest),
        stale=stale,
        revived=rescue.revived | revival,
        restarted=rescue.restarted | restart,
        falling=falling,
    )
    return rescue, Events(revival, restart, fall)


def plain_step(
    gradient: Float[Tensor, "row 3"], volume: Float[Tensor, " system"], layout: Layout
) -> Float[Tensor, "row 3"]:
    """Downhill with the same stiffness for all atoms.

    Args:
        volume: of the cells, Å^3.
    """
    stiffness = (PLAIN_CELL_STIFFNESS * volume).clamp(min=1.0)
    atoms, strain = layout.atoms(gradient), layout.strain(gradient)
    return layout.rows(-atoms / PLAIN_STIFFNESS, -strain / stiffness[:, None])


def fall(
    rescue: Rescue,
    gradient: Float[Tensor, "row 3"],
    batch: Batch,
    start: Bool[Tensor, " system"],
    layout: Layout,
) -> tuple[Rescue, Float[Tensor, "row 3"]]:
    """Velocities and step of FIRE (Phys. Rev. Lett. 97, 170201) with ASE's order of operations.

    The coordinate of the cell is 3 sqrt(n) times the strain.

    Args:
        start: which systems start from rest.
    """
    ones = torch.ones_like(layout.atoms(gradient))
    root = 3.0 * batch.n_atoms.double().clamp(min=1.0).sqrt()
    scale = layout.rows(ones, root[:, None].expand(-1, 6))
    force = -gradient / scale
    velocity = torch.where(layout.spread(start)[:, None], 0.0, rescue.velocity)
    dt = torch.where(start, DT, rescue.dt)
    alpha = torch.where(start, MIXING, rescue.alpha)
    n_positive = torch.where(start, 0, rescue.n_positive)

    pairs = ((velocity, force), (velocity, velocity), (force, force))
    power, speed2, force2 = layout.sum(torch.stack([across(*p) for p in pairs], 1)).unbind(1)
    downhill = power > 0
    faster = downhill & (n_positive > PATIENCE)
    keep = torch.where(downhill, 1.0 - alpha, 0.0)
    turn = torch.where(downhill, alpha * (speed2 / force2).sqrt(), 0.0)
    slowed = torch.where(downhill | start, dt, dt * SHRINK)
    dt = torch.where(faster, (dt * GROW).clamp(max=DT_MAX), slowed)
    alpha = torch.where(downhill, alpha, MIXING)
    factors = layout.spread(torch.stack([keep, turn + dt, dt], 1))
    velocity = factors[:, :1] * velocity + factors[:, 1:2] * force
    rescue = replace(
        rescue,
        velocity=velocity,
        dt=dt,
        alpha=torch.where(faster, alpha * MIXING_DECAY, alpha),
        n_positive=torch.where(downhill, n_positive + 1, 0),
    )
    return rescue, factors[:, 2:] * velocity / scale
