"""Gather, rotate and mix degrees in one kernel; the reference is `fold` and a product of matrices.

    x_e = fold(kernel_e, rows_e) h_j          (EdgeProduct, Eq. 16-18)

The matrix of an edge is made in registers and never stored.  Going back, the cotangent of h is a
sum over the edges that arrive at an atom, in their order: no atomics, the same bits every time.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from jaxtyping import Float
from torch import Tensor
from torch.autograd.function import once_differentiable

from dpa4sim.kernels.triton_plan import FRAME_PRECISION, TritonPlan, frame_table, padded
from dpa4sim.kernels.triton_tiles import blocks, launch, tile_for


def gather(
    node: Float[Tensor, "atom term_lm channel"],
    kernel: Float[Tensor, "edge column"],
    rows: Float[Tensor, "edge order lm_top"],
    plan: TritonPlan,
) -> Float[Tensor, "edge row_channel"]:
    """Features of the neighbours in the edge frames; rows of padding edges are never written."""
    return _Gather.apply(node, kernel, rows, plan)


class _Gather(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, node: Tensor, kernel: Tensor, rows: Tensor, plan: TritonPlan) -> Tensor:
        node, kernel, rows = node.contiguous(), kernel.contiguous(), rows.contiguous()
        ctx.save_for_backward(node, kernel, rows)
        ctx.plan = plan
        n_edges, table = kernel.shape[0], _table(plan, node)
        out = node.new_empty(n_edges, plan.n_rows * plan.width)
        tile = _tile("gather_edges", plan, node)
        launch(
            _gather_edges, (blocks(n_edges, tile.block),), node, tile,
            node, kernel, rows, plan.graph.neighbor, table.rows, table.degree,
            plan.graph.row_ptr, out, plan.graph.n_atoms, **sizes(plan, rows), BE=tile.block,
        )  # fmt: skip
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        node, kernel, rows = ctx.saved_tensors
        plan: TritonPlan = ctx.plan
        graph, table, gradient = plan.graph, _table(plan, node), gradient.contiguous()
        d_kernel, d_rows = torch.zeros_like(kernel), torch.zeros_like(rows)  # padding stays zero
        tile = _tile("gather_edges_backward", plan, node)
        launch(
            _gather_edges_backward, (blocks(kernel.shape[0], tile.block),), node, tile,
            node, kernel, rows, graph.neighbor, table.rows, table.degree, graph.row_ptr, gradient,
            d_kernel, d_rows, graph.n_atoms, **sizes(plan, rows), BE=tile.block,
            L=plan.max_degree, FRAMES=2 * plan.max_order + 1,
        )  # fmt: skip
        d_node = torch.empty_like(node)
        tile = _tile("gather_atoms_backward", plan, node)
        launch(
            _gather_atoms_backward, (graph.n_atoms, plan.terms), node, tile,
            kernel, rows, graph.arriving, graph.arriving_ptr, table.rows, table.degree, gradient,
            d_node, **sizes(plan, rows), BK=tile.block,
        )  # fmt: skip
        return d_node, d_kernel, d_rows, None


def sizes(plan: TritonPlan, rows: Tensor) -> dict[str, Any]:
    """What the kernels of gather and scatter know at compile time."""
    return {
        "COLUMNS": frame_table(plan.max_degree, plan.max_order, plan.terms, rows.device).n_columns,
        "EDGE": rows.stride(0),
        "TOP": rows.stride(1),
        "ROWS": plan.n_rows,
        "LM": plan.n_lm,
        "TERMS": plan.terms,
        "C": plan.width,
        "RP": padded(plan.n_rows),
        "LMP": padded(plan.n_lm),
        "CP": padded(plan.width),
        "P": FRAME_PRECISION[plan.accuracy],
    }


def _table(plan: TritonPlan, like: Tensor) -> Any:
    return frame_table(plan.max_degree, plan.max_order, plan.terms, like.device)


def _tile(name: str, plan: TritonPlan, like: Tensor) -> Any:
    return tile_for(name, (plan.max_degree, plan.max_order, plan.width), like.device)


@triton.jit
def _gather_edges(
    node: tl.tensor,
    kernel: tl.tensor,
    rows: tl.tensor,
    neighbor: tl.tensor,
    table: tl.tensor,
    degree: tl.tensor,
    row_ptr: tl.tensor,
    out: tl.tensor,
    n_atoms: tl.tensor,
    COLUMNS: tl.constexpr,
    EDGE: tl.constexpr,
    TOP: tl.constexpr,
    ROWS: tl.constexpr,
    LM: tl.constexpr,
    TERMS: tl.constexpr,
    C: tl.constexpr,
    RP: tl.constexpr,
    LMP: tl.constexpr,
    CP: tl.constexpr,
    P: tl.constexpr,
    BE: tl.constexpr,
) -> None:
    real: tl.constexpr = out.dtype.element_ty
    r, q, c = tl.arange(0, RP), tl.arange(0, LMP), tl.arange(0, CP)
    frame = tl.load(table + r, mask=r < ROWS, other=0)
    order = tl.load(table + ROWS + r, mask=r < ROWS, other=0)
    base = tl.load(table + 3 * ROWS + r, mask=r < ROWS, other=0)
    size = tl.load(table + 4 * ROWS + r, mask=r < ROWS, other=0)
    l = tl.load(degree + q, mask=q < LM, other=-1)
    ok = (r < ROWS)[:, None] & (l[None, :] >= order[:, None])
    column = base[:, None] + l[None, :] - order[:, None]
    channels = (c < C)[None, :]
    owned = tl.load(row_ptr + n_atoms)
    for i in range(BE):
        e = tl.program_id(0).to(tl.int64) * BE + i
        if e < owned:
            j = tl.load(neighbor + e).to(tl.int64)
            turn = tl.load(rows + e * EDGE + frame[:, None] * TOP + q[None, :], mask=ok, other=0.0)
            x = tl.zeros((RP, CP), real)
            for term in tl.static_range(TERMS):
                mix = tl.load(
                    kernel + e * COLUMNS + column + term * size[:, None], mask=ok, other=0.0
                )
                h = tl.load(
                    node + (j * TERMS + term) * (LM * C) + q[:, None] * C + c[None, :],
                    mask=(q < LM)[:, None] & channels,
                    other=0.0,
                )
                x = tl.dot(mix * turn, h, x, input_precision=P, out_dtype=real)
            where = out + e * (ROWS * C) + r[:, None] * C + c[None, :]
            tl.store(where, x, mask=(r < ROWS)[:, None] & channels)


@triton.jit
def _gather_edges_backward(
    node: tl.tensor,
    kernel: tl.tensor,
    rows: tl.tensor,
    neighbor: tl.tensor,
    table: tl.tensor,
    degree: tl.tensor,
    row_ptr: tl.tensor,
    d_x: tl.tensor,
    d_kernel: tl.tensor,
    d_rows: tl.tensor,
    n_atoms: tl.tensor,
    COLUMNS: tl.constexpr,
    EDGE: tl.constexpr,
    TOP: tl.constexpr,
    ROWS: tl.constexpr,
    LM: tl.constexpr,
    TERMS: tl.constexpr,
    C: tl.constexpr,
    RP: tl.constexpr,
    LMP: tl.constexpr,
    CP: tl.constexpr,
    P: tl.constexpr,
    BE: tl.constexpr,
    L: tl.constexpr,
    FRAMES: tl.constexpr,
) -> None:
    """Cotangents of kernel and rotation from that of their product, d_x h^T, edge by edge."""
    real: tl.constexpr = d_x.dtype.element_ty
    r, q, c = tl.arange(0, RP), tl.arange(0, LMP), tl.arange(0, CP)
    frame = tl.load(table + r, mask=r < ROWS, other=-1)
    order = tl.load(table + ROWS + r, mask=r < ROWS, other=0)
    base = tl.load(table + 3 * ROWS + r, mask=r < ROWS, other=0)
    size = tl.load(table + 4 * ROWS + r, mask=r < ROWS, other=0)
    twin = tl.load(table + 5 * ROWS + r, mask=r < ROWS, other=-1)
    l = tl.load(degree + q, mask=q < LM, other=-1)
    ok = (r < ROWS)[:, None] & (l[None, :] >= order[:, None])
    column = base[:, None] + l[None, :] - order[:, None]
    channels = (c < C)[None, :]
    owned = tl.load(row_ptr + n_atoms)
    for i in range(BE):
        e = tl.program_id(0).to(tl.int64) * BE + i
        if e < owned:
            j = tl.load(neighbor + e).to(tl.int64)
            turn = tl.load(rows + e * EDGE + frame[:, None] * TOP + q[None, :], mask=ok, other=0.0)
            g = tl.load(
                d_x + e * (ROWS * C) + r[:, None] * C + c[None, :],
                mask=(r < ROWS)[:, None] & channels,
                other=0.0,
            )
            d_turn = tl.zeros((RP, LMP), real)
            for term in tl.static_range(TERMS):
                mix = tl.load(
                    kernel + e * COLUMNS + column + term * size[:, None], mask=ok, other=0.0
                )
                h = tl.load(
                    node + (j * TERMS + term) * (LM * C) + q[:, None] * C + c[None, :],
                    mask=(q < LM)[:, None] & channels,
                    other=0.0,
                )
                d_folded = tl.dot(g, tl.trans(h), input_precision=P, out_dtype=real)
                d_turn += d_folded * mix
                for k in tl.static_range(L + 1):
                    of_l = tl.where((l == k)[None, :], d_folded * turn, 0.0)
                    of_row = tl.sum(of_l, 1)
                    shared = tl.where(r[:, None] == twin[None, :], of_row[None, :], 0.0)
                    tl.store(
                        d_kernel + e * COLUMNS + base + term * size + k - order,
                        tl.sum(shared, 1),
                        mask=(twin == r) & (order <= k),
                    )
            for f in tl.static_range(FRAMES):
                found = tl.sum(tl.where((frame == f)[:, None], d_turn, 0.0), 0)
                tl.store(d_rows + e * EDGE + f * TOP + q, found, mask=q < LM)


@triton.jit
def _gather_atoms_backward(
    kernel: tl.tensor,
    rows: tl.tensor,
    arriving: tl.tensor,
    arriving_ptr: tl.tensor,
    table: tl.tensor,
    degree: tl.tensor,
    d_x: tl.tensor,
    d_node: tl.tensor,
    COLUMNS: tl.constexpr,
    EDGE: tl.constexpr,
    TOP: tl.constexpr,
    ROWS: tl.constexpr,
    LM: tl.constexpr,
    TERMS: tl.constexpr,
    C: tl.constexpr,
    RP: tl.constexpr,
    LMP: tl.constexpr,
    CP: tl.constexpr,
    P: tl.constexpr,
    BK: tl.constexpr,
) -> None:
    """Cotangent of one atom's features: the frame rows of all its arriving edges, one after one."""
    real: tl.constexpr = d_x.dtype.element_ty
    atom, term = tl.program_id(0).to(tl.int64), tl.program_id(1)
    q, c = tl.arange(0, LMP), tl.arange(0, CP)
    l = tl.load(degree + q, mask=q < LM, other=-1)
    first, last = tl.load(arriving_ptr + atom) * ROWS, tl.load(arriving_ptr + atom + 1) * ROWS
    total = tl.zeros((LMP, CP), real)
    for start in range(first, last, BK):
        flat = start + tl.arange(0, BK)
        inside = flat < last
        r = flat % ROWS
        e = tl.load(arriving + flat // ROWS, mask=inside, other=0)
        frame = tl.load(table + r)
        order = tl.load(table + ROWS + r)
        base = tl.load(table + 3 * ROWS + r) + term * tl.load(table + 4 * ROWS + r)
        ok = inside[None, :] & (l[:, None] >= order[None, :])
        turn = tl.load(rows + (e * EDGE + frame * TOP)[None, :] + q[:, None], mask=ok, other=0.0)
        mix = tl.load(
            kernel + (e * COLUMNS + base - order)[None, :] + l[:, None], mask=ok, other=0.0
        )
        g = tl.load(
            d_x + (e * ROWS + r)[:, None] * C + c[None, :],
            mask=inside[:, None] & (c < C)[None, :],
            other=0.0,
        )
        total = tl.dot(mix * turn, g, total, input_precision=P, out_dtype=real)
    tl.store(
        d_node + (atom * TERMS + term) * (LM * C) + q[:, None] * C + c[None, :],
        total,
        mask=(q < LM)[:, None] & (c < C)[None, :],
    )
