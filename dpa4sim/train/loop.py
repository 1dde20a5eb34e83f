"""The training loop: batches -> gradient of the objective -> weights.

Nothing here reads the device between two looks: a loss that is not finite skips its step there.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.optim.lr_scheduler import LRScheduler

from dpa4sim.batch import Batch
from dpa4sim.data.batch import LabelledBatch
from dpa4sim.edges import Edges, neighbors
from dpa4sim.model import DPA4
from dpa4sim.train.average import WeightAverage
from dpa4sim.train.compiled import force_pass
from dpa4sim.train.feed import Cursor, Feed, StepPlan
from dpa4sim.train.loss import Errors, Residuals, Weights, objective, residuals
from dpa4sim.train.muon import HybridMuon
from dpa4sim.train.ranks import Ranks
from dpa4sim.train.settings import Settings

LOOK_EVERY = 50
"""Steps between two looks at how many steps were skipped."""


@dataclass
class Guard:
    """Counts steps whose loss or gradient is not finite, on the device.

    Args:
        in_a_row: such steps since the last good one.
        total: such steps of the whole run.
    """

    in_a_row: Float[Tensor, ""]
    total: Float[Tensor, ""]

    def count(self, bad: Tensor) -> None:
        """One more step."""
        self.in_a_row = torch.where(bad, self.in_a_row + 1, torch.zeros_like(self.in_a_row))
        self.total = self.total + bad


class Trainer:
    """Weights on their way, and all that they need to go on bit for bit.

    Args:
        model: the network in training, as `compiled.prepare` gave it back.
        species_of: row of each atomic number in the species table.
        feed: batches of every step.
        scope: what each step runs inside, such as a precision of matrix products.
    """

    def __init__(
        self,
        model: DPA4,
        species_of: Tensor,
        optimizer: HybridMuon,
        schedule: LRScheduler,
        average: WeightAverage,
        feed: Feed,
        settings: Settings,
        ranks: Ranks,
        scope: Callable[[], AbstractContextManager[Any]],
    ):
        self.model, self.species_of = model, species_of
        self.optimizer, self.schedule, self.average = optimizer, schedule, average
        self.feed, self.settings, self.ranks, self.scope = feed, settings, ranks, scope
        self.parameters = [p for p in model.parameters() if p.requires_grad]
        self.device = next(model.parameters()).device
        zero = torch.zeros((), dtype=torch.float64, device=self.device)
        self.guard = Guard(zero, zero)
        self.done, self.cursor, self.atoms = 0, Cursor(), 0
        self.errors = self.fresh_errors()
        self.recent: deque[StepPlan] = deque(maxlen=LOOK_EVERY + settings.run.max_skipped)

    def steps(self) -> Iterator[int]:
        """Take every step that is left; give the number of steps taken after each."""
        left = self.settings.run.steps - self.done
        for plan, batches in self.feed.steps(self.cursor, left):
            self.recent.append(plan)
            self._step(plan, batches)
            self.done += 1
            self.cursor = plan.following
            yield self.done

    @property
    def rate(self) -> float:
        """Learning rate of the next step."""
        return float(self.schedule.get_last_lr()[0])

    def too_many_skipped(self) -> list[StepPlan]:
        """The steps that were skipped one after the other, if that were too many.

        Looks at the device.
        """
        in_a_row = int(self.guard.in_a_row.item())
        if in_a_row < self.settings.run.max_skipped:
            return []
        return list(self.recent)[-in_a_row:]

    def fresh_errors(self) -> Errors:
        """Sums of errors that are all zero."""
        return Errors(self.device)

    def predict(self, labelled: LabelledBatch) -> Residuals:
        """Energy, forces and virial against the labels, differentiable to the weights."""
        species, edges, charge, spin = self._inputs(labelled.batch)
        vector = edges.vector.requires_grad_(True)
        atomic, _ = self.model(species, edges, charge, spin)
        with force_pass():
            (gradient,) = torch.autograd.grad(atomic.sum(), vector, create_graph=True)
        return residuals(labelled, edges, atomic, gradient)

    def share(self, found: Any, total: Tensor) -> Float[Tensor, ""]:
        """What a batch adds to the loss of its step.

        Args:
            found: what `predict` gave.
            total: labels of each kind in all batches of the step, on all devices.
        """
        settings = self.settings
        weights = Weights.at(settings.loss, self.rate / settings.optimizer.lr)
        return objective(found, weights, settings.loss, total)

    def _inputs(self, batch: Batch) -> tuple[Tensor, Edges, Tensor | None, Tensor | None]:
        """Species, edges, charge and spin as the network takes them."""
        found = neighbors(batch, self.model.config.cutoff)
        dtype = self.parameters[0].dtype
        edges = Edges(found.center, found.neighbor, found.vector.detach().to(dtype), found.row_ptr)
        charge, spin = (
            None if value is None else value[batch.system_idx].to(dtype)
            for value in (batch.charge, batch.spin)
        )
        return self.species_of[batch.atomic_numbers], edges, charge, spin

    def _step(self, plan: StepPlan, batches: Sequence[LabelledBatch]) -> None:
        total = torch.tensor(plan.labels, dtype=torch.float64, device=self.device)
        loss = torch.zeros((), dtype=torch.float64, device=self.device)
        self.optimizer.zero_grad(set_to_none=True)
        with self.scope():
            for labelled in batches:
                loss += self._learn(labelled, total)
            self._move(loss)

    def _learn(self, labelled: LabelledBatch, total: Tensor) -> Float[Tensor, ""]:
        """Add a batch's share to the gradient; what it adds to the loss."""
        found = self.predict(labelled)
        share = self.share(found, total)
        share.backward(inputs=self.parameters)  # type: ignore[no-untyped-call]
        self.errors.add(found)
        self.atoms += len(labelled.batch.positions)
        return share.detach()

    def _move(self, loss: Tensor) -> None:
        """Clip, and move the weights unless something is not finite."""
        self.ranks.sum_gradients(self.parameters, loss)
        norm = torch.nn.utils.clip_grad_norm_(self.parameters, self.settings.optimizer.clip)
        bad = ~(norm.isfinite() & loss.isfinite())
        self.optimizer.step(skip=bad)
        self.schedule.step()
        self.average.update(self.model)
        self.guard.count(bad)

    def state(self) -> dict[str, Any]:
        """All that the next step depends on."""
        return {
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "schedule": self.schedule.state_dict(),
            "average": self.average.state_dict(),
            "guard": [self.guard.in_a_row, self.guard.total],
            "errors": [self.errors.sums, self.errors.labels],
            "done": self.done,
            "cursor": [self.cursor.epoch, self.cursor.step],
        }

    def load_state(self, state: dict[str, Any]) -> None:
        """Go on from there."""
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.schedule.load_state_dict(state["schedule"])
        self.average.load_state_dict(state["average"])
        self.guard = Guard(*(value.to(self.device) for value in state["guard"]))
        sums, labels = state["errors"]
        self.errors.sums, self.errors.labels = sums.to(self.device), labels.to(self.device)
        self.done, self.cursor = state["done"], Cursor(*state["cursor"])
