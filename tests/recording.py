"""Recorded steps without a device that records."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from models import BASE, random_model
from torch import Tensor

from dpa4sim.export import energy_and_gradient
from dpa4sim.potential import Potential
from dpa4sim.step_graphs import StepGraphs

SMALL = replace(BASE, channels=4, n_blocks=1, max_degree=2)

type Function = Callable[..., Sequence[Tensor]]


@dataclass
class Runner:
    """Records nothing, and runs the step itself again; much faster than tracing it."""

    recorded: int = 0
    replayed: int = 0

    def __call__(
        self, function: Function, inputs: Sequence[Tensor]
    ) -> tuple[Callable[[], None], tuple[Tensor, ...]]:
        self.recorded += 1
        outputs = tuple(value.clone() for value in function(*inputs))

        def replay() -> None:
            self.replayed += 1
            for static, value in zip(outputs, function(*inputs), strict=True):
                static.copy_(value)

        return replay, outputs


def networked(recorder: Any, seed: int = 0, device: str | torch.device = "cpu") -> Potential:
    """A network whose steps are recorded, as on CUDA."""
    potential, plain = (
        Potential(random_model(SMALL, seed), device=device, dtype="float64") for _ in range(2)
    )
    plain.model.hand_written = False
    predict = partial(potential.predict, network=energy_and_gradient(plain.model))
    potential.step_graphs = StepGraphs(potential, predict, recorder)
    return potential
