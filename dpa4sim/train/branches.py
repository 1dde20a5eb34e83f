"""Training on several sets of labels at once: one trunk, a branch for each set.

Every batch of a step is drawn from one branch, by the branches' weights; with n_b of a step's N
batches from branch b,

    loss = sum_b  n_b / N  loss_b

where loss_b is Eq. 70 over the labels of that branch in that step.  Its mean over the steps is the
sum of the branches' losses, each with its share of the weights; with one branch it is Eq. 70.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from dpa4sim.branches import check_name
from dpa4sim.data.batch import LabelledBatch
from dpa4sim.data.statistics import energy_shifts
from dpa4sim.errors import ConfigError, DataError
from dpa4sim.model.branches import BranchedDPA4
from dpa4sim.train.branch_feed import BranchCursor, BranchPlan
from dpa4sim.train.build import Split, first_network, from_model, open_split, species_of
from dpa4sim.train.feed import Cursor, StepPlan
from dpa4sim.train.finetune import refit_shifts
from dpa4sim.train.loop import Trainer
from dpa4sim.train.loss import Weights, objective
from dpa4sim.train.settings import Settings


def check_branches(settings: Settings) -> None:
    """Settings of several branches that cannot be used.

    Raises:
        ConfigError: what and where.
    """
    for key in ("train", "valid", "energy_shifts"):
        if getattr(settings.data, key):
            raise ConfigError(
                f"data.{key} and [branches] are both given. Give each branch its own: "
                f"branches.NAME.{key}."
            )
    if settings.model.get("property_head", {}):
        raise ConfigError(
            "[model.property_head] and [branches] are both given, and branches are of energies. "
            "Train the property by itself."
        )
    if settings.finetune.lora_rank:
        raise ConfigError(
            "finetune.lora_rank and [branches] are both given. Fine-tune one branch: "
            "data.train and finetune.branch."
        )
    for name, branch in settings.branches.items():
        check_name(name)
        if not (branch.weight >= 0 and math.isfinite(branch.weight)):
            raise ConfigError(f"branches.{name}.weight = {branch.weight:g}; it must be at least 0.")
    if not sum(branch.weight for branch in settings.branches.values()) > 0:
        raise ConfigError("No branch has a weight above 0, so there is nothing to draw from.")
    for name in settings.branches:
        settings_of(settings, name)  # its loss weights are checked there


def settings_of(settings: Settings, name: str) -> Settings:
    """What one branch would be trained with if it were alone."""
    branch = settings.branches[name]
    own = {term: getattr(branch, term) for term in ("energy", "force", "virial")}
    loss = replace(settings.loss, **{term: given for term, given in own.items() if given})
    data = replace(
        settings.data,
        train=branch.train,
        valid=branch.valid,
        energy_shifts=branch.energy_shifts,
    )
    return replace(settings, branches={}, data=data, loss=loss)


def probabilities(settings: Settings) -> dict[str, float]:
    """How likely a batch is from each branch."""
    total = sum(branch.weight for branch in settings.branches.values())
    return {name: branch.weight / total for name, branch in settings.branches.items()}


def open_branches(settings: Settings) -> tuple[dict[str, Split], dict[str, Split]]:
    """Training and validation frames of each branch, checked against what its loss needs.

    Raises:
        DataError: a file that is no store, an empty split, or a label that the loss needs and no
            frame has; the message begins with the branch.
    """
    train, valid = {}, {}
    for name in settings.branches:
        try:
            train[name], valid[name] = open_split(settings_of(settings, name))
        except DataError as error:
            raise DataError(f"[branches.{name}] {error}") from error
    return train, valid


def build_branches(
    settings: Settings, train: Mapping[str, Split], valid: Mapping[str, Split]
) -> BranchedDPA4:
    """The network at step 0, with the energies of the species of each branch.

    Raises:
        ConfigError: options that can't be used, or a species that the network does not know.
        ModelError: the model to start from can't be used.
    """
    present = species_of(*train.values(), *valid.values())
    tuned = settings.finetune
    if tuned.model:
        kept = replace(settings, finetune=replace(tuned, refit_shifts=False))
        plain = from_model(kept, next(iter(train.values())), present)
    else:
        plain = first_network(settings, present)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(settings.run.seed)
        model = BranchedDPA4(plain, tuple(train), settings.sharing.head)
    for place, (name, part) in enumerate(train.items()):
        given = settings.branches[name].energy_shifts
        shifts = plain.energy_shift
        if not tuned.model:
            found = energy_shifts(part.store, part.frames, plain.config.species, given=given)
            shifts = torch.as_tensor(found)
        elif tuned.refit_shifts:
            shifts = refit_shifts(copy.deepcopy(plain), part.store, part.frames).energy_shift
        model.shifts[place] = shifts
    return model


class BranchTrainer(Trainer):
    """The training loop in which every batch is of one branch."""

    def __init__(self, *given: Any) -> None:
        super().__init__(*given)
        assert isinstance(self.model, BranchedDPA4)
        self.losses = {name: settings_of(self.settings, name).loss for name in self.model.branches}
        self.chosen, self.portion = self.model.branches[0], 1.0
        self.cursor: Cursor = BranchCursor()

    def choose(self, branch: str, portion: float) -> None:
        """The next batch is of this branch.

        Args:
            portion: n_b / N of its loss.
        """
        assert isinstance(self.model, BranchedDPA4)
        self.model.choose(branch)
        self.chosen, self.portion = branch, portion

    def share(self, found: Any, total: Tensor) -> Float[Tensor, ""]:
        """What a batch adds to the loss of its step."""
        loss = self.losses[self.chosen]
        weights = Weights.at(loss, self.rate / self.settings.optimizer.lr)
        return self.portion * objective(found, weights, loss, total)

    def _step(self, plan: StepPlan, batches: Sequence[LabelledBatch]) -> None:
        assert isinstance(plan, BranchPlan)
        assert isinstance(self.model, BranchedDPA4)
        # Weights that no batch asks for stay as they are, with any number of processes.
        self.parameters = self.model.parameters_of(plan.branches)
        loss = torch.zeros((), dtype=torch.float64, device=self.device)
        self.optimizer.zero_grad(set_to_none=True)
        mine = plan.branches[self.ranks.rank :: self.ranks.world]
        with self.scope():
            for branch, labelled in zip(mine, batches, strict=True):
                self.choose(branch, plan.branches.count(branch) / len(plan.branches))
                labels = (plan.labels_of or {})[branch]
                total = torch.tensor(labels, dtype=torch.float64, device=self.device)
                loss += self._learn(labelled, total)
            self._move(loss)

    def state(self) -> dict[str, Any]:
        """All that the next step depends on."""
        assert isinstance(self.cursor, BranchCursor)
        places = [list(place) for place in self.cursor.places]
        return {**super().state(), "places": places}

    def load_state(self, state: dict[str, Any]) -> None:
        """Go on from there."""
        super().load_state(state)
        places = tuple((epoch, batch) for epoch, batch in state["places"])
        self.cursor = BranchCursor(self.cursor.epoch, self.cursor.step, places)
