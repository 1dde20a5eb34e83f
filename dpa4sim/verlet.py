"""Verlet lists: pairs that hold while systems move, and edges of a fixed shape picked out of them.

A list holds every pair within cutoff + skin of where the systems stood.  The edges of where they
stand now are picked out of it by arithmetic alone: no shape depends on them, and nothing is read
back from the device, so that the search can be part of a recorded step (`step_graphs`).

Where the cell went by h = h_0 A, and atom i by r_i = r_i,0 A + u_i, two atoms within the cutoff
were then within

    (cutoff + 2 max_i |u_i|) (1 + ||A^-1 - 1||_F)

and the list has them as long as that is below cutoff + skin.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn.functional import pad

from dpa4sim.batch import Batch, dot, max_over_atoms
from dpa4sim.edges import PADDING_STRETCH, Edges, computable, pair_vectors, pairs_within
from dpa4sim.lattice import inverse, matmul
from dpa4sim.pair_search import Pairs
from dpa4sim.wrapping import combine, complete, fractions, wrap

TENSORS = ("center", "neighbor", "image", "real", "place", "cell")


@dataclass(frozen=True)
class VerletList:
    """Pairs of near atoms, in the order of edges, and where the systems stood.

    Args:
        center: atom i of each pair.
        neighbor: atom j.
        image: whole cells between the two atoms as they stood, not wrapped.
        real: False for padding.
        place: where the atoms stood, in fractions of the completed cell; NaN in a system whose
            pairs were not searched.
        cell: the completed cells, Å.
        skin: Å.
    """

    center: Int[Tensor, " pair"]
    neighbor: Int[Tensor, " pair"]
    image: Int[Tensor, "3 pair"]
    real: Bool[Tensor, " pair"]
    place: Float[Tensor, "atom 3"]
    cell: Float[Tensor, "system 3 3"]
    skin: float

    @property
    def n_pairs(self) -> int:
        """Pairs, padding included."""
        return self.center.shape[0]

    @property
    def tensors(self) -> tuple[Tensor, ...]:
        """All but the skin, in one order."""
        return tuple(getattr(self, name) for name in TENSORS)

    def with_tensors(self, tensors: Iterator[Tensor]) -> VerletList:
        """The same list of the next tensors, in that order."""
        named: dict[str, Any] = {name: next(tensors) for name in TENSORS}
        return replace(self, **named)

    def padded(self, n_pairs: int, n_atoms: int, n_systems: int) -> VerletList:
        """The same pairs, then pairs that are not real, for a batch padded likewise."""
        more = n_pairs - self.n_pairs
        atoms, systems = n_atoms - len(self.place), n_systems - len(self.cell)
        return VerletList(
            center=pad(self.center, (0, more), value=n_atoms - 1),
            neighbor=pad(self.neighbor, (0, more), value=n_atoms - 1),
            image=pad(self.image, (0, more)),
            real=pad(self.real, (0, more)),
            place=pad(self.place, (0, 0, 0, atoms)),
            cell=pad(self.cell, (0, 0, 0, 0, 0, systems)),
            skin=self.skin,
        )


@dataclass(frozen=True)
class Picked:
    """What a list gives for a geometry.

    Args:
        edges: those of `edges.neighbors`, bit for bit and in their order, then silent ones.
        covered: False for a system whose edges are not all there: it went too far, or there is no
            room for so many edges.
        used: which part of the skin each system has used up; above 1 it went too far.
        n_edges: that are not silent, those without room included.
    """

    edges: Edges
    covered: Bool[Tensor, " system"]
    used: Float[Tensor, " system"]
    n_edges: Int[Tensor, ""]


def verlet_list(batch: Batch, cutoff: float, skin: float) -> VerletList:
    """Search the pairs within cutoff + skin.  Reads the device.

    Systems that are not `computable` have none.

    Args:
        batch: on any device.
        cutoff: Å.
        skin: Å.
    """
    good = computable(batch, cutoff + skin)
    pairs = _pairs(batch, good, cutoff + skin)
    cell = complete(batch.cell.double(), batch.pbc)
    place = fractions(batch.positions.double(), cell, batch.system_idx)
    return VerletList(
        center=pairs.center,
        neighbor=pairs.neighbor,
        image=pairs.image,
        real=torch.ones_like(pairs.center, dtype=torch.bool),
        place=torch.where(good[batch.system_idx][:, None], place, torch.nan),
        cell=cell,
        skin=skin,
    )


def pick(found: VerletList, batch: Batch, cutoff: float, capacity: int) -> Picked:
    """The edges of a batch out of its list.  Reads nothing back from the device.

    Args:
        found: of the same systems, padded as they are.
        batch: with a silent system at its end (`Batch.padded`), on whose last atom silent edges
            hang.
        cutoff: Å.
        capacity: edges to give, silent ones included.
    """
    cell = complete(batch.cell.double(), batch.pbc)
    vector, inside, searched = _near(found, batch, cell, cutoff)
    used, n_atoms = _used(found, batch, cell, cutoff), batch.positions.shape[0]
    end = inside.cumsum(0)
    row = torch.where(inside, end - 1, capacity).clamp(max=capacity)
    center = found.center.new_full((capacity + 1,), n_atoms - 1).scatter(0, row, found.center)
    neighbor = found.center.new_full((capacity + 1,), n_atoms - 1).scatter(0, row, found.neighbor)
    rows = row[:, None].expand(-1, 3)
    silent = vector.new_full((capacity + 1, 3), PADDING_STRETCH * cutoff)
    vectors = silent.scatter(0, rows, vector)[:capacity]

    atoms = torch.arange(n_atoms + 1, device=row.device)
    first = torch.searchsorted(found.center, atoms)
    row_ptr = pad(end, (1, 0)).index_select(0, first)
    last_atom = batch.n_atoms.cumsum(0)
    fits = row_ptr.index_select(0, last_atom) <= capacity
    edges = Edges(
        center=center[:capacity],
        neighbor=neighbor[:capacity],
        vector=vectors,
        row_ptr=row_ptr.clamp(max=capacity),
        searched=searched,
    )
    return Picked(edges, fits & ((used <= 1.0) | ~searched), used, row_ptr[-1])


def count(found: VerletList, batch: Batch, cutoff: float) -> int:
    """How many edges a batch has by its list.  Reads the device."""
    cell = complete(batch.cell.double(), batch.pbc)
    return int(_near(found, batch, cell, cutoff)[1].sum())


def _near(
    found: VerletList, batch: Batch, cell: Float[Tensor, "system 3 3"], cutoff: float
) -> tuple[Float[Tensor, "pair 3"], Bool[Tensor, " pair"], Bool[Tensor, " system"]]:
    """The vector of each pair, whether it is an edge, and which systems have edges at all."""
    system_idx, searched = batch.system_idx, computable(batch, cutoff)
    positions, turns = wrap(batch.positions.double(), cell, batch.pbc, system_idx)
    owner = system_idx.index_select(0, found.center)
    turned = turns.index_select(0, found.neighbor) - turns.index_select(0, found.center)
    image = found.image + turned.T
    vector = pair_vectors(positions, cell, found.center, found.neighbor, image, owner)
    inside = found.real & (dot(vector, vector) <= cutoff * cutoff)
    return vector, inside & searched.index_select(0, owner), searched


def _pairs(batch: Batch, good: Bool[Tensor, " system"], radius: float) -> Pairs:
    """Pairs of the good systems, with the images between atoms as they stand."""
    if not bool(good.all()):
        atoms, systems = good[batch.system_idx].nonzero()[:, 0], good.nonzero()[:, 0].tolist()
        if not systems:
            nothing = atoms.new_zeros(0)
            return Pairs(nothing, nothing, nothing.new_zeros(3, 0))
        part = batch.select(systems)
        pairs = _pairs(part, torch.ones_like(part.n_atoms, dtype=torch.bool), radius)
        return Pairs(atoms[pairs.center], atoms[pairs.neighbor], pairs.image)
    pairs, _, _, turns = pairs_within(batch, radius)
    turned = turns.index_select(0, pairs.center) - turns.index_select(0, pairs.neighbor)
    return replace(pairs, image=pairs.image + turned.T.to(pairs.image.dtype))


def _used(
    found: VerletList, batch: Batch, cell: Float[Tensor, "system 3 3"], cutoff: float
) -> Float[Tensor, " system"]:
    """Which part of the skin is used up; NaN where no pairs were searched."""
    strayed = batch.positions - combine(found.place, cell, batch.system_idx)
    farthest = max_over_atoms(dot(strayed, strayed), batch).clamp(min=0.0).sqrt()
    back = matmul(inverse(cell), found.cell)
    stretch = back - torch.eye(3, dtype=cell.dtype, device=cell.device)
    stretch = dot(stretch, stretch).sum(1).sqrt()
    return ((cutoff + 2.0 * farthest) * (1.0 + stretch) - cutoff) / found.skin
