"""Which branch and which of its frames each batch of a step is from."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import count

import numpy as np

from dpa4sim.data.batch import LabelledBatch
from dpa4sim.train.feed import Cursor, Feed, StepPlan

DRAW = 20260607
"""Tells the numbers that draw branches from those that order the frames."""


@dataclass(frozen=True)
class BranchCursor(Cursor):
    """Where the next step's frames are, in every branch.

    Args:
        epoch: times that every branch was passed through.
        step: of the run.
        places: epoch and batch of each branch.
    """

    places: tuple[tuple[int, int], ...] = ()


@dataclass(frozen=True)
class BranchPlan(StepPlan):
    """The frames of one step.

    Args:
        branches: of each batch.
        labels_of: `labels` of each branch in the step.
    """

    branches: tuple[str, ...] = ()
    labels_of: Mapping[str, tuple[int, ...]] | None = None


class BranchFeed(Feed):
    """Batches of branches that are drawn by weight: a pure function of the seed and a cursor.

    Args:
        members: the batches of each branch.
        likely: how likely a batch is from each.
        seed: of the draws.
    """

    def __init__(self, members: Mapping[str, Feed], likely: Mapping[str, float], seed: int):
        first = next(iter(members.values()))
        self.members, self.names, self.seed = dict(members), tuple(members), seed
        self.likely = np.array([likely[name] for name in self.names])
        self.per_step, self.ranks, self.device = first.per_step, first.ranks, first.device
        self.epochs: dict[str, tuple[int, list[np.ndarray]]] = {}

    def drawn(self, step: int) -> list[int]:
        """The branch of each batch of a step."""
        rng = np.random.default_rng(np.random.SeedSequence((self.seed, DRAW, step)))
        return rng.choice(len(self.names), self.per_step, p=self.likely).tolist()

    def _plans(self, cursor: Cursor) -> Iterator[StepPlan]:
        """Step after step, without an end."""
        assert isinstance(cursor, BranchCursor)
        places = list(cursor.places or [(0, 0)] * len(self.names))
        for step in count(cursor.step):
            chosen, branches = [], []
            for number in self.drawn(step):
                epoch, batch = places[number]
                batches = self._epoch(self.names[number], epoch)
                chosen.append(batches[batch])
                branches.append(self.names[number])
                last = batch + 1 == len(batches)
                places[number] = (epoch + 1, 0) if last else (epoch, batch + 1)
            epochs = min(epoch for epoch, _ in places)
            yield self._branch_plan(chosen, branches, BranchCursor(epochs, step + 1, tuple(places)))

    def _epoch(self, name: str, number: int) -> list[np.ndarray]:
        """A branch's batches of an epoch; those of the latest are kept."""
        if name not in self.epochs or self.epochs[name][0] != number:
            self.epochs[name] = number, self.members[name].sampler.epoch(number)
        return self.epochs[name][1]

    def _branch_plan(
        self, batches: Sequence[np.ndarray], branches: Sequence[str], following: Cursor
    ) -> BranchPlan:
        plans = {
            name: self.members[name]._plan(
                [batch for batch, its in zip(batches, branches, strict=True) if its == name],
                following,
            )
            for name in dict.fromkeys(branches)
        }
        rows = [
            self.members[name].frames[batch] for batch, name in zip(batches, branches, strict=True)
        ]
        labels = np.sum([plan.labels for plan in plans.values()], 0).tolist()
        return BranchPlan(
            tuple(rows),
            tuple(labels),
            following,
            tuple(branches),
            {name: plan.labels for name, plan in plans.items()},
        )

    def _read(self, plan: StepPlan) -> list[LabelledBatch]:
        assert isinstance(plan, BranchPlan)
        pairs = list(zip(plan.branches, plan.batches, strict=True))
        mine = pairs[self.ranks.rank :: self.ranks.world]
        return [self.members[name].store.batch(frames) for name, frames in mine]
