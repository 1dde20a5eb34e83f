"""A batch in motion, and the conditions that each of its systems is under.

Units: eV, Å, fs, amu, K.  Every system has its own timestep, length, temperature, pressure and
random numbers; nothing here depends on what else is in the batch.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from dpa4sim.batch import Batch, dot, max_over_atoms, sum_over_atoms
from dpa4sim.edges import MAX_CROWD, computable
from dpa4sim.errors import ConfigError, DataError, Status
from dpa4sim.lattice import normals
from dpa4sim.potential import EnergyModel, Prediction
from dpa4sim.relax.criterion import FORCE_LIMIT, VOLUME_LIMITS, trusted
from dpa4sim.simulate import observables, random
from dpa4sim.units import BOLTZMANN_EV_K, EV_PER_AMU_A2_FS2, GPA_PER_EV_A3

type PerSystem = int | float | Sequence[int | float] | Tensor
"""One number for every system, or one for each."""


@dataclass(frozen=True)
class Conditions:
    """What each system is under.  Ramps are linear in the system's own steps.

    Args:
        timestep: fs.
        temperature_start: K, before the first step.
        temperature_end: K, at the last step.
        pressure_start: eV/Å^3, before the first step.
        pressure_end: eV/Å^3, at the last step.
        thermostat_time: fs; 1 / friction of Langevin, relaxation of the kinetic energy of Bussi.
        barostat_time: fs; relaxation of the volume if `compressibility` is that of the system.
        compressibility: 1 / bulk modulus in 1/(eV/Å^3).
        n_steps: length.
        seed: 64 bits.
        identity: what tells apart systems of one seed; the same in any batch.
        degrees_of_freedom: of the velocities: 3 n - 3, or 3 for a single atom.  Where it is 3 n
            (a single atom; atoms in an external field) the centre of mass is thermostatted too.
    """

    timestep: Float[Tensor, " system"]
    temperature_start: Float[Tensor, " system"]
    temperature_end: Float[Tensor, " system"]
    pressure_start: Float[Tensor, " system"]
    pressure_end: Float[Tensor, " system"]
    thermostat_time: Float[Tensor, " system"]
    barostat_time: Float[Tensor, " system"]
    compressibility: Float[Tensor, " system"]
    n_steps: Int[Tensor, " system"]
    seed: Int[Tensor, " system"]
    identity: Int[Tensor, " system"]
    degrees_of_freedom: Int[Tensor, " system"]


@dataclass(frozen=True)
class MDState:
    """A batch in motion.

    Args:
        batch: where the atoms are; never wrapped.  A sick system stays at its last sound step.
        prediction: what the model said there, without its edges.
        velocities: Å/fs.
        masses: amu.
        number: of each atom in its system, from 0.
        conditions: what each system is under.
        start_volume: Å^3; zero without a cell.
        heat: energy that the thermostat has given, eV.
        work: energy that the barostat has given, eV.
        steps: steps tried.
        status: `errors.Status` as an integer.
    """

    batch: Batch
    prediction: Prediction
    velocities: Float[Tensor, "atom 3"]
    masses: Float[Tensor, " atom"]
    number: Int[Tensor, " atom"]
    conditions: Conditions
    start_volume: Float[Tensor, " system"]
    heat: Float[Tensor, " system"]
    work: Float[Tensor, " system"]
    steps: Int[Tensor, " system"]
    status: Int[Tensor, " system"]

    @property
    def running(self) -> Bool[Tensor, " system"]:
        """Which systems still move."""
        return self.status == Status.RUNNING


def set_conditions(
    batch: Batch,
    *,
    n_steps: PerSystem,
    timestep: PerSystem = 1.0,
    temperature: PerSystem = 300.0,
    temperature_end: PerSystem | None = None,
    pressure_gpa: PerSystem = 0.0,
    pressure_end_gpa: PerSystem | None = None,
    thermostat_time: PerSystem = 100.0,
    barostat_time: PerSystem = 1000.0,
    bulk_modulus_gpa: PerSystem = 100.0,
    seed: PerSystem = 0,
    identity: PerSystem | None = None,
) -> Conditions:
    """Conditions of the systems of a batch, each setting one number or one per system.

    Args:
        n_steps: length of the run.
        timestep: fs.
        temperature: K; where a ramp starts.
        temperature_end: K; `temperature` if None.
        pressure_gpa: GPA; where a ramp starts.
        pressure_end_gpa: `pressure_gpa` if None.
        thermostat_time: fs.
        barostat_time: fs.
        bulk_modulus_gpa: a guess of the systems' stiffness; it sets the pace of the barostat and
            not what it samples.
        seed: a whole number.
        identity: whole numbers that tell systems of one seed apart; 0, 1, 2, ... if None.

    Raises:
        ConfigError: a setting that is no finite number, out of range, or not one per system.
    """
    n = batch.n_systems
    least = {"timestep": 0.0, "thermostat_time": 0.0, "barostat_time": 0.0, "bulk_modulus_gpa": 0.0}
    given = {
        "timestep": timestep,
        "temperature": temperature,
        "temperature_end": temperature if temperature_end is None else temperature_end,
        "pressure_gpa": pressure_gpa,
        "pressure_end_gpa": pressure_gpa if pressure_end_gpa is None else pressure_end_gpa,
        "thermostat_time": thermostat_time,
        "barostat_time": barostat_time,
        "bulk_modulus_gpa": bulk_modulus_gpa,
    }
    real = {name: _numbers(name, value, n) for name, value in given.items()}
    for name, bound in least.items():
        _refuse(real[name] <= bound, name, real[name], "a positive number")
    for name in ("temperature", "temperature_end"):
        _refuse(real[name] < 0, name, real[name], "zero or a positive number of K")
    frozen = (real["temperature"] == 0) & (real["temperature_end"] > 0)
    _refuse(frozen, "temperature", real["temperature"], "a ramp a start above 0 K, such as 1")
    lengths = _whole("n_steps", n_steps, n)
    _refuse(
        (lengths < 1) | (lengths > random.WORD), "n_steps", lengths, "a whole number from 1 to 2^32"
    )
    names = torch.arange(n) if identity is None else _whole("identity", identity, n)
    _refuse((names < 0) | (names > random.WORD), "identity", names, "a whole number from 0 to 2^32")
    counts = batch.n_atoms.cpu()
    chosen = Conditions(
        timestep=real["timestep"],
        temperature_start=real["temperature"],
        temperature_end=real["temperature_end"],
        pressure_start=real["pressure_gpa"] / GPA_PER_EV_A3,
        pressure_end=real["pressure_end_gpa"] / GPA_PER_EV_A3,
        thermostat_time=real["thermostat_time"],
        barostat_time=real["barostat_time"],
        compressibility=GPA_PER_EV_A3 / real["bulk_modulus_gpa"],
        n_steps=lengths,
        seed=_whole("seed", seed, n),
        identity=names,
        degrees_of_freedom=torch.where(counts > 1, 3 * counts - 3, 3),
    )
    return replace(chosen, **{name: value.to(batch.device) for name, value in vars(chosen).items()})


def md_init(
    batch: Batch,
    model: EnergyModel,
    *,
    conditions: Conditions,
    velocities: Float[Tensor, "atom 3"] | None = None,
    masses: Float[Tensor, " atom"] | None = None,
    exact_temperature: bool = False,
) -> MDState:
    """Evaluate the start and set the atoms in motion, the centre of mass of each system at rest.

    Args:
        velocities: Å/fs; drawn from the Maxwell-Boltzmann distribution at the start temperature
            if None.  Their drift is taken out in either case, where it is no degree of freedom.
        masses: amu; the standard ones if None.
        exact_temperature: scale the velocities so that the kinetic energy is that of the start
            temperature, and not only so on average.

    Raises:
        DataError: velocities or masses are not one per atom, or a mass is not positive.
    """
    batch = batch.with_geometry(batch.positions.double(), batch.cell.double())
    masses = _masses(batch, masses)
    index = torch.arange(len(masses), device=batch.device)
    start = batch.n_atoms.cumsum(0) - batch.n_atoms
    zero = torch.zeros_like(batch.cell[:, 0, 0])
    prediction = replace(model(batch), edges=None)
    state = MDState(
        batch=batch,
        prediction=prediction,
        velocities=torch.zeros_like(batch.positions),
        masses=masses,
        number=index - start[batch.system_idx],
        conditions=conditions,
        start_volume=batch.volume,
        heat=zero,
        work=zero.clone(),
        steps=torch.zeros_like(batch.n_atoms),
        status=torch.full_like(batch.n_atoms, Status.RUNNING),
    )
    if velocities is None:
        velocities = thermal_velocities(state)
    elif velocities.shape != batch.positions.shape:
        raise DataError(
            f"The velocities have shape {tuple(velocities.shape)}. "
            f"Give three numbers for each of the {len(masses)} atoms."
        )
    velocities = without_drift(velocities.to(batch.positions), state)
    state = replace(state, velocities=velocities)
    if exact_temperature:
        found = temperature(state)
        scale = torch.where(found > 0, (conditions.temperature_start / found).sqrt(), 1.0)
        state = replace(state, velocities=velocities * scale[batch.system_idx, None])
    usable = torch.where(computable(batch, model.cutoff), Status.RUNNING, Status.INVALID)
    sickness = inspect_prediction(batch, prediction, state.start_volume > 0)
    status = torch.where(usable == Status.RUNNING, sickness, usable)
    return replace(state, status=_completed(status, state))


def thermal_velocities(state: MDState) -> Float[Tensor, "atom 3"]:
    """Velocities at the start temperature, each component normal with variance k T / m; Å/fs."""
    conditions = state.conditions
    spread = BOLTZMANN_EV_K * conditions.temperature_start / EV_PER_AMU_A2_FS2
    spread = (spread[state.batch.system_idx] / state.masses).sqrt()
    return spread[:, None] * atom_normals(state, random.Stream.VELOCITIES)


def atom_normals(state: MDState, stream: random.Stream) -> Float[Tensor, "atom 3"]:
    """Three standard normals for each atom, for the present step of its system."""
    conditions, atoms = state.conditions, state.batch.system_idx
    steps, identity, seed = (
        values.index_select(0, atoms)
        for values in (state.steps, conditions.identity, conditions.seed)
    )
    return random.normals(random.words(state.number, steps, identity, stream, seed))


def without_drift(velocities: Float[Tensor, "atom 3"], state: MDState) -> Float[Tensor, "atom 3"]:
    """Velocities with the centre of mass at rest, where its motion is no degree of freedom."""
    batch, masses = state.batch, state.masses
    momentum = sum_over_atoms(masses[:, None] * velocities, batch)
    drift = momentum / sum_over_atoms(masses, batch)[:, None]
    drifts = state.conditions.degrees_of_freedom == 3 * batch.n_atoms
    return velocities - torch.where(drifts[:, None], 0.0, drift)[batch.system_idx]


def thermal_energy(state: MDState) -> Float[Tensor, " system"]:
    """Energy k T in eV that the next step is meant to end at."""
    conditions = state.conditions
    start, end = conditions.temperature_start, conditions.temperature_end
    return BOLTZMANN_EV_K * (start + (end - start) * _progress(state))


def external_pressure(state: MDState) -> Float[Tensor, " system"]:
    """Pressure in eV/Å^3 that the next step is meant to end at."""
    conditions = state.conditions
    start, end = conditions.pressure_start, conditions.pressure_end
    return start + (end - start) * _progress(state)


def kinetic_energy(state: MDState) -> Float[Tensor, " system"]:
    """K = sum_i m_i v_i^2 / 2 in eV."""
    return observables.kinetic_energy(state.batch, state.velocities, state.masses)


def temperature(state: MDState) -> Float[Tensor, " system"]:
    """T = 2 K / (f k_B) in K, f the degrees of freedom."""
    return observables.temperature(kinetic_energy(state), state.conditions.degrees_of_freedom)


def conserved_energy(state: MDState) -> Float[Tensor, " system"]:
    """U + K - heat - work in eV: what no exact integrator would change, in any ensemble."""
    return state.prediction.energy + kinetic_energy(state) - state.heat - state.work


def inspect_geometry(state: MDState, cutoff: float, moves_cell: bool) -> Int[Tensor, " system"]:
    """Status of each system before its energy is asked for; RUNNING when nothing is wrong.

    A cell collapses when its volume does, or when it gets so flat that more atoms and images than
    `edges.MAX_CROWD` stand in a box of two cutoffs: then no neighbours would be searched.
    """
    batch = state.batch
    finite = _finite(batch.positions, batch)
    if not moves_cell:
        return torch.where(finite, Status.RUNNING, Status.NOT_FINITE)
    across = normals(batch.cell)
    size = dot(batch.cell[:, 0], across[:, 0]).abs()
    growth, squares = size / state.start_volume, dot(across, across)
    areas = (squares[:, 0] * squares[:, 1] * squares[:, 2]).sqrt()
    crowd = batch.n_atoms * areas * (2 * cutoff / size) * (2 * cutoff / size) * (2 * cutoff / size)
    collapsed = (growth < VOLUME_LIMITS[0]) | (crowd > MAX_CROWD)
    verdict = torch.where(collapsed, Status.COLLAPSED, Status.RUNNING)
    verdict = torch.where(growth > VOLUME_LIMITS[1], Status.EXPLODED, verdict)
    return torch.where(finite & torch.isfinite(size), verdict, Status.NOT_FINITE)


def inspect_prediction(
    batch: Batch,
    prediction: Prediction,
    has_volume: Bool[Tensor, " system"],
    searched: Bool[Tensor, " system"] | None = None,
) -> Int[Tensor, " system"]:
    """Status of each system after its evaluation; RUNNING when nothing is wrong.

    The stress of a system whose cell has no volume is NaN by contract, and no sickness.  A system
    in which no neighbours were searched has no forces, which is not the same as zero forces.

    Args:
        searched: of the edges, see `Edges`.
    """
    force = max_over_atoms(dot(prediction.forces, prediction.forces), batch)
    finite = torch.isfinite(prediction.energy) & torch.isfinite(force)
    if prediction.has_stress:
        finite = finite & (torch.isfinite(_total(prediction.stress)) | ~has_volume)
    finite = finite if searched is None else finite & searched
    verdict = torch.where(force > FORCE_LIMIT**2, Status.EXPLODED, trusted(prediction))
    return torch.where(finite, verdict, Status.NOT_FINITE)


def tick(before: MDState, after: MDState, sickness: Int[Tensor, " system"]) -> MDState:
    """The clocks and verdicts of the systems that were running; the others keep theirs."""
    running = before.running
    after = replace(after, steps=before.steps + running)
    return replace(after, status=torch.where(running, _completed(sickness, after), before.status))


def _completed(status: Int[Tensor, " system"], state: MDState) -> Int[Tensor, " system"]:
    over = (state.steps >= state.conditions.n_steps) & (status == Status.RUNNING)
    return torch.where(over, Status.COMPLETED, status)


def _progress(state: MDState) -> Float[Tensor, " system"]:
    """Share of the run that is over after the next step."""
    return (state.steps + 1).double() / state.conditions.n_steps


def _finite(vectors: Float[Tensor, "atom 3"], batch: Batch) -> Bool[Tensor, " system"]:
    """Whether every component is a number: whether their sum is."""
    return torch.isfinite(sum_over_atoms(vectors[:, 0] + vectors[:, 1] + vectors[:, 2], batch))


def _total(matrix: Float[Tensor, "system 3 3"]) -> Float[Tensor, " system"]:
    rows = matrix[:, 0] + matrix[:, 1] + matrix[:, 2]
    return rows[:, 0] + rows[:, 1] + rows[:, 2]


def _masses(batch: Batch, masses: Float[Tensor, " atom"] | None) -> Float[Tensor, " atom"]:
    if masses is None:
        from ase.data import atomic_masses

        table = torch.as_tensor(atomic_masses, dtype=torch.float64, device=batch.device)
        return table[batch.atomic_numbers]
    if masses.shape != batch.atomic_numbers.shape or not bool((masses > 0).all()):
        raise DataError(
            f"The masses have shape {tuple(masses.shape)} or are not all positive. "
            f"Give one in amu for each of the {len(batch.positions)} atoms."
        )
    return masses.to(batch.positions)


def _numbers(name: str, value: PerSystem, n: int) -> Float[Tensor, " system"]:
    """One float64 per system, on the host."""
    found = _tensor(name, value).detach().cpu().double()
    if found.ndim > 1 or (found.ndim == 1 and len(found) != n):
        raise ConfigError(
            f"{name} has {found.numel()} values for {n} systems. Give one number, or one each."
        )
    found = found.expand(n).clone()
    _refuse(~torch.isfinite(found), name, found, "a finite number")
    return found


def _whole(name: str, value: PerSystem, n: int) -> Int[Tensor, " system"]:
    """One int64 per system, on the host."""
    given = _tensor(name, value)
    found = _numbers(name, given, n)
    _refuse(found != found.round(), name, found, "a whole number")
    exact = given if not given.is_floating_point() else found.long()
    return exact.detach().cpu().long().expand(n).clone()


def _tensor(name: str, value: PerSystem) -> Tensor:
    try:
        return torch.as_tensor(value)
    except (OverflowError, RuntimeError, TypeError, ValueError) as error:
        raise ConfigError(
            f"{name} = {value!r} cannot be used ({error}). Give one number, or one per system."
        ) from error


def _refuse(bad: Bool[Tensor, " system"], name: str, values: Tensor, valid: str) -> None:
    if bool(bad.any()):
        system = int(bad.nonzero()[0])
        raise ConfigError(f"{name} = {values[system].item():g} for system {system}. Give {valid}.")
