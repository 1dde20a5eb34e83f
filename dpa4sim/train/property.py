"""Training on a property of the structures instead of energies and forces.

The loss is the reference's: with e the error of each number, divided by the number of atoms where
the property is extensive, and s the spread of the labels,

    loss = sum over frames and numbers of  curve(e / s)
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn.functional import smooth_l1_loss

from dpa4sim.config import PropertyConfig
from dpa4sim.data.batch import LabelledBatch
from dpa4sim.data.statistics import property_statistics
from dpa4sim.data.store import Store
from dpa4sim.errors import ConfigError
from dpa4sim.model import DPA4
from dpa4sim.property import PropertyPrediction, reduced
from dpa4sim.train.loop import Trainer
from dpa4sim.train.loss import Errors
from dpa4sim.train.settings import Loss


@dataclass(frozen=True)
class PropertyResiduals:
    """Prediction minus label, float64; zero where there is no label.

    Args:
        error: in the unit of the labels.
        scaled: per atom where the property is extensive, in units of the labels' spread.
        known: which frames have the label.
    """

    error: Float[Tensor, "system task"]
    scaled: Float[Tensor, "system task"]
    known: Bool[Tensor, " system"]


class PropertyErrors(Errors):
    """Running sums of errors on the device; read when somebody looks."""

    NAMES = ("property_mae", "property_rmse", "property_scaled_mae")
    UNITS = ("in the labels' unit", "in the labels' unit", "of their spread")

    def __init__(self, device: torch.device):
        self.sums = torch.zeros(len(self.NAMES), dtype=torch.float64, device=device)
        self.labels = torch.zeros(1, dtype=torch.float64, device=device)

    def add(self, found: Any) -> None:
        """Count a batch; nothing is read from the device."""
        error, scaled = found.error.detach(), found.scaled.detach()
        self.sums += torch.stack([
            error.abs().mean(1).sum(),
            error.square().mean(1).sum(),
            scaled.abs().mean(1).sum(),
        ])  # fmt: skip
        self.labels += found.known.sum()

    def read(self) -> dict[str, float]:
        """Means over frames and numbers; NaN where no label was."""
        (size,) = self.labels.tolist()
        means = [total / size if size else float("nan") for total in self.sums.tolist()]
        values = dict(zip(self.NAMES, means, strict=True))
        return values | {"property_rmse": values["property_rmse"] ** 0.5}


class PropertyTrainer(Trainer):
    """The training loop with the loss of a property; one pass back, as no forces are asked for."""

    def fresh_errors(self) -> PropertyErrors:
        """Sums of errors that are all zero."""
        return PropertyErrors(self.device)

    def predict(self, labelled: LabelledBatch) -> Any:
        """The property against its labels, differentiable to the weights."""
        shares, _ = self.model.properties(*self._inputs(labelled.batch))
        values = reduced(shares, labelled.batch, self.model.config.property_head.intensive)
        return property_residuals(self.model, labelled, PropertyPrediction(values, shares))

    def share(self, found: Any, total: Tensor) -> Float[Tensor, ""]:
        """What a batch adds to the loss of its step."""
        return property_loss(found.scaled, self.settings.loss)


def property_residuals(
    model: DPA4, labelled: LabelledBatch, prediction: PropertyPrediction
) -> PropertyResiduals:
    """Prediction minus label of each frame that has one."""
    head = model.config.property_head
    label = labelled.properties[head.name]
    known = label.isfinite().all(1)
    error = torch.where(known[:, None], prediction.values - label, torch.zeros_like(label))
    scaled = error / model.head.spread[0]  # type: ignore[union-attr, index]
    if not head.intensive:
        scaled = scaled / labelled.batch.n_atoms[:, None]
    return PropertyResiduals(error, scaled, known)


def property_loss(scaled: Float[Tensor, "system task"], settings: Loss) -> Float[Tensor, ""]:
    """Sum over frames and numbers of |x|, x^2, or x^2 / 2 beta below beta and |x| - beta / 2."""
    if settings.property == "mae":
        return scaled.abs().sum()
    if settings.property == "mse":
        return scaled.square().sum()
    zero = torch.zeros_like(scaled)
    return smooth_l1_loss(scaled, zero, reduction="sum", beta=settings.property_beta)


def fill_statistics(model: DPA4, store: Store, frames: Any) -> None:
    """Give the head the biases and the spread of the labels, in place."""
    config = model.config
    bias, spread = property_statistics(store, frames, config.species, config.property_head)
    model.head.bias.copy_(torch.as_tensor(bias))  # type: ignore[operator, union-attr]
    model.head.spread.copy_(torch.as_tensor(spread).expand_as(model.head.spread))  # type: ignore[operator, union-attr, arg-type]


def with_property_head(source: DPA4, head: PropertyConfig) -> DPA4:
    """A trainable copy of a network, its head replaced by a new one for a property.

    Raises:
        ConfigError: the network predicts a property already.
    """
    before = source.config.property_head.name
    if before:
        raise ConfigError(
            f"finetune.model predicts the property '{before}' already. Remove "
            "[model.property_head]: training goes on with the head that it has."
        )
    config = replace(source.config, property_head=head, zbl_inner=None, zbl_outer=None)
    model = DPA4(config, dtype=source.species_table.dtype).to(source.species_table.device)
    trunk = {
        name: value for name, value in source.state_dict().items() if not name.startswith("head.")
    }
    trunk.pop("energy_shift")
    model.load_state_dict({**model.state_dict(), **trunk})
    return model
