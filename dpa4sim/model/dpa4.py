"""DPA4: species and edge vectors -> atomic energies.  Paper section 4.2, Figure 2.

    species, r_ij -> edge features -> embedding -> blocks -> read-out -> energies (+ shift, + ZBL)

The edge vectors are the only geometry, so one reverse pass to them gives forces and virial.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from dpa4sim.config import DPA4Config
from dpa4sim.edges import Edges
from dpa4sim.errors import ModelError
from dpa4sim.kernels.row_chunks import edge_cuts, in_chunks
from dpa4sim.kernels.triton_plan import Accuracy, EdgeGraph
from dpa4sim.kernels.workspace import is_large, room
from dpa4sim.model.basis import RadialBasis, RadialNetwork, envelope
from dpa4sim.model.block import Block
from dpa4sim.model.dens import DirectHead, DirectOutput, NoisyForces
from dpa4sim.model.edge_features import EdgeFeatures
from dpa4sim.model.embedding import (
    ChargeSpin,
    EnvironmentSeed,
    angular_seed,
    degree_scale,
    species_table,
)
from dpa4sim.model.frames import RotationRows
from dpa4sim.model.grid import GridProduct
from dpa4sim.model.readout import EnergyHead, PropertyHead, Readout
from dpa4sim.model.spin import MomentFeatures, Moments
from dpa4sim.model.zbl import Bridge, repulsion, source_gate

DEGREE_FLOOR = 0.25
"""Floor of the degree normalisation from descriptor version 1.1 on."""


class DPA4(nn.Module):
    """The network.  A function of species and edge vectors; it knows no positions and no cell."""

    energy_shift: Tensor
    nuclear_charge: Tensor
    excluded: Tensor

    def __init__(self, config: DPA4Config, dtype: torch.dtype = torch.float32) -> None:
        super().__init__()
        self.config = config
        self.hand_written = True
        self.triton: Accuracy | None = None
        self.prepared = self.recompute = False
        C, n_species = config.channels, len(config.species)
        native = config.has_spins and not config.has_virtual_atoms
        node_degree = config.top_degree + config.extra_degree
        radial_exponent, self.edge_exponent = config.envelope_exponents
        # The reference keeps this one radius in single precision.
        self.envelope_cutoff = float(np.float32(config.cutoff))
        self.legacy = config.descriptor_version == "1.0"
        self.bridge = None
        if config.zbl_inner is not None and config.zbl_outer is not None:
            self.bridge = Bridge(config.zbl_inner, config.zbl_outer)
        self.species_table = nn.Parameter(species_table(config.n_kinds, C))
        self.charge_spin = ChargeSpin(C) if config.charge_spin else None
        self.basis = RadialBasis(
            config.radial_basis, config.n_radial, config.cutoff, radial_exponent
        )
        self.radial = RadialNetwork(
            config.n_radial, config.radial_hidden, node_degree + 1, C, config.edge_norm
        )
        self.environment = None
        if config.environment_seed:
            self.environment = EnvironmentSeed(
                config.n_kinds, C, config.n_radial, config.edge_norm, config.bias, native
            )
        self.moments = Moments(config) if config.has_spins else None
        self.moment_features = MomentFeatures(n_species, C) if native else None
        self.blocks = nn.ModuleList(
            Block(config, degree, order)
            for degree, order in zip(config.degrees, config.orders, strict=True)
        )
        last = config.degrees[-1] if config.degrees else config.top_degree
        self.readout = Readout(config, last + config.extra_degree)
        predicts = PropertyHead if config.property_head.name else EnergyHead
        self.head = predicts(config)
        if config.force_head != "none":
            head = DirectHead(config, node_degree, last + config.extra_degree)
            self.head = head  # type: ignore[assignment]
        shift = torch.zeros(n_species, dtype=torch.float64)
        self.register_buffer("energy_shift", shift, persistent=not config.property_head.name)
        numbers = torch.tensor(config.atomic_numbers)
        self.register_buffer("nuclear_charge", numbers, persistent=False)
        self.register_buffer("excluded", self._excluded_table(), persistent=False)
        self.rotation = RotationRows(node_degree, max(config.orders, default=0))
        self.to(dtype)  # constants are made in float64

    def forward(
        self,
        species: Int[Tensor, " atom"],
        edges: Edges,
        charge: Float[Tensor, " atom"] | None = None,
        spin: Float[Tensor, " atom"] | None = None,
        moments: Float[Tensor, "atom 3"] | None = None,
    ) -> tuple[Float[Tensor, " atom"], Float[Tensor, "atom channel"]]:
        """Atomic energies in eV (float64) and descriptors.

        Args:
            species: row of each atom in the species table.
            edges: vectors in Å in the model's dtype, sorted by center.
            charge: total charge of each atom's system, for a charge_spin model.
            spin: total spin of each atom's system.
            moments: magnetic moment of each atom in Bohr magnetons, for a model with spins; with
                the vectors, what the energy is differentiated by.

        Invariant under translations and rotations, the moments turning with the positions.  A
        mirror image may differ (V of Eq. 19 tells left from right).  C3 at the cutoff, but for the
        ZBL term, which the reference cuts there, and for virtual atoms (model/spin.py).
        """
        descriptor, vector = self._describe(species, edges, charge, spin, moments)
        energy = self.head(descriptor).double() + self.energy_shift[species]
        if self.bridge is not None:
            energy = energy + self._repulsion(species, edges, vector)
        return energy, descriptor

    def properties(
        self,
        species: Int[Tensor, " atom"],
        edges: Edges,
        charge: Float[Tensor, " atom"] | None = None,
        spin: Float[Tensor, " atom"] | None = None,
    ) -> tuple[Float[Tensor, "atom task"], Float[Tensor, "atom channel"]]:
        """Each atom's share of the property (float64) and descriptors; arguments of `forward`."""
        descriptor, _ = self._describe(species, edges, charge, spin)
        return self.head(descriptor, species), descriptor

    def direct(
        self,
        species: Int[Tensor, " atom"],
        edges: Edges,
        charge: Float[Tensor, " atom"] | None = None,
        spin: Float[Tensor, " atom"] | None = None,
        given: NoisyForces | None = None,
    ) -> DirectOutput:
        """What a direct-force model says; arguments of `forward`.

        Args:
            given: forces of the structure before its atoms were displaced, in training only.

        Energies are invariant under rotations and forces rotate along (not of a "mirrored" head);
        a mirror image may differ, as of `forward`.
        """
        seed = None if given is None else self.head.embed(given)  # type: ignore[operator]
        x, _ = self._latent(species, edges, charge, spin, seed=seed)
        return self.head(self.readout(x), x, species, self.energy_shift)

    def features(
        self,
        species: Int[Tensor, " atom"],
        edges: Edges,
        charge: Float[Tensor, " atom"] | None = None,
        spin: Float[Tensor, " atom"] | None = None,
        moments: Float[Tensor, "atom 3"] | None = None,
    ) -> tuple[Float[Tensor, "atom channel"], Float[Tensor, "atom hidden"]]:
        """Descriptors and the head's last hidden layer; arguments of `forward`."""
        descriptor, _ = self._describe(species, edges, charge, spin, moments)
        return descriptor, self.head.hidden(descriptor)

    def _describe(
        self,
        species: Tensor,
        edges: Edges,
        charge: Tensor | None,
        spin: Tensor | None,
        moments: Tensor | None = None,
    ) -> tuple[Float[Tensor, "atom channel"], Float[Tensor, "edge 3"]]:
        """Descriptors, and the vectors of the edges as they were used."""
        x, vector = self._latent(species, edges, charge, spin, moments)
        return self.readout(x), vector

    def _latent(
        self,
        species: Tensor,
        edges: Edges,
        charge: Tensor | None,
        spin: Tensor | None,
        moments: Tensor | None = None,
        seed: Float[Tensor, "atom lm channel"] | None = None,
    ) -> tuple[Float[Tensor, "atom lm channel"], Float[Tensor, "edge 3"]]:
        """Features after the last block, and the vectors; `seed` is added to the first features."""
        n_atoms, vector = species.shape[0], self._in_sight(species, edges)
        seen = vector
        if self.moments is not None:
            if moments is None:
                raise ModelError("This model has spins; it needs the magnetic moments.")
            moments = self.moments(species, moments)
            if self.config.has_virtual_atoms:
                species, edges, owner = self.moments.with_virtual_atoms(species, edges, moments)
                vector = self._in_sight(species, edges)
                charge = None if charge is None else charge[owner]
                spin = None if spin is None else spin[owner]
        length = ((vector * vector).sum(1) + self.config.epsilon**2).sqrt()
        features, radial_vector, basis = self._edge_features(
            species, edges, vector, length, charge, spin, moments
        )
        x = self._embed(species, features, radial_vector, basis)
        x = x if seed is None else x + seed
        if self.moment_features is not None:
            around = None if self.environment is None else features
            x = self.moment_features(x, moments, species, around)
        for block in self.blocks:
            x = self._pass(block, x[:, : block.n_rows], features)
        return x[:n_atoms], seen

    def _in_sight(self, species: Tensor, edges: Edges) -> Float[Tensor, "edge 3"]:
        """The vectors, but for excluded pairs, which are put out of sight."""
        vector = edges.vector
        if not self.config.excluded_pairs:
            return vector
        silent = vector.new_tensor([0.0, 0.0, 2 * self.config.cutoff])
        hidden = self.excluded[species[edges.center], species[edges.neighbor]]
        return torch.where(hidden[:, None], silent, vector)

    def _pass(self, block: nn.Module, x: Tensor, edges: EdgeFeatures) -> Tensor:
        """One block; with `recompute` its activations are made again in the backward pass."""
        if not (self.recompute and torch.is_grad_enabled()):
            return block(x, edges)
        return checkpoint(block, x, edges, use_reentrant=False, preserve_rng_state=False)

    def _edge_features(
        self,
        species: Tensor,
        edges: Edges,
        vector: Tensor,
        length: Tensor,
        charge: Tensor | None,
        spin: Tensor | None,
        moments: Tensor | None = None,
    ) -> tuple[EdgeFeatures, Float[Tensor, "edge column"], Float[Tensor, "edge basis"]]:
        """Everything of an edge that depends on geometry and species only."""
        config, n_atoms = self.config, species.shape[0]
        direction = vector / length[:, None]
        gate = None
        if self.bridge is not None:
            length = self.bridge.clamp(length)
            gates = source_gate(self.bridge.amplitude(length), edges.neighbor, n_atoms)
            gate = gates.index_select(0, edges.neighbor)
        weight = envelope(length, self.envelope_cutoff, self.edge_exponent)
        basis = self.basis(length)
        learning = any(weight.requires_grad for weight in self.parameters())
        offsets = self._offsets(edges, learning)
        sparing = offsets is not None and not learning and is_large(len(basis))
        hidden = self._radial(basis) if sparing else self.radial(basis)
        if not self.legacy:
            hidden = hidden * weight[:, None]
        features = EdgeFeatures(
            center=edges.center,
            neighbor=edges.neighbor,
            row_ptr=edges.row_ptr,
            rows=self.rotation(direction),
            weight=weight,
            hidden=hidden,
            profile_weight=self.radial.out_by_degree,
            species=self._species_features(species, charge, spin, moments),
            gate=gate,
            degree_scale=degree_scale(
                weight, edges.center, n_atoms, config.epsilon if self.legacy else DEGREE_FLOOR
            ),
            offsets=offsets,
            graph=self._graph(edges),
            accuracy=self.triton or "exact",
            sparing=sparing,
            keep_bytes=0 if offsets is None else self._keep_bytes(len(basis)),
            learning=learning,
        )
        radial_vector = (features.gated_weight / length)[:, None]
        columns = [radial_vector, radial_vector * direction]
        if self.moment_features is not None and moments is not None:
            columns.append(features.gated_weight[:, None] * moments[edges.neighbor])
        return features, torch.cat(columns, 1), basis

    def _keep_bytes(self, n_edges: int) -> int:
        """What one focus of one block may store."""
        return room(n_edges) // max(1, self.config.n_focus * len(self.blocks))

    def _radial(self, basis: Float[Tensor, "edge basis"]) -> Float[Tensor, "edge hidden"]:
        """The radial network, a few edges at a time."""
        cuts = edge_cuts(len(basis))
        return in_chunks(lambda part, *_: self.radial(part), [basis], cuts, len(basis))

    def _offsets(self, edges: Edges, learning: bool) -> tuple[int, ...] | None:
        """row_ptr on the host where the hand-written kernels apply on the CPU.

        Weights are frozen, or the network is prepared for training (train/compiled.py).
        """
        eager = self.hand_written and not torch.compiler.is_compiling()
        if self.triton is not None or not (eager and edges.center.device.type == "cpu"):
            return None
        if learning and not self.prepared:
            return None
        return tuple(edges.row_ptr.tolist())

    def use_triton(self, accuracy: Accuracy | None) -> None:
        """Let Triton kernels work in the edge convolutions and on the grids; None for PyTorch."""
        self.triton = accuracy
        for module in self.modules():
            if isinstance(module, GridProduct):
                module.triton = accuracy

    def use_compiled_loops(self, wanted: bool) -> None:
        """Let the hand-written kernels compile what lies between their matrix products."""
        for block in self.blocks:
            block.convolution.compiled_loops = wanted  # type: ignore[union-attr]

    def _graph(self, edges: Edges) -> EdgeGraph | None:
        """The neighbour list as the Triton kernels walk along it, where they are asked for."""
        if self.triton is None or torch.compiler.is_compiling():
            return None
        return EdgeGraph.build(edges.neighbor, edges.row_ptr)

    def _species_features(
        self,
        species: Tensor,
        charge: Tensor | None,
        spin: Tensor | None,
        moments: Tensor | None,
    ) -> Float[Tensor, "atom channel"]:
        features = self.species_table[species]
        if self.moment_features is not None and moments is not None:
            features = features + self.moment_features.scalars(moments)
        if self.charge_spin is None or charge is None or spin is None:
            return features
        return features + self.charge_spin(charge, spin)

    def _embed(
        self, species: Tensor, edges: EdgeFeatures, radial_vector: Tensor, basis: Tensor
    ) -> Float[Tensor, "atom lm channel"]:
        """First features: scalars from species and surroundings, l >= 1 from directions."""
        scalars = edges.species
        n_angular = self.radial.n_degrees**2 - 1
        if self.environment is None:
            angular = scalars.new_zeros(len(scalars), n_angular, scalars.shape[1])
            return torch.cat([scalars[:, None], angular], 1)
        scalars = self.environment(
            scalars, basis, radial_vector, species, edges, self.config.epsilon
        )
        if n_angular == 0:
            return scalars[:, None]
        harmonics = edges.rows[:, 0, 1:]
        if edges.gate is not None:
            harmonics = harmonics * edges.gate[:, None]
        angular = angular_seed(
            harmonics,
            edges.hidden,
            edges.profile_weight[1:],
            edges.center,
            edges.degree_scale,
            edges.centers,
        )
        return torch.cat([scalars[:, None], angular], 1)

    def _repulsion(self, species: Tensor, edges: Edges, vector: Tensor) -> Float[Tensor, " atom"]:
        """Half of each pair's repulsion to each of its atoms, in float64."""
        charges = self.nuclear_charge[species].double()
        length = torch.linalg.vector_norm(vector.double(), dim=1)
        pair = repulsion(length, charges[edges.center], charges[edges.neighbor])
        pair = torch.where(length <= self.config.cutoff, 0.5 * pair, torch.zeros_like(pair))
        return pair.new_zeros(species.shape[0]).index_add(0, edges.center, pair)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> DPA4:
        """Move or cast everything but the energy shifts, which stay float64."""
        shift = self.energy_shift
        super()._apply(fn, recurse)
        self.energy_shift = shift.to(self.energy_shift.device)
        return self

    def _excluded_table(self) -> Tensor:
        names, n_kinds = self.config.species, self.config.n_kinds
        table = torch.zeros(n_kinds, n_kinds, dtype=torch.bool)
        for a, b in self.config.excluded_pairs:
            i, j = names.index(a), names.index(b)
            table[i, j] = table[j, i] = True
        return table
