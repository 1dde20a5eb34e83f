"""simple-dftd3 itself: the frozen numbers are what it says today."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path

import numpy as np
import pytest

pytestmark = pytest.mark.peer

HERE = Path(__file__).parent
REPOSITORY = HERE.parents[1]
FROZEN = HERE.parent / "dispersion_reference.json"
PYTHON_VARIABLE = "DPA4SIM_D3_PYTHON"

DIGITS = 1e-8
"""Frozen with ten digits."""


@pytest.fixture(scope="module")
def python() -> Path:
    """The python that has simple-dftd3, or skip."""
    named = os.environ.get(PYTHON_VARIABLE)
    if named is not None and not Path(named).is_file():
        raise pytest.UsageError(f"{PYTHON_VARIABLE} = {named} is no file; it needs dftd3 and ase.")
    path = Path(named) if named else REPOSITORY / ".peers" / "d3" / "bin" / "python"
    if not path.is_file():
        pytest.skip(
            "simple-dftd3 is not installed: `make peers` creates .peers/d3, or name a python with "
            f"the packages dftd3 and ase in {PYTHON_VARIABLE}."
        )
    return path


def test_the_frozen_numbers_are_those_of_simple_dftd3(python):
    frozen = json.loads(FROZEN.read_text())
    done = subprocess.run(
        [str(python), str(HERE / "d3_peer.py")],
        input=json.dumps({key: frozen[key] for key in ("structures", "functionals")}),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    found = json.loads(done.stdout)["answers"]
    for functional, answers in frozen["answers"].items():
        for answer, now in zip(answers, found[functional], strict=True):
            for name, value in answer.items():
                if value is not None:
                    np.testing.assert_allclose(now[name], value, rtol=DIGITS, atol=DIGITS)
