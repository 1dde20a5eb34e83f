"""Compiled steps: the numbers of the eager ones, one graph whatever the batch, and a way without.

The compiler takes most of a minute, `roll` or a real step.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from jaxtyping import Float
from models import BASE, random_potential
from torch import Tensor
from toy import LennardJones, Sick, crystals, packed, without_bulk

from dpa4sim import compiled_steps
from dpa4sim.batch import Batch, sum_over_atoms
from dpa4sim.compiled_steps import by_loop, fused, is_compiled, plainly
from dpa4sim.composite import Sum
from dpa4sim.errors import Status
from dpa4sim.pool.pack import flatten, join, take
from dpa4sim.potential import EnergyModel, Prediction
from dpa4sim.relax.fire import FireSettings, FireState, fire_init, fire_step
from dpa4sim.relax.freedom import unconstrained
from dpa4sim.simulate.npt import c_rescale_step
from dpa4sim.simulate.nvt import langevin_step
from dpa4sim.simulate.state import MDState, md_init, set_conditions

ROUNDING = 1e-12
"""Relative to the largest number of a tensor: a compiler orders nothing anew but fuses freely."""


@dataclass(frozen=True)
class Limits:
    """Settings: two numbers, and one that stands for no limit."""

    ceiling: float
    most: int
    never: float = math.inf


@dataclass(frozen=True)
class Rolling:
    """A record of its own: what changes, what does not, and what may be missing."""

    batch: Batch
    speed: Float[Tensor, "atom 3"]
    limits: Limits
    seen: Float[Tensor, " system"]
    label: Float[Tensor, " system"] | None = None


def roll(state: Rolling, share: float) -> Rolling:
    """Everything that a step does: rows, sums, settings, and parts that stay as they are."""
    far = (state.batch.positions + share * state.speed).clamp(max=state.limits.ceiling)
    seen = sum_over_atoms(far[:, 0], state.batch) + state.limits.most
    seen = seen if math.isinf(state.limits.never) else seen + state.limits.never
    return replace(state, batch=replace(state.batch, positions=far), seen=seen)


@dataclass(frozen=True)
class Compiled:
    """A model that says of itself that it is compiled."""

    model: EnergyModel
    network: bool = True

    @property
    def cutoff(self) -> float:
        return self.model.cutoff

    @property
    def device(self) -> torch.device:
        return self.model.device

    def __call__(self, batch: Batch) -> Prediction:
        return self.model(batch)


@pytest.fixture(scope="module", autouse=True)
def cache(tmp_path_factory):
    """An empty cache of this file's own, on the disk and in the process."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DPA4SIM_CACHE", str(tmp_path_factory.mktemp("cache")))
        patch.setattr(compiled_steps, "_LOOPS", {})
        yield


def rolling(counts: list[int], ceiling: float = 0.5, most: int = 7, **more: Any) -> Rolling:
    draw = torch.Generator().manual_seed(sum(counts))
    batch = Batch.concatenate(
        Batch.single(torch.randn(n, 3, generator=draw, dtype=torch.float64), [6] * n)
        for n in counts
    )
    speed = torch.randn(len(batch.positions), 3, generator=draw, dtype=torch.float64)
    seen = torch.zeros(len(counts), dtype=torch.float64)
    return Rolling(batch, speed, Limits(ceiling, most), seen, **more)


def same(found: Any, expected: Any, tolerance: float = 0.0) -> None:
    """Equal to a share of the largest number of each tensor."""
    ours, theirs = flatten(found), flatten(expected)
    assert set(ours) == set(theirs)
    for name, value in theirs.items():
        largest = (
            float(value.double().nan_to_num(0.0, 0.0, 0.0).abs().max()) if value.numel() else 0.0
        )
        torch.testing.assert_close(
            ours[name], value, rtol=0, atol=tolerance * largest, equal_nan=True, msg=name
        )


@pytest.mark.slow
def test_one_graph_for_every_batch(capsys):
    """One atom, one system, as many atoms as systems, none in one of them: the same graph."""
    for counts in ([3, 5, 2], [1], [1, 1, 1], [4], [40, 1, 0, 7] * 5):
        state = rolling(counts)
        same(by_loop(roll, by_loop(roll, state, 0.5), 0.5), roll(roll(state, 0.5), 0.5))
    assert capsys.readouterr().err.count("compiling") == 1
    assert len(compiled_steps._LOOPS) == 1


@pytest.mark.slow
def test_settings_are_inputs():
    """Other numbers compile nothing, and come back as the numbers that they were."""
    by_loop(roll, rolling([3, 5]), 0.5)
    before = len(compiled_steps._LOOPS)
    for ceiling, most in ((0.1, 3), (-0.2, 11), (0.1, 3)):
        state = rolling([3, 5], ceiling, most)
        found = by_loop(roll, state, 0.5)
        same(found, roll(state, 0.5))
        assert found.limits == state.limits
        assert type(found.limits.most) is int
    assert len(compiled_steps._LOOPS) == before


@pytest.mark.slow
def test_what_does_not_change_is_the_same_tensor():
    state = rolling([3, 5])
    found = by_loop(roll, state, 0.5)
    assert found.speed is state.speed
    assert found.batch.system_idx is state.batch.system_idx
    assert found.batch.positions is not state.batch.positions


@pytest.mark.slow
def test_two_places_may_hold_one_tensor():
    """In the first batch only: who is whose must not be remembered from there."""
    state = rolling([3, 5])
    one = replace(state, speed=state.batch.positions)
    same(by_loop(roll, one, 0.5), roll(one, 0.5))
    same(by_loop(roll, state, 0.5), roll(state, 0.5))


@pytest.mark.slow
def test_memory_in_any_order():
    state = rolling([3, 5])
    turned = replace(state, speed=state.speed.T.contiguous().T)
    assert not turned.speed.is_contiguous()
    same(by_loop(roll, turned, 0.5), roll(state, 0.5))


@pytest.mark.slow
def test_a_record_that_is_changed_is_looked_at_again():
    made = by_loop(roll, rolling([3, 5]), 0.5)
    other = replace(made, speed=2 * made.speed)
    same(by_loop(roll, other, 0.5), roll(other, 0.5))
    same(by_loop(roll, take(made, [1]), 0.5), roll(take(made, [1]), 0.5))
    joined = join(made, take(made, [0]))
    same(by_loop(roll, joined, 0.5), roll(joined, 0.5))


@pytest.mark.slow
def test_the_next_process_finds_it(capsys, monkeypatch):
    state = rolling([3, 5])
    by_loop(roll, state, 0.5)
    capsys.readouterr()
    monkeypatch.setattr(compiled_steps, "_LOOPS", {})
    same(by_loop(roll, state, 0.5), roll(state, 0.5))
    assert capsys.readouterr().err == ""


def test_names_tell_apart_what_cannot_share_a_file():
    device = torch.device("cpu")
    states = [rolling([3]), rolling([3], label=torch.zeros(1, dtype=torch.float64))]
    states.append(replace(states[0], limits=Limits(0.5, 7, never=2.0)))
    names = {
        compiled_steps._name_of(function, device, compiled_steps._take_apart(state, []))
        for state in states
        for function in (roll, same)
    }
    assert len(names) == 6
    again = compiled_steps._take_apart(rolling([7, 1], ceiling=0.2), [])
    assert compiled_steps._name_of(roll, device, again) in names


def test_without_a_compiler_steps_go_on(monkeypatch, capsys):
    def broken(*_):
        raise RuntimeError("No working C++ compiler found\nand a long trace")

    monkeypatch.setattr(compiled_steps, "_LOOPS", {})
    monkeypatch.setattr(compiled_steps, "_make", broken)
    monkeypatch.setattr(compiled_steps, "_sources", lambda: "other code")
    state = rolling([3, 5])
    for _ in range(3):
        same(by_loop(roll, state, 0.5), roll(state, 0.5))
    said = capsys.readouterr().err
    assert said.count("steps run uncompiled: No working C++ compiler found") == 1


def test_a_folder_that_cannot_be_written(monkeypatch, tmp_path, capsys):
    (tmp_path / "file").write_text("")
    monkeypatch.setattr(compiled_steps, "_LOOPS", {})
    monkeypatch.setenv("DPA4SIM_CACHE", str(tmp_path / "file" / "cache"))
    state = rolling([3, 5])
    same(by_loop(roll, state, 0.5), roll(state, 0.5))
    assert "steps run uncompiled" in capsys.readouterr().err


def test_who_is_compiled():
    potential = random_potential(BASE)
    assert not is_compiled(potential)
    assert not is_compiled(LennardJones())
    assert fused(potential) is plainly
    pair = Sum([potential, LennardJones(cutoff=potential.cutoff)])
    assert not is_compiled(pair)
    potential.network = lambda *_: None
    assert is_compiled(potential)
    assert is_compiled(pair)
    assert is_compiled(SimpleNamespace(parts=[pair]))
    assert fused(pair) is by_loop


def mixed() -> Batch:
    """Crystals, a slab, a wire and molecules; the third crystal falls sick."""
    batch = packed([*crystals().values(), *without_bulk().values()])
    batch.atomic_numbers[batch.system_idx == 2] = Sick.MARK
    return batch


def sick() -> Sick:
    return Sick(LennardJones(), "forces", math.nan, from_call=8)


def relaxing(batch: Batch, model: EnergyModel) -> FireState:
    freedom = unconstrained(batch, batch.pbc.all(1))
    settings = FireSettings(fmax=FMAX, max_edges=1e5)
    return fire_init(batch, model, freedom=freedom, settings=settings)


def moving(batch: Batch, model: EnergyModel) -> MDState:
    conditions = set_conditions(batch, n_steps=20, identity=batch.n_atoms.tolist())
    return md_init(batch, model, conditions=conditions)


FMAX = 0.13
"""eV/Å; some systems get there within the steps below and others do not."""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("start", "step", "done"),
    [(relaxing, fire_step, Status.CONVERGED), (moving, langevin_step, Status.COMPLETED)],
    ids=["fire", "langevin"],
)
def test_a_compiled_step_is_the_eager_step(start: Callable, step: Callable, done, capsys):
    """A sick system, one that is done, every kind of periodicity; others come and go."""
    eager_model, model = sick(), Compiled(sick())
    eager, state = start(mixed(), eager_model), start(mixed(), model)
    for _ in range(25):
        eager, state = step(eager, eager_model), step(state, model)
        same(state, eager, ROUNDING)
    assert {Status.NOT_FINITE, done} <= set(map(Status, state.status.tolist()))
    calm = LennardJones()
    for systems in ([0], [3, 5], [6, 1, 4]):
        few = mixed().select(systems)
        path = start(few, calm)
        alone = [start(mixed().select([one]), calm) for one in systems]
        for _ in range(20):
            path = step(path, Compiled(calm))
            alone = [step(one, Compiled(calm)) for one in alone]
        for place, one in enumerate(alone):
            same(take(path, [place]), one, ROUNDING)
    assert capsys.readouterr().err.count("compiling") == 2, "one graph for each half"


@pytest.mark.slow
def test_a_compiled_barostat_is_the_eager_one():
    """Its velocities are those of nve, its cells a graph of their own."""
    eager_model, model = sick(), Compiled(sick())
    crystal = mixed().select([0, 1, 2])
    eager, state = moving(crystal, eager_model), moving(crystal, model)
    for _ in range(15):
        eager = c_rescale_step(eager, eager_model, coupling="triclinic")
        state = c_rescale_step(state, model, coupling="triclinic")
        same(state, eager, ROUNDING)
    assert state.status.tolist() == [Status.RUNNING, Status.RUNNING, Status.NOT_FINITE]
    assert not torch.equal(state.batch.cell[0], crystal.cell[0])
