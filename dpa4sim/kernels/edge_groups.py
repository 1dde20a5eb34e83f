"""Edges in regular arrays: atoms with about the same number of edges side by side, padded.

A product for every atom is then one batched product for a group of atoms, however many there are.
Atoms are sorted by their number of edges, so few slots stay empty.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from jaxtyping import Bool, Int
from torch import Tensor

GROUP_SLOTS = 4096
"""Slots of one group, which fit the cache."""

SMALLEST_GROUP = 512
"""Slots below which a group takes atoms with fewer edges too: what an operation costs by itself."""

FULLNESS = 0.9
"""Share of an atom's slots that have an edge, in larger groups."""


class Group(NamedTuple):
    """Some atoms, each with the same number of slots.

    Args:
        atoms: which.
        slots: theirs, atom by atom.
        size: slots of one atom.
    """

    atoms: Int[Tensor, " atom"]
    slots: slice
    size: int


@dataclass(frozen=True)
class EdgeGroups:
    """The edges by the atom at one end.

    Args:
        edge: the edge in each slot; 0 in empty ones.
        filled: which slots have one.
        slot: where each edge is.
        groups: all atoms that have edges.
    """

    edge: Int[Tensor, " slot"]
    filled: Bool[Tensor, " slot"]
    slot: Int[Tensor, " edge"]
    groups: Sequence[Group]

    @classmethod
    def build(cls, end: Int[Tensor, " edge"], n_atoms: int, most: int = GROUP_SLOTS) -> EdgeGroups:
        """Group edges, their order kept at each atom.  Reads the device.

        Args:
            end: the atom of each edge.
            most: slots of one group.
        """
        of_atom = torch.bincount(end, minlength=n_atoms)
        by_atom = torch.argsort(end, stable=True)
        first = of_atom.cumsum(0) - of_atom
        atoms = torch.argsort(of_atom, stable=True, descending=True)
        groups, edges, filled, start = [], [], [], 0
        for a, b, size in _cuts(of_atom[atoms].tolist(), most):
            column, members = torch.arange(size, device=end.device), atoms[a:b]
            full = column < of_atom[members, None]
            source = torch.where(full, first[members, None] + column, 0)
            edges.append(by_atom[source.flatten()])
            filled.append(full.flatten())
            groups.append(Group(members, slice(start, start + full.numel()), size))
            start += full.numel()
        edge = torch.cat(edges) if edges else end[:0]
        here = torch.cat(filled) if filled else end[:0].bool()
        slot = torch.empty_like(end)
        slots = torch.arange(start, device=end.device)
        slot[edge[here]] = slots[here]
        return cls(torch.where(here, edge, 0), here, slot, groups)


@dataclass(frozen=True)
class BothEnds:
    """The edges by their neighbours and by their centers.

    Args:
        by_neighbor: of the products with the features of atom j.
        by_center: of the sums at atom i.
        to_neighbor: slot by center of each slot by neighbour; any in empty ones.
        to_center: slot by neighbour of each slot by center; any in empty ones.
    """

    by_neighbor: EdgeGroups
    by_center: EdgeGroups
    to_neighbor: Int[Tensor, " slot"]
    to_center: Int[Tensor, " slot"]

    @classmethod
    def build(
        cls,
        center: Int[Tensor, " edge"],
        neighbor: Int[Tensor, " edge"],
        n_atoms: int,
        most: int = GROUP_SLOTS,
    ) -> BothEnds:
        """Group the edges twice."""
        near = EdgeGroups.build(neighbor, n_atoms, most)
        at = EdgeGroups.build(center, n_atoms, most)
        return cls(near, at, at.slot[near.edge], near.slot[at.edge])


def _cuts(counts: Sequence[int], most: int) -> list[tuple[int, int, int]]:
    """(first, last, slots of each) of runs of falling counts that make a group."""
    found, first = [], 0
    for atom, count in enumerate(counts):
        size = counts[first]
        if count == 0:
            if size:
                found.append((first, atom, size))
            return found
        slots = (atom - first) * size
        sparse = count < FULLNESS * size and slots >= SMALLEST_GROUP
        if atom > first and (slots + size > most or sparse):
            found.append((first, atom, size))
            first = atom
    return [*found, (first, len(counts), counts[first])] if counts else found
