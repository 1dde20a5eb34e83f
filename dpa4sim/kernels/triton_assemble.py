"""Forces, virials and energies from the gradient of the edge vectors; no atomics, float64.

    F_k = sum_{center = k} g - sum_{neighbor = k} g,   W_s = sum_{edges of s} g (x) vector

The reference is `dpa4sim.potential.assemble`.  Every sum runs in the order of its own system, so
neither a repeat nor company in the batch changes a bit.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from jaxtyping import Float, Int
from torch import Tensor

from dpa4sim.kernels.triton_plan import EdgeGraph
from dpa4sim.kernels.triton_tiles import launch, tile_for

NUMBERS = 16
"""Of an atom, for the sums of its system: nine of its virial, its energy, and room."""


def assemble_sums(
    gradient: Float[Tensor, "edge 3"],
    vector: Float[Tensor, "edge 3"],
    atomic_energies: Float[Tensor, " atom"],
    graph: EdgeGraph,
    n_atoms: Int[Tensor, " system"],
) -> tuple[Float[Tensor, "atom 3"], Float[Tensor, "system 3 3"], Float[Tensor, " system"]]:
    """Forces in eV/Å, virials W = sum g (x) vector in eV, energies in eV.

    Args:
        gradient: g = dE/dvector in eV/Å, in any precision; it is summed in float64.
        vector: Å.
        n_atoms: of each system.
    """
    inputs = gradient.double(), vector.double(), atomic_energies.double()
    return _AssembleSums.apply(*inputs, graph, n_atoms)


class _AssembleSums(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        gradient: Tensor,
        vector: Tensor,
        energies: Tensor,
        graph: EdgeGraph,
        n_atoms: Tensor,
    ) -> tuple[Tensor, Tensor, Tensor]:
        ctx.save_for_backward(gradient, vector)
        atom_ptr = torch.nn.functional.pad(n_atoms.cumsum(0), (1, 0))
        ctx.graph, ctx.atom_ptr = graph, atom_ptr
        forces, numbers = _sum_atoms(gradient, vector, energies, graph)
        found = _sum_systems(numbers, atom_ptr)
        return forces, found[:, :9].unflatten(1, (3, 3)).clone(), found[:, 9].clone()

    @staticmethod
    def backward(
        ctx: Any, d_forces: Tensor, d_virial: Tensor, d_energy: Tensor
    ) -> tuple[Tensor | None, ...]:
        """Gathers only; all three are linear, so this may be differentiated again."""
        gradient, vector = ctx.saved_tensors
        graph: EdgeGraph = ctx.graph
        center, owned = _owner(graph.row_ptr, gradient.shape[0])
        system, _ = _owner(ctx.atom_ptr, graph.n_atoms)
        of_edge = d_virial.index_select(0, system.index_select(0, center))
        along = d_forces.index_select(0, center) - d_forces.index_select(0, graph.neighbor)
        along = along + (of_edge * vector[:, None, :]).sum(2)
        across = (of_edge * gradient[:, :, None]).sum(1)
        mask = owned[:, None]
        d_gradient, d_vector = along.where(mask, 0.0), across.where(mask, 0.0)
        return d_gradient, d_vector, d_energy.index_select(0, system), None, None


def _owner(pointer: Tensor, size: int) -> tuple[Tensor, Tensor]:
    """Whose row each of `size` entries is, and whether it is anybody's."""
    entry = torch.arange(size, device=pointer.device)
    owner = torch.searchsorted(pointer, entry, right=True) - 1
    return owner.clamp(max=max(0, pointer.shape[0] - 2)), entry < pointer[-1]


def _sum_atoms(
    gradient: Tensor, vector: Tensor, energies: Tensor, graph: EdgeGraph
) -> tuple[Float[Tensor, "atom 3"], Float[Tensor, "atom number"]]:
    gradient, vector = gradient.contiguous(), vector.contiguous()
    forces = gradient.new_empty(graph.n_atoms, 3)
    numbers = gradient.new_empty(graph.n_atoms, NUMBERS)
    tile = tile_for("assemble_atoms", (), gradient.device)
    launch(
        _assemble_atoms, (graph.n_atoms,), gradient, tile,
        gradient, vector, energies.contiguous(),
        graph.row_ptr, graph.arriving, graph.arriving_ptr, forces, numbers, WIDTH=NUMBERS,
        BE=tile.block,
    )  # fmt: skip
    return forces, numbers


def _sum_systems(numbers: Tensor, atom_ptr: Tensor) -> Float[Tensor, "system number"]:
    n_systems = atom_ptr.shape[0] - 1
    found = numbers.new_empty(n_systems, NUMBERS)
    tile = tile_for("assemble_systems", (), numbers.device)
    launch(
        _assemble_systems, (n_systems,), numbers, tile,
        numbers, atom_ptr, found, WIDTH=NUMBERS, BA=tile.block,
    )  # fmt: skip
    return found


@triton.jit
def _assemble_atoms(
    gradient: tl.tensor,
    vector: tl.tensor,
    energy: tl.tensor,
    row_ptr: tl.tensor,
    arriving: tl.tensor,
    arriving_ptr: tl.tensor,
    forces: tl.tensor,
    numbers: tl.tensor,
    WIDTH: tl.constexpr,
    BE: tl.constexpr,
) -> None:
    """Force of one atom, and the virial of the edges that it is the center of."""
    atom = tl.program_id(0).to(tl.int64)
    axis, entry = tl.arange(0, 4), tl.arange(0, WIDTH)
    force = tl.zeros((BE, 4), tl.float64)
    virial = tl.zeros((BE, WIDTH), tl.float64)
    last = tl.load(row_ptr + atom + 1)
    for start in range(tl.load(row_ptr + atom), last, BE):
        e = start + tl.arange(0, BE)
        ok = e < last
        mask = ok[:, None] & (axis < 3)[None, :]
        force += tl.load(gradient + 3 * e[:, None] + axis[None, :], mask=mask, other=0.0)
        mask = ok[:, None] & (entry < 9)[None, :]
        left = tl.load(gradient + 3 * e[:, None] + (entry // 3)[None, :], mask=mask, other=0.0)
        right = tl.load(vector + 3 * e[:, None] + (entry % 3)[None, :], mask=mask, other=0.0)
        virial += left * right
    last = tl.load(arriving_ptr + atom + 1)
    for start in range(tl.load(arriving_ptr + atom), last, BE):
        place = start + tl.arange(0, BE)
        ok = place < last
        e = tl.load(arriving + place, mask=ok, other=0)
        mask = ok[:, None] & (axis < 3)[None, :]
        force -= tl.load(gradient + 3 * e[:, None] + axis[None, :], mask=mask, other=0.0)
    tl.store(forces + 3 * atom + axis, tl.sum(force, 0), mask=axis < 3)
    own = tl.where(entry == 9, tl.load(energy + atom), tl.sum(virial, 0))
    tl.store(numbers + WIDTH * atom + entry, own)


@triton.jit
def _assemble_systems(
    numbers: tl.tensor,
    atom_ptr: tl.tensor,
    out: tl.tensor,
    WIDTH: tl.constexpr,
    BA: tl.constexpr,
) -> None:
    """Sums of the atoms of one system."""
    system = tl.program_id(0)
    entry = tl.arange(0, WIDTH)
    total = tl.zeros((BA, WIDTH), tl.float64)
    last = tl.load(atom_ptr + system + 1)
    for start in range(tl.load(atom_ptr + system), last, BA):
        atom = start + tl.arange(0, BA)
        at = numbers + atom[:, None] * WIDTH + entry[None, :]
        total += tl.load(at, mask=(atom < last)[:, None], other=0.0)
    tl.store(out + system * WIDTH + entry, tl.sum(total, 0))
