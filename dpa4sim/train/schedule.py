"""Learning rates over the steps of a run, as torch schedulers.  Paper section S-2.2, Eq. 71-73."""

from __future__ import annotations

from collections.abc import Callable
from math import cos, pi

from torch import Tensor
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from dpa4sim.errors import ConfigError

FALL: dict[str, Callable[[float, float], float]] = {
    "cosine": lambda tau, stop: stop + (1 - stop) / 2 * (1 + cos(pi * tau)),
    "linear": lambda tau, stop: 1 + (stop - 1) * tau,
    "inverse_linear": lambda tau, stop: 1 / (tau / stop + 1 - tau),
}
"""Factor of the peak at the share tau of the decay, from 1 to `stop`."""


class WarmupStableDecay(LRScheduler):
    """Rise, plateau, fall; the last rate stays after the last step.  Eq. 71-73

        start + (1 - start) t / T_w     t < T_w
        1                               t < T - T_d
        fall((t - T + T_d) / T_d)       t < T,     stop after

    times the rate of each group.  T_d is decay_fraction T rounded down, from 1 to T - T_w.

    Args:
        optimizer: each group keeps its own peak, the rate that it has now.
        total_steps: T.
        warmup_steps: T_w.
        decay_fraction: share of all steps, warm-up included, that the fall takes.
        start_factor: first rate over the peak.
        decay: shape of the fall: "cosine", "linear" or "inverse_linear".
        stop_factor: last rate over the peak.

    Raises:
        ConfigError: a number out of range.
    """

    def __init__(
        self,
        optimizer: Optimizer,
        total_steps: int,
        warmup_steps: int = 0,
        *,
        decay_fraction: float = 0.65,
        start_factor: float = 0.2,
        decay: str = "cosine",
        stop_factor: float = 2e-3,
    ) -> None:
        _check_warmup(warmup_steps, start_factor)
        if total_steps <= warmup_steps:
            raise ConfigError(
                f"total_steps = {total_steps} leaves nothing after warmup_steps = {warmup_steps}."
            )
        if decay not in FALL:
            raise ConfigError(f"decay = {decay!r}. Choose one of {', '.join(FALL)}.")
        if not 0 <= decay_fraction <= 1:
            raise ConfigError(f"decay_fraction = {decay_fraction}; it must be between 0 and 1.")
        if not 0 <= stop_factor <= 1 or (stop_factor == 0 and decay == "inverse_linear"):
            raise ConfigError(
                f"stop_factor = {stop_factor}; it must be between 0 and 1, and above 0 for an "
                "inverse_linear decay."
            )
        self.total_steps, self.warmup_steps = total_steps, warmup_steps
        self.decay_steps = min(
            max(int(decay_fraction * total_steps), 1), total_steps - warmup_steps
        )
        self.start_factor, self.stop_factor, self.decay = start_factor, stop_factor, decay
        super().__init__(optimizer)

    def factor(self, step: int) -> float:
        """Rate at a step over the peak."""
        if step < self.warmup_steps:
            return _rise(step, self.warmup_steps, self.start_factor)
        if step >= self.total_steps:
            return self.stop_factor
        tau = (step - self.total_steps + self.decay_steps) / self.decay_steps
        return FALL[self.decay](max(tau, 0.0), self.stop_factor)

    def get_lr(self) -> list[float | Tensor]:
        """Rate of each group now."""
        factor = self.factor(self.last_epoch)
        return [base * factor for base in self.base_lrs]


class WarmupCosine(WarmupStableDecay):
    """Rise, then fall along a cosine over all other steps: no plateau.

    Args:
        optimizer: each group keeps its own peak.
        total_steps: T.
        warmup_steps: T_w.
        start_factor: first rate over the peak.
        stop_factor: last rate over the peak.
    """

    def __init__(
        self,
        optimizer: Optimizer,
        total_steps: int,
        warmup_steps: int = 0,
        *,
        start_factor: float = 0.2,
        stop_factor: float = 2e-3,
    ) -> None:
        super().__init__(
            optimizer,
            total_steps,
            warmup_steps,
            decay_fraction=1.0,
            start_factor=start_factor,
            stop_factor=stop_factor,
        )


class WarmupConstant(LRScheduler):
    """Rise, then the peak for ever.

    Args:
        optimizer: each group keeps its own peak.
        warmup_steps: steps of the rise.
        start_factor: first rate over the peak.
    """

    def __init__(
        self, optimizer: Optimizer, warmup_steps: int = 0, *, start_factor: float = 0.2
    ) -> None:
        _check_warmup(warmup_steps, start_factor)
        self.warmup_steps, self.start_factor = warmup_steps, start_factor
        super().__init__(optimizer)

    def factor(self, step: int) -> float:
        """Rate at a step over the peak."""
        return (
            _rise(step, self.warmup_steps, self.start_factor) if step < self.warmup_steps else 1.0
        )

    def get_lr(self) -> list[float | Tensor]:
        """Rate of each group now."""
        factor = self.factor(self.last_epoch)
        return [base * factor for base in self.base_lrs]


def _rise(step: int, steps: int, start: float) -> float:
    return start + (1 - start) * step / steps


def _check_warmup(steps: int, start: float) -> None:
    if steps < 0:
        raise ConfigError(f"warmup_steps = {steps}; it must not be negative.")
    if not 0 <= start <= 1:
        raise ConfigError(f"start_factor = {start}; it must be between 0 and 1.")
