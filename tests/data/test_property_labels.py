"""Labels of properties: from every format, through the store, into statistics."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from ase import Atoms
from ase.build import molecule
from ase.io import write
from labelled import mixed

from dpa4sim.config import PropertyConfig
from dpa4sim.data import writer
from dpa4sim.data.frame import LabelKeys
from dpa4sim.data.read import read_entries, read_frames
from dpa4sim.data.statistics import property_statistics
from dpa4sim.data.store import Store
from dpa4sim.data.writer import write_store
from dpa4sim.errors import DataError

NAMES = ("H2O", "CH4", "CH3OH", "CO2", "H2", "C2H6")
KEYS = LabelKeys(properties=("gap",))
SPECIES = ("H", "C", "O")
RNG = np.random.default_rng(0)
SHARES = RNG.normal(size=(3, 2))
"""Of each species, so that a law can be fitted."""
EXACT = 1e-10


def labelled(intensive: bool = False, noise: float = 0.0) -> list[Atoms]:
    """Molecules whose property is a sum or a mean over species, and noise."""
    found, rng = [], np.random.default_rng(1)
    for index in range(24):
        atoms = molecule(NAMES[index % len(NAMES)])
        atoms.rattle(0.03, seed=index)
        shares = SHARES[[SPECIES.index(name) for name in atoms.get_chemical_symbols()]]
        value = shares.mean(0) if intensive else shares.sum(0)
        atoms.info["gap"] = value + noise * rng.normal(size=2)
        found.append(atoms)
    return found


def stored(path: Path, frames: list[Atoms]) -> Store:
    """A store of them."""
    write(path.with_suffix(".extxyz"), frames)
    write_store(path, read_frames(path.with_suffix(".extxyz"), KEYS), cutoff=3.0)
    return Store(path)


def deepmd(folder: Path, *, mixed_types: bool) -> np.ndarray:
    """A DeePMD system of water molecules in two sets; its labels."""
    labels = np.arange(12.0).reshape(4, 3)
    folder.mkdir()
    (folder / "type_map.raw").write_text("H\nO\n")
    (folder / "type.raw").write_text("1 0 0")
    (folder / "nopbc").write_text("")
    coord = molecule("H2O").positions.reshape(1, -1)
    for name, rows in (("set.000", slice(0, 3)), ("set.001", slice(3, 4))):
        part = folder / name
        part.mkdir()
        np.save(part / "coord.npy", np.repeat(coord, len(labels[rows]), 0))
        np.save(part / "gap.npy", labels[rows].astype(np.float32))
        if mixed_types:
            kinds = np.tile([1, 0, -1], (len(labels[rows]), 1))
            np.save(part / "real_atom_types.npy", kinds)
    return labels


@pytest.mark.parametrize("mixed_types", [True, False])
def test_deepmd_npy(mixed_types, tmp_path):
    labels = deepmd(tmp_path / "water", mixed_types=mixed_types)
    frames = list(read_frames(tmp_path / "water", KEYS))
    np.testing.assert_array_equal([frame.properties["gap"] for frame in frames], labels)
    assert [len(frame.system.positions) for frame in frames] == [3 - mixed_types] * 4
    assert all(not frame.properties for frame in read_frames(tmp_path / "water"))


def test_extxyz(tmp_path):
    frames = labelled()
    frames[0].info["gap"] = 3
    write(tmp_path / "a.extxyz", frames[:2])
    first, second = read_frames(tmp_path / "a.extxyz", KEYS)
    assert first.properties["gap"].tolist() == [3.0]
    np.testing.assert_allclose(second.properties["gap"], frames[1].info["gap"], atol=1e-8)


def test_missing_property_is_named(tmp_path):
    frames = labelled()[:2]
    del frames[1].info["gap"]
    write(tmp_path / "a.extxyz", frames)
    entries = list(read_entries(tmp_path / "a.extxyz", KEYS))
    assert not isinstance(entries[0], DataError)
    assert isinstance(entries[1], DataError)
    assert "a.extxyz#1 (CH4, 5 atoms) has no property 'gap'" in str(entries[1])


@pytest.mark.parametrize(
    ("value", "words"),
    [(np.nan, "its gap label is not finite"), ("high", "its gap label is not a number")],
)
def test_property_that_cannot_be(value, words, tmp_path):
    atoms = molecule("H2O")
    atoms.info["gap"] = value
    write(tmp_path / "a.extxyz", atoms)
    with pytest.raises(DataError, match=words):
        list(read_frames(tmp_path / "a.extxyz", KEYS))


def test_store_brings_back_every_number(tmp_path):
    frames = labelled(noise=1.0)
    store = stored(tmp_path / "a.h5", frames)
    labels = np.array([atoms.info["gap"] for atoms in frames])
    assert store.properties == {"gap": 2}
    assert store.has_property("gap").all()
    assert not store.has_property("other").any()
    order = [7, 2, 23]
    np.testing.assert_allclose(store.batch(order).properties["gap"], labels[order], atol=1e-8)
    again = list(read_frames(store.path))
    np.testing.assert_array_equal([f.properties["gap"] for f in again], store_labels(store))


def store_labels(store: Store) -> np.ndarray:
    return np.asarray(store.batch(range(len(store))).properties["gap"])


def test_frames_without_the_property_are_nan(tmp_path, monkeypatch):
    """Also where it first comes after blocks that are written already."""
    write(tmp_path / "plain.extxyz", mixed(3))
    write(tmp_path / "with.extxyz", labelled()[:2])
    plain = list(read_frames(tmp_path / "plain.extxyz"))
    known = list(read_frames(tmp_path / "with.extxyz", KEYS))
    monkeypatch.setattr(writer, "ATOMS_PER_BLOCK", 20)
    many = plain * 6  # three blocks
    write_store(tmp_path / "a.h5", [*many, *known, *plain], cutoff=3.0)
    store = Store(tmp_path / "a.h5")
    has = store.has_property("gap")
    assert has.sum() == 2
    assert has[len(many) : len(many) + 2].all()
    assert [bool(frame.properties) for frame in read_frames(store.path)] == has.tolist()


def test_other_width_is_refused(tmp_path):
    frames = labelled()[:3]
    frames[2].info["gap"] = [1.0, 2.0, 3.0]
    with pytest.raises(DataError, match=r"#2 .*'gap' has 3 numbers, and those before it have 2"):
        stored(tmp_path / "a.h5", frames)


def test_content_hash_sees_the_property_and_nothing_else(tmp_path):
    frames = labelled()
    write(tmp_path / "a.extxyz", frames)
    hashes = []
    for k, shift in enumerate((0.0, 0.0, 1.0)):
        read = list(read_frames(tmp_path / "a.extxyz", KEYS))
        read = [replace(f, properties={"gap": f.properties["gap"] + shift}) for f in read]
        write_store(tmp_path / f"{k}.h5", read, cutoff=3.0)
        hashes.append(Store(tmp_path / f"{k}.h5").content_hash)
    assert hashes[0] == hashes[1] != hashes[2]


@pytest.mark.parametrize("intensive", [True, False])
def test_statistics_find_the_shares(intensive, tmp_path):
    store = stored(tmp_path / "a.h5", labelled(intensive))
    head = PropertyConfig(name="gap", task_dim=2, intensive=intensive)
    bias, spread = property_statistics(store, np.arange(len(store)), SPECIES, head)
    np.testing.assert_allclose(bias, SHARES, atol=1e-6)  # extxyz has eight digits
    assert (spread < 1e-6).all() or (spread == 1).all()


@pytest.mark.parametrize("intensive", [True, False])
def test_spread_is_what_the_biases_leave(intensive, tmp_path):
    frames = labelled(intensive, noise=0.3)
    store = stored(tmp_path / "a.h5", frames)
    rows, labels = np.arange(5, 24), store_labels(store)[5:]
    head = PropertyConfig(name="gap", task_dim=2, intensive=intensive)
    bias, spread = property_statistics(store, rows, (*SPECIES, "Xe"), head)
    shares = [bias[[SPECIES.index(s) for s in atoms.symbols]] for atoms in frames[5:]]
    fitted = np.array([one.mean(0) if intensive else one.sum(0) for one in shares])
    np.testing.assert_allclose(spread, (labels - fitted).std(0), atol=EXACT)
    assert (spread > 0.1).all()
    assert (bias[3] == 0).all() or np.abs(bias[3]).max() < EXACT


@pytest.mark.parametrize("intensive", [True, False])
def test_one_bias_for_all(intensive, tmp_path):
    frames = labelled(intensive, noise=0.3)
    store = stored(tmp_path / "a.h5", frames)
    head = PropertyConfig(name="gap", task_dim=2, intensive=intensive, by_species=False)
    bias, spread = property_statistics(store, np.arange(24), SPECIES, head)
    each = store_labels(store) / (1 if intensive else store.n_atoms[:, None])
    np.testing.assert_allclose(bias, np.tile(each.mean(0), (3, 1)), atol=EXACT)
    np.testing.assert_allclose(spread, each.std(0), atol=EXACT)


def test_labels_that_do_not_vary_have_spread_one(tmp_path):
    frames = labelled()
    for atoms in frames:
        atoms.info["gap"] = np.array([2.0, 5.0])
    store = stored(tmp_path / "a.h5", frames)
    head = PropertyConfig(name="gap", task_dim=2, intensive=True)
    assert property_statistics(store, np.arange(24), SPECIES, head)[1].tolist() == [1.0, 1.0]


def test_other_task_dim(tmp_path):
    store = stored(tmp_path / "a.h5", labelled())
    with pytest.raises(DataError, match=r"has 2 numbers\. Set property_head\.task_dim = 2"):
        property_statistics(store, np.arange(24), SPECIES, PropertyConfig(name="gap"))
    with pytest.raises(DataError, match="no frame with the property 'other'"):
        property_statistics(store, np.arange(24), SPECIES, PropertyConfig(name="other"))
