"""Learning-rate schedules: shape, borders, resumption and refusals."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from dpa4sim.errors import ConfigError
from dpa4sim.train.schedule import WarmupConstant, WarmupCosine, WarmupStableDecay

PEAKS = (0.5, 0.1)


def optimizer() -> torch.optim.Optimizer:
    groups = [{"params": [torch.nn.Parameter(torch.zeros(1))], "lr": peak} for peak in PEAKS]
    return torch.optim.SGD(groups)


def rates(schedule: Any, steps: int) -> list[list[float]]:
    found = []
    for _ in range(steps):
        found.append(list(schedule.get_last_lr()))
        schedule.optimizer.step()
        schedule.step()
    return found


@pytest.mark.parametrize("decay", ["cosine", "linear", "inverse_linear"])
def test_rise_plateau_fall_and_rest(decay: str) -> None:
    schedule = WarmupStableDecay(
        optimizer(), 100, 10, decay_fraction=0.4, start_factor=0.2, decay=decay, stop_factor=0.01
    )
    found = [rate / PEAKS[0] for rate, _ in rates(schedule, 110)]
    assert found[0] == pytest.approx(0.2)
    assert found[5] == pytest.approx(0.6)
    assert found[10:61] == pytest.approx([1.0] * 51)
    falling = found[60:101]
    assert all(a > b for a, b in zip(falling[:-1], falling[1:], strict=True))
    assert found[100:] == pytest.approx([0.01] * 10)
    middle = {"cosine": 0.505, "linear": 0.505, "inverse_linear": 1 / 50.5}
    assert found[80] == pytest.approx(middle[decay])


def test_groups_keep_their_own_peak() -> None:
    schedule = WarmupStableDecay(optimizer(), 20, 5, decay_fraction=0.5)
    for first, second in rates(schedule, 22):
        assert first / second == pytest.approx(PEAKS[0] / PEAKS[1])


def test_cosine_has_no_plateau_and_constant_no_fall() -> None:
    cosine = [rate for rate, _ in rates(WarmupCosine(optimizer(), 30, 10, stop_factor=0.1), 31)]
    assert cosine[10] == pytest.approx(PEAKS[0])
    assert cosine[11] < cosine[10]
    assert cosine[20] == pytest.approx(0.55 * PEAKS[0])
    assert cosine[30] == pytest.approx(0.1 * PEAKS[0])
    constant = [rate for rate, _ in rates(WarmupConstant(optimizer(), 4, start_factor=0.5), 9)]
    assert constant[:5] == pytest.approx([PEAKS[0] * f for f in (0.5, 0.625, 0.75, 0.875, 1)])
    assert constant[4:] == pytest.approx([PEAKS[0]] * 5)


def test_a_fall_longer_than_the_run_starts_after_the_warmup() -> None:
    schedule = WarmupStableDecay(optimizer(), 10, 5, decay_fraction=0.9)
    assert schedule.decay_steps == 5
    assert WarmupStableDecay(optimizer(), 10, 0, decay_fraction=0.0).decay_steps == 1


@pytest.mark.parametrize("kind", [WarmupStableDecay, WarmupCosine, WarmupConstant])
def test_resumes_where_it_stopped(kind: Any) -> None:
    options = {} if kind is WarmupConstant else {"total_steps": 30}
    whole = rates(kind(optimizer(), warmup_steps=8, **options), 30)
    first = kind(optimizer(), warmup_steps=8, **options)
    begun = rates(first, 6)
    second = kind(optimizer(), warmup_steps=8, **options)
    second.load_state_dict(first.state_dict())
    second.optimizer.load_state_dict(first.optimizer.state_dict())
    assert begun + rates(second, 24) == whole


@pytest.mark.parametrize(
    ("options", "key"),
    [
        ({"total_steps": 5, "warmup_steps": 5}, "total_steps"),
        ({"warmup_steps": -1}, "warmup_steps"),
        ({"start_factor": 1.5}, "start_factor"),
        ({"decay_fraction": 1.5}, "decay_fraction"),
        ({"stop_factor": 1.5}, "stop_factor"),
        ({"stop_factor": 0.0, "decay": "inverse_linear"}, "stop_factor"),
        ({"decay": "step"}, "cosine, linear, inverse_linear"),
    ],
)
def test_what_makes_no_schedule_is_named(options: dict[str, Any], key: str) -> None:
    with pytest.raises(ConfigError, match=key):
        WarmupStableDecay(optimizer(), **({"total_steps": 20} | options))
