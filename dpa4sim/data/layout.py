"""The columns of a store and where they lie.

    frames/...   one row per frame      atoms/...   one row per atom, frame after frame
    edges/...    one row per frame: edges within a cutoff, shortest pair distance
    atoms/magmoms, atoms/magnetic_forces   in stores of structures with spins only
    properties/  one row per frame, as many numbers as the property has; NaN where there is none
    names        of the frames; sources, subsets: tables that frames/source and frames/subset index

Columns are contiguous in the file, without chunks or filters: a row lies at a known place.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

FORMAT = "dpa4sim store"
VERSION = 1

ENERGY, FORCES, STRESS = 1, 2, 4
FLAGS = {"energy": ENERGY, "forces": FORCES, "stress": STRESS, "magnetic_forces": 8, "magmoms": 16}
"""Bits of frames/labels."""


@dataclass(frozen=True)
class Column:
    """One array.

    Args:
        shape: of a row.
        dtype: in the file; None for what the labels were given in, float32 or float64.
        unit: for the reader of the file.
    """

    shape: tuple[int, ...]
    dtype: str | None
    unit: str = ""


COLUMNS = {
    "frames/n_atoms": Column((), "int32"),
    "frames/cell": Column((3, 3), "float64", "Å"),
    "frames/pbc": Column((3,), "bool"),
    "frames/charge": Column((), "float64", "e"),
    "frames/spin": Column((), "float64", "multiplicity"),
    "frames/energy": Column((), "float64", "eV"),
    "frames/stress": Column((3, 3), "float64", "eV/Å^3, tension positive"),
    "frames/labels": Column((), "uint8", "bits: 1 energy, 2 forces, 4 stress, 8, 16 spins"),
    "frames/geometry": Column((), "uint64", "hash of elements, positions to 1e-5 Å and cell"),
    "frames/source": Column((), "int32"),
    "frames/subset": Column((), "int32"),
    "atoms/positions": Column((3,), None, "Å"),
    "atoms/atomic_numbers": Column((), "uint8"),
    "atoms/forces": Column((3,), None, "eV/Å"),
}
"""NaN in charge, spin, energy, stress and forces where there is none."""

SPINS = {
    "atoms/magmoms": Column((3,), None, "Bohr magnetons"),
    "atoms/magnetic_forces": Column((3,), None, "eV per Bohr magneton"),
}
"""Columns that a store has from the first frame with spins on; NaN for frames without."""

EDGES = {
    "n_edges": Column((), "int32"),
    "min_distance": Column((), "float32", "Å, inf without a pair within the cutoff"),
}


def edges_path(cutoff: float, name: str) -> str:
    """Where a count of edges lies."""
    return f"edges/{cutoff:g}/{name}"


def property_path(name: str) -> str:
    """Where a property lies."""
    return f"properties/{name}"


def property_column(width: int) -> Column:
    """The column of a property of so many numbers."""
    return Column((width,), "float64", "of the labels")


def row_bytes(column: Column, dtype: np.dtype) -> int:
    """Bytes of one row."""
    return dtype.itemsize * int(np.prod(column.shape, dtype=int))
