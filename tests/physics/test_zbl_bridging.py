"""Two atoms pushed into each other: analytic repulsion inside the window, learned force outside."""

import importlib.util
import math
from pathlib import Path

import pytest
import torch
from models import CUTOFF, OPTION_SETS, crystal, dimer, largest, random_potential

from dpa4sim.potential import Potential

INNER, OUTER = 0.8, 1.6  # of the option set "zbl"

RELATIVE = 1e-13
"""Of the repulsion: two float64 evaluations of one formula."""

PAIRS = [(14, 6), (6, 6), (8, 14)]
DIMER_SCRIPT = Path(__file__).parents[2] / "workflows" / "dimer.py"


def zbl(r: float, z1: int, z2: int) -> tuple[float, float]:
    """Energy in eV and -dE/dr in eV/Å of Eq. 40, in plain Python."""
    length = 0.88534 * 0.5291772109 / (z1**0.23 + z2**0.23)
    screening = [(0.18175, 3.1998), (0.50986, 0.94229), (0.28022, 0.4029), (0.028171, 0.20162)]
    phi = sum(c * math.exp(-d * r / length) for c, d in screening)
    slope = sum(-c * d / length * math.exp(-d * r / length) for c, d in screening)
    coulomb = 14.3996 * z1 * z2 / r
    return coulomb * phi, coulomb * (phi / r - slope)


def pull(potential: Potential, r: float, numbers: tuple[int, int]) -> tuple[float, float]:
    """Energy, and the force that drives the second atom away."""
    prediction = potential(dimer(r, numbers))
    unit = torch.tensor([2.0, -1.0, 2.0], dtype=torch.float64) / 3
    return float(prediction.energy[0]), float(prediction.forces[1] @ unit)


def without_zbl(potential: Potential) -> Potential:
    """The learned part alone, behind the same window."""
    potential.model._repulsion = lambda species, edges, vector: 0.0 * species  # type: ignore[method-assign]
    return potential


@pytest.mark.parametrize("numbers", PAIRS)
def test_inside_the_window_the_force_is_zbl(numbers):
    potential = random_potential(OPTION_SETS["zbl"])
    for r in (0.05, 0.2, 0.4, 0.6, 0.7, 0.79):
        _, force = pull(potential, r, numbers)
        assert force == pytest.approx(zbl(r, *numbers)[1], rel=RELATIVE)


@pytest.mark.parametrize("numbers", PAIRS)
def test_learned_part_is_frozen_inside_the_window(numbers):
    """One energy for every distance, and exactly no force."""
    potential = without_zbl(random_potential(OPTION_SETS["zbl"]))
    predictions = [potential(dimer(r, numbers)) for r in (0.05, 0.3, 0.6, 0.79)]
    assert all(largest(one.forces) == 0 for one in predictions)
    assert len({float(one.energy[0]) for one in predictions}) == 1
    assert largest(potential(dimer(1.2, numbers)).forces) > 1e-3


def test_frozen_atoms_tell_others_nothing():
    """A pair inside the window sends no messages: a third atom sees neither where they point."""
    potential = without_zbl(random_potential(OPTION_SETS["zbl"]))
    energies = []
    for direction in ([1.0, 0, 0], [0, 0.6, 0.8]):
        batch = dimer(0.5)
        third = torch.tensor(direction, dtype=torch.float64) * 2.5
        positions = torch.cat([batch.positions, third[None]])
        crowd = type(batch).single(positions, torch.tensor([14, 6, 8]))
        energies.append(potential(crowd).atomic_energies[2])
    lone = potential(type(batch).single(torch.zeros(1, 3), torch.tensor([8]))).atomic_energies[0]
    assert float((energies[0] - energies[1]).abs()) < 1e-12
    assert float((energies[0] - lone).abs()) < 1e-12


def test_outside_the_window_nothing_is_clamped():
    """Learned and analytic parts add up, the gate is open."""
    with_window = without_zbl(random_potential(OPTION_SETS["zbl"]))
    open_model = random_potential(OPTION_SETS["zbl"])
    open_model.model.bridge = None
    for r in (OUTER, 1.9, 3.3):
        one, other = with_window(dimer(r)), open_model(dimer(r))
        assert largest(one.energy - other.energy) < 1e-13
        assert largest(one.forces - other.forces) < 1e-13


def test_no_force_excursion_at_the_seam():
    """C-Si through the window: what the learned part adds stays far below a splice's impulse.

    Splicing energies, w E_learned + (1 - w) E_ZBL, adds w' (E_learned - E_ZBL) to the slope.
    """
    learned, total = random_potential(OPTION_SETS["zbl"]), random_potential(OPTION_SETS["zbl"])
    without_zbl(learned)
    grid = [INNER + (OUTER - INNER) * k / 40 for k in range(41)]
    excess, impulse, forces = [], [], []
    for r in grid:
        analytic, analytic_force = zbl(r, 14, 6)
        forces.append(pull(total, r, (14, 6))[1])
        excess.append(abs(forces[-1] - analytic_force))
        t = (r - INNER) / (OUTER - INNER)
        slope = 140 * t**3 * (1 - t) ** 3 / (OUTER - INNER)
        impulse.append(abs(slope * (pull(learned, r, (14, 6))[0] - analytic)))
    assert min(forces) > 0
    assert max(excess) < 0.1 * max(impulse)


def test_forces_through_the_window_are_continuous():
    potential = random_potential(OPTION_SETS["zbl"])
    for seam in (INNER, OUTER):
        below, above = (pull(potential, seam + side * 1e-9, (14, 6))[1] for side in (-1, 1))
        assert below == pytest.approx(above, rel=1e-7)


def test_a_close_pair_in_a_crystal_is_repelled_by_zbl():
    """The leading force on a pair at 0.3 Å is the analytic one, whatever stands around."""
    potential, batch = random_potential(OPTION_SETS["zbl"]), crystal()
    step = torch.tensor([0.1, -0.2, 0.2], dtype=torch.float64)
    positions = batch.positions.clone()
    positions[1] = positions[0] + step
    forces = potential(batch.with_geometry(positions, batch.cell)).forces
    _, expected = zbl(0.3, 14, 6)
    assert float(forces[1] @ step / 0.3) == pytest.approx(expected, rel=0.02)


def test_window_reaches_no_farther_than_asked():
    """`zbl_outer` at the cutoff is allowed and the energy still fades to the lone atoms'."""
    config = OPTION_SETS["zbl"]
    wide = random_potential(type(config)(**(config.to_dict() | {"zbl_outer": CUTOFF})))
    assert math.isfinite(float(wide(dimer(4.4)).energy[0]))


def test_dimer_workflow_draws(tmp_path):
    spec = importlib.util.spec_from_file_location("dimer_workflow", DIMER_SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    workflow = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(workflow)
    picture = tmp_path / "dimer.png"
    assert workflow.main(["--steps", "3", "--out", str(picture)]) == 0
    assert picture.read_bytes().startswith(b"\x89PNG")
