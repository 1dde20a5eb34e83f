"""The running mean of the weights."""

from __future__ import annotations

import io

import pytest
import torch
from models import BASE, random_model
from torch import Tensor, nn

from dpa4sim.errors import ResumeError
from dpa4sim.train.average import WeightAverage


def network(seed: int) -> nn.Module:
    return random_model(BASE, seed)


def weights(model: nn.Module) -> dict[str, Tensor]:
    return {name: value.detach().clone() for name, value in model.state_dict().items()}


def same(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


@pytest.mark.parametrize("ramp", [False, True])
def test_mean_follows_its_equation(ramp: bool) -> None:
    model = network(0)
    average, expected = WeightAverage(model, 0.3, ramp=ramp), weights(model)
    for step in range(4):
        model.load_state_dict(network(step + 1).state_dict())
        average.update(model)
        decay = min(0.3, (1 + step) / (10 + step)) if ramp else 0.3
        for name, value in model.named_parameters():
            expected[name] = decay * expected[name] + (1 - decay) * value.detach()
    for name, value in average.weights.items():
        assert torch.allclose(value, expected[name], rtol=1e-12)


def test_buffers_are_current_not_averaged() -> None:
    model = random_model(BASE)
    average = WeightAverage(model)
    model.energy_shift.fill_(3.25)
    average.update(model)
    average.copy_to(target := random_model(BASE, 5))
    assert torch.equal(target.energy_shift, model.energy_shift)


def test_swap_lends_the_mean_and_gives_back_even_after_an_error() -> None:
    model = network(0)
    average, tensors = WeightAverage(model, 0.5), [p.data_ptr() for p in model.parameters()]
    model.load_state_dict(network(1).state_dict())
    average.update(model)
    before, twin = weights(model), network(2)
    average.copy_to(twin)
    inside: dict[str, Tensor] = {}

    def look() -> None:
        with average.swap(model):
            inside.update(weights(model))
            raise RuntimeError("inside")

    with pytest.raises(RuntimeError, match="inside"):
        look()
    assert same(inside, weights(twin))
    assert not same(inside, before)
    assert same(weights(model), before)
    assert [p.data_ptr() for p in model.parameters()] == tensors


def test_state_survives_a_file_bit_for_bit() -> None:
    model = network(0)
    average = WeightAverage(model, 0.9)
    model.load_state_dict(network(1).state_dict())
    average.update(model)
    file = io.BytesIO()
    torch.save(average.state_dict(), file)
    file.seek(0)
    other = WeightAverage(network(7), 0.1, ramp=False)
    other.load_state_dict(torch.load(file, weights_only=True))
    for one in (average, other):
        one.update(network(2))
    assert same(average.weights, other.weights)
    assert average.updates == other.updates == 2


def test_state_of_another_network_is_refused() -> None:
    state = WeightAverage(nn.Linear(3, 2)).state_dict()
    for other in (nn.Linear(3, 4), nn.Linear(3, 2, bias=False)):
        with pytest.raises(ResumeError, match="shape"):
            WeightAverage(other).load_state_dict(state)
