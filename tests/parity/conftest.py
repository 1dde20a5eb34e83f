"""Where DeePMD-kit's answers come from: its own python, run once and kept by pytest's cache."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest

from dpa4sim.potential import Prediction

from .peers import kept_answers, run_script

HERE = Path(__file__).parent
REPOSITORY = HERE.parents[1]
SCRIPT = HERE / "peer.py"
PYTHON_VARIABLE = "DPA4SIM_DEEPMD_PYTHON"
HOW_TO = "`make peers` creates .peers/deepmd with DeePMD-kit 3.2.0"
MISSING_PEER = f"DeePMD-kit is not installed beside the repository: {HOW_TO}."


Numbers = Mapping[str, np.ndarray]


def difference(got: object, expected: object, scaled: bool = True) -> float:
    """Largest difference; if scaled, in units of the largest number when that is above 1."""
    got, expected = np.asarray(got), np.asarray(expected)
    scale = max(1.0, np.abs(expected).max(initial=0.0)) if scaled else 1.0
    worst = float(np.abs(got - expected).max(initial=0.0) / scale)
    return worst if np.isfinite(worst) else np.inf


def complaints(
    prediction: Prediction, stored: Mapping[str, Numbers], tolerance: float, only: str | None = None
) -> list[str]:
    """Every quantity that is off, of the structures of one batch in their order.

    Energies are compared per atom in eV; atomic energies too; forces in eV/Å and virials in eV
    per their largest entry, because a close pair has 1e3 of them.
    """
    start, found = 0, []
    for index, (name, expected) in enumerate(stored.items()):
        n_atoms = len(expected["atype"])
        atoms = slice(start, start := start + n_atoms)
        energies = prediction.energy[index] / n_atoms, expected["energy"] / n_atoms
        each = prediction.atomic_energies[atoms], expected["atom_energy"].reshape(-1)
        forces = prediction.forces[atoms], expected["force"].reshape(-1, 3)
        off = {
            "energy": difference(*energies, scaled=False),
            "atom_energy": difference(*each, scaled=False),
            "force": difference(*forces),
        }
        if expected["box"].size:
            volume = abs(np.linalg.det(expected["box"].reshape(3, 3)))
            virial = -volume * prediction.stress[index]
            off["virial"] = difference(virial, expected["virial"].reshape(3, 3))
        found += [
            f"{name}: {quantity} differs by {worst:.1e}"
            for quantity, worst in off.items()
            if worst >= tolerance and only in (None, quantity)
        ]
    return found


def read_numbers(file: Path) -> dict[str, dict[str, np.ndarray]]:
    """The arrays of an npz file with keys `STRUCTURE/quantity`."""
    found: dict[str, dict[str, np.ndarray]] = {}
    with np.load(file) as table:
        for key in table.files:
            structure, quantity = key.rsplit("/", 1)
            found.setdefault(structure, {})[quantity] = table[key]
    return found


def peer_python() -> Path | None:
    """The python of DeePMD-kit's virtual environment, if there is one."""
    named = os.environ.get(PYTHON_VARIABLE)
    if named is not None:
        if not Path(named).is_file():
            raise pytest.UsageError(f"{PYTHON_VARIABLE} = {named} is no file; {HOW_TO}.")
        return Path(named)
    local = REPOSITORY / ".peers" / "deepmd" / "bin" / "python"
    return local if local.is_file() else None


@pytest.fixture(scope="session")
def deepmd_python() -> Path:
    """DeePMD-kit's python, or skip."""
    python = peer_python()
    if python is None:
        pytest.skip(MISSING_PEER)
    return python


@pytest.fixture(scope="session")
def peer_answers(deepmd_python: Path, request: pytest.FixtureRequest) -> Path:
    """Folder of NAME.pt and NAME.npz, made anew when peer.py or the option sets change."""
    sources = (SCRIPT, SCRIPT.with_name("option_sets.py"))

    def make(folder: Path) -> None:
        run_script(deepmd_python, SCRIPT, "build", folder)

    return kept_answers(request, "parity", deepmd_python, sources, make)
