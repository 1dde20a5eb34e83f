"""Elements exchanged in given structures: charges kept, geometry kept, everything once."""

from __future__ import annotations

import numpy as np
import pytest
from ase import Atoms
from ase.build import bulk
from ase.data import covalent_radii
from pymatgen.core import Composition

from dpa4sim.errors import ConfigError
from dpa4sim.screen.dedup import duplicates
from dpa4sim.screen.prototypes import skeleton
from dpa4sim.screen.substitute import exchanges, oxidation_numbers, substitute


def named(atoms: Atoms, system: str) -> list[str]:
    return [candidate.name for candidate in substitute([atoms], system)]


def formulas(atoms: Atoms, system: str) -> set[str]:
    return {Composition(name.split("-")[0]).reduced_formula for name in named(atoms, system)}


@pytest.mark.parametrize(
    ("prototype", "system", "found"),
    [
        ("rocksalt", "K-F", {"KF"}),
        ("rocksalt", "Mg-O", set()),  # Na+ is no Mg2+
        ("perovskite", "Ba-Zr-O", {"BaZrO3"}),
        ("perovskite", "K-Mg-F", set()),  # +2 +4 -2 is not +1 +2 -1
        ("layered_rocksalt", "Li-Co-O", {"LiCoO2"}),
        ("layered_rocksalt", "Li-P-O", set()),  # P3+ is in no octahedron of a metal
        ("spinel", "Zn-Fe-O", {"Zn(FeO2)2"}),
        ("zincblende", "Cd-Te", {"CdTe"}),
        ("copper_gold", "Fe-Pt", {"FePt"}),
        ("copper_gold", "Fe-O", set()),
    ],
)
def test_charges_decide(prototype: str, system: str, found: set[str]) -> None:
    assert formulas(skeleton(prototype)[0], system) == found


def test_alloys_take_metals_in_every_place() -> None:
    atoms, _ = skeleton("heusler")
    names = named(atoms, "Ti-Al-Ni")
    assert len(names) == len(set(names)) == 6
    kept = [each.atoms for each in substitute([atoms], "Ti-Al-Ni") if each.atoms is not None]
    assert sum(found is None for found in duplicates(kept)) == 3


def test_an_element_may_stay() -> None:
    atoms, _ = skeleton("layered_rocksalt")
    assert formulas(atoms, "Fe-Na-O") == {"NaFeO2"}
    assert formulas(atoms, "Co-Na-O") == {"NaCoO2"}
    (same,) = substitute([atoms], "Fe-Na-O")
    assert same.atoms is not None
    np.testing.assert_allclose(same.atoms.cell.array, atoms.cell.array)


def test_geometry_is_kept_and_size_follows_the_radii() -> None:
    salt = bulk("NaCl", "rocksalt", a=5.64)
    (heavy,) = substitute([salt], "Cs-I")
    assert heavy.atoms is not None
    np.testing.assert_allclose(heavy.atoms.get_scaled_positions(), salt.get_scaled_positions())
    shape = heavy.atoms.cell.array / salt.cell.array[0, 1]
    np.testing.assert_allclose(shape / shape[0, 1], salt.cell.array / salt.cell.array[0, 1])
    # CsI as rocksalt: 7.7 Å by the radii of Shannon
    assert 2 * heavy.atoms.cell.array[0, 1] == pytest.approx(7.7, rel=0.05)
    metal, _ = skeleton("copper_gold")
    other, _ = substitute([metal], "Fe-Pt")  # and with both exchanged
    assert other.atoms is not None
    before, after = (covalent_radii[a.numbers].sum() for a in (metal, other.atoms))
    assert other.atoms.cell.lengths()[0] / metal.cell.lengths()[0] == pytest.approx(after / before)


def test_mixed_valence() -> None:
    assert oxidation_numbers(("Fe", "O"), (3, 4))["Fe"] == pytest.approx(8 / 3)
    magnetite = skeleton("spinel")[0].copy()
    magnetite.symbols = ["O" if s == "O" else "Fe" for s in magnetite.get_chemical_symbols()]
    assert formulas(magnetite, "Co-O") == {"Co3O4"}
    assert formulas(magnetite, "Zn-O") == set()


def test_more_elements_than_the_system() -> None:
    atoms, _ = skeleton("perovskite")
    assert list(exchanges(atoms, ("O", "Ti"))) == []
    assert list(substitute([atoms], "Ti-O")) == []
    assert list(substitute([bulk("NaCl", "rocksalt", a=5.6)], "K-Mg-F", subsystems=False)) == []


def test_order_and_names_are_fixed() -> None:
    given = [skeleton(name)[0] for name in ("layered_rocksalt", "delafossite", "rocksalt")]
    names = [candidate.name for candidate in substitute(given, "Li-Co-O")]
    assert names == ["LiCoO2-from-NaFeO2-0", "LiCoO2-from-AlCuO2-1"] or names[0].startswith("LiCo")
    assert names == [candidate.name for candidate in substitute(given, "O-Co-Li")]
    assert len(names) == len(set(names))


def test_the_users_structure_is_left_alone() -> None:
    atoms = bulk("NaCl", "rocksalt", a=5.64)
    copy = atoms.copy()
    list(substitute([atoms], "K-F"))
    assert atoms == copy


def test_no_system() -> None:
    with pytest.raises(ConfigError, match="no chemical system"):
        substitute([], "Li-Qq")
