"""PropertyModel: structures -> an invariant property of each, with no energy and no forces."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float, Int
from safetensors import SafetensorError, safe_open
from torch import Tensor

from dpa4sim.batch import Batch
from dpa4sim.config import DPA4Config
from dpa4sim.direct import DirectModel
from dpa4sim.edges import Edges, neighbors
from dpa4sim.errors import ModelError
from dpa4sim.model import DPA4
from dpa4sim.model_file import network_dtype, read_network, released, write_safetensors
from dpa4sim.potential import Potential, charge_and_spin, checked_batch, species_rows

if TYPE_CHECKING:
    from dpa4sim.embed import Embedding


@dataclass(frozen=True)
class PropertyPrediction:
    """What a property model says about a batch, in the unit of its labels, float64.

    Args:
        values: the property.
        atomic_values: each atom's share; `values` is their sum, or their mean when intensive.
    """

    values: Float[Tensor, "system task"]
    atomic_values: Float[Tensor, "atom task"]


class PropertyModel:
    """A DPA4 network with a property head, its elements and precision.

    Args:
        model: the network; it is frozen (no weight gradients) and moved.
        card: origin of the weights, training record, licence; kept in the model file.
        device: where to compute.
        dtype: "float32" or "float64", the precision of the network.

    Raises:
        ConfigError: another dtype.
        ModelError: the network predicts energies.
    """

    def __init__(
        self,
        model: DPA4,
        *,
        card: Mapping[str, Any] | None = None,
        device: str | torch.device = "cpu",
        dtype: str = "float32",
    ) -> None:
        if not model.config.property_head.name:
            raise ModelError(
                "This model predicts energies, no property. Open it by dpa4sim.load(PATH)."
            )
        self.dtype, self.device = network_dtype(dtype), torch.device(device)
        self.model = model.to(self.device, self.dtype).eval().requires_grad_(False)
        self.config: DPA4Config = model.config
        self.card = dict(card or {})
        self._species_of = species_rows(self.config).to(self.device)

    @property
    def name(self) -> str:
        """Of the property: the name of its labels."""
        return self.config.property_head.name

    @property
    def cutoff(self) -> float:
        """Radius of the neighbour graph in Å."""
        return self.config.cutoff

    @property
    def known_elements(self) -> frozenset[int]:
        """Atomic numbers that the network was made for."""
        return frozenset(self.config.atomic_numbers)

    @torch.no_grad()
    def __call__(self, batch: Batch) -> PropertyPrediction:
        """The property of each system of a trusted batch on this device; see `evaluate`."""
        species, edges, charge, spin, searched = network_inputs(self, batch)
        shares, _ = self.model.properties(species, edges, charge, spin)
        values = reduced(shares, batch, self.config.property_head.intensive)
        if searched is not None:  # without neighbours a broken system would get some number
            values = values.masked_fill(~searched[:, None], torch.nan)
            shares = shares.masked_fill(~searched[batch.system_idx][:, None], torch.nan)
        return PropertyPrediction(values, shares)

    def evaluate(self, structures: Any) -> PropertyPrediction:
        """The property of structures, in one batch.

        Args:
            structures: ASE Atoms, pymatgen Structure, TorchSim state, Batch, a path, or a list.

        Raises:
            DataError: a structure cannot be used; the message says which and why.
        """
        from dpa4sim.adapters.files import structures_to_batches

        systems = structures_to_batches(structures)
        return self(checked_batch(systems, self.config, self.known_elements).to(self.device))

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
        units = {"length": "angstrom", "property": "of the labels"}
        write_safetensors(self.model, self.card, Path(path), units)


def reduced(
    shares: Float[Tensor, "atom task"], batch: Batch, intensive: bool
) -> Float[Tensor, "system task"]:
    """The property of each system: sum of its atoms' shares, or their mean when intensive."""
    total = shares.new_zeros(batch.n_systems, shares.shape[1])
    total = total.index_add(0, batch.system_idx, shares)
    return total / batch.n_atoms[:, None] if intensive else total


def network_inputs(
    model: Potential | PropertyModel | DirectModel, batch: Batch
) -> tuple[Int[Tensor, " atom"], Edges, Tensor | None, Tensor | None, Tensor | None]:
    """Species, edges, charge and spin as the network takes them, and which systems have edges.

    The last is None when the search could look at every system.
    """
    found = neighbors(batch, model.cutoff)
    edges = Edges(found.center, found.neighbor, found.vector.to(model.dtype), found.row_ptr)
    species = model._species_of[batch.atomic_numbers]
    return species, edges, *charge_and_spin(batch, model.config), found.searched


def load_property(
    model: str | Path,
    *,
    branch: str | None = None,
    device: str | torch.device = "cpu",
    dtype: str = "float32",
) -> PropertyModel:
    """Open a model of a property; arguments of `dpa4sim.load`.

    Raises:
        ModelError: no such model, a damaged or foreign file, an unsupported option, or a model of
            energies.
    """
    network, card = read_network(model, branch, dtype)
    return PropertyModel(network, card=card, device=device, dtype=dtype)


def predicts_property(model: str | Path, branch: str | None = None) -> bool:
    """Whether a model file is of a property; False for one that cannot be opened at all."""
    path = released().get(str(model), Path(model))
    if path.suffix != ".safetensors":
        from dpa4sim.adapters.deepmd import read_deepmd

        try:
            return bool(read_deepmd(path, branch)[0].property_head.name)
        except ModelError:
            return False
    try:
        with safe_open(path, framework="pt") as file:
            header = json.loads((file.metadata() or {}).get("dpa4sim", "{}"))
        described = header["branches"][branch] if "branches" in header else header
        return bool(described["config"]["property_head"]["name"])
    except (SafetensorError, OSError, ValueError, KeyError, TypeError):
        return False


def load_any(
    model: str | Path,
    *,
    branch: str | None = None,
    device: str | torch.device = "cpu",
    dtype: str = "float32",
) -> Potential | PropertyModel | DirectModel:
    """Open a model of any kind; arguments of `dpa4sim.load`.

    Raises:
        ModelError: no such model, a damaged or foreign file, or an unsupported option.
    """
    network, card = read_network(model, branch, dtype)
    if network.config.property_head.name:
        return PropertyModel(network, card=card, device=device, dtype=dtype)
    if network.config.force_head != "none":
        return DirectModel(network, card=card, device=device, dtype=dtype)
    return Potential(network, card=card, device=device, dtype=dtype)
