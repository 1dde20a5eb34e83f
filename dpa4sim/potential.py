"""Potential: energy of edge vectors -> energy, forces, stress of structures."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol, runtime_checkable

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from dpa4sim.batch import HEAVIEST, Batch, symbol
from dpa4sim.complaint import complaints
from dpa4sim.config import DPA4Config
from dpa4sim.edges import Edges, neighbors
from dpa4sim.errors import ConfigError, DataError, ModelError
from dpa4sim.kernels.precision import matmul_precision, product_precision
from dpa4sim.kernels.triton_plan import Accuracy, EdgeGraph, available, check_accuracy
from dpa4sim.model import DPA4
from dpa4sim.model_file import network_dtype, read_network, write_safetensors
from dpa4sim.moments import magnetic_numbers, moments_complaint, moments_of, with_moments

if TYPE_CHECKING:
    from dpa4sim.compiled import Network
    from dpa4sim.composite import Sum
    from dpa4sim.embed import Embedding
    from dpa4sim.step_graphs import StepGraphs

COMPILED_UP_TO = 6000
"""Edges.  On a processor larger batches are faster by the kernels written by hand (bench modes)."""


@dataclass(frozen=True)
class Prediction:
    """What a potential says about a batch; every number is float64 whatever the model's dtype.

    Args:
        energy: eV.
        forces: -dE/dR in eV/Å.
        stress: dE/dstrain / V in eV/Å^3, tension positive; NaN where the cell has no volume.
        atomic_energies: eV; they sum to `energy`.
        descriptors: the scalars that the energy is read from, on request.
        edges: the neighbour list that was used, for whoever can use it again; float64 vectors.
        force_spread: root mean square of |F - mean F| over the members of an ensemble, eV/Å.
        energy_spread: standard deviation of their energies, eV per atom.
        uncertain: whether an atom's force spread is beyond the limit of the ensemble.
        magnetic_forces: -dE/dm in eV per Bohr magneton, of models with spins; zero for elements
            that the model takes as not magnetic.
        has_stress: False for models of energy and direct forces, whose stress is NaN everywhere.
    """

    energy: Float[Tensor, " system"]
    forces: Float[Tensor, "atom 3"]
    stress: Float[Tensor, "system 3 3"]
    atomic_energies: Float[Tensor, " atom"]
    descriptors: Float[Tensor, "atom channel"] | None = None
    edges: Edges | None = None
    force_spread: Float[Tensor, " atom"] | None = None
    energy_spread: Float[Tensor, " system"] | None = None
    uncertain: Bool[Tensor, " system"] | None = None
    magnetic_forces: Float[Tensor, "atom 3"] | None = None
    has_stress: bool = True


@runtime_checkable
class EnergyModel(Protocol):
    """What relaxation and dynamics need: a callable from a trusted Batch to a Prediction."""

    device: torch.device

    @property
    def cutoff(self) -> float:
        """Radius in Å beyond which two atoms share no edge."""

    def __call__(self, batch: Batch) -> Prediction:
        """Energy, forces and stress, without checks and without reading the device."""


class Potential:
    """A DPA4 network with its units, elements and precision.

    Args:
        model: the network; it is frozen (no weight gradients) and moved.
        card: origin of the weights, training record, licence; kept in the model file.
        device: where to compute.
        dtype: "float32" or "float64", the precision of the network.
        compile: run the network as one compiled graph; making it takes minutes, once for each
            model, precision and kind of processor (`dpa4sim.compiled`); on a processor large
            batches run by compiled loops (`dpa4sim.kernels.loops`); steps of FIRE and of
            dynamics are compiled around it (`dpa4sim.compiled_steps`).  On CUDA it is recorded
            besides, for each size of batch (`dpa4sim.graphs`), and so are the steps of relaxations
            and of dynamics around it (`dpa4sim.step_graphs`); with kernels="triton" these are
            recorded, and nothing is compiled.
        kernels: "torch", or "triton" for the Triton kernels, on CUDA in float32.
        accuracy: of products of float32 matrices: "exact" as such; "high", which Triton makes of
            three TF32 products; "fast", of shorter numbers where the device has them: CUDA, and
            processors with AMX (docs/performance.md has the errors).

    Raises:
        ConfigError: another dtype.
        ModelError: the network predicts a property, no energies; or it cannot be compiled.
    """

    def __init__(
        self,
        model: DPA4,
        *,
        card: Mapping[str, Any] | None = None,
        device: str | torch.device = "cpu",
        dtype: str = "float32",
        compile: bool = False,
        kernels: Literal["torch", "triton"] = "torch",
        accuracy: Accuracy = "exact",
    ) -> None:
        name = model.config.property_head.name
        if name:
            raise ModelError(
                f"This model predicts the property '{name}' and no energy, so there are no forces. "
                "Ask it by `dpa4sim eval`, or open it by dpa4sim.load_property(PATH)."
            )
        if model.config.force_head != "none":
            raise ModelError(
                "This model predicts forces directly: they are not the gradient of its energy, and "
                "it has no stress. This needs a potential. Open it by dpa4sim.load(PATH) to "
                "evaluate it."
            )
        self.dtype = network_dtype(dtype)
        self.device = torch.device(device)
        self.model = model.to(self.device, self.dtype).eval().requires_grad_(False)
        self.config = model.config
        self.card = dict(card or {})
        self._species_of = species_rows(self.config).to(self.device)
        self.kernels, self.accuracy = kernels, accuracy
        self._check_kernels(compile)
        self.model.use_triton(accuracy if kernels == "triton" else None)
        self.model.use_compiled_loops(compile and self.device.type == "cpu")
        self.network: Network | None = None
        self.step_graphs: StepGraphs | None = None
        if compile:
            self._compile()

    @property
    def cutoff(self) -> float:
        """Radius of the neighbour graph in Å."""
        return self.config.cutoff

    @property
    def known_elements(self) -> frozenset[int]:
        """Atomic numbers that the network was made for."""
        return frozenset(self.config.atomic_numbers)

    @property
    def magnetic_elements(self) -> frozenset[int]:
        """Atomic numbers of the elements that carry a moment; none for a model without spins."""
        return magnetic_numbers(self.config)

    def __add__(self, other: EnergyModel) -> Sum:
        """The sum of both energies, such as `potential + dpa4sim.d3("pbe")`."""
        from dpa4sim.composite import Sum

        return Sum([self, other])

    def __call__(
        self, batch: Batch, *, descriptors: bool = False, edges: Edges | None = None
    ) -> Prediction:
        """Energy, forces and stress of a trusted batch on this device; see `evaluate`.

        Args:
            edges: of this batch within the cutoff, where somebody has searched them already.
        """
        found = neighbors(batch, self.cutoff) if edges is None else edges
        network = None if descriptors else self._compiled_for(found)
        return self.predict(batch, found, network=network, descriptors=descriptors)

    def predict(
        self,
        batch: Batch,
        found: Edges,
        *,
        network: Network | None = None,
        descriptors: bool = False,
    ) -> Prediction:
        """Energy, forces and stress of a trusted batch whose edges are known.

        Args:
            found: within the cutoff; float64 vectors.
            network: what gives atomic energies and dE/dvector; None for the model itself.
            descriptors: as of `evaluate`; by the model itself only.
        """
        vector = found.vector.detach().to(self.dtype)
        species, state = self._species_of[batch.atomic_numbers], self._state(batch)
        by_moment: list[Tensor] = []
        if network is not None:
            given = [value for value in state if value is not None]
            atomic, gradient = network(species, found.center, found.neighbor, vector, *given)
            values = None
        else:
            edges = Edges(found.center, found.neighbor, vector.requires_grad_(True), found.row_ptr)
            leaves = [edges.vector]
            if self.config.has_spins:
                moments = moments_of(batch).to(self.dtype, copy=True)
                leaves.append(moments.requires_grad_(True))
            precision = product_precision(self.accuracy, self.device)
            with torch.enable_grad(), matmul_precision(precision):
                atomic, features = self.model(species, edges, *state, *leaves[1:])
                gradient, *by_moment = torch.autograd.grad(atomic.sum(), leaves)
            values = features.detach().double() if descriptors else None
        sums = assemble_by_triton if self.kernels == "triton" else assemble
        prediction = sums(batch, found, atomic.detach(), gradient, values)
        if self.config.has_spins:
            prediction = replace(prediction, magnetic_forces=-by_moment[0].double())
        searched = found.searched
        return prediction if searched is None else without(prediction, batch, ~searched)

    def evaluate(self, structures: Any, *, descriptors: bool = False) -> Prediction:
        """Energy, forces, stress and atomic energies of structures, in one batch.

        Args:
            structures: ASE Atoms, pymatgen Structure, TorchSim state, Batch, a path, or a list.
            descriptors: also return the invariant features of the atoms.

        Raises:
            DataError: a structure cannot be used; the message says which and why.
        """
        from dpa4sim.adapters.files import structures_to_batches

        systems = structures_to_batches(structures)
        batch = checked_batch(systems, self.config, self.known_elements).to(self.device)
        return replace(self(batch, descriptors=descriptors), edges=None)

    def embed(self, structures: Any) -> Embedding:
        """Descriptors and features of structures, in one batch; see `dpa4sim.embed`.

        Raises:
            DataError: a structure cannot be used; the message says which and why.
        """
        from dpa4sim.embed import embed

        return embed(self, structures)

    def _compile(self) -> None:
        """The network as one graph; on CUDA it is recorded, and so are the steps around it."""
        from dpa4sim.compiled import compiled
        from dpa4sim.export import energy_and_gradient
        from dpa4sim.graphs import GraphedNetwork
        from dpa4sim.step_graphs import StepGraphs

        plain = self.kernels == "triton"
        network = energy_and_gradient(self.model) if plain else compiled(self)
        self.network = network
        if self.device.type == "cuda":
            self.network = GraphedNetwork(network, self.cutoff)
            self.step_graphs = StepGraphs(self, partial(self.predict, network=network))

    def _compiled_for(self, edges: Edges) -> Network | None:
        """The compiled network where it is the faster one."""
        large = self.device.type == "cpu" and edges.n_edges > COMPILED_UP_TO
        return None if large or len(edges.row_ptr) == 1 else self.network

    def _check_kernels(self, compile: bool) -> None:
        check_accuracy(self.accuracy)
        if self.kernels not in ("torch", "triton"):
            raise ConfigError(f"kernels = {self.kernels!r}. Choose 'torch' or 'triton'.")
        if self.kernels == "triton" and not available(self.device, self.dtype):
            raise ConfigError(
                f"There are no Triton kernels for {self.dtype} on {self.device}; they need float32 "
                "on a CUDA device. Leave kernels='triton' out."
            )
        if self.config.has_spins and (compile or self.kernels == "triton"):
            raise ConfigError(
                "A model with spins runs by PyTorch only. Leave compile=True and kernels='triton' "
                "out."
            )
        if compile and self.kernels == "torch" and self.accuracy != "exact":
            raise ConfigError(
                "compile=True brings its own kernels and their accuracy. Choose it, or accuracy=, "
                "or both with kernels='triton'."
            )

    def save(self, path: str | Path) -> None:
        """Write a .safetensors file: weights, and a JSON header with config, units and card.

        The file appears whole or not at all.
        """
        write_safetensors(self.model, self.card, Path(path), {"length": "angstrom", "energy": "eV"})

    def _state(self, batch: Batch) -> tuple[Tensor | None, Tensor | None]:
        return charge_and_spin(batch, self.config)


def checked_batch(
    systems: Sequence[Batch], config: DPA4Config | None, known_elements: frozenset[int] | None
) -> Batch:
    """One batch of structures that a model can take.

    Args:
        config: of the network, which may ask for charge and spin; None where there is none.
        known_elements: of the model; None to skip the check.

    Raises:
        DataError: a structure cannot be used; the message says which and why.
    """
    reasons = complaints(systems, known_elements)
    for index, (system, wrong) in enumerate(zip(systems, reasons, strict=True)):
        reason = wrong or (state_complaint(system, config) if config is not None else None)
        if reason is not None:
            names = ", ".join(symbol(z) for z in sorted(known_elements or ()))
            hint = f" It knows {names}." if "does not know" in reason else ""
            raise DataError(f"Structure {index} cannot be evaluated: {reason}.{hint}")
    if config is not None and config.has_spins:
        systems = [with_moments(system, magnetic_numbers(config)) for system in systems]
    return Batch.concatenate(systems)


def species_rows(config: DPA4Config) -> Int[Tensor, " atomic_number"]:
    """The network's row of each atomic number; -1 for elements that it does not know."""
    rows = torch.full((HEAVIEST + 2,), -1)
    rows[list(config.atomic_numbers)] = torch.arange(len(config.species))
    return rows


def state_complaint(system: Batch, config: DPA4Config) -> str | None:
    """What is wrong with a structure's charge, spin and magnetic moments for a model."""
    if not config.charge_spin:
        return moments_complaint(system, magnetic_numbers(config))
    for name, low, high in (("charge", -100, 99), ("spin", 0, 99)):
        given = getattr(system, name)
        value = 0.0 if given is None else float(given[0])
        if value != round(value) or not low <= value <= high:
            return f"its {name} is {value:g}; this model takes whole numbers {low} to {high}"
    return moments_complaint(system, magnetic_numbers(config))


def charge_and_spin(batch: Batch, config: DPA4Config) -> tuple[Tensor | None, Tensor | None]:
    """Charge and spin of each atom's system, from the batch or the config's defaults.

    Raises:
        DataError: the model needs them, and neither has them.
    """
    if not config.charge_spin:
        return None, None
    default = config.default_charge_spin or (None, None)
    values = []
    for name, value in zip(("charge", "spin"), default, strict=True):
        given = getattr(batch, name)
        if given is not None:
            values.append(given.double()[batch.system_idx])
            continue
        if value is None:
            raise DataError(
                f"This model is conditioned on charge and spin, and the structures carry no "
                f"'{name}'. Set atoms.info['{name}'] on each of them."
            )
        values.append(batch.positions.new_full((len(batch.positions),), value))
    return values[0], values[1]


def load(
    model: str | Path,
    *,
    branch: str | None = None,
    device: str | torch.device = "cpu",
    dtype: str = "float32",
    compile: bool = False,
    kernels: Literal["torch", "triton"] = "torch",
    accuracy: Accuracy = "exact",
) -> Potential:
    """Open one network; see `dpa4sim.ensemble.load` for several.

    Args:
        model: a released name ("seed"), a .safetensors file, or a DeePMD-kit .pt checkpoint.
        branch: one of the branches of a file that has several.
        device: where to compute, such as "cpu" or "cuda".
        dtype: "float32" or "float64".
        compile, kernels, accuracy: as of `Potential`.

    Raises:
        ModelError: no such model, a damaged or foreign file, an unsupported option, or a model of
            a property.
    """
    network, card = read_network(model, branch, dtype)
    speed: dict[str, Any] = {"compile": compile, "kernels": kernels, "accuracy": accuracy}
    return Potential(network, card=card, device=device, dtype=dtype, **speed)


def assemble(
    batch: Batch,
    edges: Edges,
    atomic_energies: Float[Tensor, " atom"],
    vector_gradient: Float[Tensor, "edge 3"],
    descriptors: Float[Tensor, "atom channel"] | None = None,
) -> Prediction:
    """Forces and stress are segment sums of g = dE/dvector.

        F_k = sum_{center = k} g - sum_{neighbor = k} g
        stress_s = 1/V_s  sum_{edges of s} g (x) vector

    Args:
        vector_gradient: g in eV/Å, one row per edge.
    """
    gradient, vector = vector_gradient.double(), edges.vector.double()
    n_atoms, n_systems = batch.positions.shape[0], batch.n_systems
    forces = gradient.new_zeros(n_atoms, 3)
    forces = forces.index_add(0, edges.center, gradient)
    forces = forces.index_add(0, edges.neighbor, gradient, alpha=-1)
    pair = gradient[:, :, None] * vector[:, None, :]
    virial = pair.new_zeros(n_systems, 3, 3).index_add(0, batch.system_idx[edges.center], pair)
    energies = atomic_energies.double()
    energy = energies.new_zeros(n_systems).index_add(0, batch.system_idx, energies)
    volume = batch.volume
    stress = virial / torch.where(volume > 0, volume, torch.nan)[:, None, None]
    stress = 0.5 * (stress + stress.transpose(1, 2))
    return Prediction(energy, forces, stress, energies, descriptors, edges)


def assemble_by_triton(
    batch: Batch,
    edges: Edges,
    atomic_energies: Float[Tensor, " atom"],
    vector_gradient: Float[Tensor, "edge 3"],
    descriptors: Float[Tensor, "atom channel"] | None = None,
) -> Prediction:
    """`assemble` by kernels whose sums have one order, on CUDA too."""
    from dpa4sim.kernels.triton_assemble import assemble_sums

    graph = EdgeGraph.build(edges.neighbor, edges.row_ptr)
    forces, virial, energy = assemble_sums(
        vector_gradient, edges.vector, atomic_energies, graph, batch.n_atoms
    )
    volume = torch.where(batch.volume > 0, batch.volume, torch.nan)[:, None, None]
    stress = 0.5 * (virial + virial.transpose(1, 2)) / volume
    return Prediction(energy, forces, stress, atomic_energies.double(), descriptors, edges)


def without(prediction: Prediction, batch: Batch, broken: Bool[Tensor, " system"]) -> Prediction:
    """NaN for systems that have no edges only because they are broken: zero force is no answer."""
    atoms, by_moment = broken[batch.system_idx], prediction.magnetic_forces
    if by_moment is not None:
        by_moment = by_moment.masked_fill(atoms[:, None], torch.nan)
    return replace(
        prediction,
        magnetic_forces=by_moment,
        energy=prediction.energy.masked_fill(broken, torch.nan),
        forces=prediction.forces.masked_fill(atoms[:, None], torch.nan),
        stress=prediction.stress.masked_fill(broken[:, None, None], torch.nan),
        atomic_energies=prediction.atomic_energies.masked_fill(atoms, torch.nan),
    )
