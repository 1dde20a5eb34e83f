"""What must not change an energy: rotation, translation, names of atoms, choice of cell."""

import pytest
import torch
from models import (
    OPTION_SETS,
    crystal,
    largest,
    molecule,
    random_potential,
    rotated,
    rotation_matrix,
)

from dpa4sim.batch import Batch
from dpa4sim.edges import Edges
from dpa4sim.potential import Potential, Prediction

TOLERANCE = 1e-11
"""eV, eV/Å: some 1e3 float64 additions of numbers up to 40; 1e-13 is what we see."""

HANDED = 1e-7
"""eV: 1e5 times the rounding; a mirror image that differs by more is told apart."""

SETS = pytest.mark.parametrize("name", OPTION_SETS)
STRUCTURES = pytest.mark.parametrize("structure", [molecule, crystal])


def check(
    got: Prediction, expected: Prediction, matrix: torch.Tensor, order: torch.Tensor | slice
) -> None:
    """`got` belongs to the structure whose atoms were reordered and vectors multiplied by R."""
    assert got.descriptors is not None
    assert expected.descriptors is not None
    assert largest(got.energy - expected.energy) < TOLERANCE
    assert largest(got.atomic_energies - expected.atomic_energies[order]) < TOLERANCE
    assert largest(got.descriptors - expected.descriptors[order]) < TOLERANCE
    assert largest(got.forces - expected.forces[order] @ matrix.T) < TOLERANCE
    stress = matrix @ expected.stress @ matrix.T
    assert torch.equal(got.stress.isnan(), stress.isnan())
    assert largest((got.stress - stress).nan_to_num()) < TOLERANCE


def compare(
    name: str,
    batch: Batch,
    changed: Batch,
    matrix: torch.Tensor | None = None,
    order: torch.Tensor | slice = slice(None),
) -> None:
    potential = random_potential(OPTION_SETS[name])
    matrix = torch.eye(3, dtype=torch.float64) if matrix is None else matrix
    got, expected = potential(changed, descriptors=True), potential(batch, descriptors=True)
    check(got, expected, matrix, order)


@STRUCTURES
@SETS
def test_rotation(name, structure):
    matrix = rotation_matrix(3)
    compare(name, structure(), rotated(structure(), matrix), matrix)


@STRUCTURES
@pytest.mark.parametrize("axis", range(3))
def test_half_turns_and_swaps_of_axes(structure, axis):
    """These move edges from one chart of the frames to the other, and onto the poles."""
    turn = -torch.eye(3, dtype=torch.float64)
    turn[axis, axis] = 1
    compare("order_2", structure(), rotated(structure(), turn), turn)
    swap = torch.eye(3, dtype=torch.float64).roll(axis, 0)
    compare("order_2", structure(), rotated(structure(), swap), swap)


@STRUCTURES
@pytest.mark.parametrize("name", ["per_channel"])
def test_reflection_where_only_m_0_is_kept(name, structure):
    mirror = rotation_matrix(4) @ torch.diag(torch.tensor([1.0, 1.0, -1.0]).double())
    compare(name, structure(), rotated(structure(), mirror), mirror)


@pytest.mark.parametrize("name", [name for name in OPTION_SETS if name != "per_channel"])
def test_mirror_images_are_told_apart(name):
    """SE(3), as the paper says, not E(3): the blocks V of the +-m pairs know left from right."""
    potential = random_potential(OPTION_SETS[name])
    image = rotated(molecule(), -torch.eye(3, dtype=torch.float64))
    assert largest(potential(image).energy - potential(molecule()).energy) > HANDED


@STRUCTURES
@SETS
def test_translation(name, structure):
    batch = structure()
    shift = torch.tensor([11.3, -7.9, 3.1], dtype=torch.float64)
    compare(name, batch, batch.with_geometry(batch.positions + shift, batch.cell))


@STRUCTURES
@SETS
def test_permutation(name, structure):
    batch = structure()
    order = torch.randperm(len(batch.positions), generator=torch.Generator().manual_seed(1))
    changed = Batch.single(
        batch.positions[order], batch.atomic_numbers[order], batch.cell, batch.pbc[0]
    )
    compare(name, batch, changed, order=order)


@SETS
def test_unwrapped_coordinates(name):
    batch = crystal()
    turns = torch.tensor([[0, 0, 0], [1, -2, 3], [-4, 0, 1], [7, 7, -7]], dtype=torch.float64)
    compare(name, batch, batch.with_geometry(batch.positions + turns @ batch.cell[0], batch.cell))


@pytest.mark.parametrize(
    "integers",
    [
        [[1, 2, 0], [0, 1, 0], [0, 0, 1]],
        [[1, 0, 0], [3, 1, 0], [-2, 1, 1]],
        [[0, 1, 0], [1, 0, 0], [0, 0, 1]],
    ],
)
@SETS
def test_other_vectors_of_the_same_lattice(name, integers):
    batch = crystal()
    other = torch.tensor(integers, dtype=torch.float64) @ batch.cell
    compare(name, batch, batch.with_geometry(batch.positions, other))


@SETS
def test_forces_and_torques_add_up_to_nothing(name):
    batch = molecule()
    forces = random_potential(OPTION_SETS[name])(batch).forces
    assert largest(forces.sum(0)) < TOLERANCE
    assert largest(torch.linalg.cross(batch.positions, forces).sum(0)) < TOLERANCE


@pytest.mark.parametrize("name", ["neo", "order_2", "so3_grid"])
def test_nothing_happens_on_the_seam_of_the_frames(name):
    """The frame jumps where z changes sign, the energy and its gradient do not."""
    potential = random_potential(OPTION_SETS[name])
    energies, gradients = zip(*(_around_seam(potential, z) for z in (1e-14, -1e-14)), strict=True)
    assert largest(energies[0] - energies[1]) < TOLERANCE
    assert largest(gradients[0] - gradients[1]) < TOLERANCE


def _around_seam(potential: Potential, z: float) -> tuple[torch.Tensor, torch.Tensor]:
    """Energies and gradient of three atoms in a plane z = const, edges off the plane by z."""
    center = torch.tensor([0, 0, 1, 1, 2, 2])
    neighbor = torch.tensor([1, 2, 0, 2, 0, 1])
    points = torch.tensor([[0, 0, 0], [1.5, 0.3, 0], [-0.4, 1.9, 0]], dtype=torch.float64)
    vector = points[neighbor] - points[center] + torch.tensor([0, 0, z], dtype=torch.float64)
    vector.requires_grad_(True)
    edges = Edges(center, neighbor, vector, torch.tensor([0, 2, 4, 6]))
    energy, _ = potential.model(torch.tensor([0, 1, 2]), edges)
    (gradient,) = torch.autograd.grad(energy.sum(), vector)
    return energy.detach(), gradient
