"""Our optimisers and integrators as TorchSim's pairs (init, step).

state = ts.optimize(system, DPA4Model(potential), optimizer=relax_pair(),
                    convergence_fn=stopped, max_steps=10_000)
state = ts.integrate(system, DPA4Model(potential), integrator=simulate_pair("langevin"),
                     n_steps=1000, temperature=300.0, timestep=0.001)
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch_sim.constraints import Constraint, FixAtoms, FixCom
from torch_sim.models.interface import ModelInterface
from torch_sim.state import SimState
from torch_sim.units import MetalUnits

from dpa4sim.adapters.torchsim import energy_model, from_state
from dpa4sim.adapters.torchsim_state import MotionState, RelaxState, packed, replaced, unpacked
from dpa4sim.batch import Batch
from dpa4sim.errors import ConfigError, DataError, Status
from dpa4sim.potential import EnergyModel
from dpa4sim.relax.fire import FireSettings, fire_init, fire_step
from dpa4sim.relax.freedom import Freedom, unconstrained
from dpa4sim.relax.lbfgs import LbfgsSettings, lbfgs_init, lbfgs_step
from dpa4sim.simulate.npt import c_rescale_step
from dpa4sim.simulate.nve import nve_step
from dpa4sim.simulate.nvt import bussi_step, langevin_step
from dpa4sim.simulate.random import WORD
from dpa4sim.simulate.state import MDState, md_init, set_conditions
from dpa4sim.units import EV_PER_AMU_A2_FS2

OPTIMIZERS = ("lbfgs", "fire")

INTEGRATORS: dict[str, Callable[[Any, EnergyModel], Any]] = {
    "nve": nve_step,
    "langevin": langevin_step,
    "bussi": bussi_step,
    "isotropic": partial(c_rescale_step, coupling="isotropic"),
    "anisotropic": partial(c_rescale_step, coupling="anisotropic"),
    "triclinic": partial(c_rescale_step, coupling="triclinic"),
}
"""Constant energy, two thermostats, and the couplings of the barostat."""

MOMENTUM = EV_PER_AMU_A2_FS2**0.5
"""amu Å/fs in TorchSim's unit of momentum, the root of amu eV."""

Init = Callable[..., Any]
Step = Callable[..., Any]


def relax_pair(
    optimizer: str = "lbfgs",
    *,
    fmax: float = 0.02,
    max_steps: int = 500,
    cell: bool = True,
    cell_filter: str = "frechet",
    freedom: Callable[[Batch], Freedom] | None = None,
) -> tuple[Init, Step]:
    """One of our optimisers as TorchSim's `optimizer=(init, step)`.

    Give `convergence_fn=stopped` with it, and a `max_steps` of TorchSim's that is not the smaller
    one: each system stops by itself when it has converged, when it is sick, and after exactly
    `max_steps` moves.

    Args:
        optimizer: one of `OPTIMIZERS`.
        fmax: converged when every force and cell-force row is shorter, eV/Å.
        max_steps: moves per system.
        cell: whether the cells relax.
        cell_filter: "frechet" or "unit", for "fire" only.
        freedom: what may move, of a batch; None for everything, at zero pressure.  The atoms of
            TorchSim's `FixAtoms` never move.

    Raises:
        ConfigError: another optimizer.
    """
    if optimizer not in OPTIMIZERS:
        raise ConfigError(f"optimizer={optimizer!r} is not known. Valid: {', '.join(OPTIMIZERS)}.")

    move: Callable[[Any, EnergyModel], Any] = lbfgs_step if optimizer == "lbfgs" else fire_step

    def init(state: SimState, model: ModelInterface) -> RelaxState:
        if cell and not bool(state.pbc.all()):
            raise DataError(
                "The cell of a system that is not periodic in three dimensions cannot relax. "
                "Give relax_pair(cell=False)."
            )
        batch = from_state(state)
        free = unconstrained(batch, cell) if freedom is None else freedom(batch)
        free = replace(free, movable=free.movable * _not_fixed(state))
        potential = energy_model(model)
        if optimizer == "lbfgs":
            record: Any = lbfgs_init(
                batch,
                potential,
                freedom=free,
                settings=LbfgsSettings(fmax=fmax, max_steps=max_steps),
            )
        else:
            record = fire_init(
                batch,
                potential,
                freedom=free,
                cell_filter=cell_filter if cell else None,
                settings=FireSettings(fmax=fmax, max_steps=max_steps),
            )
        return RelaxState(**{"masses": state.masses, "pbc": state.pbc, **packed(record, state)})

    def step(state: RelaxState, model: ModelInterface) -> RelaxState:
        record = move(unpacked(state), energy_model(model))
        return replaced(state, packed(record, state))

    return init, step


def simulate_pair(
    integrator: str = "langevin",
    *,
    thermostat_time: float = 100.0,
    pressure_gpa: float = 0.0,
    barostat_time: float = 1000.0,
    bulk_modulus_gpa: float = 100.0,
    seed: int = 0,
) -> tuple[Init, Step]:
    """One of our integrators as TorchSim's `integrator=(init, step)`.

    TorchSim gives temperature and timestep, and may change them from step to step.  Momenta that
    the start has are taken; a state of this pair goes on where it was.  The random numbers of a
    system are those of `seed` and of its entry in the system extra "identity"; without that extra
    the systems are numbered in the order in which the pair meets them, so make a new pair for
    every run that is to be repeatable.

    Args:
        integrator: one of `INTEGRATORS`; the last three keep the pressure too.
        thermostat_time: fs; the friction of "langevin" is 1 over it.
        pressure_gpa: external pressure.
        barostat_time: fs.
        bulk_modulus_gpa: how stiff the barostat takes the systems to be; it sets the pace only.
        seed: a whole number.

    Raises:
        ConfigError: another integrator.
    """
    if integrator not in INTEGRATORS:
        valid = ", ".join(INTEGRATORS)
        raise ConfigError(f"integrator={integrator!r} is not known. Valid: {valid}.")
    advance, met = INTEGRATORS[integrator], 0

    def init(state: SimState, model: ModelInterface, kT: Tensor, dt: Tensor) -> MotionState:
        nonlocal met
        if isinstance(state, MotionState):
            return state.clone()
        _check_motion(state, integrator)
        batch = from_state(state)
        identity = state.system_extras.get("identity")
        if identity is None:
            identity = torch.arange(met, met + batch.n_systems)
            met += batch.n_systems
        conditions = set_conditions(
            batch,
            n_steps=WORD,
            timestep=_femtoseconds(dt),
            temperature=_kelvin(kT),
            pressure_gpa=pressure_gpa,
            thermostat_time=thermostat_time,
            barostat_time=barostat_time,
            bulk_modulus_gpa=bulk_modulus_gpa,
            seed=seed,
            identity=identity,
        )
        masses, momenta = state.masses.double(), getattr(state, "momenta", None)
        record = md_init(
            batch,
            energy_model(model),
            conditions=conditions,
            velocities=None if momenta is None else momenta.double() / masses[:, None] / MOMENTUM,
            masses=masses,
        )
        carried = packed(record, state) | {"momenta": _momenta(record)}
        several = (batch.n_atoms > 1).nonzero()[:, 0]
        still: list[Constraint] = [FixCom(several)] if len(several) else []
        return MotionState(pbc=state.pbc, _constraints=still, **carried)

    def step(state: MotionState, model: ModelInterface, *, dt: Tensor, kT: Tensor) -> MotionState:
        record = unpacked(state)
        like = record.conditions.timestep
        temperature = _kelvin(kT).to(like).expand_as(like)
        conditions = replace(
            record.conditions,
            timestep=_femtoseconds(dt).to(like).expand_as(like),
            temperature_start=temperature,
            temperature_end=temperature,
        )
        record = advance(replace(record, conditions=conditions), energy_model(model))
        return replaced(state, packed(record, state) | {"momenta": _momenta(record)})

    return init, step


def stopped(state: RelaxState, last_energy: Tensor | None = None) -> Bool[Tensor, " system"]:
    """Which systems have come to their end; a `convergence_fn` for `ts.optimize`."""
    return state.status != Status.RUNNING


def _not_fixed(state: SimState) -> Float[Tensor, " atom"]:
    """0 for the atoms that a `FixAtoms` of TorchSim holds, else 1.

    Raises:
        DataError: another constraint.
    """
    movable = torch.ones_like(state.positions[:, 0], dtype=torch.float64)
    for constraint in state.constraints:
        if not isinstance(constraint, FixAtoms):
            raise DataError(
                f"{type(constraint).__name__} is not a constraint that dpa4sim's optimisers keep; "
                "they keep FixAtoms. For others give relax_pair(freedom=...)."
            )
        movable[constraint.atom_idx] = 0.0
    return movable


def _check_motion(state: SimState, integrator: str) -> None:
    """Refuse what our integrators would not keep.

    Raises:
        DataError: a constraint, or a barostat for what is not periodic.
    """
    for constraint in state.constraints:
        if not isinstance(constraint, FixCom):  # every integrator keeps that one
            raise DataError(
                f"{type(constraint).__name__} is not a constraint that dpa4sim's integrators keep. "
                "Take it off the state."
            )
    if integrator.endswith(("tropic", "clinic")) and not bool(state.pbc.all()):
        raise DataError(
            "The pressure of a system that is not periodic in three dimensions has no meaning. "
            'Give simulate_pair("langevin") or simulate_pair("bussi").'
        )


def _momenta(record: MDState) -> Float[Tensor, "atom 3"]:
    """In TorchSim's unit."""
    return MOMENTUM * record.masses[:, None] * record.velocities


def _femtoseconds(dt: Tensor) -> Tensor:
    """From TorchSim's unit of time."""
    return torch.as_tensor(dt) * (1000.0 / float(MetalUnits.time))


def _kelvin(kT: Tensor) -> Tensor:
    """From eV."""
    return torch.as_tensor(kT) / float(MetalUnits.temperature)
