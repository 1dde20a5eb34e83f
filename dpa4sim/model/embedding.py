"""Geometry-informed embedding: the first features of every atom.  Paper section 4.2.2.

| paper | here |
|---|---|
| T_node            | `DPA4.species_table` |
| h^(0)_lm, Eq. 13  | `angular_seed` |
| environment matrix A_i, Eq. 10-12 | `EnvironmentSeed` |
| n_i, Eq. 9        | `degree_scale` |
"""

from __future__ import annotations

from collections.abc import Sequence
from math import log

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn.functional import silu

from dpa4sim.kernels import group_sums
from dpa4sim.kernels.edge_groups import EdgeGroups
from dpa4sim.kernels.row_chunks import center_cuts, in_chunks
from dpa4sim.kernels.segments import sum_outer
from dpa4sim.model.edge_features import EdgeFeatures
from dpa4sim.model.linear import truncated_normal
from dpa4sim.model.norm import root_mean_square


def sum_edges(
    message: Float[Tensor, " edge *feature"], center: Int[Tensor, " edge"], n_atoms: int
) -> Float[Tensor, " atom *feature"]:
    """Add each edge's message to the atom at its center."""
    return message.new_zeros(n_atoms, *message.shape[1:]).index_add(0, center, message)


def sum_products(
    a: Float[Tensor, "edge p"],
    b: Float[Tensor, "edge q"],
    center: Int[Tensor, " edge"],
    n_atoms: int,
    offsets: Sequence[int] | EdgeGroups | None,
) -> Float[Tensor, "atom p q"]:
    """sum_j a_ij (x) b_ij at each center, by products of matrices where the list is known."""
    if isinstance(offsets, EdgeGroups):
        return group_sums.sum_outer(a, b, offsets, n_atoms)
    if offsets is not None:
        return sum_outer(a, b, offsets)
    return sum_edges(a[:, :, None] * b[:, None, :], center, n_atoms)


def degree_scale(
    weight: Float[Tensor, " edge"], center: Int[Tensor, " edge"], n_atoms: int, floor: float
) -> Float[Tensor, " atom"]:
    """n_i = (sum_j s(r_ij)^2 + floor)^(-1/2).  Eq. 9

    Args:
        floor: 0.25 from descriptor version 1.1 on; a tiny guard before, as the paper has it.
    """
    return (sum_edges(weight * weight, center, n_atoms) + floor).rsqrt()


def angular_seed(
    harmonics: Float[Tensor, "edge lm"],
    hidden: Float[Tensor, "edge hidden"],
    profile_weight: Float[Tensor, "degree hidden channel"],
    center: Int[Tensor, " edge"],
    scale: Float[Tensor, " atom"],
    offsets: Sequence[int] | EdgeGroups | None = None,
) -> Float[Tensor, "atom lm channel"]:
    """Seed the l >= 1 features from the directions of the neighbours.  Eq. 13

        h_i[lm, c] = n_i  sum_j  eta_j  Y_lm(r_ij)  rho_ij[l, c]

    rho is the radial part only (the paper adds the species here); its matrix follows the sum.

    Args:
        harmonics: eta_j Y_lm for l >= 1.
        profile_weight: matrices of the degrees l = 1..L.

    Rotates as D^l(R) along `lm`; three times differentiable at the cutoff.
    """
    summed = sum_products(harmonics, hidden, center, scale.shape[0], offsets)
    summed = summed * scale[:, None, None]
    rows = [
        summed[:, l * l - 1 : (l + 1) ** 2 - 1] @ profile_weight[l - 1]
        for l in range(1, profile_weight.shape[0] + 1)
    ]
    return torch.cat(rows, 1)


class Perceptron(nn.Module):
    """silu(x W_1 + b_1) W_2 + b_2 with the two matrices at hand for folding."""

    def __init__(self, source: int, hidden: int, target: int, bias: bool) -> None:
        super().__init__()
        self.inner = nn.Parameter(truncated_normal(torch.empty(source, hidden)))
        self.outer = nn.Parameter(truncated_normal(torch.empty(hidden, target)))
        self.inner_bias = nn.Parameter(torch.zeros(hidden)) if bias else None
        self.outer_bias = nn.Parameter(torch.zeros(target)) if bias else None


class EnvironmentSeed(nn.Module):
    """Modulate the species features by an invariant of the neighbourhood.  Eq. 10-12

        A_i = n_i sum_j eta_j  (s, s r_ij) (x) g_ij,      s = s(r) / r
        x_i <- x_i (1 + e^a tanh(scale)) + e^b tanh(shift),   [scale, shift] = (A^T A)[:, :d] W

    g_ij is a perceptron of the radial basis and both species.  The outer matrices of both
    perceptrons act after sums, not on edges.  Magnetic moments, where there are any, make a matrix
    B_i = n_i sum_j eta_j s(r) m_j (x) g_ij of their own, and A^T A becomes A^T A + beta B^T B.
    """

    def __init__(
        self,
        n_species: int,
        channels: int,
        n_radial: int,
        norm: bool,
        bias: bool,
        moments: bool = False,
    ) -> None:
        super().__init__()
        embed = min(channels, 128)
        kinds = min(32, max(8, channels // 4))
        axis = min(4 if embed < 64 else 8, max(1, embed - 1))
        radial = max(32, embed - 2 * kinds)
        pair = radial + 2 * kinds
        self.channels, self.axis, self.kinds, self.radial_width = channels, axis, kinds, radial
        self.species_table = nn.Parameter(species_table(n_species, kinds))
        self.radial = Perceptron(n_radial, radial, radial, bias)
        self.pair = Perceptron(pair, min(256, max(2 * embed, pair)), embed, bias)
        self.out = nn.Parameter(torch.zeros(embed * axis, 2 * channels))
        self.scale_norm = nn.Parameter(torch.ones(1, channels)) if norm else None
        self.shift_norm = nn.Parameter(torch.ones(1, channels)) if norm else None
        self.scale_strength_log = nn.Parameter(torch.full((1,), log(0.01)))
        self.shift_strength_log = nn.Parameter(torch.full((1,), log(0.01)))
        self.moment_scale = nn.Parameter(torch.zeros(1)) if moments else None

    def edge_features(
        self,
        basis: Float[Tensor, "edge basis"],
        kinds: Float[Tensor, "row kind"],
        center: Int[Tensor, " edge"],
        neighbor: Int[Tensor, " edge"],
    ) -> Float[Tensor, "edge hidden"]:
        """Hidden layer of g_ij.

        Args:
            kinds: features of species; `center` and `neighbor` say which rows are an edge's.
        """
        width, n_kinds = self.radial_width, self.kinds
        inner = basis @ self.radial.inner
        if self.radial.inner_bias is not None:
            inner = inner + self.radial.inner_bias
        of_radial, of_neighbor, of_center = self.pair.inner.split([width, n_kinds, n_kinds])
        pair = (kinds @ of_neighbor).index_select(0, neighbor)
        pair = pair + (kinds @ of_center).index_select(0, center)
        if self.pair.inner_bias is not None:
            pair = pair + self.pair.inner_bias
        if self.radial.outer_bias is not None:
            pair = pair + self.radial.outer_bias @ of_radial
        return silu(torch.addmm(pair, silu(inner), self.radial.outer @ of_radial))

    def weighted_sums(
        self,
        basis: Float[Tensor, "edge basis"],
        radial_vector: Float[Tensor, "edge column"],
        species: Int[Tensor, " atom"],
        edges: EdgeFeatures,
    ) -> Float[Tensor, "atom column hidden"]:
        """sum_j of the columns (eta_j s, eta_j s r_ij, ...) (x) the hidden layer of g_ij."""
        center, neighbor, offsets = edges.center, edges.neighbor, edges.offsets
        if not edges.sparing or offsets is None:
            hidden = self.edge_features(basis, self.species_table[species], center, neighbor)
            return sum_products(radial_vector, hidden, center, species.shape[0], edges.centers)
        rows_of = species.index_select(0, center), species.index_select(0, neighbor)

        def of_centers(basis: Tensor, vector: Tensor, rows: slice, atoms: slice) -> Tensor:
            ends = [end - rows.start for end in offsets[atoms.start : atoms.stop + 1]]
            kinds = (row[rows] for row in rows_of)
            return sum_outer(vector, self.edge_features(basis, self.species_table, *kinds), ends)

        return in_chunks(of_centers, [basis, radial_vector], center_cuts(offsets), len(species))

    def forward(
        self,
        features: Float[Tensor, "atom channel"],
        basis: Float[Tensor, "edge basis"],
        radial_vector: Float[Tensor, "edge column"],
        species: Int[Tensor, " atom"],
        edges: EdgeFeatures,
        epsilon: float,
    ) -> Float[Tensor, "atom channel"]:
        """Modulated species features.

        Args:
            basis: radial functions.
            radial_vector: eta_j s(r) / r (1, unit vector); then eta_j s(r) m_j, if there are any.
            species: row of each atom in the species table.
        """
        moments = self.weighted_sums(basis, radial_vector, species, edges)
        matrix = moments @ self.pair.outer
        if self.pair.outer_bias is not None:
            total = sum_edges(radial_vector, edges.center, features.shape[0])
            matrix = matrix + total[:, :, None] * self.pair.outer_bias
        matrix = matrix * edges.degree_scale[:, None, None]
        geometry, magnetic = matrix[:, :4], matrix[:, 4:]
        invariant = geometry.transpose(1, 2) @ geometry[:, :, : self.axis]
        if self.moment_scale is not None:
            among_moments = magnetic.transpose(1, 2) @ magnetic[:, :, : self.axis]
            invariant = invariant + self.moment_scale * among_moments
        scale_logit, shift_logit = (invariant.flatten(1) @ self.out).split(self.channels, 1)
        if self.scale_norm is not None and self.shift_norm is not None:
            scale_logit = root_mean_square(scale_logit, self.scale_norm, epsilon)
            shift_logit = root_mean_square(shift_logit, self.shift_norm, epsilon)
        growth = self.scale_strength_log.exp() * torch.tanh(scale_logit)
        return features * (1 + growth) + self.shift_strength_log.exp() * torch.tanh(shift_logit)


class ChargeSpin(nn.Module):
    """Features of the total charge and spin of a system, added to its species features.

        T_i <- T_i + silu([Q(charge), S(spin)] W + b)

    Integer charges from -100 to 99 and spins from 0 to 99.  Not in the paper.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.charge_table = nn.Parameter(torch.randn(200, channels) * (200 + channels) ** -0.5)
        self.spin_table = nn.Parameter(torch.randn(100, channels) * (100 + channels) ** -0.5)
        self.mix = nn.Parameter(truncated_normal(torch.empty(2 * channels, channels)))
        self.mix_bias = nn.Parameter(torch.zeros(channels))

    def forward(
        self, charge: Float[Tensor, " system"], spin: Float[Tensor, " system"]
    ) -> Float[Tensor, "system channel"]:
        """One feature vector per system."""
        rows = self.charge_table[charge.long() + 100], self.spin_table[spin.long()]
        return silu(torch.cat(rows, 1) @ self.mix + self.mix_bias)


def species_table(n_species: int, width: int) -> Float[Tensor, "species_plus_one width"]:
    """Normal rows of variance 1 / (species + width), and the reference's zero padding row."""
    table = torch.randn(n_species + 1, width) * (n_species + width) ** -0.5
    table[-1] = 0
    return table
