"""What the pool does to trajectories: start, advance, measure, write, finish."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from math import gcd
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from dpa4sim.batch import Batch
from dpa4sim.errors import SICK, ConfigError, Status
from dpa4sim.pool.pack import join, rebuild
from dpa4sim.pool.queue import Job
from dpa4sim.potential import EnergyModel, Prediction
from dpa4sim.simulate.observables import radial_distribution
from dpa4sim.simulate.recorder import Recorder
from dpa4sim.simulate.settings import MDSettings
from dpa4sim.simulate.state import Conditions, MDState, conserved_energy, md_init
from dpa4sim.simulate.watch import AVERAGED, Watch, look, watch
from dpa4sim.step_graphs import take_steps

LONGEST_STRIDE = 100
"""Steps after which the host looks at the latest who has ended."""


@dataclass(frozen=True)
class MDRun:
    """How one trajectory ended.

    Args:
        index: its place among all trajectories: replicas of a structure follow each other.
        structure: place of its structure in the input.
        replica: which copy.
        status: COMPLETED, or what went wrong.
        reason: the status as a sentence.
        steps: steps made.
        time_ps: simulated time.
        energy: potential energy at the end, eV.
        drift: change of what the equations of motion conserve, eV per atom.
        n_samples: behind the means.
        means: of energy, kinetic_energy (eV), temperature (K), pressure_gpa and volume (Å^3).
        msd: mean square displacement since the end of the skipped time, Å^2.
        batch: the last sound geometry, on the CPU; positions are not wrapped.
        velocities: there, Å/fs; None if it never started.
        rdf: g(r) in bins of equal width up to `rdf_max`; None if not asked for.
        prediction: what the model said there; None when it was never asked.
    """

    index: int
    structure: int
    replica: int
    status: Status
    reason: str
    steps: int
    time_ps: float
    energy: float
    drift: float
    n_samples: int
    means: dict[str, float]
    msd: float
    batch: Batch
    velocities: Float[Tensor, "atom 3"] | None
    rdf: Float[Tensor, " bin"] | None
    prediction: Prediction | None


@dataclass(frozen=True)
class Sampling:
    """What is measured on the way.

    Args:
        every: steps between two samples.
        rdf_max: range of pair distances, Å; 0 for none.
        rdf_bins: bins over it.
    """

    every: int = 10
    rdf_max: float = 0.0
    rdf_bins: int = 200

    def __post_init__(self) -> None:
        if self.every < 1 or self.rdf_bins < 1 or not 0 <= self.rdf_max < math.inf:
            raise ConfigError(
                f"sample_every={self.every}, rdf_bins={self.rdf_bins}, rdf_max={self.rdf_max}. "
                "Give at least one step, one bin, and a range of 0 Å or more."
            )


@dataclass(frozen=True)
class Simulated:
    """A working set: where it is, and what has been seen of it."""

    state: MDState
    seen: Watch

    @property
    def batch(self) -> Batch:
        """The systems."""
        return self.state.batch

    @property
    def status(self) -> Int[Tensor, " system"]:
        """How each is."""
        return self.state.status


@dataclass(frozen=True)
class Terms:
    """What a trajectory is asked to do.

    Args:
        conditions: of its integrator.
        skip: steps before the first sample.
    """

    conditions: Conditions
    skip: Int[Tensor, " system"]


@dataclass
class Dynamics:
    """The pool's method: an ensemble, what is measured, and where it is written.

    Args:
        settings: of the run.
        sampling: what is measured.
        recorder: None to write nothing.
        frame_every: steps between two frames.
        progressed: steps that the host has asked for, by the index of the job.
    """

    settings: MDSettings
    sampling: Sampling
    recorder: Recorder | None
    frame_every: int
    result: type[MDRun] = MDRun
    progressed: dict[int, int] = field(default_factory=dict)

    @property
    def stride(self) -> int:
        """Steps between two looks: samples and frames are taken at multiples of it."""
        writes = self.recorder is not None and self.frame_every > 0
        common = gcd(self.sampling.every, self.frame_every) if writes else self.sampling.every
        return max(n for n in range(1, LONGEST_STRIDE + 1) if common % n == 0)

    def close(self) -> None:
        """Write what is left."""
        if self.recorder is not None:
            self.recorder.close()

    def start(self, jobs: Sequence[Job], model: EnergyModel) -> Simulated:
        """Velocities, and an evaluation where the newcomers stand."""
        batch = join(*(job.system for job in jobs)).to(model.device)
        terms: Terms = join(*(job.terms for job in jobs))
        terms = rebuild(lambda tensor: tensor.to(model.device), terms)
        state = md_init(batch, model, conditions=terms.conditions)
        seen = watch(state, terms.skip, self.sampling.rdf_max, self.sampling.rdf_bins)
        for job in jobs:
            self.progressed.setdefault(job.index, 0)
        return Simulated(state, seen)

    def advance(self, working: Simulated, jobs: Sequence[Job], model: EnergyModel) -> Simulated:
        """Up to `stride` steps, as many as the longest trajectory still needs, then a sample."""
        ids = [job.index for job in jobs]
        before = [self.progressed[index] for index in ids]
        if not all(before):  # somebody stands at the start
            working = self._record(working, ids, torch.full_like(working.status, -1))
        left = [
            int(job.terms.conditions.n_steps[0]) - n for job, n in zip(jobs, before, strict=True)
        ]
        n_steps = min(self.stride, max(max(left), 1))
        earlier = working.state.steps
        state = take_steps(self.settings.stepper(), working.state, model, n_steps)
        self.progressed |= {index: n + n_steps for index, n in zip(ids, before, strict=True)}
        return self._record(Simulated(state, working.seen), ids, earlier)

    def _record(
        self, working: Simulated, ids: Sequence[int], earlier: Int[Tensor, " system"]
    ) -> Simulated:
        """Sample who has moved since `earlier` to a step that is due; hand frames over."""
        state = working.state
        due = (state.steps > earlier) & (state.steps % self.sampling.every == 0)
        seen, now, msd = look(working.seen, state, due)
        if self.recorder is not None:
            progress = [self.progressed[index] for index in ids]
            if any(n % self.sampling.every == 0 for n in progress):
                self.recorder.sample(ids, state, now, msd)
            if self.frame_every and any(n % self.frame_every == 0 for n in progress):
                self.recorder.frame(ids, state, now)
        return Simulated(state, seen)

    def finish(self, working: Simulated, job: Job, status: Status | None = None) -> MDRun:
        """What one trajectory, on the CPU, says for people; its last frame is written."""
        state, seen = working.state, working.seen
        status = Status(int(state.status[0])) if status is None else status
        never = torch.zeros_like(state.status, dtype=torch.bool)
        _, now, msd = look(seen, state, never)
        if self.recorder is not None:
            self.recorder.frame([job.index], state, now, last=True)
        steps, n_samples = int(state.steps[0]), int(seen.n_samples[0])
        drift = float(conserved_energy(state)[0] - seen.conserved[0])
        means = (seen.sums[0] / max(n_samples, 1)).tolist() if n_samples else [math.nan] * 5
        self.progressed.pop(job.index, None)
        return MDRun(
            **self._place(job),
            status=status,
            reason=f"{status.sentence} (step {steps})" if status in SICK else status.sentence,
            steps=steps,
            time_ps=1e-3 * steps * float(state.conditions.timestep[0]),
            energy=float(state.prediction.energy[0]),
            drift=drift / len(state.batch.positions),
            n_samples=n_samples,
            means=dict(zip(AVERAGED, means, strict=True)),
            msd=float(msd[0]),
            batch=state.batch,
            velocities=state.velocities,
            rdf=None if seen.pairs is None else radial_distribution(seen.pairs, state.batch)[0],
            prediction=state.prediction,
        )

    def refuse(self, job: Job, status: Status, reason: str) -> MDRun:
        """A trajectory that never started."""
        means = dict.fromkeys(AVERAGED, math.nan)
        nan = math.nan
        return MDRun(
            **self._place(job),
            status=status,
            reason=reason,
            steps=0,
            time_ps=0.0,
            energy=nan,
            drift=nan,
            n_samples=0,
            means=means,
            msd=nan,
            batch=job.system,
            velocities=None,
            rdf=None,
            prediction=None,
        )

    def checkpoint(self) -> dict[str, Any]:
        """How far the host has asked for, and how much of the file is on the disk."""
        counts = None if self.recorder is None else self.recorder.checkpoint()
        return {"counts": counts, "progressed": {str(k): n for k, n in self.progressed.items()}}

    def resume(self, remembered: dict[str, Any] | None) -> None:
        """Open the file, behind the checkpoint if there is one."""
        if remembered is not None:
            self.progressed = {int(k): n for k, n in remembered["progressed"].items()}
        if self.recorder is not None:
            self.recorder.open(None if remembered is None else remembered["counts"])

    def _place(self, job: Job) -> dict[str, int]:
        structure, replica = divmod(job.index, self.settings.replicas)
        return {"index": job.index, "structure": structure, "replica": replica}
