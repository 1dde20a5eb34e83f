"""dpa4sim relax: the table, the file, the exit codes."""

from __future__ import annotations

import numpy as np
import pytest
from ase.io import read, write

import dpa4sim
from dpa4sim.cli.relax import formula

SAME_EV = 1e-6
"""Float32 energies of a few eV, written with 8 digits or more."""


def last_line(out: str) -> str:
    return out.strip().splitlines()[-1]


def test_relaxes_and_writes_what_the_library_gives(run, model, crystals, tmp_path):
    out = tmp_path / "out.extxyz"
    code, text, err = run("relax", model, crystals, "-o", out, "--max-steps", 4, "--fmax", 1e-6)
    assert code == 3
    assert last_line(text) == f"2 structures: 2 max_steps. 2 written to {out}."
    assert "relax:" in err
    frames = read(out, ":")
    expected = dpa4sim.relax(dpa4sim.load(model), crystals, max_steps=4, fmax=1e-6)
    for i, atoms in enumerate(frames):
        assert abs(atoms.get_potential_energy() - expected.energy[i]) < SAME_EV
        np.testing.assert_allclose(atoms.positions, expected.batches[i].positions, atol=1e-7)
        np.testing.assert_allclose(atoms.cell.array, expected.batches[i].cell[0], atol=1e-7)
        assert atoms.info["status"] == "max_steps"
        assert atoms.info["steps"] == 4
        assert atoms.info["input"].endswith(f"crystals.extxyz#{i}")


def test_exit_code_0_when_all_converge(run, model, crystals, tmp_path):
    code, text, _ = run("relax", model, crystals, "-o", tmp_path / "o.extxyz", "--fmax", 1e3)
    assert code == 0
    assert "2 converged" in last_line(text)
    rows = text.splitlines()[2:4]
    assert [row.split()[1:5] for row in rows] == [
        ["Si2", "2", "converged", "0"],
        [formula(read(crystals, 1).numbers), "8", "converged", "0"],
    ]


def test_fixed_cell_leaves_the_cell(run, model, crystals, tmp_path):
    out = tmp_path / "o.extxyz"
    run("relax", model, crystals, "-o", out, "--max-steps", 3, "--fixed-cell", "--fmax", 1e-6)
    for before, after in zip(read(crystals, ":"), read(out, ":"), strict=True):
        np.testing.assert_allclose(after.cell.array, before.cell.array, atol=1e-7)
        assert np.abs(after.positions - before.positions).max() > 1e-5


def test_several_inputs_and_own_names(run, model, silicon, salt, tmp_path):
    silicon.info["name"] = "Silicon"
    write(tmp_path / "si.extxyz", silicon)
    write(tmp_path / "salt.cif", salt)
    inputs = (tmp_path / "si.extxyz", tmp_path / "salt.cif")
    code, text, _ = run("relax", model, *inputs, "-o", tmp_path / "o.extxyz", "--fmax", 1e3)
    assert code == 0
    assert text.splitlines()[2].startswith("Silicon ")
    assert text.splitlines()[3].startswith("salt.cif#0 ")


def test_labels_of_the_start_do_not_reach_the_end(run, model, silicon, tmp_path):
    silicon.info |= {"REF_energy": -1.0, "tag": "kept"}
    silicon.arrays["REF_forces"] = np.zeros((2, 3))
    write(tmp_path / "si.extxyz", silicon)
    run("relax", model, tmp_path / "si.extxyz", "-o", tmp_path / "o.extxyz", "--max-steps", 1)
    atoms = read(tmp_path / "o.extxyz")
    assert atoms.info["tag"] == "kept"
    assert not [key for key in [*atoms.info, *atoms.arrays] if key.startswith("REF_")]


def sick_file(tmp_path, silicon, salt):
    """Good, unknown element, NaN position, good."""
    gold, lost = silicon.copy(), silicon.copy()
    gold.numbers[:] = 79
    lost.positions[1, 2] = np.nan
    path = tmp_path / "mixed.extxyz"
    write(path, [silicon, gold, lost, salt])
    return path


def test_a_bad_structure_does_not_stop_the_others(run, model, silicon, salt, tmp_path):
    path, out = sick_file(tmp_path, silicon, salt), tmp_path / "o.extxyz"
    code, text, _ = run("relax", model, path, "-o", out, "--fmax", 1e3)
    assert code == 3
    assert last_line(text) == f"4 structures: 2 converged, 2 invalid. 2 written to {out}."
    assert "mixed.extxyz#1: the model does not know the element(s) Au." in text
    assert "mixed.extxyz#2: position of atom 1 is not a finite number." in text
    assert [len(atoms) for atoms in read(out, ":")] == [2, 8]


def test_an_unreadable_file_does_not_stop_the_others(run, model, crystals, tmp_path):
    (tmp_path / "empty.cif").write_text("")
    words = (crystals, tmp_path / "empty.cif", "-o", tmp_path / "o.extxyz", "--fmax", 1e3)
    code, text, _ = run("relax", model, *words)
    assert code == 3
    assert "3 structures: 2 converged, 1 invalid." in text
    assert "empty.cif cannot be read: the file is empty" in text


@pytest.mark.parametrize("broken", ["invalid", "unreadable"])
def test_strict_stops_and_writes_nothing(run, model, crystals, silicon, salt, tmp_path, broken):
    path = tmp_path / "empty.cif"
    path.write_text("")
    if broken == "invalid":
        path = sick_file(tmp_path, silicon, salt)
    out = tmp_path / "o.extxyz"
    code, text, err = run("relax", model, crystals, path, "-o", out, "--strict", "--max-steps", 1)
    assert (code, text) == (1, "")
    assert err.splitlines()[-1].startswith("error: ")
    assert not out.exists()


def test_an_interrupted_write_leaves_the_old_file(run, model, crystals, tmp_path, monkeypatch):
    out = tmp_path / "o.extxyz"
    out.write_text("old")

    def broken(path, frames, format):
        path.write_text("half")
        raise OSError(28, "No space left on device", str(path))

    monkeypatch.setattr("ase.io.write", broken)
    code, _, err = run("relax", model, crystals, "-o", out, "--max-steps", 1)
    assert code == 1
    assert err.splitlines()[-1].endswith("No space left on device.")
    assert out.read_text() == "old"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["crystals.extxyz", "o.extxyz"]
