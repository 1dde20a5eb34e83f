"""A store gives back what was put in, whatever the order, and is whole or not there."""

from __future__ import annotations

import os
import pickle
import resource
import signal
import time
import tracemalloc
from dataclasses import replace

import h5py
import numpy as np
import pytest
import torch
from ase.io import write
from labelled import crystal, label, mixed
from toy import LennardJones

from dpa4sim.adapters.ase import from_atoms
from dpa4sim.data import store as store_module
from dpa4sim.data import writer
from dpa4sim.data.frame import frame
from dpa4sim.data.read import read_entries, read_frames
from dpa4sim.data.sampler import EdgeBudget
from dpa4sim.data.store import Store
from dpa4sim.data.writer import StoreWriter, write_store
from dpa4sim.edges import neighbors
from dpa4sim.errors import DataError


def frames_of(images, **rest):
    return [
        frame(from_atoms(atoms), labels_of(atoms), source="made", name=str(k), **rest)
        for k, atoms in enumerate(images)
    ]


def labels_of(atoms):
    own = atoms.calc.results
    return {name: own.get(name) for name in ("energy", "forces", "stress")}


@pytest.fixture(scope="module")
def made():
    return frames_of(mixed(30))


@pytest.fixture
def frames(made):
    return list(made)


@pytest.fixture
def path(tmp_path):
    return tmp_path / "a.h5"


@pytest.fixture
def small_blocks(monkeypatch):
    """So that thirty frames are several blocks of everything."""
    monkeypatch.setattr(writer, "ATOMS_PER_BLOCK", 13)
    monkeypatch.setattr(writer, "BYTES_PER_COPY", 100)
    monkeypatch.setattr(store_module, "FRAMES_PER_BLOCK", 7)


def assert_batch(batch, frames):
    """To the last bit: nothing is computed between."""
    n_atoms = [len(f.system.positions) for f in frames]
    assert batch.batch.n_atoms.tolist() == n_atoms
    for name in ("positions", "atomic_numbers", "cell", "pbc"):
        expected = torch.cat([getattr(f.system, name) for f in frames])
        assert torch.equal(getattr(batch.batch, name), expected), name
    assert batch.batch.system_idx.tolist() == np.repeat(range(len(frames)), n_atoms).tolist()
    absent = np.full((3, 3), np.nan)
    stress = [absent if f.stress is None else f.stress for f in frames]
    np.testing.assert_array_equal(batch.stress, stress)
    energy = [np.nan if f.energy is None else f.energy for f in frames]
    np.testing.assert_array_equal(batch.energy, energy)
    forces = [
        np.full((n, 3), np.nan) if f.forces is None else f.forces
        for f, n in zip(frames, n_atoms, strict=True)
    ]
    np.testing.assert_array_equal(batch.forces, np.concatenate(forces))
    for tensor in (batch.energy, batch.forces, batch.stress, batch.batch.positions):
        assert tensor.dtype == torch.float64


@pytest.mark.parametrize("order", ["ascending", "shuffled", "repeated", "one", "reversed"])
def test_a_batch_is_its_frames(path, frames, small_blocks, order):
    frames[4] = replace(frames[4], energy=None)
    frames[7] = replace(frames[7], forces=None)
    assert write_store(path, frames) == 30
    rng = np.random.default_rng(0)
    rows = {
        "ascending": np.arange(30),
        "shuffled": rng.permutation(30)[:17],
        "repeated": np.array([7, 4, 7, 0, 29, 4]),
        "one": np.array([29]),
        "reversed": np.arange(29, -1, -1),
    }[order]
    store = Store(path)
    batch = store.batch(rows)
    assert batch.frame.tolist() == rows.tolist()
    assert_batch(batch, [frames[row] for row in rows])
    assert len(store) == 30
    assert store.species == ("H", "Al", "Cu")
    assert np.flatnonzero(~store.has("energy")).tolist() == [4]
    assert np.flatnonzero(~store.has("forces")).tolist() == [7]
    assert store.has("stress").tolist() == [f.stress is not None for f in frames]


def test_frames_come_back_as_frames(path, frames, small_blocks):
    frames = [replace(f, subset="odd" if k % 2 else "even") for k, f in enumerate(frames)]
    write_store(path, frames)
    again = list(read_frames(path))
    for ours, theirs in zip(again, frames, strict=True):
        assert (ours.where, ours.subset, ours.energy) == (
            theirs.where,
            theirs.subset,
            theirs.energy,
        )
        np.testing.assert_array_equal(ours.forces, theirs.forces)
    store = Store(path)
    assert [store.subsets[k] for k in store.subset_of] == [f.subset for f in frames]
    assert [store.where(row) for row in (0, 29)] == [frames[0].where, frames[29].where]


@pytest.mark.parametrize("cutoff", [3.0, 6.0])
def test_edges_are_those_of_the_search(path, frames, small_blocks, cutoff):
    """At the cutoff of the conversion and at another, counted later and kept."""
    write_store(path, frames, cutoff=6.0)
    expected = [neighbors(f.system, cutoff) for f in frames]
    for _ in range(2):
        assert Store(path).n_edges(cutoff).tolist() == [e.n_edges for e in expected]
    shortest = [
        float(e.vector.norm(dim=1).min()) for e in (neighbors(f.system, 6.0) for f in frames)
    ]
    np.testing.assert_allclose(Store(path).min_distance, shortest, rtol=1e-6)


def test_a_count_of_other_data_is_not_taken(path, frames):
    write_store(path, frames)
    before = Store(path).n_edges(4.0)
    write_store(path, frames[::-1])
    assert Store(path).n_edges(4.0).tolist() == before.tolist()[::-1]


def test_the_hash_is_of_the_data_alone(tmp_path, frames, monkeypatch):
    """Not of blocks, names, sources and storage; but of every number, label and subset."""

    def digest(some, blocks=4096):
        monkeypatch.setattr(writer, "ATOMS_PER_BLOCK", blocks)
        write_store(tmp_path / "x.h5", some)
        return Store(tmp_path / "x.h5").content_hash

    reference = digest(frames)
    assert digest(frames, blocks=9) == reference
    assert digest([replace(f, source="other", name="9", where="?") for f in frames]) == reference
    write_store(tmp_path / "y.h5", frames)
    assert digest(list(read_frames(tmp_path / "y.h5"))) == reference
    first, system = frames[0], frames[0].system
    moved = system.positions.clone()
    moved[0, 0] += 1e-12
    changes = [
        replace(first, energy=first.energy + 1e-9),
        replace(first, energy=None),
        replace(first, forces=None),
        replace(first, stress=None),
        replace(first, forces=-first.forces),
        replace(first, stress=-first.stress),
        replace(first, subset="x"),
        replace(first, system=replace(system, positions=moved)),
        replace(first, system=replace(system, cell=system.cell + 1e-12)),
        replace(first, system=replace(system, pbc=~system.pbc)),
        replace(first, system=replace(system, charge=torch.ones(1, dtype=torch.float64))),
    ]
    hashes = {digest([changed, *frames[1:]]) for changed in changes}
    assert len(hashes | {reference}) == len(changes) + 1
    assert digest(frames[::-1]) != reference


def test_precision_is_kept(tmp_path, frames, small_blocks):
    single = [
        replace(
            f,
            system=replace(f.system, positions=f.system.positions.float().double()),
            forces=np.float64(np.float32(f.forces)),
            dtype="float32",
        )
        for f in frames
    ]
    write_store(tmp_path / "single.h5", single)
    write_store(tmp_path / "both.h5", [*frames[:15], *single[15:]])
    for name, dtype, expected in (
        ("single.h5", "float32", single),
        ("both.h5", "float64", [*frames[:15], *single[15:]]),
    ):
        store = Store(tmp_path / name)
        assert store.dtype == dtype
        assert_batch(store.batch(range(30)), expected)


def test_charge_and_spin_are_all_or_nothing(path, frames):
    charged = [
        replace(f, system=replace(f.system, charge=torch.tensor([float(k)], dtype=torch.float64)))
        for k, f in enumerate(frames)
    ]
    write_store(path, charged)
    assert Store(path).batch([3, 1]).batch.charge.tolist() == [3.0, 1.0]
    assert Store(path).batch([3, 1]).batch.spin is None
    write_store(path, [*charged[:5], *frames[5:]])
    store = Store(path)
    assert store.has("charge").sum() == 5
    assert store.batch([0, 1]).batch.charge is None
    assert next(iter(read_frames(path))).system.charge is None


def test_a_store_can_be_pickled_and_forked(path, frames):
    write_store(path, frames)
    store = Store(path)
    store.batch([0])
    assert_batch(pickle.loads(pickle.dumps(store)).batch([5, 2]), [frames[5], frames[2]])
    child = os.fork()
    if child == 0:
        same = all(torch.equal(store.batch([k]).energy, store.batch([k]).energy) for k in range(30))
        os._exit(0 if same else 1)
    assert_batch(store.batch(range(30)), frames)
    assert os.waitpid(child, 0)[1] == 0


def test_a_store_closes_its_file(path, frames):
    write_store(path, frames)
    before = os.listdir("/proc/self/fd")
    store = Store(path)
    store.batch([0])
    assert len(os.listdir("/proc/self/fd")) == len(before) + 1
    del store
    assert len(os.listdir("/proc/self/fd")) == len(before)


def test_a_broken_frame_stops_the_conversion_and_leaves_nothing(tmp_path):
    images = mixed(5)
    images[3].positions[1] = images[3].positions[0]
    write(tmp_path / "a.extxyz", images)
    with pytest.raises(DataError, match=r"a\.extxyz#3 .* atoms 0 and 1 stand on one site"):
        write_store(tmp_path / "out.h5", read_entries(tmp_path / "a.extxyz"))
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.extxyz"]
    refused = []
    write_store(tmp_path / "out.h5", read_entries(tmp_path / "a.extxyz"), refuse=refused.append)
    assert len(refused) == 1
    assert_batch(
        Store(tmp_path / "out.h5").batch(range(4)),
        [f for f in read_frames(tmp_path / "a.extxyz") if "#3" not in f.where],
    )


@pytest.mark.parametrize("spoil", ["nan", "z", "flat"])
def test_unusable_structures_are_refused(path, frames, spoil):
    system = frames[3].system
    sick = {
        "nan": replace(system, positions=system.positions * np.nan),
        "z": replace(system, atomic_numbers=system.atomic_numbers * 0),
        "flat": replace(system, cell=system.cell * 0),
    }[spoil]
    frames[3] = replace(frames[3], system=sick)
    with pytest.raises(DataError, match="made#3"):
        write_store(path, frames)
    assert not path.exists()


def test_nothing_is_no_store(path):
    with pytest.raises(DataError, match="would hold no frame"):
        write_store(path, [])
    assert not path.exists()


def test_an_interrupted_conversion_keeps_the_old_store(path, frames):
    write_store(path, frames)
    before = Store(path).content_hash

    def interrupted():
        yield from frames[:9]
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_store(path, interrupted())
    assert Store(path).content_hash == before
    assert [p.name for p in path.parent.iterdir()] == ["a.h5"]


def test_a_killed_conversion_leaves_no_store(path, frames, small_blocks):
    child = os.fork()
    if child == 0:
        with StoreWriter(path) as store:
            while True:
                for each in frames:
                    store.add(each)
                time.sleep(0.01)
    folder = path.with_name(".a.h5.part")
    while not folder.exists() or not list(folder.iterdir()):
        time.sleep(0.01)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    assert folder.exists()
    assert not path.exists()
    write_store(path, frames)
    assert_batch(Store(path).batch(range(30)), frames)
    assert not folder.exists()


def test_a_full_disk_says_so(path, frames):
    limit = resource.getrlimit(resource.RLIMIT_FSIZE)
    ignored = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, limit[1]))
    try:
        with pytest.raises(DataError, match=r"a\.h5 cannot be written"):
            write_store(path, frames * 20)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limit)
        signal.signal(signal.SIGXFSZ, ignored)
    assert not path.exists()


@pytest.mark.parametrize("share", [0.1, 0.6, 0.99])
def test_a_cut_store_is_refused(path, frames, share):
    write_store(path, frames * 10)
    os.truncate(path, int(share * path.stat().st_size))
    with pytest.raises(DataError, match=r"a\.h5"):
        Store(path)


def test_what_is_no_store(tmp_path, path, frames):
    with h5py.File(tmp_path / "b.h5", "w") as file:
        file["x"] = 1
    for name in ("b.h5", "no.h5"):
        with pytest.raises(DataError, match=f"{name} cannot be opened as a store"):
            Store(tmp_path / name)
    write_store(path, frames)
    for rows, sentence in (([30], "no frame 30"), ([-1], "no frame -1"), ([], "No frame of")):
        with pytest.raises(DataError, match=sentence):
            Store(path).batch(rows)


def test_memory_stays_flat(tmp_path):
    """Five megabytes of frames go through; what stays is the index, 13 bytes per frame."""
    atoms = label(crystal(0) * (4, 4, 4))
    one = frames_of([atoms])[0]
    write_store(tmp_path / "a.h5", (one for _ in range(400)), cutoff=2.0)
    store = Store(tmp_path / "a.h5")
    assert (tmp_path / "a.h5").stat().st_size > 4e6
    sampler = EdgeBudget(store.n_edges(2.0), store.n_atoms, max_edges=1024, seed=0)
    batches = sampler.epoch(0)
    for rows in batches[:20]:
        store.batch(rows)
    tracemalloc.start()
    for rows in batches:
        store.batch(rows)
    kept, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert kept < 1e5
    assert peak < 1e6


def test_labels_agree_with_the_model_that_made_them(path, frames):
    """From the store into a model: units, signs and order are those of the engine."""
    write_store(path, frames)
    batch = Store(path).batch(np.arange(29, -1, -1))
    prediction = LennardJones()(batch.batch)
    torch.testing.assert_close(prediction.forces, batch.forces, rtol=1e-9, atol=1e-12)
    known = batch.stress.isfinite()
    torch.testing.assert_close(prediction.stress[known], batch.stress[known], rtol=1e-9, atol=1e-12)
