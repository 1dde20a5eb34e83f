"""Atoms and lattice as one set of free coordinates.

A deformation gradient F carries the start cell and the undeformed positions to the present ones:

    cell = cell_0 F^T          positions = undeformed F^T

and its nine numbers are coordinates of their own, scaled by the number of atoms n so that they
move like an atom does:

    "unit":    coordinate = n F
    "frechet": coordinate = n log F      (only its exponential is ever needed)

A constrained cell relaxes until the allowed part of its stress is gone, and F - 1 or log F keeps
to the allowed strains meanwhile: so "frechet" keeps a constant volume exactly, "unit" to first
order in the strain, as in ASE.  The steps are those of ASE for every mask with the pattern of a
block-diagonal matrix.  For another one, such as all but zz, the filters of ASE differ among
themselves: one lets F change, the other puts it back onto the mask after each exponential.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from dpa4sim.batch import Batch
from dpa4sim.lattice import expm, expm_derivative, inverse, matmul, side_by_side, volume
from dpa4sim.potential import Prediction
from dpa4sim.relax.freedom import (
    Freedom,
    cell_work,
    from_strain,
    project_forces,
    project_strain,
    to_strain,
)

CELL_FILTERS = ("frechet", "unit")


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
    batch = batch.with_geometry(batch.positions.double(), side_by_side(batch.cell.double()))
    identity = torch.eye(3, dtype=torch.float64, device=batch.device)
    identity = side_by_side(identity.expand_as(batch.cell))
    size = batch.n_atoms.double()[:, None, None]
    return Geometry(
        batch=batch,
        undeformed=side_by_side(batch.positions),
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
    undeformed = side_by_side(geometry.undeformed) + step
    if geometry.cell_filter is None:
        batch = geometry.batch.with_geometry(undeformed, geometry.batch.cell)
        return replace(geometry, batch=batch, undeformed=undeformed)
    coordinate = side_by_side(geometry.coordinate) + cell_step
    reduced = coordinate / geometry.batch.n_atoms.double()[:, None, None]
    deformation = reduced if geometry.cell_filter == "unit" else expm(reduced)
    transposed = deformation.transpose(1, 2)
    positions = _times(undeformed, transposed, geometry.batch)
    return replace(
        geometry,
        batch=geometry.batch.with_geometry(positions, matmul(geometry.start_cell, transposed)),
        undeformed=undeformed,
        coordinate=coordinate,
        deformation=deformation,
    )


def generalized_forces(
    geometry: Geometry, prediction: Prediction, freedom: Freedom
) -> tuple[Float[Tensor, "atom 3"], Float[Tensor, "system 3 3"]]:
    """Minus the derivative of E + p V by the undeformed positions and the cell coordinate.

        force = F_atom F
        G = -dE/dF = W F^-T        cell_force = G / n             (unit)
                                   cell_force = L(U^T, G) / n     (frechet, U = log F)

    and of these the part that is free to move; zero where the cell stands still.  W is the
    allowed part of -V (stress + p).  L is the derivative of the exponential; its adjoint at U is
    its value at U^T.
    """
    forces = side_by_side(prediction.forces)
    if geometry.cell_filter is None:
        forces = project_forces(freedom, geometry.batch, forces)
        return forces, torch.zeros_like(geometry.coordinate)
    force = _times(forces, geometry.deformation, geometry.batch)
    size = geometry.batch.n_atoms.double()[:, None, None]
    gradient = _cell_gradient(geometry, side_by_side(prediction.stress), freedom)
    allowed = to_strain(torch.diagonal(freedom.strain, dim1=1, dim2=2)) > 0
    return (
        project_forces(freedom, geometry.batch, force),
        torch.where(allowed & geometry.moves_cell[:, None, None], gradient / size, 0.0),
    )


def _cell_gradient(
    geometry: Geometry, stress: Float[Tensor, "system 3 3"], freedom: Freedom
) -> Float[Tensor, "system 3 3"]:
    """G or L(U^T, G) along the allowed strains, and along the turns that go with them."""
    batch, size = geometry.batch, geometry.batch.n_atoms.double()[:, None, None]
    work, back = cell_work(freedom, batch, stress), inverse(geometry.deformation).transpose(1, 2)
    if geometry.cell_filter == "frechet":
        return expm_derivative((geometry.coordinate / size).transpose(1, 2), matmul(work, back))
    # At constant volume it is F that keeps its trace here, so W must not have lost its own before.
    tension = (stress[:, 0, 0] + stress[:, 1, 1] + stress[:, 2, 2]) / 3.0 + freedom.pressure
    growth = torch.where(freedom.keeps_volume, -volume(batch.cell) * tension, 0.0)
    gradient = matmul(work, back) + growth[:, None, None] * back
    strain = to_strain(project_strain(freedom, from_strain(gradient)))
    return strain + 0.5 * (gradient - gradient.transpose(1, 2))


def _times(
    vectors: Float[Tensor, "atom 3"], matrix: Float[Tensor, "system 3 3"], batch: Batch
) -> Float[Tensor, "atom 3"]:
    """Every row vector times the matrix of its system, component after component."""
    columns = []
    for j in range(3):
        total = vectors[:, 0] * matrix[:, 0, j].index_select(0, batch.system_idx)
        for i in (1, 2):
            total = total + vectors[:, i] * matrix[:, i, j].index_select(0, batch.system_idx)
        columns.append(total)
    return torch.stack(columns, 0).T
