"""Law 3: padding is exactly silent, and a step can be compiled."""

from __future__ import annotations

import pytest
import torch
from springs import Springs
from starts import batch, dynamics, fire, lbfgs
from toy import LennardJones, crystals, from_atoms

from dpa4sim.batch import Batch
from dpa4sim.edges import neighbors
from dpa4sim.errors import DataError
from dpa4sim.pool.pack import take
from dpa4sim.relax.fire import fire_step
from dpa4sim.relax.lbfgs import lbfgs_step
from dpa4sim.simulate.npt import c_rescale_step
from dpa4sim.simulate.nve import nve_step
from dpa4sim.simulate.nvt import bussi_step, langevin_step

SHAPES = [(70, 12), (96, 9), (512, 64)]


METHODS = {
    "fire": (fire, fire_step),
    "lbfgs": (lbfgs, lbfgs_step),
    "nve": (dynamics, nve_step),
    "langevin": (dynamics, langevin_step),
    "bussi": (dynamics, bussi_step),
}


def test_padding_has_no_edges_and_changes_none():
    plain = neighbors(batch(), 6.0)
    found = neighbors(batch().padded(200, 20), 6.0)
    assert torch.equal(found.center, plain.center)
    assert torch.equal(found.vector, plain.vector)
    assert len(found.row_ptr) == 201


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("name", METHODS)
def test_a_padded_batch_takes_the_same_steps(name, shape):
    start, step = METHODS[name]
    plain, padded = start(batch(), LennardJones()), start(batch().padded(*shape), LennardJones())
    for _ in range(12):
        plain, padded = step(plain, LennardJones()), step(padded, LennardJones())
    real = take(padded, range(7))
    assert torch.equal(real.batch.positions, plain.batch.positions)
    assert torch.equal(real.batch.cell, plain.batch.cell)
    assert torch.equal(real.status, plain.status)
    assert torch.equal(real.prediction.energy, plain.prediction.energy)
    assert padded.batch.positions.shape[0] == shape[0]


def test_no_room_for_padding():
    with pytest.raises(DataError, match="do not fit into 30 atoms and 9 systems"):
        batch().padded(30, 9)


COMPILED_TOLERANCE = 1e-10
"""Å after four steps: a compiler may fuse multiplications and additions."""


@pytest.mark.slow
@pytest.mark.parametrize("name", [*METHODS, "npt"])
def test_a_compiled_step_equals_the_eager_one(name):
    """In one graph, without a break: a break would be a read of the host or a Python surprise."""
    systems = Batch.concatenate([from_atoms(a) for a in crystals().values()]).padded(60, 8)
    model = Springs(systems)
    start, step = METHODS.get(name, (dynamics, c_rescale_step))
    if name == "npt":
        step = lambda state, model: c_rescale_step(state, model, coupling="triclinic")
    eager = start(systems, model)
    compiled = eager
    run = torch.compile(step, fullgraph=True, backend="aot_eager", dynamic=False)
    for _ in range(4):
        eager = step(eager, model)
        compiled = run(compiled, model)
    assert not torch.equal(eager.batch.positions, systems.positions)
    torch.testing.assert_close(
        [compiled.batch.positions, compiled.batch.cell],
        [eager.batch.positions, eager.batch.cell],
        rtol=0,
        atol=COMPILED_TOLERANCE,
    )
