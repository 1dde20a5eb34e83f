"""Packed records: dataclasses of tensors whose rows belong to systems, or to their atoms.

The annotation says whose rows a tensor has: the first axis of `Float[Tensor, "atom 3"]`.

    system    one row per system
    atom      one row per atom, system after system
    row       one row per atom and then `EXTRA_ROWS` for the cell, system after system
    slot      belongs to the composition of the batch: dropped (None) when that changes
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields, is_dataclass
from functools import cache
from itertools import accumulate
from typing import Any

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from dpa4sim.batch import Batch
from dpa4sim.errors import Status

EXTRA_ROWS = 2
"""Rows of three numbers that hold the six strains of a system behind its atoms."""

AXES = ("system", "atom", "row", "slot")


@torch.compiler.assume_constant_result
def axis_of(record: Any, name: str) -> str:
    """Whose rows the tensor `name` of a record has, by its annotation.

    Raises:
        TypeError: the annotation names none of `AXES` first; a mistake in our code.
    """
    return _axis_of(record, name)


@cache
def _axis_of(record: Any, name: str) -> str:
    annotation = next(f.type for f in fields(record) if f.name == name)  # type: ignore[arg-type]
    found = re.search(r"Tensor,\s*['\"]\s*(\w+)", str(annotation))
    if found is None or found.group(1) not in AXES:
        raise TypeError(f"{record}.{name}: {annotation} names none of {AXES} first.")
    return found.group(1)


def choose[Record](
    flag: Bool[Tensor, " system"], system_idx: Int[Tensor, " atom"], new: Record, old: Record
) -> Record:
    """`new` for the systems whose flag is set, `old` for the others; nothing crosses over.

    For records of system and atom rows.
    """
    atom_flag = flag[system_idx]

    def pick(axis: str, name: str, pair: Sequence[Tensor]) -> Tensor:
        if pair[0] is pair[1]:
            return pair[0]
        rows = atom_flag if axis == "atom" else flag
        return torch.where(rows.reshape(-1, *[1] * (pair[0].ndim - 1)), pair[0], pair[1])

    return _each(pick, new, old)


def take[Record](record: Record, systems: Sequence[int]) -> Record:
    """The named systems, in the given order.  Reads `n_atoms` on the host."""
    n_atoms: Tensor = _find(record, "n_atoms")
    counts = n_atoms.tolist()
    device = n_atoms.device

    def rows_of(extra: int) -> Tensor:
        starts = list(accumulate((count + extra for count in counts), initial=0))
        return torch.cat([torch.arange(starts[s], starts[s + 1]) for s in systems]).to(device)

    chosen = torch.tensor([counts[s] for s in systems])
    renumbered = torch.arange(len(systems)).repeat_interleave(chosen).to(device)
    index = {
        "system": torch.tensor(list(systems)).to(device),
        "atom": rows_of(0),
        "row": rows_of(EXTRA_ROWS),
    }

    def pick(axis: str, name: str, values: Sequence[Tensor]) -> Tensor | None:
        if axis == "slot":
            return None
        return renumbered if name == "system_idx" else values[0].index_select(0, index[axis])

    return _each(pick, record)


def join[Record](*records: Record) -> Record:
    """The systems of all records, one after another; what is no tensor comes from the first."""
    found = [_find(record, "n_atoms") for record in records]
    shifts = list(accumulate((0 if n is None else len(n) for n in found), initial=0))

    def pick(axis: str, name: str, parts: Sequence[Tensor]) -> Tensor | None:
        if axis == "slot":
            return None
        if name == "system_idx":
            parts = [part + shift for part, shift in zip(parts, shifts, strict=False)]
        return torch.cat(list(parts))

    return _each(pick, *records)


def padded[Record](record: Record, n_atoms: int, n_systems: int) -> Record:
    """The same systems, then silent ones that have ended, as `Batch.padded` has them.

    Args:
        n_atoms: atoms in all, more than now.
        n_systems: systems in all, more than now.
    """
    rows = {"atom": n_atoms, "system": n_systems, "row": n_atoms + EXTRA_ROWS * n_systems}
    values: dict[str, Any] = {}
    kind: Any = type(record)
    for field in fields(record):  # type: ignore[arg-type]
        value = getattr(record, field.name)
        if isinstance(value, Batch):
            value = value.padded(n_atoms, n_systems)
        elif isinstance(value, Tensor):
            axis = axis_of(kind, field.name)
            fill_with = int(Status.COMPLETED) if field.name == "status" else 0
            more = None if axis == "slot" else rows[axis] - len(value)
            value = None if more is None else _longer(value, more, fill_with)
        elif is_dataclass(value):
            value = padded(value, n_atoms, n_systems)
        values[field.name] = value
    return kind(**values)


def cut[Record](record: Record, like: Record) -> Record:
    """The first systems of a record, copied: as many as `like` has, whose slots it takes."""

    def pick(axis: str, name: str, pair: Sequence[Tensor]) -> Tensor:
        return pair[0] if axis == "slot" else pair[1][: len(pair[0])].clone()

    return _each(pick, like, record)


def hold[Record](
    flag: Bool[Tensor, " system"],
    system_idx: Int[Tensor, " atom"],
    system_row: Int[Tensor, " row"],
    new: Record,
    old: Record,
) -> Record:
    """`choose` for records with any rows; slots are those of the old one.

    Args:
        system_row: the system of each row.
    """
    flags = {"system": flag, "atom": flag[system_idx], "row": flag[system_row]}

    def pick(axis: str, name: str, pair: Sequence[Tensor]) -> Tensor:
        if axis == "slot" or pair[0] is pair[1]:
            return pair[0]
        rows = flags[axis]
        return torch.where(rows.reshape(-1, *[1] * (pair[0].ndim - 1)), pair[1], pair[0])

    return _each(pick, old, new)


def system_rows(n_atoms: Int[Tensor, " system"]) -> Int[Tensor, " row"]:
    """The system of each row.  Reads `n_atoms` on the host."""
    counts = n_atoms.cpu() + EXTRA_ROWS
    return torch.arange(len(counts)).repeat_interleave(counts).to(n_atoms.device)


def to_device[Record](record: Record, device: torch.device | str) -> Record:
    """The same record on another device."""
    return rebuild(lambda tensor: tensor.to(device), record)


def rebuild[Record](function: Callable[[Tensor], Tensor], record: Record) -> Record:
    """The same record with every tensor replaced."""
    return _each(lambda axis, name, values: function(values[0]), record)


def flatten(record: Any, prefix: str = "") -> dict[str, Tensor]:
    """Every tensor of a record by its dotted name, those of slots apart."""
    tensors: dict[str, Tensor] = {}
    kind: Any = type(record)
    for field in fields(record):
        value = getattr(record, field.name)
        if is_dataclass(value):
            tensors |= flatten(value, f"{prefix}{field.name}.")
        elif isinstance(value, Tensor) and axis_of(kind, field.name) != "slot":
            tensors[prefix + field.name] = value
    return tensors


def fill[Record](record: Record, tensors: Mapping[str, Tensor], prefix: str = "") -> Record:
    """The same record with its tensors from `flatten` put in place, those of slots apart.

    Raises:
        KeyError: one is missing.
    """
    values: dict[str, Any] = {}
    kind: Any = type(record)
    for field in fields(kind):
        value = getattr(record, field.name)
        name = prefix + field.name
        if is_dataclass(value):
            value = fill(value, tensors, f"{name}.")
        elif isinstance(value, Tensor) and axis_of(kind, field.name) != "slot":
            value = tensors[name].to(value.device)
        values[field.name] = value
    return kind(**values)


def _each[Record](
    function: Callable[[str, str, Sequence[Tensor]], Tensor | None], *records: Record
) -> Record:
    """A record whose tensors are `function(axis, name, the same field of every record)`."""
    values: dict[str, Any] = {}
    kind: Any = type(records[0])
    for field in fields(records[0]):  # type: ignore[arg-type]
        parts = [getattr(record, field.name) for record in records]
        if isinstance(parts[0], Tensor):
            axis = axis_of(kind, field.name)
            usable = all(isinstance(part, Tensor) for part in parts)
            values[field.name] = function(axis, field.name, parts) if usable else None
        elif parts[0] is not None and is_dataclass(parts[0]):
            values[field.name] = _each(function, *parts)
        else:
            values[field.name] = parts[0]
    return kind(**values)


def _longer(values: Tensor, more: int, value: int) -> Tensor:
    return torch.cat([values, values.new_full((more, *values.shape[1:]), value)])


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
