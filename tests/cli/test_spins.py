"""Commands with a model that has spins."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from ase import Atoms
from ase.build import bulk
from ase.io import read, write

import dpa4sim
from dpa4sim.config import DPA4Config, SpinConfig
from dpa4sim.model import DPA4
from dpa4sim.potential import Potential

SAME = 1e-6
"""Numbers of order one, written with eight digits."""


@pytest.fixture(scope="module", params=["virtual", "native"])
def magnet(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A .safetensors file of random weights."""
    spin = SpinConfig(scheme=request.param, magnetic=("Ni",))
    config = DPA4Config(
        species=("Ni", "O"), cutoff=4.0, channels=8, n_blocks=1, max_degree=1, spin=spin
    )
    path = tmp_path_factory.mktemp("magnet") / "magnet.safetensors"
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network = DPA4(config)
        for weight in network.parameters():
            weight.data += 0.1 * torch.randn_like(weight)
    Potential(network).save(path)
    return path


@pytest.fixture
def oxide() -> Atoms:
    """Two formula units of nickel oxide."""
    atoms = bulk("NiO", "rocksalt", a=4.2) * (2, 1, 1)
    atoms.rattle(0.05, seed=1)
    moments = np.random.default_rng(3).normal(size=(4, 3)).round(3)
    atoms.set_initial_magnetic_moments(moments)
    return atoms


def test_card_says_how_spins_enter(run, magnet):
    code, text, _ = run("info", magnet)
    (row,) = [line for line in text.splitlines() if line.startswith("spins")]
    assert code == 0
    native = dpa4sim.load(magnet).config.spin.scheme == "native"
    expected = "Ni, native" if native else "Ni, virtual atoms at 0.314 Å per Bohr magneton"
    assert row.split("  ")[-1].strip() == expected


def test_moments_relax_into_the_file(run, magnet, oxide, tmp_path):
    source, out = tmp_path / "in.extxyz", tmp_path / "out.extxyz"
    write(source, oxide)
    words = ["-o", out, "--max-steps", 5, "--fmax", 1e-6, "--fixed-cell"]
    code, _, _ = run("relax", magnet, source, *words, "--moments", "--magnetic-fmax", 1e-6)
    assert code == 3
    given = read(source)  # float32 carries the digits that the file has rounded into every number
    expected = dpa4sim.relax(
        dpa4sim.load(magnet), [given], moments=True, fmax=1e-6, magnetic_fmax=1e-6, max_steps=5,
        cell=False,
    )  # fmt: skip
    atoms = read(out)
    moved = expected.batches[0].magmoms.numpy()
    np.testing.assert_allclose(atoms.get_initial_magnetic_moments(), moved, atol=SAME)
    assert np.abs(moved - oxide.get_initial_magnetic_moments()).max() > 1e-3
    by_moment = expected.predictions[0].magnetic_forces.numpy()
    np.testing.assert_allclose(atoms.arrays["magnetic_forces"], by_moment, atol=SAME)


def test_moments_of_a_model_without_spins(run, model, crystals, tmp_path):
    code, _, err = run("relax", model, crystals, "-o", tmp_path / "o.extxyz", "--moments")
    assert code == 1
    assert "moments=True needs a model with spins, and this one has none." in err


def test_structure_without_moments(run, magnet, oxide, tmp_path):
    del oxide.arrays["initial_magmoms"]
    write(tmp_path / "bare.extxyz", oxide)
    for verb, out in (("relax", "o.extxyz"), ("embed", "o.h5")):
        code, _, err = run(verb, magnet, tmp_path / "bare.extxyz", "-o", tmp_path / out)
        assert code == 1
        assert "it has no magnetic moments, and the model has spins on Ni" in err


def test_convert_there_and_back(run, magnet, oxide, tmp_path):
    assert run("convert", magnet, tmp_path / "a.pt")[0] == 0
    assert run("convert", tmp_path / "a.pt", tmp_path / "b.safetensors")[0] == 0
    got, expected = (dpa4sim.load(p).evaluate(oxide) for p in (tmp_path / "b.safetensors", magnet))
    assert torch.equal(got.energy, expected.energy)
    assert torch.equal(got.magnetic_forces, expected.magnetic_forces)
