"""Models of a property at the command line: trained, evaluated, described, refused."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch
from ase.build import molecule
from ase.io import write
from models import random_model

from dpa4sim.config import DPA4Config, PropertyConfig
from dpa4sim.property import PropertyModel

NAMES = ("H2O", "CH4", "CO2", "CH3OH")
BASE = DPA4Config(
    species=("H", "C", "O"), cutoff=4.0, channels=8, n_blocks=1, max_degree=1, so2_layers=2
)


@pytest.fixture(scope="module")
def gap(tmp_path_factory) -> Path:
    """A model of two numbers."""
    head = PropertyConfig(name="gap", task_dim=2, intensive=True, hidden=(8,))
    path = tmp_path_factory.mktemp("model") / "gap.safetensors"
    PropertyModel(random_model(replace(BASE, property_head=head)), card={"labels": "none"}).save(
        path
    )
    return path


@pytest.fixture(scope="module")
def molecules(tmp_path_factory) -> Path:
    """Labelled molecules."""
    frames = []
    for index in range(12):
        atoms = molecule(NAMES[index % 4])
        atoms.rattle(0.02, seed=index)
        atoms.info["gap"] = np.array([len(atoms), index % 4 + 0.1])
        frames.append(atoms)
    path = tmp_path_factory.mktemp("data") / "molecules.extxyz"
    write(path, frames)
    return path


def test_eval_says_what_the_model_is_off(run, gap, molecules, tmp_path):
    code, out, _ = run("eval", gap, molecules, "--batch-atoms", 7, "--parity", tmp_path / "p.png")
    assert code == 0
    rows = {line[:5]: line.split() for line in out.splitlines() if line.startswith("gap ")}
    from ase.io import read

    from dpa4sim.property import load_property

    frames = read(molecules, ":")
    error = load_property(gap).evaluate(frames).values.numpy() - [a.info["gap"] for a in frames]
    for k in range(2):
        shown = [float(word) for word in rows[f"gap {k}"][-3:]]
        expected = [
            abs(error[:, k]).mean(),
            (error[:, k] ** 2).mean() ** 0.5,
            abs(error[:, k]).max(),
        ]
        np.testing.assert_allclose(shown, expected, rtol=1e-3)
    assert f"MAE {abs(error).mean():.4g}" in out
    assert (tmp_path / "p.png").read_bytes().startswith(b"\x89PNG")


def test_eval_of_forces_by_a_property_model(run, gap, molecules):
    code, _, err = run("eval", gap, molecules, "--forces-key", "forces")
    assert code == 1
    assert "predicts the property 'gap' and no energy, forces or stress" in err


@pytest.mark.parametrize("words", [("--compile",), ("--kernels", "triton"), ("--accuracy", "fast")])
def test_settings_for_speed_are_for_energies(words, run, gap, molecules):
    code, _, err = run("eval", gap, molecules, *words)
    assert code == 1
    assert "predicts a property, and --compile, --kernels and --accuracy are for energies" in err


def test_eval_on_frames_without_the_property(run, gap, molecules, tmp_path):
    write(tmp_path / "plain.extxyz", molecule("H2O"))
    code, _, err = run("eval", gap, tmp_path / "plain.extxyz")
    assert code == 1
    assert "plain.extxyz#0 (H2O, 3 atoms) has no property 'gap'" in err


def test_eval_on_another_number_of_labels(run, gap, tmp_path):
    atoms = molecule("H2O")
    atoms.info["gap"] = 1.0
    write(tmp_path / "one.extxyz", atoms)
    code, _, err = run("eval", gap, tmp_path / "one.extxyz")
    assert code == 1
    assert "its property 'gap' has 1 numbers; the model predicts 2" in err


@pytest.mark.parametrize(
    "words",
    [
        ("relax", "MODEL", "DATA", "-o", "out.extxyz"),
        ("md", "MODEL", "DATA", "-o", "out.h5", "--temperature", "300"),
        ("export", "MODEL", "out.pt2"),
    ],
)
def test_verbs_that_need_forces_refuse_in_a_sentence(words, run, gap, molecules, tmp_path):
    places = {"MODEL": gap, "DATA": molecules}
    given = [places.get(w, tmp_path / w if w.startswith("out") else w) for w in words]
    code, _, err = run(*given)
    assert code == 1
    assert "This model predicts the property 'gap' and no energy, so there are no forces." in err
    assert len(err.strip().splitlines()) == 1
    assert list(tmp_path.iterdir()) == []


def test_info(run, gap):
    code, out, _ = run("info", gap)
    assert code == 0
    assert "gap, 2 numbers, intensive" in out
    assert "option property_head" not in out


def test_convert_there_and_back(run, gap, tmp_path):
    assert run("convert", gap, tmp_path / "gap.pt")[0] == 0
    assert run("convert", tmp_path / "gap.pt", tmp_path / "again.safetensors")[0] == 0
    from dpa4sim.property import load_property

    states = [
        load_property(path).model.state_dict() for path in (gap, tmp_path / "again.safetensors")
    ]
    for name, value in states[0].items():
        assert torch.equal(states[1][name], value), name


def test_embed(run, gap, molecules, tmp_path):
    code, out, err = run("embed", gap, molecules, "-o", tmp_path / "out.hdf5")
    assert code == 0
    assert "12 structures" in out
    assert "embed: 12" in err
    with h5py.File(tmp_path / "out.hdf5") as file:
        assert set(file) == {f"molecules.extxyz-{n}-atoms" for n in (3, 5, 6)}
        assert file["molecules.extxyz-3-atoms"].attrs["nframes"] == 6


def test_embed_bad_requests(run, gap, molecules, tmp_path):
    code, _, err = run("embed", gap, molecules, "-o", tmp_path / "out.npz")
    assert (code, "should end in .hdf5 or .h5" in err) == (1, True)
    write(tmp_path / "salt.extxyz", molecule("NaCl"))
    code, _, err = run("embed", gap, tmp_path / "salt.extxyz", "-o", tmp_path / "out.hdf5")
    assert code == 1
    assert "salt.extxyz#0 cannot be embedded: the model does not know the element(s) Na, Cl" in err
    assert not (tmp_path / "out.hdf5").exists()


def test_data_convert_train_and_eval(run, molecules, tmp_path):
    store = tmp_path / "set.h5"
    code, out, _ = run(
        "data", "convert", molecules, "-o", store, "--property", "gap", "--cutoff", 4
    )
    assert code == 0
    assert "12 gap" in out
    assert "gap: 2 numbers" in run("data", "info", store)[1]
    (tmp_path / "run.toml").write_text(
        '[data]\ntrain = "set.h5"\nvalid_fraction = 0.3\nmax_edges = 500\n'
        "[model]\ncutoff = 4.0\nchannels = 8\nn_blocks = 1\nmax_degree = 1\nso2_layers = 2\n"
        '[model.property_head]\nname = "gap"\ntask_dim = 2\nhidden = [8, 8]\n'
        '[loss]\nproperty = "mae"\n'
        "[schedule]\nwarmup_steps = 2\n[run]\nsteps = 10\nvalidate_every = 5\n"
    )
    code, out, _ = run("train", tmp_path / "run.toml", "--quiet")
    assert code == 0
    assert "property mae" in out
    assert "force" not in out
    assert run("eval", tmp_path / "run" / "best.safetensors", molecules)[0] == 0


def test_data_check_names_what_lacks_the_property(run, molecules, tmp_path):
    assert run("data", "check", molecules, "--property", "gap")[0] == 0
    code, out, _ = run("data", "check", molecules, "--property", "colour", "--list", 1)
    assert code == 1
    assert "has no property 'colour'" in out


def test_data_property_with_a_strange_name(run, molecules, tmp_path):
    code, _, err = run("data", "convert", molecules, "-o", tmp_path / "a.h5", "--property", "a/b")
    assert (code, "--property 'a/b' cannot be a name" in err) == (1, True)
