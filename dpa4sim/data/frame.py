"""A labelled structure, and what makes its labels acceptable."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from jaxtyping import Float

from dpa4sim.batch import Batch
from dpa4sim.errors import DataError
from dpa4sim.units import GPA_PER_EV_A3

QUANTITIES = ("energy", "forces", "stress")

MOMENTS, MAGNETIC_FORCES = "magmoms", "magnetic_forces"
"""What structures with spins have besides: the moments are given, the forces on them labels."""

PER_ATOM = ("forces", MOMENTS, MAGNETIC_FORCES)

EV_A3_PER_KBAR = 0.1 / GPA_PER_EV_A3
"""1 kBar in eV/Å^3."""


@dataclass(frozen=True)
class Frame:
    """One labelled structure as read from a file; None where the file says nothing.

    Args:
        where: "train.extxyz#412 (Cs2AgBiBr6, 40 atoms)", for messages.
        system: the structure, one system in float64.
        energy: eV.
        forces: (atom, 3) eV/Å.
        stress: (3, 3) eV/Å^3, tension positive (ASE's sign).
        subset: name of the subset for per-subset tables.
        source: the file; `name` is the frame's name in it.
        dtype: precision in which the file holds positions and forces.
        properties: numbers of each property that was asked for, by name, float64.
        magnetic_forces: (atom, 3) -dE/dm in eV per Bohr magneton; the moments m are the system's.
    """

    where: str
    system: Batch
    energy: float | None
    forces: np.ndarray | None
    stress: np.ndarray | None
    subset: str = ""
    source: str = ""
    name: str = ""
    dtype: str = "float64"
    properties: Mapping[str, np.ndarray] = field(default_factory=dict)
    magnetic_forces: np.ndarray | None = None

    @property
    def magmoms(self) -> np.ndarray | None:
        """(atom, 3) magnetic moments in Bohr magnetons; None where the file has none."""
        return None if self.system.magmoms is None else self.system.magmoms.numpy()


type Entry = Frame | DataError
"""A frame, or why it cannot be used: one broken frame does not hide the others."""


@dataclass(frozen=True, kw_only=True)
class LabelKeys:
    """Where a format keeps its labels; None takes the usual places, in their order.

    Args:
        energy: eV.  extxyz, ASE: REF_energy, energy; MPtrj: uncorrected_total_energy.
        forces: eV/Å.  extxyz, ASE: REF_forces, forces.
        stress: eV/Å^3, tension positive; kBar in VASP's sign in MPtrj.
        virial: eV, minus volume times stress.
        properties: names of properties of the structure to read besides.  DeePMD: NAME.npy;
            extxyz, ASE: the key of a frame's info.
        magmoms: Bohr magnetons, one vector to each atom, or one number along z.  DeePMD: spin.npy;
            extxyz, ASE: REF_magmoms, magmoms, initial_magmoms, where there are magnetic forces.
        magnetic_forces: -dE/dm, eV per Bohr magneton.  DeePMD: force_mag.npy; extxyz, ASE:
            REF_magnetic_forces, magnetic_forces.
        moments: read magnetic moments also where there are no magnetic forces.
    """

    energy: str | None = None
    forces: str | None = None
    stress: str | None = None
    virial: str | None = None
    properties: tuple[str, ...] = ()
    magmoms: str | None = None
    magnetic_forces: str | None = None
    moments: bool = False


def frame(
    system: Batch,
    labels: Mapping[str, Any],
    *,
    source: str,
    name: str,
    properties: Mapping[str, Any] | None = None,
    **rest: Any,
) -> Frame:
    """A frame from raw labels: checked, in their final shapes, a virial turned into a stress.

    Args:
        system: the structure.
        labels: energy, forces, stress, virial, magmoms, magnetic_forces, as far as they are there.
        source: the file.
        name: of the frame in it.
        properties: raw numbers by name, None where there is none.
        rest: `subset` and `dtype`.

    Raises:
        DataError: a label is not finite or has a wrong shape, or there are magnetic forces without
            moments.
    """
    numbers = system.atomic_numbers.numpy()
    where = place(source, name, numbers)
    found = {
        key: None if value is None else checked(value, key, len(numbers), where)
        for key, value in labels.items()
    }
    stress, virial = found.get("stress"), found.get("virial")
    volume = float(system.volume[0])
    if stress is None and virial is not None and volume > 0:
        stress = -virial / volume
    energy, forces = found.get("energy"), found.get("forces")
    magnetic = found.get(MAGNETIC_FORCES)
    if found.get(MOMENTS) is not None:
        system = replace(system, magmoms=torch.tensor(found[MOMENTS]))
    if magnetic is not None and system.magmoms is None:
        raise DataError(
            f"{where} has magnetic forces and no magnetic moments. DeePMD data has them in "
            "spin.npy; extxyz in the per-atom array 'magmoms', or name it with --magmoms-key."
        )
    known = {
        key: checked(value, key, 0, where, of_property=True)
        for key, value in (properties or {}).items()
        if value is not None
    }
    rest |= {"source": source, "name": name, "properties": known, "magnetic_forces": magnetic}
    return Frame(where, system, energy, forces, stress, **rest)


def place(source: str, name: str, numbers: np.ndarray) -> str:
    """What a frame is called in messages."""
    n_atoms = len(numbers)
    counted = "1 atom" if n_atoms == 1 else f"{n_atoms} atoms"
    return f"{source}#{name} ({formula(numbers.astype(np.int64).tobytes())}, {counted})"


def checked(value: Any, name: str, n_atoms: int, where: str, *, of_property: bool = False) -> Any:
    """Energy as a float, forces per atom, stress or virial as a matrix (from 9 or Voigt's 6).

    Moments given as one number to each atom are along z.  A property is any number of numbers, one
    after another.

    Raises:
        DataError: it is no number, not finite, or of another shape.
    """
    try:
        label = np.asarray(value, dtype=float)
    except (TypeError, ValueError) as error:
        raise DataError(
            f"{where}: its {name} label is not a number. Repair or remove it."
        ) from error
    shape = (label.size,) if of_property else _shape_of(label, name, n_atoms)
    if shape is None or not label.size:
        wanted = {"energy": "one number"} | dict.fromkeys(PER_ATOM, f"({n_atoms}, 3)")
        raise DataError(
            f"{where}: its {name} label has the shape {label.shape}. Give "
            f"{wanted.get(name, '(3, 3) or 6')}."
        )
    if not np.isfinite(label).all():
        bad = np.argwhere(~np.isfinite(label.reshape(shape)))[0]
        at = f" (atom {bad[0]})" if name in PER_ATOM and not of_property else ""
        raise DataError(f"{where}: its {name} label is not finite{at}. Repair or remove the frame.")
    if of_property:
        return label.ravel()
    if name == "energy":
        return label.item()
    if name == MOMENTS and label.ndim == 1:
        return np.stack([0 * label, 0 * label, label], 1)
    return from_voigt(label.ravel()) if shape == (6,) else label.reshape(shape)


def from_voigt(six: Float[np.ndarray, "6"]) -> Float[np.ndarray, "3 3"]:
    """The symmetric matrix of xx, yy, zz, yz, xz, xy."""
    xx, yy, zz, yz, xz, xy = six
    return np.array([[xx, xy, xz], [xy, yy, yz], [xz, yz, zz]])


@lru_cache(maxsize=4096)
def formula(numbers: bytes) -> str:
    """Chemical formula of int64 atomic numbers, or `?` where one is no element."""
    from ase.formula import Formula

    from dpa4sim.batch import symbol

    symbols = [symbol(z) for z in np.frombuffer(numbers, np.int64).tolist()]
    try:
        return str(Formula.from_list(symbols).format("hill"))
    except ValueError:
        return "?"


def _shape_of(label: np.ndarray, name: str, n_atoms: int) -> tuple[int, ...] | None:
    """The final shape; None when the label cannot have it."""
    if name == "energy":
        return () if label.size == 1 else None
    if name == MOMENTS and label.shape == (n_atoms,):
        return label.shape
    if name in PER_ATOM:
        return (n_atoms, 3) if label.shape == (n_atoms, 3) else None
    if label.size == 9:
        return (3, 3)
    return (6,) if label.size == 6 else None
