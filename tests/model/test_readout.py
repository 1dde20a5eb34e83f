"""From features to energies."""

from dataclasses import replace

import pytest
import torch
from models import BASE, largest, node_features, random_model, rotation_matrix, wigner
from torch.nn.functional import silu

TOLERANCE = 1e-12
"""Products of grid sums of numbers up to 30."""


@pytest.mark.parametrize("kind", ["scalar", "product", "mlp"])
@pytest.mark.parametrize("layers", [1, 2])
def test_descriptor_is_invariant(kind, layers):
    model = random_model(replace(BASE, readout=kind, readout_layers=layers, grid_order=2))
    x = node_features(5, 2, 8)
    straight = model.readout(x)
    assert straight.shape == (5, 8)
    turned = model.readout(wigner(2, rotation_matrix()) @ x)
    assert largest(turned - straight) < TOLERANCE * max(1, largest(straight))


def test_scalar_read_out_sees_the_scalars_only():
    model = random_model(replace(BASE, readout_layers=2))
    x = node_features(5, 2, 8)
    other = torch.cat([x[:, :1], 7 * x[:, 1:]], 1)
    assert torch.equal(model.readout(x), model.readout(other))
    expected = x[:, :1]
    for unit in model.readout.units:
        expected = expected + unit(expected)
    assert largest(model.readout(x) - expected[:, 0]) < TOLERANCE


def test_full_read_out_sees_the_angles():
    model = random_model(replace(BASE, readout="mlp"))
    x = node_features(5, 2, 8)
    other = torch.cat([x[:, :1], 2 * x[:, 1:]], 1)
    assert largest(model.readout(x) - model.readout(other)) > 1e-3


@pytest.mark.parametrize("widths", [(0,), (5, 0), ()])
def test_energy_head(widths):
    model = random_model(replace(BASE, energy_hidden=widths))
    head, descriptor = model.head, torch.randn(5, 8).double()
    hidden = descriptor
    for weight, bias in zip(head.weights, head.biases, strict=True):
        value, gate = (hidden @ weight + bias).chunk(2, 1)
        hidden = value * silu(gate)
    assert [weight.shape[1] // 2 for weight in head.weights] == [w or 32 for w in widths]
    assert largest(head(descriptor) - (hidden @ head.out)[:, 0]) < TOLERANCE
