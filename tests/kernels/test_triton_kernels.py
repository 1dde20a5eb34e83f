"""Runs the laws of the Triton kernels in processes of their own.

Triton decides when it is imported whether its interpreter is on, so a test of this process cannot
switch it: one child pytest runs the laws with TRITON_INTERPRET=1 on the CPU, and where there is a
CUDA device another runs those of them that need no interpreter on it.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

LAWS = Path(__file__).parent / "triton_laws"
ROOT = Path(__file__).parents[2]
ON_A_GPU = ("convolution", "grid", "assembly")


def run(names: list[str], interpret: str) -> str:
    """The last line of a child pytest that must pass; its whole report where it does not."""
    files = [str(LAWS / f"laws_{name}.py") for name in names]
    environment = {k: v for k, v in os.environ.items() if not k.startswith("PYTEST_")}
    environment |= {"TRITON_INTERPRET": interpret, "OMP_NUM_THREADS": "1"}
    found = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "--tb=short", *files],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert found.returncode == 0, found.stdout + found.stderr
    return found.stdout.strip().splitlines()[-1]


@pytest.mark.parametrize("name", sorted(path.stem[5:] for path in LAWS.glob("laws_*.py")))
def test_laws_by_the_interpreter(name):
    summary = run([name], "1")
    assert re.match(r"[1-9]\d* passed in", summary), summary  # none skipped, none missing


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("name", ON_A_GPU)
def test_laws_on_a_gpu(name):
    assert " passed" in run([name], "0")
