"""Training of models with spins: magnetic forces beside forces, both from one energy.

With M = -dE/dm and M* its label in eV per Bohr magneton, Eq. 70 has one term more,

    lambda_M / N_M  sum over magnetic atoms with a label  |M_k - M_k*|,

the form of the forces' term; "mse" and "huber" change it as they change that one.  The reference's
loss has the mean over components instead of the length in its absolute form, and is the same in its
square form (per atom, `intensive_ener_virial`).  Atoms of species that the model takes as not
magnetic are in neither.  Moments that stay as they are exert a torque, the antisymmetric part of
the virial: the reference compares it with the label as well, here the symmetric part alone is.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from dpa4sim.batch import symbol
from dpa4sim.config import DPA4Config, SpinConfig
from dpa4sim.data.batch import LabelledBatch
from dpa4sim.data.store import Store
from dpa4sim.edges import neighbors
from dpa4sim.errors import DataError
from dpa4sim.moments import is_magnetic, magnetic_numbers, moments_of, with_moments
from dpa4sim.pool.progress import Progress
from dpa4sim.potential import Prediction
from dpa4sim.train.compiled import force_pass
from dpa4sim.train.loop import Trainer
from dpa4sim.train.loss import (
    Errors,
    Residuals,
    Weights,
    compared,
    force_term,
    objective,
    residuals,
    weight_at,
)
from dpa4sim.train.settings import Settings

if TYPE_CHECKING:
    from dpa4sim.train.build import Split

LOOKED_AT_MUB = 1e-3
"""Moments of species that are not magnetic are told of from this length on."""


@dataclass(frozen=True)
class SpinResiduals:
    """Prediction minus label; zero where there is no label or the species is not magnetic.

    Args:
        plain: of energy, forces and virial.
        magnetic: of the magnetic forces, eV per Bohr magneton.
        known: which atoms have one.
    """

    plain: Residuals
    magnetic: Float[Tensor, "atom 3"]
    known: Bool[Tensor, " atom"]


class SpinErrors(Errors):
    """Running sums of errors on the device, those of magnetic forces last."""

    NAMES = (*Errors.NAMES, "magnetic_force_mae", "magnetic_force_rmse", "magnetic_force_length")
    UNITS = (*Errors.UNITS, "eV/μB", "eV/μB", "eV/μB")

    def __init__(self, device: torch.device):
        super().__init__(device)
        self.labels = torch.zeros(len(self.labels) + 1, dtype=torch.float64, device=device)

    def add(self, found: Any) -> None:
        """Count a batch of `SpinResiduals`; nothing is read from the device."""
        plain, magnetic = Errors(self.sums.device), found.magnetic.detach().double()
        plain.add(found.plain)
        of_spins = torch.stack([
            magnetic.abs().mean(1).sum(),
            magnetic.square().mean(1).sum(),
            torch.linalg.vector_norm(magnetic, dim=1).sum(),
        ])  # fmt: skip
        self.sums += torch.cat([plain.sums, of_spins])
        self.labels += torch.cat([plain.labels, found.known.sum()[None].double()])

    def read(self) -> dict[str, float]:
        """Means in the units of `UNITS`; NaN where no label was."""
        plain = Errors(self.sums.device)
        plain.sums, plain.labels = self.sums[:-3], self.labels[:-1]
        size = float(self.labels[-1])
        means = [float(total) / size if size else float("nan") for total in self.sums[-3:]]
        means[1] **= 0.5
        return plain.read() | dict(zip(self.NAMES[-3:], means, strict=True))


class SpinTrainer(Trainer):
    """The training loop for energies of positions and magnetic moments."""

    def fresh_errors(self) -> SpinErrors:
        """Sums of errors that are all zero."""
        return SpinErrors(self.device)

    def predict(self, labelled: LabelledBatch) -> Any:
        """Energy, forces, virial and magnetic forces against the labels, differentiable."""
        species, edges, charge, spin = self._inputs(labelled.batch)
        vector = edges.vector.requires_grad_(True)
        numbers = magnetic_numbers(self.model.config)
        given = moments_of(with_moments(labelled.batch, numbers))
        moments = given.to(vector.dtype).requires_grad_(True)
        atomic, _ = self.model(species, edges, charge, spin, moments)
        with force_pass():
            gradient, by_moment = torch.autograd.grad(
                atomic.sum(), (vector, moments), create_graph=True
            )
        plain = residuals(labelled, edges, atomic, gradient)
        return with_spins(plain, labelled, -by_moment, is_magnetic(labelled.batch, numbers))

    def share(self, found: Any, total: Tensor) -> Float[Tensor, ""]:
        """What a batch adds to the loss of its step, magnetic forces included."""
        settings = self.settings
        rate = self.rate / settings.optimizer.lr
        plain = objective(found.plain, Weights.at(settings.loss, rate), settings.loss, total[:-1])
        magnetic = force_term(found.magnetic, settings.loss).sum().double()
        weight = weight_at(settings.loss.magnetic_force, rate)
        return plain + weight * magnetic / total[-1].clamp(min=1)


def with_spins(
    plain: Residuals,
    labelled: LabelledBatch,
    magnetic_forces: Float[Tensor, "atom 3"],
    magnetic: Bool[Tensor, " atom"],
) -> SpinResiduals:
    """Residuals with those of the magnetic forces beside them, where a label is.

    Args:
        magnetic: which atoms carry a moment in the model.
    """
    label = labelled.magnetic_forces
    if label is None:
        return SpinResiduals(plain, 0 * magnetic_forces, torch.zeros_like(magnetic))
    known = magnetic & label.isfinite().all(1)
    error = magnetic_forces - label.to(magnetic_forces)
    return SpinResiduals(plain, torch.where(known[:, None], error, torch.zeros_like(error)), known)


def compared_with_spins(
    config: DPA4Config, labelled: LabelledBatch, prediction: Prediction
) -> SpinResiduals:
    """A model's prediction minus the labels, in its dtype."""
    batch = labelled.batch
    virial = prediction.stress * batch.volume[:, None, None]
    plain = compared(labelled, prediction.energy, prediction.forces, virial)
    magnetic = is_magnetic(batch, magnetic_numbers(config))
    forces = prediction.magnetic_forces
    if forces is None:
        forces = torch.full_like(prediction.forces, torch.nan)
    return with_spins(plain, labelled, forces, magnetic)


@dataclass(frozen=True)
class Load:
    """What frames cost, and how many magnetic forces they bring.

    Args:
        n_edges: edges of each frame, those of virtual atoms included.
        n_atoms: atoms of each frame, virtual ones included.
        n_labels: magnetic atoms of each frame with a label, or 0.
        ignored: largest moment of each species that is not magnetic, Bohr magnetons.
    """

    n_edges: Int[np.ndarray, " frame"]
    n_atoms: Int[np.ndarray, " frame"]
    n_labels: Int[np.ndarray, " frame"]
    ignored: dict[str, float]


def load_of(store: Store, frames: np.ndarray, config: DPA4Config) -> Load:
    """Look at every frame: a batch's budget of edges must count what the network sees.

    A magnetic atom is two in the virtual scheme: an edge of two magnetic atoms becomes four, of
    one two, and the atom and its virtual one see each other.
    """
    virtual = config.spin.scheme == "virtual"
    found: list[np.ndarray] = []
    ignored: dict[str, float] = {}
    bar = Progress("edges with virtual atoms" if virtual else "moments", len(frames), None)
    for block in store.blocks(frames):
        batch = block.batch
        bar.advance(batch.n_systems)
        magnetic = is_magnetic(batch, magnetic_numbers(config))
        n_magnetic = np.bincount(batch.system_idx, magnetic, minlength=batch.n_systems)
        sizes = np.stack([np.zeros(batch.n_systems), batch.n_atoms.numpy(), n_magnetic])
        if virtual:
            edges = neighbors(batch, config.cutoff)
            copies = (1 + magnetic[edges.center].int()) * (1 + magnetic[edges.neighbor].int())
            owner = batch.system_idx[edges.center]
            sizes[0] = np.bincount(owner, copies, minlength=batch.n_systems) + 2 * n_magnetic
            sizes[1] += n_magnetic
        found.append(sizes)
        _largest_ignored(ignored, batch.atomic_numbers, batch.magmoms, magnetic)
    bar.close()
    order = np.argsort(np.argsort(frames, kind="stable"), kind="stable")
    n_edges, n_atoms, n_magnetic = np.concatenate(found, 1).astype(np.int64)[:, order]
    if not virtual:
        n_edges = store.n_edges(config.cutoff)[frames]
    labelled = store.has("magnetic_forces")[frames]
    return Load(n_edges, n_atoms, n_magnetic * labelled, ignored)


def _largest_ignored(
    largest: dict[str, float], numbers: Tensor, moments: Tensor | None, magnetic: Tensor
) -> None:
    """Keep the largest moment of each species that is not magnetic, in place."""
    if moments is None:
        return
    length = torch.linalg.vector_norm(moments, dim=1)
    odd = (length > LOOKED_AT_MUB) & ~magnetic
    for z in numbers[odd].unique().tolist():
        name, value = symbol(z), float(length[odd & (numbers == z)].max())
        largest[name] = max(value, largest.get(name, 0.0))


def said_of(load: Load, config: DPA4Config) -> str:
    """A sentence about moments that the model does not look at; empty when there are none."""
    if not load.ignored:
        return ""
    parts = ", ".join(f"{name} up to {value:.3g} μB" for name, value in load.ignored.items())
    return (
        f"moments that the model does not look at: {parts}; "
        f"spin.magnetic = {', '.join(config.spin.magnetic)}"
    )


def check_spins(settings: Settings, spin: SpinConfig, part: Split, name: str) -> None:
    """Every frame with a magnetic atom needs moments, and the term of magnetic forces a label.

    Args:
        spin: how moments enter the model.
        name: of the set, for messages.

    Raises:
        DataError: a frame without moments, or a weight that is not zero and no label.
    """
    store, frames = part.store, part.frames
    bare = _with_elements(store, frames[~store.has("magmoms")[frames]], spin.magnetic)
    if len(bare):
        raise DataError(
            f"{store.path}: {len(bare)} of the {len(frames)} {name} frames have no magnetic "
            f"moments, which a model with spins needs; the first is {store.where(int(bare[0]))}. "
            "Convert with the key of the moments: dpa4sim data convert --magmoms-key KEY."
        )
    weight = max(settings.loss.magnetic_force)
    if weight > 0 and not store.has("magnetic_forces")[frames].any():
        raise DataError(
            f"{store.path}: no {name} frame has a label 'magnetic_forces', and loss.magnetic_force "
            f"= {weight:g}. Set loss.magnetic_force=0, or convert with the key of the labels: "
            "dpa4sim data convert --magnetic-forces-key KEY."
        )


def _with_elements(store: Store, rows: np.ndarray, names: Sequence[str]) -> np.ndarray:
    """Those rows that hold an atom of the named elements."""
    from ase.data import atomic_numbers

    if not len(rows):
        return rows
    rows = np.sort(rows)
    found = store.columns(rows, ["atoms/atomic_numbers"])["atoms/atomic_numbers"]
    chosen = np.isin(found, [atomic_numbers[name] for name in names])
    owner = np.repeat(np.arange(len(rows)), store.n_atoms[rows])
    return rows[np.bincount(owner, chosen, minlength=len(rows)) > 0]
