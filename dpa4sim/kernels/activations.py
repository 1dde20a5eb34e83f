"""What an edge's SO(2) layers do between their matrix products, as PyTorch or as compiled loops.

    x  <- x + act(u),   act: silu on the scalars, sigmoid(logit)_l on every row of degree l >= 1

and its cotangents, with the sums of -m and +m that Gauss' products need.  PyTorch takes a dozen
passes over rows that have left the cache by the next one; a loop compiled by PyTorch's inductor
takes one.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import silu

from dpa4sim.kernels.frame_products import FrameShape, gated_rows
from dpa4sim.kernels.loops import Loop, Run, per_edge

Rows = Float[Tensor, "edge row_channel"]
Sums = Sequence[Float[Tensor, "edge _"]]
"""x_-m + x_+m of each order m >= 1, or as many cotangents; empty where nothing asks for them."""


@dataclass(frozen=True)
class ActivationShape:
    """What the compiled loops depend on.

    Args:
        width: channels of the focus.
        scaled: whether the scalars have a scale of their own.
        summed: whether the sums of -m and +m are asked for.
    """

    width: int
    max_degree: int
    max_order: int
    scaled: bool
    summed: bool
    dtype: torch.dtype

    @property
    def sizes(self) -> list[int]:
        """Columns of the scalars, of the other degrees of m = 0, and of -1, +1, -2, ..."""
        found = [self.width, self.max_degree * self.width]
        for order in range(1, self.max_order + 1):
            found += 2 * [(self.max_degree - order + 1) * self.width]
        return found

    def parts(self, x: Rows) -> tuple[Tensor, ...]:
        """The columns of `sizes`."""
        return x.split_with_sizes(self.sizes, 1)

    def loops(self) -> list[Loop]:
        """Both directions."""

        def parts() -> list[Tensor]:
            return [per_edge(n, sum(self.sizes), self.dtype) for n in self.sizes]

        def gates() -> Tensor:
            return per_edge(self.sizes[1], self.sizes[1], self.dtype)

        def sums() -> list[Tensor]:
            return [per_edge(n, n, self.dtype) for n in self.sizes[2::2]] if self.summed else []

        scale = [torch.zeros(self.width, dtype=self.dtype)] if self.scaled else []
        edges = {0: torch.export.Dim("n_edges", min=0)}
        rows, pairs = [edges] * len(self.sizes), [edges] * len(sums())
        forth = parts(), parts(), gates(), scale, sums()
        back = parts(), parts(), gates(), scale, sums(), parts(), gates(), sums()
        once = rows, rows, edges, [None] * len(scale), pairs
        return [
            Loop("activate", _forward, forth, once),
            Loop("activate_backward", _backward, back, (*once, rows, edges, pairs)),
        ]


@dataclass(frozen=True)
class ActivationLoops:
    """The compiled loops of one shape."""

    shape: ActivationShape
    forward: Run
    backward: Run


def activate(
    x: Rows,
    u: Rows,
    gate: Float[Tensor, "edge degree_channel"],
    scale: Float[Tensor, " channel"] | None,
    sums: Sums,
    s: FrameShape,
    loops: ActivationLoops | None,
) -> None:
    """X += act(u), in place.

    Args:
        gate: the logits, which become the gates.
        scale: lambda of the scalars.
        sums: become those of the new x.
    """
    if loops is not None:
        scales = [] if scale is None else [scale]
        loops.forward([*loops.shape.parts(x), *loops.shape.parts(u), gate, *scales, *sums])
        return
    gate.sigmoid_()
    scalar, to = silu(u[:, : s.width]), x[:, : s.width]
    if scale is None:
        to += scalar
    else:
        to.addcmul_(scalar, scale)
    for group in s.gated:
        to, rows = (gated_rows(tensor, group, s.max_degree, s.width) for tensor in (x, u))
        to.addcmul_(rows, gate[:, None, group[2] :])
    for (minus, plus), total in zip(pair_columns(s), sums, strict=bool(sums)):
        torch.add(x[:, minus], x[:, plus], out=total)


def activate_backward(
    dx: Rows,
    u: Rows,
    gate: Float[Tensor, "edge degree_channel"],
    scale: Float[Tensor, " channel"] | None,
    common: Sums,
    du: Rows,
    d_logit: Float[Tensor, "edge degree_channel"],
    sums: Sums,
    s: FrameShape,
    loops: ActivationLoops | None,
) -> None:
    """Du of the direct paths and the cotangent of the gates' logits, written.

    Args:
        gate: what `activate` made of the logits.
        common: is added to dx of -m and of +m first.
        sums: become those of du.
    """
    if loops is not None:
        scales = [] if scale is None else [scale]
        given = *loops.shape.parts(dx), *loops.shape.parts(u), gate, *scales, *common
        loops.backward([*given, *loops.shape.parts(du), d_logit, *sums])
        return
    add_common(dx, common, s)
    for index, group in enumerate(s.gated):
        column = group[2]
        arriving, rows, to = (gated_rows(t, group, s.max_degree, s.width) for t in (dx, u, du))
        torch.mul(arriving, gate[:, None, column:], out=to)
        for copy in range(group[1]):
            if index or copy:
                d_logit[:, column:].addcmul_(arriving[:, copy], rows[:, copy])
            else:  # the first group has every gate
                torch.mul(arriving[:, 0], rows[:, 0], out=d_logit)
    scalar = dx[:, : s.width]
    if scale is not None:
        scalar = scalar * scale
    to = du[:, : s.width]
    torch.ops.aten.silu_backward.grad_input(scalar, u[:, : s.width], grad_input=to)
    torch.ops.aten.sigmoid_backward.grad_input(d_logit, gate, grad_input=d_logit)
    for (minus, plus), total in zip(pair_columns(s), sums, strict=bool(sums)):
        torch.add(du[:, minus], du[:, plus], out=total)


def add_common(dx: Rows, common: Sums, s: FrameShape) -> None:
    """Dx of -m and of +m += common."""
    for (minus, plus), value in zip(pair_columns(s), common, strict=bool(common)):
        dx[:, minus.start : plus.stop].unflatten(1, (2, -1)).add_(value[:, None])


def pair_columns(s: FrameShape) -> list[tuple[slice, slice]]:
    """Columns of -m and of +m, m >= 1."""
    found, start = [], s.sizes[0] * s.width
    for size in s.sizes[1:]:
        n = size * s.width
        found.append((slice(start, start + n), slice(start + n, start + 2 * n)))
        start += 2 * n
    return found


def _forward(
    x: list[Tensor], u: list[Tensor], gate: Tensor, scale: list[Tensor], sums: list[Tensor]
) -> list[Tensor]:
    """`activate` on columns that are tensors of their own."""
    gates = gate.sigmoid()
    gate.copy_(gates)
    scalar = silu(u[0])
    x[0].copy_(x[0] + (scalar * scale[0] if scale else scalar))
    new = [
        before + part * gates[:, -part.shape[1] :]
        for before, part in zip(x[1:], u[1:], strict=True)
    ]
    for to, value in zip(x[1:], new, strict=True):
        to.copy_(value)
    for total, minus, plus in zip(sums, new[1::2], new[2::2], strict=bool(sums)):
        total.copy_(minus + plus)
    return []


def _backward(
    dx: list[Tensor],
    u: list[Tensor],
    gate: Tensor,
    scale: list[Tensor],
    common: list[Tensor],
    du: list[Tensor],
    d_logit: Tensor,
    sums: list[Tensor],
) -> list[Tensor]:
    """`activate_backward` on columns that are tensors of their own."""
    arriving = [dx[1]]
    for index, part in enumerate(dx[2:]):
        arriving.append(part + common[index // 2] if common else part)
    d_gates = torch.zeros_like(gate)
    back = []
    for part, of_u in zip(arriving, u[1:], strict=True):
        n = part.shape[1]
        back.append(part * gate[:, -n:])
        product = part * of_u
        d_gates = d_gates + torch.nn.functional.pad(product, (gate.shape[1] - n, 0))
    if common:
        for to, value in zip(dx[2:], arriving[1:], strict=True):
            to.copy_(value)
    for to, value in zip(du[1:], back, strict=True):
        to.copy_(value)
    for total, minus, plus in zip(sums, back[1::2], back[2::2], strict=bool(sums)):
        total.copy_(minus + plus)
    d_logit.copy_(d_gates * gate * (1 - gate))
    scalar = dx[0] * scale[0] if scale else dx[0]
    du[0].copy_(torch.ops.aten.silu_backward(scalar, u[0]))
    return []
