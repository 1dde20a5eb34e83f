"""Frames -> one HDF5 store, streaming, and whole or not at all.

Rows are gathered into blocks and appended to plain files beside the target, one per column.  When
the last frame has come their lengths are known, and they are copied into contiguous datasets of a
file that then takes the target's name.  What was killed leaves a folder `.NAME.part`, no store.
"""

from __future__ import annotations

import hashlib
import os
import shutil
from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import Any

import h5py
import numpy as np

from dpa4sim.batch import HEAVIEST, Batch
from dpa4sim.complaint import MIN_DISTANCE_A, PROBE_A, complaint
from dpa4sim.data.frame import Entry, Frame
from dpa4sim.data.layout import (
    COLUMNS,
    EDGES,
    FLAGS,
    FORMAT,
    SPINS,
    VERSION,
    Column,
    edges_path,
    property_column,
    property_path,
)
from dpa4sim.edges import computable, neighbors
from dpa4sim.errors import DataError
from dpa4sim.pool.progress import Progress

ATOMS_PER_BLOCK = 4096
"""Atoms of frames that are gathered, searched for neighbours and written together."""

BYTES_PER_COPY = 2**23

GEOMETRY_A = 1e-5
"""Two geometries that agree to this are one; positions in files have about as many digits."""

FAILURES = (OSError, RuntimeError)
"""What h5py and the disk raise."""


def write_store(
    path: str | Path,
    entries: Iterable[Entry],
    *,
    cutoff: float = 6.0,
    refuse: Callable[[DataError], None] | None = None,
    progress: bool | None = None,
) -> int:
    """Put frames into a store, in their order.

    Args:
        path: of the store, ending in .h5; an old one is replaced when the new one is whole.
        entries: frames, read as they are needed, and the errors of those that cannot be.
        cutoff: Å; edges are counted within it.
        refuse: what to do about a frame that cannot be used, which is then left out; None raises.
        progress: None shows a bar on a terminal.

    Returns:
        How many frames there were.

    Raises:
        DataError: a frame cannot be used, there is none, or the disk is full.
    """
    bar = Progress("convert", None, progress)
    try:
        with StoreWriter(path, cutoff, refuse) as writer:
            for entry in entries:
                writer.add(entry)
                bar.advance(1)
    finally:
        bar.close()
    return writer.n_frames


class StoreWriter:
    """A store in the making; leaving the `with` block makes it whole, an exception drops it.

    Args:
        path: of the store.
        cutoff: Å; edges are counted within it.
        refuse: as of `write_store`.
    """

    def __init__(
        self,
        path: str | Path,
        cutoff: float = 6.0,
        refuse: Callable[[DataError], None] | None = None,
    ) -> None:
        self._refuse = refuse or _raise
        self.path, self.cutoff, self.n_frames = Path(path), cutoff, 0
        self._folder = self.path.with_name(f".{self.path.name}.part")
        self._pending: list[Frame] = []
        self._pending_atoms = 0
        self._tables: dict[str, dict[str, int]] = {"sources": {}, "subsets": {}}
        self._elements: set[int] = set()
        self._narrow = True
        self._hash = hashlib.sha256()
        self._columns = dict(COLUMNS)
        self._columns |= {edges_path(cutoff, name): column for name, column in EDGES.items()}
        self._widths: dict[str, int] = {}

    def __enter__(self) -> StoreWriter:
        try:
            shutil.rmtree(self._folder, ignore_errors=True)
            self._folder.mkdir()
        except OSError as error:
            raise _unwritable(self.path, error) from error
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        try:
            if kind is None:
                self._finish()
        except FAILURES as failure:
            raise _unwritable(self.path, failure) from failure
        finally:
            shutil.rmtree(self._folder, ignore_errors=True)

    def add(self, entry: Entry) -> None:
        """One more frame, or the error of one.

        Raises:
            DataError: a frame cannot be used and nobody refuses it, or the disk is full.
        """
        if isinstance(entry, DataError):
            self._refuse(entry)
            return
        for name, value in entry.properties.items():
            width = self._widths.setdefault(name, len(value))
            if len(value) != width:
                self._refuse(_other_width(entry, name, width))
                return
        self._pending.append(entry)
        self._pending_atoms += entry.system.positions.shape[0]
        if self._pending_atoms >= ATOMS_PER_BLOCK:
            self._flush()

    def _flush(self) -> None:
        frames, self._pending, self._pending_atoms = self._pending, [], 0
        counts = self._counted(frames)
        sick = np.flatnonzero(counts[1] < MIN_DISTANCE_A).tolist()
        if sick:
            for index in sick:
                self._refuse(_unusable(frames[index]))
            frames = [frame for index, frame in enumerate(frames) if index not in set(sick)]
            counts = np.delete(counts, sick, axis=1)
        if not frames:
            return
        rows = self._rows(frames) | {
            edges_path(self.cutoff, "n_edges"): counts[0],
            edges_path(self.cutoff, "min_distance"): counts[1],
        }
        try:
            self._begin_properties()
            self._begin_spins(frames)
            for name, column in self._columns.items():
                with self._spool(name).open("ab") as file:
                    file.write(np.asarray(rows[name], _spooled(column)).tobytes())
            with self._spool("names").open("a") as file:
                file.writelines(f"{frame.name}\n" for frame in frames)
        except OSError as error:
            raise _unwritable(self.path, error) from error
        self.n_frames += len(frames)

    def _counted(self, frames: list[Frame]) -> np.ndarray:
        """Edges and shortest distances; a distance of 0 marks what must be looked at by itself."""
        if not frames:
            return np.zeros((2, 0))
        batch = Batch.concatenate(_plain(frame.system) for frame in frames)
        n_edges, closest = count_edges(batch, self.cutoff)
        nonsense = (batch.atomic_numbers < 1) | (batch.atomic_numbers > HEAVIEST)
        strange = batch.n_atoms.new_zeros(len(frames)).index_add(
            0, batch.system_idx, nonsense.long()
        )
        bad = (strange > 0) | ~computable(batch, PROBE_A) | (batch.n_atoms == 0)
        return np.stack([n_edges, np.where(bad.numpy(), 0.0, closest)])

    def _rows(self, frames: list[Frame]) -> dict[str, np.ndarray]:
        """The columns of some frames."""
        for frame in frames:
            self._hash.update(content_bytes(frame))
        batch = Batch.concatenate(_plain(frame.system) for frame in frames)
        self._elements |= set(batch.atomic_numbers.tolist())
        self._narrow &= all(frame.dtype == "float32" for frame in frames)
        properties = {
            property_path(name): np.array(
                [_or_nan(frame.properties.get(name), (width,)) for frame in frames]
            )
            for name, width in self._widths.items()
        }
        sources = [self._index("sources", frame.source) for frame in frames]
        subsets = [self._index("subsets", frame.subset) for frame in frames]
        return {
            "frames/n_atoms": batch.n_atoms.numpy(),
            "frames/cell": batch.cell.numpy(),
            "frames/pbc": batch.pbc.numpy(),
            "frames/charge": np.array([_total(frame.system.charge) for frame in frames]),
            "frames/spin": np.array([_total(frame.system.spin) for frame in frames]),
            "frames/energy": np.array([_or_nan(frame.energy, ()) for frame in frames]),
            "frames/stress": np.array([_or_nan(frame.stress, (3, 3)) for frame in frames]),
            "frames/labels": np.array([labels_of(frame) for frame in frames]),
            "frames/geometry": np.array([geometry_hash(frame.system) for frame in frames]),
            "frames/source": np.array(sources),
            "frames/subset": np.array(subsets),
            "atoms/positions": batch.positions.numpy(),
            "atoms/atomic_numbers": batch.atomic_numbers.numpy(),
            "atoms/forces": np.concatenate(
                [_or_nan(f.forces, (f.system.positions.shape[0], 3)) for f in frames]
            ),
            **properties,
            **_spins(frames),
        }

    def _begin_properties(self) -> None:
        """Columns of properties that are new, without a number for the frames before."""
        for name, width in self._widths.items():
            path = property_path(name)
            if path not in self._columns:
                self._columns[path] = property_column(width)
                self._spool(path).write_bytes(np.full((self.n_frames, width), np.nan).tobytes())

    def _begin_spins(self, frames: list[Frame]) -> None:
        """Columns of spins from the first frame that has some, without a number before."""
        if "atoms/magmoms" in self._columns or all(f.magmoms is None for f in frames):
            return
        before = self._spool("atoms/atomic_numbers")
        n_atoms = before.stat().st_size if before.exists() else 0  # a byte each
        for path, column in SPINS.items():
            self._columns[path] = column
            self._spool(path).write_bytes(np.full((n_atoms, 3), np.nan).tobytes())

    def _index(self, table: str, word: str) -> int:
        return self._tables[table].setdefault(word, len(self._tables[table]))

    def _spool(self, name: str) -> Path:
        return self._folder / name.replace("/", ".")

    def _finish(self) -> None:
        self._flush()
        if not self.n_frames:
            raise DataError(f"{self.path} would hold no frame. Give a file with frames.")
        partial = self._folder / "store"
        with h5py.File(partial, "w", libver="v110") as file:
            self._fill(file)
        with partial.open("rb+") as handle:
            os.fsync(handle.fileno())
        partial.replace(self.path)

    def _fill(self, file: Any) -> None:
        file.attrs["format"], file.attrs["version"] = FORMAT, VERSION
        file.attrs["content_hash"] = self._hash.hexdigest()
        file.attrs["atomic_numbers"] = sorted(self._elements)
        for name, column in self._columns.items():
            given = np.dtype("float32" if self._narrow else "float64")
            dtype = given if column.dtype is None else np.dtype(column.dtype)
            self._copy(file, name, column, dtype)
        text = h5py.string_dtype()
        for table, words in self._tables.items():
            file.create_dataset(table, data=list(words), dtype=text)
        names = file.create_dataset("names", (self.n_frames,), text)
        with self._spool("names").open() as lines:
            block: list[str] = []
            start = 0
            for line in lines:
                block.append(line[:-1])
                if len(block) == ATOMS_PER_BLOCK:
                    names[start : start + len(block)] = block
                    start, block = start + len(block), []
            if block:
                names[start:] = block

    def _copy(self, file: Any, name: str, column: Column, dtype: np.dtype) -> None:
        """A spooled column into its dataset, some megabytes at a time."""
        spooled = _spooled(column)
        width = int(np.prod(column.shape, dtype=int))
        n_rows = self._spool(name).stat().st_size // (spooled.itemsize * width)
        dataset = file.create_dataset(name, (n_rows, *column.shape), dtype)
        dataset.attrs["unit"] = column.unit
        per_copy = max(1, BYTES_PER_COPY // (spooled.itemsize * width))
        with self._spool(name).open("rb") as rows:
            for start in range(0, n_rows, per_copy):
                stop = min(n_rows, start + per_copy)
                block = np.fromfile(rows, spooled, (stop - start) * width)
                dataset[start:stop] = block.reshape(stop - start, *column.shape)


def count_edges(batch: Batch, cutoff: float) -> tuple[np.ndarray, np.ndarray]:
    """Directed edges within `cutoff` and shortest distance (Å, inf without one) per system."""
    edges = neighbors(batch, cutoff)
    ends = np.cumsum(batch.n_atoms.numpy())
    row_ptr = edges.row_ptr.numpy()
    stops = row_ptr[ends]
    n_edges = np.diff(stops, prepend=0)
    closest = np.full(len(ends), np.inf)
    some = n_edges > 0
    lengths = np.linalg.norm(edges.vector.numpy(), axis=1)
    if some.any():
        closest[some] = np.minimum.reduceat(lengths, (stops - n_edges)[some])
    return n_edges, closest


def geometry_hash(system: Batch) -> int:
    """64 bits of elements, positions to `GEOMETRY_A`, cell, pbc, charge, spin and moments."""
    digest = hashlib.blake2b(digest_size=8)
    digest.update(system.atomic_numbers.numpy().astype(np.uint8).tobytes())
    for values in (system.positions, system.cell):
        digest.update(np.rint(values.numpy() / GEOMETRY_A).astype(np.int64).tobytes())
    digest.update(system.pbc.numpy().tobytes())
    digest.update(repr([_total(system.charge), _total(system.spin)]).encode())
    if system.magmoms is not None:
        digest.update(np.rint(system.magmoms.numpy() / GEOMETRY_A).astype(np.int64).tobytes())
    return int.from_bytes(digest.digest(), "little")


def content_bytes(frame: Frame) -> bytes:
    """What the content hash sees of a frame: all of it except where it comes from."""
    system = frame.system
    parts: list[np.ndarray] = [
        np.array([system.positions.shape[0], labels_of(frame)], np.int64),
        system.atomic_numbers.numpy().astype(np.uint8),
        system.positions.numpy(),
        system.cell.numpy(),
        system.pbc.numpy(),
        np.array([_total(system.charge), _total(system.spin), _or_nan(frame.energy, ())]),
        _or_nan(frame.forces, (0, 3)),
        _or_nan(frame.stress, (0, 3)),
    ]
    found = b"".join(part.tobytes() for part in parts) + frame.subset.encode() + b"\0"
    for name, value in sorted(frame.properties.items()):
        found += name.encode() + b"\0" + value.tobytes()
    for spins in (frame.magmoms, frame.magnetic_forces):  # `labels_of` says which are there
        found += b"" if spins is None else spins.tobytes()
    return found


def labels_of(frame: Frame) -> int:
    """Bits of the labels that a frame has."""
    return sum(bit for name, bit in FLAGS.items() if getattr(frame, name) is not None)


def _unusable(frame: Frame) -> DataError:
    reason = complaint(frame.system) or "its geometry cannot be used"
    return DataError(f"{frame.where} cannot be used: {reason}. Repair or remove it.")


def _other_width(frame: Frame, name: str, width: int) -> DataError:
    return DataError(
        f"{frame.where}: its property '{name}' has {len(frame.properties[name])} numbers, and "
        f"those before it have {width}. Give each frame as many."
    )


def _raise(error: DataError) -> None:
    raise error


def _plain(system: Batch) -> Batch:
    """Without charge and spin, which have columns of their own and need not be there."""
    return replace(system, charge=None, spin=None)


def _spooled(column: Column) -> np.dtype:
    return np.dtype(column.dtype or "float64")


def _spins(frames: list[Frame]) -> dict[str, np.ndarray]:
    """The columns of spins; NaN for frames without."""
    return {
        path: np.concatenate([
            _or_nan(getattr(f, path.removeprefix("atoms/")), (len(f.system.positions), 3))
            for f in frames
        ])
        for path in SPINS
    }  # fmt: skip


def _total(value: Any) -> float:
    return float("nan") if value is None else float(value[0])


def _or_nan(value: Any, shape: tuple[int, ...]) -> np.ndarray:
    return np.full(shape, np.nan) if value is None else np.asarray(value, np.float64)


def _unwritable(path: Path, error: Exception) -> DataError:
    return DataError(f"{path} cannot be written: {error}. Make room or give another path.")
