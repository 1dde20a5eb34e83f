"""A store, opened for reading: rows of a file that is never in memory as a whole.

The header is read once with h5py; then each row lies at a known byte, and `pread` fetches it.  So a
Store holds no HDF5 handle: it may be read by several threads, forked and pickled.
"""

from __future__ import annotations

import os
import weakref
from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import h5py
import numpy as np
import torch
from jaxtyping import Bool, Float, Int

from dpa4sim.batch import Batch, symbol
from dpa4sim.data.batch import LabelledBatch
from dpa4sim.data.frame import Entry, Frame, LabelKeys, place
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
    row_bytes,
)
from dpa4sim.errors import DataError
from dpa4sim.pool.progress import Progress

FRAMES_PER_BLOCK = 512
"""Frames that a pass over the whole store reads at once."""


class Place(NamedTuple):
    """Where a column lies: byte of its first row, dtype, rows."""

    offset: int
    dtype: np.dtype
    n_rows: int


def is_store(path: str | Path) -> bool:
    """Whether an HDF5 file is one of ours."""
    try:
        with h5py.File(path, "r") as file:
            return bool(file.attrs.get("format") == FORMAT)
    except OSError:
        return False


class Store:
    """Labelled frames in one HDF5 file.

    Args:
        path: a file that `dpa4sim data convert` wrote.

    Raises:
        DataError: it is no store, or it has been cut.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self._handle: int | None = None
        try:
            with h5py.File(self.path, "r") as file:
                self._read_header(file)
        except (OSError, KeyError, RuntimeError) as error:
            raise DataError(
                f"{path} cannot be opened as a store: {error}. Make one: "
                "dpa4sim data convert FILES -o NAME.h5."
            ) from error

    def __len__(self) -> int:
        return len(self.n_atoms)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_handle": None}

    def _read_header(self, file: Any) -> None:
        if file.attrs.get("format") != FORMAT or file.attrs["version"] != VERSION:
            raise OSError(f"its format is not '{FORMAT}', version {VERSION}")
        self.content_hash = str(file.attrs["content_hash"])
        self.atomic_numbers = tuple(int(z) for z in file.attrs["atomic_numbers"])
        self.subsets = tuple(file["subsets"].asstr()[:])
        self.sources = tuple(file["sources"].asstr()[:])
        self.cutoffs = tuple(sorted(float(name) for name in file["edges"]))
        widths = {name: found.shape[1] for name, found in file.get("properties", {}).items()}
        self.properties: dict[str, int] = widths
        self._columns: dict[str, Column] = dict(COLUMNS)
        for radius in self.cutoffs:
            self._columns |= {edges_path(radius, name): each for name, each in EDGES.items()}
        self._columns |= {property_path(n): property_column(w) for n, w in widths.items()}
        self.has_spins = "magmoms" in file["atoms"]
        self._columns |= SPINS if self.has_spins else {}
        self._places = {path: _place(file[path]) for path in self._columns}

    @property
    def species(self) -> tuple[str, ...]:
        """Chemical symbols of its elements, in the order of the periodic table."""
        return tuple(symbol(z) for z in self.atomic_numbers)

    @property
    def dtype(self) -> np.dtype:
        """Precision of positions and forces, as the files had it."""
        return self._places["atoms/positions"].dtype

    @cached_property
    def n_atoms(self) -> Int[np.ndarray, " frame"]:
        """Atoms of each frame."""
        return self._whole("frames/n_atoms").astype(np.int64)

    @cached_property
    def subset_of(self) -> Int[np.ndarray, " frame"]:
        """For each frame its index in `subsets`."""
        return self._whole("frames/subset")

    @cached_property
    def geometry(self) -> np.ndarray:
        """Hash of each frame's geometry: equal for duplicates."""
        return self._whole("frames/geometry")

    @cached_property
    def min_distance(self) -> Float[np.ndarray, " frame"]:
        """Shortest pair distance in Å within the largest counted cutoff, inf without a pair."""
        return self._whole(edges_path(self.cutoffs[-1], "min_distance"))

    @cached_property
    def _labels(self) -> np.ndarray:
        return self._whole("frames/labels")

    @cached_property
    def _starts(self) -> np.ndarray:
        return np.concatenate([[0], np.cumsum(self.n_atoms)])

    @cached_property
    def _totals(self) -> tuple[str, ...]:
        """Those of charge and spin that every frame has: a batch has them always or never."""
        return tuple(name for name in ("charge", "spin") if self.has(name).all())

    def has(self, name: str) -> Bool[np.ndarray, " frame"]:
        """Which frames have the label: a name of `layout.FLAGS`; or charge, spin."""
        if name in FLAGS:
            return (self._labels & FLAGS[name]) > 0
        return np.isfinite(self._whole(f"frames/{name}"))

    def has_property(self, name: str) -> Bool[np.ndarray, " frame"]:
        """Which frames have the property; `properties` has the names and their widths."""
        if name not in self.properties:
            return np.zeros(len(self), bool)
        return np.isfinite(self._whole(property_path(name))).all(1)

    def n_edges(self, cutoff: float, progress: bool | None = None) -> Int[np.ndarray, " frame"]:
        """Directed edges of each frame within `cutoff` Å; counted once, then kept in a file."""
        if cutoff in self.cutoffs:
            return self._whole(edges_path(cutoff, "n_edges")).astype(np.int64)
        kept = self.path.with_name(f"{self.path.stem}.edges-{cutoff:g}.npz")
        if kept.exists():
            with np.load(kept) as file:
                if str(file["content_hash"]) == self.content_hash:
                    return file["n_edges"]
        counts = self._count(cutoff, progress)
        _keep(kept, self.content_hash, counts)
        return counts

    def _count(self, cutoff: float, progress: bool | None) -> np.ndarray:
        from dpa4sim.data.writer import count_edges

        bar = Progress(f"edges within {cutoff:g} Å", len(self), progress)
        counts = []
        for block in self.blocks():
            counts.append(count_edges(block.batch, cutoff)[0])
            bar.advance(len(block.frame))
        bar.close()
        return np.concatenate(counts)

    def batch(self, frames: Sequence[int] | np.ndarray) -> LabelledBatch:
        """The named frames, in the given order.

        Raises:
            DataError: none is named, or one that is not there.
        """
        rows = np.asarray(frames, np.int64)
        self._check(rows)
        order = np.argsort(rows, kind="stable")
        wanted = [*COLUMNS, *(property_path(name) for name in self.properties)]
        wanted += SPINS if self.has_spins else ()
        columns = self.columns(rows[order], wanted)
        back = np.argsort(order, kind="stable")
        if (np.diff(order) != 1).any():
            columns = _reordered(columns, self.n_atoms[rows[order]], back)
        return _packed(columns, rows, self._totals)

    def columns(self, rows: np.ndarray, names: Sequence[str]) -> dict[str, np.ndarray]:
        """Columns of ascending rows; runs of neighbours are read at once."""
        cuts = np.flatnonzero(np.diff(rows) != 1) + 1
        firsts = rows[np.concatenate([[0], cuts])]
        lasts = rows[np.concatenate([cuts - 1, [len(rows) - 1]])]
        of_frames = list(zip(firsts.tolist(), (lasts + 1).tolist(), strict=True))
        starts, stops = self._starts[firsts], self._starts[lasts + 1]
        of_atoms = list(zip(starts.tolist(), stops.tolist(), strict=True))
        return {
            name: self._read(name, of_atoms if name.startswith("atoms/") else of_frames)
            for name in names
        }

    def blocks(self, frames: np.ndarray | None = None) -> Iterator[LabelledBatch]:
        """Every frame, or the named ones, a few hundred at a time."""
        rows = np.arange(len(self)) if frames is None else np.sort(frames)
        for start in range(0, len(rows), FRAMES_PER_BLOCK):
            yield self.batch(rows[start : start + FRAMES_PER_BLOCK])

    def where(self, row: int) -> str:
        """Name of a frame in messages: the file that it came from, and its name there."""
        source = self.sources[
            int(self.columns(np.array([row]), ["frames/source"])["frames/source"][0])
        ]
        with h5py.File(self.path, "r") as file:
            name = file["names"].asstr()[row]
        numbers = self.columns(np.array([row]), ["atoms/atomic_numbers"])["atoms/atomic_numbers"]
        return place(source, name, numbers)

    def _check(self, rows: np.ndarray) -> None:
        if not len(rows):
            raise DataError(f"No frame of {self.path} was asked for. Name at least one.")
        beyond = rows[(rows < 0) | (rows >= len(self))]
        if len(beyond):
            raise DataError(
                f"{self.path} has no frame {beyond[0]}. Its {len(self)} frames count from 0."
            )

    def _whole(self, name: str) -> np.ndarray:
        return self._read(name, [(0, self._places[name].n_rows)])

    def _read(self, name: str, runs: list[tuple[int, int]]) -> np.ndarray:
        place, width = self._places[name], self._bytes(name)
        if self._handle is None:
            self._handle = os.open(self.path, os.O_RDONLY)
            weakref.finalize(self, os.close, self._handle)  # a __del__ may outlive `os` itself
        parts = [
            os.pread(self._handle, (stop - start) * width, place.offset + start * width)
            for start, stop in runs
        ]
        values = np.frombuffer(bytearray().join(parts), place.dtype)
        return values.reshape(-1, *self._columns[name].shape)

    def _bytes(self, name: str) -> int:
        return row_bytes(self._columns[name], self._places[name].dtype)


def read_store(source: str, keys: LabelKeys) -> Iterator[Entry]:
    """The frames of a store, so that it can be converted, merged, checked and evaluated on."""
    store = Store(source)
    with h5py.File(store.path, "r") as file:
        names, origin = file["names"].asstr(), file["frames/source"]
        for block in store.blocks():
            first, last = int(block.frame[0]), int(block.frame[-1]) + 1
            called, sources = names[first:last], origin[first:last]
            yield from _frames(store, block, called, sources)


def _frames(
    store: Store, block: LabelledBatch, names: np.ndarray, sources: np.ndarray
) -> Iterator[Frame]:
    start = 0
    for index, system in enumerate(block.batch.split()):
        row = int(block.frame[index])
        stop = start + system.positions.shape[0]
        source, name = store.sources[sources[index]], str(names[index])
        has = {label: bool(store._labels[row] & bit) for label, bit in FLAGS.items()}
        yield Frame(
            where=place(source, name, system.atomic_numbers.numpy()),
            system=system if has["magmoms"] else replace(system, magmoms=None),
            energy=float(block.energy[index]) if has["energy"] else None,
            forces=block.forces[start:stop].numpy() if has["forces"] else None,
            stress=block.stress[index].numpy() if has["stress"] else None,
            subset=store.subsets[store.subset_of[row]],
            source=source,
            name=name,
            dtype=store.dtype.name,
            properties={
                name: values[index].numpy()
                for name, values in block.properties.items()
                if bool(values[index].isfinite().all())
            },
            magnetic_forces=_rows(block.magnetic_forces, start, stop, has["magnetic_forces"]),
        )
        start = stop


def _rows(values: torch.Tensor | None, start: int, stop: int, there: bool) -> Any:
    return values[start:stop].numpy() if values is not None and there else None


def _packed(
    columns: dict[str, np.ndarray], rows: np.ndarray, given: tuple[str, ...]
) -> LabelledBatch:
    n_atoms = torch.from_numpy(columns["frames/n_atoms"].astype(np.int64))
    systems = torch.arange(len(n_atoms)).repeat_interleave(n_atoms)
    totals = {name: torch.from_numpy(columns[f"frames/{name}"]) for name in given}
    spins = {
        path.removeprefix("atoms/"): torch.from_numpy(columns[path].astype(np.float64))
        for path in SPINS
        if path in columns
    }
    batch = Batch(
        positions=torch.from_numpy(columns["atoms/positions"].astype(np.float64)),
        atomic_numbers=torch.from_numpy(columns["atoms/atomic_numbers"].astype(np.int64)),
        cell=torch.from_numpy(columns["frames/cell"]),
        pbc=torch.from_numpy(columns["frames/pbc"]),
        system_idx=systems,
        n_atoms=n_atoms,
        **totals,
        magmoms=spins.get("magmoms"),
    )
    return LabelledBatch(
        batch=batch,
        energy=torch.from_numpy(columns["frames/energy"]),
        forces=torch.from_numpy(columns["atoms/forces"].astype(np.float64)),
        stress=torch.from_numpy(columns["frames/stress"]),
        frame=torch.from_numpy(rows.copy()),
        properties={
            path.removeprefix("properties/"): torch.from_numpy(values)
            for path, values in columns.items()
            if path.startswith("properties/")
        },
        magnetic_forces=spins.get("magnetic_forces"),
    )


def _reordered(
    columns: dict[str, np.ndarray], n_atoms: np.ndarray, back: np.ndarray
) -> dict[str, np.ndarray]:
    """From ascending frames to the order that was asked for."""
    starts = np.cumsum(n_atoms) - n_atoms
    counts = n_atoms[back]
    within = np.arange(counts.sum()) - np.repeat(np.cumsum(counts) - counts, counts)
    atoms = np.repeat(starts[back], counts) + within
    return {
        name: values[atoms] if name.startswith("atoms/") else values[back]
        for name, values in columns.items()
    }


def _place(dataset: Any) -> Place:
    offset = dataset.id.get_offset()
    if offset is None:
        raise OSError(f"{dataset.name} is not contiguous")
    return Place(int(offset), dataset.dtype, dataset.shape[0])


def _keep(path: Path, content_hash: str, counts: np.ndarray) -> None:
    """Write the counts beside the store, where that is allowed."""
    partial = path.with_name(f".{path.name}.{os.getpid()}.npz")
    try:
        np.savez(partial, n_edges=counts, content_hash=np.array(content_hash))
        partial.replace(path)
    except OSError:
        partial.unlink(missing_ok=True)
