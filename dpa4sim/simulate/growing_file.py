"""The HDF5 side of a trajectory writer: rows are gathered, then appended, then counted.

Nothing here knows of threads or devices.  A file whose writer was killed reads as it was at its
last `append`; a machine that lost its power may have lost what no `sync` had reached, and in the
worst case the file.

HDF5 does not survive a write that fails: it can neither go on nor close the file, and takes the
process down at its end.  So room is reserved on the disk before HDF5 writes; a full disk is
noticed there, while the file is sound.
"""

from __future__ import annotations

import errno
import os
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from dpa4sim.errors import DataError
from dpa4sim.simulate.layout import Counts, groups_of, growing, read_counts, read_header

FILE_FORMAT = ("v110", "v110")
"""HDF5's own file format: the first that can be read while it is written."""

PER_WRITE = 2**22
"""Bytes that are gathered before they are worth an append."""

PATIENCE_S = 0.2
"""Seconds after which an append is due, however little there is."""

METADATA_BYTES = 2**20
"""Room that is reserved for what HDF5 writes besides chunks: headers and the start of indices."""

PER_CHUNK_BYTES = 128
"""Room that is reserved for a chunk's entry in an index."""

END_AT = 28
"""Byte of the superblock, version 3, at which the address of the end of the file stands."""

OPEN_AT = 11
"""Byte of the superblock that is not zero while a writer has the file open."""

FAILURES = (OSError, RuntimeError, ValueError)
"""What h5py raises when HDF5 or the disk says no."""


class GrowingFile:
    """A trajectory file, open for appending.

    Args:
        path: of a file that `build` made and that nobody else writes.

    Raises:
        DataError: it cannot be opened.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            self._start = path.stat().st_size
            reserve(path, self._start + METADATA_BYTES)
            self._file = _open_beside_readers(path)
        except FAILURES as error:
            raise DataError(f"{path} cannot be opened for writing: {error}.") from error
        self.header = read_header(self._file)
        self.recording = self.header["recording"]
        self.counts = read_counts(self._file, self.recording)
        self.n_atoms: np.ndarray = self._file["systems/n_atoms"][:]
        self._timestep = self._file["systems/timestep"][:]
        self._rows = self.counts.rows
        self._since = 0.0
        self._bytes = 0
        self._parts: dict[str, list[np.ndarray]] = {}
        intervals = {name: each[0].interval for name, each in groups_of(self.recording).items()}
        self._interval = {"frames": self.recording.interval, **intervals}
        self._latest = {group: self._latest_steps(group) for group in self._interval}
        self._columns = {path: self._file[path] for path in self._paths() if growing(path)}
        self._counts_at_start = self.counts

    @property
    def patience(self) -> float | None:
        """Seconds until an append is due; None while there is nothing to append."""
        if not self._parts:
            return None
        if self._bytes >= PER_WRITE:
            return 0.0
        return max(0.0, self._since + PATIENCE_S - time.monotonic())

    def gather(
        self, group: str, systems: np.ndarray, values: Mapping[str, np.ndarray], last: bool
    ) -> None:
        """Keep the rows that are due until the next append.

        Args:
            group: "frames" or one of observables.
            systems: of each slot.
            values: one row per slot, or per atom of the slots; `step` is among them.
            last: whether any step will do.
        """
        steps = values["step"]
        due = steps > self._latest[group][systems]
        if not last:
            due &= steps % self._interval[group] == 0
        if not due.any():
            return
        if not self._parts:
            self._since = time.monotonic()
        systems, n_atoms = systems[due], self.n_atoms[systems]
        self._latest[group][systems] = steps[due]
        self._keep(f"{group}/system", systems.astype(np.int32))
        self._keep(f"{group}/time", steps[due] * self._timestep[systems])
        if group == "frames":
            stop = self._rows + np.cumsum(n_atoms[due])
            self._keep("frames/start", stop - n_atoms[due])
            self._rows = int(stop[-1])
        of_atoms = due if due.all() else np.repeat(due, n_atoms)
        for name, rows in values.items():
            by_atom = f"rows/{name}" in self._columns and group == "frames"
            path = f"rows/{name}" if by_atom else f"{group}/{name}"
            self._keep(path, _chosen(rows, of_atoms if by_atom else due))

    def append(self) -> None:
        """Write what was gathered, then count it."""
        if not self._parts:
            return
        parts = {path: np.concatenate(rows) for path, rows in self._parts.items()}
        self.forget()
        self._reserve({path: len(rows) for path, rows in parts.items()})
        for path, rows in parts.items():
            column, start = self._columns[path], self.counts.of(path)
            column.resize(start + len(rows), axis=0)
            column[start:] = rows
        self._file.flush()
        counts = Counts(
            frames=self.counts.frames + len(parts.get("frames/system", ())),
            rows=self._rows,
            samples={
                group: n + len(parts.get(f"{group}/system", ()))
                for group, n in self.counts.samples.items()
            },
        )
        self._file["counts"][:] = vector_of(counts)
        self._file.flush()
        self.counts = counts

    def forget(self) -> None:
        """Drop what was gathered."""
        self._parts, self._bytes = {}, 0

    def sync(self) -> None:
        """Wait until the disk has it."""
        self._file.flush()
        os.fsync(self._file.id.get_vfd_handle())

    def close(self) -> None:
        """Let go of the file; what was gathered and not appended is lost."""
        self.sync()
        self._file.close()
        if closed(self.path):  # not while a reader in this process holds it open
            trim(self.path)

    def _keep(self, path: str, rows: np.ndarray) -> None:
        self._parts.setdefault(path, []).append(rows)
        self._bytes += rows.nbytes

    def _reserve(self, more: Mapping[str, int]) -> None:
        """Room for so many more rows; an OSError when the disk has none, before HDF5 notices.

        HDF5 cuts the file to what it uses at every flush, and with it what was reserved.
        """
        needed = self._start + METADATA_BYTES
        for path, column in self._columns.items():
            chunk_bytes = column.dtype.itemsize * int(np.prod(column.chunks)) + PER_CHUNK_BYTES
            n_rows = self.counts.of(path) + more.get(path, 0)
            old = -(-self._counts_at_start.of(path) // column.chunks[0])
            needed += chunk_bytes * (-(-n_rows // column.chunks[0]) - old)
        reserve(self.path, needed)

    def _paths(self) -> list[str]:
        names: list[str] = []
        self._file.visit(names.append)
        return [name for name in names if isinstance(self._file[name], h5py.Dataset)]

    def _latest_steps(self, group: str) -> np.ndarray:
        latest = np.full(len(self.n_atoms), -1)
        n = self.counts.of(f"{group}/system")
        systems, steps = (self._file[f"{group}/{name}"][:n] for name in ("system", "step"))
        np.maximum.at(latest, systems, steps)
        return latest


def build(path: Path, fill: Callable[[Any], None], n_bytes: int) -> None:
    """Make a file under another name and give it its own when it is whole and on the disk.

    Args:
        path: of the file.
        fill: what to do with the empty HDF5 file.
        n_bytes: of what it will fill in; room for them and `METADATA_BYTES` is reserved.

    Raises:
        DataError: it cannot be written.
    """
    partial = path.with_name(path.name + ".part")
    try:
        partial.write_bytes(b"")
        reserve(partial, n_bytes + METADATA_BYTES)  # HDF5 gives it back for a moment
        with h5py.File(partial, "w", libver=FILE_FORMAT, locking="best-effort") as file:
            reserve(partial, n_bytes + METADATA_BYTES)
            fill(file)
        trim(partial)
        _sync_path(partial)
        os.replace(partial, path)
        _sync_path(path.parent)
    except FAILURES as error:
        with suppress(OSError):
            partial.unlink(missing_ok=True)
        raise DataError(
            f"{path} cannot be written: {error}. Make room or give another path."
        ) from error


def reserve(path: Path, n_bytes: int) -> None:
    """Make the disk promise the first bytes of a file; where it cannot be asked, go on."""
    size = path.stat().st_size
    if n_bytes <= size or not hasattr(os, "posix_fallocate"):
        return
    try:
        with path.open("r+b") as file:
            os.posix_fallocate(file.fileno(), size, n_bytes - size)
    except OSError as error:
        if error.errno not in (errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL):
            raise


def trim(path: Path) -> None:
    """Give back what was reserved behind the end that the superblock of a closed file names."""
    with path.open("r+b") as file:
        file.seek(END_AT)
        file.truncate(int.from_bytes(file.read(8), "little"))


def copy_counted(source: Any, target: Any, counts: Counts) -> None:
    """Everything of a file up to `counts`, a few megabytes at a time."""
    target.attrs.update(source.attrs)

    def visit(name: str, item: Any) -> None:
        if not isinstance(item, h5py.Dataset):
            return
        if growing(name):
            n, shape = counts.of(name), (0, *item.shape[1:])
            copy = target.create_dataset(
                name, shape, item.dtype, maxshape=item.maxshape, chunks=item.chunks
            )
            copy.resize(n, axis=0)
            chunk_bytes = item.dtype.itemsize * int(np.prod(item.chunks))
            per_read = item.chunks[0] * max(1, PER_WRITE // chunk_bytes)
            for start in range(0, n, per_read):
                stop = min(n, start + per_read)
                copy[start:stop] = item[start:stop]
        else:
            value = vector_of(counts) if name == "counts" else item[()]
            copy = target.create_dataset(name, data=value)
        copy.attrs.update(item.attrs)

    source.visititems(visit)


def closed(path: Path) -> bool:
    """Whether the last writer closed the file."""
    with path.open("rb") as file:
        return file.read(OPEN_AT + 1)[OPEN_AT] == 0


def vector_of(counts: Counts) -> np.ndarray:
    """The counts as the file holds them."""
    return np.array([counts.frames, counts.rows, *counts.samples.values()], np.int64)


def _open_beside_readers(path: Path) -> Any:
    """Open for writing and for readers at once: no moment at which a kill leaves half of that."""
    access = h5py.h5p.create(h5py.h5p.FILE_ACCESS)
    access.set_libver_bounds(h5py.h5f.LIBVER_V110, h5py.h5f.LIBVER_V110)
    access.set_file_locking(True, True)
    flags = h5py.h5f.ACC_RDWR | h5py.h5f.ACC_SWMR_WRITE
    return h5py.File(h5py.h5f.open(os.fsencode(path), flags, fapl=access))


def _chosen(rows: np.ndarray, due: np.ndarray) -> np.ndarray:
    return rows if due.all() else rows[due]


def _sync_path(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
