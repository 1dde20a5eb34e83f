"""Constant pressure: stochastic cell rescaling.

Bernetti and Bussi, J. Chem. Phys. 153, 114107 (2020), for the volume; Del Tatto, Raiteri, Bernetti
and Bussi, Appl. Sci. 12, 1139 (2022), for the shape.  What is sampled, as the timestep goes to
zero and whatever the compressibility and the barostat time, is

    exp(-(K + U + P V) / k T) dr dp dV          at a fixed shape ("isotropic")
    the same times the three lengths' shape     (uniform in each cell length: "anisotropic")
    the same times all shapes h                 ((det h)^-2 dh, rotations left out: "triclinic")

so the volume alone has the same weight in all three: an ideal gas has V^N exp(-P V / k T).

A strain eps deforms all lengths by F and all momenta by F^-T.  With symmetric strains in an
orthonormal basis, X = sum m v v - V sigma - P V 1 the force that drives them and
D = k T beta / (3 V tau), the diffusion that keeps that weight is, for the shape (traceless part),

    d eps = D X / (k T) dt + sqrt(2 D) dW

and for the volume, in terms of lambda = sqrt(V), in which the noise does not depend on the state,

    d lambda = (beta lambda / (2 tau)) [tr X / (3 V) + (c + 1/2) k T / V] dt
               + sqrt(k T beta / (2 tau)) dW

Here c = n - f / 3: the momentum of the centre of mass is no degree of freedom, but its position
is one, so that one power of V would be missing otherwise.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from jaxtyping import Float
from torch import Tensor

from dpa4sim.batch import dot, sum_over_atoms
from dpa4sim.errors import ConfigError, Status
from dpa4sim.lattice import inverse, matmul, volume
from dpa4sim.potential import EnergyModel, Prediction
from dpa4sim.simulate.nve import Departure, Moved, advance, arrive, drift, kick
from dpa4sim.simulate.nvt import rescale, rescaling_numbers
from dpa4sim.simulate.state import MDState, external_pressure, kinetic_energy, thermal_energy
from dpa4sim.units import EV_PER_AMU_A2_FS2

COUPLINGS = {"isotropic": 1, "anisotropic": 3, "triclinic": 6}
"""Which strains the barostat changes, and how many there are."""

HALF = 0.5**0.5

type Deformed = tuple[MDState, Float[Tensor, "system 3 3"], Float[Tensor, " system"]]
"""A state whose cells have changed, the strain that they took, the kinetic energy in eV."""


def c_rescale_step(state: MDState, model: EnergyModel, *, coupling: str = "isotropic") -> MDState:
    """Kick, deformation of the cell, drift, velocity rescaling, drift, kick.

    "isotropic" scales all lengths alike, "anisotropic" the three cell vectors each by its own
    factor, "triclinic" also changes the angles; no coupling rotates the cell.

    Args:
        coupling: one of COUPLINGS.

    Raises:
        ConfigError: another coupling.
    """
    if coupling not in COUPLINGS:
        raise ConfigError(f"coupling = {coupling!r}. Choose one of: {', '.join(COUPLINGS)}.")
    return advance(state, model, _deformed, coupling, end=_pay)


def _deformed(state: MDState, coupling: str) -> Moved:
    """All but the last kick."""
    kt, pushed = thermal_energy(state), kick(state, 0.5)
    squares, (normal, *noise) = rescaling_numbers(state, 1 + COUPLINGS[coupling])
    deform = _swell if coupling == "isotropic" else _shear
    moved, strain, kinetic = deform(pushed, kt, noise)
    return drift(rescale(drift(moved, 0.5), kinetic, kt, squares, normal), 0.5), strain


def _swell(
    state: MDState, kt: Float[Tensor, " system"], noise: list[Float[Tensor, " system"]]
) -> Deformed:
    """All lengths change by one factor."""
    batch, size, kinetic = state.batch, volume(state.batch.cell), kinetic_energy(state)
    virial = size * _trace(state.prediction.stress)
    swelling = _swelling(state, size, 2.0 * kinetic - virial, kt, noise[0])
    factor = torch.exp(swelling)
    after = kinetic / (factor * factor)
    work = after - kinetic + 0.5 * virial * swelling
    of_atoms = factor.index_select(0, batch.system_idx)[:, None]
    moved = replace(
        state,
        batch=batch.with_geometry(of_atoms * batch.positions, factor[:, None, None] * batch.cell),
        velocities=state.velocities / of_atoms,
        work=state.work + work,
    )
    return moved, swelling[:, None, None] * _one(batch.cell), after


def _shear(
    state: MDState, kt: Float[Tensor, " system"], noise: list[Float[Tensor, " system"]]
) -> Deformed:
    """Volume and shape change; three strains are stretches of the cell vectors."""
    batch, size, kinetic = state.batch, volume(state.batch.cell), _kinetic_tensor(state)
    virial = size[:, None, None] * state.prediction.stress
    drive = kinetic - virial
    trace = (noise[0] + noise[1] + noise[2]) / 3.0**0.5
    swelling = _swelling(state, size, _trace(drive), kt, trace)
    if len(noise) == 3:
        strain, lengths, momenta = _stretched(state, size, drive, kt, noise, swelling)
    else:
        strain, lengths, momenta = _sheared(state, size, drive, kt, noise, swelling)
    after = 0.5 * _contract(kinetic, matmul(momenta, momenta.transpose(1, 2)))
    work = after - 0.5 * (_trace(kinetic) - _contract(virial, strain))
    moved = replace(
        state,
        batch=batch.with_geometry(
            _deform(batch.positions, lengths, batch.system_idx), matmul(batch.cell, lengths)
        ),
        velocities=_deform(state.velocities, momenta, batch.system_idx),
        work=state.work + work,
    )
    return moved, strain, after


def _swelling(
    state: MDState,
    size: Float[Tensor, " system"],
    trace: Float[Tensor, " system"],
    kt: Float[Tensor, " system"],
    normal: Float[Tensor, " system"],
) -> Float[Tensor, " system"]:
    """ln(V' / V) / 3 after one step of sqrt(V).

    Args:
        size: V.
        trace: of sum m v v - V sigma, eV.
        normal: of all strains' noise the trace, which does not depend on its traceless part.
    """
    conditions = state.conditions
    rate = 0.5 * conditions.compressibility * conditions.timestep / conditions.barostat_time
    missing = state.batch.n_atoms - conditions.degrees_of_freedom.double() / 3.0
    excess = (trace / 3.0 + (missing + 0.5) * kt) / size - external_pressure(state)
    change = rate * excess + (rate * kt / size).sqrt() * normal
    return (2.0 / 3.0) * (1.0 + change).abs().log()


def _shape(
    state: MDState,
    size: Float[Tensor, " system"],
    drive: Float[Tensor, "system 3 3"],
    kt: Float[Tensor, " system"],
    noise: Float[Tensor, "system 3 3"],
) -> Float[Tensor, "system 3 3"]:
    """Traceless strain of one step.

    Args:
        size: V.
        drive: sum m v v - V sigma, eV; only its traceless part counts.
        noise: normals in an orthonormal basis; only the traceless part counts.
    """
    conditions = state.conditions
    pace = conditions.compressibility * conditions.timestep / (3.0 * conditions.barostat_time)
    pace = pace / size
    strain = pace[:, None, None] * drive + (2.0 * pace * kt).sqrt()[:, None, None] * noise
    return strain - (_trace(strain) / 3.0)[:, None, None] * _one(strain)


def _sheared(
    state: MDState,
    size: Float[Tensor, " system"],
    drive: Float[Tensor, "system 3 3"],
    kt: Float[Tensor, " system"],
    noise: list[Float[Tensor, " system"]],
    swelling: Float[Tensor, " system"],
) -> tuple[Tensor, Tensor, Tensor]:
    """Strain eps, F and F^-T of any shape: F is 1 + eps + eps^2 / 2 brought to its volume.

    The exponential differs at third order only, of which the diffusion knows nothing.
    """
    shape, one = _shape(state, size, drive, kt, _symmetric(noise)), _one(drive)
    lengths = one + shape + 0.5 * matmul(shape, shape)
    factor = torch.exp(swelling - volume(lengths).log() / 3.0)
    lengths = factor[:, None, None] * lengths
    return shape + swelling[:, None, None] * one, lengths, inverse(lengths)


def _stretched(
    state: MDState,
    size: Float[Tensor, " system"],
    drive: Float[Tensor, "system 3 3"],
    kt: Float[Tensor, " system"],
    noise: list[Float[Tensor, " system"]],
    swelling: Float[Tensor, " system"],
) -> tuple[Tensor, Tensor, Tensor]:
    """Strain eps, F and F^-T of cell vectors that keep their directions.

    F = h^-1 diag(exp s) h        eps = h^-1 diag(s) h        s driven by the diagonal of h X h^-1
    """
    cell, one = state.batch.cell, _one(drive)
    back = inverse(cell)
    along = matmul(matmul(cell, drive), back)
    stretch = _shape(state, size, one * along, kt, one * torch.stack(noise, 1)[:, None])
    stretch = stretch + swelling[:, None, None] * one
    factors = torch.exp(stretch.diagonal(dim1=1, dim2=2))[:, :, None]
    lengths, momenta = matmul(back, factors * cell), matmul(back, cell / factors)
    return matmul(back, matmul(stretch, cell)), lengths, momenta.transpose(1, 2)


def _pay(before: MDState, departure: Departure, prediction: Prediction) -> MDState:
    """The last kick, and the second half of the barostat's work on the potential energy.

    The first half was counted with the stress at the start of the step: together they are the
    trapezoidal rule, whose error has no drift of lowest order.
    """
    arrived = arrive(before, departure, prediction)
    if departure.strain is None:
        return arrived
    stress = volume(arrived.batch.cell)[:, None, None] * arrived.prediction.stress
    work = arrived.work + 0.5 * _contract(stress, departure.strain)
    sound = (arrived.status == Status.RUNNING) | (arrived.status == Status.COMPLETED)
    return replace(arrived, work=torch.where(sound & before.running, work, arrived.work))


def _kinetic_tensor(state: MDState) -> Float[Tensor, "system 3 3"]:
    """sum_i m_i v_i (x) v_i in eV; its trace is twice the kinetic energy."""
    momenta = (EV_PER_AMU_A2_FS2 * state.masses)[:, None] * state.velocities
    return sum_over_atoms(momenta[:, :, None] * state.velocities[:, None], state.batch)


def _deform(
    vectors: Float[Tensor, "atom 3"], matrix: Float[Tensor, "system 3 3"], system_idx: Tensor
) -> Float[Tensor, "atom 3"]:
    """Row vectors times their system's matrix."""
    return matmul(vectors[:, None], matrix.index_select(0, system_idx))[:, 0]


def _symmetric(noise: list[Float[Tensor, " system"]]) -> Float[Tensor, "system 3 3"]:
    """Sum of six numbers times the orthonormal symmetric matrices; the diagonal comes first."""
    a, b, c, *off = noise
    x, y, z = (HALF * number for number in off)
    return torch.stack([a, x, y, x, b, z, y, z, c], 1).reshape(-1, 3, 3)


def _one(like: Float[Tensor, "system 3 3"]) -> Float[Tensor, "3 3"]:
    return torch.eye(3, dtype=like.dtype, device=like.device)


def _trace(matrix: Float[Tensor, "system 3 3"]) -> Float[Tensor, " system"]:
    return matrix[:, 0, 0] + matrix[:, 1, 1] + matrix[:, 2, 2]


def _contract(
    left: Float[Tensor, "system 3 3"], right: Float[Tensor, "system 3 3"]
) -> Float[Tensor, " system"]:
    """Sum of the products of the entries."""
    rows = dot(left, right)
    return rows[:, 0] + rows[:, 1] + rows[:, 2]
