"""Feed-forward units: equivariance and the gated unit's equation."""

import pytest
import torch
from models import largest, node_features, rotation_matrix, wigner
from torch import nn
from torch.nn.functional import silu

from dpa4sim.model.feed_forward import FeedForward, GatedFeedForward

TOLERANCE = 1e-11
"""Products of grid sums of numbers up to 30; 1e-13 is what we see."""

C, HIDDEN = 4, 6


def filled(module: nn.Module) -> nn.Module:
    torch.manual_seed(0)
    module = module.double()
    for parameter in module.parameters():
        nn.init.normal_(parameter, std=0.4)
    return module


@pytest.mark.parametrize("degree", [0, 1, 3])
@pytest.mark.parametrize("operation", ["product", "mlp", "branch"])
@pytest.mark.parametrize("grid", ["s2", "so3"])
def test_grid_units_are_equivariant(grid, operation, degree):
    module = filled(
        FeedForward(
            degree, C, HIDDEN, grid, grid_order=2, operation=operation, n_branches=2, bias=True
        )
    )
    x = node_features(5, degree, C)
    D = wigner(degree, rotation_matrix())
    straight = module(x)
    assert largest(straight) > 0.1
    assert largest(module(D @ x) - D @ straight) < TOLERANCE * largest(straight)


@pytest.mark.parametrize("degree", [0, 2])
@pytest.mark.parametrize("gated_linear", [True, False])
@pytest.mark.parametrize("bias", [True, False])
def test_gated_unit(degree, gated_linear, bias):
    module = filled(GatedFeedForward(degree, C, HIDDEN, gated_linear=gated_linear, bias=bias))
    x = node_features(5, degree, C)
    rows = module.widen(x)
    value, source = rows.chunk(2, -1) if gated_linear else (rows, rows)
    expected = value.clone()
    expected[:, 0] = silu(source[:, 0]) * (value[:, 0] if gated_linear else 1)
    for l in range(1, degree + 1):
        logit = source[:, 0] @ module.gate[:, (l - 1) * HIDDEN : l * HIDDEN]
        if bias:
            logit = logit + module.gate_bias[(l - 1) * HIDDEN : l * HIDDEN]
        expected[:, l * l : (l + 1) ** 2] *= torch.sigmoid(logit)[:, None]
    assert largest(module(x) - module.narrow(expected)) < TOLERANCE
    D = wigner(degree, -rotation_matrix(1))
    assert largest(module(D @ x) - D @ module(x)) < TOLERANCE


@pytest.mark.parametrize("grid", ["s2", "so3"])
def test_start_as_nothing(grid):
    x = node_features(5, 2, C)
    assert not FeedForward(2, C, HIDDEN, grid, grid_order=1).double()(x).any()
    assert not GatedFeedForward(2, C, HIDDEN, gated_linear=True, bias=False).double()(x).any()


def test_frames_do_not_outnumber_the_degree():
    """k_max is clipped to L."""
    assert FeedForward(1, C, HIDDEN, "so3", grid_order=3).widen.weight.shape == (
        2,
        C,
        2 * 3 * HIDDEN,
    )
