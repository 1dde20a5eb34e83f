"""The Triton kernels are compiled for the H200 by Triton itself, which needs no GPU to do so."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from dpa4sim.kernels.triton_tiles import DEFAULT

SPILLED = 64
"""Bytes of a thread that may go to memory; today none does, a tile too large spills thousands."""

ROOT = Path(__file__).parents[2]


@pytest.mark.slow
def test_every_kernel_compiles_and_fits_with_its_safe_tile(tmp_path):
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    environment |= {"TRITON_CACHE_DIR": str(tmp_path), "OMP_NUM_THREADS": "1"}
    found = subprocess.run(
        [sys.executable, "-m", "bench", "tiles", "--compile", "--sizes", "air"],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert found.returncode == 0, found.stdout + found.stderr
    rows = {line.split()[0]: line.split() for line in found.stdout.splitlines()[1:]}
    assert rows.keys() == {name for name in DEFAULT if not name.endswith("_exact")}
    for name, (_, shared, registers, spilled) in rows.items():
        assert int(shared) <= 232_448, name
        assert 0 < int(registers) <= 255, name
        assert int(spilled) <= SPILLED, name
