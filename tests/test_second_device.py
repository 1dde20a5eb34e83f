"""Law: nothing depends on where it is computed, and nothing stays behind on the processor.

No GPU is needed: `second_device` is a stand-in that refuses what CUDA refuses.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

HERE = Path(__file__).parent

EXACT = 1e-9
"""Double precision, some steps; the processor has paths of its own, which sum in another order."""

TOLERANCES = dict.fromkeys(("float32", "fast", "train muon", "train adamw"), 1e-5)
"""Optimisers divide gradients that nearly cancel by their size."""

CASES = (
    *(f"network {name}" for name in ("neo", "order_2", "focuses", "so3_grid", "scatter")),
    *(f"network {name}" for name in ("per_channel", "zbl", "version_1_0", "charge_spin")),
    *(f"network {name}" for name in ("excluded", "no_seed", "grid_mlp", "schedules", "degree_0")),
    *("direct", "property", "float32", "fast", "descriptors", "ensemble", "sum"),
    *(f"relax {name}" for name in ("lbfgs", "lbfgs, fixed cells", "hydrostatic")),
    *(f"relax {name}" for name in ("constant volume", "symmetry", "fixed atoms, mask, pressure")),
    *(f"relax {name}" for name in ("fire", "fire, unit filter")),
    *(f"md {name}" for name in ("nve", "langevin", "bussi")),
    *(f"md {name}" for name in ("npt isotropic", "npt anisotropic", "npt triclinic")),
    *(f"recorded {name}" for name in ("lbfgs", "fire", "langevin", "bussi")),
    *(f"train {name}" for name in ("muon", "adamw")),
)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Every case on both devices, in a process that knows the second one."""
    command = [sys.executable, HERE / "second_device_run.py", tmp_path_factory.mktemp("second")]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    found: dict[str, Any] = json.loads(done.stdout)
    return found


@pytest.mark.parametrize("case", CASES)
def test_the_second_device_answers_as_the_processor(run: dict[str, Any], case: str) -> None:
    result = run[case]
    assert result["error"] is None, result["error"]
    assert result["apart"] < TOLERANCES.get(case, EXACT)


def test_every_case_is_looked_at(run: dict[str, Any]) -> None:
    assert set(run) == {*CASES, "refused"}


def test_the_second_device_refuses_what_cuda_refuses(run: dict[str, Any]) -> None:
    for what, words in run["refused"].items():
        assert words is not None, f"{what} was not refused"
