"""Mistakes that other batched engines make, measured on their releases: none of them here.

These are the ones that no other file of tests is about.
"""

from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
import torch
from ase import Atoms
from ase.build import bulk
from models import OPTION_SETS, random_potential, rotation_matrix
from torch.utils._python_dispatch import TorchDispatchMode
from toy import Einstein, Free, LennardJones, crystals, from_atoms, packed

from dpa4sim import pair_search
from dpa4sim.batch import Batch
from dpa4sim.edges import neighbors
from dpa4sim.errors import Status
from dpa4sim.pool.pack import take
from dpa4sim.relax import relax
from dpa4sim.relax.fire import FireSettings, FireState, fire_init, fire_step
from dpa4sim.relax.freedom import unconstrained
from dpa4sim.relax.run import OPTIMIZERS
from dpa4sim.simulate import md, read_trajectory

ROUNDING = 1e-10
"""eV, eV/Å and Å: matrix products of another batch add up in another order."""

SAME_ENERGY_EV = 1e-5
"""Per cell; at fmax 1e-3 eV/Å an energy lies up to about 1e-6 eV above its minimum."""

DEFAULT_OF_OTHERS_EV = 1e-3
"""A change of energy below this is what others call converged."""


class Calls(TorchDispatchMode):
    """Counts aten calls by name."""

    def __init__(self) -> None:
        super().__init__()
        self.names: Counter[str] = Counter()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.names[function.overloadpacket.__name__] += 1
        return function(*args, **(kwargs or {}))


def oxides() -> list[Atoms]:
    """Small crystals of the elements that the test networks know."""
    found = [bulk("Si"), bulk("SiC", "zincblende", a=4.3), bulk("SiO", "rocksalt", a=4.6)]
    for seed, atoms in enumerate(found):
        atoms.rattle(0.05, seed=seed)
    return found


def walk(batch: Batch, model, steps: int) -> FireState:
    state = fire_init(batch, model, **cells_move(batch), settings=FireSettings(fmax=1e-6))
    for _ in range(steps):
        state = fire_step(state, model)
    return state


def cells_move(batch: Batch) -> dict:
    return {"freedom": unconstrained(batch)}


@pytest.mark.parametrize("sick", [torch.nan, torch.inf])
@pytest.mark.parametrize("what", ["positions", "cell"])
def test_one_that_is_no_number_harms_nobody_and_is_not_converged(what, sick):
    """TorchSim ends every cell relaxation of the batch; elsewhere no pairs mean no forces."""
    potential = random_potential(OPTION_SETS["neo"])
    batch = packed(oxides())
    tensor = getattr(batch, what).clone()
    tensor[2, 0] = sick  # an atom of the second system, or the cell of the third
    ill = 1 if what == "positions" else 2
    mates = [s for s in range(3) if s != ill]
    state = walk(replace(batch, **{what: tensor}), potential, 6)
    expected = take(walk(batch, potential, 6), mates)
    assert state.status[ill] == Status.NOT_FINITE
    assert state.steps[ill] == 0
    ours = take(state, mates)
    assert ours.steps.tolist() == [6, 6]
    for name in ("positions", "cell"):
        mine, theirs = getattr(ours.batch, name), getattr(expected.batch, name)
        torch.testing.assert_close(mine, theirs, rtol=0, atol=ROUNDING)
    mine, theirs = ours.prediction.energy, expected.prediction.energy
    torch.testing.assert_close(mine, theirs, rtol=0, atol=ROUNDING)


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_a_small_change_of_the_energy_is_not_convergence(optimizer):
    """On a soft spring no step changes the energy by much, and the force is above fmax."""
    model, fmax = Einstein(stiffness=1e-3), 1e-4
    start = Batch.single([[2.0, 0.0, 0.0], [0.0, 1.9, 0.0]], [29, 29])

    def ends(max_steps: int):
        settings = {"fmax": fmax, "max_steps": max_steps, "optimizer": optimizer}
        return relax(model, [start], cell=False, **settings)

    for n in (1, 2):
        short = ends(n)
        assert abs(short.energy[0] - ends(n - 1).energy[0]) < DEFAULT_OF_OTHERS_EV
        assert short.fmax[0] > fmax
        assert short.status == [Status.MAX_STEPS]
    full = ends(2000)
    assert full.status == [Status.CONVERGED]
    assert full.fmax[0] < fmax


def descriptions(atoms: Atoms) -> dict[str, Atoms]:
    """One crystal, told in cells of other orientation, handedness and shape."""
    cell = atoms.cell.array
    found = {"as it is": atoms}
    for name, change in {
        "left-handed": np.eye(3)[[1, 0, 2]],
        "negative": -np.eye(3),
        "skewed": np.array([[1, 0, 0], [2, 1, 0], [-1, 1, 1]]),
    }.items():
        found[name] = atoms.copy()
        found[name].set_cell(change @ cell)
    found["rotated"] = atoms.copy()
    found["rotated"].set_cell(cell @ rotation_matrix(3).numpy().T, scale_atoms=True)
    found["unwrapped"] = atoms.copy()
    turns = np.random.default_rng(0).integers(-3, 4, size=(len(atoms), 3))
    found["unwrapped"].positions += turns @ cell
    return found


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_cells_of_any_description_move_and_end_at_one_energy(optimizer):
    """nvalchemi's first FIRE never moves the cell; its second wants it aligned, right-handed."""
    told = descriptions(crystals()["hexagonal"])
    start = packed(told.values())
    result = relax(LennardJones(), list(told.values()), fmax=1e-3, optimizer=optimizer)
    assert result.status == [Status.CONVERGED] * len(told)
    energies = dict(zip(told, result.energy, strict=True))
    assert max(energies.values()) - min(energies.values()) < SAME_ENERGY_EV, energies
    pressure = LennardJones()(start).stress.abs().amax((1, 2))
    assert (pressure > 0.005).all(), "the start should be strained"
    assert max(result.stress_max) < 0.001
    assert min(abs(change) for change in result.volume_change) > 0.01


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_neighbours_that_double_in_a_run_are_all_seen(optimizer):
    """nvalchemi looks at its capacity at the start only, and drops what does not fit later."""
    dilute = [bulk("Cu", cubic=True, a=4.3), bulk("Fe", cubic=True, a=3.4)]
    for atoms in dilute:
        atoms.rattle(0.05, seed=1)
    start = packed(dilute)
    result = relax(LennardJones(), dilute, optimizer=optimizer)
    assert result.status == [Status.CONVERGED] * 2
    end = Batch.concatenate(result.batches)
    n_start, n_end = (neighbors(batch, 6.0).n_edges for batch in (start, end))
    assert n_end > 2 * n_start
    fresh = LennardJones()(end)
    assert fresh.energy.tolist() == result.energy
    for system, prediction in zip(end.split(), result.predictions, strict=True):
        assert torch.equal(LennardJones()(system).forces, prediction.forces)


def test_the_search_of_cuda_makes_room_as_the_density_grows(monkeypatch):
    """The same kernels, compiled for the processor, from a matrix that is right at the start."""
    batch = from_atoms(bulk("Cu", cubic=True, a=4.3))
    path = [batch.with_geometry(f * batch.positions, f * batch.cell) for f in (1, 0.9, 0.8, 0.7)]
    expected = [neighbors(denser, 6.0) for denser in path]
    monkeypatch.setattr(pair_search, "_search_vesin", pair_search._search_warp)
    monkeypatch.setattr(pair_search, "FIRST_CAPACITY", int(expected[0].row_ptr.diff().max()))
    for denser, wanted in zip(path, expected, strict=True):
        assert torch.equal(neighbors(denser, 6.0).vector, wanted.vector)
    assert expected[-1].n_edges > 2 * expected[0].n_edges


def test_a_network_remembers_nothing_of_sizes_and_species_before():
    """The same tensors, refilled in place with other positions, cells and elements."""
    used = random_potential(OPTION_SETS["neo"])
    batch = packed(oxides())
    memory = [batch.positions, batch.cell, batch.atomic_numbers]
    address = [tensor.data_ptr() for tensor in memory]
    for factor, shift in ((1.0, 0), (0.8, 1), (1.2, 2), (1.0, 0)):
        fill = packed(oxides())
        numbers = torch.tensor([14, 6, 8]).roll(shift)
        species = numbers[torch.searchsorted(torch.tensor([6, 8, 14]), fill.atomic_numbers)]
        batch.positions.copy_(factor * fill.positions)
        batch.cell.copy_(factor * fill.cell)
        batch.atomic_numbers.copy_(species)
        assert [tensor.data_ptr() for tensor in memory] == address
        ours = used(batch)
        fresh = random_potential(OPTION_SETS["neo"])(
            Batch.concatenate(
                [replace(s, atomic_numbers=s.atomic_numbers.clone()) for s in batch.split()]
            )
        )
        for name in ("energy", "forces", "stress", "atomic_energies"):
            assert torch.equal(getattr(ours, name), getattr(fresh, name)), (name, factor)


def test_the_number_of_systems_costs_no_operation():
    """TorchSim asks `unique` for it, which waits for the device, at every access."""
    batch = packed(crystals().values())
    with Calls() as calls:
        assert batch.n_systems == 5
    assert not calls.names


def test_the_work_of_a_step_does_not_grow_with_the_number_of_systems():
    """TorchSim's Nosé-Hoover barostat goes through its systems one by one in Python."""
    counts = []
    for copies in (1, 6):
        state = walk(packed([*crystals().values()] * copies), Free(), 1)
        with Calls() as calls:
            fire_step(state, Free())
        counts.append(calls.names)
    assert counts[0] == counts[1]


def test_a_run_of_many_systems_is_one_file(tmp_path):
    """TorchSim's reporter opens a file for each system."""
    md(LennardJones(), [crystals()["primitive"]] * 30, steps=2, output=tmp_path / "run.h5")
    assert [path.name for path in tmp_path.iterdir() if path.is_file()] == ["run.h5"]
    with read_trajectory(tmp_path / "run.h5") as trajectory:
        assert len(trajectory) == 30
