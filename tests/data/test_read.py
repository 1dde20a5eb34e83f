"""Every format gives the structures and labels that its own library reads or wrote."""

from __future__ import annotations

from pathlib import Path

import dpdata
import h5py
import lmdb
import numpy as np
import pytest
from ase.db import connect
from ase.io import write
from ase.io.trajectory import Trajectory
from labelled import crystal, label, mixed, mptrj

from dpa4sim.data.frame import LabelKeys
from dpa4sim.data.read import read_entries, read_frames
from dpa4sim.errors import DataError

DIGITS = 1e-7
"""extxyz has eight decimals."""

DATA = Path(__file__).parents[3] / "shared" / "data"


def assert_same(frames, images, rtol=1e-12, atol=DIGITS, stress=True):
    frames = list(frames)
    assert len(frames) == len(images)
    for frame, atoms in zip(frames, images, strict=True):
        close = {"rtol": rtol, "atol": atol}
        assert frame.system.atomic_numbers.tolist() == atoms.numbers.tolist()
        np.testing.assert_allclose(frame.system.positions, atoms.positions, **close)
        np.testing.assert_allclose(frame.system.cell[0], atoms.cell.array, **close)
        assert frame.system.pbc[0].tolist() == atoms.pbc.tolist()
        assert frame.energy == pytest.approx(atoms.get_potential_energy(), rel=rtol, abs=atol)
        np.testing.assert_allclose(frame.forces, atoms.get_forces(), **close)
        if stress and atoms.pbc.all():
            np.testing.assert_allclose(frame.stress, atoms.get_stress(voigt=False), **close)
        else:
            assert frame.stress is None


def deepmd_system(folder, images, virial=True, **parts):
    """Write one DeePMD npy system by hand, two sets of it."""
    types = {"Cu": 0, "Al": 1}
    folder.mkdir(parents=True)
    (folder / "type_map.raw").write_text("Cu\nAl\n")
    symbols = images[0].get_chemical_symbols()
    (folder / "type.raw").write_text("\n".join(str(types[s]) for s in symbols))
    half = len(images) // 2
    for k, some in enumerate((images[:half], images[half:])):
        path = folder / f"set.{k:03d}"
        path.mkdir()
        arrays = {
            "coord": [a.positions.ravel() for a in some],
            "box": [a.cell.array.ravel() for a in some],
            "energy": [a.get_potential_energy() for a in some],
            "force": [a.get_forces().ravel() for a in some],
        }
        if virial:
            arrays["virial"] = [-a.get_volume() * a.get_stress(voigt=False).ravel() for a in some]
        for name, rows in (arrays | parts).items():
            if rows is not None:
                np.save(path / f"{name}.npy", np.array(rows))
    return folder


def one_composition(n):
    images = [crystal(k) for k in range(n)]
    for atoms in images:
        atoms.numbers = [29, 13, 13, 29]
    return [label(atoms) for atoms in images]


def test_extxyz(tmp_path):
    images = mixed(6)
    write(tmp_path / "a.extxyz", images)
    frames = list(read_frames(tmp_path / "a.extxyz"))
    assert_same(frames, images)
    assert (
        frames[4].where
        == f"{tmp_path}/a.extxyz#4 ({images[4].get_chemical_formula('hill')}, 4 atoms)"
    )


@pytest.mark.parametrize("key", ["REF_virial", "virial", "virials"])
def test_virial_of_extxyz_becomes_stress(tmp_path, key):
    atoms = label(crystal(1))
    bare = atoms.copy()
    bare.info[key] = -atoms.get_volume() * atoms.get_stress(voigt=False)
    write(tmp_path / "a.extxyz", bare)
    (frame,) = read_frames(tmp_path / "a.extxyz")
    np.testing.assert_allclose(frame.stress, atoms.get_stress(voigt=False), atol=DIGITS)


def test_named_keys_come_before_the_usual_ones(tmp_path):
    atoms = label(crystal(1))
    atoms.info |= {"REF_energy": -1.0, "dft_energy": -2.0}
    write(tmp_path / "a.extxyz", atoms)
    energies = [
        next(read_frames(tmp_path / "a.extxyz", keys)).energy
        for keys in (None, LabelKeys(energy="dft_energy"), LabelKeys(energy="energy"))
    ]
    assert energies == [-1.0, -2.0, pytest.approx(atoms.get_potential_energy())]


@pytest.mark.parametrize("key", ["config_type", "head", "subset"])
def test_subset_of_extxyz(tmp_path, key):
    atoms = label(crystal(1))
    atoms.info[key] = "PubChem"
    write(tmp_path / "a.extxyz", atoms)
    assert next(read_frames(tmp_path / "a.extxyz")).subset == "PubChem"
    assert next(read_frames(tmp_path / "a.extxyz", subset="mine")).subset == "mine"


@pytest.mark.parametrize("name", ["a.db", "a.aselmdb"])
def test_ase_databases(tmp_path, name, monkeypatch):
    monkeypatch.setattr("dpa4sim.adapters.files.ROWS_PER_PAGE", 4)
    images = mixed(10)
    with connect(tmp_path / name) as database:
        for atoms in images:
            database.write(atoms)
    if name == "a.db":
        connect(tmp_path / name).delete([3])
        del images[2]
    assert_same(read_frames(tmp_path / name), images)


def test_ase_trajectory(tmp_path):
    images = mixed(4)
    with Trajectory(tmp_path / "a.traj", "w") as file:
        for atoms in images:
            file.write(atoms)
    assert_same(read_frames(tmp_path / "a.traj"), images)


@pytest.mark.parametrize("virial", [True, False])
def test_deepmd_npy(tmp_path, virial):
    images = one_composition(5)
    folder = deepmd_system(tmp_path / "system", images, virial)
    frames = list(read_frames(folder))
    assert_same(frames, images, stress=virial)
    assert [frame.name for frame in frames] == list("01234")
    library = dpdata.LabeledSystem(str(folder), fmt="deepmd/npy")
    np.testing.assert_allclose([f.energy for f in frames], library["energies"])
    np.testing.assert_allclose([f.forces for f in frames], library["forces"])
    np.testing.assert_allclose([f.system.positions for f in frames], library["coords"])


def test_deepmd_stress_file_is_stress(tmp_path):
    images = one_composition(4)
    folder = deepmd_system(tmp_path / "system", images, virial=False)
    for k in (0, 1):
        some = images[2 * k : 2 * k + 2]
        stress = [a.get_stress(voigt=False).ravel() for a in some]
        np.save(folder / f"set.{k:03d}" / "stress.npy", stress)
    assert_same(read_frames(folder), images)


def test_deepmd_nopbc_is_open(tmp_path):
    folder = deepmd_system(tmp_path / "system", one_composition(2))
    (folder / "nopbc").touch()
    for frame in read_frames(folder):
        assert not frame.system.pbc.any()
        assert float(frame.system.volume) == 0
        assert frame.stress is None


@pytest.mark.parametrize("fmt", ["deepmd/npy", "deepmd/npy/mixed", "deepmd/hdf5", "deepmd/lmdb"])
def test_what_dpdata_writes(tmp_path, fmt):
    """Several compositions; dpdata sorts them by composition, so frames are matched by energy."""
    images = [label(crystal(k)) for k in range(8)]
    systems = dpdata.MultiSystems(*(dpdata.LabeledSystem(a, fmt="ase/structure") for a in images))
    out = tmp_path / ("a" + {"hdf5": ".hdf5", "lmdb": ".lmdb"}.get(fmt[7:], ""))
    wide = {} if fmt.endswith(("hdf5", "lmdb")) else {"prec": np.float64}
    systems.to(fmt, str(out), **wide)
    frames = sorted(read_frames(out), key=lambda frame: frame.energy)
    images = sorted(images, key=lambda atoms: atoms.get_potential_energy())
    assert len(frames) == len(images)
    for frame, atoms in zip(frames, images, strict=True):
        assert sorted(frame.system.atomic_numbers.tolist()) == sorted(atoms.numbers.tolist())
        assert frame.energy == pytest.approx(atoms.get_potential_energy(), rel=1e-12)
        norms = [np.sort(np.linalg.norm(f, axis=1)) for f in (frame.forces, atoms.get_forces())]
        np.testing.assert_allclose(*norms, rtol=1e-5)
        assert float(frame.system.volume) == pytest.approx(atoms.get_volume(), rel=1e-6)
        pressure = [np.trace(s) for s in (frame.stress, atoms.get_stress(voigt=False))]
        assert pressure[0] == pytest.approx(pressure[1], rel=1e-5, abs=1e-9)
        assert frame.dtype == "float64"


def test_one_system_of_an_hdf5_file(tmp_path):
    images = one_composition(3)
    folder = deepmd_system(tmp_path / "system", images)
    with h5py.File(tmp_path / "a.hdf5", "w") as file:
        for group in ("first", "second/inner"):
            node = file.create_group(group)
            node["type.raw"] = np.loadtxt(folder / "type.raw", int)
            node["type_map.raw"] = np.array([b"Cu", b"Al"])
            for path in sorted(folder.glob("set.*/*.npy")):
                node[f"{path.parent.name}/{path.name}"] = np.load(path)
    assert_same(read_frames(f"{tmp_path}/a.hdf5#/second/inner"), images)
    assert_same(read_frames(tmp_path / "a.hdf5"), images * 2)
    with pytest.raises(DataError, match="no group /third"):
        list(read_frames(f"{tmp_path}/a.hdf5#/third"))


def test_places_without_an_atom_are_left_out(tmp_path):
    images = one_composition(2)
    folder = deepmd_system(tmp_path / "system", images)
    for k in (0, 1):
        np.save(folder / f"set.{k:03d}" / "real_atom_types.npy", np.array([[0, 1, 1, -1]]))
    for frame, atoms in zip(read_frames(folder), images, strict=True):
        assert frame.system.atomic_numbers.tolist() == [29, 13, 13]
        np.testing.assert_allclose(frame.forces, atoms.get_forces()[:3])


def test_mptrj(tmp_path):
    images = [label(crystal(k)) for k in range(5)]
    (tmp_path / "MPtrj.json").write_text(mptrj(images))
    by_material = images[::2] + images[1::2]
    frames = list(read_frames(tmp_path / "MPtrj.json"))
    assert_same(frames, by_material, rtol=1e-9)
    assert [frame.name for frame in frames][:2] == ["mp-0/mp-0-0-0", "mp-0/mp-0-0-2"]
    corrected = list(
        read_frames(tmp_path / "MPtrj.json", LabelKeys(energy="corrected_total_energy"))
    )
    for frame, other in zip(frames, corrected, strict=True):
        assert other.energy == pytest.approx(frame.energy - 1.0)


def test_a_folder_is_searched(tmp_path):
    images = one_composition(4)
    deepmd_system(tmp_path / "deep" / "er" / "system", images)
    write(tmp_path / "z.extxyz", images)
    (tmp_path / "notes.txt").write_text("no data")
    assert_same(read_frames(tmp_path), images * 2)


def test_files_are_streamed(tmp_path):
    """The first frame is there before the last one is read: the file's end is broken."""
    write(tmp_path / "a.extxyz", mixed(3))
    with (tmp_path / "a.extxyz").open("a") as file:
        file.write("nonsense\n")
    entries = list(read_entries(tmp_path / "a.extxyz"))
    assert [isinstance(entry, DataError) for entry in entries] == [False] * 3 + [True]
    assert "expected the number of atoms" in str(entries[3])


BROKEN = {
    "rows": ({"force": np.zeros((1, 12))}, "force.npy has the shape (1, 12), wanted is (2, 12)"),
    "width": ({"force": np.zeros((2, 9))}, "force.npy has the shape (2, 9), wanted is (2, 12)"),
    "nan": ({"energy": np.array([np.nan, 1])}, "its energy label is not finite"),
    "box": ({"box": None}, "it has no box.npy"),
    "coord": ({"coord": None}, "it has no coord.npy"),
}


@pytest.mark.parametrize("kind", BROKEN)
def test_broken_npy_is_named(tmp_path, kind):
    parts, sentence = BROKEN[kind]
    folder = deepmd_system(tmp_path / "system", one_composition(4), **parts)
    with pytest.raises(DataError) as caught:
        list(read_frames(folder))
    assert sentence in str(caught.value)
    assert str(folder) in str(caught.value)


def test_cut_npy_is_named(tmp_path):
    folder = deepmd_system(tmp_path / "system", one_composition(4))
    file = folder / "set.001" / "force.npy"
    file.write_bytes(file.read_bytes()[:-8])
    entries = list(read_entries(folder))
    assert [isinstance(entry, DataError) for entry in entries] == [False, False, True]
    assert f"{folder}/set.001" in str(entries[2])


@pytest.mark.parametrize(
    ("words", "sentence"),
    [("Cu\nXx\n", "'Xx' in type_map.raw is no chemical symbol"), ("Cu\n", "has atom type 1")],
)
def test_type_map_that_does_not_fit(tmp_path, words, sentence):
    folder = deepmd_system(tmp_path / "system", one_composition(2))
    (folder / "type_map.raw").write_text(words)
    with pytest.raises(DataError, match=sentence):
        list(read_frames(folder))


def test_other_lmdb_is_refused(tmp_path):
    with lmdb.open(str(tmp_path / "a.lmdb")) as environment, environment.begin(write=True) as t:
        t.put(b"0", b"1")
    with pytest.raises(DataError, match="no DeePMD LMDB"):
        list(read_frames(tmp_path / "a.lmdb"))


def test_cut_mptrj_keeps_what_came_before(tmp_path):
    text = mptrj([label(crystal(k)) for k in range(4)])
    (tmp_path / "a.json").write_text(text[: int(0.8 * len(text))])
    entries = list(read_entries(tmp_path / "a.json"))
    assert [isinstance(entry, DataError) for entry in entries] == [False, False, True]
    assert "a.json cannot be read to its end" in str(entries[2])


def test_nothing_to_read(tmp_path):
    with pytest.raises(DataError, match="There is no file"):
        read_entries(tmp_path / "no.extxyz")
    with pytest.raises(DataError, match="holds no labelled data"):
        read_entries(tmp_path)
    (tmp_path / "empty.extxyz").touch()
    with pytest.raises(DataError, match="empty"):
        list(read_frames(tmp_path / "empty.extxyz"))


@pytest.mark.parametrize(
    ("name", "frames", "dtype"), [("water", 400, "float32"), ("nio_spin", 151, "float64")]
)
def test_real_deepmd_sets(name, frames, dtype):
    if not (DATA / name).is_dir():
        pytest.skip(f"the {name} set is not beside this checkout")
    found = list(read_frames(DATA / name))
    assert len(found) == frames
    assert {frame.dtype for frame in found} == {dtype}
    library = dpdata.LabeledSystem(str(DATA / name / "data_1"), fmt="deepmd/npy")
    mine = [frame for frame in found if frame.source.endswith("data_1")]
    np.testing.assert_array_equal([f.energy for f in mine], library["energies"])
    np.testing.assert_array_equal([f.forces for f in mine], library["forces"])
