"""Constant temperature: Langevin dynamics and stochastic velocity rescaling.

Both put the thermostat in the middle of the drift, between two half kicks, where the positions
are sampled most exactly (for harmonic forces without any error of the timestep); the kinetic
energy at full steps is then low by the share (omega dt)^2 / 4.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from jaxtyping import Float
from torch import Tensor

from dpa4sim.batch import dot, sum_over_atoms
from dpa4sim.potential import EnergyModel
from dpa4sim.simulate.nve import Moved, advance, drift, kick
from dpa4sim.simulate.random import Stream, chi_square, normal_pair, uniform, words
from dpa4sim.simulate.state import (
    MDState,
    atom_normals,
    kinetic_energy,
    thermal_energy,
    without_drift,
)
from dpa4sim.units import EV_PER_AMU_A2_FS2

TRIES = 3
"""Blocks of random words that go into the sum of squares; each is worth two tries."""

SMALLEST = 1e-300
"""A kinetic energy of zero counts as this: no thermostat can scale it up."""


def langevin_step(state: MDState, model: EnergyModel) -> MDState:
    """Langevin dynamics, splitting B A O A B (Leimkuhler and Matthews, Appl. Math. Res. Express
    2013, 34): kick, drift, friction and noise, drift, kick.

    The noise is taken relative to the centre of mass, which stays at rest.
    """
    return advance(state, model, _stirred)


def bussi_step(state: MDState, model: EnergyModel) -> MDState:
    """Stochastic velocity rescaling (Bussi, Donadio and Parrinello, J. Chem. Phys. 126, 014101,
    2007): kick, drift, rescaling of all velocities of a system by one number, drift, kick.
    """
    return advance(state, model, _rescaled)


def _stirred(state: MDState) -> Moved:
    return drift(_stir(drift(kick(state, 0.5), 0.5)), 0.5), None


def _rescaled(state: MDState) -> Moved:
    moved = drift(kick(state, 0.5), 0.5)
    squares, normals = rescaling_numbers(state, 1)
    moved = rescale(moved, kinetic_energy(moved), thermal_energy(state), squares, normals[0])
    return drift(moved, 0.5), None


def _stir(state: MDState) -> MDState:
    """Friction and noise, exactly for the whole timestep.

    v <- c v + sqrt((1 - c^2) k T / m) xi        c = exp(-dt / thermostat_time)
    """
    conditions, atoms = state.conditions, state.batch.system_idx
    rate = conditions.timestep / conditions.thermostat_time
    damping = torch.exp(-rate)
    variance = -torch.expm1(-2.0 * rate) * thermal_energy(state) / EV_PER_AMU_A2_FS2
    spread = (variance.index_select(0, atoms) / state.masses).sqrt()
    noise = without_drift(spread[:, None] * atom_normals(state, Stream.LANGEVIN), state)
    velocities = damping.index_select(0, atoms)[:, None] * state.velocities + noise
    gain = dot(velocities - state.velocities, velocities + state.velocities)
    heat = sum_over_atoms((0.5 * EV_PER_AMU_A2_FS2) * state.masses * gain, state.batch)
    return replace(state, velocities=velocities, heat=state.heat + heat)


def rescaling_numbers(
    state: MDState, count: int
) -> tuple[Float[Tensor, " system"], tuple[Float[Tensor, " system"], ...]]:
    """A sum of f - 1 squared normals, f the degrees of freedom, and `count` normals besides."""
    conditions, n_blocks = state.conditions, TRIES + -(-count // 4)
    blocks = torch.arange(n_blocks, device=state.batch.device).expand(state.batch.n_systems, -1)
    keys = (state.steps[:, None], conditions.identity[:, None])
    block = words(blocks, *keys, Stream.RESCALING, conditions.seed[:, None])
    x, y = normal_pair(block[0], block[1])
    tried = torch.cat([x[:, :TRIES], y[:, :TRIES]], 1)
    chance = uniform(torch.cat([block[2][:, :TRIES], block[3][:, :TRIES]], 1))
    squares = chi_square(tried, chance, conditions.degrees_of_freedom.double() - 1.0)
    normals = [*x[:, TRIES:].unbind(1), *y[:, TRIES:].unbind(1)]
    if count > len(normals):
        more = normal_pair(block[2][:, TRIES:], block[3][:, TRIES:])
        normals += [*more[0].unbind(1), *more[1].unbind(1)]
    return squares, tuple(normals[:count])


def rescale(
    state: MDState,
    kinetic: Float[Tensor, " system"],
    kt: Float[Tensor, " system"],
    squares: Float[Tensor, " system"],
    normal: Float[Tensor, " system"],
) -> MDState:
    """Multiply all velocities of a system by alpha, exactly for the whole timestep.

        K' = (sqrt(c K) + sqrt((1 - c) k T / 2) R)^2 + (1 - c) k T / 2 S      alpha^2 = K' / K

    with c = exp(-dt / thermostat_time), R normal and S a sum of f - 1 squared normals, f the
    degrees of freedom (Eq. A7 of the paper, in another order; alpha has the sign of the bracket).

    Args:
        kinetic: K in eV of the state's velocities.
        kt: k T in eV.
        squares: S.
        normal: R.
    """
    rate = state.conditions.timestep / state.conditions.thermostat_time
    half_kt = -0.5 * torch.expm1(-rate) * kt
    kinetic = kinetic.clamp(min=SMALLEST)
    along = (torch.exp(-rate) * kinetic).sqrt() + half_kt.sqrt() * normal
    new = along * along + half_kt * squares
    alpha = torch.copysign((new / kinetic).sqrt(), along)
    return replace(
        state,
        velocities=state.velocities * alpha.index_select(0, state.batch.system_idx)[:, None],
        heat=state.heat + torch.where(kinetic > SMALLEST, new - kinetic, 0.0),
    )
