"""Positions in periodic cells: fractions, wrapping, and cells with rows that carry no meaning."""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from dpa4sim.batch import cross, dot


def complete(
    cell: Float[Tensor, "system 3 3"], pbc: Bool[Tensor, "system 3"]
) -> Float[Tensor, "system 3 3"]:
    """The cell with every open row replaced by a unit vector at right angles to the periodic rows.

    Open rows carry no meaning: they may be zero, or parallel to a periodic one.
    """
    periodic = torch.where(pbc[:, :, None], cell, 0.0)
    rows = periodic.unbind(1)
    n_open = (~pbc).sum(1)[:, None]
    axis = rows[0] + rows[1] + rows[2]
    flattest = (axis.abs().argmin(1)[:, None] == torch.arange(3, device=cell.device)).to(cell.dtype)
    first = _unit(cross(axis, flattest))
    second = _unit(cross(axis, first))
    identity = torch.eye(3, dtype=cell.dtype, device=cell.device)
    completed = []
    for k in range(3):
        before, after = (k + 2) % 3, (k + 1) % 3
        wire = torch.where(pbc[:, before, None], first, second)
        slab = _unit(cross(rows[after], rows[before]))
        row = torch.where(n_open == 1, slab, torch.where(n_open == 2, wire, identity[k]))
        completed.append(torch.where(pbc[:, k, None], rows[k], row))
    return torch.stack(completed, 1)


def wrap(
    positions: Float[Tensor, "atom 3"],
    cell: Float[Tensor, "system 3 3"],
    pbc: Bool[Tensor, "system 3"],
    system_idx: Int[Tensor, " atom"],
) -> tuple[Float[Tensor, "atom 3"], Float[Tensor, "atom 3"]]:
    """Positions moved by whole periodic vectors into the cell, and by how many.

    No edge vector changes.
    """
    turns = torch.floor(fractions(positions, cell, system_idx))
    turns = torch.where(pbc[system_idx], turns, 0.0)
    return positions - combine(turns, cell, system_idx), turns


def enclose(
    positions: Float[Tensor, "atom 3"],
    cell: Float[Tensor, "system 3 3"],
    pbc: Bool[Tensor, "system 3"],
    system_idx: Int[Tensor, " atom"],
) -> tuple[Float[Tensor, "atom 3"], Float[Tensor, "system 3 3"]]:
    """Stretch the open rows of a completed cell around the atoms, and move the atoms inside."""
    along = fractions(positions, cell, system_idx)
    index = system_idx[:, None].expand(-1, 3)
    bounds = cell.new_zeros(len(cell), 3)
    low = bounds.scatter_reduce(0, index, along, "amin", include_self=False)
    high = bounds.scatter_reduce(0, index, along, "amax", include_self=False)
    low = torch.where(pbc, 0.0, low)
    stretch = torch.where(pbc, 1.0, high - low + 1.0)
    return positions - combine(low[system_idx], cell, system_idx), cell * stretch[:, :, None]


def fractions(
    positions: Float[Tensor, "atom 3"],
    cell: Float[Tensor, "system 3 3"],
    system_idx: Int[Tensor, " atom"],
) -> Float[Tensor, "atom 3"]:
    """Coordinates along the rows of the cell."""
    normals = _normals(cell)
    normals = normals / dot(cell[:, 0], normals[:, 0])[:, None, None]
    return dot(positions[:, None].expand(-1, 3, -1), normals[system_idx])


def combine(
    weights: Float[Tensor, "row 3"],
    cell: Float[Tensor, "system 3 3"],
    system_idx: Int[Tensor, " row"],
) -> Float[Tensor, "row 3"]:
    """Weights @ cell, term by term: the same bits whatever the number of rows."""
    a, b, c = (weights[:, k, None] * cell[:, k].index_select(0, system_idx) for k in range(3))
    return a + b + c


def heights(cell: Float[Tensor, "system 3 3"]) -> Float[Tensor, "system 3"]:
    """Distance in Å between the lattice planes that each pair of rows spans."""
    normals = _normals(cell)
    volume = dot(cell[:, 0], normals[:, 0]).abs()
    return volume[:, None] / dot(normals, normals).sqrt()


def _normals(cell: Float[Tensor, "system 3 3"]) -> Float[Tensor, "system 3 3"]:
    """B x c, c x a, a x b."""
    a, b, c = cell.unbind(1)
    return torch.stack([cross(b, c), cross(c, a), cross(a, b)], 1)


def _unit(vector: Float[Tensor, "system 3"]) -> Float[Tensor, "system 3"]:
    return vector / dot(vector, vector).sqrt()[:, None]
