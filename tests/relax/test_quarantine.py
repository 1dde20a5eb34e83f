"""A sick system is marked and put to rest; the others never learn of it."""

import pytest
import torch
from toy import LennardJones, Sick, crystals, packed

from dpa4sim.batch import Batch
from dpa4sim.errors import Status
from dpa4sim.lattice import volume
from dpa4sim.pool.pack import take
from dpa4sim.relax.fire import FireSettings, FireState, fire_init, fire_step
from dpa4sim.relax.freedom import unconstrained

NAN, INF = float("nan"), float("inf")
SETTINGS = FireSettings(fmax=1e-6, max_steps=1000)
ILLNESSES = [
    ("energy", NAN, Status.NOT_FINITE),
    ("forces", NAN, Status.NOT_FINITE),
    ("forces", INF, Status.NOT_FINITE),
    ("stress", NAN, Status.NOT_FINITE),
    ("forces", 1e4, Status.EXPLODED),
    ("stress", -50.0, Status.EXPLODED),
    ("stress", 50.0, Status.COLLAPSED),
]


def marked() -> Batch:
    """Five crystals; the third is the one that falls sick."""
    batch = packed(crystals().values())
    batch.atomic_numbers[batch.system_idx == 2] = Sick.MARK
    return batch


def walk(batch: Batch, model, steps: int, cell_filter: str) -> list[FireState]:
    freedom = unconstrained(batch)
    path = [fire_init(batch, model, freedom=freedom, cell_filter=cell_filter, settings=SETTINGS)]
    for _ in range(steps):
        path.append(fire_step(path[-1], model))
    return path


def numbers(state: FireState) -> list[torch.Tensor]:
    prediction = state.prediction
    return [
        *(state.batch.positions, state.batch.cell, state.residual, state.status, state.steps),
        *(prediction.energy, prediction.forces, prediction.stress),
    ]


def assert_same_bits(ours: FireState, theirs: FireState) -> None:
    torch.testing.assert_close(numbers(ours), numbers(theirs), rtol=0, atol=0)


@pytest.mark.parametrize("cell_filter", ["frechet", "unit"])
@pytest.mark.parametrize(("field", "value", "expected"), ILLNESSES)
def test_sick_from_the_seventh_step(field, value, expected, cell_filter):
    path = walk(marked(), Sick(LennardJones(), field, value, from_call=8), 150, cell_filter)
    healthy = walk(marked(), LennardJones(), 150, cell_filter)
    mates = [0, 1, 3, 4]
    for ours, theirs in zip(path, healthy, strict=True):
        assert_same_bits(take(ours, mates), take(theirs, mates))

    status = [int(state.status[2]) for state in path]
    onset = status.index(expected)
    assert set(status[:onset]) == {Status.RUNNING}
    assert set(status[onset:]) == {expected}, "a sickness has one name, and no cure"
    assert onset >= 7
    assert onset == 7 or field == "stress"
    assert [int(state.steps[2]) for state in path[-2:]] == [onset] * 2

    last_sound, end = take(path[onset - 1], [2]), take(path[-1], [2])
    for before, after in zip(numbers(last_sound), numbers(end), strict=True):
        if before.dtype == torch.float64:
            assert torch.isfinite(after).all()
            assert torch.equal(before, after), "it keeps its last sound geometry and prediction"
    growth = volume(end.batch.cell) / volume(end.geometry.start_cell)
    assert 0.2 <= float(growth) <= 5.0


@pytest.mark.parametrize(("field", "value", "expected"), ILLNESSES[:5])
def test_sick_from_the_start(field, value, expected):
    path = walk(marked(), Sick(LennardJones(), field, value), 10, "frechet")
    healthy = walk(marked(), LennardJones(), 10, "frechet")
    assert_same_bits(take(path[-1], [0, 1, 3, 4]), take(healthy[-1], [0, 1, 3, 4]))
    assert path[-1].status[2] == expected
    assert path[-1].steps[2] == 0
    start, end = take(path[0], [2]).batch, take(path[-1], [2]).batch
    assert torch.equal(start.positions, end.positions)
    assert torch.equal(start.cell, end.cell)


def test_the_model_never_sees_a_collapsed_cell():
    seen = []

    def watched(batch: Batch):
        seen.append(float(volume(batch.cell)[2] / volume(start.cell)[2]))
        return squeezing(batch)

    start, squeezing = marked(), Sick(LennardJones(), "stress", 50.0)
    watched.cutoff, watched.device = squeezing.cutoff, squeezing.device
    walk(start, watched, 100, "frechet")
    assert 0.2 <= min(seen) < 0.3
