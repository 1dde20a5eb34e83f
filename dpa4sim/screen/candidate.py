"""A candidate, and its structure as a few hundred bytes."""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from ase import Atoms

HEADER = struct.Struct("<IIB2d")
"""Atoms, fixed atoms, periodic directions as bits, charge and spin (NaN when not given)."""


@dataclass(frozen=True)
class Candidate:
    """What enters a campaign.

    Args:
        name: for people.
        source: where it is from, such as path#index.
        atoms: None when it cannot be read.
        reason: why not.
    """

    name: str
    source: str
    atoms: Atoms | None
    reason: str = ""


def pack(atoms: Atoms) -> bytes:
    """Elements, positions, cell, periodicity, charge, spin and fixed atoms, to the last bit.

    Raises:
        DataError: what cannot be kept: a partially occupied site, another constraint than
            FixAtoms, a charge that is no number.
    """
    from dpa4sim.adapters.ase import fixed_atoms, from_atoms

    from_atoms(atoms)
    fixed = np.asarray(fixed_atoms(atoms), dtype="<u4")
    bits = int(np.packbits(atoms.pbc, bitorder="little")[0])
    given = (atoms.info.get(name) for name in ("charge", "spin"))
    state = (float("nan") if value is None else float(value) for value in given)
    parts = [
        HEADER.pack(len(atoms), len(fixed), bits, *state),
        atoms.numbers.astype("<i2").tobytes(),
        atoms.positions.astype("<f8").tobytes(),
        atoms.cell.array.astype("<f8").tobytes(),
        fixed.tobytes(),
    ]
    return b"".join(parts)


def unpack(packed: bytes) -> Atoms:
    """The structure of `pack`."""
    from ase import Atoms
    from ase.constraints import FixAtoms

    n, n_fixed, bits, charge, spin = HEADER.unpack_from(packed)
    counts = (("<i2", n), ("<f8", 3 * n), ("<f8", 9), ("<u4", n_fixed))
    arrays, start = [], HEADER.size
    for kind, count in counts:
        arrays.append(np.frombuffer(packed, kind, count, start))
        start += count * np.dtype(kind).itemsize
    numbers, positions, cell, fixed = arrays
    given = (("charge", charge), ("spin", spin))
    return Atoms(
        numbers=numbers,
        positions=positions.reshape(-1, 3),
        cell=cell.reshape(3, 3),
        pbc=[bool(bits >> axis & 1) for axis in range(3)],
        info={name: value for name, value in given if not np.isnan(value)},
        constraint=FixAtoms(fixed.astype(int)) if n_fixed else None,
    )
