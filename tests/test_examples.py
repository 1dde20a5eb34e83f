"""Every example runs, and stays short."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from ase.build import bulk
from ase.io import read, write

from dpa4sim.config import DPA4Config
from dpa4sim.model import DPA4
from dpa4sim.model_file import released
from dpa4sim.potential import Potential

ROOT = Path(__file__).parents[1]
ALL = sorted((ROOT / "examples").glob("*.py"))
EXAMPLES = [path for path in ALL if "lammps" not in path.stem and "spins" not in path.stem]
"""The one of LAMMPS runs in LAMMPS's python: tests/parity/test_lammps.py; spins need a model."""

MOST_LINES = 40


@pytest.fixture(scope="module")
def random_model(tmp_path_factory):
    """An untrained model of the examples' elements."""
    species = ("O", "Na", "Mg", "Si", "Cl", "Cu")
    config = DPA4Config(species=species, cutoff=5.0, channels=16, n_blocks=1, max_degree=2)
    path = tmp_path_factory.mktemp("model") / "random.safetensors"
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        Potential(DPA4(config)).save(path)
    return path


def run(path, *words):
    done = subprocess.run(
        [sys.executable, "-W", "error::UserWarning", str(path), *map(str, words)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_there_are_examples():
    assert [path.name[:2] for path in ALL] == [f"{k:02}" for k in range(1, len(ALL) + 1)]
    assert len(ALL) >= 8


@pytest.mark.parametrize("path", ALL, ids=lambda path: path.stem)
def test_is_short(path):
    assert len(path.read_text().splitlines()) <= MOST_LINES


TEACHERS = ("direct",)
"""Examples that learn from a model's forces, which are zero before any training."""


@pytest.mark.parametrize(
    "path",
    [path for path in EXAMPLES if not any(word in path.stem for word in TEACHERS)],
    ids=lambda path: path.stem,
)
def test_runs_with_any_model(path, random_model):
    out = run(path, random_model)
    assert "Si2" in out
    assert ("INVALID" in out) == ("relax" in path.stem)


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
@pytest.mark.skipif("seed" not in released(), reason="no released model 'seed' in this package")
def test_runs_with_the_released_model(path):
    assert "NaCl" in run(path).replace("Cl4Na4", "NaCl").replace("ClNa", "NaCl")


def test_spins_have_forces_and_relax():
    (path,) = (path for path in ALL if "spins" in path.stem)
    out = run(path)
    assert "NiONiO" in out
    assert "CONVERGED" in out
    before, after = (float(line.split()[1]) for line in out.splitlines() if "eV per atom" in line)
    assert after < before - 0.01


def test_demo_writes_its_picture_and_structures(random_model, tmp_path):
    frames = [bulk("Si", "diamond", a=5.43), bulk("NaCl", "rocksalt", a=5.64)]
    write(tmp_path / "some.extxyz", frames)
    words = ["--model", random_model, "--crystals", tmp_path / "some.extxyz"]
    words += ["--out", tmp_path / "demo", "--max-steps", 2, "--stretch", 2]
    out = run(ROOT / "workflows" / "demo.py", *words)
    assert "2 structures" in out
    assert (tmp_path / "demo" / "demo.png").read_bytes().startswith(b"\x89PNG")
    relaxed = read(tmp_path / "demo" / "relaxed.extxyz", ":")
    assert [len(atoms) for atoms in relaxed] == [2, 2]
