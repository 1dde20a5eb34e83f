"""Ensemble: several networks that were trained apart, whose disagreement says how far to trust.

    E = 1/M sum_m E_m        F = -dE/dR        s_i = sqrt(1/M sum_m |F_m,i - F_i|^2)

The mean of conservative forces is the force of the mean energy: relaxation and dynamics on it are
as sound as on one network.  The spread s_i costs nothing more than the members.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from dpa4sim.batch import Batch, max_over_atoms
from dpa4sim.composite import Composite, sum_in_order
from dpa4sim.config import DPA4Config
from dpa4sim.direct import DirectModel
from dpa4sim.edges import Edges, neighbors
from dpa4sim.errors import ConfigError, ModelError
from dpa4sim.kernels.triton_plan import Accuracy
from dpa4sim.model import DPA4
from dpa4sim.model_file import ENSEMBLE_FORMAT, fill, network_dtype, read_network
from dpa4sim.potential import EnergyModel, Potential, Prediction
from dpa4sim.potential import load as load_network
from dpa4sim.step_graphs import Predict, StepGraphs


class Ensemble(Composite):
    """The mean of several networks, with their spread; neighbours are searched once for all.

    Args:
        members: of equal cutoff, elements and conditioning, on one device.
        max_force_spread: eV/Å; a system with a larger spread is called uncertain.

    Raises:
        ConfigError: no usable limit.
        ModelError: fewer than two members, or members that do not go together.
    """

    def __init__(self, members: Sequence[Potential], *, max_force_spread: float = math.inf) -> None:
        if len(members) < 2:
            raise ModelError(f"{len(members)} member has no spread. Give two or more models.")
        super().__init__(members)
        _check_alike(members)
        if not max_force_spread > 0:
            raise ConfigError(
                f"max_force_spread={max_force_spread}. Give a positive number of eV/Å."
            )
        self.members, self.max_force_spread = tuple(members), float(max_force_spread)
        self.step_graphs: StepGraphs | None = None
        recorded = [m.step_graphs.predict for m in members if m.step_graphs is not None]
        if len(recorded) == len(members):
            self.step_graphs = StepGraphs(self, partial(self._predict, recorded))

    @property
    def card(self) -> dict[str, Any]:
        """The cards of the members."""
        return {"members": [member.card for member in self.members]}

    @property
    def dtype(self) -> torch.dtype:
        """Precision of the networks."""
        return self.members[0].dtype

    @property
    def fingerprint(self) -> str:
        """What tells two ensembles apart."""
        limit = self.max_force_spread
        return super().fingerprint + ("" if math.isinf(limit) else f" up to {limit:g}")

    @property
    def has_spread(self) -> bool:
        """Predictions say how much the members differ."""
        return True

    def limited(self, max_force_spread: float) -> Ensemble:
        """The same members with another limit of the force spread.

        Raises:
            ConfigError: no usable limit.
        """
        return Ensemble(self.members, max_force_spread=max_force_spread)

    def __call__(self, batch: Batch) -> Prediction:
        """Means and spreads of a trusted batch on this device; see `evaluate`."""
        asked = [partial(_ask, member) for member in self.members]
        return self._predict(asked, batch, neighbors(batch, self.cutoff))

    def _predict(self, members: Sequence[Predict], batch: Batch, edges: Edges) -> Prediction:
        """Means and spreads of what the members say about a batch whose edges are known."""
        said = [member(batch, edges) for member in members]
        forces = [each.forces for each in said]
        energies = [each.energy for each in said]
        force, energy = _mean(forces), _mean(energies)
        spread = _deviation(forces, force).square()
        spread = (spread[:, 0] + spread[:, 1] + spread[:, 2]).sqrt()
        by_moment = [each.magnetic_forces for each in said if each.magnetic_forces is not None]
        per_atom = batch.n_atoms.double().clamp(min=1.0)
        return Prediction(
            energy=energy,
            forces=force,
            stress=_mean([each.stress for each in said]),
            atomic_energies=_mean([each.atomic_energies for each in said]),
            edges=edges,
            force_spread=spread,
            energy_spread=_deviation(energies, energy) / per_atom,
            uncertain=max_over_atoms(spread, batch) > self.max_force_spread,
            magnetic_forces=_mean(by_moment) if by_moment else None,
        )

    def save(self, path: str | Path) -> None:
        """Write all members into one .safetensors file, which appears whole or not at all."""
        path = Path(path)
        header = {
            "format": ENSEMBLE_FORMAT,
            "members": [
                {"config": member.config.to_dict(), "card": member.card} for member in self.members
            ],
            "units": {"length": "angstrom", "energy": "eV"},
        }
        tensors = {
            f"{place}.{name}": value.contiguous()
            for place, member in enumerate(self.members)
            for name, value in member.model.state_dict().items()
        }
        partial = path.with_name(f".{path.name}.partial")
        save_file(tensors, partial, metadata={"dpa4sim": json.dumps(header)})
        partial.replace(path)


def load(
    model: str | Path | Sequence[str | Path],
    *,
    branch: str | None = None,
    device: str | torch.device = "cpu",
    dtype: str = "float32",
    compile: bool = False,
    kernels: Literal["torch", "triton"] = "torch",
    accuracy: Accuracy = "exact",
) -> Any:
    """Open a model: a Potential, or an Ensemble of several files or of a file of several members.

    A model of direct forces opens as a DirectModel.

    Args:
        model: a released name ("seed"), a .safetensors file, or a DeePMD-kit .pt checkpoint; or
            several of them, the members of an ensemble.
        branch: one of the branches of a file that has several.
        device: where to compute, such as "cpu" or "cuda".
        dtype: "float32" or "float64".
        compile, kernels, accuracy: as of `Potential`.

    Raises:
        ConfigError: a setting that the model cannot use.
        ModelError: no such model, a damaged or foreign file, an unsupported option, a model of a
            property, or members that do not go together.
    """
    asked: dict[str, Any] = {"device": device, "dtype": dtype, "compile": compile}
    asked |= {"kernels": kernels, "accuracy": accuracy}
    if not isinstance(model, str | Path):
        return Ensemble([load_network(each, branch=branch, **asked) for each in model])
    if is_ensemble(Path(model)):
        return read_ensemble(Path(model), **asked)
    network, card = read_network(model, branch, dtype)
    if network.config.force_head == "none":
        return Potential(network, card=card, **asked)
    if compile or kernels != "torch" or accuracy != "exact":
        raise ConfigError(
            f"{model} predicts forces directly, and compile=, kernels= and accuracy= are for "
            "potentials. Leave them out."
        )
    return DirectModel(network, card=card, device=device, dtype=dtype)


def limit_spread(model: EnergyModel, max_force_spread: float | None) -> Any:
    """The model, which calls systems uncertain beyond a force spread in eV/Å; None for no limit.

    Raises:
        ConfigError: the model has no spread, or the limit cannot be used.
    """
    if max_force_spread is None:
        return model
    if not getattr(model, "has_spread", False):
        raise ConfigError(
            f"max_force_spread={max_force_spread} needs an ensemble: one model has no spread. "
            "Load several: dpa4sim.load(['a.safetensors', 'b.safetensors'])."
        )
    limited: Any = model
    return limited.limited(max_force_spread)


def is_ensemble(path: Path) -> bool:
    """Whether a file holds several members; False for one that cannot be read."""
    try:
        with safe_open(path, framework="pt") as file:
            header = json.loads((file.metadata() or {}).get("dpa4sim", "null"))
    except (SafetensorError, OSError, ValueError):
        return False
    return isinstance(header, dict) and header.get("format") == ENSEMBLE_FORMAT


def read_ensemble(path: Path, *, dtype: str, **asked: Any) -> Ensemble:
    """The ensemble of a file that `is_ensemble`; keywords of `Potential` for every member.

    Raises:
        ModelError: the file is damaged, or its members do not go together.
    """
    precision, members = network_dtype(dtype), []
    try:
        with safe_open(path, framework="pt") as file:
            header = json.loads(file.metadata()["dpa4sim"])
            state = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        described = [
            (DPA4Config.from_dict(each["config"]), each.get("card", {}))
            for each in header["members"]
        ]
    except (SafetensorError, OSError, AttributeError, KeyError, TypeError, ValueError) as error:
        raise ModelError(f"{path} is a damaged ensemble: {error}.") from error
    for place, (config, card) in enumerate(described):
        network = DPA4(config, dtype=precision)
        own = {
            name.removeprefix(f"{place}."): value
            for name, value in state.items()
            if name.startswith(f"{place}.")
        }
        fill(network, own, f"{path}, member {place}")
        members.append(Potential(network, card=card, dtype=dtype, **asked))
    return Ensemble(members)


def _ask(member: Potential, batch: Batch, edges: Edges) -> Prediction:
    return member(batch, edges=edges)


def _check_alike(members: Sequence[Potential]) -> None:
    """Members see the same neighbours and are told the same.

    Raises:
        ModelError: two do not.
    """
    first = members[0].config
    for place, other in enumerate((member.config for member in members[1:]), 1):
        for what, own, its in (
            ("cutoff", f"{first.cutoff:g} Å", f"{other.cutoff:g} Å"),
            ("elements", _listed(first), _listed(other)),
            ("conditioning on charge and spin", first.charge_spin, other.charge_spin),
            ("magnetic elements", _magnetic(first), _magnetic(other)),
        ):
            if own != its:
                raise ModelError(
                    f"Members 0 and {place} differ in their {what}: {own} and {its}. An ensemble "
                    "is made of networks that were trained with the same."
                )


def _listed(config: DPA4Config) -> str:
    return ", ".join(sorted(config.species))


def _magnetic(config: DPA4Config) -> str:
    return ", ".join(sorted(config.spin.magnetic)) or "none"


def _mean(values: Sequence[Tensor]) -> Tensor:
    return sum_in_order(values) / len(values)


def _deviation(values: Sequence[Tensor], mean: Tensor) -> Tensor:
    """Root of the mean square difference from the mean, component by component."""
    return _mean([(value - mean).square() for value in values]).sqrt()
