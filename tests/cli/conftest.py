"""A small random model and a few structures as files."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from ase import Atoms
from ase.build import bulk
from ase.io import write

from dpa4sim.cli import main
from dpa4sim.config import DPA4Config
from dpa4sim.model import DPA4
from dpa4sim.potential import Potential

SPECIES = ("Na", "Si", "Cl")


@pytest.fixture(scope="session")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A .safetensors file; its random weights exert forces."""
    path = tmp_path_factory.mktemp("model") / "random.safetensors"
    config = DPA4Config(
        species=SPECIES, cutoff=5.0, channels=16, n_blocks=1, max_degree=2, so2_layers=2
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network = DPA4(config)
        for weight in network.parameters():
            weight.data += 0.05 * torch.randn_like(weight)
    card = {"labels": "none", "validation": {"energy_meV_per_atom": 12.5}, "licence": "Apache-2.0"}
    Potential(network, card=card).save(path)
    return path


@pytest.fixture
def silicon() -> Atoms:
    """A shaken crystal, so that forces act."""
    atoms = bulk("Si", "diamond", a=5.43)
    atoms.rattle(0.05, seed=1)
    return atoms


@pytest.fixture
def salt() -> Atoms:
    """A shaken crystal of two elements."""
    atoms = bulk("NaCl", "rocksalt", a=5.64, cubic=True)
    atoms.rattle(0.05, seed=2)
    return atoms


@pytest.fixture
def crystals(tmp_path: Path, silicon: Atoms, salt: Atoms) -> Path:
    """Both in one extxyz file."""
    path = tmp_path / "crystals.extxyz"
    write(path, [silicon, salt])
    return path


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str, str]]:
    """Exit code, stdout and stderr of one command line."""

    def call(*words: object) -> tuple[int, str, str]:
        capsys.readouterr()
        code = main([str(word) for word in words])
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return call
