"""The SO(2) layers: equal to their equations, and equivariant about the edge."""

from dataclasses import replace

import pytest
import torch
from models import BASE, largest, random_model
from torch.nn.functional import silu

from dpa4sim.model.edge_features import FrameLayout
from dpa4sim.model.so2_stack import SO2Stack

TOLERANCE = 1e-12
"""Three layers of sums of 24 products."""

CASES = {
    "plain": {},
    "order_2": {"max_degree": 3, "max_order": 2, "so2_layers": 3},
    "normed": {"so2_norm": True, "layer_scale": True, "so2_layers": 3},
    "biased": {"bias": True, "max_degree": 1},
    "degree_0": {"max_degree": 0, "bias": True},
}
WAYS = pytest.mark.parametrize("case", CASES)
N_EDGES = 5


def stack_of(case: str) -> SO2Stack:
    return (
        random_model(replace(BASE, n_focus=2, n_blocks=1, **CASES[case]))
        .blocks[0]
        .convolution.stack
    )


def rows_of(stack: SO2Stack, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    shape = N_EDGES, len(stack.degree), stack.width
    return torch.randn(shape, generator=generator, dtype=torch.float64)


def turn(stack: SO2Stack, angle: float) -> torch.Tensor:
    """The rotation of edge rows by an angle about the edge."""
    layout = FrameLayout.build(stack.max_degree, stack.max_order)
    matrix = torch.eye(len(layout.degree)).double()
    for order in range(1, stack.max_order + 1):
        cos, sin = (
            torch.tensor(order * angle).double().cos(),
            torch.tensor(order * angle).double().sin(),
        )
        minus = (layout.order == 2 * order - 1).nonzero()[:, 0]
        plus = (layout.order == 2 * order).nonzero()[:, 0]
        matrix[minus, minus] = matrix[plus, plus] = cos
        matrix[minus, plus], matrix[plus, minus] = -sin, sin
    return matrix


@WAYS
def test_commutes_with_rolls(case):
    stack = stack_of(case)
    x, R = rows_of(stack), turn(stack, 0.9)
    for focus in range(2):
        straight = stack(x.flatten(1), focus).unflatten(1, (-1, stack.width))
        turned = stack((R @ x).flatten(1), focus).unflatten(1, (-1, stack.width))
        assert largest(turned - R @ straight) < TOLERANCE


@pytest.mark.parametrize("case", ["plain", "order_2", "biased"])
def test_against_the_equations(case):
    stack, focus = stack_of(case), 1
    layout = FrameLayout.build(stack.max_degree, stack.max_order)
    x, C, L = rows_of(stack), stack.width, stack.max_degree
    factor = torch.rand(N_EDGES, C).double()
    got = stack(x.flatten(1), focus, factor).unflatten(1, (-1, C))
    for layer in range(stack.n_layers):
        u = torch.zeros_like(x)
        zonal = stack.zonal[layer].unflatten(1, (2, -1))[:, focus]
        rows = (layout.order == 0).nonzero()[:, 0]
        u[:, rows] = (x[:, rows].flatten(1) @ zonal).unflatten(1, (-1, C))
        for m in range(1, stack.max_order + 1):
            minus = (layout.order == 2 * m - 1).nonzero()[:, 0]
            plus = (layout.order == 2 * m).nonzero()[:, 0]
            U, V = stack.pairs[layer][m - 1].unflatten(1, (2, 2, -1))[:, focus].unbind(1)
            a, b = x[:, minus].flatten(1), x[:, plus].flatten(1)
            u[:, minus] = (a @ U - b @ V).unflatten(1, (-1, C))
            u[:, plus] = (a @ V + b @ U).unflatten(1, (-1, C))
        if stack.bias:
            bias = stack.biases[layer].unflatten(0, (2, C))[focus]
            u[:, 0] += bias * factor if layer == 0 else bias
        if layer < stack.n_layers - 1:
            logit = u[:, 0] @ stack.gates[layer].unflatten(1, (2, -1))[:, focus]
            if stack.bias:
                logit = logit + stack.gate_biases[layer].unflatten(0, (2, -1))[focus]
            gates = torch.sigmoid(logit).unflatten(1, (L, C))
            gated = u * gates[:, (layout.degree - 1).clamp(min=0)]
            u = torch.cat([silu(u[:, :1]), gated[:, 1:]], 1)
        x = x + u
    assert largest(got - x) < TOLERANCE


def test_norm_and_scale_are_used():
    stack = stack_of("normed")
    x = rows_of(stack).flatten(1)
    before = stack(x, 0)
    for parameters in (stack.scales, stack.norm_scales, stack.norm_biases):
        with torch.no_grad():
            parameters[0].add_(0.3)
            assert largest(stack(x, 0) - before) > 1e-3
            parameters[0].sub_(0.3)
    assert len(stack.norm_scales) == stack.n_layers - 1


def test_focuses_do_not_share_weights():
    stack = stack_of("plain")
    x = rows_of(stack).flatten(1)
    assert largest(stack(x, 0) - stack(x, 1)) > 0.01


def test_kernel_layers_are_the_same_maps():
    """`layers` folds scales and the last residual into the matrices."""
    stack = stack_of("order_2")
    last = stack.layers(1)[-1]
    n = len(last.zonal)
    x = rows_of(stack).flatten(1)
    plain = x[:, :n] + x[:, :n] @ stack.zonal[-1].unflatten(1, (2, -1))[:, 1]
    assert last.gate is None
    assert largest(x[:, :n] @ last.zonal - plain) < TOLERANCE
