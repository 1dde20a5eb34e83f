"""Radial functions against their closed forms."""

from math import comb, pi

import pytest
import torch
from models import CUTOFF, largest

from dpa4sim.model.basis import NORM_EPSILON, RadialBasis, RadialNetwork, envelope

TOLERANCE = 1e-14
"""A dozen float64 operations on numbers of order 1."""

R = torch.linspace(0.05, CUTOFF, 200, dtype=torch.float64)


@pytest.mark.parametrize("exponent", [1, 2, 5, 7])
def test_envelope(exponent):
    u = 1 - R / CUTOFF
    expected = u**4 * sum(comb(k + 3, 3) * (1 - u) ** k for k in range(exponent))
    assert largest(envelope(R, CUTOFF, exponent) - expected) < TOLERANCE
    assert not envelope(torch.tensor([CUTOFF, 9.0]).double(), CUTOFF, exponent).any()
    assert bool((envelope(R, CUTOFF, exponent).diff() <= 0).all())


@pytest.mark.parametrize("exponent", [2, 5, 7])
def test_envelope_is_flat_at_zero(exponent):
    """1 - s falls like r^p."""
    small = torch.tensor([1e-2, 2e-2], dtype=torch.float64) * CUTOFF
    low, high = (1 - envelope(small, CUTOFF, exponent)).tolist()
    assert high / low == pytest.approx(2**exponent, rel=0.2)


def test_bessel():
    basis = RadialBasis("bessel", 6, CUTOFF, 7).double()
    expected = torch.stack([torch.sin(n * pi * R / CUTOFF) / R for n in range(1, 7)], 1)
    expected = expected * envelope(R, CUTOFF, 7)[:, None]
    frequencies_are_made_in_float32 = 1e-6
    assert largest(basis(R) - expected) < frequencies_are_made_in_float32


def test_gaussian():
    basis = RadialBasis("gaussian", 5, CUTOFF, 7).double()
    sigma = CUTOFF / 4
    centers = torch.tensor([0, 0.25, 0.5, 0.75, 1]).double() * CUTOFF
    expected = torch.exp(-((R[:, None] - centers) ** 2) / (2 * sigma**2))
    assert largest(basis(R) - expected * envelope(R, CUTOFF, 7)[:, None]) < TOLERANCE


def test_one_gaussian_is_as_wide_as_the_cutoff():
    basis = RadialBasis("gaussian", 1, CUTOFF, 7).double()
    expected = torch.exp(-0.5 * (R / CUTOFF) ** 2) * envelope(R, CUTOFF, 7)
    assert largest(basis(R)[:, 0] - expected) < TOLERANCE


@pytest.mark.parametrize("kind", ["bessel", "gaussian"])
def test_nothing_beyond_the_cutoff(kind):
    far = torch.tensor([CUTOFF, CUTOFF + 1e-9, 2 * CUTOFF], dtype=torch.float64)
    assert not RadialBasis(kind, 4, CUTOFF, 7).double()(far).any()


@pytest.mark.parametrize("norm", [True, False])
def test_network(norm):
    torch.manual_seed(0)
    network = RadialNetwork(4, (7, 0), 3, 5, norm).double()
    assert [tuple(weight.shape) for weight in network.weights] == [(4, 7), (7, 5)]
    x = torch.randn(6, 4).double()
    hidden = x
    for layer, weight in enumerate(network.weights):
        hidden = hidden @ weight
        if norm:
            with torch.no_grad():
                network.scales[layer].uniform_(0.5, 2)
            size = (hidden.square().mean(1, keepdim=True) + NORM_EPSILON).sqrt()
            hidden = hidden / size * network.scales[layer]
        hidden = hidden * torch.sigmoid(hidden)
    assert largest(network(x) - hidden) < 10 * TOLERANCE
    flat = hidden @ network.out
    by_degree = torch.einsum("eh,lhc->elc", hidden, network.out_by_degree)
    assert largest(by_degree.flatten(1) - flat) < 10 * TOLERANCE


def test_network_without_norms_has_no_scales_and_keeps_zero():
    network = RadialNetwork(4, (0,), 3, 5, norm=False).double()
    assert len(network.scales) == 0
    assert not network(torch.zeros(2, 4).double()).any()
