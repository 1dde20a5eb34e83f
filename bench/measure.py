"""Times of several sides in turns, and what one call asks of PyTorch."""

from __future__ import annotations

import os
import statistics
import time
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten

READS_BACK = frozenset(
    (
        *("_local_scalar_dense", "item", "is_nonzero", "equal", "nonzero", "masked_select"),
        *("unique", "_unique", "_unique2", "unique_dim", "unique_consecutive", "bincount", "histc"),
        *("_linalg_check_errors", "linalg_inv", "linalg_solve", "allclose", "argwhere"),
        *("repeat_interleave", "linalg_eigh", "_linalg_eigh", "linalg_eig"),
    )
)
"""ATen calls after which a GPU's host has to wait for the device."""


@dataclass(frozen=True)
class Seconds:
    """Time of one repetition, over the rounds.

    Args:
        cpu: of the process, median; `wall` likewise.
        cpu_min: the smallest; `wall_min` likewise.
    """

    cpu: float
    cpu_min: float
    wall: float
    wall_min: float


def interleaved(
    sides: Mapping[str, Callable[[], Any]], *, rounds: int, repeats: int
) -> dict[str, Seconds]:
    """Time per repetition of every side, A B C A B C, after one repetition that is not counted.

    Args:
        repeats: calls of one side in a row; their mean is one sample.
    """
    for run in sides.values():
        run()
    cpu: dict[str, list[float]] = {name: [] for name in sides}
    wall: dict[str, list[float]] = {name: [] for name in sides}
    for _ in range(rounds):
        for name, run in sides.items():
            start, cpu_start = time.perf_counter(), time.process_time()
            for _ in range(repeats):
                run()
            cpu[name].append((time.process_time() - cpu_start) / repeats)
            wall[name].append((time.perf_counter() - start) / repeats)
    return {
        name: Seconds(
            statistics.median(cpu[name]),
            min(cpu[name]),
            statistics.median(wall[name]),
            min(wall[name]),
        )
        for name in sides
    }


def company() -> float:
    """Processes per core that wanted the processor in the last 15 minutes; a quiet machine has 1
    over the number of its cores, and the times of a busy one are not to be trusted.
    """
    return round(os.getloadavg()[2] / (os.cpu_count() or 1), 2)


class Stepper:
    """A state that its step function carries on, call after call."""

    def __init__(self, state: Any, step: Callable[[Any], Any]):
        self.state, self.step = state, step

    def __call__(self) -> None:
        """One step; a step that works in place may return nothing."""
        after = self.step(self.state)
        self.state = self.state if after is None else after


class _Calls(TorchDispatchMode):
    """Counts calls by name; what hides a read is counted as `nonzero`."""

    def __init__(self) -> None:
        super().__init__()
        self.names: Counter[str] = Counter()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        name = function.overloadpacket.__name__
        flat, _ = tree_flatten(args[1:2])
        masks = any(isinstance(t, torch.Tensor) and t.dtype == torch.bool for t in flat)
        if name in ("index", "index_put", "index_put_") and masks:
            name = "nonzero"
        if name == "repeat_interleave" and "output_size" in (kwargs or {}):
            name = "repeat_interleave with its size"
        self.names[name] += 1
        return function(*args, **(kwargs or {}))


def calls(run: Callable[[], Any]) -> dict[str, Any]:
    """ATen calls of one repetition, views included, and those that read the device, by name."""
    with _Calls() as counted:
        run()
    reads = {name: n for name, n in counted.names.items() if name in READS_BACK}
    return {
        "aten_calls": counted.names.total(),
        "reads": sum(reads.values()),
        "reads_by_name": reads,
    }
