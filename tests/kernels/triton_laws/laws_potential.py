"""A whole potential on the Triton kernels against plain autograd in float64, by the interpreter."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

import pytest
import torch
from models import BASE, OPTION_SETS, crystal, dimer, molecule, random_model

from dpa4sim.batch import Batch
from dpa4sim.edges import neighbors
from dpa4sim.kernels import triton_assemble, triton_convolution, triton_grid
from dpa4sim.kernels.triton_convolution import triton_edge_convolution
from dpa4sim.model import emfa
from dpa4sim.model.grid import GridProduct
from dpa4sim.potential import Potential, Prediction

TOLERANCE = 1e-11
"""eV, eV/Å and eV/Å^3; forces are of order 0.01 to 10."""

CONFIGS = {
    "base": replace(BASE, cutoff=3.0),
    "neo": replace(OPTION_SETS["neo"], cutoff=3.0, n_blocks=1),
    "focuses": replace(
        OPTION_SETS["order_2"], cutoff=3.0, n_focus=2, n_heads=2, focus_channels=6, n_blocks=1
    ),
    "scatter": replace(BASE, cutoff=3.0, n_heads=0, n_blocks=1, max_order=0),
}


@pytest.mark.parametrize("name", [*CONFIGS, "so3_grid"])
def test_the_setting_switches_every_kernel_on(name, monkeypatch):
    """`Potential(kernels="triton")`: convolutions, grids and sums."""
    config = CONFIGS.get(name) or replace(OPTION_SETS[name], cutoff=3.0, n_blocks=1)
    model = random_model(config)
    batch = Batch.concatenate([dimer(2.0), molecule()])
    model.hand_written = False
    wanted = Potential(model, dtype="float64")(batch)
    model.hand_written = True
    calls = Counter()
    for module, kernel in (
        (triton_convolution, "triton_edge_convolution"),
        (triton_grid, "grid_product"),
        (triton_assemble, "assemble_sums"),
    ):
        monkeypatch.setattr(module, kernel, counted(getattr(module, kernel), calls, kernel))
    found = Potential(model, dtype="float64", kernels="triton")(batch)
    assert_same(found, wanted)
    grids = [m for m in model.modules() if isinstance(m, GridProduct) and m.operation == "product"]
    assert calls["triton_edge_convolution"] == len(model.blocks) * config.n_focus
    assert (calls["grid_product"] > 0) == (len(grids) > 0)
    assert calls["assemble_sums"] == 1
    again = Potential(model, dtype="float64")(batch)
    assert_same(again, wanted)
    assert calls["assemble_sums"] == 1, "the switch is off again"


def counted(kernel, calls, name):
    def call(*inputs):
        calls[name] += 1
        return kernel(*inputs)

    return call


def assert_same(found: Prediction, wanted: Prediction) -> None:
    for quantity in ("energy", "forces", "stress", "atomic_energies"):
        ours, theirs = getattr(found, quantity), getattr(wanted, quantity)
        torch.testing.assert_close(ours, theirs, rtol=0, atol=TOLERANCE, equal_nan=True)


@pytest.mark.parametrize("name", CONFIGS)
def test_energy_forces_and_stress(name, monkeypatch):
    batch = molecule() if name == "base" else crystal()
    assert neighbors(batch, 3.0).n_edges > 10
    potential = Potential(random_model(CONFIGS[name]), dtype="float64")
    potential.model.hand_written = False
    wanted = potential(batch)
    calls = []
    real = triton_edge_convolution
    monkeypatch.setattr(emfa, "edge_convolution", lambda *a: calls.append(1) or real(*a))
    potential.model.hand_written = True
    found = potential(batch)
    config = CONFIGS[name]
    assert len(calls) == config.n_blocks * config.n_focus
    assert_same(found, wanted)
    assert float(wanted.forces.abs().max()) > 1e-3
