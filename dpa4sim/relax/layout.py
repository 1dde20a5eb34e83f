"""Where the unknowns of each system lie in packed rows, and where its Hessian lies.

The unknowns of a system of n atoms are n + 2 rows of three numbers: a displacement u per atom,
then the strain as (q0, q1, q2), (q3, q4, q5).  Its Hessian is a square of 3 x 3 blocks, one block
row per row.  Squares of like size are factorised together: the side is rounded up to one of
`SIDES`, by the number of atoms of the system alone, so that no bit depends on the company.  In a
system above `DENSE_UP_TO` atoms the square holds the strain only, and each atom stands for itself.

All this follows from the numbers of atoms.  It is worked out on the host when the composition of
the batch changes; no step reads it back.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate

import torch
from jaxtyping import Float, Int
from torch import Tensor

from dpa4sim.pool.pack import EXTRA_ROWS
from dpa4sim.relax.contraction import ATOM_BLOCK, COUPLING, FACTORS, STRAIN_BLOCK, Contraction

SIDES = (4, 8, 12, 16, 24, 32, 48, 64, 96, 128, 192, 256)
"""Block rows of the squares: multiples of four, so that every matrix starts on a cache line and
LAPACK takes the same path through each."""

DENSE_UP_TO = SIDES[-1] - EXTRA_ROWS
"""Atoms of the largest system whose Hessian is factorised as a whole."""

MAPS = (
    *("row_ptr", "system_row", "source", "atom_row", "strain_row"),
    *("padded", "block_row", "column", "fixed", "unused"),
)
"""The index maps of a layout, in the order in which they are kept."""

TABLES = (ATOM_BLOCK, COUPLING, STRAIN_BLOCK)


@dataclass(frozen=True)
class Layout:
    """Index maps; what a system does not have points behind the last row or block.

    Args:
        classes: side in block rows and number of squares, for each side in use.
        has_large: whether a system is too large for a square of its own.
        row_ptr: offsets of each system's rows.
        system_row: system of each row.
        source: row in [all atoms, all strain rows] of each packed row.
        atom_row: packed row of each atom.
        strain_row: packed rows of the strains, two per system.
        padded: row among those of all squares, of each packed row.
        block_row: first block of each atom's block row.
        column: place of each atom in its block row.
        fixed: blocks that are written once: each atom's diagonal, its two couplings to the
            strain, each system's four strain blocks, and the diagonal of each padded row.
        unused: 1 for a padded row without an unknown, else 0.
        factors: see `contraction.moments`.
        tables: of atom blocks, couplings and strain blocks.
    """

    classes: tuple[tuple[int, int], ...]
    has_large: bool
    row_ptr: Int[Tensor, " system_plus_one"]
    system_row: Int[Tensor, " row"]
    source: Int[Tensor, " row"]
    atom_row: Int[Tensor, " atom"]
    strain_row: Int[Tensor, " strain_row"]
    padded: Int[Tensor, " row"]
    block_row: Int[Tensor, " atom"]
    column: Int[Tensor, " atom"]
    fixed: Int[Tensor, " fixed"]
    unused: Int[Tensor, " padded_row"]
    factors: Int[Tensor, "2 component"]
    tables: tuple[Contraction, ...]

    @property
    def n_rows(self) -> int:
        """Rows of all squares."""
        return sum(side * count for side, count in self.classes)

    @property
    def n_blocks(self) -> int:
        """Blocks of all squares."""
        return sum(side * side * count for side, count in self.classes)

    def rows(
        self, atoms: Float[Tensor, "atom 3"], strain: Float[Tensor, "system 6"]
    ) -> Float[Tensor, "row 3"]:
        """Pack a vector per atom and six numbers per system."""
        return torch.cat([atoms, strain.reshape(-1, 3)]).index_select(0, self.source)

    def atoms(self, rows: Tensor) -> Tensor:
        """The atoms' part of packed rows."""
        return rows.index_select(0, self.atom_row)

    def strain(self, rows: Float[Tensor, "row 3"]) -> Float[Tensor, "system 6"]:
        """The strain part of packed rows."""
        return rows.index_select(0, self.strain_row).view(-1, 6)

    def spread(self, values: Tensor) -> Tensor:
        """A system's value for each of its rows."""
        return values.index_select(0, self.system_row)

    def sum(self, values: Float[Tensor, "row n"]) -> Float[Tensor, "system n"]:
        """Sum over the rows of each system, in their order: the same bits in any batch."""
        return torch.segment_reduce(values, "sum", offsets=self.row_ptr, unsafe=True, initial=0)


@dataclass(frozen=True)
class LayoutSlots:
    """A layout as a state keeps it: it loses its tensors when the composition changes.

    Args:
        lengths: of the parts of `numbers`.
        numbers: the index maps and the tables of the contractions, one after another.
        weights: of the contractions.
    """

    classes: tuple[tuple[int, int], ...]
    has_large: bool
    lengths: tuple[int, ...]
    numbers: Int[Tensor, " slot=number"] | None
    weights: Float[Tensor, " slot=weight"] | None

    def open(self) -> Layout | None:
        """The layout; None when it is lost."""
        if self.numbers is None or self.weights is None:
            return None
        parts = self.numbers.split(self.lengths)
        n_tables = 2 * len(TABLES)
        *maps, factors = parts[:-n_tables]
        traces, indices = parts[-n_tables::2], parts[1 - n_tables :: 2]
        weights = self.weights.split([table.weight.numel() for table in TABLES])
        tables = tuple(
            Contraction(trace.view(3, -1), index.view(shape), weight.view(shape))
            for trace, index, weight, shape in zip(
                traces, indices, weights, [table.weight.shape for table in TABLES], strict=True
            )
        )
        named = dict(zip(MAPS, maps, strict=True))
        factors = factors.view(2, -1)
        return Layout(self.classes, self.has_large, factors=factors, tables=tables, **named)


def lay_out(
    n_atoms: Sequence[int],
    device: torch.device | str,
    *,
    dense_up_to: int = DENSE_UP_TO,
    rounded: bool = False,
    n_silent: int = 0,
    room: Sequence[tuple[int, int]] = (),
) -> LayoutSlots:
    """Work out the layout of a batch.

    Args:
        n_atoms: of each system; may be zero.
        dense_up_to: atoms of the largest system whose Hessian is factorised as a whole.
        rounded: make the number of squares of each side a power of two, so that few shapes occur.
        n_silent: systems at the end that only pad the batch: whatever their size, their atoms
            stand for themselves, so that the shapes do not depend on it.
        room: side and least number of squares, as `Layout.classes` has them.

    On CUDA there are never fewer than two squares of a side: a single matrix would be factorised
    by another routine than many, and its bits would depend on the company.
    """
    counts, sides = torch.tensor(list(n_atoms)), torch.tensor(SIDES)
    inside = torch.where(counts <= min(dense_up_to, DENSE_UP_TO), counts, 0)
    inside[len(counts) - n_silent :] = 0
    kind = torch.searchsorted(sides, inside + EXTRA_ROWS)
    present = torch.bincount(kind, minlength=len(SIDES))
    least = 2 if torch.device(device).type == "cuda" else 1
    given = dict(room)
    wanted = zip(SIDES, present.tolist(), strict=True)
    squares = torch.tensor([_squares(n, least, rounded, given.get(side, 0)) for side, n in wanted])
    first_row, first_block = _starts(sides * squares), _starts(sides * sides * squares)

    order = torch.argsort(kind, stable=True)
    rank = torch.empty_like(order)
    rank[order] = torch.arange(len(order)) - _starts(present)[kind[order]]
    side = sides[kind]
    row = first_row[kind] + rank * side
    block = first_block[kind] + rank * side * side

    maps = _row_maps(counts)
    maps += _square_maps(counts, inside, side, row, block, int(first_row[-1]), int(first_block[-1]))
    diagonals = [
        (first + torch.arange(n)[:, None] * s * s + torch.arange(s) * (s + 1)).flatten()
        for s, n, first in zip(SIDES, squares.tolist(), first_block.tolist(), strict=False)
    ]
    unused = torch.ones(int(first_row[-1]) + 1, dtype=torch.long)
    unused[maps[5]] = 0
    maps[-1] = torch.cat([maps[-1], *diagonals])
    tables = [part.flatten() for table in TABLES for part in (table.trace, table.index)]
    parts = [*maps, unused[:-1], FACTORS.flatten(), *tables]
    return LayoutSlots(
        classes=tuple((s, n) for s, n in zip(SIDES, squares.tolist(), strict=True) if n),
        has_large=bool((inside < counts).any()) or n_silent > 0,
        lengths=tuple(len(part) for part in parts),
        numbers=torch.cat(parts).to(device),
        weights=torch.cat([table.weight.flatten() for table in TABLES]).to(device),
    )


def _row_maps(counts: Int[Tensor, " system"]) -> list[Int[Tensor, " _"]]:
    """row_ptr, system_row, source, atom_row, strain_row."""
    systems, n_atoms = torch.arange(len(counts)), int(counts.sum())
    row_ptr = _starts(counts + EXTRA_ROWS)
    atom_row = torch.arange(n_atoms) + EXTRA_ROWS * systems.repeat_interleave(counts)
    strain_row = ((row_ptr[:-1] + counts)[:, None] + torch.arange(EXTRA_ROWS)).flatten()
    source = torch.empty(int(row_ptr[-1]), dtype=torch.long)
    source[torch.cat([atom_row, strain_row])] = torch.arange(len(source))
    system_row = systems.repeat_interleave(counts + EXTRA_ROWS)
    return [row_ptr, system_row, source, atom_row, strain_row]


def _square_maps(
    counts: Int[Tensor, " system"],
    inside: Int[Tensor, " system"],
    side: Int[Tensor, " system"],
    row: Int[Tensor, " system"],
    block: Int[Tensor, " system"],
    n_rows: int,
    n_blocks: int,
) -> list[Int[Tensor, " _"]]:
    """padded, block_row, column and the first parts of fixed.

    Args:
        inside: how many of the atoms are in the square: all, or none.
        side: block rows of the square.
        row: first row of the square.
        block: first block of the square.
    """
    system = torch.arange(len(counts)).repeat_interleave(counts)
    within = torch.arange(len(system)) - _starts(counts)[system]
    dense, extra = inside[system] > 0, torch.arange(EXTRA_ROWS)
    atom_padded = torch.where(dense, row[system] + within, n_rows)
    strain_padded = ((row + inside)[:, None] + extra).flatten()
    source = _row_maps(counts)[2]
    padded = torch.cat([atom_padded, strain_padded])[source]

    column = torch.where(dense, within, 0)
    block_row = torch.where(dense, block[system] + within * side[system], n_blocks)
    strain_row = block[:, None] + (inside[:, None] + extra) * side[:, None]
    coupling = torch.where(dense[:, None], strain_row[system] + within[:, None], n_blocks)
    strain = strain_row[:, :, None] + (inside[:, None] + extra)[:, None]
    fixed = torch.cat([block_row + column, coupling.flatten(), strain.flatten()])
    return [padded, block_row, column, fixed]


def _squares(n: int, least: int, rounded: bool, room: int) -> int:
    """How many squares to keep for n systems."""
    if n <= room:
        return room
    return max(least, 1 << (n - 1).bit_length() if rounded else n)


def _starts(lengths: Int[Tensor, " n"]) -> Int[Tensor, " n_plus_one"]:
    """Where each part starts, and behind the last where it ends."""
    return torch.tensor(list(accumulate(lengths.tolist(), initial=0)))
