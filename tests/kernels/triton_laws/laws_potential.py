"""A whole potential on the Triton kernels against plain autograd in float64, by the interpreter."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from models import BASE, OPTION_SETS, crystal, dimer, molecule, random_model

from dpa4sim.batch import Batch
from dpa4sim.edges import neighbors
from dpa4sim.kernels.triton_assemble import assemble_sums
from dpa4sim.kernels.triton_convolution import triton_edge_convolution
from dpa4sim.kernels.triton_grid import grid_product
from dpa4sim.kernels.triton_plan import EdgeGraph
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


def grid_forward(module, a, b, scalars=None, focus=0):
    """`GridProduct.forward` of a feed-forward unit on the sphere, by the kernel."""
    assert module.operation == "product"
    assert scalars is None
    pair = torch.cat([a[:, 0], b[:, 0]], -1)
    grids = module.to_grid, module.from_grid
    return grid_product(a, b, pair, pair @ module.gate, *grids, "exact")


def assembled(batch, edges, atomic_energies, gradient, descriptors=None):
    """`potential.assemble` by the kernel."""
    graph = EdgeGraph.build(edges.neighbor, edges.row_ptr)
    sums = assemble_sums(gradient, edges.vector, atomic_energies, graph, batch.n_atoms)
    forces, virial, energy = sums
    volume = torch.where(batch.volume > 0, batch.volume, torch.nan)[:, None, None]
    stress = 0.5 * (virial + virial.transpose(1, 2)) / volume
    return Prediction(energy, forces, stress, atomic_energies, descriptors, edges)


def test_all_kernels_together(monkeypatch):
    potential = Potential(random_model(CONFIGS["neo"]), dtype="float64")
    batch = Batch.concatenate([dimer(2.0), molecule()])
    potential.model.hand_written = False
    wanted = potential(batch)
    potential.model.hand_written = True
    monkeypatch.setattr(emfa, "edge_convolution", triton_edge_convolution)
    monkeypatch.setattr(GridProduct, "forward", grid_forward)
    monkeypatch.setattr("dpa4sim.potential.assemble", assembled)
    assert_same(potential(batch), wanted)


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
