"""What is read off a batch after each evaluation, on the device: is it converged, is it sick."""

from __future__ import annotations

import math

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from dpa4sim.batch import Batch, dot, max_over_atoms, sum_over_atoms
from dpa4sim.edges import MAX_CROWD, estimated_edges
from dpa4sim.errors import Status
from dpa4sim.lattice import normals, volume
from dpa4sim.potential import Prediction
from dpa4sim.relax.cell import Geometry

FORCE_LIMIT = 1e3
"""eV/Å; no relaxation of a structure that means something passes it."""

VOLUME_LIMITS = (0.2, 5.0)
"""Smallest and largest volume, in units of the start's."""


def residual(
    batch: Batch, force: Float[Tensor, "atom 3"], cell_force: Float[Tensor, "system 3 3"]
) -> Float[Tensor, " system"]:
    """Largest norm over the atoms' forces and the rows of the cell force, eV/Å.

    A system is converged when this is below fmax.  NaN is below nothing.
    """
    atoms = max_over_atoms(dot(force, force), batch)
    rows = dot(cell_force, cell_force).amax(1)
    return torch.maximum(atoms, rows).sqrt()


def inspect_geometry(
    geometry: Geometry, cutoff: float, max_edges: float = math.inf
) -> Int[Tensor, " system"]:
    """Status of each system before its energy is asked for; RUNNING when nothing is wrong.

    A step never gives the model a geometry found sick here: a collapsed cell may have more edges
    than the device has memory, and one that passes `edges.MAX_CROWD` gets none at all, hence no
    forces, which must not pass for convergence.

    Args:
        cutoff: of the model, Å.
        max_edges: how many edges of one system the device has room for; a system that is
            estimated to have more is out of memory.
    """
    batch = geometry.batch
    finite = _finite(batch.positions, batch)
    if geometry.cell_filter is None:
        verdict = torch.where(finite, Status.RUNNING, Status.NOT_FINITE)
        return _crowded(verdict, batch, cutoff, max_edges)
    finite = finite & torch.isfinite(_total(batch.cell))
    across = normals(batch.cell)
    size = dot(batch.cell[:, 0], across[:, 0]).abs()
    growth = size / volume(geometry.start_cell)
    collapsed = (growth < VOLUME_LIMITS[0]) | (_crowd(batch, across, size, cutoff) > MAX_CROWD)
    verdict = torch.where(collapsed, Status.COLLAPSED, Status.RUNNING)
    verdict = torch.where(growth > VOLUME_LIMITS[1], Status.EXPLODED, verdict)
    verdict = torch.where(geometry.moves_cell, verdict, Status.RUNNING)
    verdict = torch.where(finite, verdict, Status.NOT_FINITE)
    return _crowded(verdict, batch, cutoff, max_edges)


def inspect_prediction(geometry: Geometry, prediction: Prediction) -> Int[Tensor, " system"]:
    """Status of each system after its evaluation; RUNNING when nothing is wrong.

    The stress of a system whose cell has no volume is NaN by contract, and no sickness.
    """
    batch, forces = geometry.batch, prediction.forces
    finite = torch.isfinite(prediction.energy) & _finite(forces, batch)
    if prediction.magnetic_forces is not None:
        finite = finite & _finite(prediction.magnetic_forces, batch)
    has_stress = geometry.moves_cell | (volume(batch.cell) > 0)
    if prediction.has_stress:
        finite = finite & (torch.isfinite(_total(prediction.stress)) | ~has_stress)
    too_large = max_over_atoms(dot(forces, forces), batch) > FORCE_LIMIT**2
    verdict = torch.where(too_large, Status.EXPLODED, trusted(prediction))
    return torch.where(finite, verdict, Status.NOT_FINITE)


def trusted(prediction: Prediction) -> Int[Tensor, " system"] | Status:
    """Status by the word of an ensemble: UNCERTAIN, or RUNNING when nothing is wrong."""
    if prediction.uncertain is None:
        return Status.RUNNING
    return torch.where(prediction.uncertain, Status.UNCERTAIN, Status.RUNNING)


def _crowded(
    verdict: Int[Tensor, " system"], batch: Batch, cutoff: float, max_edges: float
) -> Int[Tensor, " system"]:
    """Out of memory is what passes for healthy otherwise, and has too many edges."""
    if not isinstance(max_edges, Tensor) and math.isinf(max_edges):
        return verdict
    too_many = estimated_edges(batch, cutoff) > max_edges
    return torch.where(too_many & (verdict == Status.RUNNING), Status.OUT_OF_MEMORY, verdict)


def _crowd(
    batch: Batch, across: Float[Tensor, "system 3 3"], size: Float[Tensor, " system"], cutoff: float
) -> Float[Tensor, " system"]:
    """Atoms and images in a box of two cutoffs, for cells periodic in three dimensions.

    Two cutoffs are 2 cutoff |b x c| / V lattice planes along a, and so on.

    Args:
        across: b x c, c x a, a x b.
        size: V.
    """
    squares = dot(across, across)
    areas = (squares[:, 0] * squares[:, 1] * squares[:, 2]).sqrt()
    reach = 2 * cutoff / size
    return batch.n_atoms * areas * reach * reach * reach


def _finite(vectors: Float[Tensor, "atom 3"], batch: Batch) -> Bool[Tensor, " system"]:
    """Whether every component is a number: whether the sum is."""
    return torch.isfinite(sum_over_atoms(vectors[:, 0] + vectors[:, 1] + vectors[:, 2], batch))


def _total(matrix: Float[Tensor, "system 3 3"]) -> Float[Tensor, " system"]:
    rows = matrix[:, 0] + matrix[:, 1] + matrix[:, 2]
    return rows[:, 0] + rows[:, 1] + rows[:, 2]
