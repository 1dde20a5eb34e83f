"""Batch: many unlike structures packed in flat tensors."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from dpa4sim.errors import DataError

PADDING_A = 1e3
"""Distance between the atoms of a silent system: no cutoff reaches as far."""

HEAVIEST = 118
"""Largest atomic number of a known element."""


@dataclass(frozen=True)
class Batch:
    """Structures packed atom after atom; system s owns the atoms with `system_idx == s`.

    Args:
        positions: Å.
        atomic_numbers: nuclear charge Z of each atom.
        cell: Å; the rows are the lattice vectors; zero rows for a system without a cell.
        pbc: periodic or not along each lattice vector.
        system_idx: the system of each atom, ascending.
        n_atoms: atoms in each system.
        charge: total charge in elementary charges, for models conditioned on it.
        spin: total spin (multiplicity), for models conditioned on it.
        magmoms: magnetic moment of each atom in Bohr magnetons, Cartesian, for models with spins;
            NaN for the atoms of a system that was given none.
    """

    positions: Float[Tensor, "atom 3"]
    atomic_numbers: Int[Tensor, " atom"]
    cell: Float[Tensor, "system 3 3"]
    pbc: Bool[Tensor, "system 3"]
    system_idx: Int[Tensor, " atom"]
    n_atoms: Int[Tensor, " system"]
    charge: Float[Tensor, " system"] | None = None
    spin: Float[Tensor, " system"] | None = None
    magmoms: Float[Tensor, "atom 3"] | None = None

    @property
    def n_systems(self) -> int:
        """Number of systems, from a shape: no device sync."""
        return self.n_atoms.shape[0]

    @property
    def device(self) -> torch.device:
        """Device of every tensor."""
        return self.positions.device

    @property
    def volume(self) -> Float[Tensor, " system"]:
        """|a . b x c| in Å^3; zero for a system without a cell."""
        a, b, c = self.cell.unbind(1)
        return dot(a, cross(b, c)).abs()

    def to(self, device: torch.device | str) -> Batch:
        """The same batch on another device."""
        return self._each(lambda tensor: tensor.to(device))

    def with_geometry(
        self, positions: Float[Tensor, "atom 3"], cell: Float[Tensor, "system 3 3"]
    ) -> Batch:
        """The same atoms elsewhere."""
        return replace(self, positions=positions, cell=cell)

    def padded(self, n_atoms: int, n_systems: int) -> Batch:
        """The same systems, then silent ones, so that shapes stay the same from batch to batch.

        The last system holds the atoms that are missing, lined up `PADDING_A` apart, without a
        cell; systems between have no atom.  No sum, maximum or edge of the others changes.

        Args:
            n_atoms: atoms in all, more than now.
            n_systems: systems in all, more than now.

        Raises:
            DataError: there is no room.
        """
        more, extra = n_atoms - len(self.positions), n_systems - self.n_systems
        if more < 1 or extra < 1:
            raise DataError(
                f"{len(self.positions)} atoms in {self.n_systems} systems do not fit into "
                f"{n_atoms} atoms and {n_systems} systems with one of each left. Give more room."
            )
        line = self.positions.new_zeros(more, 3)
        line[:, 0] = PADDING_A * torch.arange(more, device=self.device)
        counts = self.n_atoms.new_zeros(extra)
        counts[-1] = more

        def per_system(values: Tensor | None) -> Tensor | None:
            if values is None:
                return None
            return torch.cat([values, values.new_zeros(extra, *values.shape[1:])])

        return Batch(
            positions=torch.cat([self.positions, line]),
            atomic_numbers=torch.cat([self.atomic_numbers, self.atomic_numbers[:1].expand(more)]),
            cell=torch.cat([self.cell, self.cell.new_zeros(extra, 3, 3)]),
            pbc=torch.cat([self.pbc, self.pbc.new_zeros(extra, 3)]),
            system_idx=torch.cat(
                [self.system_idx, self.system_idx.new_full((more,), n_systems - 1)]
            ),
            n_atoms=torch.cat([self.n_atoms, counts]),
            charge=per_system(self.charge),
            spin=per_system(self.spin),
            magmoms=None if self.magmoms is None else torch.cat([self.magmoms, 0 * line]),
        )

    def split(self) -> list[Batch]:
        """One Batch per system.  Reads `n_atoms` on the host."""
        counts = self.n_atoms.tolist()
        starts = accumulate(counts, initial=0)
        return [
            self._part(slice(start, start + count), slice(s, s + 1))
            for s, (start, count) in enumerate(zip(starts, counts, strict=False))
        ]

    def select(self, systems: Sequence[int]) -> Batch:
        """The named systems, in the given order, each as often as named.  Reads `n_atoms`.

        Raises:
            DataError: none is named, or one that is not there.
        """
        if not systems:
            raise DataError("A batch needs at least one structure; none was selected.")
        beyond = [s for s in systems if not 0 <= s < self.n_systems]
        if beyond:
            raise DataError(
                f"There is no system {beyond[0]} in this batch. "
                f"Its {self.n_systems} systems are numbered from 0."
            )
        counts = self.n_atoms.tolist()
        starts = list(accumulate(counts, initial=0))
        rows = [torch.arange(starts[s], starts[s + 1]) for s in systems]
        atoms = torch.cat(rows).to(self.device)
        chosen = torch.tensor(list(systems), device=self.device)
        part = self._part(atoms, chosen)
        lengths = torch.tensor([counts[s] for s in systems])
        system_idx = torch.arange(len(systems)).repeat_interleave(lengths)
        return replace(part, system_idx=system_idx.to(self.device))

    @classmethod
    def single(
        cls,
        positions: Tensor | Sequence[Any],
        atomic_numbers: Tensor | Sequence[Any],
        cell: Tensor | Sequence[Any] | None = None,
        pbc: Tensor | Sequence[bool] | bool = False,
        *,
        charge: float | int | None = None,
        spin: float | int | None = None,
        magmoms: Tensor | Sequence[Any] | None = None,
    ) -> Batch:
        """One system from its arrays; all but the atomic numbers and pbc become float64.

        Raises:
            DataError: the arrays do not describe the same atoms, or the cell is not 3 x 3.
        """
        positions = torch.as_tensor(positions, dtype=torch.float64).reshape(-1, 3)
        device, n = positions.device, positions.shape[0]
        numbers = torch.as_tensor(atomic_numbers, device=device).long().reshape(-1)
        if len(numbers) != n:
            raise DataError(f"{n} positions and {len(numbers)} atomic numbers. Give one each.")
        cell = torch.zeros(3, 3) if cell is None else torch.as_tensor(cell, dtype=torch.float64)
        if tuple(cell.shape) not in ((3, 3), (1, 3, 3)):
            raise DataError(
                f"The cell has shape {tuple(cell.shape)}. Give 3 x 3, the rows being the vectors."
            )
        if magmoms is not None:
            magmoms = torch.as_tensor(magmoms, dtype=torch.float64, device=device)
            if magmoms.shape != positions.shape:
                raise DataError(
                    f"The magnetic moments have shape {tuple(magmoms.shape)}. Give a vector to "
                    f"each of the {n} atoms."
                )
        flags = torch.as_tensor(pbc, device=device, dtype=torch.bool).expand(3)

        def per_system(value: float | int | None) -> Tensor | None:
            if value is None:
                return None
            return torch.tensor([float(value)], dtype=torch.float64, device=device)

        return cls(
            positions=positions,
            atomic_numbers=numbers,
            cell=cell.to(device, torch.float64).reshape(1, 3, 3),
            pbc=flags.reshape(1, 3).clone(),
            system_idx=torch.zeros(n, dtype=torch.long, device=device),
            n_atoms=torch.tensor([n], device=device),
            charge=per_system(charge),
            spin=per_system(spin),
            magmoms=magmoms,
        )

    @classmethod
    def concatenate(cls, batches: Iterable[Batch]) -> Batch:
        """Pack batches one after another.  Where some carry magnetic moments, others get NaN.

        Raises:
            DataError: nothing to pack, or `charge`/`spin` is given for some systems only.
        """
        parts = list(batches)
        if not parts:
            raise DataError("A batch needs at least one structure; none was given.")

        def joined(name: str) -> Tensor:
            return torch.cat([getattr(part, name) for part in parts])

        def optional(name: str) -> Tensor | None:
            given = [getattr(part, name) is not None for part in parts]
            if any(given) and not all(given):
                raise DataError(
                    f"{sum(given)} of {len(given)} structures carry '{name}'. "
                    f"Give '{name}' for every structure of a batch or for none."
                )
            return joined(name) if all(given) else None

        def moments() -> Tensor | None:
            if all(part.magmoms is None for part in parts):
                return None
            none = [torch.full_like(part.positions, torch.nan) for part in parts]
            given = [part.magmoms for part in parts]
            pairs = zip(given, none, strict=True)
            return torch.cat([nan if value is None else value for value, nan in pairs])

        n_atoms, positions = joined("n_atoms"), joined("positions")
        systems = torch.arange(len(n_atoms), device=n_atoms.device)
        return cls(
            positions=positions,
            atomic_numbers=joined("atomic_numbers"),
            cell=joined("cell"),
            pbc=joined("pbc"),
            system_idx=systems.repeat_interleave(n_atoms, output_size=len(positions)),
            n_atoms=n_atoms,
            charge=optional("charge"),
            spin=optional("spin"),
            magmoms=moments(),
        )

    def _each(self, function: Callable[[Tensor], Tensor]) -> Batch:
        present = {name: value for name, value in vars(self).items() if value is not None}
        return replace(self, **{name: function(value) for name, value in present.items()})

    def _part(self, atoms: slice | Tensor, systems: slice | Tensor) -> Batch:
        """The rows of some atoms and systems, numbered as one system."""
        return Batch(
            positions=self.positions[atoms],
            atomic_numbers=self.atomic_numbers[atoms],
            cell=self.cell[systems],
            pbc=self.pbc[systems],
            system_idx=torch.zeros_like(self.system_idx[atoms]),
            n_atoms=self.n_atoms[systems],
            charge=None if self.charge is None else self.charge[systems],
            spin=None if self.spin is None else self.spin[systems],
            magmoms=None if self.magmoms is None else self.magmoms[atoms],
        )


def symbol(atomic_number: int) -> str:
    """Chemical symbol, or `Z=..` outside the periodic table."""
    from ase.data import chemical_symbols

    known = 0 < atomic_number <= HEAVIEST
    return chemical_symbols[atomic_number] if known else f"Z={atomic_number}"


def dot(left: Float[Tensor, "*row 3"], right: Float[Tensor, "*row 3"]) -> Float[Tensor, "*row"]:
    """Scalar product with its additions in one order: the same bits whatever the batch."""
    product = left * right
    return product[..., 0] + product[..., 1] + product[..., 2]


def cross(left: Float[Tensor, "*row 3"], right: Float[Tensor, "*row 3"]) -> Float[Tensor, "*row 3"]:
    """Vector product by separate operations: the same bits whatever the batch."""
    a, b, c = left.unbind(-1)
    x, y, z = right.unbind(-1)
    return torch.stack([b * z - c * y, c * x - a * z, a * y - b * x], -1)


def sum_over_atoms(
    values: Float[Tensor, " atom *rest"], batch: Batch
) -> Float[Tensor, " system *rest"]:
    """Sum per system, in atom order: the same bits in any batch, on CUDA too."""
    return torch.segment_reduce(values, "sum", offsets=_offsets(batch), unsafe=True, initial=0)


def max_over_atoms(values: Float[Tensor, " atom"], batch: Batch) -> Float[Tensor, " system"]:
    """Largest per system; NaN when one atom's is NaN."""
    return torch.segment_reduce(values, "max", offsets=_offsets(batch), unsafe=True)


def _offsets(batch: Batch) -> Int[Tensor, " system_plus_one"]:
    return torch.nn.functional.pad(batch.n_atoms.cumsum(0), (1, 0))
