"""In which order the edges pass the pipeline of training (edge_training.py).

| order | before the stack, and in it | behind it |
|---|---|---|
| `Grouped` | by neighbour: `AtNeighbors` | by center: `AtCenters` |
| `Listed` | as listed, all at once: `InOrder` | the same: `OnEdges` |

Grouping reads the device, and its products are those that a processor is good at.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from dpa4sim.kernels.edge_groups import BothEnds, EdgeGroups
from dpa4sim.kernels.frame_products import FrameShape
from dpa4sim.kernels.frame_training import AtNeighbors, InOrder, ToFrame
from dpa4sim.kernels.message_training import AtCenters, OnEdges, Turn

Features = Float[Tensor, "edge row_channel"]


class Part(NamedTuple):
    """Edges that pass together.

    Args:
        atoms: at the end that matters; of a group each atom, of a list each edge's.
        edges: their place in the order.
    """

    atoms: Int[Tensor, " row"]
    edges: slice


class Arranged(NamedTuple):
    """The inputs of the pipeline in an order, or their cotangents.

    Args:
        node: h.
        kernel: by neighbour.
        rows: rotation by neighbour.
        turn: rotation and alpha by center.
    """

    node: Float[Tensor, "atom term_lm channel"]
    kernel: Tensor
    rows: Tensor
    turn: Turn

    def empty(self) -> Arranged:
        """Room for cotangents; kernel and rows are written, the others added to."""
        turn = Turn(torch.zeros_like(self.turn.rows), torch.zeros_like(self.turn.alpha))
        return Arranged(
            torch.zeros_like(self.node),
            torch.empty_like(self.kernel),
            torch.empty_like(self.rows),
            turn,
        )

    def put(self, part: Part, found: ToFrame, last: bool) -> None:
        """Cotangents of a part.

        Args:
            last: whether the edges are the last axis of kernel and rows.
        """
        self.node.index_add_(0, part.atoms, found.near)
        where = (..., part.edges) if last else part.edges
        self.kernel[where] = found.kernel
        self.rows[where] = found.rows


@dataclass(frozen=True)
class Grouped:
    """Regular arrays at both ends; there is at least one edge.

    Args:
        ends: the groups.
        rows: the rotation of all convolutions, to be arranged once.
    """

    ends: BothEnds
    rows: Float[Tensor, "edge order_top lm_top"]
    edges_last = True

    @cached_property
    def _arranged(self) -> dict[tuple[int, int], tuple[Tensor, Tensor]]:
        """Rotation rows by neighbour and by center, of each M and L."""
        return {}

    @cached_property
    def at_neighbors(self) -> list[Part]:
        """Groups before the stack."""
        return _parts(self.ends.by_neighbor)

    @cached_property
    def at_centers(self) -> list[Part]:
        """Groups behind the stack."""
        return _parts(self.ends.by_center)

    def arrange(self, inputs: Sequence[Tensor], s: FrameShape) -> Arranged:
        """Node, kernel, rows and alpha in this order; empty slots of kernel and alpha are 0."""
        node, kernel, rows, alpha = inputs
        near, at = self.ends.by_neighbor, self.ends.by_center
        of_kernel = kernel.index_select(0, near.edge) * near.filled[:, None]
        of_neighbor, of_center = self._rows(rows, s)
        of_alpha = alpha.index_select(0, at.edge) * at.filled[:, None]
        return Arranged(node, of_kernel.T.contiguous(), of_neighbor, Turn(of_center, of_alpha))

    def _rows(self, rows: Tensor, s: FrameShape) -> tuple[Tensor, Tensor]:
        """By neighbour with the edges last, and by center."""
        own, key = rows.data_ptr() == self.rows.data_ptr(), (s.max_order, s.n_lm)
        if own and key in self._arranged:
            return self._arranged[key]
        used = _used(rows.detach(), s).flatten(1)
        of_neighbor = used.index_select(0, self.ends.by_neighbor.edge).T.contiguous()
        of_center = used.index_select(0, self.ends.by_center.edge)
        found = of_neighbor.unflatten(0, (-1, s.n_lm)), of_center.unflatten(1, (-1, s.n_lm))
        if own:
            self._arranged[key] = found
        return found

    def restore(self, found: Arranged, inputs: Sequence[Tensor], s: FrameShape) -> list[Tensor]:
        """Cotangents of node, kernel, rows and alpha as listed; edges without a slot have none."""
        near, at = self.ends.by_neighbor.slot, self.ends.by_center.slot
        d_kernel, d_rows, d_alpha = (torch.zeros_like(tensor) for tensor in inputs[1:])
        n = len(near)
        d_kernel[:n] = found.kernel.index_select(1, near).T
        of_rows = found.rows.flatten(0, 1).index_select(1, near).T.unflatten(1, (-1, s.n_lm))
        _used(d_rows, s)[:n] = found.turn.rows.index_select(0, at).add_(of_rows)
        d_alpha[:n] = found.turn.alpha.index_select(0, at)
        return [found.node, d_kernel, d_rows, d_alpha]

    def begin(self, part: Part, given: Arranged, s: FrameShape) -> AtNeighbors:
        """What comes before the stack."""
        e = part.edges
        near = given.node.index_select(0, part.atoms)
        return AtNeighbors(s, near, given.kernel[:, e], given.rows[:, :, e])

    def end(
        self, part: Part, turn: Turn, on_atoms: Tensor, last: Sequence[Tensor], s: FrameShape
    ) -> AtCenters:
        """What follows the stack."""
        return AtCenters(s, turn.of(part.edges), on_atoms, part.atoms, last)

    def by_center(self, parts: Sequence[Features]) -> list[Features]:
        """From the parts by neighbour to those by center."""
        joined = torch.cat(list(parts))
        return [joined.index_select(0, self.ends.to_center[p.edges]) for p in self.at_centers]

    def by_neighbor(self, x: Features, part: Part) -> Features:
        """Of all edges by center, a part by neighbour."""
        return x.index_select(0, self.ends.to_neighbor[part.edges])


@dataclass(frozen=True)
class Listed:
    """All edges at once as they are.

    Args:
        center: atom i of each edge.
        neighbor: atom j of each edge.
    """

    center: Int[Tensor, " edge"]
    neighbor: Int[Tensor, " edge"]
    edges_last = False

    @property
    def at_neighbors(self) -> list[Part]:
        """The one part."""
        return [Part(self.neighbor, slice(0, len(self.neighbor)))]

    @property
    def at_centers(self) -> list[Part]:
        """The one part."""
        return [Part(self.center, slice(0, len(self.center)))]

    def arrange(self, inputs: Sequence[Tensor], s: FrameShape) -> Arranged:
        """Node, kernel, rows and alpha."""
        node, kernel, rows, alpha = inputs
        return Arranged(node, kernel, _used(rows, s), Turn(_used(rows, s), alpha))

    def restore(self, found: Arranged, inputs: Sequence[Tensor], s: FrameShape) -> list[Tensor]:
        """Cotangents of node, kernel, rows and alpha."""
        d_rows = torch.zeros_like(inputs[2])
        _used(d_rows, s)[:] = found.rows + found.turn.rows
        return [found.node, found.kernel, d_rows, found.turn.alpha]

    def begin(self, part: Part, given: Arranged, s: FrameShape) -> InOrder:
        """What comes before the stack."""
        near = given.node.index_select(0, part.atoms)
        return InOrder(s, near, given.kernel, given.rows)

    def end(
        self, part: Part, turn: Turn, on_atoms: Tensor, last: Sequence[Tensor], s: FrameShape
    ) -> OnEdges:
        """What follows the stack, whose own last layer is `last`."""
        return OnEdges(s, turn, on_atoms, part.atoms)

    def by_center(self, parts: Sequence[Features]) -> list[Features]:
        """They are."""
        return list(parts)

    def by_neighbor(self, x: Features, part: Part) -> Features:
        """They are."""
        return x


def _parts(ends: EdgeGroups) -> list[Part]:
    return [Part(group.atoms, group.slots) for group in ends.groups]


def _used(rows: Float[Tensor, "edge order lm_top"], s: FrameShape) -> Tensor:
    """The rotation rows that this convolution has."""
    return rows[:, : 2 * s.max_order + 1, : s.n_lm]
