"""The files of ../shared/oracle: stored answers of DeePMD-kit 3.2.0, and a file trained by it."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

import dpa4sim
from dpa4sim.batch import Batch
from dpa4sim.potential import Potential

from .conftest import Numbers, complaints, read_numbers
from .option_sets import ATOMIC_NUMBERS

ORACLE = Path(__file__).parents[3] / "shared" / "oracle"
pytestmark = pytest.mark.skipif(
    not ORACLE.is_dir(),
    reason="The stored answers of DeePMD-kit, ../shared/oracle beside the repository, are absent.",
)

TOLERANCE = 1e-11
"""Two float64 programs that add in different orders; 1e-12 is what we see."""
TRAINED_TOLERANCE = 1e-9
"""DeePMD-kit reads the buffer `balance_weight` of such a file in float32: 1e-10 is what we see."""
FLOAT32_TOLERANCE = 1e-5
"""Both programs in float32: eV per atom, eV/Å."""

PERTURBED = ["A_neo_like", "C_zbl", "D_water_example"]


@pytest.mark.parametrize("name", PERTURBED)
def test_perturbed_model(name: str) -> None:
    check(f"{name}.perturbed.pt", f"{name}.perturbed.npz", "float64", TOLERANCE)


def test_trained_file_in_float64() -> None:
    check("W_pretrained_fp32.pt", "W_pretrained_fp64.npz", "float64", TRAINED_TOLERANCE)


def test_trained_file_in_float32() -> None:
    check("W_pretrained_fp32.pt", "W_pretrained_fp32.npz", "float32", FLOAT32_TOLERANCE)


def check(checkpoint: str, stored: str, dtype: str, tolerance: float) -> None:
    """Every stored structure in one batch agrees."""
    potential = dpa4sim.load(ORACLE / checkpoint, dtype=dtype)
    expected = read_numbers(ORACLE / stored)
    batches = [batch_of(potential, one) for one in expected.values()]
    assert complaints(potential.evaluate(batches), expected, tolerance) == []


def batch_of(potential: Potential, given: Numbers) -> Batch:
    """A stored structure as dpa4sim takes it; its types count along the model's elements."""
    numbers = [ATOMIC_NUMBERS[symbol] for symbol in potential.config.species]
    periodic = given["box"].size > 0
    return Batch.single(
        torch.as_tensor(given["coord"]),
        torch.as_tensor([numbers[kind] for kind in given["atype"]]),
        torch.as_tensor(given["box"].reshape(3, 3)) if periodic else None,
        pbc=periodic,
    )
