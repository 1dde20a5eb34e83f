"""Edges: which atoms see each other, and along which vector.

An edge points from its center i to a neighbor j:  vector = R_j - R_i + shift, |vector| <= cutoff.
Edges are sorted by center, so the edges of atom i are the rows row_ptr[i]:row_ptr[i + 1].  Inside a
center they are sorted by neighbor, then by the image (a, b, c) of the neighbor, counted between
the positions wrapped into the cell: the order depends on the structure alone, never on its batch.

Back-ends (`pair_search`) only propose pairs: vectors, the cutoff and the order are settled here,
once, by elementwise float64 arithmetic.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from dpa4sim.batch import Batch, cross, dot, sum_over_atoms
from dpa4sim.errors import DataError
from dpa4sim.pair_search import Pairs, order, search
from dpa4sim.wrapping import complete, heights, wrap

MARGIN_A = 1e-6
"""Back-ends search this much farther than the cutoff, which is applied to the exact vectors."""

FARTHEST_A = 1e8
"""Beyond it double precision no longer resolves `MARGIN_A`, and integer grids overflow."""

MAX_CROWD = 1e5
"""Atoms, images counted, in a box of two cutoffs: a denser periodic system has collapsed."""

PADDING_STRETCH = 2.0
"""Length of a padding edge in cutoffs; every envelope is exactly zero there."""

N_RADII = 3
"""Gauss-Legendre points of the integral that estimates a number of edges."""

ATOM_SIZE2 = 0.05
"""Å^2; an atom's own share in the thickness of a layer: one layer has some, too."""


@dataclass(frozen=True)
class Edges:
    """A packed neighbour list.

    Args:
        center: atom i of each edge, ascending.
        neighbor: atom j of each edge.
        vector: R_j - R_i + shift in Å.
        row_ptr: offsets of each center's edges (CSR).
        searched: False for a system that has no edges because it is not `computable`; None when
            nobody asked.
    """

    center: Int[Tensor, " edge"]
    neighbor: Int[Tensor, " edge"]
    vector: Float[Tensor, "edge 3"]
    row_ptr: Int[Tensor, " atom_plus_one"]
    searched: Bool[Tensor, " system"] | None = None

    @property
    def n_edges(self) -> int:
        """Number of edges, padding included."""
        return self.center.shape[0]


def neighbors(batch: Batch, cutoff: float) -> Edges:
    """Every directed pair within `cutoff`, periodic images of an atom with itself included.

    A system that is not `computable` gets no edges; the other systems do not notice it.

    Args:
        batch: the systems; they may differ in pbc, and their atoms may stand outside the cell.
        cutoff: Å; an edge of exactly this length is kept.

    Antisymmetric to the last bit: the edge j -> i carries minus the vector of i -> j.
    """
    good = computable(batch, cutoff)
    if bool(good.all()):
        return replace(_neighbors(batch, cutoff), searched=good)
    atoms = good[batch.system_idx].nonzero()[:, 0]
    systems = good.nonzero()[:, 0].tolist()
    if not systems:
        nothing = atoms.new_zeros(0)
        vector = batch.positions.new_zeros(0, 3, dtype=torch.float64)
        return replace(_packed(nothing, nothing, vector, batch), searched=good)
    found = _neighbors(batch.select(systems), cutoff)
    packed = _packed(atoms[found.center], atoms[found.neighbor], found.vector, batch)
    return replace(packed, searched=good)


def pad(edges: Edges, capacity: int, cutoff: float) -> Edges:
    """Fill up to `capacity` edges with silent ones, so that shapes stay the same.

    A silent edge points from the last atom to itself along a vector of `PADDING_STRETCH` cutoffs,
    where every envelope is exactly zero.  `row_ptr` still counts the real edges only.

    Raises:
        DataError: there are more edges than `capacity`, or no atom to hang the padding on.
    """
    missing = capacity - edges.n_edges
    n_atoms = edges.row_ptr.shape[0] - 1
    if missing < 0:
        raise DataError(
            f"{edges.n_edges} edges do not fit into a capacity of {capacity}. "
            f"Give a capacity of at least {edges.n_edges}."
        )
    if n_atoms == 0:
        raise DataError("Edges of no atoms cannot be padded. Give a batch with atoms.")
    last = edges.center.new_full((missing,), n_atoms - 1)
    vector = edges.vector.new_zeros(missing, 3)
    vector[:, 0] = PADDING_STRETCH * cutoff
    return Edges(
        center=torch.cat([edges.center, last]),
        neighbor=torch.cat([edges.neighbor, last]),
        vector=torch.cat([edges.vector, vector]),
        row_ptr=edges.row_ptr,
        searched=edges.searched,
    )


def computable(batch: Batch, cutoff: float) -> Bool[Tensor, " system"]:
    """Which systems have edges at all: finite, and with a cell that holds their periodicity.

    False for a position or cell entry that is NaN, infinite or beyond `FARTHEST_A`, and for a
    periodic cell so small or flat that more than `MAX_CROWD` atoms and images crowd into a box of
    two cutoffs.  Such a system has no forces: ask before taking that for convergence.

    Reads nothing back from the device.
    """
    far = ~(batch.positions.abs() <= FARTHEST_A).all(1)
    far_atoms = torch.zeros_like(batch.n_atoms).index_add(
        0, batch.system_idx, far.to(batch.n_atoms.dtype)
    )
    finite = (far_atoms == 0) & (batch.cell.abs() <= FARTHEST_A).flatten(1).all(1)
    cell = complete(batch.cell.double(), batch.pbc)
    reach = torch.where(batch.pbc, 2 * cutoff / heights(cell), 1.0)
    crowd = batch.n_atoms * reach[:, 0] * reach[:, 1] * reach[:, 2]
    return finite & ((crowd <= MAX_CROWD) | ~batch.pbc.any(1))


def estimated_edges(batch: Batch, cutoff: float) -> Float[Tensor, " system"]:
    """About how many edges each system has, before any search; reads nothing back.

    A system fills its p periodic directions evenly and its open ones as a Gaussian cloud does:

        n (n - [p = 0]) / M  int_{|x| < cutoff}  P(y^2 < cutoff^2 - x^2)  d^p x

    with M the volume, area or length of the periodic cell and y the distance of two atoms across
    the open directions.  Empty space inside a periodic cell is not seen as such: a slab that is
    called periodic in three directions has more edges than this.
    """
    cell = complete(batch.cell.double(), batch.pbc)
    n_atoms, n_open = batch.n_atoms.double(), (~batch.pbc).sum(1)
    places, weights = np.polynomial.legendre.leggauss(N_RADII)
    is_wire, is_slab = n_open == 2, n_open == 1
    radii = [0.0, *(0.5 * cutoff * (1 + places)).tolist()]
    chance = _chance_within(batch, cell, [cutoff * cutoff - r * r for r in radii]).unbind(0)
    total = torch.zeros_like(n_atoms)
    for radius, weight, across in zip(radii[1:], weights.tolist(), chance[1:], strict=True):
        rims = (2.0, 2 * np.pi * radius, 4 * np.pi * radius * radius)
        surface = _pick(is_wire, is_slab, *[0.5 * cutoff * weight * rim for rim in rims])
        total = total + surface * across
    density = n_atoms / dot(cell[:, 0], cross(cell[:, 1], cell[:, 2])).abs()
    return n_atoms * torch.where(n_open == 3, (n_atoms - 1) * chance[0], density * total)


def _chance_within(
    batch: Batch, cell: Float[Tensor, "system 3 3"], radii2: list[float]
) -> Float[Tensor, "radius system"]:
    """Chance that two atoms are nearer than a radius across the open directions; 1 without any.

    The squared distance is taken to be chi-square distributed with the mean and variance that the
    covariance C of the positions gives it, by the cube root of Wilson and Hilferty, Proc. Natl.
    Acad. Sci. 17, 684; near zero the density of the cloud with itself is the bound.
    """
    cov, n_open = _open_covariance(batch, cell), (~batch.pbc).sum(1)
    mean = 2.0 * (cov[0][0] + cov[1][1] + cov[2][2])
    squares = sum(entry * entry for row in cov for entry in row)
    spread = 8.0 / 9.0 * squares / (mean * mean)
    a, b, c = ([cov[k][l] + (k == l) * batch.pbc[:, k] for l in range(3)] for k in range(3))
    det = a[0] * (b[1] * c[2] - b[2] * c[1]) - a[1] * (b[0] * c[2] - b[2] * c[0])
    size = (det + a[2] * (b[0] * c[1] - b[1] * c[0])).clamp(min=0.0).sqrt()
    is_slab, is_wire = n_open == 1, n_open == 2
    scale, middle, width = mean ** (-1.0 / 3.0), 1.0 - spread, spread.sqrt()
    chances = []
    for radius2 in radii2:
        radius = radius2**0.5
        cloud = torch.special.ndtr((scale * radius2 ** (1.0 / 3.0) - middle) / width)
        line, disc, ball = 2 * radius, np.pi * radius2, 4 / 3 * np.pi * radius * radius2
        norm = (4 * np.pi) ** 0.5
        near = _pick(is_slab, is_wire, line / norm, disc / norm**2, ball / norm**3)
        chances.append(torch.minimum(cloud, near / size))
    return torch.where(n_open == 0, 1.0, torch.stack(chances))


def _pick(
    is_first: Bool[Tensor, " system"],
    is_second: Bool[Tensor, " system"],
    first: float,
    second: float,
    other: float,
) -> Float[Tensor, " system"]:
    return torch.where(is_first, first, torch.where(is_second, second, other))


def _open_covariance(
    batch: Batch, cell: Float[Tensor, "system 3 3"]
) -> list[list[Float[Tensor, " system"]]]:
    """Covariance in Å^2 of the coordinates along the open directions; of a molecule, that of a
    sample: the mean square distance of two different atoms is twice its trace.
    """
    n_atoms, is_open, system_idx = batch.n_atoms.double(), ~batch.pbc, batch.system_idx
    count = torch.where(is_open.all(1), (n_atoms - 1).clamp(min=1.0), n_atoms)
    x, y, z = batch.positions.double().T.contiguous()
    centred = []
    for k in range(3):
        axis = torch.where(is_open[:, k, None], cell[:, k], 0.0)
        a, b, c = (axis[:, i].index_select(0, system_idx) for i in range(3))
        along = a * x + b * y + c * z
        mean = sum_over_atoms(along, batch) / n_atoms
        centred.append(along - mean.index_select(0, system_idx))
    cov = {}
    for k, l in ((0, 0), (1, 1), (2, 2), (0, 1), (0, 2), (1, 2)):
        cov[k, l] = cov[l, k] = sum_over_atoms(centred[k] * centred[l], batch) / count
        if k == l:
            cov[k, k] = cov[k, k] + ATOM_SIZE2 * is_open[:, k]
    return [[cov[k, l] for l in range(3)] for k in range(3)]


def _neighbors(batch: Batch, cutoff: float) -> Edges:
    """The edges of a batch whose systems are all computable."""
    pairs, positions, cell, _ = pairs_within(batch, cutoff)
    center, neighbor, image = pairs.center, pairs.neighbor, pairs.image.double()
    vector = pair_vectors(positions, cell, center, neighbor, image, batch.system_idx[center])
    inside = dot(vector, vector) <= cutoff * cutoff
    if not bool(inside.all()):
        center, neighbor, vector = center[inside], neighbor[inside], vector[inside]
    return _packed(center, neighbor, vector, batch)


def pairs_within(
    batch: Batch, radius: float
) -> tuple[Pairs, Float[Tensor, "atom 3"], Float[Tensor, "system 3 3"], Float[Tensor, "atom 3"]]:
    """Pairs within a radius, and a few beyond, in the order of edges; wrapped positions, completed
    cells, and the turns of the wrapping.

    For a batch whose systems are all computable.
    """
    cell = complete(batch.cell.detach().double(), batch.pbc)
    positions, turns = wrap(batch.positions.detach().double(), cell, batch.pbc, batch.system_idx)
    found = search(positions, cell, batch, radius + MARGIN_A)
    rows = order(found, batch.positions.shape[0])
    pairs = Pairs(
        found.center.index_select(0, rows),
        found.neighbor.index_select(0, rows),
        found.image.index_select(1, rows),
    )
    return pairs, positions, cell, turns


def pair_vectors(
    positions: Float[Tensor, "atom 3"],
    cell: Float[Tensor, "system 3 3"],
    center: Int[Tensor, " pair"],
    neighbor: Int[Tensor, " pair"],
    image: Float[Tensor, "3 pair"],
    system: Int[Tensor, " pair"],
) -> Float[Tensor, "pair 3"]:
    """R_j - R_i + image @ cell, one component after another: long rows are faster to gather."""
    vector = positions.new_empty(len(center), 3)
    for axis in range(3):
        place, row = positions[:, axis].contiguous(), cell[:, :, axis].T.contiguous()
        shift = image[0] * row[0].index_select(0, system)
        shift += image[1] * row[1].index_select(0, system)
        shift += image[2] * row[2].index_select(0, system)
        step = place.index_select(0, neighbor) - place.index_select(0, center)
        vector[:, axis] = step + shift
    return vector


def _packed(
    center: Int[Tensor, " edge"],
    neighbor: Int[Tensor, " edge"],
    vector: Float[Tensor, "edge 3"],
    batch: Batch,
) -> Edges:
    rows = torch.arange(batch.positions.shape[0] + 1, device=center.device)
    return Edges(center, neighbor, vector, torch.searchsorted(center, rows))
