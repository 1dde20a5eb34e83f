from dataclasses import replace

import pytest
import torch
from ase.filters import FrechetCellFilter, UnitCellFilter
from ase.optimize import FIRE
from toy import AseModel, Free, LennardJones, Sick, crystals, packed, without_bulk

from dpa4sim.batch import Batch
from dpa4sim.errors import Status
from dpa4sim.relax.cell import generalized_forces, place
from dpa4sim.relax.criterion import inspect_geometry, inspect_prediction, residual
from dpa4sim.relax.fire import fire_init, fire_step

CUTOFF_A = 6.0
NAN, INF = float("nan"), float("inf")


def residuals(batch: Batch, cell_filter: str | None) -> torch.Tensor:
    flags = torch.full((batch.n_systems,), cell_filter is not None)
    geometry = place(batch, flags, cell_filter)
    return residual(batch, *generalized_forces(geometry, LennardJones()(batch)))


@pytest.mark.parametrize(
    ("cell_filter", "wrap"),
    [("frechet", FrechetCellFilter), ("unit", UnitCellFilter), (None, lambda atoms: atoms)],
)
def test_converged_where_ase_says_so(cell_filter, wrap):
    ours = residuals(packed(crystals().values()), cell_filter)
    for atoms, value in zip(crystals().values(), ours.tolist(), strict=True):
        atoms.calc = AseModel(LennardJones())
        optimizer = FIRE(wrap(atoms), logfile=None)
        for fmax in (0.999999 * value + 1e-12, 1.000001 * value + 2e-12):
            optimizer.fmax = fmax
            assert optimizer.converged() == (value < fmax)


def test_only_a_free_cell_must_be_at_rest():
    """A strained primitive cell has no force on its atom, only stress."""
    batch = packed([crystals()["primitive"]])
    assert fire_init(batch, LennardJones(), cell=False).status.tolist() == [Status.CONVERGED]
    assert fire_init(batch, LennardJones(), cell=True).status.tolist() == [Status.RUNNING]
    assert residuals(batch, "frechet")[0] > 0.02


@pytest.mark.parametrize("sick", [NAN, INF])
@pytest.mark.parametrize("what", ["positions", "cell"])
def test_a_geometry_that_is_no_number_never_converges(what, sick):
    """Such a system has no pairs, hence no forces: the model alone would call it relaxed."""
    batch = packed(crystals().values())
    tensor = getattr(batch, what).clone()
    tensor[0, 0] = sick
    batch = replace(batch, **{what: tensor})
    state = fire_init(batch, Free(), cell=True)
    assert state.status.tolist() == [Status.NOT_FINITE] + [Status.CONVERGED] * 4
    assert torch.isfinite(state.prediction.forces).all()


@pytest.mark.parametrize(
    ("factor", "expected"),
    [
        (0.19, Status.COLLAPSED),
        (0.21, Status.RUNNING),
        (4.9, Status.RUNNING),
        (5.1, Status.EXPLODED),
    ],
)
def test_volume_limits_hold_for_cells_that_move(factor, expected):
    batch = packed(crystals().values())
    flags = torch.tensor([True, False, True, False, True])
    geometry = place(batch, flags, "frechet")
    scaled = batch.with_geometry(batch.positions, batch.cell * factor ** (1 / 3))
    verdict = inspect_geometry(replace(geometry, batch=scaled), CUTOFF_A)
    assert verdict.tolist() == [expected if flag else Status.RUNNING for flag in flags.tolist()]


def test_a_cell_too_skewed_for_its_neighbours_has_collapsed():
    """Its volume is that of the start, but the model would see no edges, and F = 0."""
    batch = packed(crystals().values())
    geometry = place(batch, torch.ones(5, dtype=torch.bool), "frechet")
    cell = batch.cell.clone()
    cell[2, 0] += 1e7 * cell[2, 1]
    skewed = replace(geometry, batch=batch.with_geometry(batch.positions, cell))
    expected = [Status.RUNNING, Status.RUNNING, Status.COLLAPSED, Status.RUNNING, Status.RUNNING]
    assert inspect_geometry(skewed, CUTOFF_A).tolist() == expected


def test_a_start_without_computable_edges_is_invalid():
    """A periodic cell without volume has no edges: F = 0 must not pass for convergence."""
    batch = packed([*crystals().values()])
    batch.cell[1, 2] = 0.0
    state = fire_init(batch, LennardJones(), cell=False)
    assert float(state.residual[1]) == 0.0
    assert state.status[1] == Status.INVALID
    assert set(state.status[2:].tolist()) == {Status.RUNNING}


@pytest.mark.parametrize(
    ("field", "value", "expected"),
    [
        ("energy", NAN, Status.NOT_FINITE),
        ("energy", -INF, Status.NOT_FINITE),
        ("forces", NAN, Status.NOT_FINITE),
        ("forces", INF, Status.NOT_FINITE),
        ("stress", NAN, Status.NOT_FINITE),
        ("forces", 1e200, Status.EXPLODED),
        ("forces", 578.0, Status.EXPLODED),  # a vector of norm 1001
        ("forces", 577.0, Status.RUNNING),  # 999.4
    ],
)
def test_a_sick_prediction_is_named(field, value, expected):
    batch = packed([*crystals().values(), *without_bulk().values()])
    batch.atomic_numbers[batch.system_idx == 3] = Sick.MARK
    geometry = place(batch, torch.zeros(7, dtype=torch.bool), None)
    verdict = inspect_prediction(geometry, Sick(LennardJones(), field, value)(batch)).tolist()
    assert verdict == [Status.RUNNING] * 3 + [expected] + [Status.RUNNING] * 3


def test_no_stress_is_no_sickness_without_a_cell():
    batch = packed([without_bulk()["molecule"]])
    state = fire_init(batch, LennardJones(), cell=False)
    assert torch.isnan(state.prediction.stress).all()
    state = fire_step(state, LennardJones())
    assert state.status.tolist() == [Status.RUNNING]
