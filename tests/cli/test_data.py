"""dpa4sim data: convert, info, check as commands."""

from __future__ import annotations

import pytest
from ase.io import write
from labelled import crystal, label, mixed, molecule, trajectory

from dpa4sim.data.store import Store


@pytest.fixture
def extxyz(tmp_path):
    images = mixed(9)
    write(tmp_path / "a.extxyz", images)
    return tmp_path / "a.extxyz"


def test_convert_then_look_then_check(run, extxyz, tmp_path):
    out = tmp_path / "a.h5"
    code, text, err = run("data", "convert", extxyz, "-o", out, "--cutoff", "5", "--subset", "mine")
    store = Store(out)
    assert (code, err) == (0, "")
    assert text.splitlines()[0] == f"{out}: 9 frames (9 energy, 9 forces, 6 stress)"
    assert store.content_hash in text
    assert (store.cutoffs, store.subsets, len(store)) == ((5.0,), ("mine",), 9)
    code, text, err = run("data", "info", out)
    assert (code, err) == (0, "")
    lines = {line[:15].strip(): line[15:].strip() for line in text.splitlines()}
    assert lines["frames"] == "9"
    assert lines["labels"] == "energy 9  forces 9  stress 6  charge 0  spin 0"
    assert lines["elements"].startswith("3: H 3  Al")
    assert "within 5 Å" in lines["edges per frame"]
    assert store.content_hash in text
    assert run("data", "check", out) == (0, "no problem found\n", "")


def test_keys_are_those_asked_for(run, tmp_path):
    atoms = label(crystal(0))
    atoms.info["dft"] = -7.0
    write(tmp_path / "a.extxyz", atoms)
    out = tmp_path / "a.h5"
    assert run("data", "convert", tmp_path / "a.extxyz", "-o", out, "--energy-key", "dft")[0] == 0
    assert Store(out).batch([0]).energy.tolist() == [-7.0]
    code, _, err = run("data", "convert", tmp_path / "a.extxyz", "-o", out, "--energy-key", "no")
    assert code == 1
    assert "a.extxyz#0" in err
    assert "no 'no'" in err


def test_bad_frames_stop_or_are_left_out_by_name(run, tmp_path):
    images = mixed(4)
    images[2].positions[1] = images[2].positions[0]
    write(tmp_path / "a.extxyz", images)
    out = tmp_path / "a.h5"
    code, text, err = run("data", "convert", tmp_path / "a.extxyz", "-o", out)
    assert (code, text) == (1, "")
    assert "a.extxyz#2" in err
    assert not out.exists()
    code, text, err = run("data", "convert", tmp_path / "a.extxyz", "-o", out, "--skip-bad")
    assert code == 0
    assert err.startswith("left out: ")
    assert "a.extxyz#2" in err
    assert "1 left out" in text


def test_check_lists_by_kind_and_counts(run, tmp_path):
    images = trajectory(8, stress=-1.0)
    bare = [molecule(k) for k in range(5)]
    write(tmp_path / "a.extxyz", [*images, *bare])
    code, text, _ = run("data", "check", tmp_path / "a.extxyz", "--list", 2)
    assert code == 1
    lines = text.splitlines()
    assert "error: no energy (5)" in lines
    assert text.count("it has no label 'energy'") == 2
    assert "  and 3 more (--list 5)" in lines
    assert text.index("warning: stress label (1)") > text.index("error: no forces")
    code, text, _ = run("data", "check", tmp_path / "a.extxyz", "--require", "stress")
    assert "error: no stress (5)" in text


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (("convert", "no.extxyz", "-o", "{}/a.h5"), "There is no file"),
        (("convert", "{}/a.extxyz", "-o", "{}/a.hdf5"), "should end in .h5"),
        (("convert", "{}/a.extxyz", "-o", "{}/no/a.h5"), "There is no folder"),
        (("convert", "{}/a.extxyz", "-o", "{}/a.h5", "--cutoff", "0"), "holds no edge"),
        (("info", "{}/a.extxyz"), "cannot be opened as a store"),
        (("info", "{}/no.h5"), "cannot be opened as a store"),
        (("check", "no.extxyz"), "There is no file"),
    ],
)
def test_what_cannot_be_done(run, extxyz, tmp_path, words, sentence):
    code, text, err = run("data", *(word.format(tmp_path) for word in words))
    assert (code, text) == (1, "")
    assert sentence in err


def test_eval_reads_a_store(run, model, tmp_path, salt):
    salt.info["REF_energy"] = -1.0
    write(tmp_path / "a.extxyz", salt)
    run("data", "convert", tmp_path / "a.extxyz", "-o", tmp_path / "a.h5")
    tables = [run("eval", model, tmp_path / name) for name in ("a.extxyz", "a.h5")]
    assert tables[0] == tables[1]
    assert tables[0][0] == 0
