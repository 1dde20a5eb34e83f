"""D3(BJ) against frozen numbers of simple-dftd3, finite differences, and the laws of the engine."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from ase import Atoms
from ase.build import bulk
from models import largest
from toy import LennardJones, from_atoms

import dpa4sim
from dpa4sim import dispersion
from dpa4sim.batch import Batch
from dpa4sim.composite import Sum
from dpa4sim.errors import ConfigError, DataError, Status

RELATIVE = 2e-6
"""Of energies: the kernels are float32; 5e-7 is what we see."""

FORCE = 2e-6
"""eV/Å and eV/Å^3: the same, of forces up to 0.04 eV/Å; 5e-7 is what we see."""

SLOPE = 2e-5
"""eV/Å and eV/Å^3: rounding of a float32 energy of an eV over two steps of 0.01 Å."""

REFERENCE = json.loads((Path(__file__).parent / "dispersion_reference.json").read_text())
"""Structures, and what simple-dftd3 says of them: made with tests/parity/d3_peer.py."""

STRUCTURES = [Atoms(**structure) for structure in REFERENCE["structures"]]
VOIGT = ((0, 0), (1, 1), (2, 2), (1, 2), (0, 2), (0, 1))


def packed() -> Batch:
    return Batch.concatenate(map(from_atoms, STRUCTURES))


def voigt(stress: torch.Tensor) -> np.ndarray:
    return np.array([stress[i, j] for i, j in VOIGT])


@pytest.mark.parametrize("functional", REFERENCE["functionals"])
def test_energies_are_those_of_simple_dftd3(functional):
    exact = [answer["energy"] for answer in REFERENCE["answers"][functional]]
    found = dpa4sim.d3(functional)(packed()).energy
    np.testing.assert_allclose(found, exact, rtol=RELATIVE)


@pytest.mark.parametrize("functional", ["pbe", "b3lyp", "r2scan"])
def test_forces_and_stress_are_those_of_simple_dftd3(functional):
    answers, found = REFERENCE["answers"][functional], dpa4sim.d3(functional)(packed())
    forces = np.concatenate([answer["forces"] for answer in answers])
    np.testing.assert_allclose(found.forces, forces, atol=FORCE, rtol=0)
    for answer, stress in zip(answers, found.stress, strict=True):
        if answer["stress"] is None:
            assert stress.isnan().all()
        else:
            np.testing.assert_allclose(voigt(stress), answer["stress"], atol=FORCE, rtol=0)


def test_every_functional_is_checked():
    assert sorted(REFERENCE["functionals"]) == sorted(dispersion.DAMPING)


def test_forces_and_stress_are_slopes_of_the_energy():
    d3, start = dpa4sim.d3("pbe"), from_atoms(STRUCTURES[0])
    found, step = d3(start), 0.01

    def energy(positions: torch.Tensor, cell: torch.Tensor) -> float:
        return float(d3(start.with_geometry(positions, cell)).energy[0])

    push = torch.zeros_like(start.positions)
    push[1, 2] = step
    ahead, back = (energy(start.positions + s * push, start.cell) for s in (1, -1))
    assert -(ahead - back) / (2 * step) == pytest.approx(float(found.forces[1, 2]), abs=SLOPE)
    strain = torch.zeros(3, 3, dtype=torch.float64)
    strain[0, 1] = strain[1, 0] = strain[2, 2] = 0.5 * step
    work = []
    for sign in (1, -1):
        turn = torch.eye(3, dtype=torch.float64) + sign * strain
        work.append(energy(start.positions @ turn, start.cell @ turn))
    exact = float((found.stress[0] * strain).sum() * start.volume[0])
    assert (work[0] - work[1]) / 2 == pytest.approx(exact, abs=SLOPE)


def test_a_batch_is_its_systems_to_the_last_bit(monkeypatch):
    d3 = dpa4sim.d3("pbe")
    together = d3(packed())
    for place, atoms in enumerate(STRUCTURES):
        alone, rows = d3(from_atoms(atoms)), packed().system_idx == place
        assert torch.equal(alone.energy[0], together.energy[place])
        assert torch.equal(alone.forces, together.forces[rows])
        assert torch.equal(alone.stress[0].nan_to_num(), together.stress[place].nan_to_num())
    monkeypatch.setattr(dispersion, "PAIRS_AT_ONCE", 30_000)
    assert len(list(dispersion._groups(packed(), d3.cutoff))) > 2
    assert torch.equal(d3(packed()).forces, together.forces)


def test_wherever_the_cell_is_cut():
    """Atoms outside their cell, and two cells instead of one."""
    d3, atoms = dpa4sim.d3("pbe"), STRUCTURES[2].copy()
    once = d3(from_atoms(atoms))
    atoms.positions += np.random.default_rng(0).integers(-2, 3, (len(atoms), 3)) @ atoms.cell.array
    moved, twice = d3(from_atoms(atoms)), d3(from_atoms(atoms * (1, 2, 1)))
    assert float(moved.energy[0]) == pytest.approx(float(once.energy[0]), rel=RELATIVE)
    assert float(twice.energy[0]) == pytest.approx(2 * float(once.energy[0]), rel=RELATIVE)
    assert largest(moved.forces - once.forces) < FORCE
    assert largest(twice.stress - once.stress) < FORCE


def test_atomic_energies_and_forces_add_up():
    batch = packed()
    found = dpa4sim.d3("pbe")(batch)
    sums = torch.zeros_like(found.energy).index_add(0, batch.system_idx, found.atomic_energies)
    np.testing.assert_allclose(sums, found.energy, rtol=1e-12)
    total = torch.zeros(batch.n_systems, 3, dtype=torch.float64)
    assert largest(total.index_add(0, batch.system_idx, found.forces)) < FORCE


def test_a_sick_system_harms_nobody():
    d3, well = dpa4sim.d3("pbe"), from_atoms(STRUCTURES[0])
    sick = replace(well, positions=well.positions * torch.nan)
    found = d3(Batch.concatenate([sick, well]))
    assert found.energy[0].isnan()
    assert found.forces[: len(well.positions)].isnan().all()
    assert torch.equal(found.energy[1], d3(well).energy[0])


def test_unknown_functional():
    with pytest.raises(ConfigError, match=r"no numbers for the functional 'lda'\. It has b3lyp, "):
        dpa4sim.d3("lda")
    with pytest.raises(ConfigError, match="2 numbers do not damp"):
        dpa4sim.d3((0.4, 4.4))
    with pytest.raises(ConfigError, match=r"cutoff=0\. Give a positive distance"):
        dpa4sim.d3("pbe", cutoff=0)


def test_numbers_in_place_of_a_functional():
    own = dpa4sim.d3(dispersion.DAMPING["pbe"])
    assert torch.equal(own(packed()).energy, dpa4sim.d3("PBE")(packed()).energy)


def test_an_element_without_reference_systems():
    model = LennardJones()
    total = Sum([model, dpa4sim.d3("pbe")])
    with pytest.raises(DataError, match=r"Structure 0 .*Pu"):
        total.evaluate(bulk("Pu", "fcc", a=4.6))
    found = dpa4sim.relax(total, [bulk("Pu", "fcc", a=4.6)], progress=False)
    assert found.status == [Status.INVALID]
