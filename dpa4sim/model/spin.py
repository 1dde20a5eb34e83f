"""Magnetic moments in the network, in either scheme of the reference.  The paper is silent.

"virtual": beside each magnetic atom i stands a second atom i' of a kind of its own,

    R_i' = R_i + a_i m_i,

a_i in Å per Bohr magneton.  Two atoms that see each other also see each other's virtual atoms, and
an atom sees its own; who sees whom is settled by the real atoms alone, so the energy jumps where a
pair crosses the cutoff while its virtual atoms are nearer.  Virtual atoms have features, no energy.
Without a moment they vanish, not smoothly.

"native": |m|^2 is added to the scalars, m to the l = 1 features (`MomentFeatures`), and the moments
around an atom to its environment matrix (`EnvironmentSeed`).  Smooth at m = 0.

Both turn moments with the positions: spin-orbit coupling is not left out.  Neither knows that
turning all moments round changes no energy; the data must say so.
"""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn.functional import silu

from dpa4sim.config import DPA4Config
from dpa4sim.edges import Edges
from dpa4sim.model.edge_features import EdgeFeatures
from dpa4sim.model.embedding import sum_products
from dpa4sim.model.linear import truncated_normal

COINCIDENT_A2 = 1e-10
"""Å^2; atoms nearer than that do not see each other: a virtual atom without a moment."""

SILENT = 2.0
"""Length in cutoffs of an edge that is not there."""


class Moments(nn.Module):
    """Which species are magnetic, and how far their virtual atoms stand off; no weights."""

    magnetic: Tensor

    def __init__(self, config: DPA4Config) -> None:
        super().__init__()
        names, spin = config.spin.magnetic, config.spin
        scales = spin.virtual_scale * (len(names) if len(spin.virtual_scale) == 1 else 1)
        by_name = dict(zip(names, scales, strict=True))
        self.scale = [by_name.get(name, 0.0) for name in config.species]
        self.cutoff, self.n_species = config.cutoff, len(config.species)
        magnetic = torch.tensor([name in names for name in config.species])
        self.register_buffer("magnetic", magnetic, persistent=False)

    def forward(
        self, species: Int[Tensor, " atom"], moments: Float[Tensor, "atom 3"]
    ) -> Float[Tensor, "atom 3"]:
        """The moments in Bohr magnetons; zero, whatever was given, for species without."""
        return torch.where(self.magnetic[species][:, None], moments, torch.zeros_like(moments))

    def with_virtual_atoms(
        self, species: Int[Tensor, " atom"], edges: Edges, moments: Float[Tensor, "atom 3"]
    ) -> tuple[Int[Tensor, " more_atom"], Edges, Int[Tensor, " more_atom"]]:
        """Kinds and edges of the real atoms and, after them, the virtual ones; whose each is.

        Differentiable in the vectors and in the moments.
        """
        n_atoms = len(species)
        hosts = self.magnetic[species].nonzero()[:, 0]
        virtual = torch.arange(n_atoms, n_atoms + len(hosts), device=species.device)
        twin = species.new_full((n_atoms,), -1).index_put((hosts,), virtual)
        owner = torch.cat([torch.arange(n_atoms, device=species.device), hosts])
        kinds = torch.cat([species, species[hosts] + self.n_species])
        scale = moments.new_tensor(self.scale)[species[hosts]]
        shift = torch.cat([moments.new_zeros(n_atoms, 3), scale[:, None] * moments[hosts]])

        at_center, at_neighbor = twin[edges.center], twin[edges.neighbor]
        seen, sees = (at_neighbor >= 0).nonzero()[:, 0], (at_center >= 0).nonzero()[:, 0]
        both = ((at_center >= 0) & (at_neighbor >= 0)).nonzero()[:, 0]
        center = torch.cat(
            [edges.center, edges.center[seen], at_center[sees], at_center[both], hosts, virtual]
        )
        pairs = [edges.neighbor, at_neighbor[seen], edges.neighbor[sees], at_neighbor[both]]
        neighbor = torch.cat([*pairs, virtual, hosts])
        base = [edges.vector, edges.vector[seen], edges.vector[sees], edges.vector[both]]
        vector = torch.cat([*base, edges.vector.new_zeros(2 * len(hosts), 3)])
        order = center.argsort(stable=True)
        center, neighbor = center[order], neighbor[order]
        vector = vector[order] + (shift[neighbor] - shift[center]).to(vector.dtype)
        silent = vector.new_tensor([0.0, 0.0, SILENT * self.cutoff])
        vector = torch.where((vector.square().sum(1) <= COINCIDENT_A2)[:, None], silent, vector)
        counts = center.new_zeros(len(owner)).index_add(0, center, torch.ones_like(center))
        row_ptr = torch.nn.functional.pad(counts.cumsum(0), (1, 0))
        return kinds, Edges(center, neighbor, vector, row_ptr.to(edges.row_ptr.dtype)), owner


class MomentFeatures(nn.Module):
    """What a moment adds to the first features of its atom and of its neighbours.

        T_i <- T_i + silu(|m_i|^2 u) W
        h_i[1, :, c] += Y_1(m_i) v_i[c] + n_i sum_j eta_j s(r_ij) Y_1(m_j) w_j[c]

    v and w are rows of tables by species, zero at first, as is W: a new model has no spins yet.
    """

    def __init__(self, n_species: int, channels: int) -> None:
        super().__init__()
        self.inner = nn.Parameter(truncated_normal(torch.empty(1, channels)))
        self.outer = nn.Parameter(torch.zeros(channels, channels))
        self.own = nn.Parameter(torch.zeros(n_species, channels))
        self.of_neighbor = nn.Parameter(torch.zeros(n_species, channels))

    def scalars(self, moments: Float[Tensor, "atom 3"]) -> Float[Tensor, "atom channel"]:
        """Addition to the species features; zero without a moment."""
        return silu(moments.square().sum(1, keepdim=True) @ self.inner) @ self.outer

    def forward(
        self,
        x: Float[Tensor, "atom lm channel"],
        moments: Float[Tensor, "atom 3"],
        species: Int[Tensor, " atom"],
        edges: EdgeFeatures | None,
    ) -> Float[Tensor, "atom lm channel"]:
        """Features with the moments in their l = 1 rows.

        Args:
            edges: None leaves the neighbours' moments out.

        Rotates as D^1(R) with the positions and the moments.
        """
        rows = vector_rows(moments)
        added = rows[:, :, None] * self.own[species][:, None]
        if edges is not None:
            weighed = edges.gated_weight[:, None] * rows.index_select(0, edges.neighbor)
            tables = self.of_neighbor[species].index_select(0, edges.neighbor)
            around = sum_products(weighed, tables, edges.center, len(species), edges.centers)
            added = added + edges.degree_scale[:, None, None] * around
        return torch.cat([x[:, :1], x[:, 1:4] + added, x[:, 4:]], 1)


def vector_rows(vector: Float[Tensor, "row 3"]) -> Float[Tensor, "row 3"]:
    """Coefficients (l = 1) of a Cartesian vector in the order of the features, m = -1, 0, 1.

    The reference's length and sign of them: -sqrt(2) (y, z, -x).
    """
    x, y, z = vector.unbind(1)
    return 2**0.5 * torch.stack([-y, -z, x], 1)
