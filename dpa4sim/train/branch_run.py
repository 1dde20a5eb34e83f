"""A training run on several sets of labels; its files hold all branches."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from dpa4sim.branches import Branches, load_branches
from dpa4sim.model import DPA4
from dpa4sim.model.branches import BranchedDPA4
from dpa4sim.potential import Potential
from dpa4sim.property import PropertyModel
from dpa4sim.train.branch_feed import BranchFeed, BranchPlan
from dpa4sim.train.branches import BranchTrainer, build_branches, probabilities, settings_of
from dpa4sim.train.build import Split, species_of
from dpa4sim.train.feed import Feed, StepPlan
from dpa4sim.train.loop import Trainer
from dpa4sim.train.ranks import Ranks
from dpa4sim.train.report import in_short, write_parity
from dpa4sim.train.run import PARITY_ATOMS, TrainingRun
from dpa4sim.train.settings import Settings
from dpa4sim.train.validation import batches_of, merit, validation_errors


class BranchRun(TrainingRun):
    """A run on several sets of labels; its files hold all branches."""

    def __init__(
        self,
        settings: Settings,
        train_sets: Mapping[str, Split],
        valid_sets: Mapping[str, Split],
        ranks: Ranks,
        path: Path,
        *place: Any,
    ):
        self.train_sets, self.valid_sets = dict(train_sets), dict(valid_sets)
        self.likely = probabilities(settings)
        first = next(iter(settings.branches))
        super().__init__(settings, train_sets[first], valid_sets[first], ranks, path, *place)

    @staticmethod
    def hashes(train_sets: Any, valid_sets: Any) -> dict[str, str]:
        """Contents of the stores, which must be the same when the run goes on."""
        return {
            f"{name}:{purpose}": part.store.content_hash
            for purpose, parts in (("train", train_sets), ("valid", valid_sets))
            for name, part in parts.items()
        }

    def _network(self) -> DPA4:
        return build_branches(self.settings, self.train_sets, self.valid_sets)

    def _kind(self, model: DPA4) -> type[Trainer]:
        return BranchTrainer

    def _feed(self, model: DPA4) -> Feed:
        members = {name: self._feed_of(part, model) for name, part in self.train_sets.items()}
        return BranchFeed(members, self.likely, self.settings.run.seed)

    def _columns(self) -> dict[str, str]:
        columns, errors = super()._columns(), self.trainer.errors
        units = {name: columns[f"valid_{name}"] for name in errors.NAMES}
        return columns | {
            f"valid_{branch}:{name}": unit
            for branch in self.train_sets
            for name, unit in units.items()
        }

    def _where(self, plan: StepPlan) -> Iterator[str]:
        assert isinstance(plan, BranchPlan)
        for branch, rows in zip(plan.branches, plan.batches, strict=True):
            for row in rows:
                yield f"{branch}: {self.train_sets[branch].store.where(int(row))}"

    def _errors(self, model: Any) -> dict[str, float]:
        """Means over the branches by their weights, then those of each branch."""
        found = {
            name: validation_errors(model[name], part, self.ranks)
            for name, part in self.valid_sets.items()
        }
        return combined(found, self.likely)

    def _merit(self, found: dict[str, float]) -> float:
        """The branches' merits by their weights."""
        return sum(
            likely * merit(of_branch(found, name), settings_of(self.settings, name))
            for name, likely in self.likely.items()
            if likely
        )

    def _in_words(self, found: dict[str, float]) -> str:
        words = [f"{name}: {in_short(of_branch(found, name))}" for name in self.valid_sets]
        return ";  ".join(words)

    def _note(self, model: Any, record: dict[str, float]) -> None:
        for name, member in model.items():
            member.card["validation"] = {"step": record["step"], **of_branch(record, name)}

    def _opened(self, model: DPA4, card: dict[str, Any]) -> Potential | PropertyModel | Branches:
        assert isinstance(model, BranchedDPA4)
        asked: dict[str, Any] = {"device": self.device, "dtype": self.settings.run.dtype}
        return Branches({
            name: Potential(
                model.network(name), card={**card, "elements of its labels": elements}, **asked
            )
            for name, elements in self._elements().items()
        })  # fmt: skip

    def _elements(self) -> dict[str, str]:
        """Elements that each branch has labels of; it knows others only from the trunk."""
        return {name: " ".join(species_of(part)) for name, part in self.train_sets.items()}

    def _best(self) -> tuple[Any, dict[str, float]]:
        path, dtype = self.path / "best.safetensors", self.settings.run.dtype
        best = load_branches(path, device=self.device, dtype=dtype)
        records = {name: dict(member.card["validation"]) for name, member in best.items()}
        steps = [record.pop("step") for record in records.values()]
        return best, {"step": steps[0], **combined(records, self.likely)}

    def _draw_parity(self, best: Any) -> None:
        for name, part in self.valid_sets.items():
            path = self.path / f"parity_{name}.png"
            write_parity(best[name], batches_of(part, PARITY_ATOMS), path)

    def _sizes(self) -> tuple[int, int]:
        train, valid = (
            sum(len(part.frames) for part in parts.values())
            for parts in (self.train_sets, self.valid_sets)
        )
        return train, valid

    def _parameters(self, best: Any) -> int:
        return sum(p.numel() for p in self.trainer.model.parameters())


def of_branch(errors: Mapping[str, float], name: str) -> dict[str, float]:
    """Errors of one branch under their plain names."""
    prefix = f"{name}:"
    return {k.removeprefix(prefix): v for k, v in errors.items() if k.startswith(prefix)}


def combined(
    errors: Mapping[str, Mapping[str, float]], likely: Mapping[str, float]
) -> dict[str, float]:
    """Means over the branches that have labels, by their weights; then BRANCH:error of each."""
    found = {}
    for name in next(iter(errors.values())):
        pairs = [
            (likely[branch], each[name])
            for branch, each in errors.items()
            if likely[branch] and not math.isnan(each[name])
        ]
        total = sum(weight for weight, _ in pairs)
        found[name] = sum(w * value for w, value in pairs) / total if total else math.nan
    for branch, each in errors.items():
        found |= {f"{branch}:{name}": value for name, value in each.items()}
    return found
