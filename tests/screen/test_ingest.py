"""Everything that comes in is a row, in order, with a reason when it is no candidate."""

from __future__ import annotations

import gzip
import json
import os
import random
import signal
from pathlib import Path

import numpy as np
import pytest
from ase import Atoms
from ase.build import bulk
from ase.constraints import FixAtoms, FixBondLength
from ase.db import connect
from ase.io import read as read_ase
from ase.io import write
from pymatgen.core import Lattice, Structure
from screening import METALS, alloys, given, settings
from toy import LennardJones

from dpa4sim.errors import ConfigError, DataError, ResumeError
from dpa4sim.screen import ingest
from dpa4sim.screen.candidate import Candidate, pack, unpack
from dpa4sim.screen.reader import Read, Reader, Task, read
from dpa4sim.screen.run import init, run

TEXT_TOLERANCE_A = 1e-6
"""Files keep eight digits or so."""


def rows_of(campaign) -> list:
    return list(campaign.ledger.rows(0, campaign.ledger.count()))


class Here(Reader):
    """Reads in this process, which begins at once."""

    def entries(self, task):
        return read(task)


@pytest.fixture
def here(monkeypatch):
    monkeypatch.setattr(ingest, "Reader", Here)


def taken(folder: Path, *paths: Path, **options) -> list:
    """The rows of the ledger after files were read."""
    asked = settings(tuple(map(str, paths)), **options)
    with init(folder, asked, LennardJones(), progress=False) as campaign:
        return rows_of(campaign)


def test_a_structure_is_packed_to_the_last_bit():
    atoms = alloys(1)[0]
    atoms.info |= {"charge": -1, "spin": 2.5}
    atoms.pbc = (True, False, True)
    atoms.set_constraint(FixAtoms([1, 3]))
    again = unpack(pack(atoms))
    assert again == atoms
    assert again.info == {"charge": -1.0, "spin": 2.5}
    assert again.constraints[0].get_indices().tolist() == [1, 3]
    assert pack(again) == pack(atoms)
    assert unpack(pack(Atoms())).info == {}


def test_a_constraint_that_would_be_lost_is_refused():
    atoms = alloys(1)[0]
    atoms.set_constraint(FixBondLength(0, 1))
    with pytest.raises(DataError, match="FixBondLength"):
        pack(atoms)


def test_every_format_is_read(tmp_path):
    """One copper crystal of four atoms in each, and its name where the format has one."""
    copper = bulk("Cu", cubic=True)
    structure = Structure(Lattice.cubic(3.61), ["Cu"] * 4, copper.get_scaled_positions())
    for name in ("a.cif", "b.vasp", "c.extxyz"):
        kind = {"b.vasp": "vasp", "a.cif": "cif", "c.extxyz": "extxyz"}[name]
        write(tmp_path / name, copper, format=kind)
    connect(tmp_path / "d.db").write(copper, name="row")
    packed = gzip.compress(json.dumps({"mp-1": structure.as_dict()}).encode())
    (tmp_path / "e.json.gz").write_bytes(packed)
    poscar, cif = structure.to(fmt="poscar"), (tmp_path / "a.cif").read_text()
    for letter, text in (("f", poscar), ("g", cif), ("h", json.dumps(structure.as_dict()))):
        quoted = text.replace('"', '""')
        (tmp_path / f"{letter}.csv").write_text(f'id,structure\nmine,"{quoted}"\n')
    rows = taken(tmp_path / "run", tmp_path, *sorted(tmp_path.glob("*.csv")), deduplicate=False)
    expected = ["a.cif#0", "b.vasp#0", "c.extxyz#0", "row", "e.json.gz#mp-1", *["mine"] * 3]
    assert [row.name for row in rows] == expected
    for row in rows:
        atoms = unpack(row.packed)
        assert (row.state, row.formula, row.chemical_system, row.n_atoms) == (
            "queued",
            "Cu",
            "Cu",
            4,
        )
        moved = atoms.get_scaled_positions(wrap=False) - copper.get_scaled_positions()
        np.testing.assert_allclose(moved - moved.round(), 0, atol=TEXT_TOLERANCE_A)
        np.testing.assert_allclose(atoms.cell, copper.cell, atol=TEXT_TOLERANCE_A)


def spoiled() -> dict[str, Atoms]:
    """What must become an invalid row, by words of the reason."""
    close, left, flat, lost, stranger = (alloys(1)[0] for _ in range(5))
    close.positions[1] = close.positions[0] + [0.3, 0, 0]
    left.set_cell(left.cell.array[[1, 0, 2]])
    flat.cell[2] = 0
    lost.positions[2, 1] = np.nan
    stranger.numbers[0] = 0
    needle = alloys(1)[0]
    needle.cell[0] *= 1e9
    found = {"Å": close, "left-handed": left, "zero": flat, "finite": lost, "element": stranger}
    return {**found, "long": needle}


def test_what_cannot_be_used_is_a_row_with_a_reason(tmp_path):
    candidates = [Candidate(word, f"given#{word}", atoms) for word, atoms in spoiled().items()]
    candidates.append(Candidate("no atoms", "given#x", None, "no atoms at all"))
    candidates += given(2)
    with init(tmp_path / "run", settings(), LennardJones(), candidates, progress=False) as campaign:
        rows = rows_of(campaign)
    assert [row.state for row in rows] == ["invalid"] * 7 + ["queued"] * 2
    for row in rows[:7]:
        assert row.name in row.reason


def test_partial_occupancy_is_a_row_with_a_reason(tmp_path, here):
    disordered = Structure(Lattice.cubic(4.0), [{"Cu": 0.5, "Ni": 0.5}], [[0, 0, 0]])
    disordered.to(str(tmp_path / "a.cif"))
    (tmp_path / "b.json").write_text(json.dumps([disordered.as_dict()]))
    text = (tmp_path / "a.cif").read_text()
    (tmp_path / "c.csv").write_text(f'name,cif\nmine,"{text}"\n')
    rows = taken(tmp_path / "run", tmp_path, tmp_path / "c.csv")
    asked = Candidate("here", "here", read_ase(tmp_path / "a.cif", fractional_occupancies=True))
    with init(tmp_path / "two", settings(), LennardJones(), [asked], progress=False) as campaign:
        rows += rows_of(campaign)
    assert [row.state for row in rows] == ["invalid"] * 4
    assert all("partially occupied" in row.reason for row in rows)


def test_an_element_that_the_model_does_not_know_is_a_row_with_a_reason(tmp_path):
    class Choosy(LennardJones):
        known_elements = frozenset({29})

    with init(tmp_path / "run", settings(), Choosy(), given(6), progress=False) as campaign:
        for row in rows_of(campaign):
            assert (row.state == "queued") == (row.chemical_system == "Cu")
            assert row.state == "queued" or any(symbol in row.reason for symbol in METALS[1:])


def test_equal_structures_are_relaxed_once(tmp_path):
    first, other = alloys(2)
    turned = first.copy()
    turned.rotate(30, "z", rotate_cell=True)
    candidates = [
        Candidate(name, name, atoms)
        for name, atoms in (("a", first), ("b", other), ("c", turned), ("d", first * (2, 1, 1)))
    ]
    with init(tmp_path / "run", settings(), LennardJones(), candidates, progress=False) as campaign:
        assert [row.duplicate_of for row in rows_of(campaign)] == [None, None, 0, 0]
        run(campaign, LennardJones(), progress=False)
        table = campaign.results()
    assert table["status"].to_pylist()[2:] == ["duplicate"] * 2
    assert table["energy"].to_pylist()[2:] == [None, None]
    assert table["duplicate_of"].to_pylist() == [None, None, 0, 0]


@pytest.mark.parametrize("ingested", [0, 1, 7, 20])
def test_ingest_goes_on_in_the_middle_of_a_file(tmp_path, monkeypatch, here, ingested):
    """A broken frame and a broken file among others: nothing is read twice, nothing is missed."""
    monkeypatch.setattr(ingest, "BLOCK", 3)
    frames = alloys(12)
    frames[4].positions[0] = np.nan
    write(tmp_path / "a.extxyz", frames[:10])
    (tmp_path / "b.cif").write_text("rubbish")
    write(tmp_path / "c.extxyz", frames[10:])
    with (tmp_path / "c.extxyz").open("a") as file:
        file.write("what is this\n")
    whole = taken(tmp_path / "whole", tmp_path)
    entered = ingest._entry
    count = 0

    def stops(*args):
        nonlocal count
        count += 1
        if count > ingested:
            raise KeyboardInterrupt
        return entered(*args)

    monkeypatch.setattr(ingest, "_entry", stops)
    if ingested < len(whole):
        with pytest.raises(KeyboardInterrupt):
            taken(tmp_path / "run", tmp_path)
    monkeypatch.setattr(ingest, "_entry", entered)
    assert taken(tmp_path / "run", tmp_path) == whole
    assert [row.state for row in whole] == ["queued"] * 4 + ["invalid"] + ["queued"] * 5 + [
        "invalid",
        "queued",
        "queued",
        "invalid",
    ]


def test_files_that_were_changed_are_refused(tmp_path, files, here):
    taken(tmp_path / "run", files)
    write(files, alloys(3))
    with pytest.raises(ResumeError, match=r"alloys\.extxyz was changed"):
        taken(tmp_path / "run", files)
    files.unlink()
    with pytest.raises(DataError, match="no file or folder"):
        taken(tmp_path / "run", files)


def test_other_candidates_are_refused(tmp_path):
    def begin(candidates):
        init(tmp_path / "run", settings(), LennardJones(), candidates, progress=False).close()

    begin(given(6))
    begin(given(6))
    with pytest.raises(ResumeError, match=r"Candidate 5 was alloy-5 .* and now it is nothing"):
        begin(given(5))
    with pytest.raises(ResumeError, match=r"Candidate 6 was nothing .* now it is alloy-6"):
        begin(given(7))
    changed = given(6)
    changed[2].atoms.positions[0, 0] += 1e-12
    with pytest.raises(ResumeError, match="Candidate 2 was alloy-2"):
        begin(changed)


def test_nothing_to_read_is_said(tmp_path):
    with pytest.raises(ConfigError, match="no candidates"):
        taken(tmp_path / "run")
    with pytest.raises(DataError, match="nowhere"):
        taken(tmp_path / "run", tmp_path / "nowhere")
    assert not (tmp_path / "run").exists()


def test_a_reader_that_hangs_is_given_up(tmp_path):
    """Opening a pipe that nobody writes to takes for ever."""
    os.mkfifo(tmp_path / "pipe.csv")
    write(tmp_path / "good.extxyz", alloys(2))
    reader = Reader(timeout_s=0.5)
    try:
        stuck = list(reader.entries(Task(str(tmp_path / "pipe.csv"))))
        good = list(reader.entries(Task(str(tmp_path / "good.extxyz"))))
    finally:
        reader.close()
    assert [entry.reason for entry in stuck] == [
        "it took too long",
    ]
    assert [entry.name for entry in good] == ["alloy-0", "alloy-1"]


@pytest.mark.parametrize(
    ("number", "reason"),
    [
        (signal.SIGKILL, "reading it ended the reader (exit code -9)"),
        (signal.SIGSTOP, "reading it took longer than 3 s"),
    ],
)
def test_a_reader_that_dies_or_stands_still_costs_one_entry(tmp_path, number, reason):
    write(tmp_path / "long.extxyz", alloys(400))
    reader = Reader(timeout_s=2.0)
    found: list[Read] = []
    try:
        for entry in reader.entries(Task(str(tmp_path / "long.extxyz"))):
            found.append(entry)
            if len(found) == 1:
                reader.child.send_signal(number)
    finally:
        reader.close()
    lost = [index for index, entry in enumerate(found) if entry.packed is None]
    assert len(lost) == 1
    assert found[lost[0]].reason == reason
    expected = [f"alloy-{index}" for index in range(400)]
    expected[lost[0]] = f"long.extxyz#{lost[0]}"
    assert [entry.name for entry in found] == expected


def mutated(text: str, luck: random.Random) -> str:
    """A text with something wrong in it."""
    lines = text.splitlines()
    for _ in range(luck.randint(1, 2)):
        if not lines:
            break
        index = luck.randrange(len(lines))
        words = lines[index].split(" ")
        word = luck.randrange(len(words))
        strange = luck.choice(
            ["", "nan", "1e400", "-1", "0", "1e-9", "999999999999", "Xx", "'", '"', "0.5(3", "\x00"]
        )
        what = luck.randrange(6)
        if what == 0:
            lines[index] = " ".join([*words[:word], strange, *words[word + 1 :]])
        elif what == 1:
            del lines[index]
        elif what == 2:
            lines.insert(luck.randrange(len(lines)), lines[index])
        elif what == 3:
            lines = lines[: max(index, 1)]
        elif what == 4:
            place = luck.randrange(len(lines[index]) + 1)
            letter = chr(luck.randrange(32, 0x250))
            lines[index] = lines[index][:place] + letter + lines[index][place + 1 :]
        else:
            lines[index] = lines[index].replace("1", strange)
    return "\n".join(lines) + "\n"


def fuzzed(folder: Path, count: int) -> None:
    """So many files, half CIF and half extxyz, with something wrong in each."""
    luck = random.Random(17)
    texts = []
    for number, kind in ((0, "cif"), (1, "extxyz")):
        pristine = folder.parent / f"pristine.{kind}"
        write(pristine, bulk("NaCl", "rocksalt", a=5.6, cubic=True)[: 8 - number])
        texts.append((pristine.read_text(), kind))
    for index in range(count):
        text, kind = texts[index % 2]
        content = mutated(text, luck).encode("utf-8", "replace")
        (folder / f"{index:04}.{kind}").write_bytes(content)


@pytest.mark.slow
def test_a_thousand_mutated_files_stop_nothing(tmp_path):
    folder = tmp_path / "fuzz"
    folder.mkdir()
    fuzzed(folder, 1000)
    write(folder / "zz.extxyz", alloys(2))
    asked = settings((str(folder),), chunk_size=200, max_steps=2, reader_timeout_s=1.0)
    with init(tmp_path / "run", asked, LennardJones(), progress=False) as campaign:
        run(campaign, LennardJones(), progress=False)
        table = campaign.results()
    places = [source.split("#")[0] for source in table["source"].to_pylist()]
    assert len(set(places)) == 1001
    by_status = dict(zip(*np.unique(table["status"].to_pylist(), return_counts=True), strict=True))
    assert by_status["invalid"] > 100
    assert table["name"].to_pylist()[-2:] == ["alloy-0", "alloy-1"]
    for row in table.to_pylist():
        assert (row["status"] in ("converged", "duplicate")) == (
            row["reason"] == "" or row["duplicate_of"] is not None
        )
