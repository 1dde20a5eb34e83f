"""Small labelled sets and small networks for tests of the trainer."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from ase.build import bulk
from ase.calculators.emt import EMT

from dpa4sim.adapters.ase import from_atoms
from dpa4sim.data.frame import Frame
from dpa4sim.data.writer import write_store

MODEL = {
    "cutoff": 4.0,
    "channels": 8,
    "n_blocks": 1,
    "max_degree": 1,
    "so2_layers": 2,
    "n_radial": 6,
}


def frames(n: int, *, seed: int = 0, sick: tuple[int, ...] = ()) -> list[Frame]:
    """Rattled crystals of copper and gold, labelled by EMT; `sick` ones have huge forces."""
    rng = np.random.default_rng(seed)
    found = []
    for index in range(n):
        atoms = bulk(("Cu", "Au")[index % 2], cubic=True)
        atoms.set_cell(atoms.cell[:] * rng.uniform(0.95, 1.05), scale_atoms=True)
        atoms.positions += rng.normal(0, 0.08, (len(atoms), 3))
        atoms.calc = EMT()
        forces = atoms.get_forces()
        if index in sick:
            forces = forces + 1e200
        found.append(
            Frame(
                where=f"made.extxyz frame {index} ({atoms.get_chemical_formula()})",
                system=from_atoms(atoms),
                energy=float(atoms.get_potential_energy()),
                forces=forces,
                stress=atoms.get_stress(voigt=False),
            )
        )
    return found


def store(path: Path, n: int = 24, **options: Any) -> Path:
    """A store of such frames."""
    write_store(path, frames(n, **options), cutoff=MODEL["cutoff"])
    return path


def settings(source: Path, steps: int = 12, **tables: dict[str, Any]) -> dict[str, Any]:
    """Settings of a run of seconds."""
    plain: dict[str, Any] = {
        "run": {"steps": steps, "validate_every": 5, "log_every_s": 1e9},
        "data": {"train": str(source), "valid_fraction": 0.25, "max_edges": 900},
        "model": dict(MODEL),
        "schedule": {"warmup_steps": 2},
    }
    for name, table in tables.items():
        plain[name] = {**plain.get(name, {}), **table}
    return plain
