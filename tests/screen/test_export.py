"""What is written is what the readers of others find."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from ase import Atoms
from ase.build import bulk
from ase.db import connect
from ase.io import read
from monty.serialization import loadfn
from pymatgen.core import Composition
from screened import MODEL, results, row

from dpa4sim.errors import ConfigError
from dpa4sim.screen.export import KINDS, export
from dpa4sim.screen.hull import hull_table
from dpa4sim.screen.index import Phase
from dpa4sim.screen.references import References, read_references

SAME_A = 1e-6
"""extxyz and CIF write eight and six decimals."""


@pytest.fixture(scope="module")
def rows() -> list[dict]:
    salt = bulk("NaCl", "rocksalt", a=5.6)
    molecule = Atoms("Cl2", positions=[[0, 0, 0], [2, 0, 0]], cell=[9, 8, 7], pbc=True)
    return [
        row(0, salt, -7.0),
        row(1, salt, -7.5, name="best of all/it is"),
        row(2, salt, None, status="duplicate", duplicate_of=1),
        row(3, molecule, -4.2, flags=["fragmented", "symmetry_changed"]),
        row(4, salt, -7.2, status="max_steps", space_group=None),
    ]


@pytest.fixture(scope="module")
def tables(rows: list[dict]) -> tuple[pa.Table, pa.Table]:
    references = References()
    references.add(Phase.of("na", Composition("Na"), -1.3))
    references.add(Phase.of("cl", Composition("Cl2"), -4.0))
    table = results(rows)
    return table, hull_table(table, references)


ORDER = [1, 4, 0, 3]
"""Ids by rank; the one that is not sound comes last, the duplicate not at all."""


def assert_same(atoms: Atoms, expected: Atoms) -> None:
    assert atoms.numbers.tolist() == expected.numbers.tolist()
    # a CIF knows lengths and angles, no orientation
    np.testing.assert_allclose(
        atoms.get_all_distances(mic=True), expected.get_all_distances(mic=True), atol=SAME_A
    )
    assert atoms.get_volume() == pytest.approx(expected.get_volume(), rel=SAME_A)


def atoms_of(each: dict) -> Atoms:
    from dpa4sim.screen.table import to_atoms

    return to_atoms(each)


def test_extxyz(tables: tuple[pa.Table, pa.Table], rows: list[dict], tmp_path: Path) -> None:
    path = tmp_path / "all.extxyz"
    assert export(*tables, path, kind="extxyz") == 4
    frames = read(path, index=":")
    assert [frame.info["id"] for frame in frames] == ORDER
    for frame in frames:
        expected = rows[frame.info["id"]]
        assert_same(frame, atoms_of(expected))
        np.testing.assert_allclose(frame.cell, atoms_of(expected).cell, atol=SAME_A)
        assert frame.get_potential_energy() == pytest.approx(expected["energy"])
    assert frames[0].info["name"] == "best of all/it is"
    assert frames[0].info["rank"] == 1
    assert frames[0].info["e_above_hull_self"] == 0
    assert frames[1].info["e_above_hull_self"] == pytest.approx(0.15)
    assert frames[3].info["flags"] == "fragmented symmetry_changed"
    assert "rank" not in frames[3].info


def test_a_folder_of_cif(tables: tuple, rows: list[dict], tmp_path: Path) -> None:
    folder = tmp_path / "cif"
    assert export(*tables, folder, kind="cif") == 4
    names = sorted(file.name for file in folder.iterdir())
    assert names[0] == "1_NaCl_best_of_all_it_is.cif"
    for name, number in zip(names, ORDER, strict=True):
        assert_same(read(folder / name), atoms_of(rows[number]))
    with pytest.raises(ConfigError, match="is no empty folder"):
        export(*tables, folder, kind="cif")


def test_ase_database(tables: tuple, rows: list[dict], tmp_path: Path) -> None:
    path = tmp_path / "all.db"
    path.write_text("what was there before")
    export(*tables, path, kind="db")
    found = list(connect(path).select(sort="id"))
    assert [each.candidate for each in found] == ORDER
    assert found[0].e_above_hull_self == 0
    assert found[1].energy == pytest.approx(-7.2)
    assert_same(found[3].toatoms(), atoms_of(rows[3]))
    with pytest.raises(ConfigError, match=r"should end in \.db"):
        export(*tables, tmp_path / "all.sqlite", kind="db")


@pytest.mark.parametrize("name", ["entries.json", "entries.json.gz"])
def test_entries_are_pymatgens_and_our_references(
    name: str, tables: tuple, rows: list[dict], tmp_path: Path
) -> None:
    path = tmp_path / name
    export(*tables, path, kind="entries", model_hash=MODEL)
    entries = loadfn(str(path))
    assert [entry.data["id"] for entry in entries] == ORDER
    for entry in entries:
        expected = rows[entry.data["id"]]
        assert entry.energy == pytest.approx(expected["energy"])
        assert entry.structure.volume == pytest.approx(expected["volume"])
    references = read_references([path], model_hash=MODEL)
    lowest = {phase.formula: phase.energy_per_atom for phase in references}
    assert lowest == pytest.approx({"NaCl": -3.75, "Cl2": -2.1})


def test_corrected_entries_carry_their_corrections(rows: list[dict], tmp_path: Path) -> None:
    table = results(rows)
    hull = hull_table(table, References(), corrections="mp2020")
    path = tmp_path / "entries.json"
    export(table, hull, path, kind="entries", model_hash=MODEL)
    salt = loadfn(str(path))[0]
    assert salt.correction < -0.1
    for corrections, energy in (("none", salt.uncorrected_energy), ("mp2020", salt.energy)):
        references = read_references([path], model_hash=MODEL, corrections=corrections)
        lowest = {phase.formula: phase.energy_per_atom for phase in references}
        # without ranks the order is that of the ids, and the second is the lowest
        assert lowest["NaCl"] == pytest.approx(energy / 2 - 0.25)


def test_parquet_holds_everything(tables: tuple, tmp_path: Path) -> None:
    path = tmp_path / "all.parquet"
    export(*tables, path, kind="parquet")
    found = pq.read_table(path)
    assert found["id"].to_pylist() == ORDER
    assert set(found.column_names) == {*tables[0].column_names, *tables[1].column_names}
    expected = tables[0].take(pa.array(ORDER))
    for name in tables[0].column_names:
        assert found[name].to_pylist() == expected[name].to_pylist()


def test_csv_holds_what_fits_into_a_cell(tables: tuple, tmp_path: Path) -> None:
    path = tmp_path / "all.csv"
    export(*tables, path, kind="csv")
    with path.open(newline="") as file:
        found = list(csv.DictReader(file))
    assert [int(each["id"]) for each in found] == ORDER
    assert found[3]["flags"] == "fragmented;symmetry_changed"
    assert float(found[1]["e_above_hull_self"]) == pytest.approx(0.15)
    assert "positions" not in found[0]


@pytest.mark.parametrize(("most", "expected"), [(0.0, [1]), (0.2, [1, 4]), (9.0, [1, 4, 0])])
def test_a_limit_leaves_out_the_higher_and_the_unsound(
    most: float, expected: list[int], tables: tuple, tmp_path: Path
) -> None:
    path = tmp_path / "low.parquet"
    export(*tables, path, kind="parquet", max_e_above_hull=most)
    assert pq.read_table(path)["id"].to_pylist() == expected


@pytest.mark.parametrize("kind", sorted(KINDS))
def test_a_campaign_without_results(kind: str, tmp_path: Path) -> None:
    table = results([])
    path = tmp_path / ("none.db" if kind == "db" else "none")
    assert export(table, hull_table(table, References()), path, kind=kind) == 0
    assert path.exists()


def test_what_cannot_be_written_is_said(tables: tuple, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"kind='pdf' is not known\. Valid: extxyz, cif, db"):
        export(*tables, tmp_path / "x", kind="pdf")
    with pytest.raises(ConfigError, match="There is no folder"):
        export(*tables, tmp_path / "no" / "x", kind="csv")
