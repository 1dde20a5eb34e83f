"""Magnetic models of DeePMD-kit 3.2.0, number for number, and what we export."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from dpa4sim.adapters.deepmd import read_deepmd, write_deepmd
from dpa4sim.batch import Batch
from dpa4sim.potential import Potential, load

from .conftest import REPOSITORY, Numbers, difference, read_numbers
from .peers import kept_answers, run_script

pytestmark = pytest.mark.peer

SCRIPT = Path(__file__).with_name("spin_peer.py")
SYSTEM = REPOSITORY.parent / "shared" / "data" / "nio_spin" / "data_0"
"""Nickel oxide with moments, 32 atoms; only the structures that are drawn where it is absent."""

VIRTUAL = ["virtual", "virtual_deep", "virtual_grids", "virtual_pairs", "virtual_scatter"]
VIRTUAL += ["virtual_zbl", "virtual_charged", "virtual_1_0"]
NATIVE = ["native", "native_deep", "native_grids", "native_no_seed", "native_zbl"]
NATIVE += ["native_1_1", "native_1_0"]
TOLERANCE = 1e-11
"""Two float64 programs that add in different orders; 2e-13 is what we see."""


@pytest.fixture(scope="module")
def answers(deepmd_python: Path, request: pytest.FixtureRequest) -> Path:
    """Folder of checkpoints and DeePMD-kit's answers, kept by pytest's cache."""

    def make(folder: Path) -> None:
        run_script(deepmd_python, SCRIPT, "build", folder, *system())

    sources = (SCRIPT, *map(SCRIPT.with_name, ("option_sets.py", "peer.py")))
    return kept_answers(request, "parity_spin", (deepmd_python, system()), sources, make)


def system() -> list[Path]:
    """Where there is one."""
    return [SYSTEM] if SYSTEM.is_dir() else []


def batch_of(given: Numbers) -> Batch:
    """A structure of an .npz file."""
    box = torch.as_tensor(given["box"]) if given["box"].size else None
    return Batch.single(
        given["coord"], given["numbers"], box, box is not None, magmoms=given["spin"]
    )


def off(potential: Potential, stored: dict[str, Numbers]) -> dict[str, float]:
    """Largest difference of each quantity, over all structures in one mixed batch.

    With moments a virial is not symmetric; the stress is its symmetric part, as everywhere.
    """
    batch = Batch.concatenate(batch_of(given) for given in stored.values())
    said, start = potential(batch), 0
    assert said.magnetic_forces is not None
    worst: dict[str, float] = {}
    for index, given in enumerate(stored.values()):
        n_atoms = len(given["atype"])
        atoms = slice(start, start := start + n_atoms)
        found = {
            "energy": difference(said.energy[index] / n_atoms, given["energy"] / n_atoms, False),
            "atom_energy": difference(said.atomic_energies[atoms], given["atom_energy"]),
            "force": difference(said.forces[atoms], given["force"]),
            "force_mag": difference(said.magnetic_forces[atoms], given["force_mag"]),
        }
        if given["box"].size:
            virial = 0.5 * (given["virial"] + given["virial"].T)
            found["virial"] = difference(-batch.volume[index] * said.stress[index], virial)
        worst = {name: max(value, worst.get(name, 0.0)) for name, value in found.items()} | {
            name: value for name, value in worst.items() if name not in found
        }
    return worst


@pytest.mark.parametrize("name", [*VIRTUAL, *NATIVE])
def test_energy_force_magnetic_force_and_virial_agree(name: str, answers: Path) -> None:
    stored = read_numbers(answers / f"{name}.npz")
    assert max(np.abs(given["force_mag"]).max() for given in stored.values()) > 1e-3
    worst = off(load(answers / f"{name}.pt", dtype="float64"), stored)
    assert set(worst) == {"energy", "atom_energy", "force", "force_mag", "virial"}
    assert {name: value for name, value in worst.items() if value > TOLERANCE} == {}


def test_native_model_whose_elements_are_all_asleep_is_a_model_without_spins(answers: Path) -> None:
    potential = load(answers / "native_asleep.pt", dtype="float64")
    assert not potential.config.has_spins
    for given in read_numbers(answers / "native_asleep.npz").values():
        said = potential(batch_of(given))
        assert difference(said.energy[0], given["energy"]) < TOLERANCE
        assert difference(said.forces, given["force"]) < TOLERANCE
        assert np.abs(given["force_mag"]).max() == 0


def test_deepmd_reads_what_we_export(answers: Path, deepmd_python: Path, tmp_path: Path) -> None:
    names = ["virtual_pairs", "virtual_zbl", "native", "native_no_seed", "native_1_1"]
    for name in names:
        write_deepmd(*read_deepmd(answers / f"{name}.pt"), tmp_path / f"{name}.pt")
    run_script(deepmd_python, SCRIPT, "eval", tmp_path, *system())
    for name in names:
        expected = read_numbers(answers / f"{name}.npz")
        for structure, got in read_numbers(tmp_path / f"{name}.npz").items():
            for quantity, value in expected[structure].items():
                assert difference(got[quantity], value) < TOLERANCE, (name, structure, quantity)
