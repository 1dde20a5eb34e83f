"""From the stack to the messages, for training: rotate back, weigh, sum at the centers.

Two ways to the same numbers, each passed four times (edge_training.py):

| where | the last SO(2) layer acts | its input f from the stack |
|---|---|---|
| `AtCenters` | on atoms, after the sum over their edges (last_layer.py) | z_e, before that layer |
| `OnEdges` | on edges, inside the stack; sums by index, edges not grouped | y_e, behind it |

A center's edges lie side by side, and all centers of a group have the same number of slots, whose
alpha is 0 where they are empty (edge_groups.py).  With P_e = alpha_e D_e, `AtCenters` computes

    T_i = sum_e P_e (x) z_e,    m_i = T_i . W,    G_i = dE/dT_i = dE/dm_i . W^T
    dz_e = P_e . G_i,           dP_e = z_e . G_i

and through these two, with z' and P' the cotangents of dz and dP,

    G'_i = sum_e P_e (x) z'_e + P'_e (x) z_e
    cotangents: P'_e . G_i of z_e,  z'_e . G_i of P_e,  G'_i . W of dE/dm_i
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from dpa4sim.kernels.frame_products import (
    FrameShape,
    contract_heads,
    lift,
    lift_to_rows,
    weigh,
)
from dpa4sim.kernels.last_layer import (
    Sums,
    last_layer,
    last_layer_backward,
    last_layer_weights,
    unweigh,
    weighted_rows,
)

Features = Float[Tensor, "edge row_channel"]
Messages = Float[Tensor, "atom lm channel"]


class Turn(NamedTuple):
    """Rotation rows and weights of some edges, or their cotangents."""

    rows: Float[Tensor, "edge order lm_top"]
    alpha: Float[Tensor, "edge head"]

    def of(self, edges: slice) -> Turn:
        """Views of some of the edges."""
        return Turn(self.rows[edges], self.alpha[edges])

    def empty(self) -> Turn:
        """Room for the cotangents."""
        return Turn(torch.zeros_like(self.rows), torch.empty_like(self.alpha))

    def add(self, other: Turn) -> None:
        """Plus other cotangents, in place."""
        self.rows.add_(other.rows)
        self.alpha.add_(other.alpha)


@dataclass(frozen=True)
class AtCenters:
    """The last layer after the sum over the edges of a group of atoms.

    Args:
        turn: rotation and alpha.
        on_atoms: m, still to be written, in pass 1; dE/dm in the others.
        atoms: the centers of the group.
        matrices: of the last layer.
    """

    s: FrameShape
    turn: Turn
    on_atoms: Messages
    atoms: Int[Tensor, " center"]
    matrices: Sequence[Tensor]

    @cached_property
    def weighted(self) -> Float[Tensor, "edge order_head_lm"]:
        """P."""
        return weighted_rows(*self.turn, self.s)

    @cached_property
    def d_messages(self) -> Messages:
        """DE/dm of these atoms, before the rescale of the degrees l > M."""
        return self.on_atoms[self.atoms] * self.s.lift[:, None]

    @cached_property
    def d_sums(self) -> list[Float[Tensor, "center head_lm _"]]:
        """G of each order."""
        heads = self.turn.alpha.shape[1]
        found = last_layer_backward(self.d_messages, self.matrices, heads, self.s)
        return [of_order.flatten(0, 2).transpose(0, 1) for of_order in found]

    d_stack = None
    """No weight of the stack waits for dE/dz alone."""

    def collect(self, z: Features) -> None:
        """Messages of the atoms, written."""
        self._apply(self._shaped(self._sums(z, self.weighted)), self.on_atoms)

    def backward(self, z: Features, found: Turn, dz: Features) -> None:
        """Cotangents of z, rotation and alpha, written."""
        self._spread(self.weighted, dz)
        unweigh(self._contract(z), *self.turn, self.s, *found)

    def weight_gradient(self, z: Features) -> list[Tensor]:
        """Of the last layer, through the messages."""
        sums = self._shaped(self._sums(z, self.weighted))
        return last_layer_weights(sums, self.d_messages, self.s)

    def second(
        self,
        z: Features,
        z_dot: Features,
        dots: Turn,
        of_on_atoms: Messages,
        found: Turn,
        of_z: Features,
    ) -> list[Tensor]:
        """Cotangents of the last layer through `backward`; those of z are written, others added.

        Args:
            z_dot: cotangent of what `backward` wrote for z.
            dots: cotangents of the rest.
        """
        s, turn = self.s, self.turn
        moved = weighted_rows(dots.rows, turn.alpha, s) + weighted_rows(turn.rows, dots.alpha, s)
        of_both = zip(self._sums(z_dot, self.weighted), self._sums(z, moved), strict=True)
        sums = self._shaped([first.add_(second) for first, second in of_both])
        self._apply(sums, of_on_atoms)
        self._spread(moved, of_z)
        for cotangent, others in ((self._contract(z_dot), turn), (self._contract(z), dots)):
            part = turn.empty()
            unweigh(cotangent, *others, s, *part)
            found.add(part)
        return last_layer_weights(sums, self.d_messages, s)

    def _sums(self, z: Features, weighted: Tensor) -> list[Float[Tensor, "center head_lm _"]]:
        """T of each order."""
        return [torch.bmm(p.transpose(1, 2), x) for p, x in self._by_order(weighted, z)]

    def _spread(self, weighted: Tensor, dz: Features) -> None:
        """P . G, written."""
        for (p, target), g in zip(self._by_order(weighted, dz), self.d_sums, strict=True):
            target.copy_(torch.bmm(p, g))

    def _contract(self, z: Features) -> Float[Tensor, "edge order_head_lm"]:
        """Z . G."""
        found = torch.empty_like(self.weighted)
        for (target, x), g in zip(self._by_order(found, z), self.d_sums, strict=True):
            target.copy_(torch.bmm(g, x.transpose(1, 2)).transpose(1, 2))
        return found

    def _by_order(
        self, weighted: Tensor, z: Features
    ) -> Iterator[tuple[Float[Tensor, "center slot head_lm"], Float[Tensor, "center slot _"]]]:
        """Columns of each order, center by center."""
        s, heads = self.s, self.turn.alpha.shape[1]
        copies = [2 if order else 1 for order in range(s.max_order + 1)]
        of_weighted = [n * heads * s.n_lm for n in copies]
        of_z = [n * size * s.width for n, size in zip(copies, s.sizes, strict=True)]
        parts = zip(weighted.split(of_weighted, 1), z.split(of_z, 1), strict=True)
        for left, right in parts:
            yield (
                left.unflatten(0, (len(self.atoms), -1)),
                right.unflatten(0, (len(self.atoms), -1)),
            )

    def _shaped(self, sums: Sequence[Float[Tensor, "center head_lm _"]]) -> list[Sums]:
        """As the last layer takes them."""
        copies, heads = [2 if order else 1 for order in range(len(sums))], self.turn.alpha.shape[1]
        return [
            of_order.transpose(0, 1).contiguous().unflatten(0, (n, heads, self.s.n_lm))
            for of_order, n in zip(sums, copies, strict=True)
        ]

    def _apply(self, sums: list[Sums], out: Messages) -> None:
        out[self.atoms] = last_layer(sums, self.matrices, self.s) * self.s.lift[:, None]


@dataclass(frozen=True)
class OnEdges:
    """The last layer inside the stack; sums by index.

    Args:
        turn: rotation and alpha.
        on_atoms: m, still to be summed, in pass 1; dE/dm in the others.
        center: atom i of each edge.
    """

    s: FrameShape
    turn: Turn
    on_atoms: Messages
    center: Int[Tensor, " edge"]

    @cached_property
    def lifted(self) -> Float[Tensor, "edge row lm"]:
        """B."""
        return lift(self.turn.rows, self.s)

    @cached_property
    def q(self) -> Features:
        """B_e dE/dm_i."""
        return self._spread(self.lifted)

    @property
    def d_stack(self) -> Features:
        """DE/dy."""
        return weigh(self.q, self.turn.alpha, self.s.n_rows)

    def collect(self, y: Features) -> None:
        """Messages, added."""
        self._collect(self.lifted, weigh(y, self.turn.alpha, self.s.n_rows), self.on_atoms)

    def backward(self, y: Features, found: Turn, dy: Features) -> None:
        """Cotangents of y, rotation and alpha, written."""
        alpha, n_rows = self.turn.alpha, self.s.n_rows
        self._used(found)[:] = lift_to_rows(self._outer(weigh(y, alpha, n_rows)), self.s)
        found.alpha.copy_(contract_heads(y, self.q, alpha.shape[1], n_rows))
        dy.copy_(self.d_stack)

    def weight_gradient(self, y: Features) -> list[Tensor]:
        """None: the last layer's is the stack's."""
        return []

    def second(
        self,
        y: Features,
        y_dot: Features,
        dots: Turn,
        of_on_atoms: Messages,
        found: Turn,
        of_y: Features,
    ) -> list[Tensor]:
        """Cotangent of y through `backward` is written; the others are added."""
        s, alpha, n_rows = self.s, self.turn.alpha, self.s.n_rows
        lift_dot = lift(dots.rows, s)
        q_dot = self._spread(lift_dot)
        moved = weigh(y, dots.alpha, n_rows) + weigh(y_dot, alpha, n_rows)
        self._collect(self.lifted, moved, of_on_atoms)
        self._collect(lift_dot, weigh(y, alpha, n_rows), of_on_atoms)
        self._used(found).add_(lift_to_rows(self._outer(moved), s))
        heads = alpha.shape[1]
        found.alpha.add_(contract_heads(self.q, y_dot, heads, n_rows))
        found.alpha.add_(contract_heads(q_dot, y, heads, n_rows))
        torch.add(weigh(self.q, dots.alpha, n_rows), weigh(q_dot, alpha, n_rows), out=of_y)
        return []

    def _used(self, found: Turn) -> Tensor:
        """The rotation rows that B has."""
        return found.rows[:, : 2 * self.s.max_order + 1, : self.s.n_lm]

    def _spread(self, lifted: Tensor) -> Features:
        """B_e p_i."""
        return torch.bmm(lifted, self.on_atoms.index_select(0, self.center)).flatten(1)

    def _outer(self, x: Features) -> Float[Tensor, "edge row lm"]:
        """x_e p_i^T."""
        gathered = self.on_atoms.index_select(0, self.center).transpose(1, 2)
        return torch.bmm(x.unflatten(1, (-1, self.s.width)), gathered)

    def _collect(self, lifted: Tensor, x: Features, out: Messages) -> None:
        """out_i += sum_e B_e^T x_e."""
        rows = x.unflatten(1, (-1, self.s.width))
        out.index_add_(0, self.center, torch.bmm(lifted.transpose(1, 2), rows))
