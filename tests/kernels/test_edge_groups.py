"""Edges in regular arrays: each has one slot at its atom, and few slots stay empty."""

from __future__ import annotations

import pytest
import torch

from dpa4sim.kernels.edge_groups import FULLNESS, SMALLEST_GROUP, BothEnds, EdgeGroups


def ends(counts: list[int]) -> torch.Tensor:
    """An atom of each edge in random order."""
    found = torch.repeat_interleave(torch.arange(len(counts)), torch.tensor(counts))
    return found[torch.randperm(len(found), generator=torch.Generator().manual_seed(3))]


CASES = {
    "uneven": [3, 0, 7, 1, 4, 4, 0, 2],
    "one atom": [5],
    "no edges": [0, 0],
    "crystals": [15, 90, 88, 16, 85, 15, 14, 158] * 40,
}


@pytest.mark.parametrize("most", [1, 9, 4096])
@pytest.mark.parametrize("name", CASES)
def test_every_edge_has_one_slot_at_its_atom(name, most):
    end = ends(CASES[name])
    found = EdgeGroups.build(end, len(CASES[name]), most)
    assert torch.equal(found.edge[found.slot], torch.arange(len(end)))
    assert bool(found.filled[found.slot].all())
    assert int(found.filled.sum()) == len(end)
    atoms = [g.atoms.repeat_interleave(g.size) for g in found.groups]
    of_slot = torch.cat(atoms) if atoms else end[:0]
    assert len(of_slot) == len(found.edge)
    assert torch.equal(of_slot[found.slot], end)
    for group in found.groups:
        assert group.slots.stop - group.slots.start == len(group.atoms) * group.size
        assert len(group.atoms) == 1 or len(group.atoms) * group.size <= most


@pytest.mark.parametrize("name", CASES)
def test_edges_of_an_atom_keep_their_order(name):
    end = ends(CASES[name])
    found = EdgeGroups.build(end, len(CASES[name]))
    for atom in range(len(CASES[name])):
        slots = found.slot[end == atom]
        assert torch.equal(slots, slots.sort().values)


def test_few_slots_of_large_groups_are_empty():
    counts = CASES["crystals"]
    found = EdgeGroups.build(ends(counts), len(counts))
    assert len(found.edge) - sum(counts) <= (1 - FULLNESS) * len(found.edge) + SMALLEST_GROUP


def test_each_slot_finds_its_edge_at_the_other_end():
    center, neighbor = ends(CASES["uneven"]), ends(CASES["uneven"]).flip(0)
    found = BothEnds.build(center, neighbor, 8, 9)
    near, at = found.by_neighbor, found.by_center
    assert torch.equal(at.edge[found.to_neighbor], near.edge)
    assert torch.equal(near.edge[found.to_center], at.edge)
