"""kill -9 at random moments: what is resumed ends like what was never interrupted, bit for bit."""

from __future__ import annotations

import time
from pathlib import Path

import pytest
import torch
from kill import killed
from toy import LennardJones, crystals, from_atoms

import dpa4sim
from dpa4sim.batch import Batch
from dpa4sim.relax.result import RelaxResult
from dpa4sim.relax.run import relax


def structures(count: int) -> list[Batch]:
    """Unlike crystals, no two alike."""
    perfect = [from_atoms(atoms) for atoms in crystals().values()]
    found = []
    for index in range(count):
        system = perfect[index % len(perfect)]
        noise = torch.Generator().manual_seed(index)
        shift = 0.03 * torch.randn(system.positions.shape, generator=noise, dtype=torch.float64)
        found.append(system.with_geometry(system.positions + shift, system.cell))
    return found


def assert_same(ours: RelaxResult, theirs: RelaxResult) -> None:
    assert ours.status == theirs.status
    assert ours.steps == theirs.steps
    assert ours.energy == theirs.energy
    for mine, other in zip(ours.batches, theirs.batches, strict=True):
        assert torch.equal(mine.positions, other.positions)
        assert torch.equal(mine.cell, other.cell)


@pytest.mark.slow
@pytest.mark.parametrize("optimizer", ["lbfgs", "fire"])
def test_a_relaxation_of_300_structures(tmp_path: Path, optimizer: str) -> None:
    steps = {"fire": 25, "lbfgs": 12}[optimizer]
    settings = {"optimizer": optimizer, "max_steps": steps, "max_edges": 30000}
    systems = structures(300)
    started = time.monotonic()
    calm = relax(LennardJones(), systems, **settings)
    whole = time.monotonic() - started

    def safely(folder: Path) -> RelaxResult:
        safe = {**settings, "directory": folder, "checkpoint_every_s": whole / 100}
        return relax(LennardJones(), systems, **safe)

    for folder in killed(safely, tmp_path, times=20, lasts=whole, seed=11):
        assert_same(safely(folder), calm)


@pytest.mark.slow
def test_a_relaxation_with_the_network(tmp_path: Path) -> None:
    """Its matrix products depend on who shares the batch: the resumed batches must be the same."""
    potential = dpa4sim.load("seed")
    systems = [
        s for s in structures(40) if potential.known_elements >= set(s.atomic_numbers.tolist())
    ]
    settings = {"max_steps": 12, "max_edges": 4000}
    started = time.monotonic()
    calm = relax(potential, systems, **settings)
    whole = time.monotonic() - started

    def safely(folder: Path) -> RelaxResult:
        safe = {**settings, "directory": folder, "checkpoint_every_s": whole / 50}
        return relax(potential, systems, **safe)

    for folder in killed(safely, tmp_path, times=8, lasts=2 * whole, seed=3):
        assert_same(safely(folder), calm)
