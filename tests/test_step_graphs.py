"""Recorded steps: every system takes the steps that it would take anyway, as many as asked for.

Without a device the recorder is a stand-in: it traces the step into plain operations once, and a
replay runs these on the static tensors.  What the step reads in Python is frozen at the recording,
as in a CUDA graph.  The real recorder is marked gpu.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import pytest
import torch
from models import crystal, molecule, random_model, random_potential
from recording import SMALL, Runner, networked
from starts import batch, dynamics, fire, free_cells, lbfgs
from torch.fx.experimental.proxy_tensor import make_fx
from toy import LennardJones

import dpa4sim
from dpa4sim import step_graphs
from dpa4sim.batch import Batch
from dpa4sim.edges import neighbors
from dpa4sim.ensemble import Ensemble
from dpa4sim.errors import Status
from dpa4sim.export import energy_and_gradient
from dpa4sim.pool.pack import join, take
from dpa4sim.potential import Potential, Prediction
from dpa4sim.relax.fire import fire_step
from dpa4sim.relax.lbfgs import lbfgs_step, settled
from dpa4sim.simulate.npt import c_rescale_step
from dpa4sim.simulate.nve import nve_step
from dpa4sim.simulate.nvt import bussi_step, langevin_step
from dpa4sim.step_graphs import StepGraphs, take_steps

EXACT = 1e-10
"""Å, eV; float64, and sums of silent edges at other places of a row."""


@dataclass
class Tracer:
    """Records by tracing; counts."""

    recorded: int = 0
    replayed: int = 0

    def __call__(self, function, inputs):
        self.recorded += 1
        graph = make_fx(function)(*inputs)
        named = {str(node.target) for node in graph.graph.nodes}
        assert not [name for name in named if "lift_fresh" in name]  # copied from the host
        outputs = tuple(value.clone() for value in graph(*inputs))

        def replay():
            self.replayed += 1
            for static, value in zip(outputs, graph(*inputs), strict=True):
                static.copy_(value)

        return replay, outputs


@dataclass
class Listed:
    """Lennard-Jones atoms that can be asked with given edges, as a Potential can."""

    toy: LennardJones = field(default_factory=LennardJones)
    recorder: Any = field(default_factory=Runner)
    skin: float = 1.0
    asked: int = 0
    device = torch.device("cpu")

    def __post_init__(self) -> None:
        self.cutoff = self.toy.cutoff
        self.step_graphs = StepGraphs(self, self.predict, self.recorder, self.skin)

    def __call__(self, batch: Batch) -> Prediction:
        self.asked += 1
        return self.predict(batch, neighbors(batch, self.cutoff))

    def predict(self, batch: Batch, found) -> Prediction:
        return self.toy.predict(batch, found)


def solids(systems: Batch) -> Batch:
    return systems.select(free_cells(systems).nonzero()[:, 0].tolist())


METHODS = {
    "fire": (fire, fire_step, None),
    "lbfgs": (lbfgs, lbfgs_step, settled),
    "nve": (dynamics, nve_step, None),
    "langevin": (dynamics, langevin_step, None),
    "bussi": (dynamics, bussi_step, None),
    "npt": (dynamics, partial(c_rescale_step, coupling="triclinic"), None),
}


@pytest.fixture(autouse=True)
def as_on_a_device(monkeypatch):
    """What is left out on a processor alone is not left out."""
    monkeypatch.setattr(torch.compiler, "is_compiling", lambda: True)


def assert_same(found, expected, exact: float = EXACT) -> None:
    assert found.steps.tolist() == expected.steps.tolist()
    assert found.status.tolist() == expected.status.tolist()
    for name in ("positions", "cell"):
        ours, theirs = getattr(found.batch, name), getattr(expected.batch, name)
        torch.testing.assert_close(ours, theirs, rtol=0, atol=exact)
    for name in ("energy", "forces", "stress"):
        ours, theirs = getattr(found.prediction, name), getattr(expected.prediction, name)
        torch.testing.assert_close(ours, theirs, rtol=0, atol=exact, equal_nan=True)


def walked(step, state, model, n_steps):
    for _ in range(n_steps):
        state = step(state, model)
    return state


@pytest.mark.parametrize("name", METHODS)
def test_recorded_steps_are_the_steps(name):
    start, step, settle = METHODS[name]
    systems = solids(batch()) if name == "npt" else batch()
    model = Listed(recorder=Tracer())
    recorded = plain = start(systems, model)
    asked = model.asked
    for n_steps in (4, 1, 7, 4, 4):
        recorded = take_steps(step, recorded, model, n_steps, settle)
        plain = walked(step, plain, model.toy, n_steps)
        assert_same(recorded, plain)
    assert model.recorder.replayed >= 20
    assert model.asked <= asked + (name == "lbfgs")  # a large step at the start
    assert model.recorder.recorded <= 3
    moved = (recorded.batch.positions - systems.positions).abs().max()
    assert moved > 1e-2


@pytest.mark.parametrize("name", ["fire", "lbfgs", "langevin"])
def test_a_short_skin_makes_systems_wait_and_they_catch_up(name):
    start, step, settle = METHODS[name]
    model = Listed(skin=0.1)
    recorded = plain = start(batch(), model)
    asked = model.asked
    for _ in range(3):
        recorded = take_steps(step, recorded, model, 6, settle)
        plain = walked(step, plain, model.toy, 6)
        assert_same(recorded, plain)
    waits = model.recorder.replayed > 18
    leaps = model.asked > asked
    assert waits or leaps


def test_a_system_too_fast_for_any_list_takes_its_step_alone():
    model = Listed(skin=1e-9)
    recorded = plain = fire(batch(), model)
    asked = model.asked
    recorded = take_steps(fire_step, recorded, model, 3)
    assert_same(recorded, walked(fire_step, plain, model.toy, 3))
    assert model.asked == asked + 3


def test_a_density_beyond_the_room_for_edges(monkeypatch):
    """The list gets more room, and nobody's step is lost."""
    monkeypatch.setattr(step_graphs, "SPARE_PAIRS", 1.0)
    monkeypatch.setattr(step_graphs, "SPARE_EDGES", 1.0)
    monkeypatch.setattr(step_graphs, "capacity", lambda n: n)
    systems = next(s for s in batch().split() if bool(s.pbc.all()))
    apart = systems.with_geometry(1.15 * systems.positions, 1.15 * systems.cell)
    model = Listed()
    recorded = plain = fire(apart, model)
    edges = neighbors(apart, model.cutoff).n_edges
    for _ in range(5):
        recorded = take_steps(fire_step, recorded, model, 10)
        plain = walked(fire_step, plain, model.toy, 10)
        assert_same(recorded, plain)
    assert neighbors(recorded.batch, model.cutoff).n_edges > edges
    assert model.recorder.recorded > 1


def test_the_systems_may_change_between_two_looks():
    """As in the pool: some leave, others enter, and the recording is the same."""
    model = Listed()
    systems = batch()
    state = fire(systems, model)
    state = take_steps(fire_step, state, model, 4)
    others = take(state, [3, 0, 5])
    fresh = fire(systems.select([1, 4]), model)
    together = join(others, fresh)
    recorded = take_steps(fire_step, together, model, 4)
    assert_same(recorded, walked(fire_step, together, model.toy, 4))
    again = take_steps(fire_step, state, model, 4)
    assert_same(again, walked(fire_step, state, model.toy, 4))
    assert model.recorder.recorded == 1


def test_one_recording_serves_lbfgs_while_systems_come_and_go():
    model = Listed()
    state = lbfgs(batch(), model)
    for chosen in (range(7), range(6), [1, 2, 3, 4, 5, 6], range(7)):
        part = take(state, list(chosen))
        recorded = take_steps(lbfgs_step, part, model, 3, settled)
        assert_same(recorded, walked(lbfgs_step, part, model.toy, 3))
    assert model.recorder.recorded == 1


def test_what_is_handed_out_stays_as_it_is():
    model = Listed()
    first = take_steps(fire_step, fire(batch(), model), model, 2)
    kept = first.batch.positions.clone(), first.velocity.clone()
    take_steps(fire_step, first, model, 5)
    assert torch.equal(first.batch.positions, kept[0])
    assert torch.equal(first.velocity, kept[1])


def test_a_sick_system_changes_no_other():
    systems = batch()
    model = Listed()
    sound = fire(systems, model)
    velocity = sound.velocity.clone()
    velocity[: systems.n_atoms[0]] = torch.nan
    sick = replace(sound, velocity=velocity)
    recorded = take_steps(fire_step, sick, model, 6)
    assert recorded.status[0] == Status.NOT_FINITE
    others = list(range(1, 7))
    assert_same(take(recorded, others), take(walked(fire_step, sound, model.toy, 6), others))


def test_a_device_that_cannot_record_takes_the_steps_one_by_one(capsys):
    def refuse(function, inputs):
        raise RuntimeError("operation not permitted when stream is capturing")

    model = Listed(recorder=refuse)
    plain = recorded = fire(batch(), model)
    for _ in range(2):
        recorded = take_steps(fire_step, recorded, model, 3)
    assert_same(recorded, walked(fire_step, plain, model.toy, 6))
    assert capsys.readouterr().err.count("steps are taken one by one") == 1


def test_memory_that_runs_out_is_for_the_pool_to_handle():
    def exhausted(function, inputs):
        raise torch.OutOfMemoryError("CUDA out of memory")

    model = Listed(recorder=exhausted)
    with pytest.raises(torch.OutOfMemoryError):
        take_steps(fire_step, fire(batch(), model), model, 3)
    assert not model.step_graphs.refused


def test_large_working_sets_are_not_recorded(monkeypatch):
    monkeypatch.setattr(step_graphs, "RECORDED_UP_TO", 3)
    model = Listed()
    plain = fire(batch(), model)
    assert_same(take_steps(fire_step, plain, model, 2), walked(fire_step, plain, model.toy, 2))
    assert model.recorder.recorded == 0


@pytest.mark.parametrize("optimizer", ["fire", "lbfgs"])
def test_a_relaxation_through_the_pool(optimizer):
    """More structures than there is room for: they come and go."""
    recorder = Runner()
    structures = [crystal(), molecule(), crystal(), molecule(), crystal()]
    structures = [
        replace(system, positions=system.positions * (1 + 0.01 * n))
        for n, system in enumerate(structures)
    ]
    asked = {"optimizer": optimizer, "cell": [True, False] * 2 + [True], "max_steps": 12}
    asked |= {"max_edges": 600, "fmax": 1e-3, "progress": False}
    expected = dpa4sim.relax(random_potential(SMALL), structures, **asked)
    found = dpa4sim.relax(networked(recorder), structures, check_every=4, **asked)
    assert recorder.replayed > 0
    assert found.status == expected.status
    assert found.steps == expected.steps
    for ours, theirs in zip(found.batches, expected.batches, strict=True):
        torch.testing.assert_close(ours.positions, theirs.positions, rtol=0, atol=1e-8)


def test_an_ensemble_is_recorded_as_its_members_are():
    recorder = Runner()
    members = [networked(recorder, seed) for seed in (0, 1)]
    plain = Ensemble([random_potential(SMALL, seed) for seed in (0, 1)])
    ensemble = Ensemble(members)
    ensemble.step_graphs.record = recorder
    systems = Batch.concatenate([crystal(), molecule()])
    recorded, expected = fire(systems, ensemble), fire(systems, plain)
    recorded = take_steps(fire_step, recorded, ensemble, 5)
    expected = walked(fire_step, expected, plain, 5)
    assert_same(recorded, expected, 1e-9)
    ours, theirs = recorded.prediction.force_spread, expected.prediction.force_spread
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-9)
    assert recorder.replayed == 5
    assert plain.step_graphs is None
    assert Ensemble([members[0], random_potential(SMALL, 1)]).step_graphs is None


def test_dynamics_through_the_pool():
    tracer = Tracer()
    asked = {"steps": 12, "ensemble": "nvt", "sample_every": 5, "seed": 3, "progress": False}
    structures = [crystal(), molecule()]
    expected = dpa4sim.md(random_potential(SMALL), structures, **asked)
    found = dpa4sim.md(networked(tracer), structures, **asked)
    assert tracer.replayed >= 12
    for ours, theirs in zip(found, expected, strict=True):
        assert (ours.steps, ours.n_samples) == (theirs.steps, theirs.n_samples)
        torch.testing.assert_close(ours.velocities, theirs.velocities, rtol=0, atol=1e-9)


@pytest.mark.gpu
@pytest.mark.parametrize("kernels", ["torch", "triton"])
@pytest.mark.parametrize("name", METHODS)
def test_steps_recorded_on_cuda_are_the_steps(name, kernels):
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    start, step, settle = METHODS[name]
    eager = Potential(random_model(SMALL), device="cuda", kernels=kernels)
    predict = partial(eager.predict, network=energy_and_gradient(eager.model))
    graphs = StepGraphs(eager, predict)
    systems = Batch.concatenate([crystal(), crystal()]).to("cuda")
    recorded = plain = start(systems, eager)
    for _ in range(3):
        recorded = graphs.advance(step, recorded, 4, settle)
        plain = walked(step, plain, eager, 4)
    assert not graphs.refused
    assert recorded.steps.tolist() == plain.steps.tolist()
    ours, theirs = recorded.batch.positions, plain.batch.positions
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-3)
