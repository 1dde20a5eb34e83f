"""Training on direct forces and on displacements.  Experimental.

A batch is corrupted with some probability: Gaussian noise displaces some of its atoms, and the
network is told the forces that these had.  With energies in units of their spread s, forces in
units of their root mean square f, and displacements in units of sigma, the loss is the reference's:

    w_E mean over frames  curve(dE / s, N)  +  mean over atoms  w_F |dF| / f   (atoms in place)
                                                                w_D |dnoise|   (displaced ones)

The noise is a function of the seed, the step and the batch: a resumed run draws the same.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from dpa4sim.batch import Batch, sum_over_atoms
from dpa4sim.config import ForceHead
from dpa4sim.data.batch import LabelledBatch
from dpa4sim.data.statistics import compositions
from dpa4sim.data.store import Store
from dpa4sim.edges import Edges
from dpa4sim.errors import ConfigError, DataError
from dpa4sim.model import DPA4
from dpa4sim.model.dens import DirectHead, NoisyForces
from dpa4sim.potential import Prediction
from dpa4sim.train.feed import StepPlan
from dpa4sim.train.loop import Trainer
from dpa4sim.train.loss import Errors, Weights
from dpa4sim.train.settings import Denoise, Loss, Settings

EXPERIMENTAL = (
    "experimental: the forces of this model are predicted directly; they are not the gradient of "
    "its energy, and there is no stress"
)
LEAST_SPREAD = 1e-8
"""Spread of the energies, as a share of the largest, below which it is rounding."""


@dataclass(frozen=True)
class Displacement:
    """Which atoms of a batch are displaced, and by how much.

    Args:
        vector: Å; zero for atoms in place.
        noisy: which are displaced.
    """

    vector: Float[Tensor, "atom 3"]
    noisy: Bool[Tensor, " atom"]


@dataclass(frozen=True)
class DirectResiduals:
    """Prediction minus label, float64; zero where there is no label.

    Args:
        energy: eV/atom.
        forces: eV/Å, of atoms in place.
        noise: in units of the standard deviation, of displaced atoms.
        has_energy: which frames have the label.
        has_forces: which atoms are in place and have it.
        noisy: which atoms are displaced.
        n_atoms: of each frame.
    """

    energy: Float[Tensor, " system"]
    forces: Float[Tensor, "atom 3"]
    noise: Float[Tensor, "atom 3"]
    has_energy: Bool[Tensor, " system"]
    has_forces: Bool[Tensor, " atom"]
    noisy: Bool[Tensor, " atom"]
    n_atoms: Float[Tensor, " system"]


class DirectErrors(Errors):
    """Running sums of errors on the device; read when somebody looks."""

    NAMES = ("energy_mae", "energy_rmse", "force_mae", "force_rmse", "force_length", "noise_rmse")
    UNITS = ("eV/atom", "eV/atom", "eV/Å", "eV/Å", "eV/Å", "of its spread")

    def add(self, found: Any) -> None:
        """Count a batch of `DirectResiduals`; nothing is read from the device."""
        energy, forces, noise = (x.detach() for x in (found.energy, found.forces, found.noise))
        self.sums += torch.stack([
            energy.abs().sum(),
            energy.square().sum(),
            forces.abs().mean(1).sum(),
            forces.square().mean(1).sum(),
            torch.linalg.vector_norm(forces, dim=1).sum(),
            noise.square().mean(1).sum(),
        ])  # fmt: skip
        counts = [found.has_energy.sum(), found.has_forces.sum(), found.noisy.sum()]
        self.labels += torch.stack(counts).double()

    def read(self) -> dict[str, float]:
        """Means in the units of `UNITS`; NaN where no label was."""
        n_energy, n_force, n_noise = self.labels.tolist()
        sizes = (n_energy,) * 2 + (n_force,) * 3 + (n_noise,)
        values = {}
        for name, total, size in zip(self.NAMES, self.sums.tolist(), sizes, strict=True):
            mean = total / size if size else float("nan")
            values[name] = mean**0.5 if name.endswith("rmse") else mean
        return values


class DirectTrainer(Trainer):
    """The training loop with the loss of direct forces and displacements; one pass back."""

    place = 0
    """Batches of this step that this process has seen."""

    def fresh_errors(self) -> DirectErrors:
        """Sums of errors that are all zero."""
        return DirectErrors(self.device)

    def _step(self, plan: StepPlan, batches: Sequence[LabelledBatch]) -> None:
        self.place = 0
        super()._step(plan, batches)

    def predict(self, labelled: LabelledBatch) -> Any:
        """Energy, forces and displacements against labels and noise, differentiable."""
        batch_of_step = self.ranks.rank + self.ranks.world * self.place
        key = [self.settings.run.seed, self.done, batch_of_step]
        self.place += 1
        drawn = displace(self.settings.denoise, key, labelled)
        inputs = self._inputs(displaced_batch(labelled.batch, drawn))
        return noisy_residuals(self.model, inputs, labelled, drawn, self.settings.denoise.std)

    def share(self, found: Any, total: Tensor) -> Float[Tensor, ""]:
        """What a batch adds to the loss of its step."""
        settings, head = self.settings, self.model.head
        weights = Weights.at(settings.loss, self.rate / settings.optimizer.lr)
        return direct_loss(found, head, weights, settings, total)  # type: ignore[arg-type]


def displace(asked: Denoise, key: Sequence[int], labelled: LabelledBatch) -> Displacement | None:
    """Noise for a batch; None where it stays as it is.  Atoms without a force stay in place.

    Args:
        key: what the noise is a function of.
    """
    rng, n_atoms = np.random.default_rng(list(key)), len(labelled.forces)
    if rng.random() >= asked.probability:
        return None
    device = labelled.forces.device
    chosen = torch.as_tensor(rng.random(n_atoms) < asked.atoms).to(device)
    noisy = chosen & labelled.forces.isfinite().all(1)
    noise = torch.as_tensor(asked.std * rng.normal(size=(n_atoms, 3))).to(device)
    return Displacement(noise * noisy[:, None], noisy)


def displaced_batch(batch: Batch, drawn: Displacement | None) -> Batch:
    """The batch with its atoms where the noise puts them."""
    if drawn is None:
        return batch
    return batch.with_geometry(batch.positions + drawn.vector, batch.cell)


def noisy_residuals(
    model: DPA4,
    inputs: tuple[Tensor, Edges, Tensor | None, Tensor | None],
    labelled: LabelledBatch,
    drawn: Displacement | None,
    std: float,
) -> DirectResiduals:
    """What the network says of a batch, some of whose atoms are displaced or none.

    Args:
        inputs: species, edges, charge and spin of the `displaced_batch`.
        std: of the displacements, Å.
    """
    given = None
    if drawn is not None:
        forces = torch.where(drawn.noisy[:, None], labelled.forces, 0.0)
        given = NoisyForces(forces, drawn.noisy)
    said = model.direct(*inputs, given)
    found = compared(labelled, sum_over_atoms(said.energies, labelled.batch), said.forces)
    if drawn is None:
        return found
    noise = said.noise.double() - drawn.vector / std
    return replace(
        found,
        forces=torch.where(drawn.noisy[:, None], 0.0, found.forces),
        noise=torch.where(drawn.noisy[:, None], noise, 0.0),
        has_forces=found.has_forces & ~drawn.noisy,
        noisy=drawn.noisy,
    )


def direct_residuals(labelled: LabelledBatch, prediction: Prediction) -> DirectResiduals:
    """Prediction minus label where every atom is in its place."""
    return compared(labelled, prediction.energy, prediction.forces)


def compared(
    labelled: LabelledBatch, energy: Float[Tensor, " system"], forces: Float[Tensor, "atom 3"]
) -> DirectResiduals:
    """The same of an energy in eV and forces in eV/Å."""
    batch: Batch = labelled.batch
    n_atoms = batch.n_atoms.double()
    has_energy, has_forces = labelled.energy.isfinite(), labelled.forces.isfinite().all(1)
    off = forces - labelled.forces
    return DirectResiduals(
        energy=torch.where(has_energy, (energy - labelled.energy) / n_atoms, 0.0),
        forces=torch.where(has_forces[:, None], off, 0.0),
        noise=torch.zeros_like(off),
        has_energy=has_energy,
        has_forces=has_forces,
        noisy=torch.zeros_like(has_forces),
        n_atoms=n_atoms,
    )


def direct_loss(
    found: DirectResiduals,
    head: DirectHead,
    weights: Weights,
    settings: Settings,
    total: Float[Tensor, " term"],
) -> Float[Tensor, ""]:
    """This batch's share of the loss of one step; mae has vector lengths, mse mean components.

    Args:
        total: labels of each kind in all batches of the step: displaced atoms count as forces.
    """
    loss: Loss = settings.loss
    energy = found.energy / head.energy_spread[0]
    # A square is taken per atom once, not twice, as the reference has it.
    energy = energy.abs() if loss.form == "mae" else energy.square() * found.n_atoms
    scale = 1 / total.clamp(min=1)
    force = _curve(found.forces / head.force_spread, loss)
    noise = _curve(found.noise, loss)
    on_atoms = weights.force * force + settings.denoise.weight * noise
    return scale[0] * weights.energy * energy.sum() + scale[1] * on_atoms


def _curve(x: Float[Tensor, "atom 3"], loss: Loss) -> Float[Tensor, ""]:
    if loss.form == "mse":
        return x.square().mean(1).sum()
    return torch.linalg.vector_norm(x, dim=1).sum()


def check_direct(settings: Settings, model: DPA4) -> None:
    """Refuse settings that direct forces have no use for, and models that cannot be trained.

    Raises:
        ConfigError: one of them.
    """
    kind = model.config.force_head
    if kind == "none":
        if settings.denoise != Denoise():
            raise ConfigError(
                "[denoise] is for direct forces, and this model has none. Set "
                "model.force_head='direct', or remove [denoise]."
            )
        return
    if kind == "mirrored":
        raise ConfigError(
            "model.force_head='mirrored' cannot learn forces: they do not rotate with the "
            "structure. It is for files of DeePMD-kit 3.2. Set model.force_head='direct', with "
            "finetune.model too."
        )
    if max(settings.loss.virial) > 0:
        raise ConfigError("A model of direct forces has no stress to train on. Set loss.virial=0.")
    if settings.loss.form == "huber":
        raise ConfigError("Direct forces are trained with loss.form='mae' or 'mse', not 'huber'.")
    if settings.finetune.lora_rank:
        raise ConfigError(
            "LoRA does not reach the heads of direct forces. Set finetune.lora_rank=0."
        )


def fill_direct_statistics(model: DPA4, store: Store, frames: np.ndarray) -> None:
    """Give the head the spread of the energies and the size of the forces, in place.

        s = std over frames of  E - sum_s n_s shift_s,     f = root mean square of |F| over atoms

    Raises:
        DataError: no frame has forces.
    """
    head: Any = model.head
    shift = model.energy_shift.cpu().numpy()
    left = [
        energy - counts @ shift
        for _, counts, energy in compositions(store, model.config.species, frames)
    ]
    if left:
        rest = np.concatenate(left)
        spread = float(rest.std())
        head.energy_spread.fill_(spread if spread > LEAST_SPREAD * np.abs(rest).max() else 1.0)
    squares, n_atoms = 0.0, 0
    for block in store.blocks(frames):
        forces = block.forces[block.forces.isfinite().all(1)]
        squares, n_atoms = squares + float(forces.square().sum()), n_atoms + len(forces)
    if not squares:
        raise DataError(
            f"{store.path} has no frame with forces that are not zero, and direct forces are "
            "learned from such. Convert it with --forces-key."
        )
    head.force_spread.fill_((squares / n_atoms) ** 0.5)


def with_force_head(source: DPA4, kind: ForceHead, store: Store, frames: np.ndarray) -> DPA4:
    """A trainable copy with heads for direct forces; new ones, unless there are some already.

    The energies stay: the energy head goes on in units of the spread.

    Raises:
        ConfigError: the network has a ZBL term, predicts a property, or has no vectors.
    """
    config = replace(source.config, force_head=kind)
    model = DPA4(config, dtype=source.species_table.dtype).to(source.species_table.device)
    state = dict(source.state_dict())
    if source.config.force_head != "none":
        model.load_state_dict(state)
        return model
    kept = {
        name.replace("head.", "head.energy.") if name.startswith("head.") else name: value
        for name, value in state.items()
    }
    model.load_state_dict({**model.state_dict(), **kept})
    fill_direct_statistics(model, store, frames)
    with torch.no_grad():
        head: Any = model.head
        head.energy.out /= head.energy_spread[0].to(head.energy.out)
    return model
