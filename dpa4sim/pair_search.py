"""The search for pairs of near atoms: back-ends that propose, one order for what they find.

On the CPU vesin searches, on CUDA nvalchemi-toolkit-ops does.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from dpa4sim.batch import Batch
from dpa4sim.wrapping import enclose, heights

VESIN_BINS = 5e4
"""Bins of one cutoff's width in the largest box that vesin is given; it allows about 1e5."""

MANY_CELLS = 3.0
"""Cells that fit into the radius, along one periodic direction, from which the tree is faster than
vesin: 14 times for four atoms of copper within the 32 Å of dispersion."""

NAIVE_UP_TO = 1024
"""Atoms of the largest system up to which all pairs beat a cell list on CUDA."""

FIRST_CAPACITY = 192
"""Neighbours per atom that a CUDA search makes room for at first (diamond has 159 within 6 Å)."""


@dataclass(frozen=True)
class Pairs:
    """What a back-end proposes: pairs of atoms, and the cell in which it met the neighbor."""

    center: Int[Tensor, " pair"]
    neighbor: Int[Tensor, " pair"]
    image: Int[Tensor, "3 pair"]


def search(
    positions: Float[Tensor, "atom 3"],
    cell: Float[Tensor, "system 3 3"],
    batch: Batch,
    radius: float,
) -> Pairs:
    """Every directed pair within a radius, and maybe more, in any order.

    Args:
        positions: wrapped.
        cell: completed.
        radius: Å.
    """
    back_end = _search_warp if batch.device.type == "cuda" else _search_vesin
    return back_end(positions, cell, batch, radius)


def order(pairs: Pairs, n_atoms: int) -> Int[Tensor, " pair"]:
    """The permutation that sorts by center, neighbor, image; one sort when the key fits 63 bits."""
    if len(pairs.center) == 0:
        return pairs.center
    widest = pairs.image.abs().amax(1).tolist()
    spans = [2 * width + 1 for width in widest]
    image = (pairs.image[0] * spans[1] + pairs.image[1]) * spans[2] + pairs.image[2]
    pair = pairs.center * n_atoms + pairs.neighbor
    n_images = spans[0] * spans[1] * spans[2]
    if n_atoms * n_atoms * n_images < 2**62:
        return torch.argsort(pair * n_images + image)
    order = torch.argsort(image)
    return order[torch.argsort(pair[order], stable=True)]


def _search_vesin(
    positions: Float[Tensor, "atom 3"],
    cell: Float[Tensor, "system 3 3"],
    batch: Batch,
    radius: float,
) -> Pairs:
    """Pairs on the CPU, one system after another (70 us for 8 atoms, 4 us per atom in bulk)."""
    from vesin import NeighborList

    finder = NeighborList(cutoff=radius, full_list=True, n_threads=1)
    enclosed, enclosing = enclose(positions, cell, batch.pbc, batch.system_idx)
    widths = heights(enclosing) / radius
    n_bins = widths.floor().clamp(min=1.0).prod(1).tolist()
    n_cells = torch.where(batch.pbc, 1 / widths, 0.0).amax(1).tolist()
    points, boxes, flags = enclosed.numpy(), enclosing.numpy(), batch.pbc.numpy()
    pairs, images = [np.zeros((0, 2), np.int64)], [np.zeros((0, 3), np.int64)]
    start = 0
    for system, count in enumerate(batch.n_atoms.tolist()):
        stop = start + count
        if n_bins[system] > VESIN_BINS or n_cells[system] > MANY_CELLS:
            found = _search_tree(points[start:stop], boxes[system], flags[system], radius)
        else:
            found = finder.compute(
                points[start:stop], boxes[system], flags[system], "PS", copy=False
            )
        pairs.append(found[0].astype(np.int64) + start)
        images.append(found[1].astype(np.int64))
        start = stop
    center, neighbor = torch.from_numpy(np.concatenate(pairs)).T.contiguous()
    return Pairs(center, neighbor, torch.from_numpy(np.concatenate(images)).T.contiguous())


def _search_tree(
    points: np.ndarray, box: np.ndarray, pbc: np.ndarray, radius: float
) -> tuple[np.ndarray, np.ndarray]:
    """Pairs and images of one system whose box is mostly empty, or small, by a k-d tree.

    Needed for the former because vesin ends the process by an integer division by zero when a wide
    and thin system asks for more bins than it allows: two fragments of a molecule that fly apart.
    """
    from scipy.spatial import cKDTree

    inverse = np.linalg.inv(box)
    reach = radius * np.linalg.norm(inverse, axis=0) + 1e-6
    counts = np.where(pbc, np.ceil(reach), 0).astype(int)
    grids = np.meshgrid(*[np.arange(-n, n + 1) for n in counts], indexing="ij")
    images = np.stack(grids, -1).reshape(-1, 3)
    fractions = (points @ inverse)[None] + images[:, None]
    which, atom = (((fractions > -reach) & (fractions < 1 + reach)) | ~pbc).all(2).nonzero()
    ghosts = points[atom] + images[which] @ box
    found = cKDTree(points).sparse_distance_matrix(cKDTree(ghosts), radius, output_type="ndarray")
    pair = np.stack([found["i"], atom[found["j"]]], 1)
    image = images[which[found["j"]]]
    real = (pair[:, 0] != pair[:, 1]) | (image != 0).any(1)
    return pair[real], image[real]


def _search_warp(
    positions: Float[Tensor, "atom 3"],
    cell: Float[Tensor, "system 3 3"],
    batch: Batch,
    radius: float,
) -> Pairs:
    """Pairs on CUDA, all systems at once.

    The back-end writes a matrix of fixed width and drops what does not fit, but counts it: a
    count beyond the width means another round with a wider matrix.
    """
    from nvalchemiops.torch.neighbors import neighbor_list

    points, box = enclose(positions, cell, batch.pbc, batch.system_idx)
    starts = torch.nn.functional.pad(batch.n_atoms.cumsum(0), (1, 0)).int()
    naive = int(batch.n_atoms.max()) <= NAIVE_UP_TO
    capacity, most = 0, FIRST_CAPACITY
    while most > capacity:
        capacity = most
        neighbor, counts, image = neighbor_list(
            points,
            radius,
            box,
            batch.pbc,
            batch_idx=batch.system_idx.int(),
            batch_ptr=starts,
            method="batch_naive" if naive else "batch_cell_list",
            max_neighbors=capacity,
        )
        most = int(counts.max())
    taken = torch.arange(capacity, device=points.device) < counts[:, None]
    center = taken.nonzero()[:, 0]
    return Pairs(center, neighbor[taken].long(), image[taken].long().T.contiguous())
