"""How a training process ends, and what else concerns the process as a whole."""

from __future__ import annotations

import platform
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch

STOPPING = (signal.SIGTERM, signal.SIGINT)


@dataclass
class Ending:
    """Whether somebody asked the process to end, and by which signal."""

    signal: int = 0


@contextmanager
def asked_to_end() -> Iterator[Ending]:
    """SIGTERM and the first Ctrl-C let a step end and make a checkpoint; a second one does not."""
    ending = Ending()
    if threading.current_thread() is not threading.main_thread():
        yield ending
        return

    def note(number: int, _: object) -> None:
        ending.signal = number
        signal.signal(number, before[number])

    before: dict[int, Any] = {number: signal.getsignal(number) for number in STOPPING}
    for number in before:
        signal.signal(number, note)
    try:
        yield ending
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextmanager
def deterministic(wanted: bool) -> Iterator[None]:
    """Sums in a fixed order on CUDA, for the length of the block."""
    before = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(wanted or before)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before)


def device_name(device: torch.device) -> str:
    """Name of the hardware."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"{platform.machine()} CPU, {torch.get_num_threads()} threads"
