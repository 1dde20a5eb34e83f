"""What a run of molecular dynamics is asked to do, checked before any work."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from dpa4sim.batch import Batch
from dpa4sim.errors import ConfigError
from dpa4sim.potential import EnergyModel
from dpa4sim.simulate.npt import COUPLINGS, c_rescale_step
from dpa4sim.simulate.nve import nve_step
from dpa4sim.simulate.nvt import bussi_step, langevin_step
from dpa4sim.simulate.state import Conditions, MDState, set_conditions

ENSEMBLES = ("nve", "nvt", "npt")
THERMOSTATS = ("langevin", "bussi")

PASSED_ON = (
    *("timestep", "temperature", "temperature_end", "pressure_gpa", "pressure_end_gpa"),
    *("thermostat_time", "barostat_time", "bulk_modulus_gpa", "seed"),
)
"""Settings that are conditions of a trajectory as they stand."""

type PerStructure = float | Sequence[float]


@dataclass(frozen=True, kw_only=True)
class MDSettings:
    """Settings of a run; what is `PerStructure` is one for all, or one per structure.

    Args:
        ensemble: "nve", "nvt" or "npt".
        thermostat: of nvt: "langevin" or "bussi"; npt has the latter.
        coupling: of npt: which strains the barostat changes: "isotropic" (the volume),
            "anisotropic" (the lengths of the axes) or "triclinic" (all).
        temperature: at the start, K; also of the first velocities.
        temperature_end: at the end, K; None for the same as at the start.
        pressure_gpa: at the start.
        pressure_end_gpa: at the end; None for the same as at the start.
        timestep: fs.
        time_ps: length of the run.
        steps: length of the run, in place of `time_ps`.
        thermostat_time: fs; the friction of "langevin" is 1 over it.
        barostat_time: fs.
        bulk_modulus_gpa: how stiff the barostat takes the systems to be; it sets the pace only.
        skip_ps: time before the first sample of averages, displacements and pair distances.
        seed: of velocities and noise.  One seed for all: structures and replicas differ by their
            place in the input.  One per structure: a structure's path does not depend on its place.
        replicas: copies of each structure, each with noise of its own.
    """

    ensemble: str = "nvt"
    thermostat: str = "langevin"
    coupling: str = "isotropic"
    temperature: PerStructure = 300.0
    temperature_end: PerStructure | None = None
    pressure_gpa: PerStructure = 0.0
    pressure_end_gpa: PerStructure | None = None
    timestep: PerStructure = 1.0
    time_ps: PerStructure = 1.0
    steps: int | Sequence[int] | None = None
    thermostat_time: PerStructure = 100.0
    barostat_time: PerStructure = 1000.0
    bulk_modulus_gpa: PerStructure = 100.0
    skip_ps: PerStructure = 0.0
    seed: int | Sequence[int] = 0
    replicas: int = 1

    def __post_init__(self) -> None:
        for name, valid in (
            ("ensemble", ENSEMBLES),
            ("thermostat", THERMOSTATS),
            ("coupling", COUPLINGS),
        ):
            value = getattr(self, name)
            if value not in valid:
                raise ConfigError(f"{name}={value!r} is not known. Valid: {', '.join(valid)}.")
        for name in ("timestep", "time_ps", "thermostat_time", "barostat_time", "bulk_modulus_gpa"):
            self._check(name, lambda value: value > 0, "a positive number")
        for name in ("temperature", "temperature_end"):
            self._check(name, lambda value: value >= 0, "0 K or more")
        for name in ("pressure_gpa", "pressure_end_gpa"):
            self._check(name, math.isfinite, "a finite number")
        self._check("steps", lambda value: value >= 1, "1 step or more")
        if self.ensemble != "nve":
            self._check("temperature", lambda value: value > 0, "more than 0 K for a thermostat")
        self._check("skip_ps", lambda value: value >= 0, "0 or more")
        self._check("seed", lambda value: 0 <= value < 2**63, "a whole number from 0 to 2^63 - 1")
        if self.replicas < 1:
            raise ConfigError(f"replicas={self.replicas}. Give 1 or more.")

    def conditions(self, system: Batch, structure: int, replica: int) -> Conditions:
        """What one trajectory is under."""
        alone = isinstance(self.seed, Sequence)
        asked = {name: self.of(name, structure) for name in PASSED_ON}
        return set_conditions(
            system,
            n_steps=self.n_steps(structure),
            identity=replica if alone else structure * self.replicas + replica,
            **asked,
        )

    def stepper(self) -> Callable[[MDState, EnergyModel], MDState]:
        """The integrator."""
        if self.ensemble == "npt":
            return partial(c_rescale_step, coupling=self.coupling)
        if self.ensemble == "nvt":
            return langevin_step if self.thermostat == "langevin" else bussi_step
        return nve_step

    def of(self, name: str, structure: int) -> Any:
        """The value of a setting for one structure."""
        value = getattr(self, name)
        return value[structure] if isinstance(value, Sequence) else value

    def n_steps(self, structure: int) -> int:
        """Length of a structure's run in steps."""
        if self.steps is not None:
            return int(self.of("steps", structure))
        return max(1, self._steps_in("time_ps", structure))

    def n_skipped(self, structure: int) -> int:
        """Steps before a structure's first sample."""
        return self._steps_in("skip_ps", structure)

    def check_lengths(self, n_structures: int) -> None:
        """What is given per structure must have one entry for each.

        Raises:
            ConfigError: it has not.
        """
        for name in self.__dataclass_fields__:
            value = getattr(self, name)
            several = isinstance(value, Sequence) and not isinstance(value, str)
            if several and len(value) != n_structures:
                raise ConfigError(
                    f"{name} has {len(value)} entries for {n_structures} structures. "
                    "Give one number for all, or one per structure."
                )

    def _steps_in(self, name: str, structure: int) -> int:
        return round(1000 * float(self.of(name, structure)) / float(self.of("timestep", structure)))

    def _check(self, name: str, good: Any, valid: str) -> None:
        given = getattr(self, name)
        if given is None:
            return
        for value in given if isinstance(given, Sequence) else [given]:
            if isinstance(value, bool) or not isinstance(value, int | float) or not good(value):
                raise ConfigError(f"{name}={value!r} cannot be used. Give {valid}.")
            if not math.isfinite(value):
                raise ConfigError(f"{name}={value!r} cannot be used. Give {valid}.")
