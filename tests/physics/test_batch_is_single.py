"""Law 1: a structure's result is the same alone, first, last, or beside a sick one, to the bit."""

from __future__ import annotations

import random
from dataclasses import replace

import pytest
import torch
from toy import LennardJones, crystals, from_atoms, without_bulk

from dpa4sim.batch import Batch
from dpa4sim.errors import Status
from dpa4sim.pool.capacity import Capacity
from dpa4sim.potential import Prediction
from dpa4sim.relax import run
from dpa4sim.relax.run import relax
from dpa4sim.simulate import md

N_BATCHES = 200
NAN = float("nan")


class Ward(LennardJones):
    """Lennard-Jones, and illnesses that follow from a system alone, told by its first atom.

    91: forces are not finite.  92: forces explode.  93: the cell is drawn together.
    94: it is torn apart.  95: the energy is lost when the volume has changed by a percent.
    """

    def __call__(self, batch: Batch) -> Prediction:
        healthy = super().__call__(batch)
        first = batch.n_atoms.cumsum(0) - batch.n_atoms
        kind = batch.atomic_numbers[first]
        of_atom = kind[batch.system_idx, None]
        forces = torch.where(of_atom == 91, NAN, healthy.forces)
        forces = torch.where(of_atom == 92, 1e4, forces)
        pull = torch.eye(3, dtype=torch.float64)
        stress = torch.where((kind == 93)[:, None, None], 30.0 * pull, healthy.stress)
        stress = torch.where((kind == 94)[:, None, None], -30.0 * pull, stress)
        per_atom = batch.volume / batch.n_atoms
        lost = (kind == 95) & ((per_atom / 12.0 - 1).abs() > 0.01)
        energy = torch.where(lost, NAN, healthy.energy)
        return replace(healthy, forces=forces, stress=stress, energy=energy)


def patients() -> tuple[list[Batch], list[bool]]:
    """Unlike structures, healthy and sick, and whether their cells may move."""
    perfect = [from_atoms(atoms) for atoms in crystals().values()]
    systems, cells = [], []
    for place in range(16):
        system = perfect[place % 5]
        noise = torch.Generator().manual_seed(place)
        shift = 0.04 * torch.randn(system.positions.shape, generator=noise, dtype=torch.float64)
        systems.append(system.with_geometry(system.positions + shift, system.cell))
        cells.append(True)
    for atoms in without_bulk().values():
        systems.append(from_atoms(atoms))
        cells.append(False)
    for kind in (91, 92, 93, 94, 95):
        system = perfect[kind % 3]
        numbers = system.atomic_numbers.clone()
        numbers[0] = kind
        systems.append(replace(system, atomic_numbers=numbers))
        cells.append(True)
    systems.append(replace(perfect[1], positions=perfect[1].positions * NAN))
    dense = perfect[3]
    systems.append(dense.with_geometry(0.7 * dense.positions, 0.7 * dense.cell))
    return systems, [*cells, True, True]


SYSTEMS, CELLS = patients()
LARGEST = 3000
"""Edges: the dense crystal has more."""


def fate(optimizer: str, chosen: list[int], room: float) -> list[tuple]:
    result = relax(
        Ward(),
        [SYSTEMS[i] for i in chosen],
        cell=[CELLS[i] for i in chosen],
        optimizer=optimizer,
        max_steps=9,
        max_edges=room,
    )
    return [
        (
            *(status, steps, repr(energy), repr(residual)),
            *(batch.positions.tolist(), batch.cell.tolist()),
        )
        for status, steps, energy, residual, batch in zip(
            result.status, result.steps, result.energy, result.residual, result.batches, strict=True
        )
    ]


@pytest.fixture(autouse=True)
def small_device(monkeypatch) -> None:
    limited = lambda working, largest: Capacity(working, LARGEST)
    monkeypatch.setattr(run, "Capacity", limited)


@pytest.mark.parametrize("optimizer", ["lbfgs", "fire"])
def test_relaxations(optimizer):
    alone = [repr(fate(optimizer, [i], 1e9)[0]) for i in range(len(SYSTEMS))]
    ends = {fate(optimizer, [i], 1e9)[0][0] for i in range(len(SYSTEMS))}
    wanted = {Status.NOT_FINITE, Status.EXPLODED, Status.INVALID, Status.OUT_OF_MEMORY}
    wanted |= {Status.MAX_STEPS} | ({Status.COLLAPSED} if optimizer == "fire" else set())
    assert ends >= wanted
    luck = random.Random(optimizer)
    for _ in range(N_BATCHES // 2):
        chosen = luck.sample(range(len(SYSTEMS)), luck.randint(2, 8))
        together = fate(optimizer, chosen, luck.choice([600.0, 3000.0, 1e9]))
        for place, i in enumerate(chosen):
            assert repr(together[place]) == alone[i], f"structure {i} in the batch {chosen}"


@pytest.mark.parametrize("ensemble", ["nvt", "npt"])
def test_trajectories(ensemble):
    def paths(chosen: list[int], room: float) -> list[str]:
        runs = md(
            Ward(),
            [SYSTEMS[i] for i in chosen],
            ensemble=ensemble,
            steps=[5 + i % 4 for i in chosen],
            seed=[100 + i for i in chosen],
            temperature=[200.0 + 20 * i for i in chosen],
            timestep=[0.5 + 0.1 * i for i in chosen],
            max_edges=room,
        )
        return [
            repr(
                (
                    *(each.status, each.steps, each.drift, each.means),
                    *(each.batch.positions.tolist(), each.batch.cell.tolist()),
                    each.velocities is None or each.velocities.tolist(),
                )
            )
            for each in runs
        ]

    alone = [paths([i], 1e9)[0] for i in range(len(SYSTEMS))]
    luck = random.Random(ensemble)
    for _ in range(N_BATCHES // 4):
        chosen = luck.sample(range(len(SYSTEMS)), luck.randint(2, 8))
        together = paths(chosen, luck.choice([600.0, 3000.0, 1e9]))
        for place, i in enumerate(chosen):
            assert together[place] == alone[i], f"structure {i} in the batch {chosen}"
