"""What recipes share: crystals by name or file, smaller and larger cells, refusals in words."""

from __future__ import annotations

import json
from types import ModuleType

import numpy as np
import pytest
from ase import Atoms
from ase.build import bulk, fcc111
from ase.io import read, write
from toy import LennardJones, Sick

from dpa4sim.errors import DataError

EXACT = 1e-9  # a lattice vector through spglib and back


@pytest.fixture(scope="module")
def common(recipe) -> ModuleType:
    return recipe("recipe")


def test_a_crystal_is_found_by_name_in_any_case_and_by_formula(common):
    by_name, by_formula = common.find(["halite", "CaF2"])
    assert by_name.name == "Halite"
    assert by_formula.name == "Fluorite"
    assert by_name.atoms.get_chemical_formula() == "Cl32Na32"


def test_files_and_names_mix(common, tmp_path):
    write(tmp_path / "two.extxyz", [bulk("Cu"), bulk("Al")])
    write(tmp_path / "POSCAR", bulk("Si"), format="vasp")
    words = [str(tmp_path / "two.extxyz"), "Copper", str(tmp_path / "POSCAR")]
    names = [crystal.name for crystal in common.find(words)]
    assert names == ["two.extxyz", "two.extxyz#1", "Copper", "POSCAR"]


@pytest.mark.parametrize(
    ("word", "message"),
    [
        ("Haltie", "no built-in crystal 'Haltie'. Close to it: Halite"),
        ("SiO2", "There are 3 crystals of SiO2: Stishovite, Alpha quartz, Cristobalite"),
        ("missing.cif", "no file or folder missing.cif"),
        ("Zzzzzzzz", "no built-in crystal 'Zzzzzzzz'. Names are in"),
    ],
)
def test_an_unknown_word(common, word, message):
    with pytest.raises(DataError, match=message):
        common.find([word])


def test_a_crystal_given_twice(common):
    with pytest.raises(DataError, match="Copper is given twice"):
        common.find(["Copper", "Cu"])


def test_what_is_no_crystal_is_refused(common):
    slab = fcc111("Cu", (1, 1, 3), vacuum=8.0)
    closed = slab.copy()
    closed.pbc = True
    for atoms, message in ((slab, "along 2 of 3"), (closed, "a layer of 16.0 Å holds no atom")):
        with pytest.raises(DataError, match=f"face is no crystal: .*{message}"):
            common.check([common.Crystal("face", atoms)], LennardJones())


def test_an_element_that_the_model_lacks_is_named(common):
    model = LennardJones()
    object.__setattr__(model, "known_elements", frozenset({13, 29}))
    common.check([common.Crystal("copper", bulk("Cu"))], model)
    with pytest.raises(DataError, match=r"lead cannot be used: .*Pb.* It knows Al, Cu\."):
        common.check([common.Crystal("lead", bulk("Pb"))], model)


def test_no_built_in_crystal_is_taken_for_a_slab(common):
    gaps = {atoms.info["name"]: common.widest_gap(atoms) for atoms in read(common.CRYSTALS, ":")}
    widest = max(gaps, key=gaps.get)
    assert 3 < gaps[widest] < common.VACUUM_A - 0.5, widest  # layered halides


def test_the_primitive_cell_spans_the_same_lattice(common):
    for name, n_atoms in (("Silicon", 2), ("Corundum", 10), ("Magnesium", 2), ("Calcite", 10)):
        (crystal,) = common.find([name])
        small = common.primitive(crystal).atoms
        assert len(small) == n_atoms, name
        multiples = crystal.atoms.cell.array @ np.linalg.inv(small.cell.array)
        np.testing.assert_allclose(multiples, multiples.round(), atol=EXACT)
        ratio = len(crystal.atoms) / n_atoms
        assert crystal.atoms.get_volume() == pytest.approx(ratio * small.get_volume(), rel=EXACT)


def test_a_charged_cell_is_neither_reduced_nor_repeated(common):
    atoms = bulk("Cu", cubic=True)
    atoms.info["charge"] = 1
    crystal = common.Crystal("ion", atoms)
    assert common.primitive(crystal) is crystal
    assert len(common.supercell(crystal, 4).atoms) == 4
    with pytest.raises(DataError, match="ion has a charge or spin of its own"):
        common.supercell(crystal, 5)


def test_a_supercell_is_as_wide_as_high(common):
    long = Atoms("Cu", cell=[3, 3, 9], pbc=True)
    grown = common.supercell(common.Crystal("long", long), 9).atoms
    assert grown.cell.lengths().tolist() == [9, 9, 9]


def test_one_that_does_not_relax_is_named_and_the_others_go_on(common):
    sick = bulk("Cu", a=3.5)
    sick.numbers[:] = Sick.MARK
    crystals = [common.Crystal("bad", sick), common.Crystal("good", bulk("Cu", a=3.5))]
    good, notes = common.relaxed(Sick(LennardJones(), "forces", np.nan), crystals, 1e-3)
    assert [crystal.name for crystal in good] == ["good"]
    assert len(notes) == 1
    assert notes[0].startswith("bad did not relax: ")


def test_json_has_null_where_there_is_no_number(common, tmp_path):
    common.write_json(tmp_path / "a.json", {"a": np.array([1.0, np.nan]), 2: (tmp_path, np.inf)})
    content = json.loads((tmp_path / "a.json").read_text())
    assert content == {"a": [1.0, None], "2": [str(tmp_path), None]}


def test_an_error_is_one_line(common):
    def fail() -> int:
        raise DataError("no such thing")

    with pytest.raises(SystemExit, match=r"^error: no such thing$"):
        common.leave(fail)
    with pytest.raises(SystemExit) as left:
        common.leave(lambda: common.NOT_ALL)
    assert left.value.code == common.NOT_ALL
