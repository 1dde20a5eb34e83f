"""Candidates and settings for campaigns that take no time."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from ase import Atoms
from ase.build import bulk
from toy import LennardJones

from dpa4sim.pool.checkpoint import model_fingerprint
from dpa4sim.screen.campaign import Campaign
from dpa4sim.screen.candidate import Candidate
from dpa4sim.screen.run import init, run
from dpa4sim.screen.settings import Candidates, Model, Relaxation, Settings

METALS = ("Cu", "Ni", "Ag", "Au", "Pd", "Pt", "Al", "Rh", "Ir", "Pb", "Ca", "Sr")
EDGES = 20_000
"""So that every batch is the same on every machine."""


def alloys(count: int, seed: int = 0) -> list[Atoms]:
    """Shaken crystals of four atoms, in so many compositions that few of them are equal."""
    noise = np.random.default_rng(seed)
    found = []
    for index in range(count):
        atoms = bulk("Cu", "fcc", a=3.6, cubic=True)
        if index:
            atoms.symbols = noise.choice(METALS, 4)
        atoms.set_cell(atoms.cell * noise.uniform(0.97, 1.06), scale_atoms=True)
        atoms.positions += noise.normal(size=(4, 3)) * 0.05
        atoms.info["name"] = f"alloy-{index}"
        found.append(atoms)
    return found


def given(count: int) -> list[Candidate]:
    """The same as candidates."""
    return [Candidate(a.info["name"], f"given#{i}", a) for i, a in enumerate(alloys(count))]


def settings(
    files: tuple[str, ...] = (), *, chunk_size: int = 5, max_steps: int = 15, **candidates: Any
) -> Settings:
    """Of a Lennard-Jones campaign."""
    return Settings(
        model=Model(hash=model_fingerprint(LennardJones())),
        candidates=Candidates(files=files, chunk_size=chunk_size, **candidates),
        relax=Relaxation(max_steps=max_steps, fmax=0.05, max_edges=EDGES),
    )


def begun(folder: Path, count: int = 12, **options: Any) -> Campaign:
    """A campaign with its candidates, before its first run."""
    return init(folder, settings(**options), LennardJones(), given(count), progress=False)


def finished(folder: Path, count: int = 12, **options: Any) -> pa.Table:
    """The results of a campaign, whatever state its folder is in."""
    with begun(folder, count, **options) as campaign:
        run(campaign, LennardJones(), progress=False, checkpoint_every_s=0.02)
        return campaign.results()
