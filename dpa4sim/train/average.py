"""A running mean of the weights: what is validated and kept."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from dpa4sim.errors import ResumeError


class WeightAverage:
    """Exponential moving average of a network's weights, from a copy of them at the start.

        mean <- d mean + (1 - d) weights,    d = min(decay, (1 + n) / (10 + n)) with `ramp`

    n counts the updates so far.  The reference has no ramp, and after n updates its mean still
    holds decay^n of the first weights: 5 % after 3,000 steps.  Past 9,000 they are the same.
    Buffers, such as the energy shifts, are no weights: the mean has their current values.

    Args:
        model: whose weights; anything with the same names may be given later.
        decay: d after the ramp.
        ramp: forget the first weights sooner.
    """

    def __init__(self, model: nn.Module, decay: float = 0.999, *, ramp: bool = True) -> None:
        self.decay, self.ramp, self.updates = decay, ramp, 0
        self.weights = {name: p.detach().clone() for name, p in model.named_parameters()}
        self.buffers = {name: b.detach().clone() for name, b in model.named_buffers()}

    @torch.no_grad()
    def update(self, model: nn.Module) -> None:
        """Let the mean follow the weights, after each step of the optimizer."""
        decay = self.decay
        if self.ramp:
            decay = min(decay, (1 + self.updates) / (10 + self.updates))
        now = dict(model.named_parameters())
        torch._foreach_lerp_(
            list(self.weights.values()), [now[name] for name in self.weights], 1 - decay
        )
        for name, buffer in model.named_buffers():
            self.buffers[name].copy_(buffer)
        self.updates += 1

    @torch.no_grad()
    def copy_to(self, model: nn.Module) -> None:
        """Overwrite a network's weights and buffers by the mean."""
        _overwrite(model, self.weights)
        for name, buffer in model.named_buffers():
            buffer.copy_(self.buffers[name])

    @contextmanager
    def swap(self, model: nn.Module) -> Iterator[None]:
        """The network has the mean weights inside the context, its own again after it."""
        kept = {name: p.detach().clone() for name, p in model.named_parameters()}
        _overwrite(model, self.weights)
        try:
            yield
        finally:
            _overwrite(model, kept)

    def state_dict(self) -> dict[str, Any]:
        """Everything, as tensors and plain values."""
        return {
            "decay": self.decay,
            "ramp": self.ramp,
            "updates": self.updates,
            "weights": dict(self.weights),
            "buffers": dict(self.buffers),
        }

    @torch.no_grad()
    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from a state, copied.

        Raises:
            ResumeError: its weights have other names or shapes.
        """
        for mine, given in ((self.weights, state["weights"]), (self.buffers, state["buffers"])):
            for name in sorted(mine.keys() | given.keys()):
                shapes = [tuple(one[name].shape) if name in one else None for one in (mine, given)]
                if shapes[0] != shapes[1]:
                    raise ResumeError(
                        f"The averaged weight '{name}' has shape {shapes[1]} in the checkpoint and "
                        f"{shapes[0]} in the model (None: it is missing)."
                    )
            for name, value in given.items():
                mine[name].copy_(value)
        self.decay, self.ramp = state["decay"], state["ramp"]
        self.updates = state["updates"]


@torch.no_grad()
def _overwrite(model: nn.Module, weights: Mapping[str, Tensor]) -> None:
    """In place: compiled regions and optimizers keep their tensors."""
    now = dict(model.named_parameters())
    torch._foreach_copy_([now[name] for name in weights], list(weights.values()))
