"""Frames of the formats that ASE reads: extxyz, databases, trajectories."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

from dpa4sim.data.frame import (
    MAGNETIC_FORCES,
    MOMENTS,
    PER_ATOM,
    Entry,
    Frame,
    LabelKeys,
    frame,
    place,
)
from dpa4sim.errors import DataError

SUBSET_KEYS = ("subset", "config_type", "head")
"""Keys of a frame's info that name its subset, the first that is there."""

VIRIAL_KEYS = ("REF_virial", "REF_virials", "virial", "virials")


def read_ase(source: str, keys: LabelKeys) -> Iterator[Entry]:
    """Labels are the keys asked for, else REF_energy and so on, else ASE's own results."""
    from dpa4sim.adapters.files import read_structures

    for record in read_structures(source):
        try:
            yield _frame(record, keys)
        except DataError as error:
            yield error


def _frame(record: Any, keys: LabelKeys) -> Frame:
    if isinstance(record.batch, DataError):
        raise record.batch
    source, _, name = record.label.rpartition("#")
    atoms = record.atoms
    if atoms is None:
        raise DataError(f"{record.label} carries no labels in this format. Use extxyz.")
    where = place(source, name, record.batch.atomic_numbers.numpy())
    names = ("energy", "forces", MAGNETIC_FORCES)
    labels = {each: _raw(atoms, each, getattr(keys, each), where) for each in names}
    labels[MOMENTS] = _moments(atoms, keys, where, labels[MAGNETIC_FORCES] is not None)
    if keys.stress is None and keys.virial is None:
        labels |= _stress_or_virial(atoms)
    else:
        asked = "stress" if keys.stress is not None else "virial"
        labels[asked] = _raw(atoms, asked, getattr(keys, asked), where)
    found = (atoms.info[key] for key in SUBSET_KEYS if key in atoms.info)
    rest: dict[str, Any] = {
        "subset": str(next(found, "")),
        "properties": {key: atoms.info.get(key) for key in keys.properties},
    }
    system = replace(record.batch, magmoms=None)  # those of `labels`, or none
    return frame(system, labels, source=source, name=name, **rest)


def _raw(atoms: Any, name: str, key: str | None, where: str) -> Any:
    """One label as the file has it."""
    table = atoms.arrays if name in PER_ATOM else atoms.info
    own = atoms.calc.results if atoms.calc is not None else {}
    if key is None:
        return table.get(f"REF_{name}", own.get(name, table.get(name)))
    value = table.get(key, own.get(name) if key == name else None)
    if value is None:
        kind = "per-atom arrays" if name in PER_ATOM else "info keys"
        have = ", ".join(k for k in table if k not in ("numbers", "positions")) or "none"
        raise DataError(
            f"{where} has no '{key}'. Its {kind}: {have}. "
            f"Name another with --{name.replace('_', '-')}-key or leave the option out."
        )
    return value


def _moments(atoms: Any, keys: LabelKeys, where: str, has_forces: bool) -> Any:
    """Magnetic moments, where somebody asks for them or there are forces on them.

    Else they are left: collinear moments that a calculation ended with are in many data sets.
    """
    if keys.magmoms is None and not (has_forces or keys.moments):
        return None
    found = _raw(atoms, MOMENTS, keys.magmoms, where)
    return atoms.arrays.get("initial_magmoms") if found is None else found


def _stress_or_virial(atoms: Any) -> dict[str, Any]:
    """REF_stress, a virial under one of its names, or the stress that ASE read."""
    if "REF_stress" in atoms.info:
        return {"stress": atoms.info["REF_stress"]}
    for key in VIRIAL_KEYS:
        if key in atoms.info:
            return {"virial": atoms.info[key]}
    return {"stress": _raw(atoms, "stress", None, "")}
