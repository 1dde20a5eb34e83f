"""Packed records: dataclasses of tensors whose rows are atoms or systems."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import fields, is_dataclass
from itertools import accumulate
from typing import Any

import torch
from jaxtyping import Bool, Int
from torch import Tensor

PER_ATOM = frozenset(
    (
        *("positions", "atomic_numbers", "system_idx", "forces", "atomic_energies", "descriptors"),
        *("undeformed", "force", "velocity"),
    )
)
"""Fields with one row per atom; every other tensor has one row per system.  Named, not told by
the length: eight one-atom systems have eight rows of both kinds."""


def choose[Record](
    flag: Bool[Tensor, " system"], system_idx: Int[Tensor, " atom"], new: Record, old: Record
) -> Record:
    """`new` for the systems whose flag is set, `old` for the others; nothing crosses over."""
    atom_flag = flag[system_idx]

    def pick(name: str, pair: Sequence[Tensor]) -> Tensor:
        if pair[0] is pair[1]:
            return pair[0]
        rows = atom_flag if name in PER_ATOM else flag
        return torch.where(rows.reshape(-1, *[1] * (pair[0].ndim - 1)), pair[0], pair[1])

    return _each(pick, new, old)


def take[Record](record: Record, systems: Sequence[int]) -> Record:
    """The named systems, in the given order.  Reads `n_atoms` on the host."""
    n_atoms: Tensor = _find(record, "n_atoms")
    counts = n_atoms.tolist()
    starts = list(accumulate(counts, initial=0))
    atoms = torch.cat([torch.arange(starts[s], starts[s + 1]) for s in systems])
    renumbered = torch.arange(len(systems)).repeat_interleave(
        torch.tensor([counts[s] for s in systems])
    )
    rows = torch.tensor(systems).to(n_atoms.device)
    atoms, renumbered = atoms.to(n_atoms.device), renumbered.to(n_atoms.device)

    def pick(name: str, values: Sequence[Tensor]) -> Tensor:
        if name == "system_idx":
            return renumbered
        return values[0].index_select(0, atoms if name in PER_ATOM else rows)

    return _each(pick, record)


def join[Record](first: Record, second: Record) -> Record:
    """The systems of `first`, then those of `second`; what is no tensor comes from `first`."""
    n_first = len(_find(first, "n_atoms"))

    def pick(name: str, pair: Sequence[Tensor]) -> Tensor:
        return torch.cat([pair[0], pair[1] + n_first if name == "system_idx" else pair[1]])

    return _each(pick, first, second)


def to_device[Record](record: Record, device: torch.device | str) -> Record:
    """The same record on another device."""
    return rebuild(lambda tensor: tensor.to(device), record)


def rebuild[Record](function: Callable[[Tensor], Tensor], record: Record) -> Record:
    """The same record with every tensor replaced."""
    return _each(lambda _, values: function(values[0]), record)


def _each[Record](function: Callable[[str, Sequence[Tensor]], Tensor], *records: Record) -> Record:
    """A record whose tensors are `function(name, the same field of every record)`."""
    values: dict[str, Any] = {}
    for field in fields(records[0]):  # type: ignore[arg-type]
        parts = [getattr(record, field.name) for record in records]
        if is_dataclass(parts[0]):
            values[field.name] = _each(function, *parts)
        elif isinstance(parts[0], Tensor):
            values[field.name] = function(field.name, parts)
        else:
            values[field.name] = parts[0]
    return type(records[0])(**values)


def _find(record: Any, name: str) -> Any:
    """The first field called `name`, nested records included; None when there is none."""
    for field in fields(record):
        value = getattr(record, field.name)
        if field.name == name:
            return value
        found = _find(value, name) if is_dataclass(value) else None
        if found is not None:
            return found
    return None
