"""Norms, against their formulas written as loops."""

import pytest
import torch
from models import largest, node_features, rotation_matrix, wigner

from dpa4sim.model.frames import degree_of_lm, degree_of_row
from dpa4sim.model.norm import DegreeNorm, degree_norm, root_mean_square, row_weights

TOLERANCE = 1e-14
"""A few float64 operations on numbers of order 1."""


def filled_norm(degree: int, channels: int) -> DegreeNorm:
    torch.manual_seed(0)
    norm = DegreeNorm(degree, channels, 1e-3).double()
    with torch.no_grad():
        norm.scale.copy_(torch.rand_like(norm.scale) + 0.5)
        norm.bias.copy_(torch.randn_like(norm.bias))
    return norm


def test_root_mean_square():
    x, scale = torch.randn(3, 4, 5).double(), torch.rand(4, 5).double()
    expected = x / ((x**2).sum(-1, keepdim=True) / 5 + 0.1) ** 0.5 * scale
    assert largest(root_mean_square(x, scale, 0.1) - expected) < TOLERANCE


def test_root_mean_square_of_zero_is_zero_with_a_finite_slope():
    x = torch.zeros(2, 4, dtype=torch.float64, requires_grad=True)
    y = root_mean_square(x, torch.ones(4).double(), 1e-7)
    (slope,) = torch.autograd.grad(y.sum(), x)
    assert not y.any()
    assert largest(slope - 1e-7**-0.5) < 1e-9


@pytest.mark.parametrize("degree", [0, 1, 3])
def test_degree_norm(degree):
    """The scalars are centred, every degree counts alike, the bias comes last."""
    norm, C = filled_norm(degree, 5), 5
    x = node_features(4, degree, C)
    got = norm(x)
    for atom in range(4):
        rows = x[atom].clone()
        rows[0] -= rows[0].mean()
        variance = sum(
            rows[l * l : (l + 1) ** 2].square().sum() / (2 * l + 1) for l in range(degree + 1)
        ) / ((degree + 1) * C)
        for lm, l in enumerate(degree_of_lm(degree)):
            expected = rows[lm] * (variance + 1e-3) ** -0.5 * norm.scale[l, 0]
            expected = expected + norm.bias[0] * (lm == 0)
            assert largest(got[atom, lm] - expected) < TOLERANCE


def test_degree_norm_commutes_with_rotations_and_reflections():
    norm, x = filled_norm(3, 4), node_features(5, 3, 4)
    for matrix in (rotation_matrix(), -rotation_matrix(1)):
        D = wigner(3, matrix)
        assert largest(norm(D @ x) - D @ norm(x)) < 10 * TOLERANCE


def test_a_norm_that_mixes_degrees_would_be_seen():
    x = node_features(5, 3, 4)
    D, scale = wigner(3, rotation_matrix()), torch.rand(16, 4).double()
    weight, bias = torch.ones(16).double(), torch.zeros(4).double()
    crooked = lambda y: degree_norm(y, weight, scale, bias, 1e-5)
    assert largest(crooked(D @ x) - D @ crooked(x)) > 0.01


def test_row_weights_of_edge_rows():
    """Degree l has 1 + 2 min(l, M) rows in the edge frame."""
    weights = row_weights(torch.tensor(degree_of_row(3, 1)), 4)
    counts = torch.tensor([1, 3, 3, 3] + [3, 3, 3] * 2)
    assert largest(weights - 1 / (counts.double() * 4 * 4)) < TOLERANCE
