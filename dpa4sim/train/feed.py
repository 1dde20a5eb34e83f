"""Which frames each step sees, and their arrival from the disk while the step before computes."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from itertools import chain, count, islice

import numpy as np
import torch

from dpa4sim.data.batch import LabelledBatch
from dpa4sim.data.sampler import EdgeBudget
from dpa4sim.data.store import Store
from dpa4sim.train.ranks import Ranks


@dataclass(frozen=True)
class Cursor:
    """Where the next step's frames are: which epoch, and which step of it."""

    epoch: int = 0
    step: int = 0


@dataclass(frozen=True)
class StepPlan:
    """The frames of one step on all devices.

    Args:
        batches: rows of the store, batch by batch.
        labels: frames with an energy, atoms with a force, frames with a stress, and what more
            kinds of labels the feed was told of.
        following: where the step after this one is.
    """

    batches: tuple[np.ndarray, ...]
    labels: tuple[int, ...]
    following: Cursor

    @property
    def frames(self) -> np.ndarray:
        """All of them."""
        return np.concatenate(self.batches)


class Feed:
    """The order of the frames, a pure function of the seed and a cursor: a resumed run finds it.

    Args:
        store: the labelled frames.
        frames: the rows that are trained on.
        sampler: cuts an epoch of those into batches.
        batches_per_step: of all devices together.
        more_labels: labels of further kinds, one row for each kind, of each frame of the store.
    """

    def __init__(
        self,
        store: Store,
        frames: np.ndarray,
        sampler: EdgeBudget,
        *,
        batches_per_step: int,
        ranks: Ranks,
        device: torch.device,
        more_labels: np.ndarray | None = None,
    ):
        self.store, self.frames, self.sampler = store, frames, sampler
        self.per_step, self.ranks, self.device = batches_per_step, ranks, device
        atoms = store.n_atoms
        self._labels = np.stack([
            store.has("energy").astype(np.int64),
            store.has("forces") * atoms,
            store.has("stress").astype(np.int64),
            *([] if more_labels is None else more_labels),
        ])  # fmt: skip

    def steps(self, first: Cursor, number: int) -> Iterator[tuple[StepPlan, list[LabelledBatch]]]:
        """Plans and this device's batches of so many steps; the next one is read meanwhile."""
        plans = islice(self._plans(first), number)
        with ThreadPoolExecutor(1) as reader:
            waiting: tuple[StepPlan, Future[list[LabelledBatch]]] | None = None
            for plan in chain(plans, [None]):
                arriving = None if plan is None else (plan, reader.submit(self._read, plan))
                if waiting is not None:
                    batches = waiting[1].result()
                    yield waiting[0], [batch.to(self.device) for batch in batches]
                waiting = arriving

    def _read(self, plan: StepPlan) -> list[LabelledBatch]:
        mine = plan.batches[self.ranks.rank :: self.ranks.world]
        return [self.store.batch(frames) for frames in mine]

    def _plans(self, cursor: Cursor) -> Iterator[StepPlan]:
        """Step after step, epoch after epoch, without an end."""
        for epoch in count(cursor.epoch):
            batches = self.sampler.epoch(epoch)
            n_steps = -(-len(batches) // self.per_step)
            for step in range(cursor.step if epoch == cursor.epoch else 0, n_steps):
                chosen = batches[step * self.per_step : (step + 1) * self.per_step]
                last = step + 1 == n_steps
                yield self._plan(chosen, Cursor(epoch + 1) if last else Cursor(epoch, step + 1))

    def _plan(self, batches: list[np.ndarray], following: Cursor) -> StepPlan:
        chosen = tuple(self.frames[batch] for batch in batches)
        labels = self._labels[:, np.concatenate(chosen)].sum(1).tolist()
        return StepPlan(chosen, tuple(labels), following)
