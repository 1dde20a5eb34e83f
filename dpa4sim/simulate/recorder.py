"""From a working set to the trajectory file."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from torch import Tensor

from dpa4sim.errors import DataError
from dpa4sim.pool.checkpoint import Store
from dpa4sim.simulate.layout import Counts, Recording, SystemRecord
from dpa4sim.simulate.observables import Thermodynamics
from dpa4sim.simulate.state import MDState
from dpa4sim.simulate.writer import Frames, TrajectoryWriter


class Recorder:
    """Opens, feeds and closes the trajectory file of a run.

    Args:
        path: of the file.
        recording: what it holds, and how often.
        systems: what does not change about every trajectory of the run.
        settings: of the run, for the reader.
        model: name of the model.
        resume: whether a file that exists is to be continued.

    Raises:
        DataError: the file exists and is not to be continued, or has another suffix.
    """

    def __init__(
        self,
        path: Path,
        recording: Recording,
        systems: Sequence[SystemRecord],
        settings: Mapping[str, Any],
        model: str,
        resume: bool,
    ):
        if path.suffix not in (".h5", ".hdf5"):
            raise DataError(f"{path} should end in .h5 or .hdf5.")
        if path.exists() and not resume:
            raise DataError(
                f"{path} exists. Give another output, or resume=True to go on with an "
                "interrupted run."
            )
        if path.exists() and not (path.with_suffix(".checkpoint") / "run.json").exists():
            raise DataError(
                f"{path} exists and has no checkpoint beside it: there is nothing to resume. "
                "Give another output."
            )
        if not path.parent.is_dir():
            raise DataError(f"There is no folder {path.parent}. Make it or give another path.")
        self.path, self.recording, self.systems = path, recording, systems
        self.settings, self.model = settings, model
        self.resume = resume
        self.writer: TrajectoryWriter | None = None

    @property
    def folder(self) -> Path:
        """Where the checkpoints are."""
        return self.path.with_suffix(".checkpoint")

    def checkpoints(self, asked: Mapping[str, Any], every_s: float) -> Store:
        """The run directory beside the file."""
        return Store(self.folder, asked, every_s, fresh=not self.resume)

    def open(self, counts: Mapping[str, Any] | None) -> None:
        """Make the file, or go on behind a checkpoint."""
        if counts is not None:
            self.writer = TrajectoryWriter.resume(self.path, Counts(**counts))
            return
        self.path.unlink(missing_ok=True)  # killed before its first checkpoint
        self.writer = TrajectoryWriter.create(
            self.path, self.systems, self.recording, settings=self.settings, model=self.model
        )

    def close(self) -> None:
        """Write what is left."""
        if self.writer is not None:
            self.writer.close()

    def checkpoint(self) -> dict[str, Any]:
        """How much of the file is on the disk."""
        return asdict(self._open.checkpoint())

    def frame(
        self,
        systems: Sequence[int],
        state: MDState,
        now: Thermodynamics,
        last: bool = False,
    ) -> None:
        """Hand over the frames that are due."""
        given: dict[str, Tensor] = {
            "positions": state.batch.positions,
            "velocities": state.velocities,
            "forces": state.prediction.forces,
            "cell": state.batch.cell,
            "energy": now.energy,
            "kinetic_energy": now.kinetic_energy,
            "temperature": now.temperature,
            "pressure_gpa": now.pressure_gpa,
            "stress": state.prediction.stress,
        }
        stored = {name: given[name] for name in self.recording.store}
        frames = Frames(systems=systems, steps=state.steps, status=state.status, **stored)
        self._open.frames(frames, last=last)

    def sample(
        self, systems: Sequence[int], state: MDState, now: Thermodynamics, msd: Tensor
    ) -> None:
        """Hand over the samples that are due."""
        names = [each.name for each in self.recording.observables]
        values = {name: msd if name == "msd" else getattr(now, name) for name in names}
        self._open.observables(systems, state.steps, values)

    @property
    def _open(self) -> TrajectoryWriter:
        if self.writer is None:
            raise DataError(f"{self.path} is not open.")
        return self.writer
