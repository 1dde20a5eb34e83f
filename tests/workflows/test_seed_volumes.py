"""The teacher's volumes of the demo crystals, with EMT as the teacher."""

import json
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from ase import Atoms
from ase.build import bulk
from emt_teacher import emt

A_EMT = 3.59  # Å, of EMT's copper
CLOSE = 2e-3  # at a bulk modulus of 134 GPa FMAX leaves 0.1 GPa, which is 3e-4, and A_EMT rounds


def crystal(name: str, a: float) -> Atoms:
    atoms = bulk(name, cubic=True, a=a)
    atoms.info = {"name": name, "formula": name, "prototype": "fcc"}
    return atoms


def test_volumes_are_relaxed_and_kept(recipe, tmp_path: Path, monkeypatch) -> None:
    volumes: ModuleType = recipe("seed_volumes")
    out, crystals = tmp_path / "volumes.json", [crystal("Cu", 3.615), crystal("Ag", 4.085)]
    volumes.relax_all(emt, crystals[:1], out)
    first = json.loads(out.read_text())["Cu"]
    assert first["converged"]
    assert first["volume_per_atom_experiment"] == pytest.approx(3.615**3 / 4)
    assert np.cbrt(4 * first["volume_per_atom_chgnet"]) == pytest.approx(A_EMT, rel=CLOSE)

    asked: list[int] = []

    def watched(frames: list[Atoms]) -> list[Atoms | None]:
        asked.extend(frame.numbers[0] for frame in frames)
        return emt(frames)

    monkeypatch.setattr(volumes, "STEPS", 1)
    volumes.relax_all(watched, crystals, out)
    assert set(asked) == {47}
    found = json.loads(out.read_text())
    assert found["Cu"] == first
    assert not found["Ag"]["converged"]
