from dataclasses import fields, replace

import numpy as np
import pytest
import torch
from ase.filters import FrechetCellFilter, UnitCellFilter
from ase.optimize import FIRE
from toy import AseModel, Einstein, LennardJones, crystals, packed, without_bulk

from dpa4sim.batch import Batch
from dpa4sim.errors import Status
from dpa4sim.pool.pack import axis_of, join, take
from dpa4sim.relax.fire import FireSettings, FireState, fire_init, fire_step
from dpa4sim.relax.freedom import unconstrained

ASE_TOLERANCE_A = 1e-8
"""Over 100 steps; measured 1e-10 at most.  What is left is rounding that the path magnifies."""

FILTERS = {"frechet": FrechetCellFilter, "unit": UnitCellFilter, "none": None}
ENDLESS = FireSettings(fmax=1e-300, max_steps=10**6)


def started(model, structures, cell_filter: str, settings: FireSettings = ENDLESS) -> FireState:
    """Crystals with a free cell, unless there is no filter; the rest with a fixed cell."""
    batch = packed(structures.values())
    free = torch.tensor([bool(atoms.pbc.all()) for atoms in structures.values()])
    return fire_init(
        batch,
        model,
        freedom=unconstrained(batch, free),
        cell_filter=None if cell_filter == "none" else cell_filter,
        settings=settings,
    )


def ase_fire(atoms, cell_filter: str) -> FIRE:
    atoms.calc = AseModel(LennardJones())
    wrap = FILTERS[cell_filter] if atoms.pbc.all() else None
    return FIRE(atoms if wrap is None else wrap(atoms), logfile=None)


def deviation(atoms, system: Batch) -> float:
    off = np.abs(atoms.positions - system.positions.numpy()).max()
    return max(off, np.abs(atoms.cell.array - system.cell[0].numpy()).max())


def assert_same_state(ours: FireState, theirs: FireState) -> None:
    """Bit for bit, except for what means nothing after the end."""
    torch.testing.assert_close(
        [ours.batch.positions, ours.batch.cell, ours.status, ours.steps, ours.residual],
        [theirs.batch.positions, theirs.batch.cell, theirs.status, theirs.steps, theirs.residual],
        rtol=0,
        atol=0,
    )
    for name in ("energy", "forces", "stress"):
        mine, other = getattr(ours.prediction, name), getattr(theirs.prediction, name)
        torch.testing.assert_close(mine, other, rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize("cell_filter", FILTERS)
def test_a_batch_takes_the_steps_that_ase_takes(cell_filter):
    structures = {**crystals(), **without_bulk()}
    state = started(LennardJones(), structures, cell_filter)
    theirs = {name: ase_fire(atoms, cell_filter) for name, atoms in structures.items()}
    worst = dict.fromkeys(structures, 0.0)
    shortened, uphill, faster = set(), set(), set()
    for _ in range(100):
        before, state = state, fire_step(state, LennardJones())
        for s, (name, system) in enumerate(zip(structures, state.batch.split(), strict=True)):
            theirs[name].step()
            worst[name] = max(worst[name], deviation(structures[name], system))
            assert float(state.dt[s]) == pytest.approx(theirs[name].dt, rel=1e-12)
            assert float(state.alpha[s]) == pytest.approx(theirs[name].a, rel=1e-12)
            velocity = take(state, [s])
            speed = velocity.velocity.norm() ** 2 + velocity.cell_velocity.norm() ** 2
            shortened |= {name} if float(speed.sqrt() * state.dt[s]) > 0.2 else set()
            uphill |= {name} if before.n_positive[s] > 0 and state.n_positive[s] == 0 else set()
            faster |= {name} if state.dt[s] > before.dt[s] else set()
    print({name: f"{off:.1e}" for name, off in worst.items()})
    assert max(worst.values()) < ASE_TOLERANCE_A
    assert {"cubic", "slab"} <= uphill & faster, "the path leaves branches of FIRE untried"
    assert "cubic" in shortened, "no step was long enough to be shortened"


@pytest.mark.parametrize("cell_filter", ["frechet", "unit"])
def test_a_batch_stops_where_ase_stops(cell_filter):
    structures = {**crystals(), **without_bulk()}
    model = LennardJones()
    settings = FireSettings(fmax=0.02, max_steps=400)
    state = started(model, structures, cell_filter, settings)
    while bool(state.running.any()):
        state = fire_step(state, model)
    assert len(set(state.steps.tolist())) > 4, "the systems should end at different steps"
    for s, (atoms, system) in enumerate(zip(structures.values(), state.batch.split(), strict=True)):
        optimizer = ase_fire(atoms, cell_filter)
        assert optimizer.run(fmax=0.02, steps=400) == (int(state.status[s]) == Status.CONVERGED)
        assert optimizer.nsteps == int(state.steps[s])
        assert deviation(atoms, system) < ASE_TOLERANCE_A


@pytest.mark.parametrize("cell_filter", FILTERS)
def test_each_system_is_bit_equal_to_itself_alone(cell_filter):
    structures, model = {**crystals(), **without_bulk()}, LennardJones()
    settings = FireSettings(fmax=0.05, max_steps=40)
    together = started(model, structures, cell_filter, settings)
    alone = [started(model, {n: a}, cell_filter, settings) for n, a in structures.items()]
    for _ in range(45):
        together = fire_step(together, model)
        alone = [fire_step(state, model) for state in alone]
    assert {1, 2} == set(together.status.tolist())
    for s, single in enumerate(alone):
        assert_same_state(take(together, [s]), single)


def test_a_fixed_cell_beside_a_free_one_is_as_if_all_were_fixed():
    structures, model = {**crystals(), **without_bulk()}, LennardJones()
    mixed = started(model, structures, "frechet")
    fixed = started(model, without_bulk(), "none")
    for _ in range(20):
        mixed, fixed = fire_step(mixed, model), fire_step(fixed, model)
    assert_same_state(take(mixed, [5, 6]), fixed)


@pytest.mark.parametrize("max_steps", [0, 1, 7, 13])
def test_max_steps_is_counted_exactly(max_steps):
    model, batch = Einstein(), packed(without_bulk().values())
    settings = FireSettings(fmax=1e-12, max_steps=max_steps)
    state = fire_init(batch, model, freedom=unconstrained(batch, False), settings=settings)
    ase_atoms = without_bulk()["molecule"]
    ase_atoms.calc = AseModel(model)
    FIRE(ase_atoms, logfile=None).run(fmax=1e-12, steps=max_steps)
    for _ in range(20):
        state = fire_step(state, model)
    assert state.steps.tolist() == [max_steps] * 2
    assert state.evaluations.tolist() == [max_steps + 1] * 2
    assert state.status.tolist() == [Status.MAX_STEPS] * 2
    assert deviation(ase_atoms, state.batch.split()[1]) < ASE_TOLERANCE_A


def test_a_relaxed_start_stays_where_it_is():
    batch = Batch.single(torch.zeros(1, 3), torch.tensor([29]))
    state = fire_init(batch, Einstein(), freedom=unconstrained(batch, False))
    assert state.status.tolist() == [Status.CONVERGED]
    after = fire_step(state, Einstein())
    assert_same_state(after, state)
    assert after.evaluations.tolist() == [1]


def test_the_model_sees_a_finished_system_where_it_stands():
    seen = []

    def watched(batch: Batch):
        seen.append(batch)
        return model(batch)

    model = LennardJones()
    watched.cutoff, watched.device = model.cutoff, model.device
    state = started(watched, crystals(), "frechet", FireSettings(fmax=0.02, max_steps=400))
    for _ in range(60):
        state = fire_step(state, watched)
    stopped = state.steps.tolist()
    assert min(stopped) < 40
    for s, step in enumerate(stopped):
        places = [batch.positions[batch.system_idx == s] for batch in seen]
        assert all(torch.equal(place, places[step]) for place in places[step:])


def test_positions_and_cell_are_kept_in_float64():
    batch = packed(crystals().values())
    batch = replace(batch, positions=batch.positions.float(), cell=batch.cell.float())
    state = fire_init(batch, LennardJones(), freedom=unconstrained(batch))
    state = fire_step(state, LennardJones())
    kept = [state.batch.positions, state.batch.cell, state.velocity, state.cell_velocity, state.dt]
    assert {tensor.dtype for tensor in kept} == {torch.float64}


def test_every_tensor_of_the_state_knows_whose_rows_it_has():
    """take() tells atoms from systems by name: a new field must not be forgotten."""
    state = started(LennardJones(), crystals(), "frechet")
    n_atoms, n_systems = len(state.batch.positions), state.batch.n_systems

    def check(record) -> None:
        for field in fields(record):
            value = getattr(record, field.name)
            if isinstance(value, torch.Tensor):
                axis = axis_of(type(record), field.name)
                assert len(value) == {"atom": n_atoms, "system": n_systems}[axis], field.name
            elif hasattr(value, "__dataclass_fields__"):
                check(value)

    check(state)


def test_leaving_and_joining_changes_no_bit():
    structures, model = crystals(), LennardJones()
    whole = started(model, structures, "frechet")
    parts = started(model, dict(list(structures.items())[:3]), "frechet")
    late = started(model, dict(list(structures.items())[3:]), "frechet")
    for _ in range(5):
        parts = fire_step(parts, model)
    shuffled = join(take(parts, [2, 0]), late)
    counts = torch.bincount(shuffled.batch.system_idx)
    assert counts.tolist() == shuffled.batch.n_atoms.tolist()
    for _ in range(5):
        whole, shuffled = fire_step(whole, model), fire_step(shuffled, model)
    assert_same_state(take(shuffled, [2, 3]), take(whole, [3, 4]))
    for _ in range(5):
        whole = fire_step(whole, model)
    assert_same_state(take(shuffled, [1, 0]), take(whole, [0, 2]))
