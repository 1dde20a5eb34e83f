"""Reference files in every shape that they come in, and the refusal to mix theories."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import pytest
from pymatgen.core import Lattice, Structure
from pymatgen.entries.computed_entries import (
    CompositionEnergyAdjustment,
    ComputedEntry,
    ComputedStructureEntry,
)
from screened import MODEL, plain, write_entries

from dpa4sim.errors import DataError
from dpa4sim.screen.json_stream import CHUNK
from dpa4sim.screen.references import References, read_references


@pytest.fixture(scope="module")
def entries() -> list[ComputedEntry]:
    salt = Structure.from_spacegroup(
        "Fm-3m", Lattice.cubic(5.6), ["Na", "Cl"], [[0, 0, 0], [0.5, 0.5, 0.5]]
    )
    adjusted = CompositionEnergyAdjustment(-0.5, 4, name="MP2020 anion correction (Cl)")
    return [
        plain("Na2", -2.0, "na"),
        plain("Cl2", -4.0, "cl"),
        ComputedStructureEntry(
            salt, -20.0, energy_adjustments=[adjusted], parameters={"model_hash": MODEL}
        ),
    ]


def read(path: Path, **options: object) -> References:
    return read_references([path], model_hash=MODEL, **options)  # type: ignore[arg-type]


def energies(references: References) -> dict[str, float]:
    return {phase.formula: phase.energy_per_atom for phase in references}


UNCORRECTED = {"Na": -1.0, "Cl2": -2.0, "NaCl": -2.5}


def shapes(entries: list[ComputedEntry]) -> dict[str, str]:
    dicts = [entry.as_dict() for entry in entries]
    numbered = {str(i): each for i, each in enumerate(dicts)}
    ids = {str(i): f"mp-{i}" for i in range(len(dicts))}
    lines = [json.dumps(each) for each in dicts]
    columns = [
        json.dumps({"material_id": f"wbm-{i}", "computed_structure_entry": each})
        for i, each in enumerate(dicts)
    ]
    return {
        "list.json": json.dumps(dicts, indent=2),
        "names.json": json.dumps(numbered),
        "lines.jsonl": "\n".join(lines),
        "columns.jsonl": "\n".join(columns) + "\n",
        "table.json": json.dumps({"material_id": ids, "entry": numbered}),
        "reversed.json": json.dumps({"entry": numbered, "material_id": ids}),
    }


@pytest.mark.parametrize(
    "name",
    ["list.json", "names.json", "lines.jsonl", "columns.jsonl", "table.json", "reversed.json"],
)
@pytest.mark.parametrize("packed", [False, True])
def test_every_shape_of_a_file(
    name: str, packed: bool, entries: list[ComputedEntry], tmp_path: Path
) -> None:
    content = shapes(entries)[name]
    assert "NaN" in content  # which pymatgen writes and streaming parsers refuse
    path = tmp_path / (f"{name}.gz" if packed else name)
    if packed:
        path.write_bytes(gzip.compress(content.encode()))
    else:
        path.write_text(content)
    references = read(path)
    assert energies(references) == pytest.approx(UNCORRECTED)
    assert references.theories == {f"model {MODEL}": 3}


def test_one_entry_alone(tmp_path: Path) -> None:
    path = tmp_path / "one.json"
    path.write_text(json.dumps(plain("Na2", -2.0, "na").as_dict()))
    (phase,) = read(path)
    assert (phase.name, phase.energy_per_atom) == ("na", -1.0)


def test_entries_that_are_longer_than_what_is_read_at_once(tmp_path: Path) -> None:
    long = plain("Na2", -2.0, "na")
    long.data["noise"] = "x" * (2 * CHUNK + 17)
    path = write_entries(tmp_path / "long.json", [long, plain("Cl2", -4.0, "cl"), long])
    references = read(path)
    assert energies(references) == pytest.approx({"Na": -1.0, "Cl2": -2.0})
    assert references.theories.total() == 3


def test_a_number_is_not_cut_where_the_window_ends(tmp_path: Path) -> None:
    entry = plain("Na", -1.23456789, "na").as_dict()
    text = json.dumps({"@class": "ComputedEntry", "energy": entry["energy"]})[:-1]
    padding = " " * (CHUNK - len(text) + 4)  # the window ends within the number
    path = tmp_path / "cut.json"
    path.write_text(
        text.replace('"energy":', f'"energy":{padding}') + ', "composition": {"Na": 1}}'
    )
    (phase,) = read(path, mixed_references=True)
    assert phase.energy_per_atom == -1.23456789


def test_stored_corrections_are_left_out_or_taken(
    entries: list[ComputedEntry], tmp_path: Path
) -> None:
    path = write_entries(tmp_path / "entries.json", entries)
    corrected = {**UNCORRECTED, "NaCl": (-20.0 - 2.0) / 8}
    assert energies(read(path, corrections="mp2020")) == pytest.approx(corrected)


@pytest.mark.parametrize(
    ("parameters", "origin"),
    [
        ({"model_hash": "ffff"}, "from model ffff"),
        ({"run_type": "GGA+U"}, "from GGA\\+U"),
        ({"potcar": 1}, "of unknown origin"),
    ],
)
def test_energies_from_elsewhere_are_refused(parameters: dict, origin: str, tmp_path: Path) -> None:
    entries = [plain("Na2", -2.0, "na"), plain("Fe2O3", -30.0, "mp-1", **parameters)]
    path = write_entries(tmp_path / "entries.json", entries)
    with pytest.raises(DataError, match=rf"entry 1 \(Fe2O3\) has an energy {origin}.*--mixed-ref"):
        read(path)
    mixed = read(path, mixed_references=True)
    assert energies(mixed) == pytest.approx({"Na": -1.0, "Fe2O3": -6.0})
    assert mixed.theories.total() == 2


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("", "holds no entry"),
        ("[]", "holds no entry"),
        ("{}", "holds no entry"),
        ('{"a": 1}', "holds no entry"),
        ("[1]", "entry 0 is no computed entry"),
        ('[{"energy": 1}]', "entry 0 is no computed entry"),
        ('[{"composition": {"Na": 1}}]', "entry 0 cannot be used: it has no composition with an"),
        ('[{"composition": {"Xx": 1}, "energy": 1}]', "entry 0 cannot be used: it has no compos"),
        ('[{"composition": {"Na": 1}, "energy": NaN}]', "energy nan eV"),
        ('[{"composition": {"Na": 0}, "energy": 1}]', "entry 0 cannot be used: composition"),
        ('[{"composition": {"Na": 1}, "energy": 1}', "is no JSON after entry 0"),
        ('[{"composition": {"Na": 1}, "energy": 1}] x', "is no JSON after entry 0"),
        ("hello", "is no JSON after entry 0"),
        ('{"a": {"energy": 1', "is no JSON after entry 0"),
    ],
)
def test_what_cannot_be_used_is_named(content: str, said: str, tmp_path: Path) -> None:
    path = tmp_path / "broken.json"
    path.write_text(content)
    with pytest.raises(DataError, match=said) as error:
        read(path, mixed_references=True)
    assert str(path) in str(error.value)


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"none\.json cannot be read"):
        read(tmp_path / "none.json")


def test_a_compressed_file_that_is_cut_off(entries: list[ComputedEntry], tmp_path: Path) -> None:
    path = write_entries(tmp_path / "entries.json.gz", entries * 50)
    path.write_bytes(path.read_bytes()[:-400])
    with pytest.raises(DataError, match=r"entries\.json\.gz (cannot be read|is no JSON)"):
        read(path)
