"""DeePMD systems: `npy`, `npy/mixed` and HDF5, which hold the same arrays.

    type.raw, type_map.raw, nopbc, set.*/{coord,box,energy,force,virial,real_atom_types,
                                          spin,force_mag}

One row of an array is a frame.  Arrays are read a block of rows at a time; positions in Å, energies
and virials in eV, virial = -volume * stress; spins in Bohr magnetons, force_mag = -dE/dspin.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch

from dpa4sim.batch import Batch
from dpa4sim.data.frame import MAGNETIC_FORCES, MOMENTS, PER_ATOM, Entry, LabelKeys, frame
from dpa4sim.errors import DataError

FRAMES_PER_BLOCK = 256
"""Rows that are read at once."""

FORCE_MAG = "force_mag"

VIRTUAL = -1
"""Type of a place without an atom in a mixed system."""


_PROPERTY = "property "
"""Before the name of a property, which may be called like another array."""


class Folder:
    """A system in a folder of .npy files."""

    def __init__(self, source: str) -> None:
        self.source, self._path = source, Path(source)

    def sets(self) -> list[str]:
        """Names of the sets, in order."""
        return sorted(path.name for path in self._path.glob("set.*") if path.is_dir())

    def array(self, name: str) -> Any:
        """Memory-mapped; None when it is not there."""
        file = self._path / f"{name}.npy"
        return np.load(file, mmap_mode="r") if file.exists() else None

    def words(self, name: str) -> list[str] | None:
        """The entries of a raw file as text; None when it is not there."""
        file = self._path / name
        return file.read_text().split() if file.exists() else None

    def has(self, name: str) -> bool:
        """Whether there is such an entry."""
        return (self._path / name).exists()


class Group:
    """A system in a group of an HDF5 file."""

    def __init__(self, source: str, group: Any) -> None:
        self.source, self._group = source, group

    def sets(self) -> list[str]:
        """Names of the sets, in order."""
        return sorted(name for name in self._group if name.startswith("set."))

    def array(self, name: str) -> Any:
        """An HDF5 dataset; None when it is not there."""
        return self._group.get(f"{name}.npy")

    def words(self, name: str) -> list[str] | None:
        """The entries of a raw file as text; None when it is not there."""
        if name not in self._group:
            return None
        values = np.atleast_1d(self._group[name][()]).ravel().tolist()
        return [v.decode() if isinstance(v, bytes) else str(v) for v in values]

    def has(self, name: str) -> bool:
        """Whether there is such an entry."""
        return name in self._group


type System = Folder | Group


def read_npy(source: str, keys: LabelKeys) -> Iterator[Entry]:
    """A folder with type.raw; mixed when its sets have real_atom_types.npy."""
    return _frames(Folder(source), keys)


def read_hdf5(source: str, keys: LabelKeys) -> Iterator[Entry]:
    """`file.hdf5`, all systems in it, or `file.hdf5#/path`, that one and those below it."""
    import h5py

    file, _, inside = source.partition("#")
    with h5py.File(file, "r") as handle:
        if inside and inside not in handle:
            raise DataError(f"{file} has no group {inside}. Its groups: {', '.join(handle)}.")
        root = handle[inside or "/"]
        names: list[str] = [""] if "type.raw" in root else []
        root.visit(lambda name: names.append(name) if name + "/type.raw" in root else None)
        if not names:
            raise DataError(
                f"{source} holds no DeePMD system and is no store. A system has type.raw and set.*."
            )
        for name in names:
            group = root[name] if name else root
            yield from _frames(Group(f"{file}#{group.name}", group), keys)


def atomic_numbers(names: list[str], source: str) -> np.ndarray:
    """Atomic numbers of the words of a type_map.

    Raises:
        DataError: one is no chemical symbol.
    """
    from ase.data import atomic_numbers as known

    strange = [name for name in names if known.get(name, 0) == 0]
    if strange:
        raise DataError(
            f"{source}: '{strange[0]}' in type_map.raw is no chemical symbol. Name real elements."
        )
    return np.array([known[name] for name in names], np.int64)


def numbers_of(types: np.ndarray, table: np.ndarray, where: str) -> np.ndarray:
    """Atomic numbers of type indices, none of them virtual.

    Raises:
        DataError: an index has no name.
    """
    if len(types) and not 0 <= types.min() <= types.max() < len(table):
        raise DataError(
            f"{where} has atom type {types.max()}, and its type_map has {len(table)} entries. "
            "Types count from 0."
        )
    return table[types]


def system_of(positions: np.ndarray, numbers: np.ndarray, cell: np.ndarray | None) -> Batch:
    """Periodic in three directions, or open when there is no cell or an empty one."""
    periodic = cell is not None and bool(np.any(cell))
    box = torch.tensor(np.asarray(cell, np.float64).reshape(3, 3)) if periodic else None
    return Batch.single(
        torch.tensor(np.asarray(positions, np.float64).reshape(-1, 3)),
        torch.tensor(numbers),
        box,
        periodic,
    )


def _frames(system: System, keys: LabelKeys) -> Iterator[Entry]:
    names = system.words("type_map.raw")
    types = system.words("type.raw")
    if names is None or types is None:
        missing = "type_map.raw" if names is None else "type.raw"
        raise DataError(f"{system.source} has no {missing}. Write one chemical symbol per type.")
    table = atomic_numbers(names, system.source)
    sets = system.sets()
    if not sets:
        raise DataError(f"{system.source} has no set.* with frames. Give a whole system.")
    types_of_all = np.array(types, np.int64)
    first = 0
    for name in sets:
        try:
            arrays = _arrays(system, name, keys, len(types_of_all))
            yield from _frames_of_set(system, arrays, types_of_all, table, first)
            first += len(arrays["coord"])
        except (DataError, OSError, ValueError) as error:
            yield DataError(f"{system.source}/{name} cannot be read: {error}")


def _arrays(system: System, name: str, keys: LabelKeys, n_atoms: int) -> dict[str, Any]:
    """The arrays of a set, the right shapes being sure."""
    places = {"energy": keys.energy or "energy", "forces": keys.forces or "force"}
    places |= {MOMENTS: keys.magmoms or "spin", MAGNETIC_FORCES: keys.magnetic_forces or FORCE_MAG}
    if keys.stress is not None:
        places["stress"] = keys.stress
    elif keys.virial is not None or system.has(f"{name}/virial.npy"):
        places["virial"] = keys.virial or "virial"
    else:
        places["stress"] = "stress"
    asked = {"energy": keys.energy, "forces": keys.forces, "stress": keys.stress}
    asked |= {"virial": keys.virial, MOMENTS: keys.magmoms}
    asked[MAGNETIC_FORCES] = keys.magnetic_forces
    found = {label: system.array(f"{name}/{place}") for label, place in places.items()}
    for label, key in asked.items():
        if key is not None and found.get(label) is None:
            dashed = label.replace("_", "-")
            raise DataError(f"it has no {key}.npy. Leave out --{dashed}-key or name another.")
    found |= {_PROPERTY + key: system.array(f"{name}/{key}") for key in keys.properties}
    for place in ("coord", "box", "real_atom_types"):
        found[place] = system.array(f"{name}/{place}")
    if found["coord"] is None:
        raise DataError("it has no coord.npy. Give a whole system.")
    if system.has("nopbc"):
        found["box"] = None
    elif found["box"] is None:
        raise DataError("it has no box.npy. A system without a cell has a file named nopbc.")
    arrays = {label: value for label, value in found.items() if value is not None}
    widths = {"coord": 3 * n_atoms, "box": 9, "stress": 9, "virial": 9}
    widths |= {"energy": 1, "real_atom_types": n_atoms, **dict.fromkeys(PER_ATOM, 3 * n_atoms)}
    for label, array in arrays.items():
        place = places.get(label, label.removeprefix(_PROPERTY))
        wanted = len(arrays["coord"]), widths.get(label, array.size // max(array.shape[0], 1))
        if (array.shape[0], array.size // max(array.shape[0], 1)) != wanted:
            raise DataError(f"{place}.npy has the shape {tuple(array.shape)}, wanted is {wanted}.")
    return arrays


def _frames_of_set(
    system: System, arrays: dict[str, Any], types: np.ndarray, table: np.ndarray, first: int
) -> Iterator[Entry]:
    kept = [arrays[name].dtype for name in ("coord", *PER_ATOM) if name in arrays]
    dtype = "float32" if all(each == np.float32 for each in kept) else "float64"
    for start in range(0, len(arrays["coord"]), FRAMES_PER_BLOCK):
        block = {label: array[start : start + FRAMES_PER_BLOCK] for label, array in arrays.items()}
        for row in range(len(block["coord"])):
            number = first + start + row
            one = {label: np.array(values[row]) for label, values in block.items()}
            try:
                yield _frame(system.source, number, one, types, table, dtype)
            except DataError as error:
                yield error


def _frame(
    source: str,
    number: int,
    one: dict[str, np.ndarray],
    types: np.ndarray,
    table: np.ndarray,
    dtype: str,
) -> Entry:
    kinds = one.get("real_atom_types", types).astype(np.int64)
    real = kinds != VIRTUAL
    numbers = numbers_of(kinds[real], table, f"{source}#{number}")
    system = system_of(one["coord"].reshape(-1, 3)[real], numbers, one.get("box"))
    labels: dict[str, Any] = {
        name: one[name] for name in ("energy", "stress", "virial") if name in one
    }
    labels |= {name: one[name].reshape(-1, 3)[real] for name in PER_ATOM if name in one}
    asked = {
        key.removeprefix(_PROPERTY): value
        for key, value in one.items()
        if key.startswith(_PROPERTY)
    }
    return frame(system, labels, source=source, name=str(number), dtype=dtype, properties=asked)
