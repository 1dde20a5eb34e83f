"""The SO(2) stack in one kernel: every layer of a tile of edges, gates and residuals.  Eq. 19-21

    u_t = x_t W_t,   x_{t+1} = x_t + act(u_t),   y = x_{S-1} W_{S-1}

The reference is `SO2Stack` and kernels/edge_convolution.py.  A program takes one tile of edges
through all layers; between layers its features stay in a few buffers of its own, which the
second-level cache holds.  A pair (-m, +m) costs three matrix products instead of four (Gauss).

The way back needs pre-activations u_t and gates.  Where they are few they are kept; where they are
many the same program makes them again, tile by tile: the same numbers in the same order.
"""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.autograd.function import once_differentiable

from dpa4sim.kernels.triton_layers import stack_backward, stack_forward
from dpa4sim.kernels.triton_plan import STACK_PRECISION, Accuracy, TritonPlan
from dpa4sim.kernels.triton_tiles import Tile, launch, programs, tile_for

KEEP_BYTES = 1 << 30
"""Up to this much, the pre-activations and gates of a stack are kept for the way back."""


def stack(
    x: Float[Tensor, "edge row_channel"], plan: TritonPlan
) -> Float[Tensor, "edge row_channel"]:
    """All SO(2) layers of one focus; rows of padding edges are never written."""
    return _Stack.apply(x, plan)


class _Stack(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, plan: TritonPlan) -> Tensor:
        x = x.contiguous()
        y, weights, graph = torch.empty_like(x), plan.stack, plan.graph
        tile = _tile("forward", plan, x)
        count = programs(x.shape[0], tile.block, x.device)
        keep = ctx.needs_input_grad[0] and _bytes(x, plan) <= KEEP_BYTES
        pre, gates = _kept(x, plan, weights.n_gated * x.shape[0] if keep else count * tile.block)
        launch(
            stack_forward, (count,), x, tile,
            x, y, _state(x, plan, 2 * count * tile.block), pre, gates,
            weights.zonal, weights.pairs, weights.gates, weights.scale,
            graph.row_ptr, graph.n_atoms, x.shape[0], **_sizes(plan, tile), KEPT=keep,
        )  # fmt: skip
        ctx.plan, ctx.kept = plan, (pre, gates) if keep else None
        ctx.save_for_backward(x)
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        (x,) = ctx.saved_tensors
        plan: TritonPlan = ctx.plan
        weights, graph = plan.stack, plan.graph
        gradient, d_x = gradient.contiguous(), torch.empty_like(x)
        tile = _tile("backward", plan, x)
        count = programs(x.shape[0], tile.block, x.device)
        rows = count * tile.block
        pre, gates = ctx.kept or _kept(x, plan, weights.n_gated * rows)
        d_logit = x.new_empty(rows, max(1, plan.max_degree * plan.width))
        launch(
            stack_backward, (count,), x, tile,
            gradient, d_x, x, _state(x, plan, 2 * rows), d_logit, pre, gates,
            weights.zonal, weights.pairs, weights.gates, weights.scale,
            weights.zonal_t, weights.pairs_t, weights.gates_t,
            graph.row_ptr, graph.n_atoms, x.shape[0],
            **_sizes(plan, tile), KEPT=ctx.kept is not None,
        )  # fmt: skip
        return d_x, None


def _bytes(x: Tensor, plan: TritonPlan) -> int:
    numbers = plan.stack.n_gated * plan.width * (plan.n_rows + plan.max_degree)
    return x.shape[0] * numbers * x.element_size()


def _kept(x: Tensor, plan: TritonPlan, rows: int) -> tuple[Tensor, Tensor]:
    """Room for pre-activations and gates."""
    return x.new_empty(rows, x.shape[1]), x.new_empty(rows, plan.max_degree * plan.width)


def _state(x: Tensor, plan: TritonPlan, rows: int) -> Tensor:
    return x.new_empty(rows, x.shape[1])


def _sizes(plan: TritonPlan, tile: Tile) -> dict[str, Any]:
    return {
        "LAYERS": plan.stack.n_gated + 1,
        "L": plan.max_degree,
        "M": plan.max_order,
        "C": plan.width,
        "TOTAL": plan.n_rows * plan.width,
        "P": STACK_PRECISION[plan.accuracy],
        "BE": tile.block,
        "BN": tile.columns,
        "BK": tile.depth,
    }


def tile_name(direction: str, accuracy: Accuracy) -> str:
    """Which row of the tile table: exact products need no tensor cores, and other tiles."""
    return f"stack_{direction}_exact" if accuracy == "exact" else f"stack_{direction}"


def _tile(direction: str, plan: TritonPlan, like: Tensor) -> Tile:
    shape = plan.max_degree, plan.max_order, plan.width
    return tile_for(tile_name(direction, plan.accuracy), shape, like.device)
