"""From descriptors to each atom's share of a property."""

from dataclasses import replace

import pytest
import torch
from models import BASE, largest, random_model
from torch.nn.functional import gelu, silu

from dpa4sim.config import PropertyConfig

TOLERANCE = 1e-12
"""Products of numbers up to 10."""

HEAD = PropertyConfig(name="gap", task_dim=2)
C = BASE.channels


def model_of(**changes):
    model = random_model(replace(BASE, property_head=replace(HEAD, **changes)))
    with torch.no_grad():
        model.head.bias.copy_(torch.randn_like(model.head.bias))
        model.head.spread.copy_(torch.rand_like(model.head.spread) + 0.5)
    return model


@pytest.mark.parametrize(
    ("activation", "function"),
    [
        ("tanh", torch.tanh),
        ("silu", silu),
        ("gelu", lambda x: gelu(x, approximate="tanh")),
        ("linear", lambda x: x),
    ],
)
def test_layers_in_words(activation, function):
    """Equal width adds, double width adds twice over, any other width replaces."""
    head = model_of(hidden=(C, 2 * C, 5), activation=activation).head
    x, species = torch.randn(6, C).double(), torch.tensor([0, 1, 2, 0, 1, 2])
    first = x + head.steps["0"] * function(x @ head.weights[0] + head.biases[0])
    twice = torch.cat([first, first], 1)
    second = twice + head.steps["1"] * function(first @ head.weights[1] + head.biases[1])
    third = function(second @ head.weights[2] + head.biases[2])
    assert largest(head.hidden(x) - third) < TOLERANCE
    out = (third @ head.out + head.out_bias) * head.spread[species] + head.bias[species]
    assert largest(head(x, species) - out) < TOLERANCE


def test_without_step_scales_and_with_automatic_width():
    head = model_of(hidden=(0, 0), step_scales=False).head
    x = torch.randn(6, C).double()
    assert not head.steps
    width = BASE.auto_hidden(gated=True)
    assert [tuple(weight.shape) for weight in head.weights] == [(C, width), (width, width)]
    first = torch.tanh(x @ head.weights[0] + head.biases[0])
    second = first + torch.tanh(first @ head.weights[1] + head.biases[1])
    assert largest(head.hidden(x) - second) < TOLERANCE


def test_no_hidden_layer_reads_the_descriptor():
    head = model_of(hidden=()).head
    x = torch.randn(3, C).double()
    assert torch.equal(head.hidden(x), x)


def test_statistics_stay_in_double_precision():
    model = model_of()
    before = model.head.bias.clone()
    model.to(torch.float32)
    assert model.head.weights[0].dtype == torch.float32
    assert model.head.bias.dtype == model.head.spread.dtype == torch.float64
    assert torch.equal(model.head.bias, before)
    assert model.head(torch.randn(2, C), torch.tensor([0, 1])).dtype == torch.float64


def test_a_property_model_has_no_energy_shift_in_its_file():
    assert "energy_shift" not in model_of().state_dict()
    assert "energy_shift" in random_model(BASE).state_dict()
