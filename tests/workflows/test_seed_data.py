"""The seed recipe: same seed, same structures; splits by compound; perturbations as stated."""

import importlib
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from ase import Atoms
from ase.build import bulk
from ase.io import read

WORKFLOWS = Path(__file__).parents[2] / "workflows"
CRYSTALS = Path(__file__).parents[2] / "dpa4sim" / "crystals" / "experimental.extxyz"
EXACT = 1e-10  # the same arithmetic twice, or one multiplication apart


@pytest.fixture(scope="module")
def seed_data() -> Iterator[ModuleType]:
    sys.path.insert(0, str(WORKFLOWS))
    yield importlib.import_module("seed_data")
    sys.path.remove(str(WORKFLOWS))


@pytest.fixture(scope="module")
def compounds(seed_data: ModuleType) -> list:
    return seed_data.seed_compounds(0)


@pytest.fixture
def salt() -> Atoms:
    return bulk("NaCl", "rocksalt", 5.64, cubic=True)


def test_compounds_are_a_function_of_the_seed(seed_data: ModuleType, compounds: list) -> None:
    again = seed_data.seed_compounds(0)
    assert [c.label for c in again] == [c.label for c in compounds]
    for first, second in zip(compounds[::50], again[::50], strict=True):
        np.testing.assert_array_equal(first.atoms.positions, second.atoms.positions)
        np.testing.assert_array_equal(first.atoms.cell[:], second.atoms.cell[:])
    assert [c.label for c in seed_data.seed_compounds(1)] != [c.label for c in compounds]


def test_labels_are_unique_and_elements_are_many(seed_data: ModuleType, compounds: list) -> None:
    labels = [compound.label for compound in compounds]
    assert len(set(labels)) == len(labels) > 500
    assert len(seed_data.elements_of(compounds)) >= 25


def test_splits_are_about_90_5_5(compounds: list) -> None:
    share = {
        split: np.mean([compound.split == split for compound in compounds])
        for split in ("train", "valid", "test")
    }
    assert sum(share.values()) == pytest.approx(1.0)
    assert 0.03 < share["valid"] < 0.08
    assert 0.03 < share["test"] < 0.08


def test_every_demo_crystal_is_in_the_training_split(
    seed_data: ModuleType, compounds: list
) -> None:
    splits = {compound.label: compound.split for compound in compounds}
    for atoms in read(CRYSTALS, ":"):
        label = seed_data.compound_label(atoms.info["prototype"], atoms)
        assert splits[label] == "train"


def test_starting_cells_are_sensible(seed_data: ModuleType, compounds: list) -> None:
    contacts = np.array([seed_data.shortest_contact(c.atoms) for c in compounds])
    assert contacts.min() > 0.5
    assert contacts.max() < 1.5
    assert all(compound.atoms.cell.volume > 0 for compound in compounds)


def test_scale_volume(seed_data: ModuleType, salt: Atoms) -> None:
    grown = seed_data.scale_volume(salt, 0.1)
    assert grown.get_volume() == pytest.approx(1.1 * salt.get_volume(), rel=EXACT)
    np.testing.assert_allclose(grown.get_scaled_positions(), salt.get_scaled_positions())


def test_random_strain_is_symmetric_and_bounded(seed_data: ModuleType, salt: Atoms) -> None:
    strained = seed_data.random_strain(salt, np.random.default_rng(0), 0.05)
    deformation = np.linalg.solve(salt.cell[:], strained.cell[:]) - np.eye(3)
    np.testing.assert_allclose(deformation, deformation.T, atol=EXACT)
    assert 0 < np.abs(deformation).max() <= 0.05


def test_rattle_has_the_stated_width(seed_data: ModuleType, salt: Atoms) -> None:
    large = salt.repeat(6)
    moved = seed_data.rattle(large, np.random.default_rng(0), 0.1)
    # 5184 components: the standard error of the width is 1 %
    assert (moved.positions - large.positions).std() == pytest.approx(0.1, rel=0.05)


def test_squeeze_pair_shortens_one_contact(seed_data: ModuleType, salt: Atoms) -> None:
    squeezed = seed_data.squeeze_pair(salt, np.random.default_rng(0), 0.7)
    before, after = seed_data.shortest_contact(salt), seed_data.shortest_contact(squeezed)
    assert after == pytest.approx(0.7 * before, rel=1e-6)
    moved = np.linalg.norm(squeezed.positions - salt.positions, axis=1) > EXACT
    assert moved.sum() == 2


def test_swap_exchanges_two_elements(seed_data: ModuleType, salt: Atoms) -> None:
    swapped = seed_data.swap_species(salt, np.random.default_rng(0))
    assert (swapped.numbers != salt.numbers).sum() == 2
    assert sorted(swapped.numbers) == sorted(salt.numbers)


def test_perturbed_frames(seed_data: ModuleType) -> None:
    primitive = bulk("NaCl", "rocksalt", 5.64)
    frames = seed_data.perturbed_frames(primitive, np.random.default_rng(3))
    again = seed_data.perturbed_frames(primitive, np.random.default_rng(3))
    kinds = [frame.info["kind"] for frame in frames]
    assert kinds == [frame.info["kind"] for frame in again]
    assert len(set(kinds)) == len(kinds) >= 10
    for frame, copy in zip(frames, again, strict=True):
        np.testing.assert_array_equal(frame.positions, copy.positions)
        assert 1 <= len(frame) <= seed_data.MAX_ATOMS
        assert seed_data.shortest_contact(frame) > seed_data.MIN_CONTACT
    assert max(len(frame) for frame in frames) > len(primitive)


def test_a_broken_frame_is_dropped(seed_data: ModuleType) -> None:
    crushed = bulk("NaCl", "rocksalt", 2.2)
    assert not seed_data.perturbed_frames(crushed, np.random.default_rng(0))


def test_decoration_scales_to_the_new_radii(seed_data: ModuleType) -> None:
    archetype = next(c for c in seed_data.read_table() if c.name == "Halite")
    small = seed_data.decorate(archetype, ("Li", "F"))
    large = seed_data.decorate(archetype, ("Cs", "I"))
    a_small, a_large = (np.cbrt(4 * atoms.get_volume()) for atoms in (small, large))
    assert a_small == pytest.approx(4.03, rel=0.1)  # LiF, measured
    assert a_large == pytest.approx(7.6, rel=0.1)  # CsI in the rocksalt form, from theory
