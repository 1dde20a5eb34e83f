"""Verlet lists: the edges picked out of one are those of a fresh search, bit for bit."""

from __future__ import annotations

import pytest
import torch
from toy import crystals, packed, without_bulk

from dpa4sim.batch import Batch
from dpa4sim.edges import neighbors
from dpa4sim.verlet import VerletList, pick, verlet_list

CUTOFF, SKIN = 6.0, 1.0
"""Å."""


def batch() -> Batch:
    return packed([*crystals().values(), *without_bulk().values()])


def shaken(systems: Batch, length: float, strain: float = 0.0, seed: int = 0) -> Batch:
    """Atoms moved by up to a length in Å, and periodic cells strained, atoms with them."""
    generator = torch.Generator().manual_seed(seed)
    move = torch.randn(systems.positions.shape, generator=generator, dtype=torch.float64)
    move = length * move / move.norm(dim=1, keepdim=True)
    bend = torch.randn(systems.cell.shape, generator=generator, dtype=torch.float64)
    bend = torch.where(systems.pbc.all(1)[:, None, None], strain * bend, 0.0)
    stretch = torch.eye(3, dtype=torch.float64) + bend
    along = systems.positions[:, None] @ stretch[systems.system_idx]
    return systems.with_geometry(along[:, 0] + move, systems.cell @ stretch)


def static(systems: Batch, found: VerletList, more_pairs: int = 37) -> tuple[Batch, VerletList]:
    """Both with padding behind."""
    n_atoms, n_systems = len(systems.positions) + 5, systems.n_systems + 3
    padded = found.padded(found.n_pairs + more_pairs, n_atoms, n_systems)
    return systems.padded(n_atoms, n_systems), padded


def assert_fresh(systems: Batch, found: VerletList, spare: int = 21) -> None:
    """The picked edges are the searched ones, then silent ones."""
    fresh = neighbors(systems, CUTOFF)
    padded, listed = static(systems, found)
    picked = pick(listed, padded, CUTOFF, fresh.n_edges + spare)
    n = fresh.n_edges
    assert bool(picked.covered[: systems.n_systems].all())
    assert int(picked.n_edges) == n
    for name in ("center", "neighbor", "vector"):
        assert torch.equal(getattr(picked.edges, name)[:n], getattr(fresh, name)), name
    n_atoms = len(systems.positions)
    assert torch.equal(picked.edges.row_ptr[: n_atoms + 1], fresh.row_ptr)
    assert torch.equal(picked.edges.searched[: systems.n_systems], fresh.searched)
    assert (picked.edges.center[n:] == n_atoms + 4).all()
    assert (picked.edges.vector[n:].norm(dim=1) > CUTOFF).all()


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize(("length", "strain"), [(0.0, 0.0), (0.3, 0.0), (0.05, 0.01), (0.2, 0.02)])
def test_the_edges_are_those_of_a_fresh_search(length, strain, seed):
    start = batch()
    found = verlet_list(start, CUTOFF, SKIN)
    assert_fresh(shaken(start, length, strain, seed), found)


def test_atoms_may_leave_the_cell_and_come_back_on_the_other_side():
    start = shaken(batch(), 0.0)
    whole = torch.tensor([[1.0, -2.0, 3.0]], dtype=torch.float64)
    shift = torch.where(start.pbc, whole, 0.0)
    outside = (shift[start.system_idx][:, None] @ start.cell[start.system_idx])[:, 0]
    outside[::2] = 0.0
    moved = start.with_geometry(start.positions + outside, start.cell)
    assert_fresh(moved, verlet_list(moved, CUTOFF, SKIN))
    drifted = start.with_geometry(start.positions + 0.1 + outside, start.cell)
    assert_fresh(drifted, verlet_list(moved, CUTOFF, SKIN))


@pytest.mark.parametrize("seed", range(40))
def test_a_covered_system_lacks_no_edge(seed):
    """Whatever the moves: a system that is called covered has all its edges."""
    start = batch()
    generator = torch.Generator().manual_seed(seed)
    length, strain = (float(torch.rand((), generator=generator)) * top for top in (0.8, 0.1))
    moved = shaken(start, length, strain, seed)
    padded, found = static(moved, verlet_list(start, CUTOFF, SKIN))
    picked = pick(found, padded, CUTOFF, 20_000)
    fresh = neighbors(moved, CUTOFF)
    n_systems = moved.n_systems

    def per_system(center):
        return torch.bincount(padded.system_idx[center], minlength=n_systems)[:n_systems]

    real = picked.edges.vector.norm(dim=1) <= CUTOFF
    complete = per_system(picked.edges.center[real]) == per_system(fresh.center)
    covered = picked.covered[:n_systems]
    assert (complete | ~covered).all()
    assert torch.equal(covered, picked.used[:n_systems] <= 1.0)


def test_some_of_those_moves_are_covered_and_some_are_not():
    """Otherwise the test before would say nothing."""
    start = batch()
    covered = []
    for length, strain in ((0.05, 0.0), (0.45, 0.0), (0.55, 0.0), (0.0, 0.02), (0.0, 0.2)):
        padded, found = static(shaken(start, length, strain), verlet_list(start, CUTOFF, SKIN))
        covered.append(pick(found, padded, CUTOFF, 20_000).covered[: start.n_systems])
    assert covered[0].all()
    assert covered[1].all()
    assert not covered[2].any()
    assert covered[3].any()
    assert not covered[4].all()


def test_without_room_the_systems_whose_edges_are_cut_off_are_not_covered():
    start = batch()
    fresh = neighbors(start, CUTOFF)
    ends = fresh.row_ptr[start.n_atoms.cumsum(0)]
    padded, found = static(start, verlet_list(start, CUTOFF, SKIN))
    for capacity in (int(ends[1]), int(ends[1]) + 1, int(ends[3]) - 1):
        picked = pick(found, padded, CUTOFF, capacity)
        assert torch.equal(picked.covered[: start.n_systems], ends <= capacity)
        assert int(picked.n_edges) == fresh.n_edges
        assert torch.equal(picked.edges.vector, fresh.vector[:capacity])
        assert int(picked.edges.row_ptr.max()) <= capacity


@pytest.mark.parametrize("broken", [torch.nan, 1e9])
def test_a_broken_system_has_no_edges_and_takes_none_away(broken):
    start = batch()
    positions = start.positions.clone()
    positions[0, 0] = broken
    sick = start.with_geometry(positions, start.cell)
    for systems, listed in ((sick, start), (start, sick), (sick, sick)):
        padded, found = static(systems, verlet_list(listed, CUTOFF, SKIN))
        picked = pick(found, padded, CUTOFF, 20_000)
        fresh = neighbors(systems, CUTOFF)
        others = fresh.vector[fresh.center >= start.n_atoms[0]]
        real = picked.edges.vector.norm(dim=1) <= CUTOFF
        kept = picked.edges.vector[real & (picked.edges.center >= start.n_atoms[0])]
        assert torch.equal(kept, others)
        assert picked.covered[1 : start.n_systems].all()
        assert torch.equal(picked.edges.searched[: start.n_systems], fresh.searched)
    assert not pick(*reversed(static(start, verlet_list(sick, CUTOFF, SKIN))), CUTOFF, 9).covered[0]


def test_nothing_but_broken_systems():
    sick = batch()
    sick = sick.with_geometry(torch.nan * sick.positions, sick.cell)
    padded, found = static(sick, verlet_list(sick, CUTOFF, SKIN))
    picked = pick(found, padded, CUTOFF, 16)
    assert int(picked.n_edges) == 0
    assert not picked.edges.searched[: sick.n_systems].any()
