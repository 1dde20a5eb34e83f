"""What is read off a batch after each evaluation, on the device: is it converged, is it sick."""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from torch import Tensor

from dpa4sim.batch import Batch, dot
from dpa4sim.edges import MAX_CROWD
from dpa4sim.errors import Status
from dpa4sim.potential import Prediction
from dpa4sim.relax.cell import Geometry, normals, volume

FORCE_LIMIT = 1e3
"""eV/Å; no relaxation of a structure that means something passes it."""

VOLUME_LIMITS = (0.2, 5.0)
"""Smallest and largest volume, in units of the start's."""


def sum_over_atoms(values: Float[Tensor, " atom"], batch: Batch) -> Float[Tensor, " system"]:
    """Sum per system, in atom order: the same bits in any batch, on CUDA too."""
    return torch.segment_reduce(values, "sum", offsets=_offsets(batch), unsafe=True, initial=0)


def max_over_atoms(values: Float[Tensor, " atom"], batch: Batch) -> Float[Tensor, " system"]:
    """Largest per system; NaN when one atom's is NaN."""
    return torch.segment_reduce(values, "max", offsets=_offsets(batch), unsafe=True)


def residual(
    batch: Batch, force: Float[Tensor, "atom 3"], cell_force: Float[Tensor, "system 3 3"]
) -> Float[Tensor, " system"]:
    """Largest norm over the atoms' forces and the rows of the cell force, eV/Å.

    A system is converged when this is below fmax.  NaN is below nothing.
    """
    atoms = max_over_atoms(dot(force, force), batch)
    rows = dot(cell_force, cell_force).amax(1)
    return torch.maximum(atoms, rows).sqrt()


def inspect_geometry(geometry: Geometry, cutoff: float) -> Int[Tensor, " system"]:
    """Status of each system before its energy is asked for; RUNNING when nothing is wrong.

    A step never gives the model a geometry found sick here: a collapsed cell may have more edges
    than the device has memory, and one that passes `edges.MAX_CROWD` gets none at all, hence no
    forces, which must not pass for convergence.

    Args:
        cutoff: of the model, Å.
    """
    batch = geometry.batch
    finite = _finite(batch.positions, batch)
    if geometry.cell_filter is None:
        return torch.where(finite, Status.RUNNING, Status.NOT_FINITE)
    finite = finite & torch.isfinite(batch.cell).flatten(1).all(1)
    growth = volume(batch.cell) / volume(geometry.start_cell)
    collapsed = (growth < VOLUME_LIMITS[0]) | (_crowd(batch, cutoff) > MAX_CROWD)
    verdict = torch.where(collapsed, Status.COLLAPSED, Status.RUNNING)
    verdict = torch.where(growth > VOLUME_LIMITS[1], Status.EXPLODED, verdict)
    verdict = torch.where(geometry.moves_cell, verdict, Status.RUNNING)
    return torch.where(finite, verdict, Status.NOT_FINITE)


def inspect_prediction(geometry: Geometry, prediction: Prediction) -> Int[Tensor, " system"]:
    """Status of each system after its evaluation; RUNNING when nothing is wrong.

    The stress of a system whose cell has no volume is NaN by contract, and no sickness.
    """
    batch, forces = geometry.batch, prediction.forces
    finite = torch.isfinite(prediction.energy) & _finite(forces, batch)
    has_stress = geometry.moves_cell | (volume(batch.cell) > 0)
    finite = finite & (torch.isfinite(prediction.stress).flatten(1).all(1) | ~has_stress)
    too_large = max_over_atoms(dot(forces, forces), batch) > FORCE_LIMIT**2
    verdict = torch.where(too_large, Status.EXPLODED, Status.RUNNING)
    return torch.where(finite, verdict, Status.NOT_FINITE)


def _crowd(batch: Batch, cutoff: float) -> Float[Tensor, " system"]:
    """Atoms and images in a box of two cutoffs, for cells periodic in three dimensions.

    Two cutoffs are 2 cutoff |b x c| / V lattice planes along a, and so on.
    """
    area = normals(batch.cell)
    area = dot(area, area).sqrt()
    planes = area * (2 * cutoff / volume(batch.cell))[:, None]
    return batch.n_atoms * planes[:, 0] * planes[:, 1] * planes[:, 2]


def _finite(vectors: Float[Tensor, "atom 3"], batch: Batch) -> Tensor:
    return torch.isfinite(max_over_atoms(vectors.abs().amax(1), batch))


def _offsets(batch: Batch) -> Int[Tensor, " system_plus_one"]:
    return torch.nn.functional.pad(batch.n_atoms.cumsum(0), (1, 0))
