"""How large a tile each Triton kernel works on, by device and shape; `python -m bench tiles`."""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from dpa4sim.kernels.triton_plan import interpreted


@dataclass(frozen=True)
class Tile:
    """The size of one program.

    Args:
        block: edges, rows or grid points that a program takes at a time.
        warps: threads / 32.
        stages: loads in flight in a loop.
        columns: columns of a matrix that a product takes at a time, in the SO(2) stack.
        depth: rows of it, in the SO(2) stack.
    """

    block: int
    warps: int
    stages: int
    columns: int = 32
    depth: int = 32


DEFAULT: dict[str, Tile] = {
    "gather_edges": Tile(4, 2, 1),
    "gather_edges_backward": Tile(4, 2, 1),
    "gather_atoms_backward": Tile(32, 4, 2),
    "stack_forward": Tile(64, 4, 2),
    "stack_backward": Tile(64, 4, 2),
    "stack_forward_exact": Tile(64, 8, 1, 64, 16),
    "stack_backward_exact": Tile(64, 8, 1, 64, 16),
    "scatter_atoms": Tile(32, 4, 2),
    "scatter_edges_backward": Tile(8, 2, 1),
    "grid_forward": Tile(32, 4, 1, 64),
    "grid_backward": Tile(32, 4, 1, 64),
    "assemble_atoms": Tile(32, 1, 1),
    "assemble_systems": Tile(128, 4, 1),
}
"""Safe everywhere: compiled for compute capability 9.0 they fit on the chip; not tuned."""

MEASURED: dict[tuple[str, str, tuple[int, ...]], Tile] = {}
"""(device, kernel, shape) -> the fastest tile of `python -m bench tiles`.

Nothing has been measured yet, on an H200 or on any other device.
"""


def tile_for(kernel: str, shape: tuple[int, ...], device: torch.device) -> Tile:
    """The measured tile of a kernel, or the safe one.

    Args:
        kernel: a key of `DEFAULT`.
        shape: what the sweep distinguishes: (L, M, width), or (lm_frame, grid, width) of grids.
    """
    if device.type == "cuda" and MEASURED:
        name = torch.cuda.get_device_name(device)
        return MEASURED.get((name, kernel, shape), DEFAULT[kernel])
    return DEFAULT[kernel]


def launch(
    kernel: Any, grid: tuple[int, ...], like: Tensor, tile: Tile, *args: Any, **sizes: Any
) -> None:
    """Run a kernel on the device of `like`; an empty grid is nothing to do."""
    if 0 in grid:
        return
    with torch.cuda.device(like.device) if like.is_cuda else nullcontext():
        if interpreted():
            kernel[grid](*args, **sizes)
        else:
            kernel[grid](*args, **sizes, num_warps=tile.warps, num_stages=tile.stages)


def programs(size: int, block: int, device: torch.device) -> int:
    """Programs that share `size` entries where each has buffers of its own: few enough to keep."""
    if device.type != "cuda":
        return min(2, blocks(size, block))
    processors = torch.cuda.get_device_properties(device).multi_processor_count
    return min(2 * processors, blocks(size, block))


def blocks(size: int, block: int) -> int:
    """Programs that `size` entries need."""
    return -(-size // block)
