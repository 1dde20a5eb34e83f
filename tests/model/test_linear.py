"""Degree-wise linear maps."""

import pytest
import torch
from models import largest, node_features, rotation_matrix, wigner

from dpa4sim.model.frames import degree_of_lm
from dpa4sim.model.linear import DegreeLinear, add_to_scalar, degree_linear, truncated_normal

TOLERANCE = 1e-14
"""One sum of six products."""


@pytest.mark.parametrize("degree", [0, 2])
def test_each_degree_has_its_matrix(degree):
    x = node_features(3, degree, 6)
    weight = torch.randn(degree + 1, 6, 4).double()
    got = degree_linear(x, weight)
    for lm, l in enumerate(degree_of_lm(degree)):
        assert largest(got[:, lm] - x[:, lm] @ weight[l]) < TOLERANCE


def test_commutes_with_rotations_and_reflections():
    torch.manual_seed(0)
    module, x = DegreeLinear(3, 5, 7, bias=True).double(), node_features(4, 3, 5)
    with torch.no_grad():
        module.bias.normal_()
    for matrix in (rotation_matrix(), -rotation_matrix(1)):
        D = wigner(3, matrix)
        assert largest(module(D @ x) - D @ module(x)) < 10 * TOLERANCE


@pytest.mark.parametrize("degree", [0, 2])
def test_bias_goes_to_the_scalars_only(degree):
    x, bias = node_features(3, degree, 4), torch.randn(4).double()
    moved = add_to_scalar(x, bias) - x
    assert largest(moved[:, 0] - bias) < TOLERANCE
    assert not moved[:, 1:].any()


def test_start():
    assert not DegreeLinear(2, 3, 4, bias=True, zero=True).weight.any()
    torch.manual_seed(0)
    weight = truncated_normal(torch.empty(300, 500), gain=0.5)
    sigma = 0.5 / 800**0.5
    assert float(weight.abs().max()) <= 3 * sigma
    assert float(weight.std()) == pytest.approx(0.9866 * sigma, rel=0.01)  # cut at three sigma
