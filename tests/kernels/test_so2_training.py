"""The stack's passes by hand: every cotangent is that of autograd twice through the SO(2) stack."""

from dataclasses import replace

import pytest
import torch
from models import BASE, largest, random_model

from dpa4sim.kernels import so2_training
from dpa4sim.kernels.edge_training import Passes
from dpa4sim.kernels.so2_training import StackShape, flatten, unflatten

TOLERANCE = 1e-11
"""Relative; float64, up to three layers of sums of 32 products, differentiated twice."""

CASES = {
    "plain": {},
    "scaled": {"layer_scale": True, "max_degree": 3, "so2_layers": 3},
    "order_3": {"max_degree": 3, "max_order": 3, "so2_layers": 3, "layer_scale": True},
    "order_0": {"max_order": 0},
    "degree_0": {"max_degree": 0, "max_order": 0, "so2_layers": 3, "layer_scale": True},
    "one_layer": {"so2_layers": 1},
}
N_EDGES, FOCUS = 5, 1


def both_ways(case: str, passes: Passes, ends_linear: bool = True) -> float:
    """Largest relative deviation of any cotangent of second order from autograd's."""
    config = replace(BASE, n_focus=2, n_blocks=1, **CASES[case])
    stack = random_model(config, seed=3).blocks[0].convolution.stack
    shape = StackShape(stack.width, stack.max_degree, stack.max_order, ends_linear=ends_linear)
    n_layers, scaled = config.so2_layers - (not ends_linear), config.layer_scale
    constants = [weight.detach() for weight in flatten(stack.layers(FOCUS)[:n_layers])]
    weights = [weight.clone().requires_grad_(True) for weight in constants]
    layers, leaves = (unflatten(values, shape, n_layers, scaled) for values in (constants, weights))
    generator = torch.Generator().manual_seed(1)

    def noise() -> torch.Tensor:
        size = N_EDGES, len(stack.degree) * stack.width
        return torch.randn(size, generator=generator, dtype=torch.float64)

    x, d_y, moved, direct = (noise().requires_grad_(i < 2) for i in range(4))
    end = reference(x, leaves, stack, ends_linear)
    (force,) = torch.autograd.grad(end, x, d_y, create_graph=True)
    # The loss sees the force (cotangent `moved`) and the energy (`direct`).
    loss = (force * moved).sum() + (end * direct).sum()
    wanted = torch.autograd.grad(loss, [x, d_y, *weights], materialize_grads=True)

    y, pre, gates = passes.forward(x.detach(), layers, shape)
    found = passes.backward(d_y.detach(), pre, gates, layers, shape)
    assert largest(y - end) < TOLERANCE
    assert largest(found[0] - force) < TOLERANCE
    y_dot, d_pre, first = passes.second_backward(
        moved, d_y.detach() if ends_linear else None, found, pre, gates, layers, shape
    )
    d_x, second = passes.final_backward(direct, d_pre, x.detach(), pre, gates, layers, shape)
    of_weights = [a + b for a, b in zip(first, second, strict=True)]
    given = [d_x, y_dot, *of_weights]
    return max(largest(a - b) / max(largest(b), 1e-6) for a, b in zip(given, wanted, strict=True))


def reference(x, layers, stack, ends_linear):
    """Eq. 19-21 in plain autograd."""
    for layer in layers[:-1] if ends_linear else layers:
        x = x + activated(x @ torch.block_diag(layer.zonal, *layer.pairs), layer, stack)
    return x @ torch.block_diag(layers[-1].zonal, *layers[-1].pairs) if ends_linear else x


def activated(u, layer, stack):
    """silu on row 0, the gate of its degree on every other row, from the row table."""
    rows = u.unflatten(1, (-1, stack.width))
    scalar = torch.nn.functional.silu(rows[:, 0])
    scalar = scalar if layer.scalar_scale is None else scalar * layer.scalar_scale
    if layer.gate is None:
        return scalar
    gate = torch.sigmoid(rows[:, 0] @ layer.gate).unflatten(1, (-1, stack.width))
    return torch.cat([scalar[:, None], rows[:, 1:] * gate[:, stack.degree[1:] - 1]], 1).flatten(1)


@pytest.mark.parametrize("ends_linear", [True, False])
@pytest.mark.parametrize("case", CASES)
def test_second_derivatives_are_those_of_autograd(case, ends_linear):
    assert both_ways(case, Passes(), ends_linear) < TOLERANCE


@pytest.mark.parametrize("name", ["_curvature", "_contract", "_slope"])
def test_a_wrong_term_shows(name, monkeypatch):
    right = getattr(so2_training, name)
    monkeypatch.setattr(so2_training, name, lambda *a: right(*a) * 1.001)
    with pytest.raises(AssertionError):
        assert both_ways("scaled", Passes()) < TOLERANCE


def test_a_dropped_cotangent_of_the_pre_activations_shows():
    def forgetful(d_y, d_pre, *rest):
        return so2_training.final_backward(d_y, [None] * len(d_pre), *rest)

    assert both_ways("scaled", Passes(final_backward=forgetful)) > 1e-3
