"""Energy, forces and virial of DeePMD-kit 3.2.0, number for number, over its options."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

import dpa4sim
from dpa4sim.batch import Batch
from dpa4sim.errors import ModelError
from dpa4sim.potential import Prediction

from .conftest import SCRIPT, complaints, difference, read_numbers
from .option_sets import (
    N_RANDOM_SETS,
    TOLERANCE,
    OptionSet,
    Structure,
    find,
    option_sets,
    structures,
    unlisted_sets,
)
from .peers import run_script

pytestmark = pytest.mark.peer

FLOAT32_TOLERANCE = 5e-5
"""Per largest force: DeePMD-kit's own float32 forces are off by up to 2e-5 on these sets."""
FLOAT32_SETS = ["base", "paper_neo", "paper_plus", "mlp_bias", "zbl", "schedule_so3", "random_2"]
LIKE_BASE = ["base", "version_1_1", "branch"]
"""Sets whose file differs and whose function does not."""
ROUND_TRIP_SETS = [
    *("base", "paper_plus", "version_1_0", "version_1_1", "radial_rank_2", "mlp_bias", "gaussian"),
    *("l_schedule", "no_grid_no_glu", "ffn_blocks", "readout_layers", "exclude_types", "lora"),
    *("charge_spin", "charge_spin_default", "fitting_layers", "zbl", "schedule_so3"),
    *("readout_pyramid", *(f"random_{number}" for number in range(N_RANDOM_SETS))),
]
STRUCTURES = structures()


@pytest.mark.parametrize("name", [one.name for one in option_sets()])
def test_option_set_agrees(name: str, peer_answers: Path) -> None:
    chosen = find(name)
    prediction = evaluate(peer_answers / f"{name}.pt", chosen)
    expected = read_numbers(peer_answers / f"{name}.npz")
    assert complaints(prediction, expected, chosen.tolerance) == []


@pytest.mark.parametrize("name", [one.name for one in option_sets() if one.name not in LIKE_BASE])
def test_option_changes_the_numbers(name: str, peer_answers: Path) -> None:
    """Guards the sets: an option that DeePMD-kit ignores here would prove nothing above."""
    base, other = (read_numbers(peer_answers / f"{one}.npz") for one in ("base", name))
    assert difference(other["dense"]["force"], base["dense"]["force"]) > 1e6 * TOLERANCE


@pytest.mark.parametrize("name", [one.name for one in unlisted_sets()])
def test_unlisted_option_is_refused_by_name_or_agrees(name: str, peer_answers: Path) -> None:
    chosen = find(name)
    checkpoint = peer_answers / f"{name}.pt"
    if refused(checkpoint, str(chosen.unlisted)):
        return
    assert chosen.evaluated, f"{name} wants inputs that dpa4sim does not give; it must be refused"
    expected = read_numbers(peer_answers / f"{name}.npz")
    assert complaints(evaluate(checkpoint, chosen), expected, chosen.tolerance) == []


@pytest.mark.parametrize("name", FLOAT32_SETS)
def test_float32_forces_follow(name: str, peer_answers: Path) -> None:
    prediction = evaluate(peer_answers / f"{name}.pt", find(name), dtype="float32")
    expected = read_numbers(peer_answers / f"{name}.npz")
    assert complaints(prediction, expected, FLOAT32_TOLERANCE, only="force") == []


def test_deepmd_reads_what_we_export(
    peer_answers: Path, deepmd_python: Path, tmp_path: Path
) -> None:
    """Written again by us, a checkpoint gives DeePMD-kit the numbers that it gave before."""
    from dpa4sim.adapters.deepmd import read_deepmd, write_deepmd

    words: list[Path] = []
    for name in ROUND_TRIP_SETS:
        exported = tmp_path / f"{name}.pt"
        write_deepmd(*read_deepmd(peer_answers / f"{name}.pt"), exported)
        words += [exported, peer_answers / f"{name}.npz", tmp_path / f"{name}.npz"]
    run_script(deepmd_python, SCRIPT, "eval", *words)
    for name in ROUND_TRIP_SETS:
        expected = read_numbers(peer_answers / f"{name}.npz")
        got = read_numbers(tmp_path / f"{name}.npz")
        for one in STRUCTURES:
            for quantity, value in expected[one.name].items():
                worst = difference(got[one.name][quantity], value)
                assert worst < TOLERANCE, f"{name}: {quantity} of {one.name} is off by {worst:.1e}"


def test_a_mixed_batch_is_its_parts(peer_answers: Path) -> None:
    """One structure alone gives the numbers that it gives among the others."""
    chosen = find("paper_plus")
    potential = dpa4sim.load(peer_answers / "paper_plus.pt", dtype="float64")
    together = potential.evaluate([batch_of(one, chosen) for one in STRUCTURES])
    for index, one in enumerate(STRUCTURES):
        alone = potential.evaluate([batch_of(one, chosen)])
        assert difference(alone.energy, together.energy[index]) < TOLERANCE * len(one.symbols)


def batch_of(one: Structure, chosen: OptionSet) -> Batch:
    """The structure as dpa4sim takes it."""
    periodic = one.cell is not None
    return Batch.single(
        torch.as_tensor(one.positions),
        torch.as_tensor(one.atomic_numbers),
        torch.as_tensor(one.cell) if periodic else None,
        pbc=periodic,
        charge=one.charge if chosen.charge_spin else None,
        spin=one.spin if chosen.charge_spin else None,
    )


def evaluate(checkpoint: Path, chosen: OptionSet, dtype: str = "float64") -> Prediction:
    """Every structure in one mixed batch."""
    potential = dpa4sim.load(checkpoint, branch=chosen.branch, dtype=dtype)
    return potential.evaluate([batch_of(one, chosen) for one in STRUCTURES])


def refused(checkpoint: Path, option: str) -> bool:
    """The loader declines the file and says which option is why."""
    try:
        dpa4sim.load(checkpoint)
    except ModelError as error:
        if option not in str(error):
            raise
        return True
    return False
