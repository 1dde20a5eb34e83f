"""Branches of DeePMD-kit 3.2.0's multi-task checkpoints, number for number, and what we export."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from dpa4sim.adapters.deepmd import read_deepmd, write_deepmd, write_deepmd_branches
from dpa4sim.branches import branch_names
from dpa4sim.cli import main
from dpa4sim.potential import load

from .conftest import complaints, difference, read_numbers
from .peers import batch_of, kept_answers, run_script, write_system

pytestmark = [pytest.mark.peer, pytest.mark.slow]

SCRIPT = Path(__file__).with_name("branches_peer.py")
SOURCES = (SCRIPT, Path(__file__), SCRIPT.with_name("option_sets.py"))
KINDS = ("own", "film", "film_direct", "concat", "trained")
BRANCHES = ("water", "alloy", "crystals")
TOLERANCE = 1e-11
"""Two float64 programs that add in different orders, as in test_live.py."""
TELLS_APART = 1e-9
"""eV; four steps of training move a branch's modulation by 1e-5 at most."""


def write_frames(folder: Path) -> None:
    """A DeePMD system with energies and forces that mean nothing."""
    rng = np.random.default_rng(4)
    write_system(folder, [{"energy": rng.normal(size=4), "force": rng.normal(size=(4, 21))}])


@pytest.fixture(scope="module")
def answers(deepmd_python: Path, request: pytest.FixtureRequest) -> Path:
    """Folder of checkpoints and DeePMD-kit's answers, kept by pytest's cache."""

    def make(folder: Path) -> None:
        write_frames(folder / "frames")
        run_script(deepmd_python, SCRIPT, folder, folder / "frames")

    return kept_answers(request, "parity_branches", deepmd_python, SOURCES, make)


@pytest.mark.parametrize("branch", BRANCHES)
@pytest.mark.parametrize("kind", KINDS)
def test_a_branch_agrees(kind: str, branch: str, answers: Path) -> None:
    stored = read_numbers(answers / f"{kind}.{branch}.npz")
    potential = load(answers / f"{kind}.pt", branch=branch, dtype="float64")
    prediction = potential.evaluate([batch_of(given) for given in stored.values()])
    assert complaints(prediction, stored, TOLERANCE) == []


@pytest.mark.parametrize("kind", KINDS)
def test_the_peers_branches_differ(kind: str, answers: Path) -> None:
    """Or the test above would say nothing about the case."""
    one, other, third = (read_numbers(answers / f"{kind}.{name}.npz") for name in BRANCHES)
    for structure in one:
        found = [numbers[structure]["energy"] for numbers in (one, other, third)]
        assert min(abs(np.diff([*found, found[0]]))) > TELLS_APART


def test_deepmd_reads_one_branch_that_we_export(
    answers: Path, deepmd_python: Path, tmp_path: Path
) -> None:
    write_deepmd(*read_deepmd(answers / "concat.pt", "alloy"), tmp_path / "one.pt")
    run_script(deepmd_python, SCRIPT, "eval", tmp_path / "one.pt", tmp_path / "one.npz")
    agree(tmp_path / "one.npz", answers / "concat.alloy.npz")


def test_deepmd_reads_all_branches_that_we_export(
    answers: Path, deepmd_python: Path, tmp_path: Path
) -> None:
    ours, theirs = tmp_path / "film.safetensors", tmp_path / "film.pt"
    assert main(["convert", str(answers / "film.pt"), str(ours)]) == 0
    assert branch_names(ours) == BRANCHES
    assert main(["convert", str(ours), str(theirs)]) == 0
    run_script(deepmd_python, SCRIPT, "eval", theirs, tmp_path / "one.npz", "crystals")
    agree(tmp_path / "one.npz", answers / "film.crystals.npz")


def test_what_the_branches_share_is_shared_here(answers: Path, tmp_path: Path) -> None:
    """All three trunks of `dp --pt train` are one to the last bit."""
    path = tmp_path / "many.pt"
    write_deepmd_branches({b: read_deepmd(answers / "trained.pt", b) for b in BRANCHES}, path)
    states = [read_deepmd(path, branch)[1] for branch in BRANCHES]
    for name, value in states[0].items():
        if not name.startswith("head.") and name != "energy_shift":
            assert all(torch.equal(value, state[name]) for state in states)


def agree(got: Path, expected: Path) -> None:
    """Two files of DeePMD-kit's answers."""
    for structure, numbers in read_numbers(expected).items():
        for quantity, value in numbers.items():
            assert difference(read_numbers(got)[structure][quantity], value) < TOLERANCE
