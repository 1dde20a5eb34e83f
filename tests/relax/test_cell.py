import numpy as np
import pytest
import scipy.linalg
import torch
from toy import LennardJones, crystals, packed

from dpa4sim.lattice import expm, expm_derivative, inverse, volume
from dpa4sim.relax.cell import generalized_forces, move, place
from dpa4sim.relax.freedom import unconstrained

EXPM_TOLERANCE = 2e-13
"""Relative to the largest entry: three squarings make eight times the rounding of the series."""

SLOPE_TOLERANCE = 2e-7
"""Relative error of a central difference over 1e-5 Å; measured 1e-8, falling with its square."""


def matrices(scale: float, count: int = 50) -> torch.Tensor:
    """Random and defective exponents whose 1-norm is `scale`."""
    random = torch.tensor(np.random.default_rng(1).normal(size=(count, 3, 3)))
    random[0] = torch.tensor([[0.0, 1, 0], [0, 0, 1], [0, 0, 0]])  # nilpotent
    random[1] = torch.tensor([[0.0, -1, 0], [1, 0, 0], [0, 0, 0]])  # a rotation
    return scale * random / random.abs().sum(1).amax(1)[:, None, None]


def assert_close(ours: torch.Tensor, theirs: np.ndarray) -> None:
    worst = np.abs(ours.numpy() - theirs).max((1, 2)) / np.abs(theirs).max((1, 2))
    assert worst.max() < EXPM_TOLERANCE


@pytest.mark.parametrize("scale", [1e-8, 1e-3, 0.1, 1.0, 2.4])
def test_exponential_equals_scipy(scale):
    exponents = matrices(scale)
    assert_close(expm(exponents), scipy.linalg.expm(exponents.numpy()))


@pytest.mark.parametrize("scale", [1e-8, 1e-3, 0.1, 1.0, 1.7])
def test_derivative_of_exponential_equals_scipy(scale):
    exponents, directions = matrices(scale), matrices(scale).flip(0)
    expected = [
        scipy.linalg.expm_frechet(a.numpy(), e.numpy(), compute_expm=False)
        for a, e in zip(exponents, directions, strict=True)
    ]
    assert_close(expm_derivative(exponents, directions), np.stack(expected))


def test_exponential_of_zero_is_exactly_one():
    assert torch.equal(expm(torch.zeros(2, 3, 3).double()), torch.eye(3).double().expand(2, 3, 3))


def test_algebra_of_one_matrix_does_not_see_the_others():
    exponents = matrices(0.3, count=37)
    for function in (expm, inverse, volume, lambda a: expm_derivative(a, a.flip(1))):
        together = function(exponents)
        alone = torch.cat([function(exponents[s : s + 1]) for s in range(37)])
        torch.testing.assert_close(together, alone, rtol=0, atol=0, equal_nan=True)


def test_inverse_and_volume_equal_numpy():
    cells = torch.tensor(np.random.default_rng(2).normal(size=(20, 3, 3)))
    np.testing.assert_allclose(inverse(cells), np.linalg.inv(cells.numpy()), rtol=1e-10)
    np.testing.assert_allclose(volume(cells), np.abs(np.linalg.det(cells.numpy())), rtol=1e-10)


@pytest.mark.parametrize("cell_filter", ["frechet", "unit"])
def test_move_deforms_cell_and_atoms_alike(cell_filter):
    batch = packed(crystals().values())
    start = place(batch, torch.ones(5, dtype=torch.bool), cell_filter)
    step = 0.05 * matrices(1.0, count=5) * batch.n_atoms[:, None, None]
    moved = move(start, torch.zeros_like(batch.positions), step)
    reduced = (step / batch.n_atoms[:, None, None]).numpy()
    for s, system in enumerate(moved.batch.split()):
        F = scipy.linalg.expm(reduced[s]) if cell_filter == "frechet" else np.eye(3) + reduced[s]
        before = batch.split()[s]
        np.testing.assert_allclose(system.cell[0], before.cell[0].numpy() @ F.T, atol=1e-12)
        np.testing.assert_allclose(system.positions, before.positions.numpy() @ F.T, atol=1e-12)


@pytest.mark.parametrize("cell_filter", ["frechet", "unit"])
def test_forces_are_minus_the_slope_of_the_energy(cell_filter):
    """Along random directions of atoms and cell at once, away from the start."""
    model, batch = LennardJones(), packed(crystals().values())
    noise = torch.Generator().manual_seed(3)
    size = batch.n_atoms[:, None, None]

    def direction(scale: float) -> tuple[torch.Tensor, torch.Tensor]:
        atoms = torch.randn(batch.positions.shape, generator=noise, dtype=torch.float64)
        cells = torch.randn(batch.cell.shape, generator=noise, dtype=torch.float64)
        return scale * atoms, scale * size * cells

    here = move(place(batch, torch.ones(5, dtype=torch.bool), cell_filter), *direction(0.03))
    force, cell_force = generalized_forces(here, model(here.batch), unconstrained(batch))
    assert cell_force.abs().amin() > 1e-6
    atoms, cells = direction(1e-5)
    ahead = model(move(here, atoms, cells).batch).energy
    behind = model(move(here, -atoms, -cells).batch).energy
    expected = (cell_force * cells).sum((1, 2))
    expected = expected.index_add(0, batch.system_idx, (force * atoms).sum(1))
    torch.testing.assert_close((behind - ahead) / 2, expected, rtol=SLOPE_TOLERANCE, atol=0)


def test_a_cell_that_stands_still_has_no_force():
    batch = packed(crystals().values())
    freedom = unconstrained(batch, torch.tensor([True, False, True, False, True]))
    geometry = place(batch, freedom.moves_cell, "frechet")
    _, cell_force = generalized_forces(geometry, LennardJones()(batch), freedom)
    assert torch.equal(cell_force.abs().amax((1, 2)) > 0, freedom.moves_cell)
