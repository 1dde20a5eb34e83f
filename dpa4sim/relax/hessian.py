"""The pair-stiffness model Hessian: bonds as springs, atoms and strain coupled.

A bond from atom i to atom j along b, of length d, with the covalent radii R_i, R_j:

    k = min( k0 exp(-A (d / (R_i + R_j) - 1)), 6 k0 )           zero beyond 1.5 (R_i + R_j)
    K = k/2 [ (1 - t) b b^T / d^2 + t 1 ]                       every bond is listed twice
    D = u_j - u_i + G q,   G[:, k] = B_k b                      its stretch
    P = sum_bonds (dD/d(u,q))^T K (dD/d(u,q)) + diag(c_a on u, c_b V on q)

What must not move is taken out by the projector T of the freedom:  P <- T P T + (1 - T).  P is
positive definite.  The bond i -> j adds 2K to P_ii, -2K to P_ij, -2 G^T K to P_qi, G^T K G to P_qq:
its reverse adds the rest, so each block is a sum over the bonds of one center.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from dpa4sim.batch import Batch, dot
from dpa4sim.edges import Edges
from dpa4sim.lattice import inverse, matmul
from dpa4sim.relax.contraction import moments
from dpa4sim.relax.freedom import Freedom
from dpa4sim.relax.layout import Layout

BOND_STIFFNESS = 5.0
"""k0 in eV/Å^2; like every constant here it may be off by half without harm (measured: +-9 %)."""

BOND_DECAY = 3.0
"""A."""

STIFFEST = 6.0
"""Largest k, in units of k0."""

REACH = 1.5
"""Longest bond, in units of R_i + R_j."""

ATOM_STIFFNESS = 5.0
"""c_a in eV/Å^2."""

CELL_STIFFNESS = 0.1
"""c_b in eV/Å^3."""

NEAREST_A = 1e-3
"""Two atoms closer than this are taken to be this far apart."""

LAST_RESORT = 70.0
"""eV/Å^2; in place of a diagonal element that is no positive number."""

UNKNOWN_RADIUS_A = 1.5
"""Covalent radius of elements for which none is tabulated."""


@dataclass(frozen=True)
class PairHessian:
    """P of every system.

    Args:
        squares: 3 x 3 blocks of all squares, the lower triangles filled; see `layout`.
        atoms: diagonal block of each atom.
        strain: P_qq.
    """

    squares: Float[Tensor, "block 9"]
    atoms: Float[Tensor, "atom 9"]
    strain: Float[Tensor, "system 6 6"]


def covalent_radii(atomic_numbers: Int[Tensor, " atom"]) -> Float[Tensor, " atom"]:
    """Covalent radii in Å (Cordero et al., Dalton Trans. 2008, 2832)."""
    from ase.data import covalent_radii as tabulated
    from ase.data import missing

    radii = torch.tensor(tabulated, device=atomic_numbers.device)
    return torch.where(radii == missing, UNKNOWN_RADIUS_A, radii)[atomic_numbers]


def pair_hessian(
    edges: Edges,
    radii: Float[Tensor, " atom"],
    batch: Batch,
    volume: Float[Tensor, " system"],
    freedom: Freedom,
    layout: Layout,
) -> PairHessian:
    """P at the geometry whose edges are given; edges that are too long for a bond do not count.

    Args:
        radii: covalent, Å.
        volume: of the cells, Å^3.
    """
    bonds, weight = _bonds(edges, radii)
    atom_table, coupling_table, strain_table = layout.tables
    pair, higher = moments(bonds.vector.T.contiguous(), weight, layout.factors)
    movable = freedom.movable
    both = movable.index_select(0, bonds.center) * movable.index_select(0, bonds.neighbor)
    apart = bonds.center != bonds.neighbor  # an atom does not move against its own image
    springs = atom_table.of(torch.where(apart, pair, 0.0))
    higher = _sum_bonds(higher, bonds)

    atoms = _project_atoms(_sum_bonds(springs, bonds), freedom)
    coupling = _project_coupling(coupling_table.of(higher[:10]), batch, freedom)
    quads = torch.segment_reduce(
        higher[10:].T.contiguous(), "sum", offsets=_offsets(batch), unsafe=True, initial=0
    )
    strain = _project_strain(strain_table.of(quads.T), volume, freedom)

    index = layout.block_row.index_select(0, bonds.center)
    index = index + layout.column.index_select(0, bonds.neighbor)
    blocks = [(-both * springs).T, *_fixed_blocks(atoms, coupling, strain, layout)]
    squares = _fill(layout, blocks, index)
    return PairHessian(squares, atoms, strain)


def solve(
    hessian: PairHessian, right: Float[Tensor, "row 3 n"], layout: Layout
) -> Float[Tensor, "row 3 n"]:
    """P^-1 times up to four vectors; with the diagonal of P where the factorisation fails."""
    columns = torch.nn.functional.pad(right, (0, 4 - right.shape[2]))
    padded = right.new_zeros(layout.n_rows + 1, 3, 4)
    padded = padded.index_put((layout.padded,), columns)
    solved, first_row, first_block = [], 0, 0
    for side, count in layout.classes:
        n_rows, n_blocks = side * count, side * side * count
        blocks = hessian.squares[first_block : first_block + n_blocks].view(count, side, side, 3, 3)
        matrix = blocks.permute(0, 1, 3, 2, 4).reshape(count, 3 * side, 3 * side)
        factor, info = torch.linalg.cholesky_ex(matrix)
        wanted = padded[first_row : first_row + n_rows].view(count, 3 * side, 4)
        found = divided(wanted, factor)
        found = torch.where((info == 0)[:, None, None], found, torch.nan)
        solved.append(found.reshape(n_rows, 3, 4))
        first_row, first_block = first_row + n_rows, first_block + n_blocks
    solution = torch.cat([*solved, padded[-1:]]).index_select(0, layout.padded)
    solution = solution[:, :, : right.shape[2]]
    if layout.has_large:
        solution = _with_large(solution, right, hessian, layout)
    return _with_failed(solution, right, hessian, layout)


def divided(right: Float[Tensor, "square n k"], factor: Float[Tensor, "square n n"]) -> Tensor:
    """(L L^T)^-1 right; on a device by BLAS alone, which can be recorded as part of a step."""
    if right.device.type == "cpu":
        return torch.cholesky_solve(right, factor)
    half = torch.linalg.solve_triangular(factor, right, upper=False)
    return torch.linalg.solve_triangular(factor.transpose(1, 2), half, upper=True)


def _bonds(edges: Edges, radii: Float[Tensor, " atom"]) -> tuple[Edges, Float[Tensor, " edge"]]:
    """The edges and their k / d^2, zero for what is no bond; on the CPU the bonds alone."""
    real = torch.arange(edges.n_edges, device=edges.center.device) < edges.row_ptr[-1]
    weight = torch.where(real, _weight(edges, radii), 0.0)
    if edges.vector.device.type != "cpu" or torch.compiler.is_compiling():
        return edges, weight
    kept = weight.nonzero()[:, 0]
    center = edges.center[kept]
    rows = torch.arange(len(edges.row_ptr), device=center.device)
    row_ptr = torch.searchsorted(center, rows)
    return Edges(center, edges.neighbor[kept], edges.vector[kept], row_ptr), weight[kept]


def _weight(edges: Edges, radii: Float[Tensor, " atom"]) -> Float[Tensor, " edge"]:
    square = dot(edges.vector, edges.vector).clamp(min=NEAREST_A**2)
    reach = radii.index_select(0, edges.center) + radii.index_select(0, edges.neighbor)
    ratio = square.sqrt() / reach
    stiffness = torch.exp(-BOND_DECAY * (ratio - 1)).clamp(max=STIFFEST) * BOND_STIFFNESS
    return torch.where(ratio < REACH, stiffness / square, 0.0)


def _sum_bonds(values: Float[Tensor, "n edge"], bonds: Edges) -> Float[Tensor, "n atom"]:
    offsets = bonds.row_ptr.expand(len(values), -1).contiguous()
    return torch.segment_reduce(values, "sum", offsets=offsets, axis=1, unsafe=True, initial=0)


def _project_atoms(blocks: Float[Tensor, "9 atom"], freedom: Freedom) -> Float[Tensor, "atom 9"]:
    """Diagonal blocks with c_a added; the identity for an atom that may not move."""
    identity = torch.eye(3, dtype=blocks.dtype, device=blocks.device).view(9, 1)
    movable = freedom.movable
    blocks = movable * blocks + (1.0 + (ATOM_STIFFNESS - 1.0) * movable) * identity
    return blocks.T.contiguous()


def _project_coupling(
    blocks: Float[Tensor, "18 atom"], batch: Batch, freedom: Freedom
) -> Float[Tensor, "atom 2 9"]:
    """S P_qi, in two blocks."""
    n_atoms = blocks.shape[1]
    blocks = (freedom.movable * blocks).view(6, 3, n_atoms)
    projector = freedom.strain.reshape(-1, 36).T.index_select(1, batch.system_idx)
    projector = projector.view(6, 6, n_atoms)
    products = (projector[:, :, None] * blocks).unbind(1)
    total = products[0]
    for product in products[1:]:
        total = total + product
    return total.permute(2, 0, 1).reshape(n_atoms, 2, 9)


def _project_strain(
    blocks: Float[Tensor, "36 system"], volume: Float[Tensor, " system"], freedom: Freedom
) -> Float[Tensor, "system 6 6"]:
    """S (P_qq + c_b V) S + (1 - S)."""
    identity = torch.eye(6, dtype=blocks.dtype, device=blocks.device)
    projector = freedom.strain
    full = blocks.T.reshape(-1, 6, 6) + (CELL_STIFFNESS * volume)[:, None, None] * identity
    return matmul(matmul(projector, full), projector) + (identity - projector)


def _fixed_blocks(
    atoms: Float[Tensor, "atom 9"],
    coupling: Float[Tensor, "atom 2 9"],
    strain: Float[Tensor, "system 6 6"],
    layout: Layout,
) -> list[Float[Tensor, "_ 9"]]:
    """What is written once, in the order of `layout.fixed`."""
    four = strain.reshape(-1, 2, 3, 2, 3).permute(0, 1, 3, 2, 4).reshape(-1, 9)
    identity = torch.eye(3, dtype=strain.dtype, device=strain.device).flatten()
    return [atoms, coupling.reshape(2 * len(coupling), 9), four, layout.unused[:, None] * identity]


def _fill(
    layout: Layout, blocks: list[Float[Tensor, "_ 9"]], edge_index: Int[Tensor, " edge"]
) -> Float[Tensor, "block 9"]:
    """Add blocks up in one order: restarts are equal to the bit, on CUDA too."""
    values, index = torch.cat(blocks), torch.cat([edge_index, layout.fixed])
    squares = values.new_zeros(layout.n_blocks + 1, 9)
    if values.device.type == "cpu":
        return squares.index_add(0, index, values)
    return squares.index_put((index,), values, accumulate=True)


def _with_large(
    solution: Float[Tensor, "row 3 n"],
    right: Float[Tensor, "row 3 n"],
    hessian: PairHessian,
    layout: Layout,
) -> Float[Tensor, "row 3 n"]:
    """Atoms of large systems, each by its own 3 x 3 block."""
    alone = matmul(inverse(hessian.atoms.view(-1, 3, 3)), layout.atoms(right))
    is_large = layout.block_row == layout.n_blocks
    found = torch.where(is_large[:, None, None], alone, layout.atoms(solution))
    return solution.index_put((layout.atom_row,), found)


def _with_failed(
    solution: Float[Tensor, "row 3 n"],
    right: Float[Tensor, "row 3 n"],
    hessian: PairHessian,
    layout: Layout,
) -> Float[Tensor, "row 3 n"]:
    """By the diagonal of P where a number of the solution is not finite."""
    failed = _not_finite(solution, layout)
    strain = torch.diagonal(hessian.strain, dim1=1, dim2=2)
    diagonal = layout.rows(hessian.atoms[:, ::4], strain)
    usable = (diagonal > 0) & torch.isfinite(diagonal)
    simple = right / torch.where(usable, diagonal, LAST_RESORT)[:, :, None]
    return torch.where(layout.spread(failed)[:, None, None], simple, solution)


def _not_finite(rows: Float[Tensor, "row 3 n"], layout: Layout) -> Bool[Tensor, " system"]:
    """Whether a system has a number that is not finite: zero times it is not zero."""
    return torch.isnan(layout.sum((0.0 * rows).flatten(1))).any(1)


def _offsets(batch: Batch) -> Int[Tensor, " system_plus_one"]:
    return torch.nn.functional.pad(batch.n_atoms.cumsum(0), (1, 0))
