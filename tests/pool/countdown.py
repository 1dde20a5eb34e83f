"""A method for the pool that is nothing but counting, and its jobs."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor
from toy import LennardJones, crystals, from_atoms

from dpa4sim.batch import Batch, sum_over_atoms
from dpa4sim.edges import estimated_edges
from dpa4sim.errors import Status
from dpa4sim.pool.pack import join
from dpa4sim.pool.queue import Job
from dpa4sim.potential import EnergyModel


@dataclass(frozen=True)
class Length:
    """How many steps a system runs, and how much its edge length grows in each."""

    steps: Int[Tensor, " system"]
    growth: Float[Tensor, " system"]


@dataclass(frozen=True)
class Counting:
    """A working set on its way."""

    batch: Batch
    terms: Length
    status: Int[Tensor, " system"]
    steps: Int[Tensor, " system"]
    total: Float[Tensor, " system"]
    path: Float[Tensor, "atom 3"]


@dataclass(frozen=True)
class Counted:
    """What is said in the end."""

    index: int
    status: Status
    reason: str
    steps: int
    total: float
    batch: Batch
    path: Tensor | None


@dataclass
class Countdown:
    """Adds the energy at every step, and forgets nothing that decides the bits."""

    stride: int = 1
    result: type[Counted] = Counted
    remembered: int = 0

    def start(self, jobs, model: EnergyModel) -> Counting:
        batch = join(*(job.system for job in jobs)).to(model.device)
        model(batch)
        zero = torch.zeros_like(batch.n_atoms)
        status = zero + Status.RUNNING
        total = torch.zeros(batch.n_systems, dtype=torch.float64)
        path = torch.zeros_like(batch.positions)
        return Counting(batch, join(*(job.terms for job in jobs)), status, zero, total, path)

    def advance(self, state: Counting, jobs, model: EnergyModel) -> Counting:
        assert [len(job.system.positions) for job in jobs] == state.batch.n_atoms.tolist()
        for _ in range(self.stride):
            state = self._step(state, model)
        self.remembered += self.stride
        return state

    def _step(self, state: Counting, model: EnergyModel) -> Counting:
        running = state.status == Status.RUNNING
        scale = torch.where(running, 1 + state.terms.growth, 1.0)
        cell = state.batch.cell * scale[:, None, None]
        positions = state.batch.positions * scale[state.batch.system_idx, None]
        batch = state.batch.with_geometry(positions, cell)
        prediction = model(batch)
        moving = running[state.batch.system_idx, None]
        path = torch.where(moving, state.path * 0.7 + prediction.forces, state.path)
        gain = prediction.energy + sum_over_atoms(path.square().sum(1), batch).sqrt()
        steps = state.steps + running
        ended = steps >= state.terms.steps
        return replace(
            state,
            batch=batch,
            steps=steps,
            path=path,
            total=torch.where(running, state.total + gain, state.total),
            status=torch.where(ended, Status.COMPLETED, state.status),
        )

    def finish(self, state: Counting, job: Job, status: Status | None = None) -> Counted:
        status = Status(int(state.status[0])) if status is None else status
        return Counted(
            index=job.index,
            status=status,
            reason=status.sentence,
            steps=int(state.steps[0]),
            total=float(state.total[0]),
            batch=state.batch,
            path=state.path,
        )

    def refuse(self, job: Job, status: Status, reason: str) -> Counted:
        return Counted(job.index, status, reason, 0, float("nan"), job.system, None)

    def checkpoint(self) -> dict[str, Any]:
        return {"remembered": self.remembered}

    def resume(self, remembered: dict[str, Any] | None) -> None:
        self.remembered = 0 if remembered is None else remembered["remembered"]


def jobs(count: int, cutoff: float = LennardJones.cutoff, growth: float = 0.0, longest: int = 9):
    """`count` jobs of unlike crystals and lengths, made when asked for; every seventh refused."""
    perfect = [from_atoms(atoms) for atoms in crystals().values()]
    for index in range(count):
        system = perfect[index % len(perfect)]
        noise = torch.Generator().manual_seed(index)
        shift = 0.05 * torch.randn(system.positions.shape, generator=noise, dtype=torch.float64)
        system = system.with_geometry(system.positions + shift, system.cell)
        steps = torch.tensor([1 + index * 5 % longest])
        terms = Length(steps, torch.full((1,), growth, dtype=torch.float64))
        refusal = "it is the seventh" if index % 7 == 6 else None
        edges = float(estimated_edges(system, cutoff)[0])
        yield Job(index, system, terms, refusal, edges)
