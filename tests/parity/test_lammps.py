"""The real LAMMPS driven by `fix external`: static numbers, trajectories, relaxation, refusals."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path
from typing import Any

import pytest

pytestmark = [pytest.mark.peer, pytest.mark.slow]

HERE = Path(__file__).parent
REPOSITORY = HERE.parents[1]
SCRIPT, EXAMPLE = HERE / "lammps_peer.py", REPOSITORY / "examples" / "06_lammps.py"
PYTHON_VARIABLE = "DPA4SIM_LAMMPS_PYTHON"
HOW_TO = "`make peers` creates .peers/lammps with LAMMPS and dpa4sim"

ROUNDING = 1e-11
"""eV, eV/Å, and per largest virial: float64 in a turned frame; 2e-13 is what we see."""

PATH = 1e-10
"""Å and Å/fs after 200 steps of the same arithmetic; 3e-15 is what we see."""


@pytest.fixture(scope="module")
def python() -> Path:
    """The python that has LAMMPS, or skip."""
    named = os.environ.get(PYTHON_VARIABLE)
    if named is not None and not Path(named).is_file():
        raise pytest.UsageError(f"{PYTHON_VARIABLE} = {named} is no file; {HOW_TO}.")
    path = Path(named) if named else REPOSITORY / ".peers" / "lammps" / "bin" / "python"
    if not path.is_file():
        pytest.skip(f"LAMMPS is not installed beside the repository: {HOW_TO}.")
    return path


def output(*words: str | Path) -> str:
    """What a program prints; its last words are the error message."""
    done = subprocess.run(
        [str(word) for word in words],
        capture_output=True,
        text=True,
        check=False,
        env=os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(REPOSITORY)},
    )
    if done.returncode != 0:
        pytest.fail(f"{words} failed:\n{done.stderr[-2000:]}", pytrace=False)
    return done.stdout


@pytest.fixture(scope="module")
def answers(python: Path) -> dict[str, Any]:
    """What lammps_peer.py found, by verb; one process, because most of its time is imports."""
    return json.loads(output(python, SCRIPT, "static", "nve", "relax", "refusals").splitlines()[-1])


def test_energy_forces_and_virial_are_ours(answers):
    """Orthogonal, tilted and turned, a slab, a molecule; ids shuffled, with gaps."""
    found = answers["static"]
    assert found.keys() == {"orthogonal", "triclinic", "slab", "molecule"}
    for name, worst in found.items():
        assert worst["largest force"] > 0.5, "forces of nothing prove nothing"
        for quantity in ("energy", "forces", "virial", "each"):
            assert worst[quantity] < ROUNDING, f"{name}: {quantity}"


def test_the_trajectory_is_ours(answers):
    """200 steps at 300 K from equal velocities, LAMMPS re-sorting its atoms on the way."""
    found = answers["nve"]
    assert found["moved"] > 0.3
    assert found["resorted"]
    assert found["positions"] < PATH
    assert found["velocities"] < PATH
    assert abs(found["our drift"]) < 1e-4
    assert abs(found["drift"] - found["our drift"]) < PATH


def test_lammps_relaxes_atoms_and_box(answers):
    """`minimize` with `fix box/relax tri` needs energy, forces and virial that belong together."""
    found = answers["relax"]
    assert found["gain"] > 0.1
    assert found["energy"] < ROUNDING
    assert found["force"] < 1e-3
    assert found["stress"] < 1e-5
    assert 0 <= found["left"] < 1e-6


def test_what_cannot_run_is_refused_in_words(answers):
    found = answers["refusals"]
    assert "Begin its input with 'units metal'" in found["units"]
    assert "Attach after create_box" in found["box"]
    assert "2 atom type(s), and 1 element(s)" in found["types"]
    assert found["one site"].startswith("DataError: LAMMPS step 0 cannot be evaluated: atoms 0")
    assert found["still"] == found["one site"]
    assert found["steps"] == "0", "LAMMPS went on with forces that nobody gave it"
    assert "Unknown command: no_such_command" in found["of LAMMPS"]


def test_several_ranks_are_refused_in_words(python):
    """Both ranks say so; whose line ends first is a matter of luck."""
    out = output(python.with_name("mpirun"), "-n", "2", python, SCRIPT, "ranks")
    assert out.count("ConfigError: LAMMPS runs on 2 MPI ranks") == 2
    assert out.count("pair_style deepmd") == 2


def test_the_example_runs(python):
    out = output(python, EXAMPLE)
    assert out.count("eV/atom") == 3
