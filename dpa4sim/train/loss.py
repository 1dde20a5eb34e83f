"""The objective of a batch of labelled frames, and the errors that people read.  Eq. 43, 70

| paper | here |
|---|---|
| lambda_E, lambda_F, lambda_Pi | `Weights.energy, force, virial` |
| E, F, Pi | `energy`, `forces`, `virial` of `Residuals`, prediction minus label |
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Self

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from dpa4sim.batch import sum_over_atoms
from dpa4sim.data.batch import LabelledBatch
from dpa4sim.edges import Edges
from dpa4sim.train.settings import Loss, Term

TERMS = ("energy", "force", "virial")


@dataclass(frozen=True)
class Weights:
    """lambda of each term at one moment."""

    energy: float
    force: float
    virial: float

    @classmethod
    def at(cls, loss: Loss, rate: float) -> Weights:
        """Each `weight_at` the rate."""
        terms = (loss.energy, loss.force, loss.virial)
        return cls(*(weight_at(term, rate) for term in terms))


def weight_at(term: Term, rate: float) -> float:
    """Between the first and the last weight as the learning rate is between its largest and 0.

    Args:
        rate: learning rate as a share of the largest.
    """
    first, last = term[0], term[-1]
    return last if first == last else first * rate + last * (1 - rate)


@dataclass(frozen=True)
class Residuals:
    """Prediction minus label in the model's dtype; zero where there is no label.

    Args:
        energy: eV/atom.
        forces: eV/Å.
        virial: eV/atom.
        has_energy: which frames have the label.
        has_forces: which atoms have it.
        has_virial: which frames have it.
        volume: Å^3 per atom, which makes a virial a stress.
    """

    energy: Float[Tensor, " system"]
    forces: Float[Tensor, "atom 3"]
    virial: Float[Tensor, "system 3 3"]
    has_energy: Bool[Tensor, " system"]
    has_forces: Bool[Tensor, " atom"]
    has_virial: Bool[Tensor, " system"]
    volume: Float[Tensor, " system"]

    @property
    def counts(self) -> Float[Tensor, " term"]:
        """Frames with an energy, atoms with a force, frames with a stress."""
        return counts(self.has_energy, self.has_forces, self.has_virial)


def counts(energy: Tensor, forces: Tensor, virial: Tensor) -> Float[Tensor, " term"]:
    """How many labels of each kind."""
    return torch.stack([energy.sum(), forces.sum(), virial.sum()]).double()


def label_counts(labelled: LabelledBatch) -> Float[Tensor, " term"]:
    """The same from the labels alone, before anything is computed."""
    has_forces = labelled.forces.isfinite().all(1)
    has_virial = labelled.stress.isfinite().all((1, 2)) & (labelled.batch.volume > 0)
    return counts(labelled.energy.isfinite(), has_forces, has_virial)


def residuals(
    labelled: LabelledBatch,
    edges: Edges,
    atomic_energies: Float[Tensor, " atom"],
    vector_gradient: Float[Tensor, "edge 3"],
) -> Residuals:
    """What the network says against the labels, differentiable.

        F_k = sum_{center = k} g - sum_{neighbor = k} g,   virial = sum_e g (x) r_e = V stress

    Args:
        vector_gradient: g = dE/dvector in eV/Å, one row per edge.
    """
    batch, g = labelled.batch, vector_gradient
    energy = sum_over_atoms(atomic_energies.double(), batch)
    forces = g.new_zeros(len(batch.positions), 3)
    forces = forces.index_add(0, edges.center, g).index_add(0, edges.neighbor, g, alpha=-1)
    pair = g[:, :, None] * edges.vector[:, None, :]
    virial = pair.new_zeros(batch.n_systems, 3, 3)
    virial = virial.index_add(0, batch.system_idx[edges.center], pair)
    return compared(labelled, energy, forces, 0.5 * (virial + virial.transpose(1, 2)))


def compared(
    labelled: LabelledBatch,
    energy: Float[Tensor, " system"],
    forces: Float[Tensor, "atom 3"],
    virial: Float[Tensor, "system 3 3"],
) -> Residuals:
    """Prediction minus label, in the dtype of the forces.

    Args:
        energy: eV.
        forces: eV/Å.
        virial: V stress in eV.
    """
    batch = labelled.batch
    n_atoms = batch.n_atoms.double()
    energy = (energy.double() - labelled.energy) / n_atoms
    label = labelled.stress * batch.volume[:, None, None]
    virial = (virial - label.to(virial)) / n_atoms.to(virial)[:, None, None]
    has_energy = labelled.energy.isfinite()
    has_forces = labelled.forces.isfinite().all(1)
    has_virial = labelled.stress.isfinite().all((1, 2)) & (batch.volume > 0)
    return Residuals(
        energy=_where(has_energy, energy.to(forces)),
        forces=_where(has_forces[:, None], forces - labelled.forces.to(forces)),
        virial=_where(has_virial[:, None, None], virial),
        has_energy=has_energy,
        has_forces=has_forces,
        has_virial=has_virial,
        volume=(batch.volume / n_atoms).to(forces),
    )


def objective(
    found: Residuals, weights: Weights, settings: Loss, total: Float[Tensor, " term"]
) -> Float[Tensor, ""]:
    """This batch's share of the loss of one step.  Eq. 70, each term a mean over its labels.

    Args:
        total: labels of each kind in all batches of the step, on all devices.
    """
    energy = _energy_term(found.energy, settings).sum()
    force = force_term(found.forces, settings).sum()
    virial = _energy_term(found.virial, settings).mean((1, 2)).sum()
    scale = 1 / total.clamp(min=1)
    parts = torch.stack([weights.energy * energy, weights.force * force, weights.virial * virial])
    return (parts.double() * scale).sum()


def _energy_term(x: Tensor, settings: Loss) -> Tensor:
    """Of each number: |x|, x^2, or Huber's."""
    return _curve(x.abs(), settings)


def force_term(x: Float[Tensor, "atom 3"], settings: Loss) -> Float[Tensor, " atom"]:
    """Of each atom's residual vector: its length, mean square component, or Huber's of length."""
    if settings.form == "mse":
        return (x * x).mean(1)
    return _curve(torch.linalg.vector_norm(x, dim=1), settings)


def _curve(size: Tensor, settings: Loss) -> Tensor:
    if settings.form == "mae":
        return size
    if settings.form == "mse":
        return size * size
    delta = settings.huber_delta
    return torch.where(size < delta, 0.5 * size * size / delta, size - 0.5 * delta)


def _where(mask: Tensor, x: Tensor) -> Tensor:
    return torch.where(mask, x, torch.zeros_like(x))


class Errors:
    """Running sums of errors on the device; read when somebody looks."""

    NAMES: tuple[str, ...] = (
        "energy_mae",
        "energy_rmse",
        "force_mae",
        "force_rmse",
        "force_length",
        "virial_mae",
        "stress_mae",
        "stress_rmse",
    )
    UNITS: tuple[str, ...] = (
        "eV/atom",
        "eV/atom",
        "eV/Å",
        "eV/Å",
        "eV/Å",
        "eV/atom",
        "eV/Å^3",
        "eV/Å^3",
    )

    def __init__(self, device: torch.device):
        self.sums = torch.zeros(len(self.NAMES), dtype=torch.float64, device=device)
        self.labels = torch.zeros(len(TERMS), dtype=torch.float64, device=device)

    def add(self, found: Any) -> None:
        """Count a batch of `Residuals`; nothing is read from the device."""
        energy, forces = found.energy.detach().double(), found.forces.detach().double()
        virial = found.virial.detach().double()
        stress = _where(found.has_virial[:, None, None], virial / found.volume[:, None, None])
        self.sums += torch.stack([
            energy.abs().sum(),
            energy.square().sum(),
            forces.abs().mean(1).sum(),
            forces.square().mean(1).sum(),
            torch.linalg.vector_norm(forces, dim=1).sum(),
            virial.abs().mean((1, 2)).sum(),
            stress.abs().mean((1, 2)).sum(),
            stress.square().mean((1, 2)).sum(),
        ])  # fmt: skip
        self.labels += found.counts

    def since(self, earlier: Self) -> Self:
        """What came after a `copy` of this."""
        found = type(self)(self.sums.device)
        found.sums, found.labels = self.sums - earlier.sums, self.labels - earlier.labels
        return found

    def copy(self) -> Self:
        """As it is now."""
        return self.since(type(self)(self.sums.device))

    def read(self) -> dict[str, float]:
        """Means in the units of `UNITS`; NaN where no label was."""
        n_energy, n_force, n_virial = self.labels.tolist()
        sizes = (n_energy,) * 2 + (n_force,) * 3 + (n_virial,) * 3
        values = {}
        for name, total, size in zip(self.NAMES, self.sums.tolist(), sizes, strict=True):
            mean = total / size if size else float("nan")
            values[name] = mean**0.5 if name.endswith("rmse") else mean
        return values
