"""What the pool does to relaxations: start, advance, finish."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from dpa4sim.errors import SICK, Status
from dpa4sim.lattice import volume
from dpa4sim.pool.pack import join, rebuild
from dpa4sim.pool.queue import Job
from dpa4sim.potential import EnergyModel
from dpa4sim.relax.fire import FireSettings, FireState, fire_init, fire_step
from dpa4sim.relax.freedom import Freedom
from dpa4sim.relax.lbfgs import LbfgsSettings, LbfgsState, lbfgs_init, lbfgs_step, settled
from dpa4sim.relax.result import Relaxed
from dpa4sim.step_graphs import take_steps


@dataclass(frozen=True)
class Relaxation:
    """The pool's method: one optimiser with its settings.

    Args:
        settings: of FIRE or L-BFGS, which decides between them.
        cell_filter: of FIRE.
        stride: steps between two looks of the host.
    """

    settings: FireSettings | LbfgsSettings
    cell_filter: str
    stride: int
    result: type[Relaxed] = Relaxed

    def described(self) -> dict[str, Any]:
        """What decides the numbers, for a run directory."""
        optimizer = "lbfgs" if isinstance(self.settings, LbfgsSettings) else "fire"
        found = {"optimizer": optimizer, **asdict(self.settings)}
        del found["max_edges"]  # what the device can hold today
        if not found.get("moments"):  # then nothing is said of moments, as before they could relax
            found = {key: found[key] for key in found if key not in ("moments", "magnetic_fmax")}
        return {**found, "cell_filter": self.cell_filter, "check_every": self.stride}

    def start(self, jobs: Sequence[Job], model: EnergyModel) -> FireState | LbfgsState:
        """Evaluate the newcomers where they stand."""
        batch = join(*(job.system for job in jobs)).to(model.device)
        freedom: Freedom = join(*(job.terms for job in jobs))
        freedom = rebuild(lambda tensor: tensor.to(model.device), freedom)
        if isinstance(self.settings, LbfgsSettings):
            return lbfgs_init(batch, model, freedom=freedom, settings=self.settings)
        return fire_init(
            batch, model, freedom=freedom, cell_filter=self.cell_filter, settings=self.settings
        )

    def advance(self, state: Any, jobs: Sequence[Job], model: EnergyModel) -> Any:
        """`stride` steps."""
        if isinstance(self.settings, LbfgsSettings):
            return take_steps(lbfgs_step, state, model, self.stride, settled)
        return take_steps(fire_step, state, model, self.stride)

    def finish(self, state: Any, job: Job, status: Status | None = None) -> Relaxed:
        """What the state of one system, on the CPU, says for people."""
        status = Status(int(state.status[0])) if status is None else status
        steps = int(state.steps[0])
        reason = f"{status.sentence} (step {steps})" if status in SICK else status.sentence
        start, end = float(volume(job.system.cell)[0]), float(volume(state.batch.cell)[0])
        by_moment = state.prediction.magnetic_forces
        moving = job.terms.movable[:, None] * state.prediction.forces
        return Relaxed(
            index=job.index,
            status=status,
            reason=reason,
            steps=steps,
            evaluations=int(state.evaluations[0]),
            fmax=float(moving.norm(dim=1).max()),
            residual=float(state.residual[0]),
            stress_max=float(state.prediction.stress.abs().max()),
            energy=float(state.prediction.energy[0]),
            volume_change=end / start - 1 if start > 0 else math.nan,
            batch=state.batch,
            prediction=state.prediction,
            magnetic_fmax=math.nan if by_moment is None else float(by_moment.norm(dim=1).max()),
        )

    def refuse(self, job: Job, status: Status, reason: str) -> Relaxed:
        """A structure that never moved."""
        unknown = (math.nan,) * 5
        return Relaxed(job.index, status, reason, 0, 0, *unknown, batch=job.system, prediction=None)

    def checkpoint(self) -> dict[str, Any]:
        """Nothing beside the state."""
        return {}

    def resume(self, remembered: dict[str, Any] | None) -> None:
        """Nothing beside the state."""
