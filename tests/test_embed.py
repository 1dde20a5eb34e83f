"""Embeddings: laws, and the file of them."""

from pathlib import Path

import h5py
import numpy as np
import pytest
import torch
from ase.build import bulk, molecule
from ase.io import read, write
from models import BASE, crystal, dimer, largest, random_potential, rotated, rotation_matrix
from models import molecule as six_atoms

from dpa4sim.batch import Batch
from dpa4sim.embed import write_embeddings
from dpa4sim.errors import ConfigError, DataError

TOLERANCE = 1e-11
"""Sums of a few numbers around 1 in another order."""

DATASETS = ("descriptor", "atomic_feature", "structural_feature", "atom_types", "frames")


@pytest.fixture(scope="module")
def potential():
    return random_potential(BASE)


def set_of(path: Path, sizes=(2, 4, 2, 2, 4)) -> list:
    """Shaken crystals of two sizes in one file."""
    frames = []
    for seed, size in enumerate(sizes):
        atoms = bulk("Si", "diamond", a=5.4) * (1, 1, size // 2)
        atoms.numbers[0] = 8
        atoms.rattle(0.1, seed=seed)
        frames.append(atoms)
    write(path, frames)
    return read(path, ":")  # with the digits of the file


def test_energy_is_read_from_the_last_hidden_layer(potential):
    """What the name promises: one matrix more, and the atomic energies are there."""
    batch = Batch.concatenate([six_atoms(), crystal()])
    found = potential.embed(batch)
    species = potential._species_of[batch.atomic_numbers]
    energies = (found.atomic_feature @ potential.model.head.out)[:, 0]
    energies = energies + potential.model.energy_shift[species]
    prediction = potential.evaluate(batch, descriptors=True)
    assert largest(energies - prediction.atomic_energies) < TOLERANCE
    assert largest(found.descriptor - prediction.descriptors) < TOLERANCE


def test_structure_is_the_sum_of_its_atoms(potential):
    found = potential.embed([six_atoms(), crystal()])
    assert found.structural_feature.shape == (2, found.atomic_feature.shape[1])
    for system, atoms in ((0, slice(0, 6)), (1, slice(6, 10))):
        total = found.atomic_feature[atoms].sum(0)
        assert largest(found.structural_feature[system] - total) < TOLERANCE


def test_invariant(potential):
    one = crystal()
    turned = potential.embed(rotated(one, rotation_matrix()))
    straight = potential.embed(one)
    assert largest(turned.atomic_feature - straight.atomic_feature) < TOLERANCE
    assert largest(turned.structural_feature - straight.structural_feature) < TOLERANCE


def test_bad_structure_is_named(potential):
    with pytest.raises(DataError, match=r"Structure 1 .*does not know the element\(s\) Au"):
        potential.embed([six_atoms(), dimer(2.0, (79, 79))])


@pytest.mark.parametrize("batch_atoms", [1, 5, 2000])
def test_file_holds_each_structure_in_its_place(batch_atoms, potential, tmp_path):
    frames = set_of(tmp_path / "set.extxyz")
    groups = write_embeddings(
        potential, tmp_path / "set.extxyz", tmp_path / "out.hdf5", batch_atoms=batch_atoms
    )
    assert groups == {"set.extxyz-2-atoms": 3, "set.extxyz-4-atoms": 2}
    seen = []
    with h5py.File(tmp_path / "out.hdf5") as file:
        assert list(file.attrs["type_map"]) == list(BASE.species)
        assert set(file) == set(groups)
        for name, group in file.items():
            assert group.attrs["nframes"] == groups[name]
            assert group.attrs["system"] == str(tmp_path / "set.extxyz")
            assert set(group) == set(DATASETS)
            for row, frame in enumerate(group["frames"][:]):
                expected = potential.embed(frames[frame])
                assert largest(torch.tensor(group["descriptor"][row]) - expected.descriptor) < 1e-10
                feature = torch.tensor(group["structural_feature"][row])
                assert largest(feature - expected.structural_feature[0]) < 1e-10
                kinds = [BASE.species[kind] for kind in group["atom_types"][row]]
                assert kinds == frames[frame].get_chemical_symbols()
                seen.append(int(frame))
    assert sorted(seen) == list(range(5))


def test_single_size_and_equal_names(potential, tmp_path):
    """A source of one size keeps its name, as DeePMD-kit's; equal names are numbered."""
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        set_of(tmp_path / folder / "set.extxyz", sizes=(2, 2))
    paths = [tmp_path / folder / "set.extxyz" for folder in ("a", "b")]
    groups = write_embeddings(potential, paths, tmp_path / "out.h5")
    assert groups == {"set.extxyz": 2, "set.extxyz_1": 2}
    with h5py.File(tmp_path / "out.h5") as file:
        assert file["set.extxyz_1"].attrs["system"] == str(paths[1])
        first, second = (file[f"{name}/descriptor"][()] for name in groups)
        np.testing.assert_allclose(first, second, rtol=0, atol=1e-12)  # other rows of a product


def test_structures_without_labels_will_do(potential, tmp_path):
    write(tmp_path / "quartz.cif", bulk("Si", "diamond", a=5.4))
    groups = write_embeddings(potential, tmp_path / "quartz.cif", tmp_path / "out.h5")
    assert groups == {"quartz.cif": 1}


def test_precision_of_the_file_is_that_of_the_model(tmp_path):
    set_of(tmp_path / "set.extxyz", sizes=(2,))
    single = random_potential(BASE, dtype="float32")
    write_embeddings(single, tmp_path / "set.extxyz", tmp_path / "out.h5")
    with h5py.File(tmp_path / "out.h5") as file:
        kinds = {name: file["set.extxyz"][name].dtype for name in DATASETS}
    assert kinds["descriptor"] == kinds["structural_feature"] == np.float32
    assert kinds["atom_types"] == np.int32


def test_nothing_is_left_of_a_file_that_failed(potential, tmp_path):
    frames = set_of(tmp_path / "set.extxyz")
    write(tmp_path / "set.extxyz", [*frames, molecule("HCl")])
    (tmp_path / "out.h5").write_text("of yesterday")
    with pytest.raises(DataError, match=r"set.extxyz#5 .*does not know the element\(s\) H, Cl"):
        write_embeddings(potential, tmp_path / "set.extxyz", tmp_path / "out.h5", batch_atoms=2)
    assert (tmp_path / "out.h5").read_text() == "of yesterday"
    assert {path.name for path in tmp_path.iterdir()} == {"set.extxyz", "out.h5"}


def test_bad_requests(potential, tmp_path):
    set_of(tmp_path / "set.extxyz")
    with pytest.raises(ConfigError, match="batch_atoms = 0"):
        write_embeddings(potential, tmp_path / "set.extxyz", tmp_path / "out.h5", batch_atoms=0)
    with pytest.raises(DataError, match=r"There is no file or folder .*nothing"):
        write_embeddings(potential, tmp_path / "nothing", tmp_path / "out.h5")
