"""What the Triton kernels need besides the tensors that are differentiated; nothing runs here.

Nothing here imports triton: `available` answers before anybody pays for the import.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, fields
from functools import lru_cache
from importlib.util import find_spec
from typing import Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor

from dpa4sim.errors import ConfigError
from dpa4sim.kernels.edge_convolution import Layer, Plan

Accuracy = Literal["exact", "high", "fast"]

STACK_PRECISION = {"exact": "ieee", "high": "tf32x3", "fast": "tf32"}
"""How the SO(2) stack multiplies float32 matrices: as such, in three TF32 products, or in one."""

FRAME_PRECISION = {"exact": "ieee", "high": "tf32x3", "fast": "tf32x3"}
"""The same for rotations and grids, which cost little and carry the equivariance."""

SMALLEST = 16
"""Smallest side of a tile that a tensor core multiplies."""


def available(device: str | torch.device, dtype: torch.dtype = torch.float32) -> bool:
    """Whether the Triton kernels run there.

    On CUDA in float32: tiles of float64 do not fit on the chip.  Elsewhere only where the
    interpreter is on (TRITON_INTERPRET=1, for tests), in both precisions.
    """
    if find_spec("triton") is None:
        return False
    if interpreted():
        return dtype in (torch.float32, torch.float64)
    return torch.device(device).type == "cuda" and dtype == torch.float32


def interpreted() -> bool:
    """Whether Triton's interpreter is on."""
    return os.environ.get("TRITON_INTERPRET", "0") not in ("", "0")


def check_accuracy(accuracy: str) -> None:
    """Raise ConfigError for an accuracy that is none."""
    if accuracy not in STACK_PRECISION:
        levels = ", ".join(repr(level) for level in STACK_PRECISION)
        raise ConfigError(f"accuracy = {accuracy!r}. Choose one of {levels}.")


@dataclass(frozen=True)
class EdgeGraph:
    """A neighbour list by its centers and by its neighbours; made once, used by every block.

    Args:
        row_ptr: offsets of each center's edges; edges beyond its last entry are padding.
        neighbor: atom j of each edge.
        arriving: edges in the order of their neighbour, each neighbour's in ascending order.
        arriving_ptr: offsets of each neighbour's edges in `arriving`.
    """

    row_ptr: Int[Tensor, " atom_plus_one"]
    neighbor: Int[Tensor, " edge"]
    arriving: Int[Tensor, " edge"]
    arriving_ptr: Int[Tensor, " atom_plus_one"]

    @classmethod
    def build(
        cls, neighbor: Int[Tensor, " edge"], row_ptr: Int[Tensor, " atom_plus_one"]
    ) -> EdgeGraph:
        """Sort the edges by neighbour; reads nothing back from the device."""
        n_atoms, device = row_ptr.shape[0] - 1, neighbor.device
        owned = torch.arange(neighbor.shape[0], device=device) < row_ptr[-1]
        key = torch.where(owned, neighbor, n_atoms)  # padding goes behind all atoms
        key, arriving = torch.sort(key, stable=True)
        atoms = torch.arange(n_atoms + 1, device=device)
        return cls(
            row_ptr.contiguous(), neighbor.contiguous(), arriving, torch.searchsorted(key, atoms)
        )

    @property
    def n_atoms(self) -> int:
        """Number of atoms."""
        return self.row_ptr.shape[0] - 1


@dataclass(frozen=True)
class PackedStack:
    """The weights of an SO(2) stack as the kernels read them, and transposed for the way back.

    A pair (p, q) meets U and V in three products instead of four (Gauss):

        p U - q V = (p + q) U - q (U + V),   p V + q U = (p + q) U + p (V - U)

    Args:
        zonal: matrices of m = 0.
        pairs: (layer, 3, row_channel, row_channel) with (U, -(U + V), V - U) of each order m >= 1
            in turn, end to end.
        gates: matrices from the scalars to the gates.
        scale: lambda of the scalar row.
    """

    zonal: Float[Tensor, "layer row_channel row_channel"]
    zonal_t: Float[Tensor, "layer row_channel row_channel"]
    pairs: Float[Tensor, " number"]
    pairs_t: Float[Tensor, " number"]
    gates: Float[Tensor, "layer channel gate"]
    gates_t: Float[Tensor, "layer gate channel"]
    scale: Float[Tensor, "layer channel"]

    @classmethod
    def build(cls, layers: Sequence[Layer], width: int) -> PackedStack:
        """Pack layers; their weights are constants of an evaluation."""
        zonal = torch.stack([layer.zonal for layer in layers])
        straight, turned = [], []
        for index in range(len(layers[0].pairs)):
            matrices = torch.stack([layer.pairs[index] for layer in layers])
            half = matrices.shape[1] // 2
            u, v = matrices[:, :half, :half], matrices[:, :half, half:]
            straight.append(_three(u, v))
            turned.append(_three(u.transpose(1, 2), -v.transpose(1, 2)))
        gated = layers[:-1]
        gates = [layer.gate for layer in gated if layer.gate is not None]
        gate = torch.stack(gates) if gates else zonal.new_zeros(1, 1, 1)
        ones = zonal.new_ones(width)
        scales = [ones if layer.scalar_scale is None else layer.scalar_scale for layer in gated]
        return cls(
            zonal,
            zonal.transpose(1, 2).contiguous(),
            torch.cat([zonal.new_zeros(0), *straight]),
            torch.cat([zonal.new_zeros(0), *turned]),
            gate,
            gate.transpose(1, 2).contiguous(),
            torch.stack(scales) if scales else ones[None],
        )

    @property
    def n_gated(self) -> int:
        """Layers with an activation: all but the last."""
        return self.zonal.shape[0] - 1


def _three(u: Tensor, v: Tensor) -> Tensor:
    return torch.stack([u, -(u + v), v - u], 1).flatten()


@dataclass(frozen=True)
class TritonPlan(Plan):
    """A plan that lives on the device; `offsets` is not read.

    Args:
        graph: the neighbour list by centers and by neighbours.
        stack: `layers`, packed.
        accuracy: how matrices are multiplied, see `STACK_PRECISION`.
    """

    graph: EdgeGraph
    stack: PackedStack
    accuracy: Accuracy = "high"

    @classmethod
    def of(
        cls,
        plan: Plan,
        graph: EdgeGraph | None = None,
        accuracy: Accuracy = "high",
        stack: PackedStack | None = None,
    ) -> TritonPlan:
        """The plan of the CPU with what the kernels need; graph and stack are made from it if not
        given.

        Raises:
            ConfigError: an accuracy that is none.
        """
        check_accuracy(accuracy)
        if graph is None:
            row_ptr = torch.tensor(plan.offsets, device=plan.neighbor.device)
            graph = EdgeGraph.build(plan.neighbor, row_ptr)
        if stack is None:
            stack = PackedStack.build(plan.layers, plan.width)
        old = {field.name: getattr(plan, field.name) for field in fields(Plan)}
        return cls(**old, graph=graph, stack=stack, accuracy=accuracy)


@dataclass(frozen=True)
class FrameTable:
    """Index tables of the edge frame for kernels.

    Args:
        rows: of each frame row: rotation row, order m, degree l', first kernel column, columns
            from one term to the next, and the row that shares its kernel (+m: that of -m).
        degree: l of each lm.
        n_columns: columns of the kernel.
    """

    rows: Int[Tensor, "entry row"]
    degree: Int[Tensor, " lm"]
    n_columns: int


@lru_cache(maxsize=64)
def frame_table(max_degree: int, max_order: int, terms: int, device: torch.device) -> FrameTable:
    """Tables of one (L, M, R)."""
    entries: list[tuple[int, ...]] = []
    column = 0
    for order in range(max_order + 1):
        size = max_degree - order + 1
        first = len(entries)
        for rotation in (0,) if order == 0 else (2 * order - 1, 2 * order):
            for index in range(size):
                base = column + index * terms * size
                entries.append((rotation, order, order + index, base, size, first + index))
        column += size * size * terms
    degree = [l for l in range(max_degree + 1) for _ in range(2 * l + 1)]
    rows = torch.tensor(entries, dtype=torch.int32, device=device).T.contiguous()
    return FrameTable(rows, torch.tensor(degree, dtype=torch.int32, device=device), column)


def padded(size: int) -> int:
    """The side of a tile that holds `size` entries."""
    return max(SMALLEST, 1 << (size - 1).bit_length())
