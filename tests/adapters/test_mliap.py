"""ML-IAP unified, by Python alone: a stand-in gives what LAMMPS gives, on one rank and on more."""

from __future__ import annotations

import pickle
import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from models import FILE_SETS, NUMBERS, OPTION_SETS, crystal, largest, molecule, random_potential

from dpa4sim.adapters.mliap import Unified
from dpa4sim.batch import Batch
from dpa4sim.edges import neighbors
from dpa4sim.errors import ConfigError, DataError, ModelError

TOLERANCE = 1e-11
"""eV and eV/Å: float64, other orders of additions; 1e-13 is what we see."""

LEARNED = [name for name in OPTION_SETS if name != "zbl"]


class Ranks:
    """A structure spread over ranks, and what passes between them.

    Args:
        rank_of: the rank that owns each atom.
    """

    def __init__(self, batch: Batch, cutoff: float, rank_of: list[int]) -> None:
        self.n_ranks = max(rank_of) + 1
        self.barrier = threading.Barrier(self.n_ranks, timeout=30)
        self.posted: dict[int, torch.Tensor] = {}
        edges = neighbors(batch, cutoff)
        self.home = [
            [atom for atom, rank in enumerate(rank_of) if rank == r] for r in range(self.n_ranks)
        ]
        self.place = {atom: (r, i) for r, own in enumerate(self.home) for i, atom in enumerate(own)}
        self.ranks = [Rank(self, r, batch, edges) for r in range(self.n_ranks)]

    def exchange(self, rank: int, mine: torch.Tensor) -> dict[int, torch.Tensor]:
        """Everybody's tensor, once everybody has given one."""
        self.posted[rank] = mine.clone()
        self.barrier.wait()
        everybody = dict(self.posted)
        self.barrier.wait()
        return everybody

    def run(self, unified: list[Unified]) -> None:
        with ThreadPoolExecutor(self.n_ranks) as pool:
            jobs = [
                pool.submit(one.compute_forces, rank)
                for one, rank in zip(unified, self.ranks, strict=True)
            ]
            for job in jobs:
                job.result()

    def forces(self, n_atoms: int) -> torch.Tensor:
        """Forces on the atoms, those on ghosts given to their owners."""
        total = torch.zeros(n_atoms, 3, dtype=torch.float64)
        for rank in self.ranks:
            atoms = torch.tensor([atom for atom, _ in rank.atoms], dtype=torch.long)
            total.index_add_(0, atoms, rank.f)
        return total


class Rank:
    """What LAMMPS with Kokkos gives Python on one rank; positions and cell stay with LAMMPS."""

    def __init__(self, world: Ranks, rank: int, batch: Batch, edges) -> None:
        self.world, self.rank = world, rank
        own = world.home[rank]
        self.nlocal = self.nlistatoms = len(own)
        self.atoms = [(atom, None) for atom in own]  # (atom, image) of own atoms, then of ghosts
        index = {(atom, (0, 0, 0)): i for i, atom in enumerate(own)}
        pairs = []
        for i, j, vector in zip(edges.center, edges.neighbor, edges.vector, strict=True):
            if int(i) not in own:
                continue
            shift = vector - (batch.positions[j] - batch.positions[i])
            key = int(j), tuple(round(x, 6) + 0.0 for x in shift.tolist())
            if key not in index:
                index[key] = len(self.atoms)
                self.atoms.append((int(j), key[1]))
            pairs.append((own.index(int(i)), index[key], vector))
        listed = np.random.default_rng(3).permutation(len(own))  # LAMMPS lists atoms as it likes
        rank_of_center = {int(center): n for n, center in enumerate(listed)}
        pairs.sort(key=lambda pair: rank_of_center[pair[0]])
        self.iatoms = listed.astype(np.int32)
        self.npairs, self.ntotal = len(pairs), len(self.atoms)
        self.pair_i = np.array([i for i, _, _ in pairs], np.int32)
        self.pair_j = np.array([j for _, j, _ in pairs], np.int32)
        self.rij = np.array([vector.tolist() for _, _, vector in pairs]).reshape(-1, 3)
        z = batch.atomic_numbers.tolist()
        self.elems = np.array([NUMBERS.index(z[atom]) for atom, _ in self.atoms], np.int32)
        self.f = torch.zeros(self.ntotal, 3, dtype=torch.float64)
        self.eatoms, self.energy, self.virial = np.zeros(self.nlistatoms), None, 0.0

    def forward_exchange(self, source, target, width) -> None:
        assert source.shape == target.shape == (self.ntotal, width)
        target.copy_(source)
        everybody = self.world.exchange(self.rank, source)
        for row in range(self.nlocal, self.ntotal):
            owner, place = self.world.place[self.atoms[row][0]]
            target[row] = everybody[owner][place]

    def reverse_exchange(self, source, target, width) -> None:
        assert source.shape == target.shape == (self.ntotal, width)
        target.copy_(source)
        for other, theirs in self.world.exchange(self.rank, source).items():
            there = self.world.ranks[other]
            for row in range(there.nlocal, there.ntotal):
                owner, place = self.world.place[there.atoms[row][0]]
                if owner == self.rank:
                    target[place] += theirs[row]
        target[self.nlocal :] = 7.0  # nobody promises what ghosts hold afterwards

    def update_pair_forces(self, f) -> None:
        assert f.dtype == np.float64
        assert f.flags.c_contiguous
        pair = torch.from_numpy(f)
        self.f.index_add_(0, torch.from_numpy(self.pair_i).long(), pair)
        self.f.index_add_(0, torch.from_numpy(self.pair_j).long(), pair, alpha=-1)
        self.virial = -torch.from_numpy(self.rij).T @ pair


class Plain:
    """LAMMPS without Kokkos: no exchange, no `nlocal`, energies that can only be written."""

    def __init__(self, rank: Rank) -> None:
        names = ["nlistatoms", "iatoms", "npairs", "ntotal", "pair_i", "pair_j", "rij", "elems"]
        for name in [*names, "update_pair_forces"]:
            setattr(self, name, getattr(rank, name))

    eatoms = property(fset=lambda self, value: setattr(self, "told", np.array(value)))


@pytest.mark.parametrize("structure", [crystal, molecule])
@pytest.mark.parametrize("name", LEARNED)
def test_one_rank_gives_our_numbers(name, structure):
    potential, batch = random_potential(OPTION_SETS[name]), structure()
    expected = potential(batch)
    world = Ranks(batch, potential.cutoff, [0] * len(batch.positions))
    world.run([Unified(potential)])
    (rank,) = world.ranks
    assert (rank.ntotal > rank.nlocal) == bool(batch.pbc.all())
    assert abs(rank.energy - float(expected.energy[0])) < TOLERANCE
    energies = torch.from_numpy(rank.eatoms) - expected.atomic_energies[rank.iatoms]
    assert largest(energies) < TOLERANCE
    assert largest(world.forces(len(batch.positions)) - expected.forces) < TOLERANCE
    if batch.pbc.all():
        virial = -expected.stress[0] * batch.volume[0]
        assert largest(0.5 * (rank.virial + rank.virial.T) - virial) < TOLERANCE


@pytest.mark.parametrize("name", ["neo", "scatter", "so3_grid"])
def test_two_ranks_give_their_sum(name):
    potential, batch = random_potential(OPTION_SETS[name]), crystal()
    expected = potential(batch)
    world = Ranks(batch, potential.cutoff, [1, 0, 1, 0])
    world.run([Unified(random_potential(OPTION_SETS[name])) for _ in range(2)])
    assert abs(sum(rank.energy for rank in world.ranks) - float(expected.energy[0])) < TOLERANCE
    assert largest(world.forces(4) - expected.forces) < TOLERANCE


def test_a_rank_without_pairs_takes_part():
    """One that owns a lonely atom only; it has neither pairs nor ghosts."""
    potential, near = random_potential(OPTION_SETS["neo"]), molecule()
    positions = torch.cat([near.positions, torch.tensor([[0.0, 0.0, 99.0]])])
    batch = Batch.single(positions, torch.cat([near.atomic_numbers, torch.tensor([6])]))
    expected = potential(batch)
    world = Ranks(batch, potential.cutoff, [0, 0, 1, 1, 0, 0, 2])
    assert (world.ranks[2].npairs, world.ranks[2].ntotal) == (0, 1)
    world.run([Unified(random_potential(OPTION_SETS["neo"])) for _ in range(3)])
    assert abs(sum(rank.energy for rank in world.ranks) - float(expected.energy[0])) < TOLERANCE
    assert largest(world.forces(7) - expected.forces) < TOLERANCE


def test_float32_follows():
    config, batch = OPTION_SETS["neo"], crystal()
    world = Ranks(batch, config.cutoff, [0] * 4)
    world.run([Unified(random_potential(config, dtype="float32"))])
    forces = random_potential(config)(batch).forces
    assert largest(world.forces(4) - forces) < 2e-5 * float(forces.abs().max())


def test_without_kokkos_a_molecule_runs_and_ghosts_are_refused():
    potential, batch = random_potential(OPTION_SETS["neo"]), molecule()
    data = Plain(Ranks(batch, potential.cutoff, [0] * 6).ranks[0])
    Unified(potential).compute_forces(data)
    expected = potential(batch)
    assert abs(data.energy - float(expected.energy[0])) < TOLERANCE
    told = torch.from_numpy(data.told) - expected.atomic_energies[data.iatoms]
    assert largest(told) < TOLERANCE
    ghosts = Plain(Ranks(crystal(), potential.cutoff, [0] * 4).ranks[0])
    with pytest.raises(DataError, match="-k on g 1 -sf kk"):
        Unified(potential).compute_forces(ghosts)


def test_the_network_is_left_as_it_was():
    """No hook stays behind, not even after an error."""
    potential, batch = random_potential(OPTION_SETS["neo"]), crystal()
    before = potential(batch).energy
    world = Ranks(batch, potential.cutoff, [0] * 4)
    world.ranks[0].reverse_exchange = None
    with pytest.raises(TypeError, match="not callable"):
        world.run([Unified(potential)])
    assert torch.equal(potential(batch).energy, before)


def test_what_lammps_asks_for():
    unified = Unified(random_potential(OPTION_SETS["neo"]))
    assert unified.element_types == ["Si", "C", "O"]
    assert 2 * unified.rcutfac == unified.cutoff == unified.potential.cutoff
    assert unified.ndescriptors == unified.nparams == 1
    assert unified.interface is None
    assert unified.compute_descriptors(None) is unified.compute_gradients(None) is None


def test_pickle_is_the_model_file(tmp_path):
    potential, batch = random_potential(OPTION_SETS["neo"]), crystal()
    unified = Unified(potential)
    unified.interface = threading.Lock()  # of LAMMPS's process, and not to be pickled
    unified.save(tmp_path / "model.mliap")
    assert [path.name for path in tmp_path.iterdir()] == ["model.mliap"]
    again = pickle.loads((tmp_path / "model.mliap").read_bytes())
    assert again.interface is None
    assert again.potential.config == potential.config
    assert torch.equal(again.potential(batch).forces, potential(batch).forces)
    torch.save(unified, tmp_path / "model.pt")
    loaded = torch.load(tmp_path / "model.pt", weights_only=False)
    assert torch.equal(loaded.potential(batch).forces, potential(batch).forces)


def test_refusals(tmp_path):
    with pytest.raises(ModelError, match="ZBL window"):
        Unified(random_potential(OPTION_SETS["zbl"]))
    with pytest.raises(ModelError, match="charge and spin"):
        Unified(random_potential(FILE_SETS["charge_spin"]))
    unified = Unified(random_potential(OPTION_SETS["neo"]))
    with pytest.raises(ConfigError, match=r"\.mliap"):
        unified.save(tmp_path / "model.pt")
    with pytest.raises(ModelError, match="'other'"):
        unified.__setstate__({"format": "other"})
    data = Ranks(molecule(), unified.cutoff, [0] * 6).ranks[0]
    data.elems[2] = -1
    with pytest.raises(DataError, match="NULL"):
        unified.compute_forces(data)
