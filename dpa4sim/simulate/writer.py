"""Writing a trajectory file while a run goes on; see `layout` for what it holds.

The run hands over device tensors and goes on at once: copies to the host start in the stream of the
device, and a thread waits for them, drops what is not due, and appends.  Rows reach the file
first, `counts` last, so that whoever reads meanwhile, or after a kill, finds whole frames only.
"""

from __future__ import annotations

import queue
import threading
import weakref
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from dpa4sim.errors import DataError, ResumeError
from dpa4sim.model_file import DTYPES
from dpa4sim.simulate.growing_file import GrowingFile, build, closed, copy_counted
from dpa4sim.simulate.layout import (
    COLUMNS,
    Counts,
    Recording,
    SystemRecord,
    bytes_of,
    group_of,
    groups_of,
    header_of,
    lay_out,
    open_for_reading,
    read_counts,
    read_header,
)

AHEAD = 8
"""Handed-over moments that may wait for the thread; the run waits when there are more."""


@dataclass(frozen=True)
class Frames:
    """One moment of a packed working set, on any device; what is not stored may be None.

    Args:
        systems: which system of the run each slot holds.
        steps: of each system.
        status: `errors.Status` as an integer.
        positions: Å.
        velocities: Å/fs.
        forces: eV/Å.
        cell: Å.
        energy: potential energy, eV.
        kinetic_energy: eV.
        temperature: K.
        pressure_gpa: virial and kinetic part, GPa.
        stress: virial part, eV/Å^3, tension positive.
    """

    systems: Sequence[int]
    steps: Int[Tensor, " system"]
    status: Int[Tensor, " system"]
    positions: Float[Tensor, "atom 3"] | None = None
    velocities: Float[Tensor, "atom 3"] | None = None
    forces: Float[Tensor, "atom 3"] | None = None
    cell: Float[Tensor, "system 3 3"] | None = None
    energy: Float[Tensor, " system"] | None = None
    kinetic_energy: Float[Tensor, " system"] | None = None
    temperature: Float[Tensor, " system"] | None = None
    pressure_gpa: Float[Tensor, " system"] | None = None
    stress: Float[Tensor, "system 3 3"] | None = None


class TrajectoryWriter:
    """Appends to a trajectory file that `create` or `resume` has made ready.

    A frame is stored when its step is a multiple of the interval and beyond the system's last
    stored step: a system that stands still in the batch is stored once.  Use it as a context
    manager; an error of the thread (a full disk) is raised by the next call of any method.

    Args:
        path: of a trajectory file that was closed.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        file = GrowingFile(self.path)
        self.recording, self.n_atoms = file.recording, file.n_atoms
        self._thread = _Thread(file)
        self._thread.start()
        self._finalizer = weakref.finalize(self, self._thread.finish)

    @classmethod
    def create(
        cls,
        path: str | Path,
        systems: Sequence[SystemRecord],
        recording: Recording,
        *,
        settings: Mapping[str, Any],
        model: str = "",
    ) -> TrajectoryWriter:
        """Make a new file; it appears under its name only when it is a whole trajectory.

        Raises:
            DataError: the file exists, its folder does not, or it cannot be written.
            ConfigError: a setting cannot be written as JSON.
        """
        path = Path(path)
        if path.exists():
            raise DataError(f"{path} exists. Remove it or give another path.")
        if not path.parent.is_dir():
            raise DataError(f"There is no folder {path.parent}. Make it or give another path.")
        if not systems:
            raise DataError(f"{path} would hold no system. Give at least one.")
        header = header_of(recording, settings, model)
        n_bytes = len(header) + sum(map(bytes_of, systems))
        build(path, lambda file: lay_out(file, systems, recording, header), n_bytes)
        return cls(path)

    @classmethod
    def resume(cls, path: str | Path, counts: Counts) -> TrajectoryWriter:
        """Go on behind a checkpoint; what was written after it is dropped.

        A file whose writer was killed cannot be opened for writing again: what counts is copied
        into a new file, which then takes the name of the old one.  Needs as much room again.

        Raises:
            DataError: there is no such file, it is no trajectory, or the copy cannot be written.
            ResumeError: the file holds less than `counts`.
        """
        path = Path(path)
        with open_for_reading(path) as file:
            found = read_counts(file, read_header(file)["recording"])
            samples = {group: counts.samples.get(group, 0) for group in found.samples}
            counts = replace(counts, samples=samples)
            if not found.covers(counts):
                raise ResumeError(
                    f"{path} holds {found.frames} frames and {found.samples} samples, fewer than "
                    f"the checkpoint ({counts.frames}, {counts.samples}). Is it another run's file?"
                )
            same = found == counts and closed(path)
            if not same:
                build(path, lambda new: copy_counted(file, new, counts), path.stat().st_size)
        return cls(path)

    def frames(self, frames: Frames, *, last: bool = False) -> None:
        """Hand over a moment; those of its systems that are due are stored.

        Args:
            frames: tensors of the whole working set; they are copied.
            last: store whatever the step, as for a system that has ended.

        Raises:
            DataError: a stored quantity is missing or of another shape, or writing has failed.
        """
        if self.recording.interval == 0 and not last:
            return
        given = {name: getattr(frames, name) for name in self.recording.store}
        missing = [name for name, tensor in given.items() if tensor is None]
        if missing:
            raise DataError(f"{self.path} stores '{missing[0]}'. Give it with every frame.")
        systems = self._checked(frames.systems, frames.steps)
        n_rows = {"system": len(systems), "atom": int(self.n_atoms[systems].sum())}
        for name, tensor in given.items():
            expected = (n_rows[COLUMNS[name].axis], *COLUMNS[name].shape)
            _check_shape(f"'{name}' of a frame", tensor, expected)
        _check_shape("'status' of a frame", frames.status, (len(systems),))
        if "positions" in given:
            given["positions"] = given["positions"].to(DTYPES[self.recording.positions])
        self._put("frames", systems, {"step": frames.steps, "status": frames.status} | given, last)

    def observables(
        self,
        systems: Sequence[int],
        steps: Int[Tensor, " system"],
        values: Mapping[str, Tensor],
        *,
        last: bool = False,
    ) -> None:
        """Hand over samples; of each interval all of its observables or none.

        Args:
            systems: which system of the run each slot holds.
            steps: of each system.
            values: (system, ...) of each observable by its name.
            last: store whatever the step.

        Raises:
            DataError: a value is missing, unknown or of another shape, or writing has failed.
        """
        chosen = self._checked(systems, steps)
        known = {each.name: each for each in self.recording.observables}
        strangers = sorted(values.keys() - known.keys())
        if strangers:
            raise DataError(
                f"'{strangers[0]}' is no observable of {self.path}: {', '.join(known)}."
            )
        wanted = {group_of(known[name]) for name in values}
        for group, observables in groups_of(self.recording).items():
            if group not in wanted:
                continue
            missing = [each.name for each in observables if each.name not in values]
            if missing:
                raise DataError(f"{group} of {self.path} also holds '{missing[0]}'. Give both.")
            for each in observables:
                expected = (len(chosen), *each.shape)
                _check_shape(f"Observable '{each.name}'", values[each.name], expected)
            given = {each.name: values[each.name] for each in observables}
            self._put(group, chosen, {"step": steps} | given, last)

    def checkpoint(self) -> Counts:
        """Wait until everything handed over is on the disk; `resume` continues from there.

        Raises:
            DataError: writing has failed.
        """
        self._thread.complain()
        return self._thread.sync()

    def close(self) -> None:
        """Write what is left and let go of the file.

        Raises:
            DataError: writing has failed.
        """
        self._finalizer.detach()
        self._thread.finish()
        self._thread.complain_of_failure()

    def __enter__(self) -> TrajectoryWriter:
        return self

    def __exit__(self, kind: type[BaseException] | None, *rest: object) -> None:
        try:
            self.close()
        except DataError:
            if kind is None:
                raise

    def _checked(self, systems: Sequence[int], steps: Tensor) -> np.ndarray:
        chosen = np.asarray(systems, dtype=np.int64)
        if len(chosen) and not 0 <= chosen.min() <= chosen.max() < len(self.n_atoms):
            raise DataError(f"{self.path} has {len(self.n_atoms)} systems, counted from 0.")
        _check_shape("'steps'", steps, (len(chosen),))
        return chosen

    def _put(
        self, group: str, systems: np.ndarray, values: Mapping[str, Tensor], last: bool
    ) -> None:
        self._thread.complain()
        copies = {name: _to_host(value) for name, value in values.items()}
        arrived = None
        if any(value.device.type == "cuda" for value in values.values()):
            arrived = torch.cuda.Event(blocking=True)
            arrived.record()
        self._thread.put(_Moment(group, systems, copies, last, arrived))


@dataclass(frozen=True)
class _Moment:
    """Host copies that may still be on their way."""

    group: str
    systems: np.ndarray
    values: Mapping[str, Tensor]
    last: bool
    arrived: torch.cuda.Event | None


@dataclass(frozen=True)
class _Request:
    """Something to do behind everything that was put before: "sync" or "close"."""

    what: str
    done: threading.Event


type _Task = _Moment | _Request | None


class _Thread(threading.Thread):
    """The only one who touches the file."""

    def __init__(self, file: GrowingFile) -> None:
        super().__init__(name="trajectory-writer", daemon=True)
        self._file, self._path = file, file.path
        self._queue: queue.Queue[_Moment | _Request] = queue.Queue(AHEAD)
        self._error: Exception | None = None
        self._over = False

    def put(self, moment: _Moment) -> None:
        """Wait for room in the queue."""
        self._queue.put(moment)

    def sync(self) -> Counts:
        """Wait until everything that was put is on the disk."""
        done = threading.Event()
        self._queue.put(_Request("sync", done))
        done.wait()
        self.complain()
        return self._file.counts

    def finish(self) -> None:
        """Write the rest, close the file and end."""
        if not self._over:
            self._over = True
            self._queue.put(_Request("close", threading.Event()))
            self.join()

    def complain(self) -> None:
        """Raise what went wrong in the thread, or that the file is closed.

        Raises:
            DataError: either.
        """
        self.complain_of_failure()
        if self._over:
            raise DataError(f"{self._path} is closed. Resume it to write more.")

    def complain_of_failure(self) -> None:
        """Raise what went wrong in the thread.

        Raises:
            DataError: something did.
        """
        if self._error is not None:
            raise DataError(
                f"{self._path} could not be written: {self._error}. Its first "
                f"{self._file.counts.frames} frames are safe. Make room and resume."
            ) from self._error

    def run(self) -> None:
        """Append what arrives; after an error only answer, so that nobody waits for ever."""
        task: _Task = None
        while not (isinstance(task, _Request) and task.what == "close"):
            try:
                task = self._queue.get(timeout=self._file.patience)
            except queue.Empty:
                task = None
            try:
                self._serve(task)
            except Exception as error:
                self._error = self._error or error
            if isinstance(task, _Request):
                task.done.set()

    def _serve(self, task: _Task) -> None:
        if isinstance(task, _Request) and task.what == "close":
            if self._error is None:
                self._file.append()
            self._file.close()
        elif self._error is not None:
            self._file.forget()
        elif isinstance(task, _Moment):
            if task.arrived is not None:
                task.arrived.synchronize()
            values = {name: value.numpy() for name, value in task.values.items()}
            self._file.gather(task.group, task.systems, values, task.last)
            if self._file.patience == 0.0:
                self._file.append()
        else:
            self._file.append()
            if task is not None:
                self._file.sync()


def _to_host(tensor: Tensor) -> Tensor:
    """A copy on the host, from CUDA through pinned memory and without waiting for it."""
    if tensor.device.type != "cuda":
        return tensor.detach().to("cpu", copy=True)
    pinned = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True)
    return pinned.copy_(tensor.detach(), non_blocking=True)


def _check_shape(what: str, tensor: Tensor, expected: tuple[int, ...]) -> None:
    if tuple(tensor.shape) != expected:
        raise DataError(f"{what} has shape {tuple(tensor.shape)}. Give {expected}.")
