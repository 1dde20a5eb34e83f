"""What a trajectory file holds: one HDF5 file per run, for any number of unlike systems.

    /header                  JSON: model, settings, versions, recording
    /counts                  frames, rows, samples ...: what is whole; written after everything else
    /systems/*               one row per system: n_atoms, pbc, label, replica, timestep ...
    /atoms/*                 one row per atom, system after system: atomic_numbers, masses
    /frames/{system, step, time, status, start, energy, cell ...}      one row per frame
    /rows/{positions, velocities, forces}      a frame of n atoms has the rows start:start + n
    /observables/every_K/{system, step, time, ...}                     one row per sample

Frames stand in the order in which they were written; those of one system by ascending step.
Everything behind `counts` belongs to a write that is still going on, or was cut short: readers do
not look at it.  The file is in HDF5's single-writer-multiple-readers mode while a run lasts, and
needs HDF5 1.10 or later.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from importlib.metadata import version
from math import nan, prod
from pathlib import Path
from typing import Any, NamedTuple

import h5py
import numpy as np
from jaxtyping import Float

from dpa4sim import __version__
from dpa4sim.batch import Batch
from dpa4sim.errors import ConfigError, DataError

FORMAT = "dpa4sim-trajectory-1"
"""Written into every trajectory; a file with another format is refused."""

CHUNK_BYTES = 2**18
"""Largest chunk of a growing dataset: what is read or written of it at once."""

UNITS_OF_SYSTEMS = {
    "atoms/masses": "amu",
    "systems/timestep": "fs",
    "systems/temperature": "K, at the start and at the end",
    "systems/pressure_gpa": "GPa, at the start and at the end",
}


class Column(NamedTuple):
    """What one quantity of a frame looks like: its axis ("system" or "atom"), shape and unit."""

    axis: str
    shape: tuple[int, ...]
    unit: str


COLUMNS = {
    "positions": Column("atom", (3,), "Å"),
    "velocities": Column("atom", (3,), "Å/fs"),
    "forces": Column("atom", (3,), "eV/Å"),
    "cell": Column("system", (3, 3), "Å"),
    "energy": Column("system", (), "eV"),
    "kinetic_energy": Column("system", (), "eV"),
    "temperature": Column("system", (), "K"),
    "pressure_gpa": Column("system", (), "GPa"),
    "stress": Column("system", (3, 3), "eV/Å^3, tension positive"),
}
"""What a frame may hold."""

USUAL = ("positions", "cell", "energy", "kinetic_energy", "temperature", "pressure_gpa")
"""What a frame holds unless told otherwise."""


@dataclass(frozen=True, kw_only=True)
class Observable:
    """A quantity that is sampled without storing frames.

    Args:
        name: of the quantity.
        interval: steps between two samples.
        shape: of one sample of one system; () for a number.
        unit: for the reader.
    """

    name: str
    interval: int
    shape: tuple[int, ...] = ()
    unit: str = ""

    def __post_init__(self) -> None:
        if self.interval < 1:
            raise ConfigError(
                f"Observable '{self.name}' has the interval {self.interval}. Give 1 or more steps."
            )
        if not self.name.isidentifier() or self.name in ("system", "step", "time"):
            raise ConfigError(
                f"An observable cannot be called '{self.name}'. Give a name of letters, digits "
                "and _ other than system, step and time."
            )


@dataclass(frozen=True, kw_only=True)
class Recording:
    """What a run writes down, and how often.

    Args:
        interval: steps between two frames; 0 for the last frame of each system only.
        store: the quantities of a frame, from `COLUMNS`.
        positions: "float64", or "float32" for half the size.
        observables: what is sampled besides.
    """

    interval: int = 100
    store: tuple[str, ...] = USUAL
    positions: str = "float64"
    observables: tuple[Observable, ...] = ()

    def __post_init__(self) -> None:
        if self.interval < 0:
            raise ConfigError(
                f"interval = {self.interval}. Give steps between two frames, 0 for the last only."
            )
        strangers = [name for name in self.store if name not in COLUMNS]
        if strangers:
            raise ConfigError(
                f"store names '{strangers[0]}'. A frame may hold {', '.join(COLUMNS)}."
            )
        if self.positions not in ("float32", "float64"):
            raise ConfigError(f"positions = {self.positions!r}. Choose 'float64' or 'float32'.")
        names = [observable.name for observable in self.observables]
        twice = sorted({name for name in names if names.count(name) > 1})
        if twice:
            raise ConfigError(f"Observable '{twice[0]}' is named twice. Name each one once.")


@dataclass(frozen=True)
class Counts:
    """How much of a file is whole: what a checkpoint remembers and a resumed run continues.

    `Counts(**json.loads(json.dumps(asdict(counts)))) == counts`.

    Args:
        frames: of all systems together.
        rows: of atoms in them.
        samples: of each group of observables.
    """

    frames: int = 0
    rows: int = 0
    samples: dict[str, int] = field(default_factory=dict)

    def covers(self, other: Counts) -> bool:
        """Whether a file with these counts holds all that `other` counts."""
        samples = all(n <= self.samples.get(name, 0) for name, n in other.samples.items())
        return self.frames >= other.frames and self.rows >= other.rows and samples

    def of(self, dataset: str) -> int:
        """Rows that count in the growing dataset with this path."""
        group = dataset.strip("/").rsplit("/", 1)[0]
        if group == "frames":
            return self.frames
        return self.rows if group == "rows" else self.samples.get(group, 0)


@dataclass(frozen=True, kw_only=True)
class SystemRecord:
    """What does not change about one system of a run.

    Args:
        batch: the system by itself, on the host.
        label: a name for people.
        replica: which copy of the structure.
        masses: amu; None for the standard ones.
        timestep: fs.
        n_steps: length of the run.
        temperature: at the start and at the end, K; NaN where nothing sets it.
        pressure_gpa: likewise, GPa.
    """

    batch: Batch
    label: str = ""
    replica: int = 0
    masses: Float[np.ndarray, " atom"] | None = None
    timestep: float = 1.0
    n_steps: int = 0
    temperature: tuple[float, float] = (nan, nan)
    pressure_gpa: tuple[float, float] = (nan, nan)


def group_of(observable: Observable) -> str:
    """Where the samples of an observable are: those of one interval share an index."""
    return f"observables/every_{observable.interval}"


def groups_of(recording: Recording) -> dict[str, list[Observable]]:
    """The observables by their groups."""
    groups: dict[str, list[Observable]] = {}
    for observable in recording.observables:
        groups.setdefault(group_of(observable), []).append(observable)
    return groups


def header_of(recording: Recording, settings: Mapping[str, Any], model: str) -> bytes:
    """Everything that is said once about a run, as JSON.

    Raises:
        ConfigError: a setting is no number, text, list or table.
    """
    packages = {name: version(name) for name in ("torch", "numpy", "h5py")}
    header = {
        "model": model,
        "settings": dict(settings),
        "versions": {"dpa4sim": __version__, **packages},
        "recording": asdict(recording),
    }
    try:
        return json.dumps(header).encode()
    except TypeError as error:
        raise ConfigError(f"The settings cannot be written as JSON: {error}.") from None


def read_header(file: Any) -> dict[str, Any]:
    """Model, settings and versions; `recording` as a Recording."""
    header: dict[str, Any] = json.loads(file["header"][()].decode())
    stored = header["recording"]
    stored["store"] = tuple(stored["store"])
    stored["observables"] = tuple(
        Observable(**{**each, "shape": tuple(each["shape"])}) for each in stored["observables"]
    )
    return {**header, "recording": Recording(**stored)}


def read_counts(file: Any, recording: Recording) -> Counts:
    """What is whole in the file now."""
    dataset = file["counts"]
    dataset.id.refresh()
    frames, rows, *samples = (int(count) for count in dataset[:])
    return Counts(frames, rows, dict(zip(groups_of(recording), samples, strict=True)))


def open_for_reading(path: Path) -> Any:
    """The HDF5 file, which another process may be writing.

    No chunk is cached: one system's rows are a small part of each chunk.

    Raises:
        DataError: there is no such file, or it is no trajectory of dpa4sim.
    """
    if not path.is_file():
        raise DataError(f"There is no file {path}. Give the path of a trajectory.")
    try:
        file = h5py.File(path, "r", swmr=True, rdcc_nbytes=0, locking="best-effort")
    except OSError as error:
        raise DataError(f"{path} cannot be read as HDF5: {error}.") from error
    found = file.attrs.get("format")
    if found != FORMAT:
        file.close()
        raise DataError(f"{path} has the format {found!r}; this version reads '{FORMAT}'.")
    return file


def growing(path: str) -> bool:
    """Whether the dataset with this path grows while a run lasts."""
    return path.strip("/").split("/")[0] in ("frames", "rows", "observables")


def bytes_of(system: SystemRecord) -> int:
    """Upper bound of what `lay_out` writes about a system; a label counts for every system."""
    return 512 + len(system.label.encode()) + 16 * len(system.batch.positions)


def lay_out(
    file: Any, systems: Sequence[SystemRecord], recording: Recording, header: bytes
) -> None:
    """Fill a new HDF5 file: what is known of the systems, and datasets without rows."""
    n_atoms = sum(len(system.batch.positions) for system in systems)
    file.attrs["format"] = FORMAT
    file["header"] = np.bytes_(header)
    _describe(file, systems)
    file["counts"] = np.zeros(2 + len(groups_of(recording)), np.int64)
    index = {"system": (np.int32, ""), "step": (np.int64, ""), "time": (np.float64, "fs")}
    groups = groups_of(recording)
    for group in ("frames", *groups):
        for name, (dtype, unit) in index.items():
            _grow(file, f"{group}/{name}", dtype, (), unit, len(systems))
    _grow(file, "frames/status", np.int8, (), "", len(systems))
    _grow(file, "frames/start", np.int64, (), "", len(systems))
    for name in recording.store:
        axis, shape, unit = COLUMNS[name]
        precision = recording.positions if name == "positions" else "float64"
        if axis == "atom":
            _grow(file, f"rows/{name}", precision, shape, unit, n_atoms)
        else:
            _grow(file, f"frames/{name}", precision, shape, unit, len(systems))
    for group, observables in groups.items():
        for each in observables:
            _grow(file, f"{group}/{each.name}", np.float64, each.shape, each.unit, len(systems))


def _describe(file: Any, systems: Sequence[SystemRecord]) -> None:
    from ase.data import atomic_masses

    def column(values: Iterable[Any], dtype: Any) -> np.ndarray:
        return np.array(list(values), dtype)

    numbers = [system.batch.atomic_numbers.numpy() for system in systems]
    masses = [
        atomic_masses[z] if system.masses is None else np.asarray(system.masses)
        for system, z in zip(systems, numbers, strict=True)
    ]
    file["atoms/atomic_numbers"] = np.concatenate(numbers).astype(np.int16)
    file["atoms/masses"] = np.concatenate(masses).astype(np.float64)
    file["systems/n_atoms"] = column((len(z) for z in numbers), np.int64)
    file["systems/pbc"] = column((system.batch.pbc[0].numpy() for system in systems), np.bool_)
    labels = [system.label.encode() for system in systems]
    file["systems/label"] = np.array(labels, f"S{max(1, *map(len, labels))}")
    file["systems/replica"] = column((system.replica for system in systems), np.int64)
    file["systems/timestep"] = column((system.timestep for system in systems), np.float64)
    file["systems/n_steps"] = column((system.n_steps for system in systems), np.int64)
    file["systems/temperature"] = column((system.temperature for system in systems), np.float64)
    file["systems/pressure_gpa"] = column((system.pressure_gpa for system in systems), np.float64)
    for name, unit in UNITS_OF_SYSTEMS.items():
        file[name].attrs["unit"] = unit


def _grow(file: Any, path: str, dtype: Any, shape: tuple[int, ...], unit: str, often: int) -> None:
    """A dataset without rows, in chunks of about four rounds but no more than `CHUNK_BYTES`."""
    row_bytes = np.dtype(dtype).itemsize * prod(shape)
    rows = max(1, min(CHUNK_BYTES // row_bytes, max(64, 4 * often)))
    dataset = file.create_dataset(
        path, (0, *shape), dtype, maxshape=(None, *shape), chunks=(rows, *shape)
    )
    dataset.attrs["unit"] = unit
