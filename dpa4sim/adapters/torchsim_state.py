"""States of ours inside TorchSim's, which are taken apart, joined and moved between two steps.

A state of ours goes along as tensors whose rows belong to atoms or systems, in the extras of a
SimState; positions, cell, energy, forces and stress are not kept twice but are those of the
SimState itself.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass, fields, is_dataclass
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch_sim.integrators.md import MDState as TorchSimMDState
from torch_sim.optimizers.state import OptimState
from torch_sim.state import SimState

from dpa4sim.batch import Batch
from dpa4sim.pool.pack import EXTRA_ROWS, axis_of, to_device
from dpa4sim.relax.fire import FireState
from dpa4sim.relax.lbfgs import LbfgsState
from dpa4sim.simulate.state import MDState

PREFIX = "dpa4sim."
"""Begins the names of our extras, so that they meet no other."""


def _fields(batch: str, numbers: str, prediction: str) -> dict[str, str]:
    """Tensors of a record, by the record that has them, and the fields of a SimState they are."""
    names = {f"{batch}.positions": "positions", f"{batch}.cell": "cell"}
    names |= {f"{numbers}.{name}": name for name in ("atomic_numbers", "system_idx")}
    return names | {f"{prediction}.{name}": name for name in ("energy", "forces", "stress")}


HELD_BY_TORCHSIM: dict[type, dict[str, str]] = {
    FireState: _fields("geometry.batch", "geometry.batch", "prediction"),
    LbfgsState: _fields("point", "start", "point.prediction"),
    MDState: _fields("batch", "batch", "prediction") | {"masses": "masses"},
}
"""For each kind of state, what is a field of the SimState itself."""


class _Clocks:
    """What a state of ours says of its systems."""

    @property
    def status(self: Any) -> Int[Tensor, " system"]:
        """`errors.Status` of each system as an integer."""
        return self.system_extras[f"{PREFIX}status"]

    @property
    def steps(self: Any) -> Int[Tensor, " system"]:
        """Steps tried by each system."""
        return self.system_extras[f"{PREFIX}steps"]


@dataclass(kw_only=True)
class RelaxState(_Clocks, OptimState):
    """A relaxation state of ours between two steps of TorchSim.

    Args:
        record: our state with its tensors emptied; it says what goes where.
    """

    record: Any

    _global_attributes = OptimState._global_attributes | {"record"}


@dataclass(kw_only=True)
class MotionState(_Clocks, TorchSimMDState):
    """A state of dynamics of ours between two steps of TorchSim.

    `momenta` are for TorchSim to read; what goes on is in the record.

    Args:
        record: our state with its tensors emptied; it says what goes where.
        stress: eV/Å^3, tension positive.
    """

    record: Any
    stress: Tensor

    _global_attributes = TorchSimMDState._global_attributes | {"record"}
    _system_attributes = TorchSimMDState._system_attributes | {"stress"}


def unpacked(state: RelaxState | MotionState) -> Any:
    """Our own state of a relaxation or of dynamics that TorchSim carries."""
    template = to_device(state.record, state.device)
    shared = HELD_BY_TORCHSIM[type(template)]
    held = state.system_extras | state.atom_extras

    def find(path: str, axis: str, empty: Tensor) -> Tensor:
        if path in shared:
            value = getattr(state, shared[path])
            value = value.transpose(1, 2) if shared[path] == "cell" else value
        elif axis == "row":
            atoms, cell = held[f"{PREFIX}{path}.atoms"], held[f"{PREFIX}{path}.cell"]
            value = _to_rows(atoms, cell, state.system_idx)
        else:
            value = held[PREFIX + path]
        return value.to(empty.dtype)

    return _map(find, template)


def packed(record: Any, others: SimState) -> dict[str, Any]:
    """The fields of a state that carries `record`, with the foreign extras of another."""
    shared = HELD_BY_TORCHSIM[type(record)]
    fields_of: dict[str, Any] = {}
    system = {k: v for k, v in others.system_extras.items() if not k.startswith(PREFIX)}
    atom = {k: v for k, v in others.atom_extras.items() if not k.startswith(PREFIX)}

    def put(path: str, axis: str, value: Tensor) -> Tensor:
        if path in shared:
            fields_of[shared[path]] = value.mT.contiguous() if shared[path] == "cell" else value
        elif axis == "row":
            atoms, cell = _from_rows(value, record.batch)
            atom[f"{PREFIX}{path}.atoms"], system[f"{PREFIX}{path}.cell"] = atoms, cell
        else:
            (atom if axis == "atom" else system)[PREFIX + path] = value
        return value[:0]

    empty = _map(put, record)
    return fields_of | {"record": empty, "_system_extras": system, "_atom_extras": atom}


def replaced(state: Any, values: dict[str, Any]) -> Any:
    """The state with other values; TorchSim's constructor would wait for the device."""
    after = copy.copy(state)
    for name, value in values.items():
        if name != "system_idx":  # it never changes, and is checked at every assignment
            setattr(after, name, value)
    return after


def _map(function: Callable[[str, str, Tensor], Tensor], record: Any, path: str = "") -> Any:
    """The record with `function(dotted name, axis, tensor)` for its tensors; none for slots."""
    values: dict[str, Any] = {}
    for field in fields(record):
        value, name = getattr(record, field.name), path + field.name
        if is_dataclass(value):
            value = _map(function, value, f"{name}.")
        elif isinstance(value, Tensor):
            kind: Any = type(record)
            axis = axis_of(kind, field.name)
            value = None if axis == "slot" else function(name, axis, value)
        values[field.name] = value
    return type(record)(**values)


def _from_rows(rows: Float[Tensor, "row ..."], batch: Batch) -> tuple[Tensor, Tensor]:
    """The rows of the atoms, and (system, extra, ...) for those of the cells."""
    atoms, cells = _row_numbers(batch.system_idx, batch.n_atoms)
    return rows.index_select(0, atoms), rows[cells]


def _to_rows(
    atoms: Float[Tensor, "atom ..."],
    cells: Float[Tensor, "system extra ..."],
    system_idx: Int[Tensor, " atom"],
) -> Float[Tensor, "row ..."]:
    """The inverse of `_from_rows`."""
    n_atoms = torch.zeros_like(cells[:, 0].flatten(1)[:, 0], dtype=torch.long)
    n_atoms = n_atoms.index_add(0, system_idx, torch.ones_like(system_idx))
    atom_rows, cell_rows = _row_numbers(system_idx, n_atoms)
    rows = atoms.new_empty(len(atoms) + EXTRA_ROWS * len(cells), *atoms.shape[1:])
    rows[atom_rows], rows[cell_rows] = atoms, cells
    return rows


def _row_numbers(
    system_idx: Int[Tensor, " atom"], n_atoms: Int[Tensor, " system"]
) -> tuple[Int[Tensor, " atom"], Int[Tensor, "system extra"]]:
    """Where the rows of the atoms and of the cells are."""
    device, systems = system_idx.device, torch.arange(len(n_atoms), device=system_idx.device)
    atoms = torch.arange(len(system_idx), device=device) + EXTRA_ROWS * system_idx
    ends = n_atoms.cumsum(0) + EXTRA_ROWS * systems
    return atoms, ends[:, None] + torch.arange(EXTRA_ROWS, device=device)
