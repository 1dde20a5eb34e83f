"""dpa4sim screen: a campaign from the command line."""

from __future__ import annotations

import json

import pytest
from ase.io import read, write

from dpa4sim.screen.campaign import open_campaign


@pytest.fixture
def begun(run, model, crystals, tmp_path):
    """Two crystals and a broken file, read and not relaxed."""
    (tmp_path / "broken.cif").write_text("rubbish")
    folder = tmp_path / "campaign"
    words = ("screen", "init", folder, "--model", model, "--candidates", tmp_path)
    words = (*words, "--fmax", 1e3, "--chunk-size", 2, "--max-edges", 5000)
    code, out, _ = run(*words)
    assert code == 0
    assert f"Type: dpa4sim screen run {folder}" in out
    return folder, words


def rows(text: str) -> dict[str, str]:
    """The lines of a list of properties."""
    return dict(line.split(maxsplit=1) for line in text.splitlines() if line and " " in line)


@pytest.mark.slow
def test_a_campaign_from_beginning_to_end(run, begun, tmp_path):
    folder, words = begun
    code, out, _ = run("screen", "status", folder)
    assert code == 0
    assert rows(out) == {"candidates": "3", "invalid": "1", "queued": "2", "chunks": "0 of 2 done"}
    code, out, err = run("screen", "run", folder)
    assert code == 3  # one of them is no candidate
    assert rows(out)["converged"] == "2"
    assert "screen: 2/2" in err
    code, out, _ = run("screen", "report", folder)
    assert code == 0
    assert "3 candidates, the whole table in" in out
    for name in ("hull.csv", "hull.parquet", "report.html"):
        assert (folder / "report" / name).stat().st_size > 0
    found = folder / "report" / "found.xyz"
    code, out, _ = run("screen", "export", folder, "--format", "extxyz", "-o", found)
    assert (code, out) == (0, f"2 structures written to {found}.\n")
    assert sorted(len(atoms) for atoms in read(found, ":")) == [2, 8]
    assert run(*words)[0] == 0  # the same again is no error, and changes nothing
    assert run("screen", "run", folder)[0] == 3
    with open_campaign(folder) as campaign:
        assert [part.name for part in campaign.ledger.parts()] == [
            "000000-1.parquet",
            "000001-1.parquet",
        ]
    code, _, err = run(*words, "--max-steps", 7)
    assert code == 1
    assert "begun with relax.max_steps = 500, and now it is 7" in err


@pytest.mark.slow
def test_its_own_structures_serve_as_references(run, begun, tmp_path):
    """What one campaign found is the reference of the next, for the model is the same."""
    folder, words = begun
    run("screen", "run", folder)
    found = tmp_path / "found.json"
    assert run("screen", "export", folder, "--format", "entries", "-o", found)[0] == 0
    for atoms in (next_one := read(tmp_path / "crystals.extxyz", ":")):
        atoms.rattle(0.02, seed=4)
    write(tmp_path / "next.extxyz", next_one)
    second = tmp_path / "second"
    words = ("screen", "init", second, *words[3:5], "--candidates", tmp_path / "next.extxyz")
    assert run(*words, "--fmax", 1e3, "--references", found)[0] == 0
    assert run("screen", "run", second)[0] == 0
    code, out, _ = run("screen", "report", second)
    assert code == 0
    assert "NaCl" not in out
    assert "1 not ranked.\nno reference of Cl: none was given" in out
    assert "no reference of Na: none was given" in out
    entries = json.loads(found.read_text())
    entries[0]["parameters"]["model_hash"] = "another"
    found.write_text(json.dumps(entries))
    code, _, err = run("screen", "report", second)
    assert code == 1
    assert "found.json" in err


def test_mistakes_are_said(run, model, crystals, tmp_path):
    folder = tmp_path / "campaign"
    begin = ("screen", "init", folder, "--model", model)
    for words, expected in (
        (("screen", "run", tmp_path), "is no campaign: it has no campaign.toml"),
        (("screen", "status", tmp_path / "nowhere"), "dpa4sim screen init"),
        (begin, "There are no candidates"),
        ((*begin, "--candidates", tmp_path / "nowhere"), "There is no file or folder"),
        ((*begin, "--prototypes"), "Give --chemical-system"),
        ((*begin, "--candidates", crystals, "--fmax", 0), "relax.fmax = 0.0"),
        ((*begin, "--candidates", crystals, "--references", "no.json"), "There is no file"),
        (("screen", "run", folder, "--shard", "5/4"), "give i/n with i from 1 to n"),
        (("screen", "merge", tmp_path, folder), "exists"),
    ):
        code, out, err = run(*words)
        assert (code, out) == (1, "")
        assert expected in err.replace("\n", " ")
        assert not folder.exists()


@pytest.mark.slow
def test_from_a_chemical_system(run, model, tmp_path):
    """Prototypes decorated, elements and known crystals relaxed besides: a hull from nothing."""
    folder = tmp_path / "campaign"
    words = ("screen", "init", folder, "--model", model, "--chemical-system", "Na-Cl")
    words = (*words, "--prototypes", "--built-in-references", "--max-steps", 0)
    assert run(*words)[0] == 0
    assert run("screen", "run", folder)[0] == 3
    code, out, _ = run("screen", "report", folder, "--list", 3)
    assert code == 0
    with open_campaign(folder) as campaign:
        formulas = set(campaign.results()["formula"].to_pylist())
    assert {"NaCl", "Na", "Cl2"} <= formulas
    assert [line.split()[0] for line in out.splitlines()[2:5]] == ["1", "2", "3"]
