"""The table of results: one row per candidate, in parquet parts of one chunk each."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping, Sequence
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from dpa4sim.errors import ResumeError
from dpa4sim.pool.checkpoint import whole

if TYPE_CHECKING:
    from ase import Atoms

RESULTS = pa.schema(
    [
        ("id", pa.int64()),
        ("name", pa.string()),
        ("source", pa.string()),
        ("formula", pa.string()),
        ("chemical_system", pa.string()),
        ("n_atoms", pa.int32()),
        ("status", pa.string()),
        ("reason", pa.string()),
        ("flags", pa.list_(pa.string())),
        ("duplicate_of", pa.int64()),
        ("energy", pa.float64()),
        ("volume", pa.float64()),
        ("fmax", pa.float64()),
        ("max_stress", pa.float64()),
        ("steps", pa.int32()),
        ("space_group_start", pa.int16()),
        ("space_group", pa.int16()),
        ("numbers", pa.list_(pa.int16())),
        ("positions", pa.list_(pa.float64())),
        ("cell", pa.list_(pa.float64())),
        ("pbc", pa.list_(pa.bool_())),
        ("force_spread", pa.float64()),
    ]
)
"""eV for the whole cell, Å^3, eV/Å, eV/Å^3, Å; positions and cell flat.  Null is no answer."""

STRUCTURE = ("numbers", "positions", "cell", "pbc")
"""The columns that are most of the bytes."""

BUILT_IN = "built-in reference"
"""Source of the crystals that are relaxed to serve as references, not as candidates."""


def geometry(atoms: Atoms) -> dict[str, Any]:
    """The structure and its volume, as columns."""
    return {
        "volume": float(abs(np.linalg.det(atoms.cell.array))) if atoms.pbc.all() else None,
        "numbers": atoms.numbers.tolist(),
        "positions": atoms.positions.ravel().tolist(),
        "cell": atoms.cell.array.ravel().tolist(),
        "pbc": atoms.pbc.tolist(),
    }


def to_atoms(row: Mapping[str, Any]) -> Atoms:
    """The structure of a row."""
    from ase import Atoms

    return Atoms(
        numbers=row["numbers"],
        positions=np.reshape(row["positions"], (-1, 3)),
        cell=np.reshape(row["cell"], (3, 3)),
        pbc=row["pbc"],
    )


def finite(value: float) -> float | None:
    """A number, or null."""
    return value if math.isfinite(value) else None


def to_table(rows: Sequence[Mapping[str, Any]]) -> pa.Table:
    """Rows as a table; what a row does not name is null."""
    columns = {
        field.name: pa.array([row.get(field.name) for row in rows], type=field.type)
        for field in RESULTS
    }
    return pa.table(columns, schema=RESULTS)


def write_part(path: Path, table: pa.Table) -> tuple[int, str]:
    """A parquet file that appears whole or not at all; its bytes and their SHA-256."""
    buffer = BytesIO()
    pq.write_table(table, buffer, compression="zstd")
    content = buffer.getvalue()
    with whole(path) as partial:
        partial.write_bytes(content)
    return len(content), hashlib.sha256(content).hexdigest()


def is_sound(path: Path, size: int, digest: str) -> bool:
    """Whether a part is there with the bytes that were written."""
    try:
        content = path.read_bytes()
    except OSError:
        return False
    return len(content) == size and hashlib.sha256(content).hexdigest() == digest


def read_part(path: Path, size: int, digest: str, columns: Sequence[str] | None) -> pa.Table:
    """A part, or some of its columns.

    Raises:
        ResumeError: it is not what was written.
    """
    try:
        content = path.read_bytes()
    except OSError:
        content = b""
    if len(content) != size or hashlib.sha256(content).hexdigest() != digest:
        raise ResumeError(
            f"{path} is damaged or missing. Type: dpa4sim screen run {path.parents[1]}; that "
            "computes these structures again, and no others."
        )
    table = pq.read_table(BytesIO(content), columns=None if columns is None else list(columns))
    for missing in set(RESULTS.names) - set(table.column_names):  # of an earlier version
        table = table.append_column(
            RESULTS.field(missing), pa.nulls(len(table), RESULTS.field(missing).type)
        )
    return table.select(RESULTS.names if columns is None else list(columns))
