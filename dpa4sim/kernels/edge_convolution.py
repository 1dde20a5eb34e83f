"""The edge pipeline of one block and focus, forward and hand-written backward.

    x_e   = fold(kernel_e, rotation_e) h_j              gather, rotate, mix degrees
    x_e  <- SO(2) stack                                 residual layers
    m_i   = sum_e alpha_e lift(rotation_e)^T x_e        rotate back, weigh, sum at the center

Plain autograd (model/emfa.py) is the reference.  Here the edges pass in chunks of whole centers
through buffers that stay in cache, nothing is stored but the pre-activations and gates, and the
sum is one matrix product per center.  First derivatives with respect to node features, kernel,
rotation rows and weights alpha; the network's weights are constants.  For the CPU.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn.functional import silu

from dpa4sim.kernels.frame_products import (
    FrameShape,
    fold,
    fold_to_kernel,
    fold_to_rows,
    lift,
    lift_to_rows,
    weigh,
)
from dpa4sim.kernels.segments import chunks
from dpa4sim.kernels.workspace import give, take

CHUNK_EDGES = 768
"""Edges in flight; measured flat between 512 and 2048 on two x86 machines."""


@dataclass(frozen=True)
class Layer:
    """One SO(2) layer of one focus.

    Args:
        zonal: matrix of the m = 0 rows.
        pairs: [[U, V], [-V, U]] of each order m >= 1.
        gate: matrix from the scalars to the gates; None on the last, linear layer.
        scalar_scale: lambda of the scalar row; that of other rows is inside the matrices.
    """

    zonal: Float[Tensor, "row_channel row_channel"]
    pairs: tuple[Tensor, ...]
    gate: Tensor | None
    scalar_scale: Tensor | None


@dataclass(frozen=True)
class Plan(FrameShape):
    """Everything of the pipeline that is constant during an evaluation.

    Args:
        layers: the SO(2) stack; the last layer carries its residual, W + 1.
        neighbor: atom j of each edge.
        offsets: row_ptr as Python integers.
    """

    layers: tuple[Layer, ...]
    neighbor: Int[Tensor, " edge"]
    offsets: Sequence[int]


def edge_convolution(
    node: Float[Tensor, "atom term_lm channel"],
    kernel: Float[Tensor, "edge column"],
    rows: Float[Tensor, "edge order lm_top"],
    alpha: Float[Tensor, "edge head"],
    plan: Plan,
) -> Float[Tensor, "atom lm channel"]:
    """Messages of one focus, summed at their centers."""
    return _EdgeConvolution.apply(node, kernel, rows, alpha, plan)


class _EdgeConvolution(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, node: Tensor, kernel: Tensor, rows: Tensor, alpha: Tensor, plan: Plan
    ) -> Tensor:
        n_edges, width, gated = kernel.shape[0], plan.width, len(plan.layers) - 1
        total = plan.n_rows * width
        out = node.new_zeros(node.shape[0], plan.n_lm, width)
        pre = [take((n_edges, total), node) for _ in range(gated)]
        gates = [take((n_edges, plan.max_degree * width), node) for _ in range(gated)]
        final = take((n_edges, total), node)
        node = node.contiguous()
        for first, last in chunks(plan.offsets, CHUNK_EDGES):
            edges = slice(plan.offsets[first], plan.offsets[last])
            folded = fold(kernel[edges], rows[edges], plan)
            x = torch.bmm(folded, node.index_select(0, plan.neighbor[edges])).flatten(1)
            for t in range(gated):
                layer, u, gate = plan.layers[t], pre[t][edges], gates[t][edges]
                _linear(x, layer, u)
                if layer.gate is not None:
                    torch.mm(u[:, :width], layer.gate, out=gate).sigmoid_()
                _add_activated(x, u, gate, layer, plan)
            _linear(x, plan.layers[-1], final[edges])
            lifted = lift(rows[edges], plan)
            weighted = weigh(final[edges], alpha[edges], plan.n_rows)
            _sum_centers(lifted, weighted, out, plan, first, last)
        ctx.save_for_backward(node, kernel, rows, alpha)
        ctx.plan, ctx.buffers = plan, (final, *pre, *gates)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        plan: Plan = ctx.plan
        if ctx.buffers is None:
            raise RuntimeError("This kernel's backward runs once; its buffers are reused.")
        node, kernel, rows, alpha = ctx.saved_tensors
        (final, *saved), ctx.buffers = ctx.buffers, None
        gated = len(plan.layers) - 1
        pre, gates = saved[:gated], saved[gated:]
        gradient = gradient.contiguous()
        d_node, d_kernel = torch.zeros_like(node), torch.zeros_like(kernel)  # padding stays zero
        d_rows, d_alpha = torch.zeros_like(rows), torch.zeros_like(alpha)
        for first, last in chunks(plan.offsets, CHUNK_EDGES):
            edges = slice(plan.offsets[first], plan.offsets[last])
            dx = _lift_backward(
                gradient, final[edges], rows[edges], alpha[edges], plan, (first, last),
                d_rows[edges], d_alpha[edges],
            )  # fmt: skip
            du = torch.empty_like(dx)
            dx = _linear_backward(dx, plan.layers[-1], torch.empty_like(dx), add=False)
            for t in reversed(range(gated)):
                layer = plan.layers[t]
                d_logit = _activation_backward(dx, pre[t][edges], gates[t][edges], layer, plan, du)
                if layer.gate is not None:
                    du[:, : plan.width].addmm_(d_logit, layer.gate.T)
                _linear_backward(du, layer, dx, add=True)
            _gather_backward(
                dx, node, kernel[edges], rows[edges], plan, edges, d_node, d_kernel[edges],
                d_rows[edges],
            )  # fmt: skip
        give(final, *saved)
        return d_node, d_kernel, d_rows, d_alpha, None


def _gather_backward(
    dx: Tensor,
    node: Tensor,
    kernel: Tensor,
    rows: Tensor,
    plan: Plan,
    edges: slice,
    d_node: Tensor,
    d_kernel: Tensor,
    d_rows: Tensor,
) -> None:
    """Cotangents of the gather, of the kernel and of the rotation (added)."""
    neighbor = plan.neighbor[edges]
    rowed = dx.unflatten(1, (plan.n_rows, plan.width))
    folded = fold(kernel, rows, plan)
    d_node.index_add_(0, neighbor, torch.bmm(folded.transpose(1, 2), rowed))
    d_folded = torch.bmm(rowed, node.index_select(0, neighbor).transpose(1, 2))
    d_kernel.copy_(fold_to_kernel(d_folded, rows, plan))
    d_rows[:, : 2 * plan.max_order + 1, : plan.n_lm] += fold_to_rows(d_folded, kernel, plan)


def _linear(x: Tensor, layer: Layer, out: Tensor) -> None:
    """Out = x W: one product for m = 0 and one for each +-m pair."""
    size = layer.zonal.shape[0]
    torch.mm(x[:, :size], layer.zonal, out=out[:, :size])
    start = size
    for pair in layer.pairs:
        stop = start + pair.shape[0]
        torch.mm(x[:, start:stop], pair, out=out[:, start:stop])
        start = stop


def _linear_backward(du: Tensor, layer: Layer, dx: Tensor, *, add: bool) -> Tensor:
    """Dx (+)= du W^T."""
    start = 0
    for matrix in (layer.zonal, *layer.pairs):
        stop = start + matrix.shape[0]
        if add:
            dx[:, start:stop].addmm_(du[:, start:stop], matrix.T)
        else:
            torch.mm(du[:, start:stop], matrix.T, out=dx[:, start:stop])
        start = stop
    return dx


def _gated_parts(plan: Plan) -> list[tuple[int, int, int]]:
    """(first column, last column, first gate column) of the rows of degree l >= 1, by frame."""
    width = plan.width
    parts = []
    for order, _, first, last in plan.frames:
        skip = 1 if order == 0 else 0
        if last - first > skip:
            gate = 0 if order == 0 else (order - 1) * width
            parts.append(((first + skip) * width, last * width, gate))
    return parts


def _add_activated(x: Tensor, u: Tensor, gate: Tensor, layer: Layer, plan: Plan) -> None:
    """X += act(u)."""
    scalar = silu(u[:, : plan.width])
    if layer.scalar_scale is not None:
        scalar *= layer.scalar_scale
    x[:, : plan.width] += scalar
    for first, last, column in _gated_parts(plan):
        x[:, first:last].addcmul_(u[:, first:last], gate[:, column:])


def _activation_backward(
    dx: Tensor, u: Tensor, gate: Tensor, layer: Layer, plan: Plan, du: Tensor
) -> Tensor:
    """Du of the direct paths, and the cotangent of the gates' logits."""
    width = plan.width
    d_gate = torch.zeros_like(gate)
    for first, last, column in _gated_parts(plan):
        torch.mul(dx[:, first:last], gate[:, column:], out=du[:, first:last])
        d_gate[:, column:].addcmul_(dx[:, first:last], u[:, first:last])
    scalar = u[:, :width]
    s = torch.sigmoid(scalar)
    slope = s * (1 + scalar * (1 - s))
    if layer.scalar_scale is not None:
        slope *= layer.scalar_scale
    torch.mul(dx[:, :width], slope, out=du[:, :width])
    return d_gate.mul_(gate).mul_(1 - gate)


def _sum_centers(lifted: Tensor, x: Tensor, out: Tensor, plan: Plan, first: int, last: int) -> None:
    """out_i = sum over the edges of i of lift^T x: one product per center."""
    base, n_rows = plan.offsets[first], plan.n_rows
    left, right = lifted.view(-1, plan.n_lm).T, x.view(-1, plan.width)
    for atom in range(first, last):
        start = (plan.offsets[atom] - base) * n_rows
        stop = (plan.offsets[atom + 1] - base) * n_rows
        if stop > start:
            torch.mm(left[:, start:stop], right[start:stop], out=out[atom])


def _lift_backward(
    gradient: Tensor,
    final: Tensor,
    rows: Tensor,
    alpha: Tensor,
    plan: Plan,
    atoms: tuple[int, int],
    d_rows: Tensor,
    d_alpha: Tensor,
) -> Tensor:
    """Cotangent of the edge rows; that of the rotation is added, that of alpha written."""
    lifted = lift(rows, plan)
    weighted = weigh(final, alpha, plan.n_rows)
    d_weighted, d_lift = torch.empty_like(final), torch.empty_like(lifted)
    base, n_rows = plan.offsets[atoms[0]], plan.n_rows
    flat_lift, flat_d_lift = lifted.view(-1, plan.n_lm), d_lift.view(-1, plan.n_lm)
    flat_x, flat_dx = weighted.view(-1, plan.width), d_weighted.view(-1, plan.width)
    for atom in range(*atoms):
        start = (plan.offsets[atom] - base) * n_rows
        stop = (plan.offsets[atom + 1] - base) * n_rows
        if stop > start:
            torch.mm(flat_lift[start:stop], gradient[atom], out=flat_dx[start:stop])
            torch.mm(flat_x[start:stop], gradient[atom].T, out=flat_d_lift[start:stop])
    d_rows[:, : 2 * plan.max_order + 1, : plan.n_lm] += lift_to_rows(d_lift, plan)
    heads = (d_weighted * final).unflatten(1, (n_rows, alpha.shape[1], -1))
    d_alpha.copy_(heads.sum((1, 3)))
    return weigh(d_weighted, alpha, plan.n_rows)
