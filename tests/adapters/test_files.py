"""Structures from files and mixed lists; what is broken is named and stops nothing else."""

import gzip
import json
from pathlib import Path

import ase.io
import numpy as np
import pytest
from ase import Atoms
from ase.build import bulk, molecule
from ase.calculators.singlepoint import SinglePointCalculator
from ase.db import connect
from pymatgen.core import Lattice, Molecule, Structure
from pymatgen.entries.computed_entries import ComputedStructureEntry

from dpa4sim.adapters.ase import from_atoms
from dpa4sim.adapters.files import read_structures, structures_to_batches
from dpa4sim.batch import Batch
from dpa4sim.errors import DataError

POSITION_TOLERANCE_A = 1e-6
"""Text formats keep eight digits or so."""


def copper() -> Atoms:
    return bulk("Cu", cubic=True)


def salt() -> Structure:
    return Structure(Lattice.cubic(4.0), ["Na", "Cl"], [[0, 0, 0], [0.5, 0.5, 0.5]])


def labelled() -> Atoms:
    atoms = copper()
    atoms.info.update(charge=1, spin=2, name="sample")
    atoms.calc = SinglePointCalculator(atoms, energy=-3.0, forces=np.ones((4, 3)))
    return atoms


def good(records) -> list:
    records = list(records)
    assert [record for record in records if isinstance(record.batch, DataError)] == []
    return records


def assert_copper(batch: Batch):
    expected = from_atoms(copper())
    assert batch.atomic_numbers.tolist() == expected.atomic_numbers.tolist()
    np.testing.assert_allclose(batch.cell, expected.cell, atol=POSITION_TOLERANCE_A)
    np.testing.assert_allclose(batch.positions, expected.positions, atol=POSITION_TOLERANCE_A)
    assert batch.pbc.all()


@pytest.mark.parametrize(
    "name",
    ["a.cif", "POSCAR", "CONTCAR_7", "a.vasp", "a.poscar", "a.extxyz", "a.xyz", "a.traj", "a.db"],
)
def test_every_ase_format_is_read(tmp_path, name):
    path = tmp_path / name
    kinds = {".cif": "cif", ".extxyz": "extxyz", ".xyz": "extxyz", ".traj": "traj", ".db": "db"}
    ase.io.write(path, copper(), format=kinds.get(path.suffix, "vasp"))
    (record,) = good(read_structures(path))
    assert record.label == f"{path}#{1 if name == 'a.db' else 0}"
    assert_copper(record.batch)
    assert record.atoms.get_chemical_formula() == "Cu4"
    assert_copper(structures_to_batches(path)[0])


def test_compressed_files_are_read(tmp_path):
    ase.io.write(tmp_path / "a.extxyz", copper())
    packed = tmp_path / "b.extxyz.gz"
    packed.write_bytes(gzip.compress((tmp_path / "a.extxyz").read_bytes()))
    (record,) = good(read_structures(packed))
    assert_copper(record.batch)


def test_labels_and_state_stay_with_the_atoms(tmp_path):
    ase.io.write(tmp_path / "a.extxyz", [labelled(), labelled()])
    first, second = good(read_structures(tmp_path / "a.extxyz"))
    assert second.label == f"{tmp_path / 'a.extxyz'}#1"
    assert first.atoms.get_potential_energy() == -3.0
    assert first.atoms.info["name"] == "sample"
    assert (first.batch.charge.tolist(), first.batch.spin.tolist()) == ([1.0], [2.0])


def test_database_rows_bring_their_key_value_pairs(tmp_path):
    database = connect(tmp_path / "a.db")
    database.write(copper(), charge=-1, name="row")
    (record,) = good(read_structures(tmp_path / "a.db"))
    assert record.batch.charge.tolist() == [-1.0]
    assert record.atoms.info["name"] == "row"


def test_pymatgen_json(tmp_path):
    entry = ComputedStructureEntry(salt(), -5.0, entry_id="mp-1")
    water = Molecule(["O", "H"], [[0, 0, 0], [1, 0, 0]], charge=-1)
    contents = {
        "one": salt().as_dict(),
        "list": [salt().as_dict(), water.as_dict(), entry.as_dict()],
        "table": {"mp-1": entry.as_dict(), "mp-2": {"structure": salt().as_dict(), "x": 1}},
    }
    for name, content in contents.items():
        (tmp_path / f"{name}.json").write_text(json.dumps(content))
    (one,) = good(read_structures(tmp_path / "one.json"))
    assert one.batch.atomic_numbers.tolist() == [11, 17]
    records = good(read_structures(tmp_path / "list.json"))
    assert [len(record.batch.positions) for record in records] == [2, 2, 2]
    assert records[1].batch.charge.tolist() == [-1.0]
    labels = [record.label for record in good(read_structures(tmp_path / "table.json"))]
    assert labels == [f"{tmp_path / 'table.json'}#{key}" for key in ("mp-1", "mp-2")]


def test_json_databases_of_ase_are_told_from_pymatgen(tmp_path):
    connect(tmp_path / "a.json").write(copper())
    (record,) = good(read_structures(tmp_path / "a.json"))
    assert_copper(record.batch)


def test_folders_and_globs_are_read_in_order_and_skip_other_files(tmp_path):
    for name in ("b.cif", "a.cif"):
        ase.io.write(tmp_path / name, copper())
    (tmp_path / "notes.txt").write_text("nothing")
    expected = [f"{tmp_path}/a.cif#0", f"{tmp_path}/b.cif#0"]
    assert [record.label for record in good(read_structures(tmp_path))] == expected
    assert [record.label for record in good(read_structures(f"{tmp_path}/*.cif"))] == expected
    both = read_structures([tmp_path / "b.cif", f"{tmp_path}/a*"])
    assert [record.label for record in good(both)] == expected[::-1]


def broken_extxyz() -> str:
    lines = 'Lattice="4 0 0 0 4 0 0 0 4" Properties=species:S:1:pos:R:3 pbc="T T T"'
    frame = f"1\n{lines}\nCu 0 0 0\n"
    return frame + frame.replace("Cu 0 0 0", "Cu 0 zero 0") + frame


def test_a_broken_frame_is_an_error_and_the_next_one_is_read(tmp_path):
    path = tmp_path / "a.extxyz"
    path.write_text(broken_extxyz())
    first, second, third = read_structures(path)
    assert isinstance(first.batch, Batch)
    assert isinstance(third.batch, Batch)
    assert isinstance(second.batch, DataError)
    assert str(second.batch).startswith(f"{path}#1 cannot be read: ")
    assert "zero" in str(second.batch)
    with pytest.raises(DataError, match="#1 cannot be read"):
        structures_to_batches(path)


@pytest.mark.parametrize(
    ("tail", "complaint"),
    [("Cu 1 1 1\n", "expected the number of atoms"), ("3\ncomment\nCu 0 0 0\n", "cannot be read")],
    ids=["not a count", "cut off"],
)
def test_a_file_that_breaks_off_says_where(tmp_path, tail, complaint):
    path = tmp_path / "a.xyz"
    path.write_text("1\n\nCu 0 0 0\n" + tail)
    first, second = read_structures(path)
    assert isinstance(first.batch, Batch)
    assert isinstance(second.batch, DataError)
    assert f"{path}#1" in str(second.batch)
    assert complaint in str(second.batch)


def test_a_broken_cif_block_is_an_error_and_the_next_one_is_read(tmp_path):
    ase.io.write(tmp_path / "good.cif", copper())
    text = (tmp_path / "good.cif").read_text()
    (tmp_path / "a.cif").write_text(text + text.replace("Cu ", "Qq ") + text)
    first, second, third = read_structures(tmp_path / "a.cif")
    assert isinstance(first.batch, Batch)
    assert isinstance(third.batch, Batch)
    assert str(second.batch).startswith(f"{tmp_path}/a.cif#1 cannot be read")


def test_partial_occupancy_in_a_cif_is_an_error(tmp_path):
    ase.io.write(tmp_path / "a.cif", copper())
    text = (tmp_path / "a.cif").read_text()
    (tmp_path / "a.cif").write_text(text.replace("1.0000", "0.5000"))
    (record,) = read_structures(tmp_path / "a.cif")
    assert "partially occupied" in str(record.batch)


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.cif", ""),
        ("a.extxyz", ""),
        ("a.json", ""),
        ("a.cif", "data_x\n_cell_length_a 3\n"),
        ("a.json", "{broken"),
        ("a.json", "[]"),
        ("a.json", '[{"@class": "Popen", "@module": "subprocess"}]'),
        ("a.json", "[7]"),
        ("a.json", "7"),
        ("POSCAR", "nonsense\n"),
        ("a.db", "no database at all"),
        ("a.traj", "no trajectory at all"),
    ],
)
def test_unusable_files_give_one_error_that_names_them(tmp_path, name, content):
    path = tmp_path / name
    path.write_text(content)
    (record,) = read_structures(path)
    assert isinstance(record.batch, DataError)
    assert str(path) in str(record.batch)
    assert "\n" not in str(record.batch)
    assert content or "the file is empty" in str(record.batch)
    with pytest.raises(DataError, match=name):
        structures_to_batches(path)


def test_one_bad_file_does_not_stop_the_others(tmp_path):
    for name in ("a.cif", "c.cif"):
        ase.io.write(tmp_path / name, copper())
    (tmp_path / "b.cif").write_text("")
    kinds = [type(record.batch) for record in read_structures(tmp_path)]
    assert kinds == [Batch, DataError, Batch]


@pytest.mark.parametrize(
    ("name", "sentence"),
    [
        ("missing.cif", r"There is no file or folder .*missing\.cif"),
        ("notes.txt", r"notes\.txt has no known structure format\. Known are CIF"),
        ("empty", "empty holds no structure file"),
        ("*.cif", "holds no structure file"),
    ],
)
def test_paths_that_name_nothing_are_refused_before_the_first_record(tmp_path, name, sentence):
    (tmp_path / "empty").mkdir()
    (tmp_path / "notes.txt").write_text("nothing")
    with pytest.raises(DataError, match=sentence):
        read_structures(tmp_path / name)


def test_every_kind_of_structure_goes_through_one_door(tmp_path):
    import torch_sim as ts

    ase.io.write(tmp_path / "a.extxyz", [copper(), copper()])
    state = ts.io.atoms_to_state([copper(), copper()], "cpu")
    entry = ComputedStructureEntry(salt(), 0.0)
    batch = Batch.concatenate([from_atoms(molecule("H2O"))] * 2)
    water = Molecule(["O", "H"], [[0, 0, 0], [1, 0, 0]])
    mixed = [copper(), salt(), water, entry, state, batch, tmp_path / "a.extxyz", [copper()]]
    batches = structures_to_batches(mixed)
    assert [len(b.positions) for b in batches] == [4, 2, 2, 2, 4, 4, 3, 3, 4, 4, 4]
    assert {b.n_systems for b in batches} == {1}
    for index in (0, 4, 5, 8, 10):
        np.testing.assert_allclose(batches[index].cell, batches[0].cell, atol=1e-6)
    for single in (copper(), salt(), state, batch, str(tmp_path / "a.extxyz"), iter([copper()])):
        assert structures_to_batches(single)


def test_charge_and_spin_are_kept_through_the_door():
    batches = structures_to_batches([labelled(), copper()])
    assert batches[0].charge.tolist() == [1.0]
    assert batches[1].charge is None


@pytest.mark.parametrize(
    ("structures", "sentence"),
    [
        ([], "No structure was given"),
        (7, "The input is of type int"),
        ([copper(), None], "Structure 1 is of type NoneType"),
        ([[copper()], [copper(), {}]], r"Structure 1\[1\] is of type dict"),
    ],
)
def test_what_is_no_structure_is_named(structures, sentence):
    with pytest.raises(DataError, match=sentence):
        structures_to_batches(structures)


def test_the_index_of_an_unusable_structure_is_named():
    sick = copper()
    sick.info["charge"] = "x"
    with pytest.raises(DataError, match=r"Structure 1: Cu4 has info\['charge'\]"):
        structures_to_batches([copper(), sick])


def test_reading_streams(tmp_path):
    path = Path(tmp_path / "a.extxyz")
    ase.io.write(path, [copper()] * 3)
    records = read_structures(path)
    assert isinstance(next(records).batch, Batch)
    path.write_text("")
    assert records.gi_frame is not None
