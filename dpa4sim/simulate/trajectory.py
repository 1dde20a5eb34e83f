"""Reading a trajectory file, which may still be growing; see `layout` for what it holds."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import h5py
import numpy as np
from jaxtyping import Bool, Float, Int

from dpa4sim.errors import DataError
from dpa4sim.simulate.layout import (
    COLUMNS,
    Counts,
    Recording,
    group_of,
    open_for_reading,
    read_counts,
    read_header,
)

PER_READ = 2**22
"""Bytes of positions that an iterator of frames holds at a time."""


@dataclass(frozen=True)
class SystemTrajectory:
    """The frames of one system; what was not stored is None.

    Args:
        label: what the run called the system.
        step: of each frame.
        time: fs.
        status: `errors.Status` as an integer.
        positions: Å, never wrapped.
        velocities: Å/fs.
        forces: eV/Å.
        cell: Å, rows are the lattice vectors.
        energy: potential energy, eV.
        kinetic_energy: eV.
        temperature: K.
        pressure_gpa: virial and kinetic part, GPa.
        stress: virial part, eV/Å^3, tension positive.
    """

    label: str
    atomic_numbers: Int[np.ndarray, " atom"]
    masses: Float[np.ndarray, " atom"]
    pbc: Bool[np.ndarray, "3"]
    step: Int[np.ndarray, " frame"]
    time: Float[np.ndarray, " frame"]
    status: Int[np.ndarray, " frame"]
    positions: Float[np.ndarray, "frame atom 3"] | None = None
    velocities: Float[np.ndarray, "frame atom 3"] | None = None
    forces: Float[np.ndarray, "frame atom 3"] | None = None
    cell: Float[np.ndarray, "frame 3 3"] | None = None
    energy: Float[np.ndarray, " frame"] | None = None
    kinetic_energy: Float[np.ndarray, " frame"] | None = None
    temperature: Float[np.ndarray, " frame"] | None = None
    pressure_gpa: Float[np.ndarray, " frame"] | None = None
    stress: Float[np.ndarray, "frame 3 3"] | None = None

    def __len__(self) -> int:
        return len(self.step)

    @property
    def volume(self) -> Float[np.ndarray, " frame"] | None:
        """Of the cell, Å^3."""
        return None if self.cell is None else np.abs(np.linalg.det(self.cell))

    def atoms(self, frame: int) -> Any:
        """One frame as ase.Atoms, with a SinglePointCalculator for what was stored.

        Raises:
            DataError: positions were not stored.
        """
        if self.positions is None:
            raise DataError(f"{self.label}: no positions were stored. Run with positions in store.")
        from ase import Atoms
        from ase.calculators.singlepoint import SinglePointCalculator
        from ase.stress import full_3x3_to_voigt_6_stress
        from ase.units import fs

        atoms = Atoms(numbers=self.atomic_numbers, positions=self.positions[frame], pbc=self.pbc)
        atoms.set_masses(self.masses)
        if self.cell is not None:
            atoms.set_cell(self.cell[frame])
        if self.velocities is not None:
            atoms.set_velocities(self.velocities[frame] / fs)
        atoms.info = {
            "label": self.label,
            "step": int(self.step[frame]),
            "time_fs": float(self.time[frame]),
        }
        results: dict[str, Any] = {}
        if self.energy is not None:
            results["energy"] = float(self.energy[frame])
        if self.forces is not None:
            results["forces"] = self.forces[frame]
        if self.stress is not None and np.isfinite(self.stress[frame]).all():
            results["stress"] = full_3x3_to_voigt_6_stress(self.stress[frame])
        if results:
            atoms.calc = SinglePointCalculator(atoms, **results)
        return atoms


class Series(NamedTuple):
    """The samples of one observable of one system."""

    step: np.ndarray
    time: np.ndarray
    values: np.ndarray


class Trajectory:
    """A trajectory file, open for reading; it may still be growing.

    Its length is its number of systems.  Reading one system reads the index of the file and that
    system's frames, nothing else.  What the writer adds later is seen after `refresh`.

    Args:
        path: of the file.

    Raises:
        DataError: there is no such file, or it is no trajectory of dpa4sim.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self._file = open_for_reading(self.path)
        systems, atoms = self._file["systems"], self._file["atoms"]
        self.labels = [text.decode() for text in systems["label"][:]]
        self.replica: np.ndarray = systems["replica"][:]
        self.timestep: np.ndarray = systems["timestep"][:]
        self.n_steps: np.ndarray = systems["n_steps"][:]
        self.temperature: np.ndarray = systems["temperature"][:]
        self.pressure_gpa: np.ndarray = systems["pressure_gpa"][:]
        self.n_atoms: np.ndarray = systems["n_atoms"][:]
        self._pbc, self._first = systems["pbc"][:], np.cumsum(self.n_atoms) - self.n_atoms
        self._numbers, self._masses = atoms["atomic_numbers"][:], atoms["masses"][:]
        header = read_header(self._file)
        self.model: str = header["model"]
        self.settings: dict[str, Any] = header["settings"]
        self.versions: dict[str, str] = header["versions"]
        self.recording: Recording = header["recording"]
        self._index: dict[str, list[np.ndarray]] = {}
        self.counts = read_counts(self._file, self.recording)

    def __len__(self) -> int:
        return len(self.labels)

    def __enter__(self) -> Trajectory:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def close(self) -> None:
        """Let go of the file."""
        self._file.close()

    @property
    def units(self) -> dict[str, str]:
        """Unit of every quantity in the file."""
        units = {name: COLUMNS[name].unit for name in self.recording.store}
        return units | {each.name: each.unit for each in self.recording.observables}

    def refresh(self) -> Counts:
        """Look again how much there is."""
        self._index = {}
        self.counts = read_counts(self._file, self.recording)
        return self.counts

    def n_frames(self, system: int) -> int:
        """Frames of one system."""
        return len(self._of(system, "frames"))

    def system(self, system: int, frames: slice = slice(None)) -> SystemTrajectory:
        """The frames of one system as arrays.

        Args:
            system: counted from 0, in the order of the run.
            frames: which of them; `slice(-1, None)` for the last.

        Raises:
            DataError: there is no such system.
        """
        index = self._of(system, "frames")[frames]
        n_atoms, first = int(self.n_atoms[system]), int(self._first[system])
        start = self._read("frames/start", index)
        values = {
            name: self._read(f"rows/{name}", start, n_atoms)
            if COLUMNS[name].axis == "atom"
            else self._read(f"frames/{name}", index)
            for name in self.recording.store
        }
        return SystemTrajectory(
            label=self.labels[system],
            atomic_numbers=self._numbers[first : first + n_atoms],
            masses=self._masses[first : first + n_atoms],
            pbc=self._pbc[system],
            step=self._read("frames/step", index),
            time=self._read("frames/time", index),
            status=self._read("frames/status", index),
            **values,
        )

    def frames(self, system: int) -> Iterator[Any]:
        """The frames of one system as ase.Atoms, a few megabytes at a time.

        Raises:
            DataError: there is no such system, or positions were not stored.
        """
        per_read = max(1, PER_READ // (24 * int(self.n_atoms[self._checked(system)])))
        for start in range(0, self.n_frames(system), per_read):
            part = self.system(system, slice(start, start + per_read))
            yield from (part.atoms(frame) for frame in range(len(part)))

    def observables(self, system: int) -> dict[str, Series]:
        """The samples of one system, by the name of the observable.

        Raises:
            DataError: there is no such system.
        """
        found = {}
        for each in self.recording.observables:
            group = group_of(each)
            index = self._of(system, group)
            columns = (self._read(f"{group}/{name}", index) for name in ("step", "time", each.name))
            found[each.name] = Series(*columns)
        return found

    def to_extxyz(self, path: str | Path, system: int | None = None) -> int:
        """Write the frames of one system, or of all one after another, as extended XYZ.

        Returns:
            How many frames were written.

        Raises:
            DataError: the file exists or cannot be written, or positions were not stored.
        """
        from ase.io.extxyz import write_xyz

        count = 0
        try:
            with Path(path).open("x", encoding="utf-8") as file:
                for each in range(len(self)) if system is None else [system]:
                    for atoms in self.frames(each):
                        write_xyz(file, [atoms])
                        count += 1
        except FileExistsError:
            raise DataError(f"{path} exists. Remove it or give another path.") from None
        except OSError as error:
            raise DataError(f"{path} cannot be written: {error}. Give another path.") from error
        return count

    def _checked(self, system: int) -> int:
        if not 0 <= system < len(self):
            raise DataError(
                f"{self.path} has no system {system}. Its {len(self)} systems count from 0."
            )
        return system

    def _of(self, system: int, group: str) -> np.ndarray:
        """Rows of one system in the index of a group."""
        self._checked(system)
        if group not in self._index:
            every = np.arange(self.counts.of(f"{group}/system"))
            owner = self._read(f"{group}/system", every)
            order = np.argsort(owner, kind="stable")
            edges = np.searchsorted(owner[order], np.arange(1, len(self)))
            self._index[group] = np.split(order, edges)
        return self._index[group][system]

    def _read(self, name: str, starts: np.ndarray, length: int | None = None) -> np.ndarray:
        dataset = self._file[name]
        dataset.id.refresh()
        if length is None:
            return read_blocks(dataset, starts, 1)[:, 0]
        return read_blocks(dataset, starts, length)


def read_trajectory(path: str | Path) -> Trajectory:
    """Open a trajectory, finished or still growing.

    Raises:
        DataError: there is no such file, or it is no trajectory of dpa4sim.
    """
    return Trajectory(path)


def read_blocks(dataset: Any, starts: Sequence[int] | np.ndarray, length: int) -> np.ndarray:
    """`dataset[start : start + length]` for ascending starts: (start, length, ...).

    Starts at an even distance, as a steady run writes them, are one request of the file.
    """
    starts = np.asarray(starts, dtype=np.int64)
    trailing = dataset.shape[1:]
    values = np.empty((len(starts), length, *trailing), dataset.dtype)
    zeros, ones = (0,) * len(trailing), (1,) * len(trailing)
    for first, stop in even_runs(starts):
        distance = int(starts[first + 1] - starts[first]) if stop - first > 1 else length
        chosen = dataset.id.get_space()
        chosen.select_hyperslab(
            (int(starts[first]), *zeros),
            (stop - first, *ones),
            (distance, *ones),
            (length, *trailing),
        )
        part = values[first:stop]
        dataset.id.read(h5py.h5s.create_simple(part.shape), chosen, part)
    return values


def even_runs(starts: np.ndarray) -> list[tuple[int, int]]:
    """Ranges of ascending numbers whose distances are equal."""
    runs, first = [], 0
    for turn in np.flatnonzero(np.diff(starts, n=2)) + 1:
        if turn > first:
            runs.append((first, int(turn) + 1))
            first = int(turn) + 1
    if first < len(starts):
        runs.append((first, len(starts)))
    return runs
