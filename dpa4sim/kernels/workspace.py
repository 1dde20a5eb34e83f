"""Buffers that outlive an evaluation, so that the next one does not fault its pages in again.

Fresh memory costs a page fault per 4 KiB, which on a CPU is as dear as the arithmetic done on it.
"""

from __future__ import annotations

import ctypes
import os
from functools import cache
from math import prod

import torch
from torch import Tensor

KEEP_BYTES = 4 << 30
"""Largest amount of idle memory that stays reserved for each dtype."""

STORED_SHARE, FILLED_SHARE = 0.25, 0.7
"""Parts of the machine's memory that one evaluation may fill for its own backward pass, and with
everything else."""

SPARED_BYTES = 8_000
"""What an edge takes besides where little is stored: as in Air."""

USUAL_BYTES = 40_000
"""What an edge takes where nothing is spared: twice what Neo takes."""

KEPT_PAGES = {"M_MMAP_MAX": (-4, 0), "M_TRIM_THRESHOLD": (-1, -1), "M_TOP_PAD": (-2, 64 << 20)}
"""glibc's numbers: nothing outside the heap, a heap that never shrinks and grows by 64 MiB."""

_idle: dict[torch.dtype, list[Tensor]] = {}


def keep_pages() -> bool:
    """Ask the C library to keep freed memory for this process; whether it can.

    For a process that does one thing for hours: its memory stays at the peak.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    return mallopt is not None and all(mallopt(*option) for option in KEPT_PAGES.values())


@cache
def memory() -> int:
    """Bytes that the machine has; 16 GiB where it does not say."""
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, OSError, ValueError):  # not a POSIX system
        return 16 << 30


def room(n_edges: int) -> int:
    """Bytes that one evaluation may store for its own backward pass."""
    left = FILLED_SHARE * memory() - SPARED_BYTES * n_edges
    return int(max(0.0, min(STORED_SHARE * memory(), left)))


def is_large(n_edges: int) -> bool:
    """Whether activations that are cheap to make again are better not stored (5 % of the time)."""
    return n_edges * USUAL_BYTES > room(0)


def take(shape: tuple[int, ...], like: Tensor) -> Tensor:
    """An uninitialised CPU tensor; hand it back with `give` when it is not needed any more."""
    size = prod(shape)
    pool = _idle.setdefault(like.dtype, [])
    fitting = [index for index, buffer in enumerate(pool) if buffer.numel() >= size]
    if fitting:
        buffer = pool.pop(min(fitting, key=lambda index: pool[index].numel()))
    else:
        buffer = like.new_empty(_rounded(size))
    return buffer[:size].view(shape)


def give(*tensors: Tensor) -> None:
    """Keep the memory of tensors from `take` for later; nobody may use them from here on."""
    for tensor in tensors:
        whole = tensor if tensor._base is None else tensor._base
        pool = _idle.setdefault(whole.dtype, [])
        pool.append(whole.view(-1))
        while pool and sum(buffer.nbytes for buffer in pool) > KEEP_BYTES:
            pool.pop(min(range(len(pool)), key=lambda index: pool[index].numel()))


def _rounded(size: int) -> int:
    """Up to the next eighth of a power of two, so that similar sizes share buffers."""
    step = 1 << max(0, size.bit_length() - 4)
    return -(-size // step) * step
