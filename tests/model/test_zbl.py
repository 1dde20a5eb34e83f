"""The repulsion and the window, against their closed forms and limits."""

import math

import pytest
import torch
from models import largest

from dpa4sim.model.zbl import Bridge, repulsion, source_gate
from dpa4sim.units import BOHR_A, COULOMB_EV_A

TOLERANCE = 1e-13
"""Relative: a dozen float64 operations."""

BRIDGE = Bridge(0.8, 1.6)
R = torch.linspace(0.8, 1.6, 81, dtype=torch.float64)


def column(*values: float) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float64)


@pytest.mark.parametrize(("z1", "z2", "r"), [(14, 6, 0.3), (1, 1, 0.05), (92, 8, 2.0)])
def test_repulsion(z1, z2, r):
    a = 0.88534 * BOHR_A / (z1**0.23 + z2**0.23)
    terms = [(0.18175, 3.1998), (0.50986, 0.94229), (0.28022, 0.4029), (0.028171, 0.20162)]
    phi = sum(c * math.exp(-d * r / a) for c, d in terms)
    got = float(repulsion(column(r), column(z1), column(z2)))
    assert got == pytest.approx(COULOMB_EV_A * z1 * z2 / r * phi, rel=TOLERANCE)


def test_repulsion_is_coulomb_at_contact_and_symmetric():
    got = float(repulsion(column(1e-6), column(14), column(6)))
    assert got == pytest.approx(COULOMB_EV_A * 84 / 1e-6, rel=2e-5)  # amplitudes sum to 0.999981+
    assert torch.equal(
        repulsion(column(0.7), column(14), column(6)), repulsion(column(0.7), column(6), column(14))
    )
    assert bool(repulsion(column(0.0), column(14), column(6)).isfinite().all())


def test_clamp():
    """Eq. 2-3: constant inside, r outside, between them its derivatives fit."""
    inside, outside = column(0.01, 0.5, 0.8), column(1.6, 1.7, 4.0)
    assert torch.equal(BRIDGE.clamp(inside), column(0.8, 0.8, 0.8))
    assert torch.equal(BRIDGE.clamp(outside), outside)
    t = (R - 0.8) / 0.8
    h = 20 * t**4 - 45 * t**5 + 36 * t**6 - 10 * t**7
    assert largest(BRIDGE.clamp(R) - (0.8 + 0.8 * h)) < TOLERANCE
    assert bool((BRIDGE.clamp(R).diff() >= 0).all())


def test_amplitude():
    """Eq. 2, 4: 0 inside, 1 outside, and w(t) + w(1 - t) = 1."""
    assert torch.equal(BRIDGE.amplitude(column(0.1, 0.8, 1.6, 3.0)), column(0, 0, 1, 1))
    w = BRIDGE.amplitude(R)
    assert largest(w + w.flip(0) - 1) < TOLERANCE
    assert bool((w.diff() >= 0).all())


@pytest.mark.parametrize("function", [BRIDGE.clamp, BRIDGE.amplitude])
@pytest.mark.parametrize("seam", [0.8, 1.6])
def test_window_has_three_derivatives(function, seam):
    def derivatives(r: float) -> list[float]:
        x = torch.tensor([r], dtype=torch.float64, requires_grad=True)
        value = function(x)
        found = [float(value.detach())]
        for _ in range(3):
            (value,) = torch.autograd.grad(value.sum() + 0 * x.sum(), x, create_graph=True)
            found.append(float(value.detach()))
        return found

    gap = 1e-7
    for below, above in zip(derivatives(seam - gap), derivatives(seam + gap), strict=True):
        assert below == pytest.approx(above, abs=1e4 * gap)  # fourth derivatives are below 5e3


def test_source_gate_is_a_product_over_the_edges_of_the_neighbour():
    amplitude, neighbor = column(0.5, 0.2, 1.0, 0.7, 0.0), torch.tensor([0, 0, 1, 3, 3])
    got = source_gate(amplitude, neighbor, 4)
    assert largest(got - column(0.1, 1, 1, 0)) < TOLERANCE


def test_source_gate_of_a_frozen_atom_has_no_slope():
    amplitude = column(0.0, 0.3, 0.9).requires_grad_()
    gate = source_gate(amplitude, torch.tensor([0, 0, 1]), 2)
    (slope,) = torch.autograd.grad(gate.sum(), amplitude)
    assert torch.equal(slope, column(0, 0, 1))
