"""The training passes of one convolution, the last layer on atoms or on edges, against autograd."""

from __future__ import annotations

from dataclasses import replace
from functools import partial

import pytest
import torch
from models import BASE, edge_features, largest, molecule, node_features, random_model

from dpa4sim.batch import Batch
from dpa4sim.config import DPA4Config
from dpa4sim.edges import neighbors
from dpa4sim.kernels import edge_order, message_training
from dpa4sim.kernels.edge_groups import BothEnds
from dpa4sim.kernels.edge_training import Passes, force_pass
from dpa4sim.model.emfa import EMFA

EXACT = 1e-10
"""Relative to a tensor's largest entry; float64, sums in another order."""

CASES = {
    "no_heads": {"n_heads": 0},
    "heads": {"n_heads": 2, "n_focus": 2},
    "order_0": {"max_order": 0, "n_heads": 4},
    "order_2": {"max_degree": 3, "max_order": 2, "product_rank": 2},
    "scaled": {"so2_layers": 3, "layer_scale": True},
    "one_layer": {"so2_layers": 1},
    "one_scaled_layer": {"so2_layers": 1, "layer_scale": True, "n_heads": 2},
    "degree_0": {"max_degree": 0, "max_order": 0},
}
WAYS = {"at_centers": True, "on_edges": False}


def lonely() -> Batch:
    """Six atoms between two that have no neighbour."""
    found = molecule()
    far = torch.tensor([[50.0, 0.0, 0.0], [0.0, 50.0, 0.0]], dtype=found.positions.dtype)
    positions = torch.cat([far[:1], found.positions, far[1:]])
    numbers = torch.cat([torch.tensor([6]), found.atomic_numbers, torch.tensor([8])])
    return Batch.single(positions, numbers)


def of_a_step(config: DPA4Config, offsets_known: bool | None) -> list[torch.Tensor]:
    """Messages, their derivatives, and those of a loss of both; None for autograd."""
    model, batch = random_model(replace(config, n_blocks=1)), lonely()
    convolution: EMFA = model.blocks[0].convolution
    found = neighbors(batch, config.cutoff)
    vector = found.vector.requires_grad_(True)
    edges = edge_features(model, batch, vector)
    if offsets_known is not None:
        convolution.passes = Passes()
        offsets = tuple(found.row_ptr.tolist()) if offsets_known else None
        edges = replace(edges, learning=True, offsets=offsets)
    x = node_features(len(batch.positions), config.max_degree, config.channels).requires_grad_(True)
    message = convolution(x, edges)
    generator = torch.Generator().manual_seed(2)

    def weigh(tensor: torch.Tensor) -> torch.Tensor:
        noise = torch.randn(tensor.shape, generator=generator, dtype=tensor.dtype)
        return (noise * tensor).sum()

    with force_pass():
        first = torch.autograd.grad(weigh(message), [x, vector], create_graph=True)
    loss = weigh(first[0]) + weigh(first[1]) + weigh(message)
    leaves = [x, vector, *convolution.parameters()]
    second = torch.autograd.grad(loss, leaves, materialize_grads=True, allow_unused=True)
    return [t.detach() for t in (message, *first, *second)]


def deviation(case: str, offsets_known: bool) -> float:
    config = replace(BASE, **CASES[case])
    found, wanted = of_a_step(config, offsets_known), of_a_step(config, None)
    pairs = zip(found, wanted, strict=True)
    return max(largest(a - b) / max(largest(b), 1e-6) for a, b in pairs)


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("case", CASES)
def test_derivatives_are_those_of_autograd(case, way, monkeypatch):
    monkeypatch.setattr(BothEnds, "build", partial(BothEnds.build, most=9))
    assert deviation(case, WAYS[way]) < EXACT


def test_the_last_layer_acts_on_atoms_where_offsets_are_known(monkeypatch):
    """Else both cases above could be one."""
    made = []
    for name in ("AtCenters", "OnEdges"):
        real = getattr(message_training, name)
        spy = lambda *a, name=name, real=real: made.append(name) or real(*a)
        monkeypatch.setattr(edge_order, name, spy)
    of_a_step(BASE, True)
    assert set(made) == {"AtCenters"}
    made.clear()
    of_a_step(BASE, False)
    assert set(made) == {"OnEdges"}


@pytest.mark.parametrize("name", ["last_layer_weights", "weighted_rows", "last_layer"])
def test_a_wrong_term_shows(name, monkeypatch):
    right = getattr(message_training, name)

    def wrong(*arguments):
        found = right(*arguments)
        return [1.001 * t for t in found] if isinstance(found, list) else 1.001 * found

    monkeypatch.setattr(message_training, name, wrong)
    assert deviation("heads", True) > 1e-5
