"""Rotate back, weigh and sum at the centers in one kernel; the reference is `lift` and a sum.

    m_i = sum_{e of i} lift(rows_e)^T (alpha_e x_e)          (EMFA, Eq. 25)

One program per center walks over its edges in their order: no atomics, the same bits every time,
whatever else is in the batch.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from jaxtyping import Float
from torch import Tensor
from torch.autograd.function import once_differentiable

from dpa4sim.kernels.triton_gather import sizes
from dpa4sim.kernels.triton_plan import TritonPlan, frame_table
from dpa4sim.kernels.triton_tiles import launch, tile_for


def scatter(
    x: Float[Tensor, "edge row_channel"],
    rows: Float[Tensor, "edge order lm_top"],
    alpha: Float[Tensor, "edge head"],
    plan: TritonPlan,
) -> Float[Tensor, "atom lm channel"]:
    """Messages summed at their centers; padding edges belong to no center."""
    return _Scatter.apply(x, rows, alpha, plan)


class _Scatter(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, rows: Tensor, alpha: Tensor, plan: TritonPlan) -> Tensor:
        x, rows, alpha = x.contiguous(), rows.contiguous(), alpha.contiguous()
        ctx.save_for_backward(x, rows, alpha)
        ctx.plan = plan
        n_atoms = plan.graph.n_atoms
        out = x.new_empty(n_atoms, plan.n_lm, plan.width)
        tile = _tile("scatter_atoms", plan, x)
        launch(
            _scatter_atoms, (n_atoms,), x, tile, x, *_shared(rows, alpha, plan), out,
            **_sizes(plan, rows, alpha), BK=tile.block,
        )  # fmt: skip
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        x, rows, alpha = ctx.saved_tensors
        plan: TritonPlan = ctx.plan
        d_x = torch.empty_like(x)  # only ever read where a center owns the edge
        d_rows, d_alpha = torch.zeros_like(rows), torch.zeros_like(alpha)
        tile = _tile("scatter_edges_backward", plan, x)
        launch(
            _scatter_edges_backward, (plan.graph.n_atoms, tile.block), x, tile,
            x, *_shared(rows, alpha, plan), gradient.contiguous(), d_x, d_rows, d_alpha,
            **_sizes(plan, rows, alpha), FRAMES=2 * plan.max_order + 1, SPLIT=tile.block,
        )  # fmt: skip
        return d_x, d_rows, d_alpha, None


def _shared(rows: Tensor, alpha: Tensor, plan: TritonPlan) -> tuple[Tensor, ...]:
    table = frame_table(plan.max_degree, plan.max_order, plan.terms, rows.device)
    return rows, alpha, plan.lift, table.rows, table.degree, plan.graph.row_ptr


def _sizes(plan: TritonPlan, rows: Tensor, alpha: Tensor) -> dict[str, Any]:
    found = sizes(plan, rows) | {"HEADS": alpha.shape[1], "HC": plan.width // alpha.shape[1]}
    del found["COLUMNS"], found["TERMS"]
    return found


def _tile(name: str, plan: TritonPlan, like: Tensor) -> Any:
    return tile_for(name, (plan.max_degree, plan.max_order, plan.width), like.device)


@triton.jit
def _scatter_atoms(
    x: tl.tensor,
    rows: tl.tensor,
    alpha: tl.tensor,
    lift: tl.tensor,
    table: tl.tensor,
    degree: tl.tensor,
    row_ptr: tl.tensor,
    out: tl.tensor,
    EDGE: tl.constexpr,
    TOP: tl.constexpr,
    ROWS: tl.constexpr,
    LM: tl.constexpr,
    C: tl.constexpr,
    RP: tl.constexpr,
    LMP: tl.constexpr,
    CP: tl.constexpr,
    P: tl.constexpr,
    HEADS: tl.constexpr,
    HC: tl.constexpr,
    BK: tl.constexpr,
) -> None:
    real: tl.constexpr = out.dtype.element_ty
    atom = tl.program_id(0).to(tl.int64)
    q, c = tl.arange(0, LMP), tl.arange(0, CP)
    l = tl.load(degree + q, mask=q < LM, other=-1)
    rescale = tl.load(lift + q, mask=q < LM, other=0.0)
    head = tl.minimum(c // HC, HEADS - 1)
    first, last = tl.load(row_ptr + atom) * ROWS, tl.load(row_ptr + atom + 1) * ROWS
    total = tl.zeros((LMP, CP), real)
    for start in range(first, last, BK):
        flat = start + tl.arange(0, BK)
        inside = flat < last
        e, r = flat // ROWS, flat % ROWS
        frame, own = tl.load(table + r), tl.load(table + 2 * ROWS + r)
        same = inside[None, :] & (l[:, None] == own[None, :])
        turn = tl.load(rows + (e * EDGE + frame * TOP)[None, :] + q[:, None], mask=same, other=0.0)
        full = inside[:, None] & (c < C)[None, :]
        feature = tl.load(x + flat[:, None] * C + c[None, :], mask=full, other=0.0)
        weight = tl.load(alpha + e[:, None] * HEADS + head[None, :], mask=full, other=0.0)
        total = tl.dot(
            turn * rescale[:, None], feature * weight, total, input_precision=P, out_dtype=real
        )
    where = out + atom * (LM * C) + q[:, None] * C + c[None, :]
    tl.store(where, total, mask=(q < LM)[:, None] & (c < C)[None, :])


@triton.jit
def _scatter_edges_backward(
    x: tl.tensor,
    rows: tl.tensor,
    alpha: tl.tensor,
    lift: tl.tensor,
    table: tl.tensor,
    degree: tl.tensor,
    row_ptr: tl.tensor,
    d_out: tl.tensor,
    d_x: tl.tensor,
    d_rows: tl.tensor,
    d_alpha: tl.tensor,
    EDGE: tl.constexpr,
    TOP: tl.constexpr,
    ROWS: tl.constexpr,
    LM: tl.constexpr,
    C: tl.constexpr,
    RP: tl.constexpr,
    LMP: tl.constexpr,
    CP: tl.constexpr,
    P: tl.constexpr,
    HEADS: tl.constexpr,
    HC: tl.constexpr,
    FRAMES: tl.constexpr,
    SPLIT: tl.constexpr,
) -> None:
    """Every SPLIT-th edge of one center: the cotangent of the center's message is read once."""
    real: tl.constexpr = d_out.dtype.element_ty
    atom, part = tl.program_id(0).to(tl.int64), tl.program_id(1)
    r, q, c = tl.arange(0, RP), tl.arange(0, LMP), tl.arange(0, CP)
    frame = tl.load(table + r, mask=r < ROWS, other=-1)
    own = tl.load(table + 2 * ROWS + r, mask=r < ROWS, other=-1)
    l = tl.load(degree + q, mask=q < LM, other=-2)
    rescale = tl.load(lift + q, mask=q < LM, other=0.0)
    same = own[:, None] == l[None, :]
    channels = (c < C)[None, :]
    head = tl.minimum(c // HC, HEADS - 1)
    g = tl.load(
        d_out + atom * (LM * C) + q[:, None] * C + c[None, :],
        mask=(q < LM)[:, None] & channels,
        other=0.0,
    )
    full = (r < ROWS)[:, None] & channels
    for e in range(tl.load(row_ptr + atom) + part, tl.load(row_ptr + atom + 1), SPLIT):
        turn = tl.load(rows + e * EDGE + frame[:, None] * TOP + q[None, :], mask=same, other=0.0)
        place = e * (ROWS * C) + r[:, None] * C + c[None, :]
        feature = tl.load(x + place, mask=full, other=0.0)
        weight = tl.load(alpha + e * HEADS + head, mask=c < C, other=0.0)[None, :]
        arriving = tl.dot(turn * rescale[None, :], g, input_precision=P, out_dtype=real)
        tl.store(d_x + place, arriving * weight, mask=full)
        shared = tl.sum(arriving * feature, 0)
        for a in tl.static_range(HEADS):
            tl.store(d_alpha + e * HEADS + a, tl.sum(tl.where(head == a, shared, 0.0), 0))
        d_lift = tl.dot(feature * weight, tl.trans(g), input_precision=P, out_dtype=real)
        d_turn = tl.where(same, d_lift * rescale[None, :], 0.0)
        for f in tl.static_range(FRAMES):
            found = tl.sum(tl.where((frame == f)[:, None], d_turn, 0.0), 0)
            tl.store(d_rows + e * EDGE + f * TOP + q, found, mask=q < LM)
