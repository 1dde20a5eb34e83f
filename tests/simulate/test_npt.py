"""Stochastic cell rescaling: how one step deforms a cell, and that its work is accounted for."""

from dataclasses import dataclass, replace

import pytest
import torch
from toy import Free, LennardJones, crystals, packed

from dpa4sim.batch import Batch
from dpa4sim.errors import ConfigError
from dpa4sim.lattice import volume
from dpa4sim.potential import Prediction
from dpa4sim.simulate.npt import COUPLINGS, c_rescale_step
from dpa4sim.simulate.nvt import bussi_step
from dpa4sim.simulate.state import MDState, conserved_energy, md_init, set_conditions

ROUNDING = 1e-12

EACH = pytest.mark.parametrize("coupling", COUPLINGS)


@dataclass(frozen=True)
class Stressed(Free):
    """No forces, and one stress in any cell, eV/Å^3."""

    xx: float = 0.3
    yz: float = 0.2

    def __call__(self, batch: Batch) -> Prediction:
        stress = torch.zeros_like(batch.cell)
        stress[:, 0, 0] = self.xx
        stress[:, 1, 2] = stress[:, 2, 1] = self.yz
        return replace(super().__call__(batch), stress=stress)


def started(batch: Batch, model, **settings) -> MDState:
    return md_init(batch, model, conditions=set_conditions(batch, **{"n_steps": 999} | settings))


def deformation(before: Batch, after: Batch) -> torch.Tensor:
    """F in cell' = cell F."""
    return torch.linalg.solve(before.cell, after.cell)


def test_an_unknown_coupling():
    state = started(packed([crystals()["cubic"]]), Free())
    with pytest.raises(ConfigError, match="isotropic, anisotropic, triclinic"):
        c_rescale_step(state, Free(), coupling="semi")


@EACH
def test_what_a_step_does_to_the_cell(coupling):
    batch, model = packed(crystals().values()), Stressed()
    state = started(batch, model, barostat_time=100.0, temperature=900.0)
    after = c_rescale_step(state, model, coupling=coupling)
    found = deformation(batch, after.batch)
    if coupling == "isotropic":
        expected = found[:, 0, 0, None, None] * torch.eye(3).double()
        assert float((found - expected).abs().max()) < ROUNDING
    if coupling == "anisotropic":
        lengths, before = after.batch.cell.norm(dim=2), batch.cell.norm(dim=2)
        directions = batch.cell / before[:, :, None] * lengths[:, :, None]
        assert float((after.batch.cell - directions).abs().max()) < ROUNDING
        ratio = lengths / before
        assert float((ratio[:, 0] - ratio[:, 1]).abs().min()) > 1e-4, "each by its own factor"
    if coupling == "triclinic":
        assert float((found - found.transpose(1, 2)).abs().max()) < ROUNDING, "no rotation"
        assert float(found[:, 1, 2].abs().min()) > 1e-4, "the angles follow the shear stress"
    assert float((found - torch.eye(3)).abs().max()) < 0.2


@EACH
def test_the_volume_does_not_know_the_coupling(coupling):
    """One force and the same weight of noise drive the volume in all three."""
    batch, model = packed(crystals().values()), Stressed(yz=0.0)
    state = started(batch, model, temperature=0.0, barostat_time=10.0, pressure_gpa=3.0)
    after = c_rescale_step(state, model, coupling=coupling)
    growth = volume(after.batch.cell) / volume(batch.cell)
    conditions = state.conditions
    rate = conditions.compressibility * conditions.timestep / (2 * conditions.barostat_time)
    expected = (1 + rate * (-0.1 - conditions.pressure_start)) ** 2
    torch.testing.assert_close(growth, expected, rtol=ROUNDING, atol=0)


@EACH
def test_atoms_follow_the_cell_and_momenta_oppose_it(coupling):
    """Without a thermostat, scaled positions see the drift only, and scaled momenta nothing."""
    batch, model = packed(crystals().values()), Stressed()
    state = started(batch, model, barostat_time=100.0, thermostat_time=1e30, timestep=1e-9)
    state = replace(state, conditions=replace(
        state.conditions, compressibility=1e9 * state.conditions.compressibility))  # fmt: skip
    after = c_rescale_step(state, model, coupling=coupling)
    assert float((deformation(batch, after.batch) - torch.eye(3)).abs().max()) > 1e-3

    def scaled(here: MDState, vectors: torch.Tensor, transposed: bool) -> torch.Tensor:
        matrix = here.batch.cell.transpose(1, 2) if transposed else here.batch.cell.inverse()
        return torch.einsum("ai,aij->aj", vectors, matrix[batch.system_idx])

    fractions = scaled(after, after.batch.positions, False) - scaled(state, batch.positions, False)
    assert float(fractions.abs().max()) < 1e-9
    momenta = scaled(after, after.velocities, True) - scaled(state, state.velocities, True)
    assert float(momenta.abs().max()) < ROUNDING


@EACH
def test_work_and_heat_are_all_the_energy_that_free_particles_get(coupling):
    state = started(packed(crystals().values()), Free(), temperature=900.0, pressure_gpa=5.0)
    before = conserved_energy(state)
    for _ in range(30):
        state = c_rescale_step(state, Free(), coupling=coupling)
    assert float(state.work.abs().min()) > 1e-6, "eV"
    assert float((conserved_energy(state) - before).abs().max()) < ROUNDING


@EACH
def test_the_conserved_energy_of_a_crystal_does_not_drift(coupling):
    """A strain of 1e-3 per step and its noise do ten times more work than is unaccounted for."""
    batch, model = packed([crystals()["left_handed"], crystals()["hexagonal"]]), LennardJones()
    state = started(batch, model, barostat_time=100.0, pressure_gpa=2.0, timestep=2.0, seed=5)
    before = conserved_energy(state)
    for _ in range(120):
        state = c_rescale_step(state, model, coupling=coupling)
    error = (conserved_energy(state) - before).abs()
    assert (error < 0.002 * batch.n_atoms).all(), "2 meV per atom"
    assert (error < 0.1 * state.work.abs()).all()


@EACH
def test_a_slow_barostat_leaves_constant_volume(coupling):
    """The thermostat in the middle of the drift is that of `bussi_step`."""
    batch, model = packed(crystals().values()), LennardJones()
    settings = {"barostat_time": 1e30, "timestep": 2.0, "seed": 3}
    ours = theirs = started(batch, model, **settings)
    for _ in range(3):
        ours, theirs = c_rescale_step(ours, model, coupling=coupling), bussi_step(theirs, model)
    assert float((ours.batch.cell - batch.cell).abs().max()) < 1e-10
    if coupling != "triclinic":  # which draws more numbers, in another order
        assert float((ours.batch.positions - theirs.batch.positions).abs().max()) < 1e-10
