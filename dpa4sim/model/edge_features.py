"""What the blocks know of an edge: frame, envelope, radial features; built once per evaluation."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import torch
from jaxtyping import Float, Int
from torch import Tensor

from dpa4sim.kernels.edge_groups import BothEnds, EdgeGroups
from dpa4sim.kernels.edge_order import Grouped, Listed
from dpa4sim.kernels.triton_plan import Accuracy, EdgeGraph
from dpa4sim.model.frames import degree_of_lm, degree_of_row, order_of_row


@dataclass(frozen=True)
class EdgeFeatures:
    """Geometry and species of the edges, shared by all blocks.

    Args:
        center: atom i of each edge, ascending.
        neighbor: atom j of each edge.
        row_ptr: offsets of each center's edges.
        rows: rows |m| <= M of the rotation to the edge frame; row 0 is Y(r_ij).
        weight: s(r_ij), the edge envelope (Eq. 7); exactly zero at and beyond the cutoff.
        hidden: last hidden layer of the radial network (times the envelope from version 1.1 on).
        profile_weight: last matrix of the radial network, one block per degree.
        species: species features of each atom.
        gate: eta_j of each edge's neighbour (Eq. 5); None without a bridging window.
        degree_scale: n_i (Eq. 9).
        offsets: row_ptr as Python integers where the hand-written CPU kernels are used.
        graph: the list by centers and neighbours where the Triton kernels are used.
        accuracy: of those kernels.
        keep_bytes: what one focus of one block may store for its backward pass on the CPU.
        sparing: there are so many edges that little else is stored either; needs `offsets`.
        learning: some weight of the network is in training, be it of another block: forces will
            be differentiated again.
    """

    center: Int[Tensor, " edge"]
    neighbor: Int[Tensor, " edge"]
    row_ptr: Int[Tensor, " atom_plus_one"]
    rows: Float[Tensor, "edge order lm"]
    weight: Float[Tensor, " edge"]
    hidden: Float[Tensor, "edge hidden"]
    profile_weight: Float[Tensor, "degree hidden channel"]
    species: Float[Tensor, "atom channel"]
    gate: Float[Tensor, " edge"] | None
    degree_scale: Float[Tensor, " atom"]
    offsets: tuple[int, ...] | None = None
    graph: EdgeGraph | None = None
    accuracy: Accuracy = "exact"
    keep_bytes: int = 0
    sparing: bool = False
    learning: bool = False

    @cached_property
    def order(self) -> Grouped | Listed:
        """In which order the edges pass in training: grouped where the host knows the list."""
        if not (self.offsets and self.offsets[-1]):
            return Listed(self.center, self.neighbor)
        n = self.offsets[-1]  # behind it is padding
        ends = BothEnds.build(self.center[:n], self.neighbor[:n], len(self.offsets) - 1)
        return Grouped(ends, self.rows.detach())

    @property
    def centers(self) -> tuple[int, ...] | EdgeGroups | None:
        """How sums over a center's edges find them: in groups in training, else by offsets."""
        if self.learning and isinstance(self.order, Grouped):
            return self.order.ends.by_center
        return self.offsets

    def project(
        self, weight: Float[Tensor, "degree channel column"]
    ) -> Float[Tensor, "edge column"]:
        """sum_l rho_ij,l W_l with rho_l = hidden M_l + T_i + T_j, without forming rho.  Eq. 14

        The matrices are multiplied first, so an edge meets one small matrix.
        """
        degrees = weight.shape[0]
        folded = torch.einsum("lhc,lcn->hn", self.profile_weight[:degrees], weight)
        species = self.species @ weight.sum(0)
        pair = species.index_select(0, self.center) + species.index_select(0, self.neighbor)
        return torch.addmm(pair, self.hidden, folded)

    def profile(self, n_degrees: int) -> Float[Tensor, "edge degree channel"]:
        """rho_ij for l < n_degrees, formed.  Eq. 14"""
        radial = torch.einsum("eh,lhc->elc", self.hidden, self.profile_weight[:n_degrees])
        pair = self.species.index_select(0, self.center)
        pair = pair + self.species.index_select(0, self.neighbor)
        return radial + pair[:, None]

    @property
    def gated_weight(self) -> Float[Tensor, " edge"]:
        """eta_j s(r_ij)."""
        return self.weight if self.gate is None else self.weight * self.gate


@dataclass(frozen=True)
class FrameLayout:
    """Index tables of the edge frame's rows for one (L, M); rows are m = 0, then -m and +m."""

    degree: Int[Tensor, " row"]
    order: Int[Tensor, " row"]
    mask: Float[Tensor, "row lm"]
    lift: Float[Tensor, " lm"]

    @classmethod
    def build(cls, max_degree: int, max_order: int) -> FrameLayout:
        """Tables for degree L and order M.

        `lift` is sqrt((2l + 1) / (2M + 1)) where l > M: it makes up for the rows |m| > M left out.
        """
        degree = torch.tensor(degree_of_row(max_degree, max_order))
        lm = torch.tensor(degree_of_lm(max_degree))
        ratio = ((2 * lm + 1).double() / (2 * max_order + 1)).sqrt()
        return cls(
            degree=degree,
            order=torch.tensor(order_of_row(max_degree, max_order)),
            mask=(degree[:, None] == lm).double(),
            lift=torch.where(lm > max_order, ratio, torch.ones_like(ratio)),
        )
