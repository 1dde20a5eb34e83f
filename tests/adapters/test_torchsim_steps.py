"""Our optimisers inside TorchSim's runners, and TorchSim's models inside our relaxation."""

import numpy as np
import pytest
import torch
import torch_sim as ts
from torch_sim.autobatching import InFlightAutoBatcher
from torch_sim.constraints import FixAtoms, FixCom
from torch_sim.models.lennard_jones import LennardJonesModel
from torch_sim.neighbors import torch_nl_linked_cell
from toy import LennardJones, crystals, from_atoms, packed, without_bulk

from dpa4sim.adapters.torchsim import DPA4Model, FromTorchSim, energy_model, from_state, to_state
from dpa4sim.adapters.torchsim_state import RelaxState, _from_rows, _to_rows, unpacked
from dpa4sim.adapters.torchsim_steps import OPTIMIZERS, relax_pair, stopped
from dpa4sim.batch import Batch
from dpa4sim.errors import ConfigError, DataError, Status
from dpa4sim.pool.pack import flatten
from dpa4sim.relax import relax
from dpa4sim.relax.freedom import unconstrained
from dpa4sim.relax.lbfgs import LbfgsSettings, LbfgsState, lbfgs_init, lbfgs_step

MODEL = LennardJones(cutoff=5.0)
FMAX, MAX_STEPS = 0.1, 60
FOREVER = 10_000

pytestmark = pytest.mark.filterwarnings("ignore:All systems have reached the maximum")


def structures() -> list:
    """Four small crystals of unlike sizes, one of them left-handed."""
    return [atoms for atoms in crystals().values() if len(atoms) < 20]


def optimize(system, model=None, autobatcher=False, **settings) -> RelaxState:
    """`ts.optimize` with our FIRE or another optimiser; our own limits decide."""
    settings = {"optimizer": "fire", "fmax": FMAX, "max_steps": MAX_STEPS} | settings
    return ts.optimize(
        system=system,
        model=model or DPA4Model(MODEL),
        optimizer=relax_pair(**settings),
        convergence_fn=stopped,
        max_steps=FOREVER,
        steps_between_swaps=3,
        autobatcher=autobatcher,
    )


def assert_same_ends(state: RelaxState, expected) -> None:
    """Bit for bit where `relax` ended."""
    batch = from_state(state)
    assert state.status.tolist() == [int(status) for status in expected.status]
    assert state.steps.tolist() == expected.steps
    for system, ours in zip(batch.split(), expected.batches, strict=True):
        assert torch.equal(system.positions, ours.positions)
        assert torch.equal(system.cell, ours.cell)
    assert state.energy.tolist() == expected.energy


@pytest.mark.parametrize(
    ("cell", "cell_filter"), [(True, "frechet"), (True, "unit"), (False, "frechet")]
)
def test_fire_ends_where_relax_ends(cell, cell_filter):
    state = optimize(structures(), cell=cell, cell_filter=cell_filter)
    options = {"optimizer": "fire", "cell": cell, "cell_filter": cell_filter}
    expected = relax(MODEL, structures(), fmax=FMAX, max_steps=MAX_STEPS, **options)
    assert_same_ends(state, expected)
    assert len(set(state.steps.tolist())) > 1, "they should leave at different steps"


def test_in_flight_batching_changes_no_bit():
    """Systems leave and enter between the steps; each goes on where it was."""
    batcher = InFlightAutoBatcher(
        DPA4Model(MODEL), memory_scales_with="n_atoms", max_memory_scaler=12
    )
    state = optimize([*structures(), *structures()[::-1]], autobatcher=batcher)
    expected = relax(
        MODEL,
        [*structures(), *structures()[::-1]],
        fmax=FMAX,
        max_steps=MAX_STEPS,
        optimizer="fire",
    )
    assert_same_ends(state, expected)


def test_slabs_and_molecules_relax_with_fixed_cells():
    for atoms in without_bulk().values():
        state = optimize([atoms], cell=False)
        expected = relax(
            MODEL, [atoms], fmax=FMAX, max_steps=MAX_STEPS, cell=False, optimizer="fire"
        )
        assert_same_ends(state, expected)
        with pytest.raises(DataError, match="not periodic in three dimensions"):
            optimize([atoms], cell=True)


def by_lbfgs(batch: Batch, cell: bool) -> LbfgsState:
    """Our own loop."""
    settings = LbfgsSettings(fmax=FMAX, max_steps=MAX_STEPS)
    state = lbfgs_init(batch, MODEL, freedom=unconstrained(batch, cell), settings=settings)
    while bool(state.running.any()):
        state = lbfgs_step(state, MODEL)
    return state


@pytest.mark.parametrize("cell", [True, False])
@pytest.mark.parametrize("in_flight", [True, False])
def test_lbfgs_ends_where_our_own_loop_ends(cell, in_flight):
    """Its history has rows for atoms and cells, which leave and enter with their systems."""
    model = DPA4Model(MODEL)
    batcher = InFlightAutoBatcher(model, memory_scales_with="n_atoms", max_memory_scaler=12)
    state = optimize(
        structures(), optimizer="lbfgs", cell=cell, autobatcher=batcher if in_flight else False
    )
    expected = by_lbfgs(packed(structures()), cell)
    assert torch.equal(state.status, expected.status)
    assert torch.equal(state.steps, expected.steps)
    assert torch.equal(state.positions, expected.batch.positions)
    assert torch.equal(state.row_vector_cell, expected.batch.cell)
    assert torch.equal(state.energy, expected.prediction.energy)
    assert set(state.status.tolist()) == {Status.CONVERGED}


def test_lbfgs_is_the_default():
    init, _ = relax_pair()
    state = init(to_state(packed(few())), DPA4Model(MODEL))
    assert isinstance(unpacked(state), LbfgsState)


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("max_steps", [0, 1, 7])
def test_the_limit_of_steps_is_exact(max_steps, optimizer):
    """TorchSim itself goes on to a multiple of `steps_between_swaps`."""
    state = optimize(structures(), optimizer=optimizer, max_steps=max_steps, fmax=1e-12)
    assert state.steps.tolist() == [max_steps] * 4
    assert stopped(state).all()
    assert state.status.tolist() == [Status.MAX_STEPS] * 4


def test_a_sick_system_leaves_and_its_mates_go_on():
    """TorchSim's own cell relaxations end for everybody; ours ends for the sick one."""
    systems = structures()
    systems[1].positions[0, 0] = np.nan
    state = optimize(systems)
    expected = relax(MODEL, structures(), fmax=FMAX, max_steps=MAX_STEPS, optimizer="fire")
    assert state.status[1] == Status.NOT_FINITE
    mates = [0, 2, 3]
    assert state.steps[mates].tolist() == [expected.steps[s] for s in mates]
    assert state.energy[mates].tolist() == [expected.energy[s] for s in mates]


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_fields_of_the_state_and_of_the_record_are_the_same_numbers(optimizer):
    init, step = relax_pair(optimizer)
    state = init(to_state(packed(structures())), DPA4Model(MODEL))
    for _ in range(3):
        state = step(state, DPA4Model(MODEL))
    record = unpacked(state)
    assert torch.equal(record.batch.positions, state.positions)
    assert torch.equal(record.batch.cell, state.row_vector_cell)
    assert torch.equal(record.prediction.energy, state.energy)
    assert torch.equal(record.prediction.forces, state.forces)
    again = MODEL(from_state(state))
    torch.testing.assert_close(state.energy, again.energy, rtol=0, atol=0)
    torch.testing.assert_close(state.stress, again.stress, rtol=0, atol=0)


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_nothing_is_lost_by_taking_apart_and_joining(optimizer):
    init, step = relax_pair(optimizer)
    state = init(to_state(packed(structures())), DPA4Model(MODEL))
    state = step(step(state, DPA4Model(MODEL)), DPA4Model(MODEL))
    wanted = flatten(unpacked(state))
    for again in (
        ts.concatenate_states(state.split()),
        ts.concatenate_states([state[[0, 1]], state[[2, 3]]]),
        state.clone(),
        state.to(torch.device("cpu"), torch.float64),
    ):
        found = flatten(unpacked(again))
        assert found.keys() == wanted.keys()
        for name, value in wanted.items():
            assert torch.equal(found[name], value), name
            assert found[name].dtype == value.dtype, name
    reordered = flatten(unpacked(state[[3, 1]]))
    assert reordered["steps"].tolist() == [2, 2]
    assert torch.equal(reordered["status"], wanted["status"][[3, 1]])


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_a_step_leaves_the_state_before_it_alone(optimizer):
    init, step = relax_pair(optimizer)
    before = init(to_state(packed(structures())), DPA4Model(MODEL))
    kept = before.clone()
    step(before, DPA4Model(MODEL))
    assert torch.equal(before.positions, kept.positions)
    assert torch.equal(before.steps, kept.steps)


def test_foreign_extras_go_along():
    state = to_state(packed(structures()))
    state.system_extras["tag"] = torch.arange(4)
    state.atom_extras["site"] = torch.arange(state.n_atoms)
    final = optimize(state, max_steps=4)
    assert final.tag.tolist() == [0, 1, 2, 3]
    assert torch.equal(final.site, torch.arange(state.n_atoms))


def test_rows_of_atoms_and_cells_are_taken_apart_and_joined():
    batch = packed(structures())
    n_rows = int(batch.n_atoms.sum()) + 2 * batch.n_systems
    history = torch.arange(n_rows * 6.0).reshape(n_rows, 2, 3)
    atoms, cells = _from_rows(history, batch)
    assert cells.shape == (4, 2, 2, 3)
    assert torch.equal(_to_rows(atoms, cells, batch.system_idx), history)
    start = 0
    for s, n in enumerate(batch.n_atoms.tolist()):
        assert torch.equal(cells[s], history[start + n : start + n + 2])
        assert torch.equal(atoms[batch.system_idx == s], history[start : start + n])
        start += n + 2


def test_fixed_atoms_of_torchsim_do_not_move():
    state = to_state(packed([crystals()["cubic"]]))
    state.constraints = [FixAtoms(atom_idx=torch.tensor([0, 5, 17]))]
    final = optimize(state, cell=False)
    moved = (final.positions - state.positions).norm(dim=1)
    assert moved[[0, 5, 17]].tolist() == [0.0] * 3
    assert (moved > 0).sum() == len(moved) - 3


def test_other_constraints_are_refused():
    state = to_state(packed([crystals()["cubic"]]))
    state.constraints = [FixCom([0])]
    with pytest.raises(DataError, match="FixCom is not a constraint"):
        optimize(state)


def test_unknown_optimizers_are_refused():
    with pytest.raises(ConfigError, match="optimizer='bfgs' is not known"):
        relax_pair("bfgs")


def few() -> list:
    """The two smallest."""
    return [crystals()["primitive"], crystals()["hexagonal"]]


def argon(dtype=torch.float64, **switches) -> LennardJonesModel:
    """TorchSim's own model."""
    switches = {"compute_forces": True, "compute_stress": True} | switches
    switches["neighbor_list_fn"] = torch_nl_linked_cell  # the default one compiles for 16 s
    return LennardJonesModel(sigma=2.3, epsilon=0.1, cutoff=6.0, dtype=dtype, **switches)


def test_torchsims_models_relax_in_our_engine():
    model = argon()
    result = relax(FromTorchSim(model), few(), fmax=FMAX, max_steps=MAX_STEPS)
    assert result.status == [Status.CONVERGED] * 2
    for batch, energy, prediction in zip(
        result.batches, result.energy, result.predictions, strict=True
    ):
        output = model(to_state(batch))
        assert float(output["energy"][0]) == pytest.approx(energy, rel=1e-12)
        assert prediction.forces.norm(dim=1).max() < FMAX
        torch.testing.assert_close(output["stress"], prediction.stress)


def test_torchsims_models_relax_in_torchsim_with_our_optimiser():
    final = optimize(few(), model=argon())
    assert final.status.tolist() == [Status.CONVERGED] * 2
    assert isinstance(energy_model(argon()), FromTorchSim)
    assert energy_model(DPA4Model(MODEL)) is MODEL


def test_torchsims_models_do_not_see_a_system_that_cannot_be_computed():
    batch = packed(structures())
    positions = batch.positions.clone()
    positions[batch.system_idx == 1] = torch.nan
    prediction = FromTorchSim(argon())(batch.with_geometry(positions, batch.cell))
    expected = FromTorchSim(argon())(batch)
    assert prediction.energy.isnan().tolist() == [False, True, False, False]
    mates = [0, 2, 3]
    torch.testing.assert_close(prediction.energy[mates], expected.energy[mates])
    healthy = batch.system_idx != 1
    torch.testing.assert_close(prediction.forces[healthy], expected.forces[healthy])
    assert prediction.forces[~healthy].isnan().all()
    torch.testing.assert_close(prediction.stress[mates], expected.stress[mates])


def test_all_systems_sick_is_no_error():
    batch = packed(structures()[:2])
    sick = batch.with_geometry(torch.full_like(batch.positions, torch.nan), batch.cell)
    assert FromTorchSim(argon())(sick).energy.isnan().all()


def test_a_molecule_has_no_stress():
    prediction = FromTorchSim(argon())(from_atoms(without_bulk()["molecule"]))
    assert prediction.stress.isnan().all()
    assert prediction.forces.isfinite().all()


def test_single_precision_models_give_double_predictions():
    prediction = FromTorchSim(argon(torch.float32))(packed(structures()))
    assert {v.dtype for v in (prediction.energy, prediction.forces)} == {torch.float64}


@pytest.mark.parametrize("name", ["compute_forces", "compute_stress"])
def test_models_without_forces_or_stress_are_refused(name):
    with pytest.raises(ConfigError, match=f"Make it with {name}=True"):
        FromTorchSim(argon(**{name: False}))


def test_models_that_do_not_say_how_far_they_look_are_refused():
    model = argon()
    del model.cutoff
    with pytest.raises(ConfigError, match=r"cutoff=\.\.\."):
        FromTorchSim(model)
    assert FromTorchSim(model, cutoff=7.5).cutoff == 7.5
