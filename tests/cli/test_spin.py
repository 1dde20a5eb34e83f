"""Models with spins at the command line: data, training, evaluation, and what is refused."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from ase.io import read, write
from labelled import mixed
from models import random_model
from spinning import spinning

from dpa4sim.config import DPA4Config, SpinConfig
from dpa4sim.data.store import Store
from dpa4sim.potential import Potential, load

CONFIG = DPA4Config(
    species=("Al", "Cu"),
    cutoff=4.0,
    channels=8,
    n_blocks=1,
    max_degree=1,
    so2_layers=2,
    spin=SpinConfig(magnetic=("Cu",)),
)


@pytest.fixture(scope="module")
def crystals(tmp_path_factory) -> Path:
    """Labelled crystals with moments."""
    path = tmp_path_factory.mktemp("data") / "crystals.extxyz"
    write(path, spinning(8))
    return path


@pytest.fixture(scope="module")
def magnetic(tmp_path_factory) -> Path:
    """A random model whose copper is magnetic."""
    path = tmp_path_factory.mktemp("model") / "spins.safetensors"
    Potential(random_model(CONFIG)).save(path)
    return path


def errors_of(model: Path, frames: Path) -> np.ndarray:
    """Predicted minus labelled magnetic forces of copper, component by component."""
    potential, errors = load(model), []
    for atoms in read(frames, ":"):
        atoms.set_initial_magnetic_moments(atoms.calc.results["magmoms"])
        predicted = potential.evaluate(atoms).magnetic_forces.numpy()
        errors.append((predicted - atoms.arrays["magnetic_forces"])[atoms.numbers == 29])
    return np.concatenate(errors)


def test_eval_says_what_the_model_is_off(run, magnetic, crystals, tmp_path):
    code, out, _ = run("eval", magnetic, crystals, "--parity", tmp_path / "p.png")
    assert code == 0
    (row,) = [line.split() for line in out.splitlines() if line.startswith("magnetic forces")]
    assert row[2:6] == ["meV/μB", "8", "of", "8"]
    error = 1e3 * errors_of(magnetic, crystals)
    expected = [abs(error).mean(), (error**2).mean() ** 0.5, abs(error).max()]
    np.testing.assert_allclose([float(word) for word in row[-3:]], expected, rtol=1e-3)
    assert (tmp_path / "p.png").read_bytes().startswith(b"\x89PNG")


def test_eval_with_moments_alone(run, magnetic, crystals, tmp_path):
    """They are looked for without being asked for; energies and forces are compared."""
    images = read(crystals, ":3")
    for atoms in images:
        del atoms.arrays["magnetic_forces"]
    write(tmp_path / "a.extxyz", images)
    code, out, _ = run("eval", magnetic, tmp_path / "a.extxyz")
    assert code == 0
    assert "magnetic forces  meV/μB    0 of 3  absent" in out
    assert "energy           meV/atom  3 of 3" in out


def test_eval_without_moments(run, magnetic, tmp_path):
    write(tmp_path / "a.extxyz", mixed(1))
    code, _, err = run("eval", magnetic, tmp_path / "a.extxyz")
    assert code == 1
    assert "a.extxyz#0" in err
    assert "it has no magnetic moments, and the model has spins on Cu" in err


def test_keys_of_spins_are_for_models_with_spins(run, model, crystals):
    code, _, err = run("eval", model, crystals, "--magnetic-forces-key", "magnetic_forces")
    assert code == 1
    assert "has no spins. Leave out --magnetic-forces-key." in err


def test_data_convert_info_check_train_and_eval(run, crystals, tmp_path):
    store = tmp_path / "set.h5"
    code, out, _ = run("data", "convert", crystals, "-o", store, "--cutoff", 4)
    assert code == 0
    assert "8 magmoms, 8 magnetic_forces" in out
    code, out, _ = run("data", "info", store)
    assert "magmoms 8  magnetic_forces 8" in out
    assert "magnetic force       eV/μB" in out
    assert run("data", "check", store)[:2] == (0, "no problem found\n")
    (tmp_path / "run.toml").write_text(
        '[data]\ntrain = "set.h5"\nvalid_fraction = 0.3\nmax_edges = 900\n'
        "[model]\ncutoff = 4.0\nchannels = 8\nn_blocks = 1\nmax_degree = 1\nso2_layers = 2\n"
        '[model.spin]\nmagnetic = ["Cu"]\nvirtual_scale = [0.3]\n'
        "[loss]\nmagnetic_force = [10.0, 20.0]\n"
        "[schedule]\nwarmup_steps = 2\n[run]\nsteps = 6\nvalidate_every = 3\n"
    )
    code, out, _ = run("train", tmp_path / "run.toml", "--quiet")
    assert code == 0
    assert "magnetic force mae" in out
    best = tmp_path / "run" / "best.safetensors"
    assert load(best).config.spin == SpinConfig(magnetic=("Cu",), virtual_scale=(0.3,))
    assert run("eval", best, crystals)[0] == 0


def test_moments_by_name(run, tmp_path):
    """Moments that a calculation ended with are left alone until somebody names them."""
    images = spinning(2)
    for atoms in images:
        del atoms.arrays["magnetic_forces"]
    write(tmp_path / "a.extxyz", images)
    for words, expected in (((), 0), (("--magmoms-key", "magmoms"), 2)):
        assert (
            run("data", "convert", tmp_path / "a.extxyz", "-o", tmp_path / "a.h5", *words)[0] == 0
        )
        assert Store(tmp_path / "a.h5").has("magmoms").sum() == expected


def test_data_check_requires_what_is_asked(run, crystals, tmp_path):
    assert run("data", "check", crystals, "--require", "energy", "magnetic_forces")[0] == 0
    write(tmp_path / "a.extxyz", mixed(2))
    code, out, _ = run("data", "check", tmp_path / "a.extxyz", "--require", "magmoms")
    assert code == 1
    assert "it has no label 'magmoms'; name its key with --magmoms-key" in out
