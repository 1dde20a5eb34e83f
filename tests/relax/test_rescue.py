"""What L-BFGS does when it gets lost: planted sicknesses, planted slowness, FIRE."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from toy import Einstein, Free, LennardJones, Sick, crystals, from_atoms, packed, without_bulk

from dpa4sim.batch import Batch
from dpa4sim.errors import Status
from dpa4sim.lattice import volume
from dpa4sim.pool.pack import take
from dpa4sim.potential import Prediction
from dpa4sim.relax import rescue
from dpa4sim.relax.freedom import unconstrained
from dpa4sim.relax.lbfgs import LbfgsSettings, LbfgsState, lbfgs_init, lbfgs_step

NAN, INF = float("nan"), float("inf")
SETTINGS = LbfgsSettings(fmax=1e-6, max_steps=1000)
ILLNESSES = [
    ("energy", NAN, Status.NOT_FINITE),
    ("forces", NAN, Status.NOT_FINITE),
    ("forces", INF, Status.NOT_FINITE),
    ("stress", NAN, Status.NOT_FINITE),
    ("forces", 1e4, Status.EXPLODED),
    ("stress", -50.0, Status.EXPLODED),
    ("stress", 50.0, Status.COLLAPSED),
]

REFERENCE_TOLERANCE_A = 1e-9
"""Of FIRE written a second time, over 30 steps; measured 1e-14."""


def marked() -> Batch:
    """Four crystals; the third is the one that falls sick."""
    batch = packed(list(crystals().values())[:4])
    batch.atomic_numbers[batch.system_idx == 2] = Sick.MARK
    return batch


def walk(batch: Batch, model, steps: int) -> list[LbfgsState]:
    freedom = unconstrained(batch, batch.pbc.all(1))
    path = [lbfgs_init(batch, model, freedom=freedom, settings=SETTINGS)]
    for _ in range(steps):
        path.append(lbfgs_step(path[-1], model))
    return path


def numbers(state: LbfgsState) -> list[torch.Tensor]:
    prediction = state.prediction
    return [
        *(state.batch.positions, state.batch.cell, state.residual, state.status, state.steps),
        *(prediction.energy, prediction.forces, prediction.stress),
    ]


def assert_same_bits(ours: LbfgsState, theirs: LbfgsState) -> None:
    torch.testing.assert_close(numbers(ours), numbers(theirs), rtol=0, atol=0, equal_nan=True)


@pytest.fixture(scope="module")
def healthy() -> list[LbfgsState]:
    return walk(marked(), LennardJones(), 75)


@pytest.mark.parametrize(("field", "value", "expected"), ILLNESSES)
def test_the_second_sickness_is_final(field, value, expected, healthy):
    path = walk(marked(), Sick(LennardJones(), field, value, from_call=5), 75)
    mates = [0, 1, 3]
    for ours, theirs in zip(path, healthy, strict=True):
        assert_same_bits(take(ours, mates), take(theirs, mates))

    revived = [bool(state.rescue.revived[2]) for state in path]
    first = revived.index(True)
    status = [int(state.status[2]) for state in path]
    onset = status.index(expected)
    assert first == 4 or field == "stress"
    assert onset == first + 1 or field == "stress"
    assert onset > first
    assert set(status[:onset]) == {Status.RUNNING}
    assert set(status[onset:]) == {expected}, "a second sickness has one name, and no cure"
    assert int(path[-1].steps[2]) == onset

    last_sound, end = take(path[onset - 1], [2]), take(path[-1], [2])
    for before, after in zip(numbers(last_sound), numbers(end), strict=True):
        if before.dtype == torch.float64:
            assert torch.isfinite(after).all()
            assert torch.equal(before, after), "it keeps its last sound geometry and prediction"
    growth = volume(end.batch.cell) / volume(end.start_cell)
    assert 0.2 <= float(growth) <= 5.0


@pytest.mark.parametrize(("field", "value", "expected"), ILLNESSES[:5])
def test_sick_from_the_start(field, value, expected, healthy):
    path = walk(marked(), Sick(LennardJones(), field, value), 5)
    assert_same_bits(take(path[-1], [0, 1, 3]), take(healthy[5], [0, 1, 3]))
    assert path[0].status[2] == path[-1].status[2] == expected
    assert path[-1].steps[2] == 0
    start, end = take(path[0], [2]).batch, take(path[-1], [2]).batch
    assert torch.equal(start.positions, end.positions)
    assert torch.equal(start.cell, end.cell)


def test_a_start_without_computable_edges_is_invalid():
    batch = packed(crystals().values())
    batch.cell[1, 2] = 0.0
    state = lbfgs_init(batch, LennardJones(), freedom=unconstrained(batch, False))
    assert state.status[1] == Status.INVALID


class Hiccup:
    """Sick once, at one of its calls."""

    def __init__(self, at: int):
        self.at, self.calls = at, 0
        self.well, self.ill = LennardJones(), Sick(LennardJones(), "forces", NAN)
        self.cutoff, self.device = self.well.cutoff, self.well.device

    def __call__(self, batch: Batch) -> Prediction:
        self.calls += 1
        return (self.ill if self.calls == self.at else self.well)(batch)


def test_one_sickness_is_recovered_from(healthy):
    """Back to the best point, with a plain step of the revival radius; then down as before."""
    path = walk(marked(), Hiccup(at=13), 45)
    before, back = take(path[11], [2]), take(path[12], [2])
    assert torch.equal(back.batch.positions, before.best.positions)
    assert torch.equal(back.batch.cell, before.best.cell)
    assert torch.equal(back.prediction.forces, before.best.prediction.forces)
    assert float(back.residual) == float(before.best.residual)
    assert back.steps.tolist() == [12]
    assert back.history.length.tolist() == [0]
    assert back.gamma.tolist() == [1.0] != before.gamma.tolist()
    assert back.radius.tolist() == [rescue.REVIVAL_RADIUS_A]
    n = len(back.start.positions)
    plain = back.point.force / 70.0
    strain = back.point.work / volume(back.batch.cell)
    longest = max(float(plain.norm(dim=1).max()), 2 * float(strain.norm()))
    factor = min(1.0, 0.05 / longest)
    torch.testing.assert_close(back.direction[:n], factor * plain)
    torch.testing.assert_close(back.direction[n:].flatten(), factor * strain[0])
    end = take(path[-1], [2])
    assert end.status.tolist() == [Status.CONVERGED]
    energy = healthy[-1].prediction.energy[2]
    assert float(end.prediction.energy) == pytest.approx(float(energy), abs=1e-6)


def test_the_best_point_is_the_one_of_lowest_enthalpy():
    batch, best = marked(), None
    for state in walk(batch, LennardJones(), 15):
        best = state.point.enthalpy if best is None else torch.minimum(best, state.point.enthalpy)
        assert torch.equal(state.best.enthalpy, best)


def test_the_model_never_sees_a_collapsed_cell():
    seen = []

    def watched(batch: Batch) -> Prediction:
        seen.append(float(volume(batch.cell)[2] / volume(start.cell)[2]))
        return squeezing(batch)

    start, squeezing = marked(), Sick(LennardJones(), "stress", 50.0)
    watched.cutoff, watched.device = squeezing.cutoff, squeezing.device
    end = walk(start, watched, 60)[-1]
    assert end.status[2] == Status.COLLAPSED
    assert 0.2 <= min(seen) < 0.4


class Slope(Free):
    """A constant force on every atom: energy falls for ever, and the force never does."""

    def __call__(self, batch: Batch) -> Prediction:
        prediction = super().__call__(batch)
        forces = prediction.forces + torch.tensor([0.3, 0.0, 0.4], dtype=torch.float64)
        energies = -(forces * batch.positions).sum(1)
        energy = prediction.energy.index_add(0, batch.system_idx, energies)
        return replace(prediction, energy=energy, forces=forces, atomic_energies=energies)


def test_without_progress_it_starts_anew_once_and_falls_at_last():
    batch = packed([without_bulk()["molecule"]] * 2)
    path = walk(batch, Slope(), 70)
    path[-1] = replace(path[-1], radius=2 * path[-1].radius)
    for _ in range(140):
        path.append(lbfgs_step(path[-1], Slope()))
    restarted = [bool(state.rescue.restarted[0]) for state in path]
    onset = restarted.index(True)
    assert onset == rescue.STALE_AFTER
    anew = path[onset]
    assert anew.radius.tolist() == [rescue.RESTART_RADIUS_A] * 2
    assert anew.history.length.tolist() == [0] * 2
    assert anew.gamma.tolist() == [1.0] * 2
    assert torch.equal(anew.batch.positions, path[onset].point.positions)
    assert not torch.equal(anew.batch.positions, path[onset - 1].batch.positions)
    falling = [bool(state.rescue.falling[0]) for state in path]
    first = falling.index(True)
    assert int(path[first].evaluations[0]) == rescue.FIRE_AFTER
    assert all(falling[first:])
    assert path[first - 1].radius.tolist() == [2 * rescue.RESTART_RADIUS_A] * 2, "once only"
    assert path[first].radius.tolist() == [rescue.RESTART_RADIUS_A] * 2


def test_progress_that_takes_too_long_starts_anew_too(monkeypatch):
    """The residual falls at every step, and still it is late."""
    monkeypatch.setattr(rescue, "RESTART_AFTER", 5)
    path = walk(packed([crystals()["primitive"]]), LennardJones(), 8)
    residuals = [float(state.residual) for state in path]
    onset = [bool(state.rescue.restarted[0]) for state in path].index(True)
    assert int(path[onset].evaluations[0]) == 5
    assert min(residuals[: onset + 1]) > SETTINGS.fmax
    assert path[onset].history.length.tolist() == [0]
    assert path[onset].gamma.tolist() == [1.0]
    assert path[onset - 1].history.length.tolist() != [0]
    assert path[onset - 1].gamma.tolist() != [1.0]


def reference_fire(start: Batch, model, steps: int) -> list[Batch]:
    """FIRE of one system with the strain times 3 sqrt(n) as coordinate, in numpy."""
    strains = np.zeros((6, 3, 3))
    for k, (i, j) in enumerate([(0, 0), (1, 1), (2, 2), (1, 2), (0, 2), (0, 1)]):
        strains[k, i, j] = strains[k, j, i] = 1.0 if i == j else 0.5**0.5
    n, batch, path = len(start.positions), start, []
    scale = np.append(np.ones(3 * n), np.full(6, 3 * n**0.5))
    v, dt, alpha, n_positive = np.zeros(3 * n + 6), 0.1, 0.1, 0
    for step in range(steps):
        prediction = model(batch)
        work = -float(volume(batch.cell)) * prediction.stress[0].numpy()
        force = np.append(prediction.forces, np.einsum("kab,ab->k", strains, work)) / scale
        if v @ force > 0:
            v = (1 - alpha) * v + alpha * force * np.sqrt((v @ v) / (force @ force))
            if n_positive > 5:
                dt, alpha = min(1.1 * dt, 1.0), 0.99 * alpha
            n_positive += 1
        else:
            v, alpha, n_positive = 0 * v, 0.1, 0
            dt = dt if step == 0 else 0.5 * dt
        v = v + dt * force
        move = dt * v / scale
        farthest = np.linalg.norm(move[:-6].reshape(-1, 3), axis=1).max()
        move = move * min(1.0, 0.1 / farthest, 0.05 / np.linalg.norm(move[-6:]))
        stretch = torch.linalg.matrix_exp(torch.tensor(np.einsum("k,kab->ab", move[-6:], strains)))
        moved = (batch.positions + torch.tensor(move[:-6].reshape(-1, 3))) @ stretch
        batch = batch.with_geometry(moved, batch.cell @ stretch)
        path.append(batch)
    return path


def test_fire_falls_from_the_best_point(monkeypatch):
    monkeypatch.setattr(rescue, "FIRE_AFTER", 6)
    model = LennardJones()
    structure = from_atoms(crystals()["left_handed"])
    path = walk(structure, model, 40)
    first = [bool(state.rescue.falling[0]) for state in path].index(True)
    assert int(path[first].evaluations[0]) == 6
    assert torch.equal(path[first].batch.positions, path[first].best.positions)
    uphill, faster = False, False
    for state, expected in zip(
        path[first + 1 :], reference_fire(path[first].batch, model, 34), strict=False
    ):
        off = (state.batch.positions - expected.positions).abs().max()
        assert float(off) < REFERENCE_TOLERANCE_A
        assert float((state.batch.cell - expected.cell).abs().max()) < REFERENCE_TOLERANCE_A
        uphill |= float(state.rescue.dt) < rescue.DT or int(state.rescue.n_positive) == 0
        faster |= float(state.rescue.dt) > rescue.DT
    assert uphill
    assert faster


def test_fire_goes_on_after_a_sickness(monkeypatch):
    monkeypatch.setattr(rescue, "FIRE_AFTER", 6)
    batch = packed([crystals()["hexagonal"]])
    batch.atomic_numbers[:] = Sick.MARK
    path = walk(batch, Hiccup(at=20), 150)
    back = path[19]
    assert bool(back.rescue.revived[0])
    assert torch.equal(back.batch.positions, back.best.positions)
    force = back.point.force
    step = 0.01 * force
    factor = rescue.REVIVAL_RADIUS_A / float(step.norm(dim=1).max())
    if factor > 1:
        torch.testing.assert_close(back.direction[: len(force)], step)
    assert int(path[-1].status[0]) == Status.CONVERGED


class Drifting(LennardJones):
    """An energy that jumps up behind the start, which stays the point of lowest enthalpy."""

    def __call__(self, batch: Batch) -> Prediction:
        prediction = super().__call__(batch)
        moved = (batch.positions - self.start).abs().max() > 0
        return replace(prediction, energy=prediction.energy + 100.0 * moved)


def test_a_converged_point_is_not_taken_back(monkeypatch):
    """At the very evaluation at which FIRE would begin."""
    batch = packed([without_bulk()["molecule"]])
    freedom = unconstrained(batch, False)
    model, settings = Drifting(), LbfgsSettings(fmax=0.02)
    object.__setattr__(model, "start", batch.positions)
    path = [lbfgs_init(batch, model, freedom=freedom, settings=settings)]
    while int(path[-1].status[0]) == Status.RUNNING:
        path.append(lbfgs_step(path[-1], model))
    assert torch.equal(path[-1].best.positions, batch.positions)
    monkeypatch.setattr(rescue, "FIRE_AFTER", int(path[-1].evaluations[0]))
    state = lbfgs_init(batch, model, freedom=freedom, settings=settings)
    for _ in range(len(path) + 2):
        state = lbfgs_step(state, model)
    assert_same_bits(state, path[-1])


def test_springs_to_the_origin_need_no_rescue():
    path = walk(packed([without_bulk()["molecule"]]), Einstein(), 10)
    assert int(path[-1].status[0]) == Status.CONVERGED
    assert not path[-1].rescue.restarted.any()
