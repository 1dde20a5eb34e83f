"""DirectModel: energies, and forces that are predicted instead of derived.  Experimental.

    E = sum_i E_i(descriptor),     F_i read from the vector features,     F != -dE/dR

One pass forward and none back; no energy is conserved along its forces, and there is no stress.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from dpa4sim.batch import Batch, sum_over_atoms
from dpa4sim.config import DPA4Config
from dpa4sim.edges import Edges, neighbors
from dpa4sim.errors import ConfigError, ModelError, NonConservativeWarning
from dpa4sim.model import DPA4
from dpa4sim.model_file import network_dtype, write_safetensors
from dpa4sim.pool.checkpoint import network_digest
from dpa4sim.potential import (
    EnergyModel,
    Prediction,
    charge_and_spin,
    checked_batch,
    species_rows,
    without,
)

if TYPE_CHECKING:
    from dpa4sim.composite import Sum
    from dpa4sim.embed import Embedding

WARNING = (
    "This model predicts forces directly: its forces are not the gradient of its energy, so energy "
    "is not conserved along them and there is no stress. The mode is experimental."
)
MIRRORED = (
    " Its forces do not rotate with the structure either: DeePMD-kit 3.2, which made it, has the "
    "y axis of this head mirrored."
)


class DirectModel:
    """A DPA4 network with heads for direct forces, its elements and precision.

    It warns once, at its first prediction, that it is not conservative.

    Args:
        model: the network; it is frozen (no weight gradients) and moved.
        card: origin of the weights, training record, licence; kept in the model file.
        device: where to compute.
        dtype: "float32" or "float64", the precision of the network.

    Raises:
        ConfigError: another dtype.
        ModelError: the network has no such head.
    """

    conservative = False

    def __init__(
        self,
        model: DPA4,
        *,
        card: Mapping[str, Any] | None = None,
        device: str | torch.device = "cpu",
        dtype: str = "float32",
    ) -> None:
        if model.config.force_head == "none":
            raise ModelError(
                "This model has no head for direct forces. Open it by dpa4sim.load(PATH)."
            )
        self.dtype, self.device = network_dtype(dtype), torch.device(device)
        self.model = model.to(self.device, self.dtype).eval().requires_grad_(False)
        self.config: DPA4Config = model.config
        self.card = dict(card or {})
        self._species_of = species_rows(self.config).to(self.device)
        self._told = False

    @property
    def cutoff(self) -> float:
        """Radius of the neighbour graph in Å."""
        return self.config.cutoff

    @property
    def known_elements(self) -> frozenset[int]:
        """Atomic numbers that the network was made for."""
        return frozenset(self.config.atomic_numbers)

    @property
    def fingerprint(self) -> str:
        """What tells two models apart."""
        return f"direct-{network_digest(self.model)}-{self.dtype}"

    def __add__(self, other: EnergyModel) -> Sum:
        """Refused: a sum must be as conservative as its terms."""
        from dpa4sim.composite import Sum

        return Sum([self, other])

    def __call__(self, batch: Batch) -> Prediction:
        """Energy and direct forces of a trusted batch on this device; see `evaluate`."""
        if not self._told:
            self._told = True
            told = WARNING + (MIRRORED if self.config.force_head == "mirrored" else "")
            warnings.warn(told, NonConservativeWarning, stacklevel=2)
        return self.predict(batch)

    @torch.no_grad()
    def predict(self, batch: Batch) -> Prediction:
        """The same without a warning."""
        found = neighbors(batch, self.cutoff)
        edges = Edges(found.center, found.neighbor, found.vector.to(self.dtype), found.row_ptr)
        species = self._species_of[batch.atomic_numbers]
        said = self.model.direct(species, edges, *charge_and_spin(batch, self.config))
        prediction = Prediction(
            energy=sum_over_atoms(said.energies, batch),
            forces=said.forces,
            stress=torch.full_like(batch.cell, torch.nan),
            atomic_energies=said.energies,
            edges=found,
            has_stress=False,
        )
        searched = found.searched
        return prediction if searched is None else without(prediction, batch, ~searched)

    def evaluate(self, structures: Any) -> Prediction:
        """Energy, direct forces and atomic energies of structures, in one batch; stress is NaN.

        Args:
            structures: ASE Atoms, pymatgen Structure, TorchSim state, Batch, a path, or a list.

        Raises:
            DataError: a structure cannot be used; the message says which and why.
        """
        from dpa4sim.adapters.files import structures_to_batches

        systems = structures_to_batches(structures)
        batch = checked_batch(systems, self.config, self.known_elements).to(self.device)
        return replace(self(batch), edges=None)

    def embed(self, structures: Any) -> Embedding:
        """Descriptors and features of structures, in one batch; see `dpa4sim.embed`.

        Raises:
            DataError: a structure cannot be used; the message says which and why.
        """
        from dpa4sim.embed import embed

        return embed(self, structures)

    def save(self, path: str | Path) -> None:
        """Write a .safetensors file: weights, and a JSON header with config, units and card.

        The file appears whole or not at all.
        """
        units = {"length": "angstrom", "energy": "eV"}
        write_safetensors(self.model, self.card, Path(path), units)


def is_conservative(model: Any) -> bool:
    """Whether forces are the gradient of the energy, as far as the model says."""
    return bool(getattr(model, "conservative", True))


def check_conservative(
    model: Any, work: str, allowed: bool, strained: tuple[str, str] | None = None
) -> None:
    """Refuse a model of direct forces, unless it is wanted and needs no stress.

    Args:
        work: what is asked for, such as "relax".
        allowed: the flag `allow_non_conservative`.
        strained: the setting that needs a stress, and the one that does not.

    Raises:
        ConfigError: the model is not conservative, and not allowed or without the stress.
    """
    if is_conservative(model):
        return
    if strained is not None:
        setting, instead = strained
        raise ConfigError(
            f"{work} with {setting} needs a stress, and a model of direct forces has none. "
            f"Set {instead}, or take a conservative model."
        )
    if not allowed:
        raise ConfigError(
            f"{work} needs forces that are the gradient of the energy, and this model predicts "
            "them directly: energy would drift, and where its forces vanish need not be a minimum. "
            "Pass allow_non_conservative=True (--allow-non-conservative) to go on all the same."
        )
