"""Reference labels of structure files, in the units and signs of docs/conventions.md."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from dpa4sim.errors import DataError

if TYPE_CHECKING:
    from dpa4sim.batch import Batch

QUANTITIES = ("energy", "forces", "stress")


@dataclass(frozen=True)
class Labelled:
    """A structure and what a reference says about it; None where it says nothing.

    Args:
        where: file and frame, for messages.
        system: the structure.
        energy: eV.
        forces: (atom, 3) eV/Å.
        stress: (3, 3) eV/Å^3, tension positive.
    """

    where: str
    system: Batch
    energy: float | None
    forces: np.ndarray | None
    stress: np.ndarray | None


def read_labelled(path: Path, keys: Mapping[str, str | None]) -> Iterator[Labelled]:
    """Frame after frame, so that a file need not fit in memory.

    Args:
        path: any format of `adapters.files`; extxyz carries labels.
        keys: for each of QUANTITIES the key of its label; None takes REF_energy and so on where
            a frame has it, else what ASE reads as the frame's own results.

    Raises:
        DataError: no such file, nothing in it, or a frame or label that cannot be used.
    """
    from dpa4sim.adapters.files import read_structures

    for record in read_structures(path):
        if isinstance(record.batch, DataError):
            raise record.batch
        atoms = record.atoms
        if atoms is None:
            raise DataError(f"{record.label} carries no labels in this format. Use extxyz.")
        where = f"{record.label} ({atoms.get_chemical_formula()}, {len(atoms)} atoms)"
        found = {name: _label(atoms, name, keys.get(name), where) for name in QUANTITIES}
        yield Labelled(where, record.batch, **found)


def _label(atoms: Any, name: str, key: str | None, where: str) -> Any:
    """One label, checked and in its final shape."""
    table = atoms.arrays if name == "forces" else atoms.info
    own = atoms.calc.results if atoms.calc is not None else {}
    if key is None:
        value = table.get(f"REF_{name}", own.get(name))
    else:
        value = table.get(key, own.get(name) if key == name else None)
        if value is None:
            kind = "per-atom arrays" if name == "forces" else "info keys"
            have = ", ".join(k for k in table if k not in ("numbers", "positions")) or "none"
            raise DataError(
                f"{where} has no '{key}'. Its {kind}: {have}. "
                f"Name another with --{name}-key or leave the option out."
            )
    return None if value is None else _checked(value, name, len(atoms), where)


def _checked(value: Any, name: str, n_atoms: int, where: str) -> Any:
    """Energy as a float, forces per atom, stress as a matrix (from 9 or Voigt's 6 numbers)."""
    try:
        label = np.asarray(value, dtype=float)
    except (TypeError, ValueError) as error:
        raise DataError(f"{where}: its {name} label is not a number.") from error
    if not np.isfinite(label).all():
        raise DataError(f"{where}: its {name} label is not finite.")
    if name == "energy" and label.size == 1:
        return label.item()
    if name == "forces" and label.shape == (n_atoms, 3):
        return label
    if name == "stress" and label.size == 9:
        return label.reshape(3, 3)
    if name == "stress" and label.size == 6:
        xx, yy, zz, yz, xz, xy = label.ravel()
        return np.array([[xx, xy, xz], [xy, yy, yz], [xz, yz, zz]])
    raise DataError(f"{where}: its {name} label has the shape {label.shape}.")
