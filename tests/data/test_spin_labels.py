"""Moments and magnetic forces: from every format, through the store, into the checks."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from ase import Atoms
from ase.io import write
from labelled import mixed
from spinning import STIFFNESS, TARGET, path_of_moments, spinning
from toy import LennardJones

from dpa4sim.data import writer
from dpa4sim.data.check import check
from dpa4sim.data.frame import LabelKeys
from dpa4sim.data.read import read_entries, read_frames
from dpa4sim.data.statistics import summary
from dpa4sim.data.store import Store
from dpa4sim.data.writer import geometry_hash, write_store
from dpa4sim.errors import DataError

DIGITS = 1e-7
"""Extxyz has eight."""


def stored(path: Path, frames: list[Atoms]) -> Store:
    write(path.with_suffix(".extxyz"), frames)
    write_store(path, read_frames(path.with_suffix(".extxyz")), cutoff=3.0)
    return Store(path)


def deepmd(folder: Path, *, mixed_types: bool) -> tuple[np.ndarray, np.ndarray]:
    """A DeePMD system of two nickel oxide pairs in two sets; its moments and magnetic forces."""
    rng = np.random.default_rng(3)
    spins, forces = rng.normal(size=(2, 5, 4, 3))
    folder.mkdir()
    (folder / "type_map.raw").write_text("Ni\nO\n")
    (folder / "type.raw").write_text("0 1 0 1")
    for name, rows in (("set.000", slice(0, 3)), ("set.001", slice(3, 5))):
        part = folder / name
        part.mkdir()
        n = len(spins[rows])
        np.save(part / "coord.npy", rng.uniform(0, 6, size=(n, 12)))
        np.save(part / "box.npy", np.tile(np.eye(3).ravel() * 6, (n, 1)))
        np.save(part / "spin.npy", spins[rows].reshape(n, 12))
        np.save(part / "force_mag.npy", forces[rows].reshape(n, 12))
        if mixed_types:
            np.save(part / "real_atom_types.npy", np.tile([0, 1, 0, -1], (n, 1)))
    return spins, forces


@pytest.mark.parametrize("mixed_types", [True, False])
def test_deepmd_npy(mixed_types, tmp_path):
    spins, forces = deepmd(tmp_path / "nio", mixed_types=mixed_types)
    frames, kept = list(read_frames(tmp_path / "nio")), slice(0, 3 if mixed_types else 4)
    np.testing.assert_array_equal([f.magmoms for f in frames], spins[:, kept])
    np.testing.assert_array_equal([f.magnetic_forces for f in frames], forces[:, kept])


def test_deepmd_hdf5(tmp_path):
    import h5py

    spins, forces = deepmd(tmp_path / "nio", mixed_types=False)
    with h5py.File(tmp_path / "nio.h5", "w") as file:
        for name in ("type_map.raw", "type.raw"):
            file[name] = np.array((tmp_path / "nio" / name).read_text().split(), "S")
        for path in (tmp_path / "nio").glob("set.*/*.npy"):
            file[f"{path.parent.name}/{path.name}"] = np.load(path)
    frames = list(read_frames(tmp_path / "nio.h5"))
    np.testing.assert_array_equal([f.magmoms for f in frames], spins)
    np.testing.assert_array_equal([f.magnetic_forces for f in frames], forces)


def test_deepmd_force_mag_without_spin(tmp_path):
    deepmd(tmp_path / "nio", mixed_types=False)
    for path in tmp_path.glob("nio/set.*/spin.npy"):
        path.unlink()
    first = next(iter(read_entries(tmp_path / "nio")))
    assert isinstance(first, DataError)
    assert "nio#0 (Ni2O2, 4 atoms) has magnetic forces and no magnetic moments" in str(first)
    assert "spin.npy" in str(first)


def test_extxyz(tmp_path):
    images = spinning(3)
    write(tmp_path / "a.extxyz", images)
    for atoms, frame in zip(images, read_frames(tmp_path / "a.extxyz"), strict=True):
        np.testing.assert_allclose(frame.magmoms, atoms.arrays["magmoms"], atol=DIGITS)
        expected = atoms.arrays["magnetic_forces"]
        np.testing.assert_allclose(frame.magnetic_forces, expected, atol=DIGITS)


def test_keys(tmp_path):
    """Named keys, the reference's names before the others, and one number to each atom along z."""
    (atoms,) = spinning(1)
    atoms.arrays["mine"] = atoms.arrays["REF_magmoms"] = 2 * atoms.arrays["magmoms"]
    atoms.arrays["field"] = 3 * atoms.arrays["magnetic_forces"]
    atoms.arrays["collinear"] = np.arange(4.0)
    write(tmp_path / "a.extxyz", atoms)
    read = lambda **keys: next(iter(read_frames(tmp_path / "a.extxyz", LabelKeys(**keys))))
    np.testing.assert_allclose(read().magmoms, atoms.arrays["mine"], atol=DIGITS)
    found = read(magmoms="magmoms", magnetic_forces="field")
    np.testing.assert_allclose(found.magmoms, atoms.arrays["magmoms"], atol=DIGITS)
    np.testing.assert_allclose(found.magnetic_forces, atoms.arrays["field"], atol=DIGITS)
    assert read(magmoms="collinear").magmoms.tolist() == [[0, 0, k] for k in range(4)]
    with pytest.raises(DataError, match=r"no 'Mag'. Its per-atom arrays: .*--magnetic-forces-key"):
        read(magnetic_forces="Mag")


def test_moments_alone_are_read_only_when_asked_for(tmp_path):
    (atoms,) = spinning(1)
    del atoms.arrays["magnetic_forces"]
    write(tmp_path / "a.extxyz", atoms)
    assert next(iter(read_frames(tmp_path / "a.extxyz"))).magmoms is None
    for keys in (LabelKeys(moments=True), LabelKeys(magmoms="magmoms")):
        (frame,) = read_frames(tmp_path / "a.extxyz", keys)
        np.testing.assert_allclose(frame.magmoms, atoms.arrays["magmoms"], atol=DIGITS)
        assert frame.magnetic_forces is None


@pytest.mark.parametrize("name", ["magmoms", "magnetic_forces"])
def test_not_finite(name, tmp_path):
    (atoms,) = spinning(1)
    atoms.arrays[name][2] = np.nan
    write(tmp_path / "a.extxyz", atoms)
    with pytest.raises(DataError, match=rf"its {name} label is not finite \(atom 2\)"):
        list(read_frames(tmp_path / "a.extxyz"))


def test_wrong_shape(tmp_path):
    (atoms,) = spinning(1)
    atoms.arrays["magnetic_forces"] = np.zeros(4)
    write(tmp_path / "a.extxyz", atoms)
    with pytest.raises(
        DataError, match=r"magnetic_forces label has the shape \(4,\). Give \(4, 3\)"
    ):
        list(read_frames(tmp_path / "a.extxyz"))


def test_store_brings_back_every_number(tmp_path):
    images = spinning(6)
    store = stored(tmp_path / "a.h5", images)
    assert store.has_spins
    assert store.has("magmoms").all()
    assert store.has("magnetic_forces").all()
    order = [4, 0, 3]
    batch = store.batch(order)
    for name, found in (
        ("magmoms", batch.batch.magmoms),
        ("magnetic_forces", batch.magnetic_forces),
    ):
        expected = np.concatenate([images[k].arrays[name] for k in order])
        np.testing.assert_allclose(found, expected, atol=DIGITS)
    again = list(read_frames(store.path))
    np.testing.assert_array_equal(
        np.concatenate([again[k].magmoms for k in order]), batch.batch.magmoms
    )
    write_store(tmp_path / "b.h5", again, cutoff=3.0)
    assert Store(tmp_path / "b.h5").content_hash == store.content_hash


def test_frames_without_spins_in_between(tmp_path, monkeypatch):
    """Also where spins first come after blocks that are written already."""
    write(tmp_path / "plain.extxyz", mixed(3))
    write(tmp_path / "with.extxyz", spinning(2))
    plain = list(read_frames(tmp_path / "plain.extxyz"))
    spins = list(read_frames(tmp_path / "with.extxyz"))
    monkeypatch.setattr(writer, "ATOMS_PER_BLOCK", 20)
    given = [*plain * 6, *spins, *plain]
    write_store(tmp_path / "a.h5", given, cutoff=3.0)
    store = Store(tmp_path / "a.h5")
    expected = [frame.magmoms is not None for frame in given]
    assert store.has("magmoms").tolist() == store.has("magnetic_forces").tolist() == expected
    batch = store.batch(range(len(given)))
    known = batch.batch.magmoms.isfinite().all(1)
    assert known.tolist() == np.repeat(expected, store.n_atoms).tolist()
    np.testing.assert_array_equal(
        batch.batch.magmoms[known], np.concatenate([f.magmoms for f in spins])
    )
    again = list(read_frames(store.path))
    assert [f.magmoms is not None for f in again] == expected
    assert [f.magnetic_forces is not None for f in again] == expected


def test_store_without_spins_is_as_it_was(tmp_path):
    """Its columns, its hash of the contents, and its batches know nothing of spins."""
    import h5py

    store = stored(tmp_path / "a.h5", mixed(5))
    with h5py.File(store.path) as file:
        assert set(file["atoms"]) == {"positions", "atomic_numbers", "forces"}
    batch = store.batch([0, 1])
    assert batch.batch.magmoms is None
    assert batch.magnetic_forces is None
    assert not store.has("magmoms").any()
    assert "magmoms" not in summary(store).coverage


def test_content_and_geometry_hashes_see_the_spins(tmp_path):
    write(tmp_path / "a.extxyz", spinning(2))
    read = list(read_frames(tmp_path / "a.extxyz"))
    turned = [replace(f, system=replace(f.system, magmoms=-f.system.magmoms)) for f in read]
    bare = [replace(f, system=replace(f.system, magmoms=None), magnetic_forces=None) for f in read]
    other = [replace(f, magnetic_forces=2 * f.magnetic_forces) for f in read]
    hashes = []
    for k, frames in enumerate((read, read, turned, bare, other)):
        write_store(tmp_path / f"{k}.h5", frames, cutoff=3.0)
        hashes.append(Store(tmp_path / f"{k}.h5").content_hash)
    assert hashes[0] == hashes[1]
    assert len(set(hashes)) == 4
    assert len({geometry_hash(frames[0].system) for frames in (read, turned, bare)}) == 3


def test_summary(tmp_path):
    images = spinning(4)
    images[1].arrays["magmoms"][0] = images[1].arrays["magnetic_forces"][0] = 0
    found = summary(stored(tmp_path / "a.h5", images))
    assert found.coverage["magmoms"] == found.coverage["magnetic_forces"] == 4
    lengths = np.linalg.norm(np.concatenate([a.arrays["magmoms"] for a in images]), axis=1)
    lengths = lengths[lengths > 0]
    moments = found.ranges["magmoms"]
    np.testing.assert_allclose(
        [moments.low, moments.mean, moments.high, moments.spread],
        [lengths.min(), lengths.mean(), lengths.max(), lengths.std()],
        atol=1e-6,
    )
    assert found.ranges["magnetic_forces"].unit == "eV/μB"


def problems(tmp_path, images):
    write(tmp_path / "a.extxyz", images)
    return check(lambda: read_entries(tmp_path / "a.extxyz"))


def test_equal_places_with_other_moments_are_no_duplicates(tmp_path):
    assert problems(tmp_path, path_of_moments(12)) == []


def test_sign_of_magnetic_forces(tmp_path):
    (problem,) = problems(tmp_path, path_of_moments(12, factor=-1.0))
    assert problem.kind == "magnetic forces label"
    assert "the magnetic forces have the opposite sign" in problem.text


class Magnet(LennardJones):
    """The model that labelled the frames."""

    magnetic_elements = frozenset({13, 29})

    def __call__(self, batch, **options):
        excess = batch.magmoms.square().sum(1) - TARGET**2
        forces = -4 * STIFFNESS * excess[:, None] * batch.magmoms
        return replace(super().__call__(batch, **options), magnetic_forces=forces)


@pytest.mark.parametrize(
    ("factor", "words"),
    [(1.0, ""), (-1.0, "the opposite sign of the model's"), (23.06, "times the model's")],
)
def test_magnetic_forces_against_a_model(factor, words, tmp_path):
    images = spinning(6)
    for atoms in images:
        atoms.arrays["magnetic_forces"] *= factor
    write(tmp_path / "a.extxyz", images)
    found = check(lambda: read_entries(tmp_path / "a.extxyz"), model=Magnet())
    said = [p.text for p in found if p.kind == "magnetic_forces label"]
    assert len(said) == bool(words)
    assert not words or words in said[0]


def test_required_labels(tmp_path):
    write(tmp_path / "a.extxyz", mixed(1))
    read = lambda: read_entries(tmp_path / "a.extxyz")
    (found,) = check(read, require=("magnetic_forces",))
    assert (
        "it has no label 'magnetic_forces'; name its key with --magnetic-forces-key" in found.text
    )


def test_deepmd_lmdb(tmp_path):
    """One record per frame, with the words of the npy files."""
    import lmdb
    import msgpack

    rng = np.random.default_rng(5)
    record = {name: rng.normal(size=(3, 3)) for name in ("coords", "cells", "spin", "force_mag")}
    record["atom_types"] = np.array([0, 1, -1])
    packed = {
        name: {"type": str(value.dtype), "shape": value.shape, "data": value.tobytes()}
        for name, value in record.items()
    }
    with lmdb.open(str(tmp_path / "a.lmdb")) as environment, environment.begin(write=True) as file:
        file.put(b"__metadata__", msgpack.packb({"type_map": ["Ni", "O"]}))
        file.put(b"000000000000", msgpack.packb(packed))
    (frame,) = read_frames(tmp_path / "a.lmdb")
    np.testing.assert_array_equal(frame.magmoms, record["spin"][:2])
    np.testing.assert_array_equal(frame.magnetic_forces, record["force_mag"][:2])
