"""Atoms and lattice as one set of free coordinates.

A deformation gradient F carries the start cell and the undeformed positions to the present ones:

    cell = cell_0 F^T          positions = undeformed F^T

and its nine numbers are coordinates of their own, scaled by the number of atoms n so that they
move like an atom does:

    "unit":    coordinate = n F
    "frechet": coordinate = n log F      (only its exponential is ever needed)

All 3x3 algebra is elementwise: BLAS may choose another order of additions for another batch.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from math import factorial

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from dpa4sim.batch import Batch, dot
from dpa4sim.potential import Prediction

CELL_FILTERS = ("frechet", "unit")

SQUARINGS = 4
"""The exponent is halved this often; with the degree-11 series the error stays below 1e-14 up to
a 1-norm of 3.5, which is a stretch by 33: far outside the volumes that a relaxation may reach."""

_SERIES = [1.0 / factorial(k) for k in range(12)]


@dataclass(frozen=True)
class Geometry:
    """Where the atoms and the lattice are, and the coordinates that an optimiser moves.

    Args:
        batch: the systems with their present positions and cells.
        undeformed: positions in the frame of the start cell, Å.
        start_cell: cell_0 in Å.
        coordinate: n F or n log F.
        deformation: F, the identity while the cell stands still.
        moves_cell: whether this system's cell is free.
        cell_filter: which coordinate; None when no cell of the batch moves.
    """

    batch: Batch
    undeformed: Float[Tensor, "atom 3"]
    start_cell: Float[Tensor, "system 3 3"]
    coordinate: Float[Tensor, "system 3 3"]
    deformation: Float[Tensor, "system 3 3"]
    moves_cell: Bool[Tensor, " system"]
    cell_filter: str | None


def place(batch: Batch, moves_cell: Bool[Tensor, " system"], cell_filter: str | None) -> Geometry:
    """A batch at rest: F = 1, positions and cells in float64."""
    batch = batch.with_geometry(batch.positions.double(), batch.cell.double())
    identity = torch.eye(3, dtype=torch.float64, device=batch.device).expand_as(batch.cell).clone()
    size = batch.n_atoms.double()[:, None, None]
    return Geometry(
        batch=batch,
        undeformed=batch.positions,
        start_cell=batch.cell,
        coordinate=size * identity if cell_filter == "unit" else torch.zeros_like(identity),
        deformation=identity,
        moves_cell=moves_cell,
        cell_filter=cell_filter,
    )


def move(
    geometry: Geometry, step: Float[Tensor, "atom 3"], cell_step: Float[Tensor, "system 3 3"]
) -> Geometry:
    """Add a step to the coordinates, then find the positions and cells that they describe.

    Args:
        step: of the undeformed positions, Å.
        cell_step: of the cell coordinate; zero where the cell stands still.
    """
    undeformed = geometry.undeformed + step
    if geometry.cell_filter is None:
        batch = geometry.batch.with_geometry(undeformed, geometry.batch.cell)
        return replace(geometry, batch=batch, undeformed=undeformed)
    coordinate = geometry.coordinate + cell_step
    reduced = coordinate / geometry.batch.n_atoms.double()[:, None, None]
    deformation = reduced if geometry.cell_filter == "unit" else expm(reduced)
    transposed = deformation.transpose(1, 2)
    positions = matmul(undeformed[:, None], transposed[geometry.batch.system_idx])[:, 0]
    return replace(
        geometry,
        batch=geometry.batch.with_geometry(positions, matmul(geometry.start_cell, transposed)),
        undeformed=undeformed,
        coordinate=coordinate,
        deformation=deformation,
    )


def generalized_forces(
    geometry: Geometry, prediction: Prediction
) -> tuple[Float[Tensor, "atom 3"], Float[Tensor, "system 3 3"]]:
    """Minus the derivative of the energy by the undeformed positions and the cell coordinate.

        force = F_atom F
        G = dE/dF = -V stress F^-T      cell_force = G / n             (unit)
                                        cell_force = L(U^T, G) / n     (frechet, U = log F)

    Zero cell force where the cell stands still.  L is the derivative of the exponential; its
    adjoint at U is its value at U^T.
    """
    if geometry.cell_filter is None:
        return prediction.forces, torch.zeros_like(geometry.coordinate)
    deformation, size = geometry.deformation, geometry.batch.n_atoms.double()[:, None, None]
    force = matmul(prediction.forces[:, None], deformation[geometry.batch.system_idx])[:, 0]
    work = -volume(geometry.batch.cell)[:, None, None] * prediction.stress
    gradient = matmul(work, inverse(deformation).transpose(1, 2))
    if geometry.cell_filter == "frechet":
        gradient = expm_derivative((geometry.coordinate / size).transpose(1, 2), gradient)
    return force, torch.where(geometry.moves_cell[:, None, None], gradient / size, 0.0)


def matmul(
    left: Float[Tensor, "*b i k"], right: Float[Tensor, "*b k j"]
) -> Float[Tensor, "*b i j"]:
    """Matrix product with the additions in one order, whatever the batch."""
    total = left[..., :, 0, None] * right[..., 0, None, :]
    for k in range(1, right.shape[-2]):
        total = total + left[..., :, k, None] * right[..., k, None, :]
    return total


def normals(cell: Float[Tensor, "system 3 3"]) -> Float[Tensor, "system 3 3"]:
    """The rows b x c, c x a, a x b."""
    return torch.linalg.cross(cell.roll(-1, 1), cell.roll(-2, 1))


def volume(cell: Float[Tensor, "system 3 3"]) -> Float[Tensor, " system"]:
    """|det cell| in closed form: no factorisation that reports back to the host."""
    return dot(cell[:, 0], torch.linalg.cross(cell[:, 1], cell[:, 2])).abs()


def inverse(matrix: Float[Tensor, "system 3 3"]) -> Float[Tensor, "system 3 3"]:
    """Inverse by cross products; infinite or NaN, never raised, when there is none."""
    across = normals(matrix)
    return across.transpose(1, 2) / dot(matrix[:, 0], across[:, 0])[:, None, None]


def expm(matrix: Float[Tensor, "system n n"]) -> Float[Tensor, "system n n"]:
    """exp(A) = (sum_k (A/2^s)^k / k!)^(2^s), the same work for every matrix.

    The series is summed in four blocks of three powers.
    """
    small = matrix / 2.0**SQUARINGS
    square = matmul(small, small)
    cube = matmul(square, small)
    one = torch.eye(matrix.shape[-1], dtype=matrix.dtype, device=matrix.device)

    def block(k: int) -> Tensor:
        return _SERIES[k] * one + _SERIES[k + 1] * small + _SERIES[k + 2] * square

    total = block(9)
    for k in (6, 3, 0):
        total = block(k) + matmul(cube, total)
    for _ in range(SQUARINGS):
        total = matmul(total, total)
    return total


def expm_derivative(
    matrix: Float[Tensor, "system 3 3"], direction: Float[Tensor, "system 3 3"]
) -> Float[Tensor, "system 3 3"]:
    """L(A, E) = d/dt exp(A + t E) at t = 0, the corner of an exponential of twice the size.

    exp [[A, E], [0, A]] = [[exp A, L(A, E)], [0, exp A]]
    """
    upper = torch.cat([matrix, direction], dim=2)
    lower = torch.cat([torch.zeros_like(matrix), matrix], dim=2)
    return expm(torch.cat([upper, lower], dim=1))[:, :3, 3:]
