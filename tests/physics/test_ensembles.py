"""What the integrators sample: closed forms, independent samplers, and another program."""

from dataclasses import dataclass, replace
from functools import partial
from math import sqrt

import numpy as np
import physical_validation as pv
import pytest
import torch
from ase.build import bulk
from scipy.stats import gamma, kstest
from toy import Einstein, Free, LennardJones, packed

from dpa4sim.batch import Batch
from dpa4sim.errors import Status
from dpa4sim.lattice import matmul, volume
from dpa4sim.potential import Prediction
from dpa4sim.simulate.npt import c_rescale_step
from dpa4sim.simulate.nve import nve_step
from dpa4sim.simulate.nvt import bussi_step, langevin_step
from dpa4sim.simulate.state import (
    MDState,
    conserved_energy,
    kinetic_energy,
    md_init,
    set_conditions,
)
from dpa4sim.units import BOLTZMANN_EV_K, GPA_PER_EV_A3

DOUBT = 1e-4
"""Probability with which a right sampler fails a test of distribution; the seeds are fixed."""

SIGMA = 5
"""Standard errors by which a right mean may be off."""

COUPLINGS = ("isotropic", "anisotropic", "triclinic")


def walk(state: MDState, model, step, n: int, look=None, every: int = 1, skip: int = 0):
    """The state after n steps, and what `look` saw of it at every `every`-th after `skip`."""
    seen = []
    for k in range(1, n + 1):
        state = step(state, model)
        if look is not None and k > skip and k % every == 0:
            seen.append(look(state))
    return state, torch.stack(seen) if seen else None


def assert_mean(samples: torch.Tensor, expected: float, bias: float = 0.0) -> None:
    """Columns are independent systems, rows are correlated times."""
    means = samples.mean(0)
    error = float(means.std()) / sqrt(len(means))
    assert float(means.mean()) == pytest.approx(expected, abs=SIGMA * error + bias * abs(expected))


# --- constant energy ---------------------------------------------------------------------------


@pytest.mark.slow
def test_the_energy_of_ten_picoseconds_does_not_drift():
    """Below 1 meV per atom; the slope of the smooth model is lost in its fluctuation."""
    batch, model = packed([bulk("Cu", "fcc", a=3.6, cubic=True) * (2, 1, 1)]), LennardJones()
    conditions = set_conditions(batch, n_steps=2500, timestep=4.0, temperature=600.0, seed=2)
    state = md_init(batch, model, conditions=conditions)
    start = conserved_energy(state)
    state, error = walk(state, model, nve_step, 2500, lambda s: conserved_energy(s) - start, 10)
    assert state.status.tolist() == [Status.COMPLETED]
    per_atom = error[:, 0] / 8
    assert float(per_atom.abs().max()) < 1e-3
    time = torch.linspace(0, 1, len(per_atom), dtype=torch.float64)
    slope = float((time - time.mean()) @ per_atom / (time - time.mean()).square().sum())
    assert abs(slope) < 1e-4, "eV per atom over the run"


# --- constant temperature ----------------------------------------------------------------------


def mixed_gas(n_atoms: int, copies: int) -> tuple[Batch, torch.Tensor]:
    """Free atoms of two kinds, half of the systems at 300 K and half at 900 K."""
    numbers = [3, 29] * (n_atoms // 2)
    one = Batch.single(torch.zeros(n_atoms, 3), numbers)
    kelvin = torch.tensor([300.0, 900.0]).double().repeat_interleave(copies)
    return Batch.concatenate([one] * (2 * copies)), kelvin


def physical_units() -> pv.data.UnitData:
    return pv.data.UnitData(
        kb=BOLTZMANN_EV_K,
        energy_conversion=96.4853,
        length_conversion=0.1,
        volume_conversion=1e-3,
        temperature_conversion=1.0,
        pressure_conversion=1e4 * GPA_PER_EV_A3,
        time_conversion=1e-3,
    )


@pytest.mark.parametrize("step", [langevin_step, bussi_step])
def test_kinetic_energies_are_those_of_a_canonical_ensemble(step):
    """Kolmogorov-Smirnov against the gamma distribution, by physical_validation."""
    n_atoms, copies = 6, 2000
    batch, kelvin = mixed_gas(n_atoms, copies)
    conditions = set_conditions(
        batch, n_steps=40, temperature=kelvin, thermostat_time=5.0, timestep=2.0, seed=6
    )
    # start far from the answer: every system exactly at its mean energy
    state = md_init(batch, Free(), conditions=conditions, exact_temperature=True)
    state, _ = walk(state, Free(), step, 40)
    found = kinetic_energy(state).numpy()
    for part, wanted in ((slice(0, copies), 300.0), (slice(copies, None), 900.0)):
        data = pv.data.SimulationData(
            units=physical_units(),
            ensemble=pv.data.EnsembleData("NVT", natoms=n_atoms, volume=1.0, temperature=wanted),
            system=pv.data.SystemData(
                natoms=n_atoms, nconstraints=0, ndof_reduction_tra=3, ndof_reduction_rot=0
            ),
            observables=pv.data.ObservableData(kinetic_energy=found[part]),
        )
        pvalue = pv.kinetic_energy.distribution(
            data, strict=True, verbosity=0, data_is_uncorrelated=True
        )
        assert pvalue > DOUBT
    assert_equipartition(state, kelvin)


def assert_equipartition(state: MDState, kelvin: torch.Tensor) -> None:
    """Light and heavy atoms have the same share, each component too, in every part."""
    thermal = state.masses[:, None] * state.velocities.square()
    light = state.batch.atomic_numbers == 3
    total = 6 * float(state.masses[:6].mean())  # amu of one system
    for hot in (300.0, 900.0):
        for kind in (light, ~light):
            rows = thermal[kind & (kelvin[state.batch.system_idx] == hot)]
            mass = float(state.masses[kind][0])
            share = 103.642695720 * rows / (BOLTZMANN_EV_K * hot * (1 - mass / total))
            for component in share.unbind(1):
                error = float(component.std()) / sqrt(len(component))
                assert float(component.mean()) == pytest.approx(1.0, abs=SIGMA * error)


def test_harmonic_oscillators_have_their_energy_at_any_timestep():
    """<U> = 3/2 k T without an error of the timestep, here 40 % of its limit (omega dt = 0.8)."""
    copies = 4000
    batch = Batch.concatenate([Batch.single([[0.0, 0.0, 0.0]], [3])] * (2 * copies))
    kelvin = torch.tensor([200.0, 700.0]).double().repeat_interleave(copies)
    conditions = set_conditions(
        batch, n_steps=400, temperature=kelvin, timestep=8.0, thermostat_time=30.0, seed=1
    )
    masses = torch.full((2 * copies,), 9.64853)  # amu: 1e3 eV fs^2/Å^2, so that omega = 0.1 / fs
    model = Einstein(stiffness=10.0)
    state = md_init(batch, model, conditions=conditions, masses=masses)
    state, seen = walk(state, model, langevin_step, 150, lambda s: s.prediction.energy, 5, 50)
    for part, hot in ((seen[:, :copies], 200.0), (seen[:, copies:], 700.0)):
        kt = BOLTZMANN_EV_K * hot
        assert_mean(part, 1.5 * kt)
        assert_mean(part.square(), 15 / 4 * kt**2)


@pytest.fixture(scope="module")
def hot_crystal() -> dict[str, torch.Tensor]:
    """Potential energies (time, system) of LJ crystals at 700 K under three thermostats."""
    return {
        "langevin": ours(langevin_step, seed=1),
        "bussi": ours(bussi_step, seed=2),
        "torchsim": theirs(seed=3),
    }


CRYSTALS, HOT, STEPS, SKIP = 24, 700.0, 400, 100
SMALL = LennardJones(cutoff=4.0)


def hot_batch() -> Batch:
    return packed([bulk("Cu", "fcc", a=3.7, cubic=True)] * CRYSTALS)


def ours(step, seed: int) -> torch.Tensor:
    batch = hot_batch()
    conditions = set_conditions(
        batch, n_steps=STEPS, temperature=HOT, timestep=5.0, thermostat_time=100.0, seed=seed
    )
    state = md_init(batch, SMALL, conditions=conditions)
    _, seen = walk(state, SMALL, step, STEPS, lambda s: s.prediction.energy, 5, SKIP)
    return seen


def theirs(seed: int) -> torch.Tensor:
    from torch_sim.integrators.nvt import nvt_langevin_init, nvt_langevin_step
    from torch_sim.units import MetalUnits

    from dpa4sim.adapters.torchsim import DPA4Model, to_state

    model = DPA4Model(SMALL)
    kt = torch.tensor(BOLTZMANN_EV_K * HOT, dtype=torch.float64)
    dt = torch.tensor(5e-3 * float(MetalUnits.time), dtype=torch.float64)
    start = to_state(hot_batch())
    start.rng = seed
    state = nvt_langevin_init(start, model, kT=kt)
    seen = []
    for k in range(STEPS):
        state = nvt_langevin_step(state, model, dt=dt, kT=kt, gamma=0.01 / MetalUnits.time * 1e3)
        if k >= SKIP and k % 5 == 0:
            seen.append(state.energy.clone())
    return torch.stack(seen)


@pytest.mark.parametrize("other", ["bussi", "torchsim"])
def test_thermostats_and_programs_agree(hot_crystal, other):
    """Mean and variance of the potential energy, within the error bars of both."""
    for power in (1, 2):
        columns = []
        for name in ("langevin", other):
            centre = hot_crystal["langevin"].mean() if power == 2 else 0.0
            columns.append(((hot_crystal[name] - centre) ** power).mean(0))
        difference = float(columns[0].mean() - columns[1].mean())
        error = sqrt(sum(float(column.var()) / CRYSTALS for column in columns))
        assert abs(difference) < SIGMA * error
        assert error < 0.01, "eV, eV^2: of some 0.4 and 0.03"


# --- constant pressure -------------------------------------------------------------------------

GAS_ATOMS, GAS_COPIES, GAS_KELVIN = 16, 200, (300.0, 600.0)
GAS_GPA = (0.05, 0.15)


@pytest.fixture(scope="module")
def gas_volumes() -> dict[str, torch.Tensor]:
    """P V / k T of ideal gases (time, system) under each coupling; two conditions in one batch."""
    return {coupling: breathing_gas(coupling) for coupling in COUPLINGS}


def breathing_gas(coupling: str) -> torch.Tensor:
    kelvin = torch.tensor(GAS_KELVIN).double().repeat_interleave(GAS_COPIES)
    gpa = torch.tensor(GAS_GPA).double().repeat_interleave(GAS_COPIES)
    unit = BOLTZMANN_EV_K * kelvin / (gpa / GPA_PER_EV_A3)
    shape = torch.tensor([[1.0, 0.0, 0.0], [0.3, 1.0, 0.0], [-0.2, 0.1, 1.0]]).double()
    systems = [
        Batch.single(torch.zeros(GAS_ATOMS, 3), [18] * GAS_ATOMS, shape * size ** (1 / 3), True)
        for size in ((GAS_ATOMS + 1) * unit).tolist()
    ]
    batch = Batch.concatenate(systems)
    conditions = set_conditions(
        batch,
        n_steps=500,
        timestep=2.0,
        temperature=kelvin,
        thermostat_time=10.0,
        pressure_gpa=gpa,
        bulk_modulus_gpa=gpa,
        barostat_time=40.0,
        seed=1,
    )
    state = md_init(batch, Free(), conditions=conditions)
    step = partial(c_rescale_step, coupling=coupling)
    state, seen = walk(state, Free(), step, 500, lambda s: s.batch.volume / unit, 20, 80)
    assert set(state.status.tolist()) == {Status.COMPLETED}
    return seen


@pytest.mark.parametrize("coupling", COUPLINGS)
def test_the_volume_of_an_ideal_gas(gas_volumes, coupling):
    """p(V) ~ V^N exp(-P V / k T): a gamma distribution of shape N + 1, one power at a time."""
    for part in gas_volumes[coupling].split(GAS_COPIES, dim=1):
        expected = GAS_ATOMS + 1
        assert_mean(part, expected)
        assert_mean((part - expected).square(), expected, bias=0.03)  # of the timestep, tau / 20
        assert kstest(part[-1].numpy(), gamma(expected).cdf).pvalue > DOUBT


SOLID_ATOMS, SOLID_KT, SOLID_GPA = 4, BOLTZMANN_EV_K * 300.0, (0.2, 0.8)
SIDE, MODULUS = 6.0, 0.02
"""Å and eV/Å^3: soft and small, so that strains of 10 % are common and nothing is linear."""


@dataclass(frozen=True)
class Elastic(Free):
    """E = V_0 c [tr(eta)^2 / 2 + eta : eta] of the Green strain eta of a cubic cell; free atoms."""

    def __call__(self, batch: Batch) -> Prediction:
        one = torch.eye(3, dtype=torch.float64)
        stretch = batch.cell / SIDE
        strain = 0.5 * (matmul(stretch, stretch.transpose(1, 2)) - one)
        trace = strain.diagonal(dim1=1, dim2=2).sum(1)
        energy = SIDE**3 * MODULUS * (0.5 * trace**2 + strain.square().sum((1, 2)))
        inner = MODULUS * (trace[:, None, None] * one + 2 * strain)
        stress = matmul(stretch.transpose(1, 2), matmul(inner, stretch)) * SIDE**3
        stress = stress / volume(batch.cell)[:, None, None]
        return replace(super().__call__(batch), energy=energy, stress=stress)


def shapes(cell: torch.Tensor) -> torch.Tensor:
    """Volume in units of the start, length of a, cosine between a and b."""
    a, b = cell[:, 0], cell[:, 1]
    cosine = (a * b).sum(1) / (a.norm(dim=1) * b.norm(dim=1))
    return torch.stack([volume(cell) / SIDE**3, a.norm(dim=1) / SIDE, cosine], 1)


def dynamics(coupling: str, copies: int = 250) -> torch.Tensor:
    """Shapes (time, system, 3), half of the systems at each pressure."""
    one = Batch.single(torch.zeros(SOLID_ATOMS, 3), [18] * SOLID_ATOMS, SIDE * np.eye(3), True)
    batch = Batch.concatenate([one] * (2 * copies))
    conditions = set_conditions(
        batch,
        n_steps=600,
        timestep=2.0,
        temperature=300.0,
        thermostat_time=10.0,
        pressure_gpa=torch.tensor(SOLID_GPA).double().repeat_interleave(copies),
        bulk_modulus_gpa=5.0,
        barostat_time=60.0,
        seed=2,
    )
    state, step = md_init(batch, Elastic(), conditions=conditions), c_rescale_step
    step = partial(c_rescale_step, coupling=coupling)
    state, seen = walk(state, Elastic(), step, 600, lambda s: shapes(s.batch.cell), 20, 120)
    assert set(state.status.tolist()) == {Status.COMPLETED}
    return seen


def metropolis(coupling: str, pressure_gpa: float, n_chains: int = 1500) -> torch.Tensor:
    """Shapes (time, chain, 3) by Metropolis' walk through the cells, without any dynamics.

    The weight is V^N exp(-(E + P V) / k T) dV at a fixed shape, uniform in each length for cells
    that stretch, and V^-2 uniform in the nine numbers of cells of any shape.
    """
    noise, model = torch.Generator().manual_seed(5), Elastic()
    extra = {"isotropic": 2 / 3, "anisotropic": 0.0, "triclinic": -2.0}[coupling]  # dV = 3 L^2 dL

    def log_weight(cell: torch.Tensor) -> torch.Tensor:
        size = volume(cell)
        template = Batch.single(torch.zeros(1, 3), [18], SIDE * np.eye(3), True)
        energy = model(replace(template, cell=cell)).energy
        enthalpy = energy + pressure_gpa / GPA_PER_EV_A3 * size
        return (SOLID_ATOMS + extra) * size.log() - enthalpy / SOLID_KT

    def draw() -> torch.Tensor:
        if coupling == "triclinic":
            return torch.randn(n_chains, 3, 3, generator=noise, dtype=torch.float64)
        number = 1 if coupling == "isotropic" else 3
        drawn = torch.randn(n_chains, number, generator=noise, dtype=torch.float64)
        return torch.diag_embed(drawn.expand(-1, 3))

    cell, seen = SIDE * torch.eye(3).double().repeat(n_chains, 1, 1), []
    weight = log_weight(cell)
    for k in range(400):
        tried = cell + 0.3 * draw()
        new = log_weight(tried)
        chance = torch.rand(n_chains, generator=noise, dtype=torch.float64).log()
        taken = chance < new - weight
        cell = torch.where(taken[:, None, None], tried, cell)
        weight = torch.where(taken, new, weight)
        if k >= 100 and k % 10 == 0:
            seen.append(shapes(cell))
    return torch.stack(seen)


@pytest.mark.parametrize("coupling", COUPLINGS)
def test_shapes_and_volumes_of_an_elastic_solid(coupling):
    """Against a sampler that knows the weights of the cells and nothing of the dynamics; then
    the log ratio of the volumes at the two pressures, by physical_validation."""
    seen = dynamics(coupling).chunk(2, dim=1)
    for found, pressure in zip(seen, SOLID_GPA, strict=True):
        reference = metropolis(coupling, pressure)
        for k, name in enumerate(("volume", "length", "cosine")):
            middle = float(reference[..., k].mean())
            for power in (1, 2):
                columns = [
                    ((part[..., k] - (middle if power == 2 else 0.0)) ** power).mean(0)
                    for part in (found, reference)
                ]
                error = sqrt(sum(float(column.var()) / len(column) for column in columns))
                difference = float(columns[0].mean() - columns[1].mean())
                bias = 0.03 * float(columns[1].mean()) if power == 2 else 0.0  # dt / tau = 1/30
                assert abs(difference) <= SIGMA * error + abs(bias) + 1e-12, (name, power)
    data = [
        pv.data.SimulationData(
            units=physical_units(),
            ensemble=pv.data.EnsembleData(
                "NPT", natoms=4, pressure=gpa / GPA_PER_EV_A3, temperature=300.0
            ),
            observables=pv.data.ObservableData(
                volume=SIDE**3 * found[-1, :, 0].numpy().astype(float)
            ),
        )
        for found, gpa in zip(seen, SOLID_GPA, strict=True)
    ]
    (sigmas,) = pv.ensemble.check(*data, verbosity=0, data_is_uncorrelated=True)
    assert abs(sigmas) < SIGMA
