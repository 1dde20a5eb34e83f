"""The compounds of the training set: same seed, same structures; splits by formula."""

from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from ase.io import read
from pymatgen.core import Composition

CRYSTALS = Path(__file__).parents[2] / "dpa4sim" / "crystals" / "experimental.extxyz"


@pytest.fixture(scope="module")
def seed_data(recipe: Callable[[str], ModuleType]) -> ModuleType:
    return recipe("seed_data")


@pytest.fixture(scope="module")
def compounds(seed_data: ModuleType) -> list:
    return seed_data.seed_compounds(0)


def archetype(seed_data: ModuleType, name: str):
    return seed_data.archetype_of(next(c for c in seed_data.read_table() if c.name == name))


def formula(compound) -> str:
    return compound.label.partition(":")[2]


def test_decorations_are_a_function_of_the_seed(seed_data: ModuleType, monkeypatch) -> None:
    table = [crystal for crystal in seed_data.read_table() if len(crystal.elements) > 1][::40]
    monkeypatch.setattr(seed_data, "read_table", lambda: table)
    first, again, other = (list(seed_data.decorated_compounds(seed)) for seed in (0, 0, 1))
    symbols = [str(atoms.symbols) for _, atoms in first]
    assert symbols == [str(atoms.symbols) for _, atoms in again]
    assert symbols != [str(atoms.symbols) for _, atoms in other]
    for (_, one), (_, two) in zip(first, again, strict=True):
        np.testing.assert_array_equal(one.positions, two.positions)


def test_compounds_are_many_and_unlike(seed_data: ModuleType, compounds: list) -> None:
    labels = [compound.label for compound in compounds]
    assert len(set(labels)) == len(labels)
    assert 4000 < len(labels) < 6000
    assert seed_data.elements_of(compounds) == sorted(
        {*seed_data.METALS, *seed_data.NONMETALS}, key=seed_data.atomic_numbers.__getitem__
    )
    assert len(seed_data.elements_of(compounds)) == 78
    counts = [len(Composition(formula(compound))) for compound in compounds]
    assert {1, 2, 3, 4} == set(counts)
    assert counts.count(3) > 1000


def test_each_element_is_trained_on_in_several_forms(
    seed_data: ModuleType, compounds: list
) -> None:
    trained = [formula(compound) for compound in compounds if compound.split == "train"]
    elements = [text.rstrip("2468") for text in trained if len(Composition(text)) == 1]
    assert min(elements.count(each) for each in seed_data.elements_of(compounds)) >= 3


def test_splits_are_small_and_share_no_formula(compounds: list) -> None:
    formulas = {
        split: {
            formula(c) for c in compounds if c.split == split and len(Composition(formula(c))) > 1
        }
        for split in ("train", "valid", "test")
    }
    assert not formulas["train"] & formulas["test"]
    assert not formulas["train"] & formulas["valid"]
    assert not formulas["valid"] & formulas["test"]
    total = sum(map(len, formulas.values()))
    assert 0.03 < len(formulas["test"]) / total < 0.08
    assert 0.03 < len(formulas["valid"]) / total < 0.08


def test_every_demo_crystal_is_trained_on(seed_data: ModuleType, compounds: list) -> None:
    splits = {compound.label: compound.split for compound in compounds}
    for atoms in read(CRYSTALS, ":"):
        label = seed_data.compound_label(atoms.info["prototype"], atoms)
        assert splits[label] == "train"


def test_charges_of_the_slots_add_up(seed_data: ModuleType) -> None:
    assert seed_data.neutral_charges(archetype(seed_data, "Halite")) == [(1, -1)]
    assert (2, 4, -2) in seed_data.neutral_charges(archetype(seed_data, "Perovskite"))
    assert seed_data.neutral_charges(archetype(seed_data, "Magnesium diboride")) == []


def test_an_alloy_takes_metals_and_elements_of_the_same_column(seed_data: ModuleType) -> None:
    ((metals, boron),) = seed_data.candidates(archetype(seed_data, "Magnesium diboride"))
    assert metals == seed_data.METALS
    assert boron == ["C", "Si", "Ge", "B"]


def test_decoration_scales_to_the_new_radii(seed_data: ModuleType) -> None:
    salt = archetype(seed_data, "Halite")
    small = seed_data.decorate(salt, ("Li", "F"))
    large = seed_data.decorate(salt, ("Cs", "I"))
    a_small, a_large = (np.cbrt(4 * atoms.get_volume()) for atoms in (small, large))
    assert a_small == pytest.approx(4.03, rel=0.1)  # LiF, measured
    assert a_large == pytest.approx(7.6, rel=0.1)  # CsI in the rocksalt form, from theory


def test_no_starting_cell_is_crowded(recipe, seed_data: ModuleType, compounds: list) -> None:
    shortest_contact = recipe("seed_frames").shortest_contact
    contacts = [shortest_contact(c.atoms) for c in compounds[::40]]
    assert min(contacts) >= seed_data.CLOSEST * (1 - 1e-9)
    assert max(contacts) < 1.5


def test_radii_that_do_not_fit_give_nothing(seed_data: ModuleType) -> None:
    assert seed_data.decorate(archetype(seed_data, "Magnesium diboride"), ("H", "Cs")) is None


def test_a_molecule_has_its_bond(seed_data: ModuleType) -> None:
    atoms = seed_data.molecular_crystal("N", 1.11)
    assert atoms.get_distance(0, 1, mic=True) == pytest.approx(1.11)
    assert len(atoms) == 2
